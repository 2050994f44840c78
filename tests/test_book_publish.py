"""What others see of the books: tops, status, events, depth, directory; and what a reset leaves."""

from __future__ import annotations

import numpy as np
import pytest
from days import ADD, COLLAR, DELETE, EXECUTED, HALT, NOII, OPEN_NS, REPLACE, TRADE, directory, symbol
from market import AT, NS, Market, find_ref, read_cell

from nimbus.book.invariants import FAULTS, check_books
from nimbus.book.owner import symbol_word
from nimbus.book.publish import DEPTH_CELL, TOP_CELL, mark, mark_all, publish_depth, write_event
from nimbus.book.snapshot import state_hash
from nimbus.messages import (
    BOOK_CROSSED,
    BOOK_EVENT,
    BOOK_HALTED,
    BOOK_INCOMPLETE,
    BOOK_ONE_SIDED,
    BOOK_STALE,
    DEPTH,
    DEPTH_CHANGED,
    SELL,
    STATE_CHANGED,
    TOP_CHANGED,
    TOP_OF_BOOK,
    TRADED,
)


@pytest.fixture
def market():
    market = Market()
    yield market
    assert FAULTS[check_books(market.state)] == ""


def test_the_top_cell_is_written_only_when_price_size_or_status_changes(market):
    cell = market.state.tops + TOP_CELL
    seen = np.zeros(1, TOP_OF_BOOK.dtype)

    def version() -> int:
        return read_cell(cell, seen.ctypes.data, TOP_OF_BOOK.size)

    start = version()
    market.add(1, b"B", 100)
    assert version() == start + 2
    assert (int(seen["bid_px"][0]), int(seen["recv_ns"][0]), int(seen["exch_ns"][0])) == (100, 77, OPEN_NS)
    assert market.add(2, b"B", 99) == DEPTH_CHANGED
    assert market.send(TRADE(b"P", *AT, 0, b"B", 10, symbol(1), 100, 1)) == TRADED
    assert version() == start + 2
    assert market.add(3, b"B", 100) == DEPTH_CHANGED | TOP_CHANGED
    assert version() == start + 4
    assert (int(seen["update"][0]), int(seen["cause"][0])) == (2, ord("A"))
    assert market.send(REPLACE(b"U", *AT, 3, 4, 100, 100)) == DEPTH_CHANGED  # same price and size: same top
    assert version() == start + 4


def test_the_status_says_one_sided_crossed_halted_and_what_was_marked(market):
    assert market.books.top(1)["status"] == BOOK_ONE_SIDED
    market.add(1, b"B", 100)
    assert market.add(2, b"S", 101) == DEPTH_CHANGED | TOP_CHANGED | STATE_CHANGED
    assert market.books.top(1)["status"] == 0
    market.add(3, b"B", 101)  # locked counts as crossed
    assert market.books.top(1)["status"] == BOOK_CROSSED
    market.send(DELETE(b"D", *AT, 3))
    assert market.send(HALT(b"h", *AT, symbol(1), b"B", b"H")) == STATE_CHANGED
    assert market.send(HALT(b"h", *AT, symbol(1), b"Q", b"H")) == 0
    market.send(HALT(b"h", *AT, symbol(1), b"B", b"T"))
    assert market.books.top(1)["status"] == BOOK_HALTED
    market.send(HALT(b"h", *AT, symbol(1), b"Q", b"T"))
    assert mark(market.state, 1, BOOK_STALE, 0, 0) == STATE_CHANGED
    mark_all(market.state, BOOK_INCOMPLETE, BOOK_STALE)
    assert market.books.top(1)["status"] == BOOK_INCOMPLETE
    assert market.books.top(7)["status"] == BOOK_INCOMPLETE | BOOK_ONE_SIDED
    mark_all(market.state, 0, BOOK_INCOMPLETE)
    assert market.books.top(1)["status"] == 0


def test_the_directory_finds_symbols_and_follows_a_rename(market):
    assert [market.books.locate_of(f"SYM0000{n}") for n in (1, 2, 3)] == [1, 2, -1]
    market.send(directory(1, NS, b"AAPL    "), directory(3, NS, b"SYM00001"))
    assert market.books.locate_of("AAPL") == 1
    assert market.books.locate_of("SYM00001") == 3
    assert market.books.symbols() == {1: "AAPL", 2: "SYM00002", 3: "SYM00001"}
    market.send(*(directory(n, NS, b"%-8d" % n) for n in range(1, 16)))
    assert [market.books.locate_of(str(n)) for n in range(1, 16)] == list(range(1, 16))
    assert market.books.locate_of("AAPL") == -1
    assert symbol_word("") == symbol_word(" ")


def test_imbalance_and_collar_messages_are_kept_by_symbol(market):
    assert market.books.notice(1, "noii") is None
    market.send(NOII(b"I", *AT, 5, 6, b"B", symbol(1), 1, 2, 3, b"O", b"1"))
    market.send(COLLAR(b"J", *AT, symbol(1), 10, 11, 9, 1))
    assert market.books.notice(1, "noii")["paired_qty"] == 5
    assert market.books.notice(1, "luld")["upper_px"] == 11
    assert market.books.notice(2, "luld") is None


