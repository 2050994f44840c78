"""What the books do with orders at each edge, one sentence each; every test ends with the full check."""

from __future__ import annotations

import numpy as np
import pytest
from days import ADD, CANCEL, DELETE, EXECUTED, EXECUTED_PX, REPLACE
from market import AT, NS, Market, bucket_of

from nimbus.book import layout
from nimbus.book.invariants import FAULTS, check_books
from nimbus.book.owner import Books, table_sizes
from nimbus.book.publish import TOP_CELL
from nimbus.book.snapshot import depth, live_orders, state_hash
from nimbus.messages import (
    BOOK_FAULTY,
    BOOK_ONE_SIDED,
    BOOK_STALE,
    BUY,
    DEPTH_CHANGED,
    SELL,
    TOP_CHANGED,
    TRADED,
)
from ringbuf.segment import Segment


@pytest.fixture
def market():
    market = Market()
    yield market
    assert FAULTS[check_books(market.state)] == ""


def test_orders_of_one_price_stand_in_order_of_arrival_and_the_levels_best_first(market):
    for ref, px in ((1, 100), (2, 102), (3, 100), (4, 101), (5, 102)):
        assert market.add(ref, b"B", px) & DEPTH_CHANGED
        market.add(ref + 10, b"S", px + 50)
    assert market.pxs(BUY) == [102, 101, 100]
    assert market.pxs(SELL) == [150, 151, 152]
    assert market.refs(BUY, 100) == [1, 3]
    assert depth(market.state, 1, BUY, 2) == [(102, 200, 2), (101, 100, 1)]
    assert market.top() == (102, 200, 150, 200)
    assert live_orders(market.state) == 10


def test_a_replaced_order_goes_to_the_end_of_its_queue_and_keeps_side_and_symbol(market):
    for ref in (1, 2, 3):
        market.add(ref, b"B", 100)
    first = market.changed("new_stamp")[0]
    assert market.send(REPLACE(b"U", 9, 0, NS, 1, 4, 50, 100)) == DEPTH_CHANGED | TOP_CHANGED
    assert market.refs(BUY, 100) == [2, 3, 4]
    names = (
        "order_ref",
        "px",
        "qty",
        "left_qty",
        "new_ref",
        "new_px",
        "new_qty",
        "new_stamp",
        "locate",
        "side",
    )
    assert market.changed(*names) == (1, 100, 100, 0, 4, 100, 50, first + 1, 1, BUY)
    assert market.books.counters()["other_locate"] == 1


def test_a_replace_onto_a_live_reference_or_with_a_bad_price_is_refused_and_the_old_order_stays(market):
    market.add(1, b"B", 100)
    market.add(2, b"B", 101)
    before = state_hash(market.state)
    for new_ref, qty, px, status in (
        (2, 5, 99, layout.DUPLICATE_REF), (1, 5, 99, layout.DUPLICATE_REF), (3, 0, 99, layout.BAD_QTY),
        (3, 5, 0, layout.BAD_PX), (3, 5, layout.PX_MAX + 1, layout.BAD_PX),
    ):  # fmt: skip
        assert market.send(REPLACE(b"U", *AT, 1, new_ref, qty, px)) == status
    assert state_hash(market.state) == before


def test_an_execution_prints_at_the_orders_price_and_c_at_its_own_unless_it_is_not_printable(market):
    market.add(1, b"S", 100, 300)
    assert market.send(EXECUTED(b"E", *AT, 1, 50, 9)) == DEPTH_CHANGED | TOP_CHANGED | TRADED
    assert market.changed("trade_px", "trade_qty", "qty", "left_qty", "printable", "side") == (
        100,
        50,
        50,
        250,
        1,
        SELL,
    )
    market.send(EXECUTED_PX(b"C", *AT, 1, 50, 9, b"Y", 97))
    assert market.changed("trade_px", "trade_qty", "px") == (97, 50, 100)
    assert not market.send(EXECUTED_PX(b"C", *AT, 1, 50, 9, b"N", 97)) & TRADED
    assert market.changed("trade_px", "trade_qty", "qty", "left_qty", "printable") == (0, 0, 50, 150, 0)
    assert not market.send(EXECUTED_PX(b"C", *AT, 1, 50, 9, b"Y", 0)) & TRADED
    assert market.top() == (0, 0, 100, 100)
    assert market.books.counters()["hidden"] == market.books.counters()["bad_px"] == 1


