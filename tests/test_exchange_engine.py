"""The matching engine: the flow passes bit for bit, and meets our orders by price and time."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from days import (
    ACTION,
    ADD,
    CANCEL,
    DELETE,
    EXECUTED,
    EXECUTED_PX,
    OPEN_NS,
    REPLACE,
    directory,
    hostile,
    make_day,
    symbol,
)
from exchange_rig import Rig, ref
from market import apply_one

from nimbus.book.invariants import FAULTS, check_books
from nimbus.book.owner import Books
from nimbus.book.snapshot import state_hash
from nimbus.feed.itch import ADD as ADD_MESSAGE
from nimbus.feed.itch import EXECUTED as EXECUTED_MESSAGE
from nimbus.messages import CHANGE
from nimbus.venue.engine_layout import REASONS
from ringbuf.segment import Segment

NS = OPEN_NS.to_bytes(6, "big")
AT = (1, 0, NS)


def add(number: int, side: bytes, px: int, qty: int = 100) -> bytes:
    return ADD(b"A", *AT, number, side, qty, symbol(1), px)


def executed(number: int, qty: int) -> bytes:
    return EXECUTED(b"E", *AT, number, qty, 77)


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.flow(directory(1, NS), directory(2, NS))
    return made


def read(messages: list[bytes]) -> list[tuple]:
    """Return (letter, reference, quantity) of published messages; D has no quantity."""
    return [
        (
            m[:1].decode(),
            int.from_bytes(m[11:19], "big"),
            int.from_bytes(m[20:24] if m[:1] in b"AF" else m[27:31] if m[:1] == b"U" else m[19:23], "big"),
        )
        for m in messages
    ]


def replayed_hash(rig: Rig) -> int:
    """Return the hash of fresh books that were fed what the engine published."""
    books, change = (
        Books(Segment.anonymous(1 << 26), symbols_max=16, live_orders_max=20_000, levels_max=20_000),
        np.zeros(1, CHANGE.dtype),
    )
    buffer = ctypes.create_string_buffer(64)
    for seq, message in enumerate(rig.published(), 1):
        ctypes.memmove(buffer, message, len(message))
        apply_one(books.state, ctypes.addressof(buffer), seq, 0, change.ctypes.data)
    return state_hash(books.state)


# ---------------------------------------------------------------- without orders of ours


@pytest.mark.parametrize("kind", ["orderly", "hostile"])
def test_without_orders_of_ours_every_message_passes_bit_for_bit(kind):
    rig = Rig()
    messages = make_day(3, 5_000, 8) if kind == "orderly" else list(hostile(3, 20_000, 12, 2_000))
    rig.flow(*messages)
    assert rig.published() == messages
    assert len(set(rig.hashes())) == 1
    assert rig.engine.counters()["passed"] == len(messages)


def test_at_the_capacity_of_the_books_the_flow_still_passes():
    rig = Rig(live_orders_max=50, levels_max=30)
    messages = list(hostile(9, 5_000, 12, 400))
    rig.flow(*messages)
    assert rig.published() == messages
    assert len(set(rig.hashes())) == 1
    assert rig.books.counters()["full"] > 50


# ---------------------------------------------------------------- our orders


def test_an_order_takes_by_price_then_time_and_the_rest_joins_the_book(rig):
    rig.flow(add(1, b"S", 10_200), add(2, b"S", 10_100, 50), add(3, b"S", 10_100, 60), add(4, b"S", 10_300))
    before = rig.store.last
    number = rig.new("B", 10_200, 250)
    assert rig.said() == [
        ("accepted", number, 0, 0, 250),
        ("traded", number, 10_100, 50, 200),
        ("traded", number, 10_100, 60, 140),
        ("traded", number, 10_200, 100, 40),
    ]
    published = rig.published(before)
    assert read(published) == [("E", 2, 50), ("E", 3, 60), ("E", 1, 100), ("A", ref(number), 40)]
    row = np.frombuffer(published[-1], ADD_MESSAGE.dtype)[0]
    assert (row["locate"], row["side"], row["px"], row["symbol"]) == (1, b"B", 10_200, b"SYM00001")
    assert rig.books.top(1)["bid_px"] == 10_200
    assert replayed_hash(rig) == rig.hashes()[0]


def test_an_immediate_order_leaves_nothing_behind(rig):
    rig.flow(add(1, b"S", 10_200, 30))
    number = rig.new("B", 10_200, 100, ioc=True)
    assert [e[0] for e in rig.said()] == ["accepted", "traded", "canceled"]
    assert rig.engine.resting() == {}
    assert rig.engine.counters()["expired"] == 1
    assert number == 1


def test_our_order_ahead_in_the_queue_is_filled_first_and_the_background_order_keeps_what_it_took(rig):
    ours = rig.new("B", 10_000, 60)
    rig.flow(add(5, b"B", 10_000))
    rig.said()
    before = rig.store.last
    rig.flow(executed(5, 100))
    assert read(rig.published(before)) == [("E", ref(ours), 60), ("E", 5, 40)]
    assert rig.said() == [("traded", ours, 10_000, 60, 0)]
    assert rig.books.top(1)["bid_qty"] == 60
    rig.flow(executed(5, 10))  # the recording has no such order any more: passes, and the book takes it
    assert replayed_hash(rig) == rig.hashes()[0]


def test_our_order_behind_is_not_filled(rig):
    rig.flow(add(5, b"B", 10_000))
    ours = rig.new("B", 10_000, 60)
    rig.said()
    message = executed(5, 100)
    before = rig.store.last
    rig.flow(message)
    assert rig.published(before) == [message]
    assert rig.said() == []
    assert rig.engine.resting() == {ours: 60}


def test_our_better_price_is_filled_first_at_our_price(rig):
    rig.flow(add(5, b"S", 10_100))
    ours = rig.new("S", 10_050, 40)
    rig.said()
    before = rig.store.last
    rig.flow(executed(5, 30))
    assert read(rig.published(before)) == [("E", ref(ours), 30)]
    assert rig.said() == [("traded", ours, 10_050, 30, 10)]
    assert rig.engine.counters()["swallowed"] == 1
    assert rig.engine.counters()["flow_met_qty"] == 30


def test_an_arriving_order_of_the_flow_meets_ours_and_the_rest_joins(rig):
    ours = rig.new("B", 10_000, 60)
    rig.said()
    before = rig.store.last
    rig.flow(add(7, b"S", 9_900, 100))
    assert read(rig.published(before)) == [("E", ref(ours), 60), ("A", 7, 40)]
    assert rig.said() == [("traded", ours, 10_000, 60, 0)]
    assert rig.books.top(1)["ask_qty"] == 40
    rig.flow(CANCEL(b"X", *AT, 7, 70))  # it has only 40
    assert rig.books.top(1)["ask_qty"] == 0
    assert replayed_hash(rig) == rig.hashes()[0]


def test_what_we_took_is_missing_from_later_executions(rig):
    rig.flow(add(1, b"S", 10_100, 100), add(2, b"S", 10_100, 100))
    rig.new("B", 10_100, 70, ioc=True)
    before = rig.store.last
    rig.flow(executed(1, 100), executed(2, 100))
    assert read(rig.published(before)) == [("E", 1, 30), ("E", 2, 100)]
    assert rig.engine.counters()["flow_lost_qty"] == 70


def test_an_order_we_took_whole_is_gone_for_the_flow(rig):
    rig.flow(add(1, b"S", 10_100, 100))
    rig.new("B", 10_100, 100)
    before = rig.store.last
    rig.flow(CANCEL(b"X", *AT, 1, 10), REPLACE(b"U", *AT, 1, 2, 90, 10_200), DELETE(b"D", *AT, 2))
    assert rig.published(before) == []
    assert rig.engine.counters()["swallowed"] == 3
    assert len(set(rig.hashes())) == 1


def test_a_replace_keeps_the_difference_and_meets_what_it_crosses(rig):
    rig.flow(add(1, b"S", 10_100, 100))
    rig.new("B", 10_100, 30, ioc=True)
    ours = rig.new("B", 10_000, 20)
    rig.said()
    before = rig.store.last
    rig.flow(REPLACE(b"U", *AT, 1, 2, 200, 10_000))
    assert read(rig.published(before)) == [("E", ref(ours), 20), ("U", 1, 150)]
    rig.flow(DELETE(b"D", *AT, 2))
    assert len(set(rig.hashes())) == 1


def test_what_the_recording_filled_and_ours_took_stays_and_trades_by_its_place(rig):
    ours = rig.new("B", 10_000, 60)
    rig.flow(add(5, b"B", 10_000, 60), executed(5, 60))  # ours is filled, 5 keeps all
    rig.said()
    before = rig.store.last
    rig.flow(add(6, b"S", 9_950, 80))
    assert read(rig.published(before)) == [("E", 5, 60), ("A", 6, 20)]
    assert rig.said() == []
    assert rig.engine.resting() == {}
    assert ours == 1
    rig.flow(DELETE(b"D", *AT, 6))
    assert len(set(rig.hashes())) == 1


def test_an_execution_that_does_not_print_fills_none_of_ours(rig):
    ours = rig.new("B", 10_000, 60)
    rig.flow(add(5, b"B", 10_000))
    rig.said()
    message = EXECUTED_PX(b"C", *AT, 5, 100, 9, b"N", 10_000)
    before = rig.store.last
    rig.flow(message)
    assert rig.published(before) == [message]
    assert rig.engine.resting() == {ours: 60}
    rig.flow(add(6, b"B", 10_000), EXECUTED_PX(b"C", *AT, 6, 50, 9, b"Y", 9_990))
    assert rig.said() == [("traded", ours, 10_000, 50, 10)]


def test_while_a_symbol_is_halted_nobody_meets(rig):
    ours = rig.new("B", 10_000, 60)
    rig.said()
    halt, message = ACTION(b"H", *AT, symbol(1), b"H", b" ", b"    "), add(7, b"S", 9_900)
    rig.flow(halt, message)
    assert rig.published(3) == [halt, message]
    late = rig.new("B", 9_900, 10)
    assert rig.events()[-1]["reason"] == REASONS.index("symbol is halted")
    rig.cancel(ours)
    assert rig.said() == [("canceled", ours, 0, 0, 0)]
    assert late == 2


def test_our_orders_trade_with_each_other(rig):
    first = rig.new("B", 10_000, 50)
    second = rig.new("S", 10_000, 80)
    assert rig.said() == [
        ("accepted", first, 0, 0, 50),
        ("accepted", second, 0, 0, 80),
        ("traded", first, 10_000, 50, 0),
        ("traded", second, 10_000, 50, 30),
    ]
    assert rig.engine.counters()["filled_qty"] == 100


def test_a_cancel_removes_the_order_and_a_second_one_is_too_late(rig):
    ours = rig.new("B", 10_000, 50)
    rig.cancel(ours)
    rig.cancel(ours)
    rig.cancel(99)
    assert [e["reason"] for e in rig.events()][-2:] == [
        REASONS.index("too late to cancel"),
        REASONS.index("unknown order"),
    ]
    assert rig.books.top(1)["bid_px"] == 0


@pytest.mark.parametrize(
    ("px", "qty", "symbol_text", "reason"),
    [
        (10_000, 100, b"NONE    ", "unknown symbol"),
        (10_000, 0, b"SYM00001", "quantity must"),
        (10_000, 10**7, b"SYM00001", "quantity must"),
        (0, 100, b"SYM00001", "price must"),
        (2_000_000_000, 100, b"SYM00001", "price must"),
    ],
)
def test_an_order_that_cannot_be_is_rejected_with_its_reason(rig, px, qty, symbol_text, reason):
    rig.new("B", px, qty, symbol=symbol_text)
    (event,) = rig.events()
    assert REASONS[event["reason"]].startswith(reason)
    assert (event["status"], event["leaves_qty"]) == (ord("8"), 0)
    assert rig.engine.counters()["rejected"] == 1


def test_a_number_is_used_once(rig):
    rig.new("B", 10_000, 50)
    rig.numbers = 0
    rig.new("B", 10_000, 50)
    assert rig.engine.counters()["bad_request"] == 1
    rig.request(4_097, 1)
    rig.request(0, 2)
    assert rig.engine.counters()["bad_request"] == 3


def test_an_order_that_meets_too_many_is_stopped_and_its_rest_cancelled(rig):
    rig.flow(*(add(n, b"S", 10_000 + n, 1) for n in range(1, 301)))
    number = rig.new("B", 20_000, 1_000)
    events = rig.events()
    assert sum(v["last_qty"] for v in events) == 256
    assert REASONS[events[-1]["reason"]].startswith("order met too many")
    assert events[-1]["number"] == number
    assert FAULTS[check_books(rig.books.state)] == ""


def test_a_book_without_room_cancels_the_rest_of_our_order():
    rig = Rig(live_orders_max=2)
    rig.flow(directory(1, NS), add(1, b"B", 10_000), add(2, b"B", 10_100))
    rig.new("B", 9_900, 10)
    events = rig.events()
    assert REASONS[events[-1]["reason"]].startswith("the book has no room")
    assert len(rig.published()) == 3


def test_requests_wait_while_events_lack_room():
    rig = Rig(events=1_024)
    rig.flow(directory(1, NS))
    for _ in range(600):
        rig.new("B", 10_000, 1)
    assert len(rig.engine.resting()) == 1_024 - 514 + 1
    assert rig.engine.counters()["waits"] > 0
    heard = 0
    while True:
        got = len(rig.events())
        heard += got
        if not got and rig.handle() == 0:
            break
    assert heard == 600
    assert len(rig.engine.resting()) == 600


def test_a_reference_of_our_range_in_the_flow_is_dropped(rig):
    ours = rig.new("B", 10_000, 50)
    before = rig.store.last
    rig.flow(executed(ref(ours), 10), add(ref(7), b"B", 10_000), REPLACE(b"U", *AT, 1, ref(9), 1, 1))
    assert rig.published(before) == []
    assert rig.engine.counters()["foreign_ref"] == 3


def test_a_match_number_and_the_sequence_number_name_the_published_trade(rig):
    rig.flow(add(1, b"S", 10_000))
    rig.new("B", 10_000, 100)
    event = rig.events()[-1]
    row = np.frombuffer(rig.store.message(event["seq"]), EXECUTED_MESSAGE.dtype)[0]
    assert int(row["match"]) & 0xFFFFFFFF == event["match"]
