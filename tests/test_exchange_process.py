"""`contrafusion venue` as a process: its feed, rerequests, snapshots, FIX, and what it leaves behind."""

from __future__ import annotations

import ctypes
import pathlib

import numpy as np
import pytest
from days import ADD as ADD_MESSAGE
from days import OPEN_NS, SYSTEM, directory, framed, make_day, symbol
from market import apply_one
from venue_process import Subscriber, venue

from nimbus.book.owner import Books
from nimbus.book.snapshot import state_hash
from nimbus.messages import CHANGE
from ringbuf.segment import Segment

NS = OPEN_NS.to_bytes(6, "big")


def hash_of(messages: list[bytes]) -> str:
    """Return the hash of books that were fed these messages, as the summary writes it."""
    books = Books(Segment.anonymous(1 << 26), symbols_max=64, live_orders_max=65_536, levels_max=16_384)
    change, buffer = np.zeros(1, CHANGE.dtype), ctypes.create_string_buffer(64)
    for seq, message in enumerate(messages, 1):
        ctypes.memmove(buffer, message, len(message))
        apply_one(books.state, ctypes.addressof(buffer), seq, 0, change.ctypes.data)
    return f"{state_hash(books.state) & 0xFFFFFFFFFFFFFFFF:016x}"


def capture_of(folder: pathlib.Path, messages: list[bytes]) -> pathlib.Path:
    path = folder / "flow.itch"
    path.write_bytes(framed(messages))
    return path


def quiet_book(folder: pathlib.Path) -> pathlib.Path:
    """Return a flow of one symbol with a bid of 100 at 10.00 and an ask of 100 at 10.10."""
    at = (1, 0, NS)
    orders = [
        ADD_MESSAGE(b"A", *at, 1, b"B", 100, symbol(1), 100_000),
        ADD_MESSAGE(b"A", *at, 2, b"S", 100, symbol(1), 101_000),
    ]
    return capture_of(folder, [SYSTEM(b"S", 0, 0, NS, b"O"), directory(1, NS), *orders])


def settings(
    folder: pathlib.Path, capture: pathlib.Path, lines: list[Subscriber], *, flow: str = "", more: str = ""
) -> str:
    ports = [line.port for line in lines] or [1]
    group_b = "127.0.0.1" if len(ports) > 1 else ""
    return (
        f'[flow]\nsource = "capture"\ncapture = "{capture}"\npace = "max"\n{flow}\n'
        f'[feed]\ngroup_a = "127.0.0.1"\nport_a = {ports[0]}\ngroup_b = "{group_b}"\nport_b = {ports[-1]}\n'
        f'[run]\nfolder = "{folder / "run"}"\nstatus_ms = 50\n[fix]\nport = 0\n{more}'
    )


@pytest.fixture
def line_a():
    line = Subscriber()
    yield line
    line.close()


@pytest.fixture
def line_b():
    line = Subscriber()
    yield line
    line.close()


def test_a_flow_without_orders_reaches_both_lines_bit_for_bit(tmp_path, line_a, line_b):
    messages = make_day(1, 3_000, 4)
    text = settings(tmp_path, capture_of(tmp_path, messages), [line_a, line_b], flow='at_end = "stop"')
    with venue(tmp_path, text) as process:
        summary = process.finish()
    for line in (line_a, line_b):
        line.until_end()
        assert [line.messages[n] for n in sorted(line.messages)] == messages
        assert {session for session, _, _ in line.packets} == {process.started["session"].encode()}
    assert summary["last_seq"] == len(messages)
    assert summary["book_state_hash"] == summary["recorded_state_hash"] == summary["shadow_state_hash"]
    assert summary["book_state_hash"] == hash_of(messages)


def test_orders_are_accepted_filled_cancelled_and_booked(tmp_path, line_a):
    text = settings(tmp_path, quiet_book(tmp_path), [line_a])
    with venue(tmp_path, text) as process:
        process.wait_for("flow_ended")
        client = process.client()
        assert client.log_on()[49] == "VENUE"
        client.order("one", "B", 150, "10.10", t1="ACC")
        client.expect("8", t150="0", t11="one", t151=150)
        trade = client.expect("8", t150="F")
        assert (trade[31], trade[32], trade[14], trade[151], trade[6]) == (
            "10.1000", "100", "100", "50", "10.1000",
        )  # fmt: skip
        client.order("two", "S", 20, "10.10")  # meets the rest of our own
        assert client.expect("8", t150="F", t11="one")[32] == "20"
        assert client.expect("8", t150="F", t11="two")[39] == "2"
        client.cancel("cancel", "one")
        cancelled = client.expect("8", t150="4")
        assert (cancelled[11], cancelled[41], cancelled[151]) == ("cancel", "one", "0")
        client.cancel("again", "one")
        assert client.expect("9")[102] == "0"
        client.cancel("unknown", "never")
        assert client.expect("9")[102] == "1"
        summary = process.stop()
    assert summary["positions"] == {
        "ACC": {
            "SYM00001": {"qty": 120, "bought_qty": 120, "sold_qty": 0, "cash_1e4": -12_120_000, "fills": 2}
        },
        "CONTRAFUSION": {
            "SYM00001": {"qty": -20, "bought_qty": 0, "sold_qty": 20, "cash_1e4": 2_020_000, "fills": 1}
        },
    }
    assert (summary["orders"], summary["fills"]) == (2, 3)
    line_a.until_end()
    published = [line_a.messages[n] for n in range(1, summary["last_seq"] + 1)]
    assert hash_of(published) == summary["book_state_hash"]
    ids = [m[17] for m in client.heard if m[35] == "8"]
    assert len(set(ids)) == len(ids)
