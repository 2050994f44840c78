"""Which back end answers: measured, with hysteresis, and looked at again when the load changes.

The CPU takes c microseconds per symbol; a GPU a + b per symbol, since a launch costs before any work.  So
there is a number of symbols per decision from which on the GPU is quicker, or there is none.  It is measured
at start.  The choice follows the smoothed number of symbols, changes only when that is well beyond the
crossover, and rests for a while after each change.  Costs seen in service correct the back end that runs; the
other one is unknown, so a new measurement is asked for when the load has moved far from what was measured, or
the costs have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

SIZES: Final = (1, 8, 64, 256)  # symbols per decision that are measured
REPEATS: Final = 9


class Backend(Enum):
    """Who answers."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(slots=True, frozen=True)
class Costs:
    """Microseconds: cpu_us per symbol; the GPU's fixed part and its part per symbol."""

    cpu_us: float
    launch_us: float
    symbol_us: float

    @property
    def crossover(self) -> float:
        """Symbols per decision from which on the GPU is quicker; infinite when it never is."""
        saved = self.cpu_us - self.symbol_us
        return max(self.launch_us, 0.0) / saved if saved > 0 else math.inf


def measure(
    cpu: Callable[[int], None],
    cuda: Callable[[int], None],
    sizes: Sequence[int] = SIZES,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Time both back ends at each size (the median of several runs) and fit the costs.

    cpu, cuda: answer that many symbols, all told.
    """

    def median_us(call: Callable[[int], None], size: int) -> float:
        call(size)  # warm
        times = []
        for _ in range(REPEATS):
            start = clock()
            call(size)
            times.append((clock() - start) * 1e6)
        return float(np.median(times))

    counts = np.array(sizes, np.float64)
    of_cpu = np.array([median_us(cpu, n) for n in sizes])
    of_cuda = np.array([median_us(cuda, n) for n in sizes])
    slope, start = np.polyfit(counts, of_cuda, 1, w=1 / of_cuda)  # errors count relative to the time
    return Costs(float(np.median(of_cpu / counts)), max(float(start), 0.0), max(float(slope), 0.0))


@dataclass(slots=True, frozen=True)
class Policy:
    """How reluctant the choice is."""

    band: float = 0.25  # of the crossover, on either side, where nothing changes
    dwell: int = 64  # decisions after a change during which it stays
    smoothing: float = 0.1  # weight of the newest decision
    drift: float = 0.5  # relative change of load or cost that asks for a new measurement


class Chooser:
    """The choice for one model; fed with every decision, it says who answers the next.

    backend: what runs now; changes: how often it changed.  All of it is a function of what was fed, so a
    journal of the choices replays.
    """

    def __init__(
        self, costs: Costs | None, policy: Policy | None = None, *, forced: Backend | None = None
    ) -> None:
        """Choose by `costs`; None = no GPU, the CPU answers.  forced: this one, whatever it costs."""
        self.policy = policy or Policy()
        self.forced = forced
        self.backend = forced or Backend.CPU
        self.changes = 0
        self._costs = costs
        self._symbols = 0.0
        self._measured_at = 0.0  # symbols per decision when the costs were taken; 0 = not yet known
        self._gain = 1.0  # measured over predicted cost of the back end that runs
        self._rest = 0

    @property
    def costs(self) -> Costs | None:
        """The costs in use."""
        return self._costs

    @property
    def symbols(self) -> float:
        """Smoothed symbols per decision."""
        return self._symbols

    def choose(self, symbols: int) -> Backend:
        """Return who answers a decision about this many symbols."""
        if symbols <= 0 or self.forced is not None or self._costs is None:
            return self.backend
        weight = self.policy.smoothing if self._symbols else 1.0
        self._symbols += weight * (symbols - self._symbols)
        self._measured_at = self._measured_at or self._symbols
        self._rest = max(self._rest - 1, 0)
        edge = self._costs.crossover
        beyond = self._symbols > edge * (1 + self.policy.band)
        below = self._symbols < edge * (1 - self.policy.band)
        wanted = Backend.CUDA if beyond else Backend.CPU if below else self.backend
        if wanted is not self.backend and self._rest == 0:
            self.backend, self._gain, self._rest = wanted, 1.0, self.policy.dwell
            self.changes += 1
        return self.backend

    def observe(self, symbols: int, elapsed_us: float) -> None:
        """Learn what the last decision cost; a value that is no number is dropped."""
        if self._costs is None or symbols <= 0 or not (math.isfinite(elapsed_us) and elapsed_us > 0):
            return
        on_cpu = self.backend is Backend.CPU
        costs = self._costs
        predicted = costs.cpu_us * symbols if on_cpu else costs.launch_us + costs.symbol_us * symbols
        self._gain += self.policy.smoothing * (elapsed_us / max(predicted, 1e-9) - self._gain)

    @property
    def is_stale(self) -> bool:
        """Whether load or costs have moved so far that both back ends should be measured again."""
        if self._costs is None or self.forced is not None or not self._measured_at:
            return False
        limit = 1 + self.policy.drift
        load = self._symbols / self._measured_at
        return not (1 / limit <= load <= limit and 1 / limit <= self._gain <= limit)

    def renew(self, costs: Costs) -> None:
        """Go on with new costs."""
        self._costs, self._measured_at, self._gain = costs, self._symbols, 1.0

    def lose(self) -> None:
        """Give the GPU up for good: the CPU answers from now on, even where the GPU was forced."""
        self.changes += self.backend is not Backend.CPU
        self.backend, self._costs, self.forced = Backend.CPU, None, None
