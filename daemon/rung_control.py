"""NANopt beside a live session: once a period it looks, and sometimes another rung serves from then on.

    histogram of inference -> p90 of the period --+
    SHADOW ring -> the same inputs, dense and not -+-> NANOpt -> RUNG ring -> strategy loop
    kill switch -> frozen -------------------------+

Everything here is the control loop's.  The checks of decisions run on a plan of its own (`Plan.twin`), which
shares weights, masks and news with the one that serves.
"""

from __future__ import annotations

import asyncio
import math
import pathlib
import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.calibration import settings as ladder_settings
from bicep.nanopt import Change, NANOpt, Observation, Options, Reason
from bicep.plan import INFERENCE, JOB, MC_32, OK, Plan, infer_batch
from bicep.plan.store import WEIGHTS
from bicep.probe import ladder_costs
from daemon.config import BicepConfig
from daemon.errors import CommandError
from daemon.rungs import DENSE, blank_row, ladder_of, mode_of, word_of
from daemon.system import CONTROL_STREAM, System
from nimbus.journal.types import RecordType
from nimbus.orders.kill_switch import effective, may_trade
from ringbuf.histogram import Histogram, lowest_values
from ringbuf.spsc import pop_into
from strategy.shadows import CAPACITY, SHADOW, Sampler

SHARE: Final = 0.9  # of a period's inferences are within the cost that counts
CHECKS_MAX: Final = 16  # in one period; what more has come is left out and counted
REPEATS: Final = 16  # of 32 samples, behind the answer that an analytic one is compared with
_REPEAT_STEP: Final = 1 << 20  # of the sequence number: other masks
_MS, _US = 1_000_000, 1_000


