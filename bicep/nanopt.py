"""NANopt: choose rung and samples of a plan so that inference keeps its time, inside an error budget.

The plant is known: a setting costs gain * (a + b*density), where a and b were measured at load and the gain
says how fast this machine is right now.  So the law is feed-forward on measured costs with slow feedback on
one number, not a free loop on a threshold.  Its parts, in order of precedence:

    freeze, pin      nothing moves; a pin is dropped when its setting is forbidden
    error budget     a hard bound: offline error times a factor, and a CUSUM on shadow evaluations.  Leaving
                     a setting that is out of bounds waits for nothing; entering one needs a margin
    latency          the densest setting within 0.95 of the SLO; down at once, up one step when the denser
                     one would be within 0.85; at most one change per dwell
    conflict         error wins: the cheapest allowed setting serves, `slo_miss` is raised

Written by the control loop, which hands in one Observation per period and stores the word of a Change with
`set_rung`.  Nothing here reads a clock or draws a number: the same observations give the same changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from bicep.pid import Pid, PidOptions
from bicep.shadow import Shadows

_NEVER_NS: Final = -(1 << 62)
_PATIENCE_MAX: Final = 64  # dwells


class Reason(IntEnum):
    """Why a setting was changed.  Append only: journals hold the numbers."""

    LATENCY = 1  # the old setting was too slow
    HEADROOM = 2  # a denser one fits
    ERROR = 3  # shadow evaluations forbid the old setting
    VOLATILITY = 4  # the error factor puts the old setting outside the budget
    PIN = 5
    START = 6  # what a run begins with, where it is not the dense rung with all samples


@dataclass(slots=True, frozen=True)
class Setting:
    """One position of the actuator: a rung of the ladder and a number of samples (0 = analytic)."""

    rung: int
    samples: int
    density: float
    cost_us: float  # measured at load, caches warm, nobody else on the core
    error: float  # measured offline, above that of the dense rung with all samples


@dataclass(slots=True, frozen=True)
class Options:
    """What NANopt is told; times in ns, costs in us, errors in the unit of Setting.error."""

    slo_us: float
    error_budget: float
    dwell_ns: int = 1_000_000_000  # between changes; keep it well above the loop signals -> orders -> load
    hold_share: float = 0.95  # of the SLO: above it the setting is too slow
    climb_share: float = 0.85  # of the SLO: a denser setting must fit into it
    gain_weight: float = 0.2  # of a new measurement
    gain_range: tuple[float, float] = (0.25, 16.0)
    count_min: int = 8  # inferences behind a measurement
    bad_max: int = 10  # periods without a good measurement until latency is no reason any more
    error_margin: float = 0.8  # of the budget: to enter a setting
    volatility_high: float = math.inf  # upper end of the band: above it errors are taken to grow
    volatility_power: float = 1.0
    matured_high: float = math.inf  # of squared prediction error over the expected one
    matured_min: int = 200  # labels behind it
    calm_weight: float = 0.02  # with which the error factor falls; it rises at once
    cusum_limit: float = 20.0
    cusum_clip: float = 10.0  # of one squared difference over the squared budget
    recover_ns: int = 60_000_000_000  # a forbidden setting stays so at least this long
    utilisation_max: float = 0.9  # share of the agent's time
    pid: PidOptions | None = None  # the PID form instead of the ladder law

    def __post_init__(self) -> None:
        """Refuse options that bound nothing."""
        for name in (
            "slo_us",
            "error_budget",
            "cusum_limit",
            "utilisation_max",
            "volatility_high",
            "matured_high",
        ):
            value = getattr(self, name)
            if not value > 0:
                msg = f"{name} is {value}, must be above 0"
                raise ValueError(msg)
        if not 0 < self.climb_share <= self.hold_share <= 1 or not 0 < self.error_margin <= 1:
            msg = "shares must rise: 0 < climb_share <= hold_share <= 1, 0 < error_margin <= 1"
            raise ValueError(msg)
        if self.dwell_ns <= 0 or not 0 < self.gain_weight <= 1 or not 0 < self.calm_weight <= 1:
            msg = "dwell_ns must be above 0, gain_weight and calm_weight in (0, 1]"
            raise ValueError(msg)


@dataclass(slots=True, frozen=True)
class Observation:
    """What was seen in one period; NaN and zero counts mean "not measured"."""

    now_ns: int
    cost_us: float = math.nan  # p90 of inferences without a context switch (`robust_cost`)
    count: int = 0  # inferences behind it
    shadows: Sequence[tuple[int, int, float]] = ()  # (rung, samples, difference to dense), one per check
    matured: float = math.nan  # mean squared prediction error of matured labels over the expected one
    matured_count: int = 0
    volatility: float = math.nan
    utilisation: float = math.nan
    grant: float = math.nan  # share of the agent's time that this model may use (bicep.budget)
    is_frozen: bool = False  # auction, halt, kill switch, stale feed, reload


@dataclass(slots=True, frozen=True)
class Change:
    """One change, as the journal keeps it."""

    time_ns: int
    old_rung: int
    rung: int
    old_samples: int
    samples: int
    reason: Reason
    gain: float
    error: float  # of the new setting, factor included
    slo_us: float


def robust_cost(costs_us: Sequence[float], switched: Sequence[bool], share: float = 0.9) -> tuple[float, int]:
    """Return the quantile of the costs measured without a context switch, and how many there were."""
    clean = sorted(
        cost for cost, was in zip(costs_us, switched, strict=True) if not was and math.isfinite(cost)
    )
    if not clean:
        return math.nan, 0
    return clean[min(math.ceil(share * len(clean)), len(clean)) - 1], len(clean)


def front(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings worth having, the most exact first: none costs more and errs more than another."""
    for s in settings:
        if not (math.isfinite(s.cost_us) and s.cost_us > 0 and math.isfinite(s.error) and s.error >= 0):
            msg = f"rung {s.rung}, {s.samples} samples: cost {s.cost_us}, error {s.error}"
            raise ValueError(msg)
    kept: list[Setting] = []
    for setting in sorted(settings, key=lambda s: (s.error, s.cost_us, -s.density)):
        if not kept or setting.cost_us < kept[-1].cost_us:
            kept.append(setting)
    if not kept:
        msg = "no setting to choose from"
        raise ValueError(msg)
    return kept


