"""What steers density while a model trains, and which optional inputs are worth their time.

Both are plain controllers: asked between steps, they answer; nothing here reads a clock.  A layer that has a
`nanopt` asks `density` and reports to `observe` (see bicep/layers.py): `TrainingSchedule` answers with the
gradual schedule, `LayerControl` with the setting that a NANOpt holds on what the layer's calls cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bicep.nanopt import NANOpt, Observation, robust_cost


def cubic_density(step: int, begin: int, end: int, final: float, start: float = 1.0) -> float:
    """Return the density at a step: `start` up to begin, `final` from end on, falling fast, then slowly.

    Source: Zhu and Gupta 2017.  Raises ValueError for densities that do not fall or no steps between.
    """
    if not 0 < final <= start <= 1 or begin >= end:
        msg = f"densities {start} -> {final} from step {begin} to {end}"
        raise ValueError(msg)
    left = 1 - min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (start - final) * left**3


class TrainingSchedule:
    """Gradual pruning as a controller: each question is one training step."""

    def __init__(self, begin: int, end: int, final: float, start: float = 1.0, every: int = 1) -> None:
        cubic_density(0, begin, end, final, start)
        if every < 1:
            msg = f"a density every {every} steps"
            raise ValueError(msg)
        self._plan = begin, end, final, start
        self._every = every
        self.step = 0

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Take no note: the schedule knows its way."""

    def density(self, now: float) -> float:
        """Return the density wanted next; between two prunings the one in use."""
        step, self.step = self.step, self.step + 1
        begin, end, _, _ = self._plan
        if step % self._every and begin <= step < end:
            return now
        return min(cubic_density(step, *self._plan), now)


class LayerControl:
    """A NANOpt behind a layer: calls are its sensor, the density of its setting the answer.

    now_ns: gives the time of a period's end.
    """

    def __init__(self, nanopt: NANOpt, now_ns: Callable[[], int]) -> None:
        self.nanopt = nanopt
        self._now_ns = now_ns
        self._costs: list[float] = []

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Note the cost of a call per row of its batch."""
        self._costs.append(elapsed_ns / 1e3 / max(rows, 1))

    def density(self, now: float) -> float:
        """Close a period; return the density of the setting that NANopt holds (`now` while it has none)."""
        cost, count = robust_cost(self._costs, [False] * len(self._costs))
        self._costs.clear()
        self.nanopt.step(Observation(self._now_ns(), cost, count))
        held = self.nanopt.setting.density
        return held if math.isfinite(held) else now


@dataclass(slots=True)
class _Feature:
    cost_us: float
    worth: float = 0.0
    is_on: bool = True
    changed_ns: int = -(1 << 62)


class FeatureGate:
    """Switch optional inputs off while they earn nothing, and try them again later.

    costs_us: by name.  A feature's worth is a smoothed measure of what it takes off the error; it earns its
    time when worth / cost is at least `earn_min` per us.  Off, it is tried again after `retry_ns`.
    """

    def __init__(
        self,
        costs_us: dict[str, float],
        earn_min: float,
        *,
        dwell_ns: int,
        retry_ns: int,
        weight: float = 0.1,
    ) -> None:
        if not all(math.isfinite(cost) and cost > 0 for cost in costs_us.values()) or not earn_min > 0:
            msg = f"costs {costs_us} and earn_min {earn_min} must be above 0"
            raise ValueError(msg)
        self._features = {name: _Feature(cost) for name, cost in costs_us.items()}
        self._earn_min, self._dwell_ns, self._retry_ns, self._weight = earn_min, dwell_ns, retry_ns, weight

    def step(self, now_ns: int, worth: dict[str, float]) -> dict[str, bool]:
        """Take a period's worth of features that are on; return the switches that change, by name."""
        changed = {}
        for name, feature in self._features.items():
            since = now_ns - feature.changed_ns
            seen = worth.get(name, math.nan)
            if not feature.is_on:
                if since >= self._retry_ns:
                    feature.is_on, feature.changed_ns = True, now_ns
                    feature.worth = 2 * self._earn_min * feature.cost_us  # as good as needed until seen
                    changed[name] = True
                continue
            if not math.isfinite(seen):
                continue
            if feature.changed_ns < 0:
                feature.changed_ns, feature.worth, since = now_ns, seen, 0  # the first look
            feature.worth += self._weight * (seen - feature.worth)
            if since >= self._dwell_ns and feature.worth < self._earn_min * feature.cost_us:
                feature.is_on, feature.changed_ns = False, now_ns
                changed[name] = False
        return changed

    def on(self) -> set[str]:
        """Return the features that are on."""
        return {name for name, feature in self._features.items() if feature.is_on}