def test_a_book_event_tells_the_change_the_top_and_five_levels_of_depth(market):
    for n in range(1, 8):
        market.add(n, b"B", 100 - n, n)
        market.add(n + 20, b"S", 100 + n, 10 * n)
    market.send(EXECUTED(b"E", *AT, 21, 4, 1))
    event = np.zeros(1, BOOK_EVENT.dtype)
    event.view(np.uint8)[:] = 0xEE
    write_event(market.state, market.change.ctypes.data, event.ctypes.data)
    got = {name: int(event[name][0]) for name in BOOK_EVENT.at._fields if name != "pad"}
    assert got == {
        "seq": market.seq, "exch_ns": OPEN_NS, "recv_ns": 77, "update": 3,
        "bid_px": 99, "ask_px": 101, "bid_qty": 1, "ask_qty": 6, "bid_depth_qty": 15, "ask_depth_qty": 146,
        "trade_px": 101, "trade_qty": 4, "order_ref": 21, "locate": 1, "cause": ord("E"),
        "flags": TOP_CHANGED | TRADED | DEPTH_CHANGED, "state": 0, "status": 0, "short_sale": 0,
        "resting_side": SELL, "run": 0,
    }  # fmt: skip
    assert not event["pad"].any()


def test_depths_are_right_at_every_number_of_levels_and_behind_levels_that_are_gone(market):
    event, standing = np.zeros(1, BOOK_EVENT.dtype), []

    def check() -> None:
        write_event(market.state, market.change.ctypes.data, event.ctypes.data)
        best = sorted(standing, reverse=True)
        assert int(event["bid_depth_qty"][0]) == sum(qty for _px, qty in best[:5])
        publish_depth(market.state, 1)
        rows = [(px, qty, 1) for px, qty in best[:10]]
        assert market.books.published_depth(1)["bids"] == rows
        assert int(event["ask_depth_qty"][0]) == 0

    for n in range(1, 41):  # from the best down and from the worst up, past two sizes of block
        px = 1_000 + (n if n % 2 else -n)
        market.add(n, b"B", px, 10 * n)
        standing.append((px, 10 * n))
        check()
    for n in range(40, 0, -1):
        market.send(DELETE(b"D", *AT, n))
        standing.pop()
        check()


def test_an_event_says_how_often_the_books_began_anew(market):
    event = np.zeros(1, BOOK_EVENT.dtype)
    for run in range(3):
        market.add(1, b"B", 100)
        write_event(market.state, market.change.ctypes.data, event.ctypes.data)
        assert int(event["run"][0]) == run
        market.books.reset()


def test_an_event_of_a_refused_message_reads_no_book_that_does_not_exist(market):
    market.send(ADD(b"A", 65_535, 0, NS, 1, b"B", 100, symbol(1), 100))
    event = np.zeros(1, BOOK_EVENT.dtype)
    write_event(market.state, market.change.ctypes.data, event.ctypes.data)
    assert (int(event["bid_px"][0]), int(event["flags"][0])) == (0, 0)


def test_ten_levels_are_published_with_their_counts(market):
    for n in range(1, 13):
        market.add(n, b"B", 100 - n, n)
    market.add(30, b"B", 99, 5)
    publish_depth(market.state, 1)
    published = market.books.published_depth(1)
    assert published["bids"] == [(99, 6, 2), *((100 - n, n, 1) for n in range(2, 11))]
    assert published["asks"] == []


def test_after_a_reset_nothing_is_left_but_counters_and_update_numbers(market):
    empty = state_hash(market.state)
    for n in range(1, 40):
        market.add(n, b"B", n)
    market.send(HALT(b"h", *AT, symbol(1), b"Q", b"H"))
    publish_depth(market.state, 1)
    update = market.books.top(1)["update"]
    market.books.reset()
    assert state_hash(market.state) == empty
    assert market.books.top(1) == dict.fromkeys(market.books.top(1), 0) | {
        "update": update + 1, "locate": 1, "status": BOOK_ONE_SIDED,
    }  # fmt: skip
    assert market.books.published_depth(1) == {"bids": [], "asks": []}
    assert market.books.symbols() == {}
    assert market.books.locate_of("SYM00001") == -1
    assert find_ref(market.state, 5) == -1
    assert market.books.counters()["resets"] == 1
    assert market.add(5, b"B", 100) > 0


def test_marks_of_the_market_as_a_whole_show_in_events_and_depths_and_leave_the_cells_alone(market):
    market.add(1, b"B", 100)
    update = market.books.top(1)["update"]
    event, depth = np.zeros(1, BOOK_EVENT.dtype), np.zeros(DEPTH_CELL, np.uint8)
    for marks, cleared in ((BOOK_STALE, 0), (BOOK_INCOMPLETE, BOOK_STALE), (0, BOOK_INCOMPLETE)):
        mark(market.state, 0, marks, cleared, 0)
        write_event(market.state, market.change.ctypes.data, event.ctypes.data)
        publish_depth(market.state, 1)
        depth_at = market.state.depths + DEPTH_CELL
        read_cell(depth_at, depth.ctypes.data, DEPTH.size)
        assert int(event["status"][0]) == depth[DEPTH.at.status] == BOOK_ONE_SIDED | marks
        top = market.books.top(1)
        assert (top["status"], top["update"]) == (BOOK_ONE_SIDED, update)
