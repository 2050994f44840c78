"""The paper venue as plain Python: dicts, lists, no capacity, no bytes.  It is the specification.

Written from the rules, not from the kernels:
* the real market is not changed by our orders;
* an arriving order takes the other side's real shares within its limit, best price first, oldest order
  first, never the same displayed shares twice; the rest is cancelled (IOC, or after LEVELS levels) or rests;
* a resting order has before it exactly the real orders of its price that were there on its arrival;
* with nothing before it, it is filled at its price when a real order of its side behind it, or at a worse
  price, is executed; when a real order of the other side arrives at its price or through it (unless
  halted); when a hidden order trades at its price or a worse one;
* one message fills at most as many of our shares as it moved, best price first, then the oldest of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEVELS = 64


@dataclass
class Real:
    """A real order of the replayed book."""

    ref: int
    side: str
    px: int
    qty: int
    arrived: int
    taken: int = 0  # shares of it that our orders bought or sold


@dataclass
class Own:
    """An order of ours at the venue."""

    name: str
    side: str
    px: int
    qty: int
    leaves: int
    before: dict[int, int] = field(default_factory=dict)  # real ref -> shares it still has before us


def better(side: str, px: int, than: int) -> bool:
    return px > than if side == "B" else px < than


class Venue:
    """One symbol.  `said` collects what it answers: (what, order name, px, qty, leaves)."""

    def __init__(self) -> None:
        self.real: dict[int, Real] = {}
        self.own: list[Own] = []
        self.known: set[str] = set()
        self.said: list[tuple[str, str, int, int, int]] = []
        self.halted = False
        self.arrivals = 0

    # Our requests.

    def new(self, name: str, side: str, px: int, qty: int, *, ioc: bool) -> None:
        if name in self.known or self.halted:
            self.said.append(("rejected", name, 0, 0, 0))
            return
        self.known.add(name)
        order = Own(name, side, px, qty, qty)
        self.said.append(("new", name, 0, 0, qty))
        swept = self._take(order)
        if order.leaves == 0:
            return
        if ioc or swept:
            self.said.append(("canceled", name, 0, 0, 0))
            return
        order.before = {r.ref: r.qty for r in self.real.values() if (r.side, r.px) == (side, px)}
        self.own.append(order)

    def _take(self, order: Own) -> bool:
        """Take what the order crosses; return whether it was stopped with more to cross."""
        other = [r for r in self.real.values() if r.side != order.side]
        crossed = sorted({r.px for r in other if not better(order.side, r.px, order.px)})
        if order.side == "S":
            crossed.reverse()
        for px in crossed[:LEVELS]:
            got = 0
            for real in sorted((r for r in other if r.px == px), key=lambda r: r.arrived):
                part = max(min(order.leaves - got, real.qty - real.taken), 0)
                real.taken += part
                got += part
            if got:
                order.leaves -= got
                self.said.append(("trade", order.name, px, got, order.leaves))
            if order.leaves == 0:
                return False
        return len(crossed) > LEVELS

    def cancel(self, name: str) -> None:
        for order in self.own:
            if order.name == name:
                self.own.remove(order)
                self.said.append(("canceled", name, 0, 0, 0))
                return
        self.said.append(("too late" if name in self.known else "unknown", name, 0, 0, 0))

    # The real flow.

    def add(self, ref: int, side: str, px: int, qty: int) -> None:
        self.arrivals += 1
        self.real[ref] = Real(ref, side, px, qty, self.arrivals)
        if not self.halted:
            met = [o for o in self.own if o.side != side and not better(o.side, px, o.px)]
            self._fill(met, qty)

    def execute(self, ref: int, qty: int, *, printable: bool = True) -> None:
        real = self.real[ref]
        qty = min(qty, real.qty)
        if printable:
            behind = [o for o in self.own if o.side == real.side and o.px == real.px and ref not in o.before]
            worse = [o for o in self.own if o.side == real.side and better(o.side, o.px, real.px)]
            self._fill(behind + worse, qty)
        self.reduce(ref, qty)

    def reduce(self, ref: int, qty: int) -> None:
        """Take shares from a real order; it goes when none is left."""
        real = self.real[ref]
        real.qty -= min(qty, real.qty)
        for order in self.own:
            if ref in order.before:
                order.before[ref] = real.qty
        if real.qty == 0:
            del self.real[ref]
            for order in self.own:
                order.before.pop(ref, None)

    def replace(self, ref: int, new_ref: int, px: int, qty: int) -> None:
        side = self.real[ref].side
        self.reduce(ref, self.real[ref].qty)
        self.add(new_ref, side, px, qty)

    def print_hidden(self, px: int, qty: int) -> None:
        for side in "BS":
            qty = self._fill([o for o in self.own if o.side == side and not better(side, px, o.px)], qty)

    def _fill(self, orders: list[Own], flow: int) -> int:
        """Fill orders from a flow of shares, best first; return what is left of it."""
        sign = {"B": -1, "S": 1}
        for order in sorted(orders, key=lambda o: (sign[o.side] * o.px, self.own.index(o))):
            qty = min(flow, order.leaves)
            if sum(order.before.values()) or qty == 0:
                continue
            flow -= qty
            order.leaves -= qty
            self.said.append(("trade", order.name, order.px, qty, order.leaves))
            if order.leaves == 0:
                self.own.remove(order)
        return flow