def test_more_than_the_rest_takes_the_rest_and_is_counted(market):
    market.add(1, b"B", 100, 10)
    market.send(EXECUTED(b"E", *AT, 1, 11, 9))
    assert market.changed("qty", "left_qty", "trade_qty") == (10, 0, 11)
    market.add(2, b"B", 100, 10)
    market.send(CANCEL(b"X", *AT, 2, 2**32 - 1))
    assert market.top() == (0, 0, 0, 0)
    assert market.books.counters()["oversize"] == 2
    assert market.send(DELETE(b"D", *AT, 2)) == layout.UNKNOWN_REF


def test_references_use_all_64_bits(market):
    refs = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0xDEADBEEF00000000, 1 << 40, (1 << 40) + 1]
    for ref in refs:
        assert market.add(ref, b"B", 100) > 0
    market.send(DELETE(b"D", *AT, 2**64 - 1))
    assert [ref % 2**64 for ref in market.refs(BUY, 100)] == [ref for ref in refs if ref != 2**64 - 1]


def test_a_bucket_that_is_full_refuses_the_reference_and_marks_the_book_faulty(market):
    groups: dict[int, list[int]] = {}
    ref, fullest = 0, []
    while len(fullest) <= layout.CHAIN_MAX:
        ref += 4_096
        fullest = groups.setdefault(bucket_of(market.state, ref), [])
        fullest.append(ref)
    assert all(market.add(ref, b"B", 100) > 0 for ref in fullest[:-1])
    assert market.add(fullest[-1], b"B", 100) == layout.FULL
    assert market.books.top(1)["status"] == BOOK_ONE_SIDED | BOOK_FAULTY
    assert market.changed("locate", "flags", "order_ref") == (1, 0, 0)
    assert market.books.counters()["full"] == 1
    for ref in fullest[::2]:
        assert market.send(DELETE(b"D", *AT, ref)) >= 0 or ref == fullest[-1]
    assert market.add(fullest[-1], b"B", 100) > 0


@pytest.mark.parametrize("side", [b"B", b"S"])
def test_thousands_of_levels_a_side_stay_sorted_through_growth_and_decay(market, side):
    rng = np.random.default_rng(3)
    pxs = rng.permutation(np.arange(1, 5_001))
    for px in pxs:
        market.add(int(px), side, int(px) * 7)
    best_first = sorted((int(px) * 7 for px in pxs), reverse=side == b"B")
    assert market.pxs(side[0]) == best_first
    assert FAULTS[check_books(market.state)] == ""
    gone = set(pxs[:4_000].tolist())
    for px in gone:
        market.send(DELETE(b"D", *AT, px))
    assert market.pxs(side[0]) == [px for px in best_first if px // 7 not in gone]


def test_without_ladder_memory_a_new_level_is_refused_whole_and_known_levels_go_on():
    market = Market(ladder_bytes=(9 + 8 + 16 + 8) * 8)  # the shared nothing and one block of 16
    assert all(market.add(px, b"B", px) > 0 for px in range(1, 17))
    before = state_hash(market.state)
    assert market.add(99, b"B", 17) == layout.FULL
    assert market.add(99, b"S", 17) == layout.FULL
    assert market.send(REPLACE(b"U", *AT, 1, 99, 10, 18)) == layout.FULL
    assert state_hash(market.state) == before
    assert market.add(99, b"B", 16) > 0
    assert market.books.top(1)["status"] & BOOK_FAULTY
    assert FAULTS[check_books(market.state)] == ""


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((0, 0, NS, 1, b"B", 100, b"A       ", 100), layout.BAD_LOCATE),
        ((16, 0, NS, 1, b"B", 100, b"A       ", 100), layout.BAD_LOCATE),
        ((65_535, 0, NS, 1, b"B", 100, b"A       ", 100), layout.BAD_LOCATE),
        ((1, 0, NS, 1, b"X", 100, b"A       ", 100), layout.BAD_SIDE),
        ((1, 0, NS, 1, b"B", 0, b"A       ", 100), layout.BAD_QTY),
        ((1, 0, NS, 1, b"B", 100, b"A       ", 0), layout.BAD_PX),
        ((1, 0, NS, 1, b"B", 100, b"A       ", layout.PX_MAX + 1), layout.BAD_PX),
        ((1, 0, NS, 1, b"B", 100, b"A       ", 2**32 - 1), layout.BAD_PX),
        ((1, 0, NS, 8, b"B", 100, b"A       ", 100), layout.DUPLICATE_REF),
    ],
)
def test_an_add_that_does_not_fit_is_refused_whole_and_counted_by_reason(market, fields, status):
    market.add(8, b"B", 100)
    before, counters = state_hash(market.state), market.books.counters()
    assert market.send(ADD(b"A", *fields)) == status
    assert state_hash(market.state) == before
    reason = layout.COUNTERS.at._fields[-status]
    assert market.books.counters() == counters | {reason: counters[reason] + 1}


