"""The cold side of a live feed: snapshots when they are wanted, sources looked after, alarms told."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from daemon.config import endpoint
from daemon.source_watch import SourceWatch
from daemon.system import System
from daemon.wire_input import WireInput
from nimbus.feed.snapshot_client import LOADED, SnapshotClient, SnapshotEvent, SnapshotServer, warm_rows
from nimbus.messages import HALTED
from nimbus.orders.kill_switch import CONTROL

POLL_S: Final = 0.05
REFRESH_S: Final = 1.0


class FeedWatch:
    """Watch the feed of a live system until cancelled."""

    def __init__(self, system: System, log: Any) -> None:
        assert isinstance(system.source, WireInput)
        assert system.feed.live is not None
        self._system, self._log = system, log
        self._sources, self._live = SourceWatch(system.source, log), system.feed.live
        self._phase, self._conflict = "live", 0
        self._server = endpoint(system.config.feed.snapshot)
        if self._server:
            warm_rows(self._live.ring)

    async def run(self) -> None:
        """Poll what moved; a few words of shared memory each time."""
        fetching = None
        self._sources.begin()
        self._sources.look(time.monotonic_ns())
        if self._server:
            client = SnapshotClient(self._live, SnapshotServer(*self._server), self._tell)
            fetching = asyncio.create_task(client.run())
        refreshed = 0.0
        try:
            while True:
                await asyncio.sleep(POLL_S)
                self._look()
                refreshed += POLL_S
                if refreshed >= REFRESH_S:
                    refreshed = 0.0
                    self._sources.look(time.monotonic_ns())
        finally:
            if fetching:
                fetching.cancel()

    def _tell(self, event: SnapshotEvent) -> None:
        """Log how a try to load a snapshot ended."""
        if event.kind == LOADED:
            self._log.info("snapshot_loaded", messages=event.messages, next_seq=event.number)
        else:
            self._log.warning("snapshot_failed", reason=event.reason)

    def _look(self) -> None:
        """Tell what is being done about gaps; halt when the lines contradict each other."""
        phase, conflict = self._live.phase, self._live.conflict_seq
        if phase != self._phase:
            self._log.info("feed_phase", phase=phase, missing=self._live.missing_now())
            self._phase = phase
        if conflict and conflict != self._conflict:
            self._conflict = conflict
            self._system.orders.kill_switch.set(CONTROL, HALTED)
            self._log.error("feed_conflict", seq=conflict)
