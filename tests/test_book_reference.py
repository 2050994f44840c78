"""The books and their specification (tests/reference/book.py) eat the same messages and stay equal."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from days import hostile, make_day
from reference.book import ReferenceBooks

from nimbus.book.book import apply
from nimbus.book.invariants import FAULTS, check_books
from nimbus.book.owner import Books
from nimbus.book.snapshot import depth, state_hash
from nimbus.messages import CHANGE
from ringbuf.jit import kernel
from ringbuf.segment import Segment

SYMBOLS = 12


@kernel
def apply_one(books, msg: int, seq: int, recv_ns: int, change: int) -> int:
    return apply(books, msg, seq, recv_ns, change)


class Pair:
    """The two books, one message at a time."""

    def __init__(self, live_orders_max: int = 5_000, levels_max: int = 5_000) -> None:
        self.fast = Books(
            Segment.anonymous(1 << 25), symbols_max=SYMBOLS + 1, live_orders_max=live_orders_max,
            levels_max=levels_max,
        )  # fmt: skip
        self.slow = ReferenceBooks(SYMBOLS + 1, live_orders_max, levels_max)
        self.change = np.zeros(1, CHANGE.dtype)
        self.buffer = ctypes.create_string_buffer(64)
        self.seq = 0

    def apply(self, message: bytes) -> None:
        """Apply to both; what they return and write must be the same."""
        self.seq += 1
        self.change.view(np.uint8)[:] = 0xEE  # nothing of an earlier record may shine through
        ctypes.memmove(self.buffer, message, len(message))
        at = (ctypes.addressof(self.buffer), self.seq, self.seq * 10, self.change.ctypes.data)
        status = apply_one(self.fast.state, *at)
        expected, change = self.slow.apply(message, self.seq)
        got = {n: int(self.change[n][0]) for n in CHANGE.at._fields if n != "pad"}
        wanted = dict.fromkeys(got, 0) | change
        wanted |= {n: v - 2**64 for n, v in wanted.items() if v >= 2**63}
        assert (status, got) == (expected, wanted), (self.seq, message)
        assert not self.change["pad"].any()

    def compare(self) -> None:
        """Compare all that can be seen of the two, and check the fast one from within."""
        assert FAULTS[check_books(self.fast.state)] == ""
        assert state_hash(self.fast.state) == self.slow.state_hash()
        assert self.fast.counters() == dict.fromkeys(self.fast.counters(), 0) | +self.slow.counters
        for locate in range(1, SYMBOLS + 1):
            symbol, top = self.slow.symbol(locate), self.fast.top(locate)
            assert (top["bid_px"], top["bid_qty"], top["ask_px"], top["ask_qty"]) == symbol.top
            assert top["status"] == symbol.status
            assert top["update"] == symbol.update
            assert (top["state"], top["short_sale"]) == (ord(symbol.state or "\0"), symbol.short_sale)
            for side in "BS":
                assert depth(self.fast.state, locate, ord(side), 5) == self.slow.levels(locate, side)[:5]


def test_100_000_hostile_messages_give_the_same_books_changes_and_counters():
    pair = Pair()
    for message in hostile(seed=1, count=100_000, symbols=SYMBOLS, refs=3_000):
        pair.apply(message)
        if pair.seq % 100 == 0:
            pair.compare()
    missed = [name for name, n in pair.fast.counters().items() if n == 0]
    assert set(missed) <= {"full", "resets"}, "the stream does not reach these"
    assert len(pair.slow.orders) > 300


@pytest.mark.parametrize(("orders", "levels"), [(40, 5_000), (5_000, 25), (30, 30), (1, 1)])
def test_at_each_capacity_orders_are_refused_whole_and_the_books_stay_equal(orders, levels):
    pair = Pair(orders, levels)
    for message in hostile(seed=orders, count=6_000, symbols=SYMBOLS, refs=400):
        pair.apply(message)
        if pair.seq % 20 == 0:
            pair.compare()
    assert pair.fast.counters()["full"] > 50


def test_an_orderly_day_is_the_same_and_nothing_is_counted_against_it():
    pair = Pair()
    for message in make_day(seed=5, messages=20_000, symbols=SYMBOLS):
        pair.apply(message)
        if pair.seq % 1_000 == 0:
            pair.compare()
    odd = {name: n for name, n in pair.fast.counters().items() if n and name not in {"tops", "hidden"}}
    assert odd == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_million_hostile_messages_in_ten_streams(seed):
    pair = Pair(live_orders_max=200 * seed, levels_max=150 * seed)
    for message in hostile(seed, count=100_000, symbols=SYMBOLS, refs=600 * seed):
        pair.apply(message)
        if pair.seq % 100 == 0:
            pair.compare()
