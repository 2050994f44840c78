"""A simulated plant for NANopt: settings as measured, load, volatility, noise, and what really happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bicep.nanopt import Change, NANOpt, Observation, Options, Setting

PERIOD_NS = 100_000_000
HOUR = 36_000  # periods
ERRORS = {1.0: 0.0, 0.7: 0.004, 0.5: 0.01, 0.35: 0.02, 0.2: 0.034, 0.1: 0.062, 0.05: 0.11}
BUDGET = 0.05
BAND = 1.0
Signal = Callable[[int], float]


def ladder_settings() -> list[Setting]:
    """32 and 16 samples on seven rungs: costs as measured, fewer samples add an error of their own."""
    found = []
    for rung, (density, error) in enumerate(ERRORS.items()):
        found.append(Setting(rung, 32, density, 1.0 + 4.86 * density, error))
        found.append(Setting(rung, 16, density, 0.64 + 2.78 * density, float(np.hypot(error, 0.03))))
    return found


def options(**changes: object) -> Options:
    return Options(**{"slo_us": 2.6, "error_budget": BUDGET, "volatility_high": BAND, **changes})


@dataclass
class Plant:
    """Steps a controller through periods; `load`, `volatility` and `drift` are functions of the period."""

    nanopt: NANOpt
    seed: int = 0
    load: Signal = lambda _: 1.0
    volatility: Signal = lambda _: 0.7
    drift: Signal = lambda _: 1.0  # of errors, with no outward sign
    noise: float = 0.02
    mismatch: float = 0.03  # of each setting's real cost to the measured one
    checks: int = 2  # shadow evaluations of each wanted setting a period
    spoil: Callable[[int, Observation], Observation] = lambda _, seen: seen
    met: list[bool] = field(default_factory=list)
    possible: list[bool] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    densities: list[float] = field(default_factory=list)
    offline: list[float] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)
        keys = [(s.rung, s.samples) for s in self.nanopt.settings]
        self.real = dict(
            zip(keys, (1 + self.mismatch * self.draw.uniform(-1, 1, len(keys))).tolist(), strict=True)
        )
        self.cost = {k: s.cost_us * self.real[k] for k, s in zip(keys, self.nanopt.settings, strict=True)}
        self.error = {k: s.error for k, s in zip(keys, self.nanopt.settings, strict=True)}

    def run(self, periods: int) -> Plant:
        for n in range(periods):
            now_ns, volatility = n * PERIOD_NS, self.volatility(n)
            growth = max(1.0, volatility / BAND) * self.drift(n)
            key = self.nanopt.setting.rung, self.nanopt.setting.samples
            measured = self.cost[key] * self.load(n) * np.exp(self.noise * self.draw.standard_normal())
            shadows = [
                (*wanted, float(self.error[wanted] * growth * self.draw.standard_normal()))
                for wanted in self.nanopt.shadows_wanted()
                for _ in range(self.checks)
            ]
            seen = Observation(now_ns, float(measured), 1_000, shadows, volatility=volatility)
            change = self.nanopt.step(self.spoil(n, seen))
            if change is not None:
                self.changes.append(change)
            self._judge(n, growth)
        return self

    def _judge(self, n: int, growth: float) -> None:
        slo, key = self.nanopt.options.slo_us, (self.nanopt.setting.rung, self.nanopt.setting.samples)
        margin = self.nanopt.options.error_margin  # what may be entered; a setting in use may stay up to 1
        inside = [k for k, error in self.error.items() if error * growth <= margin * BUDGET]
        self.possible.append(any(self.cost[k] * self.load(n) <= slo for k in inside))
        self.met.append(self.cost[key] * self.load(n) <= slo)
        self.errors.append(self.error[key] * growth)
        self.densities.append(self.nanopt.setting.density)
        self.offline.append(self.error[key])

    def share_met(self) -> float:
        """Return the share of periods that met the SLO, of those in which any allowed setting could."""
        could = np.array(self.possible)
        return float(np.array(self.met)[could].mean()) if could.any() else 1.0