class NANOpt:
    """The controller; starts with the most exact setting.

    on_change: called with each Change, which `step` also returns.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        options: Options,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        if options.pid is not None:  # density alone moves: all settings with the samples of the most exact
            samples = front(settings)[0].samples
            settings = [s for s in settings if s.samples == samples]
        self.settings = front(settings)
        self.options = options
        self.gain = 1.0
        self.factor = 1.0  # by which errors are taken to have grown
        self.slo_miss = False
        self.sensor_lost = False
        self.counts = {
            "periods": 0,
            "changes": 0,
            "bad_sensor": 0,
            "bad_shadow": 0,
            "slo_miss": 0,
            "frozen": 0,
        }
        self._on_change = on_change
        self._index = 0
        self._changed_ns = _NEVER_NS
        self._bad = 0
        self._readings = [1.0, 1.0]
        self._patience = 1  # dwells before a climb
        self._climbed_ns = _NEVER_NS
        self._pinned: int | None = None
        self._limit_us = options.slo_us
        self._shadows = Shadows(
            [s.error for s in self.settings], options.error_budget, options.error_margin,
            options.cusum_limit, options.cusum_clip, options.recover_ns,
        )  # fmt: skip
        self._pid = Pid(options.pid) if options.pid is not None else None

    @property
    def setting(self) -> Setting:
        """The setting in use."""
        return self.settings[self._index]

    def error_of(self, index: int) -> float:
        """Return the error a setting is taken to have now."""
        return self.settings[index].error * max(self.factor, self._shadows.growth())

    def predicted_us(self, index: int) -> float:
        """Return what a setting is expected to cost now."""
        return self.gain * self.settings[index].cost_us

    def shadows_wanted(self) -> list[tuple[int, int]]:
        """Return the (rung, samples) worth a shadow evaluation: in use, enterable next, forbidden."""
        following = min(self._index + 1, self._last_allowed(self.options.error_margin))
        wanted = {self._index, following} | self._shadows.forbidden()
        return [(self.settings[i].rung, self.settings[i].samples) for i in sorted(wanted - {0})]

    def pin(self, now_ns: int, rung: int, samples: int) -> Change | None:
        """Hold a setting until `unpin`.  Raises ValueError when it is none of ours or out of its budget."""
        index = self._find(rung, samples)
        if index is None or index > self._last_allowed(1.0):
            msg = f"rung {rung}, {samples} samples: not on the ladder, or outside the error budget"
            raise ValueError(msg)
        self._pinned = index
        return self._move(now_ns, index, Reason.PIN)

    def unpin(self) -> None:
        """Let the law choose again."""
        self._pinned = None

    @property
    def is_pinned(self) -> bool:
        """Whether a pin holds."""
        return self._pinned is not None

    def step(self, seen: Observation) -> Change | None:
        """Take one period's observation; return the change to make, if any."""
        self.counts["periods"] += 1
        if seen.is_frozen:
            self.counts["frozen"] += 1
            return None
        self._sense(seen)
        allowed = self._last_allowed(1.0)
        if self._index > allowed:
            self._pinned = None
            return self._retract(
                seen.now_ns, Reason.ERROR if self._shadows.forbidden() else Reason.VOLATILITY
            )
        target, reason = self._choose(seen)
        self._note_slo(target)
        if self._pinned is not None or seen.now_ns - self._changed_ns < self.options.dwell_ns:
            return None
        return self._move(seen.now_ns, target, reason)

    def _find(self, rung: int, samples: int) -> int | None:
        for index, setting in enumerate(self.settings):
            if (setting.rung, setting.samples) == (rung, samples):
                return index
        return None

    def _sense(self, seen: Observation) -> None:
        """Update gain, error factor and CUSUMs; what is no number changes nothing and is counted."""
        self._sense_cost(seen)
        self._sense_load(seen)
        rise = 1.0
        if math.isfinite(seen.volatility) and seen.volatility > 0:
            rise = (seen.volatility / self.options.volatility_high) ** self.options.volatility_power
        if (
            seen.matured_count >= self.options.matured_min
            and math.isfinite(seen.matured)
            and seen.matured > 0
        ):
            rise = max(rise, math.sqrt(seen.matured / self.options.matured_high))
        rise = max(rise, 1.0)
        weight = 1.0 if rise > self.factor else self.options.calm_weight
        self.factor += weight * (rise - self.factor)
        for rung, samples, difference in seen.shadows:
            index = self._find(rung, samples)
            if index is None or not math.isfinite(difference):
                self.counts["bad_shadow"] += 1
            elif index > 0:
                self._shadows.take(index, difference, seen.now_ns)

    def _sense_cost(self, seen: Observation) -> None:
        if 0 <= seen.count < self.options.count_min:
            return  # a quiet period says nothing
        if not (math.isfinite(seen.cost_us) and seen.cost_us > 0):
            self._bad += 1
            self.counts["bad_sensor"] += 1
            self.sensor_lost = self._bad >= self.options.bad_max
            return
        self._bad, self.sensor_lost = 0, False
        low, high = self.options.gain_range
        self._readings = [*self._readings[-2:], seen.cost_us / self.setting.cost_us]
        middle = sorted(self._readings)[len(self._readings) // 2]  # of three: one odd reading moves nothing
        self.gain += self.options.gain_weight * (min(max(middle, low), high) - self.gain)

    def _sense_load(self, seen: Observation) -> None:
        """Limit a setting to what the agent's time has room for, too: the same whatever is in use now."""
        self._limit_us = self.options.slo_us
        if math.isfinite(seen.utilisation) and seen.utilisation > 0:
            share = self.options.utilisation_max
            share = min(share, seen.grant) if seen.grant > 0 else share  # NaN: nobody shares it out
            room = self.predicted_us(self._index) * share / seen.utilisation
            self._limit_us = min(self._limit_us, room)

    def _last_allowed(self, margin: float) -> int:
        """Return the cheapest setting within margin of the budget; the most exact one always is."""
        last = 0
        for index in range(1, len(self.settings)):
            outside = self.error_of(index) > margin * self.options.error_budget
            if outside or self._shadows.is_forbidden(index):
                break
            last = index
        return last

    def _fits(self, index: int, share: float) -> bool:
        return self.predicted_us(index) <= share * self._limit_us

    def _first_fit(self, begin: int, end: int) -> int:
        """Return the densest setting of begin..end that holds the limit, or end."""
        for index in range(begin, end):
            if self._fits(index, self.options.hold_share):
                return index
        return end

    def _retract(self, now_ns: int, reason: Reason) -> Change | None:
        target = self._first_fit(0, self._last_allowed(self.options.error_margin))
        self._note_slo(target)
        return self._move(now_ns, target, reason)

    def _choose(self, seen: Observation) -> tuple[int, Reason]:
        """Return the setting that latency asks for, within what may be entered."""
        if self.sensor_lost:
            return self._index, Reason.LATENCY
        enterable = max(self._last_allowed(self.options.error_margin), self._index)
        if self._pid is not None:
            target = self._pid_target(seen, enterable)
        elif not self._fits(self._index, self.options.hold_share):
            target = self._first_fit(self._index, enterable)
        else:
            target = max(self._index - 1, 0)
        if target < self._index:
            return (self._index - 1 if self._may_climb(seen.now_ns) else self._index), Reason.HEADROOM
        return target, Reason.LATENCY

    def _may_climb(self, now_ns: int) -> bool:
        """Say whether the next denser setting fits with room, and its last try is long enough ago."""
        if self._index == 0 or now_ns - self._changed_ns < self._patience * self.options.dwell_ns:
            return False
        return self._fits(self._index - 1, self.options.climb_share)

    def _pid_target(self, seen: Observation, enterable: int) -> int:
        pid = self._pid
        assert pid is not None
        if seen.count < self.options.count_min or self._pinned is not None:
            return self._index
        densities = [math.log(s.density) for s in self.settings]
        load = math.log(self.predicted_us(self._index) / self._limit_us)
        highest = 0.0 if self._may_climb(seen.now_ns) else densities[self._index]
        wanted = pid.step(seen.now_ns, load, densities[self._index], (densities[enterable], highest))
        reach = range(enterable + 1)
        return min(reach, key=lambda i: (abs(densities[i] - wanted), abs(i - self._index)))

    def _note_slo(self, target: int) -> None:
        """Raise or clear slo_miss: the setting chosen would not hold the SLO."""
        misses = not self._fits(target, 1.0)
        self.counts["slo_miss"] += misses and not self.slo_miss
        self.slo_miss = misses

    def _learn_patience(self, now_ns: int, reason: Reason) -> None:
        """Wait twice as long before the next climb when the last one did not last: no cycle goes on."""
        if reason == Reason.HEADROOM:
            self._climbed_ns = now_ns
        elif reason == Reason.LATENCY:
            lasted = now_ns - self._climbed_ns > _PATIENCE_MAX * self.options.dwell_ns
            self._patience = 1 if lasted else min(2 * self._patience, _PATIENCE_MAX)

    def _move(self, now_ns: int, target: int, reason: Reason) -> Change | None:
        if target == self._index:
            return None
        self._learn_patience(now_ns, reason)
        old, self._index = self.setting, target
        self._changed_ns = now_ns
        self.counts["changes"] += 1
        new = self.setting
        change = Change(
            now_ns, old.rung, new.rung, old.samples, new.samples, reason, self.gain,
            self.error_of(target), self.options.slo_us,
        )  # fmt: skip
        if self._on_change is not None:
            self._on_change(change)
        return change
