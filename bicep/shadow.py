"""Shadow evaluations: whether a pruned setting is still as near to the dense net as it was offline.

Some ticks are evaluated a second time off the hot path, dense.  A setting's squared differences, in squared
budgets, are summed one-sidedly (CUSUM, Page 1954): on average each step falls while the root mean square is
inside the budget and rises when it is not.  Above the limit the setting is forbidden; it recovers when a sum
the other way says that it is inside the margin again, and never before its time.  While it is forbidden, the
growth of its error is taken for that of all settings: the next one in line is not tried just to be found bad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_WEIGHT: Final = 0.02  # of one square in the running mean: noise of a few per cent in the growth


class Shadows:
    """One pair of sums per setting; setting 0 is the reference and never judged."""

    def __init__(
        self,
        errors: Sequence[float],
        budget: float,
        margin: float,
        limit: float,
        clip: float,
        recover_ns: int,
    ) -> None:
        count = len(errors)
        self._offline = [error / budget for error in errors]
        self._mean = [square * square for square in self._offline]
        self._budget, self._limit, self._clip, self._recover_ns = budget, limit, clip, recover_ns
        self._inside = (1 + margin * margin) / 2  # squared differences below it speak for recovery
        self._above = [0.0] * count
        self._run = [0] * count  # squares behind `above`
        self._below = [0.0] * count
        self._since: list[int | None] = [None] * count

    def take(self, index: int, difference: float, now_ns: int) -> None:
        """Take one difference (finite) of a setting to the dense net."""
        square = min((difference / self._budget) ** 2, self._clip)
        self._mean[index] += _WEIGHT * (square - self._mean[index])
        since = self._since[index]
        if since is None:
            self._above[index] = max(self._above[index] + square - 1, 0.0)
            self._run[index] = self._run[index] + 1 if self._above[index] > 0 else 0
            if self._above[index] > self._limit:
                self._since[index], self._below[index] = now_ns, 0.0
                self._mean[index] = 1 + self._above[index] / self._run[index]
            return
        self._below[index] = max(self._below[index] + self._inside - square, 0.0)
        if self._below[index] > self._limit / 2 and now_ns - since >= self._recover_ns:
            self._since[index], self._above[index], self._run[index] = None, 0.0, 0

    def is_forbidden(self, index: int) -> bool:
        """Say whether a setting is forbidden."""
        return self._since[index] is not None

    def growth(self) -> float:
        """Return by how much forbidden settings err more than they did offline, at least 1."""
        return max(
            (math.sqrt(self._mean[i]) / self._offline[i] for i in self.forbidden() if self._offline[i] > 0),
            default=1.0,
        )

    def forbidden(self) -> set[int]:
        """Return the forbidden settings."""
        return {index for index, since in enumerate(self._since) if since is not None}
