"""Positions and profit against exact arithmetic: nothing is lost, at any size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.positions import Exact, Floored

from nimbus.fix.tags import PX_MAX, QTY_MAX
from nimbus.messages import BUY, POSITION, SELL
from nimbus.orders.positions import (
    OK,
    POSITION_QTY_MAX,
    TOO_LARGE,
    add_open,
    book_fill,
    realised,
    set_mark,
    unrealised_px2,
)
from ringbuf.segment import Segment

SEGMENT = Segment.anonymous(1 << 16)
ADDR = SEGMENT.allocate("position", POSITION.size)
ROW = SEGMENT.array("position", POSITION)

FILLS = st.lists(
    st.tuples(
        st.sampled_from([1, -1]),
        st.one_of(st.integers(1, 500), st.integers(1, QTY_MAX)),
        st.one_of(st.integers(1, 2_000_000), st.integers(1, PX_MAX)),
    ),
    max_size=30,
)


def fresh():
    ROW.view("u1")[:] = 0


@settings(max_examples=300, deadline=None)
@given(fills=FILLS, mark_px2=st.integers(1, 2 * PX_MAX))
def test_every_fill_gives_the_same_as_unbounded_integers_and_nothing_is_lost(fills, mark_px2):
    fresh()
    floored, exact = Floored(), Exact()
    set_mark(ADDR, mark_px2)
    for sign, qty, px in fills:
        if book_fill(ADDR, BUY if sign > 0 else SELL, qty, px, 1) == TOO_LARGE:
            continue
        floored.fill(sign, qty, px)
        exact.fill(sign, qty, px)
        row = ROW[0]
        assert (int(row["position_qty"]), int(row["cash"]), int(row["basis"])) == (
            floored.qty,
            floored.cash,
            floored.basis,
        )
        assert 2 * realised(ADDR) + unrealised_px2(ADDR) == 2 * floored.cash + floored.qty * mark_px2
        assert abs(realised(ADDR) - exact.realised) <= exact.releases
        if floored.qty == 0:
            assert int(row["basis"]) == 0
            assert realised(ADDR) == floored.cash


def test_the_average_cost_of_a_worked_example():
    """Buy 100 at 100 and 100 at 120, sell 150 at 130, sell 100 at 90: realised by hand."""
    fresh()
    for side, qty, px in ((BUY, 100, 100), (BUY, 100, 120), (SELL, 150, 130)):
        assert book_fill(ADDR, side, qty, px * 10_000, 1) == OK
    assert realised(ADDR) == 150 * (130 - 110) * 10_000
    assert int(ROW[0]["basis"]) == 50 * 110 * 10_000
    book_fill(ADDR, SELL, 100, 90 * 10_000, 1)
    assert realised(ADDR) == (150 * 20 - 50 * 20) * 10_000
    assert (int(ROW[0]["position_qty"]), int(ROW[0]["basis"])) == (-50, -50 * 90 * 10_000)
    assert (int(ROW[0]["bought_qty"]), int(ROW[0]["sold_qty"]), int(ROW[0]["fills"])) == (200, 250, 4)


@pytest.mark.parametrize("side", [BUY, SELL])
def test_the_largest_position_at_the_largest_price_is_exact_and_one_more_is_refused(side):
    fresh()
    for _ in range(POSITION_QTY_MAX // QTY_MAX):
        if book_fill(ADDR, side, QTY_MAX, 2 * 10**9, 1) != OK:
            break
    before = ROW[0].copy()
    left = POSITION_QTY_MAX - abs(int(before["position_qty"]))
    assert book_fill(ADDR, side, left + 1, 1, 1) == TOO_LARGE
    assert ROW[0] == before
    set_mark(ADDR, 2 * PX_MAX)
    held, basis = int(before["position_qty"]), int(before["basis"])
    assert unrealised_px2(ADDR) == held * 2 * PX_MAX - 2 * basis


def test_without_a_mark_nothing_is_unrealised():
    fresh()
    book_fill(ADDR, BUY, 10, 10_000, 1)
    assert unrealised_px2(ADDR) == 0


def test_a_release_stops_at_zero():
    fresh()
    add_open(ADDR, BUY, 10)
    add_open(ADDR, BUY, -15)
    assert int(ROW[0]["open_buy_qty"]) == 0
