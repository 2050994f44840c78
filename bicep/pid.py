"""The PID form of NANopt: on the logarithm of density, with the logarithm of load as its measurement.

Anti-windup is by back-calculation: what the bounds cut off is fed back into the integral.  The derivative
acts on the measurement, so a new target gives no kick, and the output moves by at most a rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class PidOptions:
    """Gains per second where time enters; the error is log(target) - log(cost/limit)."""

    proportional: float = 0.3
    integral: float = 0.5
    derivative: float = 0.0
    back_calculation: float = 1.0
    rate_max: float = 1.0  # of log density, per second
    target: float = 0.9  # cost over its limit


class Pid:
    """State of the loop: the integral, the last output and the last measurement."""

    def __init__(self, options: PidOptions) -> None:
        self.options = options
        self.integral = 0.0
        self.output = 0.0
        self._last: tuple[int, float] | None = None

    def step(self, now_ns: int, load: float, current: float, bounds: tuple[float, float]) -> float:
        """Return the log density wanted; load: log(cost/limit); current, bounds: log densities.

        The first step starts from `current` without a bump.
        """
        options = self.options
        error = math.log(options.target) - load
        if self._last is None or now_ns <= self._last[0]:
            self.output, self.integral = current, current - options.proportional * error
            self._last = now_ns, load
            return current
        seconds = (now_ns - self._last[0]) / 1e9
        slope = (load - self._last[1]) / seconds
        raw = options.proportional * error + self.integral - options.derivative * slope
        reach = options.rate_max * seconds
        slow = min(max(raw, self.output - reach), self.output + reach)
        held = min(max(slow, bounds[0]), bounds[1])
        self.integral += seconds * (options.integral * error + options.back_calculation * (held - raw))
        self.output, self._last = held, (now_ns, load)
        return held
