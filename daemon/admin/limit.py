"""The rate limit of the admin endpoint: a token bucket, and what it has let through and refused.

One bucket for all clients: without authentication they are all the same principal, this machine.  A refusal
costs the control loop no look at the system, so a client that asks too much slows only itself and the others.
"""

from __future__ import annotations

from typing import Final

NS_PER_S: Final = 1_000_000_000


class TokenBucket:
    """Let `per_s` requests a second through, and as many at once after a second of silence.

    Times are nanoseconds of any clock that does not go back; everything is whole numbers.
    """

    def __init__(self, per_s: int) -> None:
        self._cost_ns = NS_PER_S // per_s
        self._full_at_ns = 0  # when every token is back
        self.answered = self.limited = 0

    def take(self, now_ns: int) -> int:
        """Take a token: return 0, or the nanoseconds until there is one (counted, and nothing taken)."""
        full_at_ns = max(self._full_at_ns, now_ns) + self._cost_ns
        if full_at_ns - now_ns > NS_PER_S:
            self.limited += 1
            return full_at_ns - now_ns - NS_PER_S
        self._full_at_ns = full_at_ns
        self.answered += 1
        return 0
