"""Books alone, against PyPI itch-book on the same bytes in the same run, with both answers checked.

Ours: length and type checks, every range check, L3 books, CHANGE records, published tops.  Theirs: its
own books and no table (its fastest mode).  Both read a file in memory; ours in tables that were touched
before, theirs in a new Session for each round, as it cannot be emptied.
Bar: faster.  Aim: 25 ns a message on a quiet core.
Run: python -m pytest bench/bench_book.py -s
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from days import framed, make_day
from itch_book import _core as itch_book
from reference.book import ReferenceBooks

from bench.results import append_row
from nimbus.book.owner import Books
from nimbus.book.probe import measure
from nimbus.book.snapshot import state_hash
from ringbuf.segment import Segment

SEED, ROUNDS, CHECKED = 20_260_101, 25, 50_000
TOP = ("bid_px", "bid_sz", "ask_px", "ask_sz")


def theirs_ns(file: bytes, count: int) -> float:
    session = itch_book.Session(tables=[], depth=0, symbols=[])
    began = time.perf_counter_ns()
    session.feed(file)
    return (time.perf_counter_ns() - began) / count


def their_tops(file: bytes) -> dict[int, tuple[int, ...]]:
    """Return their last best prices and sizes by locate."""
    session = itch_book.Session(tables=["bbo"], depth=0, symbols=[])
    session.feed(file)
    bbo = session.take_bbo()
    rows = zip(*(bbo[name].astype(np.int64).tolist() for name in ("locate", *TOP)), strict=True)
    return {locate: tuple(top) for locate, *top in rows}


def check_answer(messages: list[bytes], file: bytes, books: Books) -> None:
    """Compare all tops with theirs, and all orders of the day's beginning with the reference book."""
    theirs = their_tops(file)
    for locate, top in theirs.items():
        ours = books.top(locate)
        assert (ours["bid_px"], ours["bid_qty"], ours["ask_px"], ours["ask_qty"]) == top
    slow = ReferenceBooks(65_536, 1 << 30, 1 << 30)
    for seq, message in enumerate(messages[:CHECKED], 1):
        slow.apply(message, seq)
    beginning = Books(Segment.anonymous(1 << 30))
    measure(np.frombuffer(framed(messages[:CHECKED]), np.uint8), 1, beginning)
    assert state_hash(beginning.state) == slow.state_hash()


def run(name: str, symbols: int, orders_each: int, count: int) -> None:
    messages = make_day(SEED, count, symbols, orders_each)
    file = framed(messages)
    array, books = np.frombuffer(file, np.uint8), Books(Segment.anonymous(1 << 30))
    first = measure(array, 1, books)
    check_answer(messages, file, books)
    ours, ratios = [], []
    for _ in range(ROUNDS):
        again = measure(array, 1, books)
        assert (again.state_hash, again.refused) == (first.state_hash, 0)
        ours.append(again.ns_per_message[0])
        ratios.append(theirs_ns(file, len(messages)) / ours[-1])
    p50, p99, ratio = np.median(ours), np.percentile(ours, 99), np.median(ratios)
    print(
        f"\n{name}: {len(messages)} messages, ours p50 {p50:.1f} ns (best {min(ours):.1f}, untouched memory"
        f" {first.ns_per_message[0]:.1f}), itch-book {p50 * ratio:.1f} ns: {ratio:.2f}x as fast"
    )
    append_row(name, len(messages), p50, p99, ratio)
    assert ratio > 1


def test_books_of_64_symbols_against_itch_book():
    run("book_ns_per_msg", 64, 40, 1_000_000)


@pytest.mark.slow
def test_deep_books_of_2000_symbols_against_itch_book():
    run("book_deep_ns_per_msg", 2_000, 150, 1_500_000)
