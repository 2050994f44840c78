"""The journal of one run: its writer on the cold side, and the record that ends it.

Replay and the daemon differ in who turns the crank; what they leave behind is the same.
"""

from __future__ import annotations

import pathlib
from typing import Any, Final

import numpy as np

from daemon.audit import Audit
from daemon.errors import CommandError, writing
from daemon.pipeline import settle
from daemon.system import CONTROL_STREAM, System
from nimbus.book.snapshot import state_hash
from nimbus.journal.segments import JournalError
from nimbus.journal.types import RUN_END, RecordType
from nimbus.journal.writer import JournalWriter, erase
from nimbus.orders.send import cancel_all

JOURNAL_FOLDER: Final = "journal"
SETTLE_STEPS: Final = 8
SETTLE_STEPS_MAX: Final = 8_192  # the largest number of open orders, answered a batch at a time, and more
_BLOCK_RECORDS_PER_MIB: Final = 2  # 128-byte records, 4,096 a block: half a MiB


class RunJournal:
    """Write the streams of a system to `folder`/journal; an earlier journal there is replaced.

    elapsed_s: how long the run took, for the summary.
    """

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
        self.elapsed_s = 0.0

    def arm(self, who: str, why: str) -> None:
        """Arm the system, and journal the limits that hold from the start."""
        self.system.arm(who, why)
        self.audit.look(self.system.now_ns)

    def drain(self) -> None:
        """Move the journal's records to disk, and before them what the control loop has to tell."""
        self.audit.look(self.system.now_ns)
        self.writer.drain()

    @property
    def journal_hash(self) -> str:
        """The chain over the whole journal."""
        return self.writer.journal_hash

    def end(self, now_ns: int) -> None:
        """Write the last record and close the journal; the loops have ended."""
        self.system.orders.refresh_marks()
        self.system.streams[CONTROL_STREAM].append(RecordType.RUN_END, self._run_end(), now_ns)
        self.writer.close()

    def finish(self) -> None:
        """Cancel what works at the paper exchange, let everything under way arrive, end the journal."""
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
        self.end(now_ns)

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
