"""Books against those we did not build: LOBSTER's own level files, and PyPI itch-book."""

from __future__ import annotations

import csv
import gzip
import io
import struct

import numpy as np
import pytest
from captures import mold_messages
from days import framed, make_day

from nimbus.book.book import apply
from nimbus.book.export import Export, bbo_header, csv_text, depth_header, record_row
from nimbus.book.owner import Books
from nimbus.book.probe import measure, message_sizes
from nimbus.messages import CHANGE
from ringbuf.jit import kernel
from ringbuf.memory import u2
from ringbuf.segment import Segment

AAPL = "itch/lobster_aapl/aapl_20120621_09"
FIRST_TRUTH = 73  # the opening book is seeded by the messages before it


@kernel
def export_file(books, file: int, size: int, bbo: int, deep: int, change: int) -> int:
    """Apply framed messages numbered from 1, and record both outputs after each; return how many."""
    at, seq, left = file, 0, 1
    while at < file + size and left > 0:
        seq += 1
        apply(books, at + 2, seq, 0, change)
        left = min(record_row(bbo, books, change), record_row(deep, books, change))
        at += 2 + u2(at)
    return seq


def run(messages: list[bytes], levels: int = 10, symbol: str = "", **capacity: int):
    """Return (books, bbo rows, depth rows) of messages numbered from 1."""
    segment, file = Segment.anonymous(1 << 30), np.frombuffer(framed(messages), np.uint8)
    books = Books(segment, **capacity)
    bbo = Export(segment, "bbo", books, 1, symbol, rows_max=len(messages) + 1)
    deep = Export(segment, "depth", books, levels, symbol, rows_max=len(messages) + 1)
    change = np.zeros(1, CHANGE.dtype)
    addresses = (bbo.addr, deep.addr, change.ctypes.data)
    assert export_file(books.state, file.ctypes.data, len(file), *addresses) == len(messages)
    assert bbo.refused == deep.refused == 0
    return books, bbo.drain()[0], deep.drain()[0]


def changes_of(columns) -> list[list[int]]:
    """Return the rows (locate, sequence, values...) whose values differ from the symbol's row before."""
    seen, changed = {}, []
    for row in np.stack([column.astype(np.int64) for column in columns], axis=1).tolist():
        if seen.get(row[0]) != row[2:]:
            changed.append(row)
        seen[row[0]] = row[2:]
    return changed


