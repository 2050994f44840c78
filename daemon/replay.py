"""Turn the crank of a system in the placement `inline`: deterministic, from the first packet to the last.

The loop kernel runs until it wants more input or room in the journal; between its calls this module brings
the next chunk, drains the journal and draws the progress.  At the end of the capture working orders are
cancelled and what is under way arrives, so that the journal ends with nothing in the air.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any, Final

from daemon.errors import CommandError
from daemon.pipeline import NEED_DRAIN, NEED_INPUT, STOPPED, run_inline
from daemon.run_journal import RunJournal
from daemon.system import System, close_input
from nimbus.book.invariants import FAULTS, check_books
from nimbus.feed.capture import CaptureError
from nimbus.journal.segments import JournalError
from ringbuf.hot_thread import HotThread

MESSAGES_A_CALL: Final = 1 << 18
SETTLE_STEPS: Final = 8
SETTLE_STEPS_MAX: Final = 8_192  # the largest number of open orders, answered a batch at a time, and more


class Replay(RunJournal):
    """One replay of a system, with its journal in `folder`/journal (an earlier one there is replaced)."""

    def __init__(self, system: System, folder: pathlib.Path) -> None:
        super().__init__(system, folder)
        system.control["drain_below"] = system.config.journal.ring_records // 2
        self.loop_s = self.drain_s = 0.0  # inside the loop kernel; draining
        self.loop_cpu_s = 0.0  # of loop_s, what this thread had of the core
        self.stopped = False

    def run(self, progress: Any = None) -> None:
        """Run to the end of the capture; progress.update(n) is called with the messages handled.

        The crank is turned by a thread, since a kernel that waits for the recorded time hears no signal: an
        interrupt sets the stop word, the journal is ended in good order, and KeyboardInterrupt goes on.
        """
        self.arm("replay", "a replay arms the paper venue by itself")
        started = time.perf_counter()
        thread = HotThread("replay", self._whole, (progress,), self.system.control_addr)
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            thread.request_stop()
            thread.join()
            raise
        if isinstance(thread.error, CaptureError | JournalError):
            raise CommandError(str(thread.error)) from None
        if thread.error is not None:
            raise thread.error
        self.elapsed_s = time.perf_counter() - started

    def _whole(self, progress: Any) -> None:
        try:
            self._crank(progress)
            while not self.stopped and close_input(self.system.market):
                self._crank(progress)
        finally:  # also when the capture turns out damaged: the journal ends in good order
            self.finish()

    def _crank(self, progress: Any) -> None:
        """Run until the input is used up, or the stop word is set."""
        system = self.system
        done = int(system.control["heartbeat"])
        while True:
            began, cpu = time.perf_counter(), time.thread_time()
            status = run_inline(system.pipeline, MESSAGES_A_CALL)
            self.loop_cpu_s += time.thread_time() - cpu
            returned = time.perf_counter()
            if status != NEED_INPUT:  # a chunk's edge must not show in the journal's order
                self._drain()
            self.loop_s += returned - began
            self.drain_s += time.perf_counter() - returned
            if progress is not None:
                progress.update(int(system.control["heartbeat"]) - done)
                done = int(system.control["heartbeat"])
            self.stopped = status == STOPPED
            if self.stopped or (status == NEED_INPUT and not system.refill()):
                return
            assert status in (NEED_INPUT, NEED_DRAIN)

    def _drain(self) -> None:
        """Write the journal; with book.paranoid, check every book first."""
        if self.system.config.book.paranoid and (fault := check_books(self.system.books.state)):
            msg = f"books are not consistent: {FAULTS[fault]}"
            raise CommandError(msg)
        self.drain()
