"""The FIX session of the daemon on the control loop: the initiator, what it says to the log, how it ends."""

from __future__ import annotations

import asyncio
import pathlib
import time
from typing import Any, Final

from daemon.errors import CommandError
from daemon.system import System
from nimbus.fix.engine import Kind, Notice
from nimbus.fix.initiator import Initiator, Venue
from nimbus.fix.numbers import FileNumbers
from nimbus.fix.store import StoreError
from nimbus.messages import HALTED
from nimbus.orders.kill_switch import CONTROL

NUMBERS_FILE: Final = "fix_numbers"
POLL_S: Final = 0.002
LOGOUT_S: Final = 15.0
_WARNINGS: Final = frozenset({
    Kind.REFUSED, Kind.HELD, Kind.GAP, Kind.TIMED_OUT, Kind.LOST, Kind.OVERSIZED, Kind.UNREACHABLE,
    Kind.IN_DOUBT, Kind.REJECT_SENT, Kind.VIOLATION,
})  # fmt: skip


class FixSession:
    """Keep the session of a system up from `start` to `stop`; raises CommandError for a damaged store."""

    def __init__(self, system: System, folder: pathlib.Path, log: Any) -> None:
        self._system, self._log = system, log
        config = system.config.venue
        self._wait_s = system.config.run.cancel_wait_ms / 1_000
        try:
            self._numbers = FileNumbers(folder / NUMBERS_FILE)
            assert system.transport is not None
            self._initiator = Initiator(
                system.transport,
                system.orders,
                Venue(config.host, config.port),
                self._numbers,
                tell=self._tell,
            )
        except StoreError as error:
            raise CommandError(str(error)) from None
        self._task: asyncio.Task[None] | None = None

    def _tell(self, notice: Notice) -> None:
        """Log what happened; a fault of our side halts trading."""
        if notice.kind is Kind.FAULT:
            self._system.orders.kill_switch.set(CONTROL, HALTED)
            self._log.error(notice.kind.value, text=notice.text)
        elif notice.kind in _WARNINGS:
            self._log.warning(notice.kind.value, text=notice.text)
        else:
            self._log.info(notice.kind.value, text=notice.text)

    def start(self) -> None:
        """Connect and log on, again and again, until stop()."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._initiator.run()
        except StoreError as error:
            self._tell(Notice(Kind.FAULT, str(error)))

    async def stop(self) -> None:
        """Wait for the cancels of what works, log out; both bounded.  New orders are blocked already."""
        until = time.monotonic() + self._wait_s
        while time.monotonic() < until:
            if not self._system.orders.pool.open_count:
                break
            await asyncio.sleep(POLL_S)
        if self._system.orders.pool.open_count:
            self._log.warning("orders_left_open", count=int(self._system.orders.pool.open_count))
        self._initiator.stop()
        if self._task:
            await asyncio.wait({self._task}, timeout=LOGOUT_S)
            self._task.cancel()

    def close(self) -> None:
        """Close socket and store; the orders loop has ended."""
        self._initiator.close()
        self._numbers.close()