def read(path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().split()


def test_the_lobster_capture_gives_its_own_6503_best_prices_and_999_ten_level_books(shared_data):
    capture = gzip.decompress((shared_data / f"{AAPL}30_0940.pcap.gz").read_bytes())
    numbered = mold_messages(capture)
    assert [seq for seq, _ in numbered] == list(range(1, len(numbered) + 1))
    books, bbo, deep = run([message for _, message in numbered], symbols_max=64)
    truth = read(shared_data / f"{AAPL}30_0940.bbo_truth.csv.gz")
    assert truth[0] == bbo_header(with_symbol=False)
    assert csv_text(bbo[bbo[:, 1] >= FIRST_TRUTH]).split() == truth[1:]
    assert len(truth) == 1 + 6_503
    truth = read(shared_data / "itch/lobster_aapl/aapl_20120621_first49s.l10_truth.csv.gz")
    assert truth[0] == depth_header(10, with_symbol=False)
    wanted = np.array([[int(word) for word in line.split(",")] for line in truth[1:]])
    assert len(wanted) == 999
    # Theirs has a row for each event, ours for each change within the ten levels.
    deep = deep[(deep[:, 1] >= FIRST_TRUTH) & (deep[:, 1] <= wanted[-1, 0])]
    repeats = np.all(wanted[1:, 2:] == wanted[:-1, 2:], axis=1)
    assert deep[:, 1:].tolist() == wanted[np.insert(~repeats, 0, True)].tolist()
    assert books.symbols() == {13: "AAPL"}


@pytest.mark.parametrize(("seed", "symbols", "orders"), [(1, 1, 400), (2, 30, 40), (3, 300, 12)])
def test_itch_book_sees_the_same_best_prices_and_depth_on_generated_days(seed, symbols, orders):
    core = pytest.importorskip("itch_book._core")
    messages = make_day(seed, 30_000, symbols, orders)
    session = core.Session(tables=["bbo"], depth=10, symbols=[])
    session.feed(framed(messages))
    stats = session.stats()
    assert (stats["missing_ref"], stats["dup_ref"], stats["rejected"], stats["clamped"]) == (0, 0, 0, 0)
    _, bbo, deep = run(messages)
    theirs = session.take_bbo()
    # Theirs has a row too when only the number of orders has changed; ours compares price and size.
    columns = [theirs[n].astype(np.int64) for n in ("locate", "seq", "ask_px", "ask_sz", "bid_px", "bid_sz")]
    rows, seen = np.stack(columns, axis=1), {}
    changed = [
        row for row in rows.tolist() if seen.get(row[0]) != row[2:] and not seen.update({row[0]: row[2:]})
    ]
    shift = bbo[0][1] - changed[0][1]  # they may number from 0
    assert [[locate, seq + shift, *top] for locate, seq, *top in changed] == np.delete(bbo, 2, 1).tolist()
    theirs = session.take_depth()
    sides = [
        [theirs[f"{side}_px_{n:02}"], theirs[f"{side}_sz_{n:02}"]]
        for n in range(10)
        for side in ("ask", "bid")
    ]
    columns = [theirs["locate"], theirs["seq"], *(column for pair in sides for column in pair)]
    rows, seen = np.stack([c.astype(np.int64) for c in columns], axis=1), {}
    changed = [
        row for row in rows.tolist() if seen.get(row[0]) != row[2:] and not seen.update({row[0]: row[2:]})
    ]
    assert [[locate, seq + shift, *top] for locate, seq, *top in changed] == np.delete(deep, 2, 1).tolist()


def test_one_symbol_can_be_exported_alone_and_rows_carry_their_symbol():
    messages = make_day(4, 3_000, 5)
    books, every, _ = run(messages)
    _, alone, _ = run(messages, symbol="SYM00003")
    assert len(alone) > 50
    assert alone.tolist() == every[every[:, 0] == 3].tolist()
    text = csv_text(every, [books.symbol_text(locate) for locate in every[:, 0]])
    table = list(csv.reader(io.StringIO(bbo_header(with_symbol=True) + "\n" + text)))
    assert {row[0] for row in table[1:]} == {f"SYM{n:05}" for n in range(1, 6)}
    assert all(len(row) == len(table[0]) for row in table)


def test_a_full_row_buffer_refuses_and_counts():
    segment = Segment.anonymous(1 << 30)
    books = Books(segment)
    bbo = Export(segment, "bbo", books, 1, rows_max=3)
    file = np.frombuffer(framed(make_day(4, 3_000, 5)), np.uint8)
    change = np.zeros(1, CHANGE.dtype)
    addresses = (bbo.addr, bbo.addr, change.ctypes.data)
    done = export_file(books.state, file.ctypes.data, len(file), *addresses)
    assert done < 3_000
    assert bbo.refused == 1  # it was asked twice after the message that filled it
    assert [len(part) for part in bbo.drain()] == [3, 3]
    assert [len(part) for part in bbo.drain()] == [0, 0]


def test_the_probe_refuses_a_file_that_is_not_framed_and_counts_what_it_applies():
    messages = make_day(7, 2_000, 5)
    good = framed(messages)
    assert measure(np.frombuffer(good, np.uint8), 2).messages == len(messages)
    with pytest.raises(ValueError, match="stopped at byte"):
        measure(np.frombuffer(good[:-3], np.uint8), 1)
    assert int(np.count_nonzero(message_sizes())) == 23
    odd = good + struct.pack(">H", 7) + b"Zabcdef"  # an unknown type is walked over
    assert measure(np.frombuffer(odd, np.uint8), 1).messages == len(messages)
