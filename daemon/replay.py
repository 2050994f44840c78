"""Turn the crank of a system in the placement `inline`: deterministic, from the first packet to the last.

The loop kernel runs until it wants more input or room in the journal; between its calls this module brings
the next chunk, drains the journal and draws the progress.  At the end of the capture working orders are
cancelled and what is under way arrives, so that the journal ends with nothing in the air.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any, Final

import numpy as np

from daemon.audit import Audit
from daemon.errors import CommandError, writing
from daemon.pipeline import NEED_DRAIN, NEED_INPUT, STOPPED, run_inline, settle
from daemon.system import CONTROL_STREAM, System, close_input
from nimbus.book.invariants import FAULTS, check_books
from nimbus.book.snapshot import state_hash
from nimbus.feed.capture import CaptureError
from nimbus.journal.segments import JournalError
from nimbus.journal.types import RUN_END, RecordType
from nimbus.journal.writer import JournalWriter, erase
from nimbus.orders.send import cancel_all
from ringbuf.hot_thread import HotThread

MESSAGES_A_CALL: Final = 1 << 18
SETTLE_STEPS: Final = 8
SETTLE_STEPS_MAX: Final = 8_192  # the largest number of open orders, answered a batch at a time, and more
JOURNAL_FOLDER: Final = "journal"
_BLOCK_RECORDS_PER_MIB: Final = 2  # 128-byte records, 4,096 a block: half a MiB


class Replay:
    """One replay of a system, with its journal in `folder`/journal (an earlier one there is replaced)."""

    def __init__(self, system: System, folder: pathlib.Path) -> None:
        self.system, self.folder = system, folder / JOURNAL_FOLDER
        config = system.config.journal
        try:
            with writing(self.folder):
                if self.folder.is_dir():
                    erase(self.folder)
            self.writer = JournalWriter(
                self.folder,
                system.streams,
                epoch=system.config.epoch,
                blocks=config.segment_mib * _BLOCK_RECORDS_PER_MIB,
                durable=config.durable,
            )
        except JournalError as error:
            raise CommandError(str(error)) from None
        self.audit = Audit(system.orders, system.streams[CONTROL_STREAM])
        system.control["drain_below"] = config.ring_records // 2
        self.elapsed_s = self.loop_s = self.drain_s = 0.0  # all; inside the loop kernel; draining
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

    def arm(self, who: str, why: str) -> None:
        """Arm the system, and journal the limits that hold from the start."""
        self.system.arm(who, why)
        self.audit.look(self.system.now_ns)

    def drain(self) -> None:
        """Move the journal's records to disk, and before them what the control loop has to tell."""
        self.audit.look(self.system.now_ns)
        self.writer.drain()

    def _whole(self, progress: Any) -> None:
        try:
            self._crank(progress)
            if not self.stopped:
                close_input(self.system.market)
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
            if self.stopped or (status == NEED_INPUT and not system.source.refill()):
                return
            assert status in (NEED_INPUT, NEED_DRAIN)

    def _drain(self) -> None:
        """Write the journal; with book.paranoid, check every book first."""
        if self.system.config.book.paranoid and (fault := check_books(self.system.books.state)):
            msg = f"books are not consistent: {FAULTS[fault]}"
            raise CommandError(msg)
        self.drain()

    def finish(self) -> None:
        """Cancel what works, let everything under way arrive, write the last record, close the journal."""
        system = self.system
        latency = system.config.venue.order_latency_us + system.config.venue.report_latency_us
        now_ns, step_ns = system.now_ns, int(latency * 1_000) + 1_000
        for step in range(SETTLE_STEPS_MAX):
            if step >= SETTLE_STEPS and not system.orders.pool.open_count:
                break
            now_ns += step_ns
            if step:  # again: what the rings had no room for before
                cancel_all(system.orders.addr, 0, now_ns)
            settle(system.pipeline, now_ns)
            self.audit.look(now_ns)
            self.writer.drain()
        system.orders.refresh_marks()
        system.streams[CONTROL_STREAM].append(RecordType.RUN_END, self._run_end(), now_ns)
        self.writer.close()

    def _run_end(self) -> Any:
        system, counters = self.system, self.system.orders.counters()
        end = np.zeros(1, RUN_END.dtype)[0]
        end["packets"] = system.feed.counters()["frames"]
        end["messages"] = system.control["heartbeat"]
        end["decisions"] = system.strategy.counters()["decision"]
        end["orders"], end["fills"] = counters["sent"], counters["trades"]
        end["denials"] = counters["denied"]
        end["refused"] = sum(stream.refused for stream in system.streams)
        end["book_state_hash"] = state_hash(system.books.state)
        end["position_hash"] = system.orders.position_hash()
        rows = system.orders.positions(system.books.symbol_text).values()
        end["realized_pnl"] = sum(row["realized_pnl_px4"] for row in rows)
        return end

    @property
    def journal_hash(self) -> str:
        """The chain over the whole journal."""
        return self.writer.journal_hash
