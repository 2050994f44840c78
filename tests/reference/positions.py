"""Average cost with fractions: the slow twin of nimbus/orders/positions.py, written from its rules."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass
class Exact:
    """Exact average cost: nothing is rounded, so the kernel may differ by less than a unit per release."""

    qty: int = 0
    cash: int = 0
    basis: Fraction = Fraction(0)
    releases: int = 0  # since the position was last flat

    def fill(self, sign: int, qty: int, px: int) -> None:
        """Book one execution; sign: +1 buy, -1 sell."""
        self.cash -= sign * qty * px
        against = min(qty, abs(self.qty)) if self.qty * sign < 0 else 0
        if against:
            self.basis -= self.basis * Fraction(against, abs(self.qty))
            self.releases += 1
        self.qty += sign * qty
        self.basis += sign * (qty - against) * px
        if (against and against != qty) or self.qty == 0:
            self.releases = 0

    @property
    def realised(self) -> Fraction:
        """Profit of what was closed."""
        return self.cash + self.basis


@dataclass
class Floored:
    """The rule to the unit: released = floor(abs(basis) x r / p), with Python's unbounded integers."""

    qty: int = 0
    cash: int = 0
    basis: int = 0

    def fill(self, sign: int, qty: int, px: int) -> None:
        """Book one execution; sign: +1 buy, -1 sell."""
        self.cash -= sign * qty * px
        left = qty
        if self.qty * sign < 0:
            against = min(qty, abs(self.qty))
            self.basis += sign * (abs(self.basis) * against // abs(self.qty))
            left -= against
        self.qty += sign * qty
        self.basis += sign * left * px
