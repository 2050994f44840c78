"""The cold side of the packet sources: what the machine refused them, what they lost, how a bridge does."""

from __future__ import annotations

from typing import Any, Final

from daemon.wire_input import WireInput

_WELL: Final = {"starting", "polling"}
_NS_PER_MS: Final = 1_000_000


class SourceWatch:
    """Log what becomes of the sources, each thing once; belongs to the control loop."""

    def __init__(self, source: WireInput, log: Any) -> None:
        self._source, self._log = source, log
        self._lost = 0
        self._bridge = ("", 0)  # state and generation
        self._trouble = ""

    def begin(self) -> None:
        """Tell what the machine refused at the opening."""
        for remark in self._source.remarks:
            self._log.warning("source_remark", remark=remark)

    def look(self, now_ns: int) -> None:
        """Read the counters, which also binds a source again to an interface that came back, and the bridge.

        now_ns: CLOCK_MONOTONIC.
        """
        lost = sum(n for name, n in self._source.counters().items() if name.endswith(".dropped"))
        if lost > self._lost:
            self._log.warning("packets_dropped", count=lost - self._lost, total=lost)
            self._lost = lost
        bridge = self._source.bridge
        if bridge is None:
            return
        status, trouble = bridge.status(now_ns), bridge.trouble
        if (status.state, status.generation) != self._bridge:
            self._bridge = (status.state, status.generation)
            fields = {
                "state": status.state, "pid": status.pid, "generation": status.generation,
                "silent_ms": status.silent_ns // _NS_PER_MS,
            }  # fmt: skip
            if status.state in _WELL:
                self._log.info("bridge_status", **fields)
            else:
                self._log.warning("bridge_status", **fields)
        if trouble and trouble != self._trouble:
            self._log.warning("bridge_trouble", reason=trouble)
        self._trouble = trouble