def test_the_largest_price_and_quantity_are_accepted_and_sums_do_not_wrap(market):
    for ref in range(1, 6):
        market.add(ref, b"S", layout.PX_MAX, 2**32 - 1)
    market.add(6, b"B", 1, 2**32 - 1)
    assert market.top() == (1, 2**32 - 1, layout.PX_MAX, 5 * (2**32 - 1))


def test_a_locate_that_was_never_announced_is_accepted_and_counted(market):
    market.add(1, b"B", 100, locate=5)
    assert market.books.counters()["unannounced"] == 1
    assert market.books.symbol_text(5) == ""
    assert market.books.top(5)["bid_px"] == 100


def test_the_check_sees_each_kind_of_damage():
    market = Market()
    for ref, px in ((1, 100), (2, 100), (3, 101)):
        market.add(ref, b"B", px)
    segment = market.books.segment
    orders = segment.array("book.orders", layout.RESTING)
    levels = segment.array("book.levels", layout.LEVEL)
    words = segment.array("book.words", layout.BOOKS)
    rows = segment.array("book.rows", layout.BOOK)
    ladder = segment.words(int(rows["bids"][1].view(np.int64)[1]), 2)
    tops = market.state.tops + TOP_CELL + 64
    top = segment.words(tops, 8)
    damage = [
        (orders["ref"], 1, 9, "not found by its reference"),
        (orders["prev"], 2, 0, "not linked"),
        (orders["stamp"], 2, 1, "order of arrival"), (orders["qty"], 1, 7, "sums"),
        (orders["qty"], 1, 0, "empty"), (levels["qty"], 2, 3, "sums"),
        (levels["px"], 2, 5, "does not belong"), (levels["prev"], 1, 1, "not linked"),
        (top, 3, 99, "top differs"), (rows["marks"], 1, BOOK_STALE, "status differs"),
        (words["orders_used"], 0, 9, "orders standing"), (words["levels_used"], 0, 9, "levels standing"),
        (ladder, 0, int(ladder[1]), "not sorted"), (words["ladder_next"], 0, 0, "outside"),
    ]  # fmt: skip
    for array, index, value, fault in damage:
        kept = array[index].copy()
        array[index] = value
        assert fault in FAULTS[check_books(market.state)]
        array[index] = kept
        assert FAULTS[check_books(market.state)] == ""


def test_capacities_are_checked_and_told_before_anything_is_allocated():
    with pytest.raises(ValueError, match="symbols_max must be between 2 and 65536"):
        Books(Segment.anonymous(1 << 20), symbols_max=65_537)
    with pytest.raises(ValueError, match="levels_max must be between 1"):
        Books(Segment.anonymous(1 << 20), symbols_max=8, levels_max=0)
    sizes = table_sizes(16, 1_000, 1_000)
    Books(
        Segment.anonymous(sum(sizes.values()) + 4_096),
        symbols_max=16,
        live_orders_max=1_000,
        levels_max=1_000,
    )
    assert sizes["orders"] == 1_001 * 32
