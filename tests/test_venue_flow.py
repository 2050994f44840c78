"""The paper venue against its slow twin: random real flow, random orders of ours, the same answers."""

import random

import pytest
from reference.venue import Venue as Twin
from test_venue_paper import Paper

from nimbus.feed import itch


class Both:
    """Feed one random stream of events to the venue and to its twin."""

    def __init__(self, seed, *, prices, qty_max):
        self.draw, self.paper, self.twin = random.Random(seed), Paper(orders_max=512), Twin()
        self.prices, self.qty_max, self.refs, self.names = prices, qty_max, 0, 0
        self.heard = []

    def qty(self):
        return self.draw.randint(1, self.qty_max)

    def px(self, side):
        low, high = self.prices
        centre = (low + high) // 2
        near = self.draw.randint(0, (high - low) // 2) - (high - low) // 8 - 1  # some cross
        return max(centre - near if side == "B" else centre + near, 1)

    def step(self):
        kinds = ["add"] * 6 + ["execute"] * 5 + ["reduce", "delete", "replace", "hidden", "quiet"]
        kinds += ["new"] * 4 + ["cancel"] * 2 + ["halt"] * (self.draw.random() < 0.05)
        kind = self.draw.choice(kinds)
        if kind in {"execute", "reduce", "delete", "replace", "quiet"} and not self.twin.real:
            kind = "add"
        elif kind == "add" and len(self.twin.real) > 60:
            kind = self.draw.choice(["execute", "execute", "delete"])
        getattr(self, f"_{kind}")()
        self.heard += self.paper.said()

    def _add(self):
        self.refs += 1
        side = self.draw.choice("BS")
        event = (self.refs, side, self.px(side), self.qty())
        self.paper.add(*event)
        self.twin.add(*event)

    def _real(self):
        """Choose a real order, mostly one at the front of the best level of a side, as a market would."""
        side = self.draw.choice("BS")
        orders = [r for r in self.twin.real.values() if r.side == side] or list(self.twin.real.values())
        if self.draw.random() < 0.3:
            return self.draw.choice(orders)
        return min(orders, key=lambda r: (-r.px if r.side == "B" else r.px, r.arrived))

    def _execute(self):
        real = self._real()
        qty = real.qty if self.draw.random() < 0.6 else self.draw.randint(1, real.qty)
        self.paper.execute(real.ref, qty)
        self.twin.execute(real.ref, qty)

    def _quiet(self):
        real = self._real()
        qty = self.draw.randint(1, real.qty)
        printable = self.draw.random() < 0.5
        self.paper.real(
            itch.EXECUTED_PX, order_ref=real.ref, qty=qty, printable=b"Y" if printable else b"N", px=real.px
        )
        self.twin.execute(real.ref, qty, printable=printable)

    def _reduce(self):
        real = self._real()
        qty = self.draw.randint(1, real.qty)
        self.paper.reduce(real.ref, qty)
        self.twin.reduce(real.ref, qty)

    def _delete(self):
        real = self._real()
        self.paper.delete(real.ref)
        self.twin.reduce(real.ref, real.qty)

    def _replace(self):
        real = self._real()
        self.refs += 1
        event = (real.ref, self.refs, self.px(real.side), self.qty())
        self.paper.replace(*event)
        self.twin.replace(*event)

    def _hidden(self):
        event = (self.px("B"), self.qty())
        self.paper.print_hidden(*event)
        self.twin.print_hidden(*event)

    def _halt(self):
        self.twin.halted = not self.twin.halted
        self.paper.state(b"H" if self.twin.halted else b"T")

    def _new(self):
        side, ioc = self.draw.choice("BS"), self.draw.random() < 0.3
        fresh = self.draw.random() < 0.97 or not self.names
        self.names += fresh
        name = f"N{self.names if fresh else self.draw.randint(max(self.names - 20, 1), self.names)}"
        px, qty = self.px(side), self.qty()
        self.heard += self.paper.new(name, side, px, qty, ioc=ioc)
        self.twin.new(name, side, px, qty, ioc=ioc)

    def _cancel(self):
        own = [order.name for order in self.twin.own]
        name = self.draw.choice([*own, *own, "stranger", f"N{max(self.names, 1)}"])
        self.heard += self.paper.cancel(f"C{self.names}", name)
        self.twin.cancel(name)

    def check(self):
        assert self.heard == self.twin.said
        ours = {
            row["cl_ord_id"].lstrip("0"): (chr(row["side"]), row["px"], row["leaves_qty"], row["ahead_qty"])
            for row in self.paper.venue.open_orders()
        }
        theirs = {o.name: (o.side, o.px, o.leaves, sum(o.before.values())) for o in self.twin.own}
        assert ours == theirs


@pytest.mark.parametrize(
    ("seed", "prices", "qty_max"),
    [(1, (990, 1010), 100), (2, (990, 1010), 1000), (3, (996, 1004), 300), (4, (994, 1006), 50)],
)
def test_the_venue_and_its_twin_say_the_same(seed, prices, qty_max):
    both = Both(seed, prices=prices, qty_max=qty_max)
    for number in range(3_000):
        both.step()
        if number % 20 == 0:
            both.check()
    both.check()
    counters, said = both.paper.venue.counters(), both.twin.said
    trades = [qty for what, _, _, qty, _ in said if what == "trade"]
    assert counters["filled_qty"] == sum(trades)
    assert counters["fills_resting"] > 20, counters
    assert counters["fills_taking"] > 20
    assert {what for what, *_ in said} >= {"new", "trade", "canceled", "too late", "unknown", "rejected"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_the_venue_and_its_twin_say_the_same_for_longer(seed):
    both = Both(seed, prices=(985, 1015), qty_max=200)
    for number in range(20_000):
        both.step()
        if number % 500 == 0:
            both.check()
    both.check()
