"""The size of an entry and the gates before it in exact arithmetic, and a venue that answers orders."""

from fractions import Fraction
from math import floor, sqrt


def size(p, mean, epistemic, aleatoric, bid_px, ask_px, exposure_px=0):
    """Return the shares of an entry from flat, by the formula of the design."""
    edge = abs(mean) - p["fee"] - p["margin"] - (ask_px - bid_px) / ((ask_px + bid_px) / 2)
    weight = min(p["weight_max"], edge / (p["risk_aversion"] * (epistemic + aleatoric)))
    wanted = min(floor(Fraction(weight) * int(p["capital_px"]) / ask_px), p["order_qty_max"])
    room = min(p["position_qty_max"], (p["exposure_px_max"] - exposure_px) // ask_px)
    return min(wanted, room) // p["lot_qty"] * p["lot_qty"]


def agrees(p, mean, epistemic, agree):
    """Say whether the samples agree, or the interval excludes 0."""
    return agree / 32 >= p["agreement_min"] or abs(mean) > p["interval"] * sqrt(epistemic)


class Order:
    """One order at the venue."""

    def __init__(self, number, decision, side, qty, px):
        self.number, self.decision, self.side, self.qty, self.px = number, decision, side, qty, px
        self.leaves, self.accepted, self.cancel = qty, False, 0


class Venue:
    """Answers as the orders agent would: a position that is the truth, and legal reports in any order."""

    def __init__(self):
        self.position, self.live, self.numbers = 0, [], 0

    def new(self, decision, side, qty, px):
        """Take an order; it is live until a terminal report."""
        self.numbers += 1
        self.live.append(Order(self.numbers, decision, side, qty, px))

    def fill(self, order, qty):
        """Trade; return the position afterwards."""
        order.leaves -= qty
        self.position += qty * order.side
        if order.leaves == 0:
            self.live.remove(order)
        return self.position

    def exposure(self):
        """Return (lowest, highest) position that the live orders can lead to."""
        sells = sum(o.leaves for o in self.live if o.side < 0)
        buys = sum(o.leaves for o in self.live if o.side > 0)
        return self.position - sells, self.position + buys
