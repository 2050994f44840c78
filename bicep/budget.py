"""Share a compute budget between models: by weight and activity, never below a floor.

Each model declares a weight and a floor.  Every period the allocator grants shares of the budget in
proportion to weight * recent activity; a model whose share would fall below its floor gets the floor, and the
rest is divided among the others by the same rule.  Activity is smoothed, so one burst does not starve the
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SMOOTHING: Final = 0.3  # weight of the newest period
_ROUNDING: Final = 1e-9


@dataclass(slots=True, frozen=True)
class Share:
    """What a model declares: weight > 0; floor: share of the budget that it always has, 0 .. 1."""

    name: str
    weight: float = 1.0
    floor: float = 0.0


class Allocator:
    """Grants of one budget.  Raises ValueError when the declarations cannot be met."""

    def __init__(self, shares: Iterable[Share], smoothing: float = SMOOTHING) -> None:
        self.shares = {share.name: share for share in shares}
        if not self.shares or not 0 < smoothing <= 1:
            msg = "a budget needs models and a smoothing in (0, 1]"
            raise ValueError(msg)
        for share in self.shares.values():
            if not (share.weight > 0 and math.isfinite(share.weight) and 0 <= share.floor <= 1):
                msg = f"model {share.name!r}: weight {share.weight}, floor {share.floor}"
                raise ValueError(msg)
        if (total := sum(share.floor for share in self.shares.values())) > 1 + _ROUNDING:
            msg = f"the floors add up to {total:.3f} of the budget"
            raise ValueError(msg)
        self._smoothing = smoothing
        self._activity = dict.fromkeys(self.shares, 0.0)
        self._seen = dict.fromkeys(self.shares, 0.0)

    def observe(self, name: str, activity: float) -> None:
        """Add activity of this period (inferences, updates): any unit, the same for all.

        A value that is no number, or negative, is dropped: a broken sensor moves nothing.  KeyError: unknown
        model.
        """
        if math.isfinite(activity) and activity >= 0:
            self._seen[name] += activity

    def allocate(self) -> dict[str, float]:
        """End the period; return the share of the budget of each model, which add up to 1."""
        for name, seen in self._seen.items():
            self._activity[name] += self._smoothing * (seen - self._activity[name])
            self._seen[name] = 0.0
        return self.grants()

    def grants(self) -> dict[str, float]:
        """Return the shares for the activity so far; by weight alone while nobody has been active."""
        wants = {name: s.weight * self._activity[name] for name, s in self.shares.items()}
        if not any(wants.values()):
            wants = {name: share.weight for name, share in self.shares.items()}
        granted: dict[str, float] = {}
        open_ = dict(wants)
        while open_:  # each round fixes at least one floor, so there are at most as many as models
            left = max(1 - sum(granted.values()), 0.0)
            total = sum(open_.values())
            floored = {
                name: self.shares[name].floor
                for name, want in open_.items()
                if (left * want / total if total else 0.0) < self.shares[name].floor - _ROUNDING
            }
            if not floored:
                even = left / len(open_)
                granted |= {name: left * want / total if total else even for name, want in open_.items()}
                break
            granted |= floored
            open_ = {name: want for name, want in open_.items() if name not in floored}
        spare = max(1 - sum(granted.values()), 0.0)  # everybody is at the floor
        return {
            name: granted[name] + spare * share.weight / self._weights()
            for name, share in self.shares.items()
        }

    def _weights(self) -> float:
        return sum(share.weight for share in self.shares.values())
