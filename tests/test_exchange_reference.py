"""The engine and its specification (tests/reference/exchange.py) take the same flow and orders, and agree."""

from __future__ import annotations

import random

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
    TRADE,
    directory,
    symbol,
)
from exchange_rig import KINDS, Rig
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.exchange import Exchange

from nimbus.book.invariants import FAULTS, check_books
from nimbus.venue.engine_layout import REASONS

SYMBOLS = 3
CENTRE = 100_000
STEPS = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 40), st.integers(0, 9), st.integers(1, 60)),
    min_size=1, max_size=120,
)  # fmt: skip


class Both:
    """One stream of flow messages and orders for the engine and for its twin."""

    def __init__(self) -> None:
        self.rig, self.twin = Rig(), Exchange(16)
        self.refs = self.matches = self.seen = self.heard = 0
        self.ns = OPEN_NS
        for locate in range(1, SYMBOLS + 1):
            self.flow(directory(locate, self.at(locate)[2]))

    def at(self, locate: int) -> tuple[int, int, bytes]:
        self.ns += 1_000
        return locate, 0, self.ns.to_bytes(6, "big")

    def flow(self, message: bytes) -> None:
        self.rig.flow(message)
        self.twin.flow(message)

    def new_ref(self) -> int:
        self.refs += 3
        return self.refs

    def recorded(self, pick: int):
        """Return a recorded order: mostly one at the front of the best level of a side, as a market would."""
        orders = list(self.twin.recorded.orders.values())
        if not orders:
            return None
        if pick % 4 == 0:
            return orders[pick % len(orders)]
        side = "BS"[pick % 2]
        same = [o for o in orders if o.side == side] or orders
        return min(same, key=lambda o: (-o.px if o.side == "B" else o.px, o.stamp))

    def step(self, kind: int, pick: int, away: int, qty: int) -> None:
        """Do one thing; most numbers mean something, whatever stands in the books."""
        locate, side = 1 + pick % SYMBOLS, "BS"[pick % 2]
        px = CENTRE + 100 * (away - 3) * (1 if side == "S" else -1)  # some cross
        order = self.recorded(pick)
        if kind < 7 or (order is None and kind < 16):
            self.flow(ADD(b"A", *self.at(locate), self.new_ref(), side.encode(), qty, symbol(locate), px))
        elif kind < 16 and order is not None:
            self.change(kind, order, away, qty)
        elif kind < 22:
            name = symbol(locate) if pick < 39 else b"NOBODY  "
            self.rig.new(side, px, qty, symbol=name, ioc=kind == 21)
            self.twin.new(side, px, qty, symbol=name, ioc=kind == 21)
        elif kind < 24:
            number = 1 + pick % max(self.rig.numbers + 1, 1)
            self.rig.cancel(number)
            self.twin.cancel(number)
        elif kind == 24:
            self.matches += 1
            self.flow(TRADE(b"P", *self.at(locate), 0, side.encode(), qty, symbol(locate), px, self.matches))
        else:
            state = b"TTTH"[pick % 4 : pick % 4 + 1]
            self.flow(ACTION(b"H", *self.at(locate), symbol(locate), state, b" ", b"    "))

    def change(self, kind: int, order, away: int, qty: int) -> None:
        """Let something happen to a recorded order."""
        at = self.at(order.locate)
        self.matches += 1
        part = qty if away > 6 else min(qty, order.qty)  # some are oversize
        if kind < 11:
            self.flow(EXECUTED(b"E", *at, order.ref, order.qty if away < 3 else part, self.matches))
        elif kind == 11:
            flag = b"Y" if away % 2 else b"N"
            self.flow(EXECUTED_PX(b"C", *at, order.ref, part, self.matches, flag, order.px + 100))
        elif kind == 12:
            self.flow(CANCEL(b"X", *at, order.ref, part))
        elif kind < 15:
            self.flow(DELETE(b"D", *at, order.ref))
        else:
            px = order.px + 100 * (away - 4)
            self.flow(REPLACE(b"U", *at, order.ref, self.new_ref(), qty, px))

    def compare(self) -> None:
        """Compare all that was sent and said since the last time."""
        assert self.rig.published(self.seen) == self.twin.sent[self.seen :]
        self.seen = len(self.twin.sent)
        events = self.rig.events()
        names = ("last_px", "last_qty", "leaves_qty", "liquidity")
        got = [
            (KINDS[e["kind"]], e["number"], REASONS[e["reason"]], *(e[name] for name in names))
            for e in events
        ]
        wanted = self.twin.said[self.heard :]
        self.heard = len(self.twin.said)
        assert len(got) == len(wanted), (got, wanted)
        for mine, theirs in zip(got, wanted, strict=True):
            assert mine[:2] + mine[3:] == theirs[:2] + theirs[3:]
            assert theirs[2] in mine[2]
            assert bool(theirs[2]) == bool(mine[2])

    def finish(self) -> None:
        """Compare the books and the ledgers at the end."""
        rig, twin = self.rig, self.twin
        assert rig.hashes() == (twin.published.state_hash(), twin.recorded.state_hash())
        assert FAULTS[check_books(rig.books.state)] == FAULTS[check_books(rig.recorded.state)] == ""
        assert rig.engine.resting() == {n: o.leaves for n, o in twin.own.items() if o.resting}
        counters = rig.engine.counters()
        trades = [row for row in twin.said if row[0] == "traded"]
        assert (counters["fills"], counters["filled_qty"]) == (len(trades), sum(row[4] for row in trades))
        assert counters["flow_lost_qty"] == twin.lost
        assert counters["refused"] == counters["bad_request"] == 0


@settings(max_examples=150)
@given(STEPS)
def test_any_flow_and_any_orders_give_the_same_messages_events_and_books(steps):
    both = Both()
    for step in steps:
        both.step(*step)
        both.compare()
    both.finish()


@pytest.mark.parametrize("seed", range(4))
def test_a_long_day_with_orders_gives_the_same(seed):
    both, draw = Both(), random.Random(seed)
    for _ in range(2_500):
        both.step(draw.randrange(26), draw.randrange(41), draw.randrange(10), draw.randrange(1, 61))
        both.compare()
    both.finish()
    counters = both.rig.engine.counters()
    quiet = {"foreign_ref", "refused", "walk_limit", "waits", "bad_request"}
    assert [name for name, count in counters.items() if count == 0 and name not in quiet] == []


def test_books_replayed_from_the_published_messages_are_the_published_books():
    both, draw = Both(), random.Random(99)
    for _ in range(3_000):
        both.step(draw.randrange(26), draw.randrange(41), draw.randrange(10), draw.randrange(1, 61))
    replayed = Rig()
    for message in both.rig.published():
        replayed.books_only(message)
    assert replayed.hashes()[0] == both.rig.hashes()[0]