class CostSensor:
    """What inference cost since the last look: differences of its histogram."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram, self._before = histogram, histogram.counts()
        self._highest = lowest_values()[1:] - 1

    def read(self) -> tuple[float, int, float]:
        """Return the p90 in us (NaN of nothing), how many there were, and about the ns of them all."""
        now = self._histogram.counts()
        counts, self._before = now - self._before, now
        total = int(counts.sum())
        if total <= 0:
            return math.nan, 0, 0.0
        at = int(np.searchsorted(np.cumsum(counts), math.ceil(SHARE * total)))
        return float(self._highest[at]) / _US, total, float(counts @ self._highest)


@dataclass(slots=True)
class Checks:
    """Shadow evaluations: the inputs of decisions once more, dense and at other settings."""

    plan: Plan
    sampler: Sampler
    unit: NDArray[np.float64]  # by tag: the return that an error of 1 is
    counts: dict[str, int] = field(default_factory=lambda: {"checked": 0, "left_out": 0, "news_moved": 0})
    volatility: float = math.nan  # root mean square of the last period's decisions

    def take(self, wanted: list[tuple[int, int]]) -> list[tuple[int, int, float]]:
        """Return (rung, samples, difference to dense) of each check and setting wanted."""
        rows = np.zeros(CAPACITY, SHADOW.dtype)
        count = pop_into(self.sampler.ring, rows.ctypes.data, CAPACITY)
        seen = rows["volatility"][:count]
        seen = seen[np.isfinite(seen)]
        self.volatility = float(np.sqrt(np.mean(seen**2))) if len(seen) else math.nan
        rows = rows[max(count - CHECKS_MAX, 0) : count]
        self.counts["left_out"] += count - len(rows)
        if not len(rows) or not wanted:
            return []
        dense = self._ask(rows, 0, MC_32)
        good = (dense["status"] == OK) & (dense["news_version"] == rows["news_version"])
        base = {True: dense["mean"].copy()}
        if any(samples == 0 for _, samples in wanted):
            repeats = [self._ask(rows, 0, MC_32, n)["mean"].copy() for n in range(REPEATS)]
            base[False] = np.mean(repeats, axis=0)
        found = []
        for rung, samples in wanted:
            answer = self._ask(rows, rung, mode_of(samples))
            still = good & (answer["status"] == OK) & (answer["news_version"] == rows["news_version"])
            difference = (answer["mean"] - base[samples > 0]) / self.unit[rows["tag"]]
            found += [(rung, samples, float(d)) for d in difference[still]]
            self.counts["news_moved"] += int((~still).sum())
        self.counts["checked"] += len(rows)
        return found

    def _ask(self, rows: NDArray[Any], rung: int, mode: int, repeat: int = 0) -> NDArray[Any]:
        self.plan.set_rung(rung, mode)
        jobs, out = np.zeros(len(rows), JOB.dtype), np.zeros(len(rows), INFERENCE.dtype)
        at = rows.ctypes.data + SHADOW.at.inputs
        jobs["features"] = at + rows.strides[0] * np.arange(len(rows))
        jobs["sequence"] = rows["sequence"] + repeat * _REPEAT_STEP
        jobs["symbol"], jobs["expert"] = rows["locate"], rows["tag"]
        infer_batch(self.plan.state, jobs.ctypes.data, len(jobs), out.ctypes.data)
        return out


def options_of(config: BicepConfig) -> Options:
    """Return what NANopt is told."""
    return Options(
        slo_us=config.slo_us,
        error_budget=config.error_budget,
        dwell_ns=config.dwell_ms * _MS,
        volatility_high=config.volatility_high or math.inf,
    )


def measured_costs(system: System) -> NDArray[np.float64]:
    """Return the microseconds of an inference [rung, mode] of the model in use, on this machine."""
    path = pathlib.Path(system.config.model.folder) / system.model.id / WEIGHTS
    try:
        return ladder_costs(path.read_bytes())
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise CommandError(msg) from None


class RungControl:
    """Own the NANOpt of a system whose `rungs.is_adaptive`; `look` is one period.

    costs: microseconds [rung, mode].
    """

    def __init__(self, system: System, log: Any, costs: NDArray[np.float64]) -> None:
        ladder, plan = ladder_of(system.model), system.model.plan
        assert ladder is not None
        assert plan is not None
        self._system, self._log, self._rungs = system, log, system.rungs
        allowed = set(system.rungs.words)
        settings = [s for s in ladder_settings(ladder, costs) if word_of(s.rung, s.samples) in allowed]
        self.nanopt = NANOpt(settings, options_of(system.config.bicep))
        self._sensor = CostSensor(system.histograms["inference"])
        sampler, unit = system.rungs.sampler, np.asarray(ladder["error_unit"], np.float64)
        self.checks = Checks(plan.twin("bicep.twin"), sampler, unit) if sampler else None
        self._looked_ns, self._taken, self._missed = 0, 0, False
        self.cost_us = math.nan
        first = self.nanopt.setting
        word = word_of(first.rung, first.samples)
        if word != DENSE:
            row = blank_row(system.model, word, Reason.START)
            row["error"], row["slo_us"] = first.error, system.config.bicep.slo_us
            self._rungs.push(row)

    async def run(self) -> None:
        """Look once a period until cancelled."""
        while True:
            await asyncio.sleep(self._system.config.bicep.period_ms * _MS / 1e9)
            self.look(time.monotonic_ns())

    def look(self, now_ns: int) -> Change | None:
        """Take one period's observation; hand on the change that NANopt makes of it, if any."""
        cost_us, count, total_ns = self._sensor.read()
        elapsed_ns, self._looked_ns = now_ns - self._looked_ns, now_ns
        shadows = self.checks.take(self.nanopt.shadows_wanted()) if self.checks else []
        volatility = self.checks.volatility if self.checks else math.nan
        if self._rungs.taken != self._taken:  # a period of two settings measures neither
            self._taken, cost_us, count = self._rungs.taken, math.nan, 0
        self.cost_us = cost_us if count else self.cost_us
        seen = Observation(
            now_ns,
            cost_us,
            count,
            shadows,
            volatility=volatility,
            utilisation=total_ns / elapsed_ns if count else math.nan,
            is_frozen=self._is_frozen(),
        )
        change = self.nanopt.step(seen)
        if change is not None:
            self._hand_on(change)
        if self.nanopt.slo_miss != self._missed:
            self._missed = self.nanopt.slo_miss
            self._log.warning("slo_miss", missed=self._missed, slo_us=self.nanopt.options.slo_us,
                              cost_us=self.cost_us)  # fmt: skip
        return change

    def _is_frozen(self) -> bool:
        """Say whether nothing may move: no trading, messages missing, or a change that was not taken yet."""
        state, live = effective(self._system.orders.kill_switch.addr), self._system.feed.live
        is_stale = live is not None and live.phase != "live"
        return not may_trade(state) or is_stale or self._rungs.is_waiting

    def _hand_on(self, change: Change) -> None:
        self._rungs.change(change)
        self._log.info("rung_changed", density=self.nanopt.setting.density, samples=change.samples,
                       reason=change.reason.name, gain=round(change.gain, 4), error=change.error)  # fmt: skip

    def pin(self, density: float, samples: int, who: str) -> None:
        """Hold a setting until `unpin`; raises ValueError when it is none, or outside the error budget."""
        found = [s for s in self.nanopt.settings if s.density == density and s.samples == samples]
        if not found:
            known = ", ".join(f"{s.density:g} x {s.samples}" for s in self.nanopt.settings)
            msg = f"density {density:g}, {samples} samples: the settings are {known}"
            raise ValueError(msg)
        if self._rungs.is_waiting:
            msg = "the last change has not been taken yet: try again"
            raise ValueError(msg)
        change = self.nanopt.pin(time.monotonic_ns(), found[0].rung, samples)
        if change is not None:
            self._hand_on(change)
        self._audit("rung_pinned", f"rung pinned to {density:g} x {samples} by {who}")

    def unpin(self, who: str) -> None:
        """Let NANopt choose again."""
        self.nanopt.unpin()
        self._audit("rung_unpinned", f"rung unpinned by {who}")

    def _audit(self, event: str, text: str) -> None:
        """Tell the log and the journal what an operator did."""
        if event == "rung_pinned":
            self._log.warning("rung_pinned", text=text)
        else:
            self._log.warning("rung_unpinned", text=text)
        stream = self._system.streams[CONTROL_STREAM]
        stream.append(RecordType.LOG, text.encode("ascii", "replace"), self._system.now_ns)

    def status(self) -> dict[str, Any]:
        """Return what the admin endpoint shows."""
        nanopt, setting = self.nanopt, self.nanopt.setting
        return {
            "density": setting.density,
            "samples": setting.samples,
            "gain": nanopt.gain,
            "factor": nanopt.factor,
            "cost_us": self.cost_us if math.isfinite(self.cost_us) else None,
            "slo_us": nanopt.options.slo_us,
            "slo_miss": nanopt.slo_miss,
            "sensor_lost": nanopt.sensor_lost,
            "pinned": nanopt.is_pinned,
            "waiting": self._rungs.is_waiting,
            "counts": nanopt.counts,
            "checks": self._checked(),
            "settings": [
                {"density": s.density, "samples": s.samples, "cost_us": s.cost_us, "error": s.error}
                for s in nanopt.settings
            ],
        }

    def _checked(self) -> dict[str, int]:
        if self.checks is None:
            return {}
        return self.checks.counts | {"dropped": self.checks.sampler.view.refused}
