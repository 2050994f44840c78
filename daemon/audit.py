"""What the control loop journals as it comes: each set of limits in force, each alarm that first rises."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from nimbus.journal.log import Stream
from nimbus.journal.types import ALARM, RecordType
from nimbus.orders.agent import Orders
from nimbus.orders.state import ALARM_TEXTS, ALARMS

LEVEL_ALARM: Final = 2


class Audit:
    """Looks at one orders agent and writes to the control stream; `look` belongs before each drain.

    A record that the ring has no room for is tried again at the next look.
    """

    def __init__(self, orders: Orders, stream: Stream) -> None:
        self._orders, self._stream = orders, stream
        self._limits_version = 0
        self._risen: set[str] = set()

    def look(self, now_ns: int) -> None:
        """Journal what is new since the last look."""
        limits = self._orders.limits
        if limits.version != self._limits_version and self._stream.append(
            RecordType.LIMITS, limits.raw(), now_ns
        ):
            self._limits_version = limits.version
        for name, value in self._orders.alarms().items():
            if name not in self._risen and self._stream.append(RecordType.ALARM, _alarm(name, value), now_ns):
                self._risen.add(name)


def _alarm(name: str, value: int) -> Any:
    record = np.zeros(1, ALARM.dtype)[0]
    record["value"], record["code"], record["level"] = value, 1 + ALARMS.index(name), LEVEL_ALARM
    record["text"] = ALARM_TEXTS[name].encode("ascii")
    return record
