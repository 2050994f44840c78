"""The daemon: the pipeline on pinned hot threads, the control loop beside it.

A capture is played at recorded speed by the loop kernel of a replay (placement `inline`); live sources are
read by the loops of loops.py.  The control loop is the main thread: it drains the journal, keeps the FIX
session, answers the admin endpoint, watches the heartbeats and receives the signals.  It runs until SIGTERM
or SIGINT: then new orders are blocked, what works is cancelled, the session ends with a Logout, the journal
is closed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import time
from typing import Any, Final

import uvloop
from aiohttp import web

from daemon.admin.app import build
from daemon.admin.auth import Operator
from daemon.admin.fills import RecentFills
from daemon.admin.views import SystemViews
from daemon.config import Config
from daemon.errors import CommandError, output_folder, writing
from daemon.feed_watch import FeedWatch
from daemon.fix_session import FixSession
from daemon.logs import logger
from daemon.outcome import write
from daemon.pipeline import settle
from daemon.player import create_player
from daemon.progress import showing_compilation
from daemon.run_journal import RunJournal
from daemon.rung_control import RungControl, measured_costs
from daemon.rungs import as_text
from daemon.start_up import masked, terminable
from daemon.system import System, segment_size
from daemon.systemd import Notifier
from daemon.threads import HotLoop, create_loops, keep_off
from daemon.understudy import Understudy
from daemon.warm import warm_up
from daemon.wind_down import cancel_at_venue, cancel_working
from daemon.wire_input import WireInput
from nimbus.feed.kinds import SourceError
from nimbus.feed.recorder import Recorder
from nimbus.journal.segments import JournalError
from nimbus.messages import DISARMED, HALTED, LAYOUT_VERSION
from nimbus.orders.kill_switch import CONTROL, JOURNAL, OPERATOR
from ringbuf.affinity import set_switch_interval, try_lock_memory
from ringbuf.agent import clear_stop, request_stop
from ringbuf.jit import on_compiled
from ringbuf.segment import Segment, SegmentError, remove_orphans

SEGMENT_NAME: Final = "contrafusion-{epoch}"
PACKETS: Final = "packets"  # the recording is FOLDER/packets-NUMBER.pcapng
JOIN_S: Final = 10.0
COMPILE_S: Final = 60.0  # what one kernel may take: the service manager waits so much longer
RECALIBRATE_S: Final = 1.0
_MS: Final = 1e-3


def create_segment(config: Config) -> Segment:
    """Create the shared segment of this run, after removing those of dead owners."""
    folder = pathlib.Path(config.segment_directory)
    try:
        for path in remove_orphans(folder):
            logger("control").warning("orphan_removed", path=str(path))
        path = folder / SEGMENT_NAME.format(epoch=config.epoch)
        return Segment.create(path, segment_size(config), config.epoch, layout_version=LAYOUT_VERSION)
    except (SegmentError, OSError) as error:
        raise CommandError(str(error)) from None


class Daemon:
    """Own one run: segment, system, hot threads, session, endpoint."""

    def __init__(self, config: Config, capture: pathlib.Path | None, notifier: Notifier) -> None:
        self.config, self.log, self.notifier = config, logger("control"), notifier
        self.folder = output_folder(pathlib.Path(config.run.folder))
        self.failure = ""  # why the run is not a success: its exit code is 1
        with masked() as unmask:
            self.segment = create_segment(config)
            try:
                unmask()
                self._build(capture)
            except BaseException:
                self.segment.unlink()
                raise

    def _build(self, capture: pathlib.Path | None) -> None:
        config = self.config
        self.system = System(config, capture, segment=self.segment, is_live=True)
        adapts = self.system.rungs.is_adaptive
        self.rungs = RungControl(self.system, self.log, measured_costs(self.system)) if adapts else None
        self.stop_word = self.system.control_addr
        self.system.control["depths"] = 1
        if capture is not None:
            warm_up(self.system.pipeline)
        else:
            settle(self.system.pipeline, 0)  # compiled now; used when a loop has ended before its time
        self.journal = RunJournal(self.system, self.folder)
        self.system.control["drain_below"] = 0  # the control loop drains: the hot threads stay inside
        self.understudy: Understudy | None = None
        self.loops = self._loops(capture)
        fills = RecentFills()
        self.journal.writer.listener = fills.take
        self.views = SystemViews(self.system, self.loops, fills, self.rungs)
        self.operator = Operator(self.rungs, self.folder) if self.rungs else None
        self.session = FixSession(self.system, self.folder, self.log) if self.system.transport else None
        self.watch = FeedWatch(self.system, self.log) if capture is None else None
        self.recorder = self._recorder()
        self.ended = asyncio.Event()

    def _loops(self, capture: pathlib.Path | None) -> list[HotLoop]:
        config, segment, pipeline = self.config.run, self.segment, self.system.pipeline
        if capture is not None:
            self.system.control["pace"] = 1.0 / self.config.feed.speed
            return [create_player(self.system, config, self._damage, self._fault)]
        placement = "compact" if config.placement == "auto" else config.placement
        request_stop(self.stop_word)
        if config.rehearse and placement == "compact" and self.system.model.answers:
            self.understudy = Understudy(self.config.orders.timestamp_digits, self.system.model)
        rehearsal = self.understudy.rehearsal if self.understudy else None
        loops = create_loops(segment, pipeline, config, placement, self._fault, rehearsal=rehearsal)
        clear_stop(self.stop_word)
        self.system.control["clock"] = loops[0].clock.addr
        self.system.strategy.head["clock"] = loops[len(loops) // 2].clock.addr
        if self.system.transport is not None:
            self.system.transport.time_sends(loops[-1].clock.addr)
        return loops

    def _recorder(self) -> Recorder | None:
        """Begin to record the packets of a live session beside its journal, if that is wanted."""
        feed, source = self.config.feed, self.system.source
        if not feed.record or not isinstance(source, WireInput):
            return None
        try:
            with writing(self.folder):
                for old in self.folder.glob(f"{PACKETS}-*.pcapng"):
                    old.unlink()
                return Recorder(self.segment, feed.interface, self.folder, source.recorded, prefix=PACKETS)
        except SourceError as error:
            raise CommandError(str(error)) from None

    def _end_recording(self) -> None:
        """Close the recording; what it lost is told, and is no loss of the session."""
        if self.recorder is None:
            return
        self.recorder.close()
        counts = self.recorder.counters()
        self.log.info("recorded", **counts)
        if self.recorder.error or counts["dropped"]:
            self.log.warning("recording_incomplete", reason=self.recorder.error, dropped=counts["dropped"])

    def _damage(self, reason: str) -> None:
        self.failure = reason

    def _fault(self, name: str, error: BaseException) -> None:
        """Halt: a programmer's error in a hot thread, which has ended."""
        self.failure = f"hot thread {name}: {error!r}"
        self.system.orders.kill_switch.set(CONTROL, HALTED)
        self.log.error("hot_thread_fault", thread=name, error=repr(error))

    async def _drain(self) -> None:
        """Write the journal every few ms; the first error halts trading and is final."""
        while True:
            await asyncio.sleep(self.config.run.drain_ms * _MS)
            self.notifier.status(self.system.orders.kill_switch.state)
            self.notifier.watch(time.monotonic_ns(), self._pulses())
            try:
                self.journal.drain()
            except JournalError as error:
                self.failure = str(error)
                self.system.orders.kill_switch.set(JOURNAL, HALTED)
                self.log.error("journal_failed", error=str(error))  # noqa: TRY400  one line, no traceback
                if self.system.capture is not None:  # live loops cancel by themselves
                    await self._wind_down()
                return
            ended = [loop.thread for loop in self.loops if not loop.thread.is_running]
            if ended and not self.ended.is_set():
                if any(thread.error is not None for thread in ended):
                    await self._wind_down()
                self.log.info("capture_ended", result=self.failure or str(ended[0].result))
                self.ended.set()

    def _pulses(self) -> dict[str, int]:
        """Return the pulse of each hot loop that runs: the watchdog is fed while all of them beat."""
        return {loop.name: loop.pulse() for loop in self.loops if loop.thread.is_running}

    async def _wind_down(self) -> None:
        """Stop the hot threads, if any still runs, and cancel what works: trading is HALTED for good."""
        request_stop(self.stop_word)
        joined = [await asyncio.to_thread(loop.thread.join, JOIN_S) for loop in self.loops]
        if all(joined):
            open_before = self.system.orders.pool.open_count
            if self.system.venue:
                left = cancel_working(self.system)
            else:
                left = await cancel_at_venue(self.system, self.config.run.cancel_wait_ms * _MS)
            self.log.warning("orders_cancelled", cancelled=open_before - left, left=left)

    async def _recalibrate(self) -> None:
        """Keep the loops' clocks true."""
        while True:
            await asyncio.sleep(RECALIBRATE_S)
            for loop in self.loops:
                loop.clock.recalibrate()

    async def _serve(self) -> web.AppRunner:
        app = build(self.views, self.config.admin.requests_per_s, self.operator)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.config.admin.host, self.config.admin.port).start()
        except OSError as error:
            await runner.cleanup()
            at = f"{self.config.admin.host}:{self.config.admin.port}"
            msg = f"admin endpoint {at}: {error.strerror or error}"
            raise CommandError(msg) from None
        return runner

    def _start_loops(self) -> None:
        """Arm the paper venue, freeze what Python holds, let the hot threads go."""
        config = self.config
        if config.venue.kind == "paper" or config.venue.is_paper:
            self.journal.arm("run", "the paper venue is armed at start")
        else:
            self.system.announce()
        if config.run.lock_memory:
            for refused in filter(None, (self.segment.populate(), try_lock_memory())):
                self.log.warning("memory_not_locked", reason=refused)
        gc.collect()
        gc.freeze()
        keep_off({loop.core for loop in self.loops})
        for loop in self.loops:
            loop.thread.start()
            for remark in loop.thread.remarks:
                self.log.warning("thread_remark", thread=loop.name, remark=remark)

    async def main(self) -> None:
        """Run until SIGTERM or SIGINT."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        runner = await self._serve()
        self._start_loops()
        started = time.perf_counter()
        self.log.info("started", admin=runner.addresses[0], cores=[hot.core for hot in self.loops],
                      epoch=self.config.epoch, model=self.system.model.id, source=self.config.feed.source,
                      capture=str(self.system.capture or ""))  # fmt: skip
        tasks = [asyncio.create_task(self._drain()), asyncio.create_task(self._recalibrate())]
        if self.rungs:
            tasks.append(asyncio.create_task(self.rungs.run()))
        if self.watch:
            tasks.append(asyncio.create_task(self.watch.run()))
        if self.session:
            self.session.start()
        if self.notifier.trouble:
            self.log.warning("notifier_trouble", reason=self.notifier.trouble)
        self.notifier.ready(self.system.orders.kill_switch.state)
        await stop.wait()
        self.notifier.stopping()
        self.system.orders.kill_switch.set(OPERATOR, DISARMED)  # the orders loop cancels what works
        if self.session:
            await self.session.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        self._stop(time.perf_counter() - started)

    def _stop(self, elapsed_s: float) -> None:
        """Stop the hot threads, close the journal, write the results."""
        request_stop(self.stop_word)
        self._end_recording()
        if not all(hot.thread.join(JOIN_S) for hot in self.loops):
            self.failure = "a hot thread did not stop: no results were written"
            self.log.error("hot_thread_stuck")
            return
        self.journal.elapsed_s = elapsed_s
        try:
            if self.session:
                self.journal.end(self.system.now_ns)
            else:
                self.journal.finish()
            summary = write(self.journal, self.folder)
        except (JournalError, CommandError) as error:
            self.failure = self.failure or str(error)
            return
        self.log.info("stopped", orders=summary["orders"], fills=summary["fills"],
                      rungs=as_text(summary["rungs"]),
                      journal_hash=summary["journal_hash"], folder=str(self.folder))  # fmt: skip

    def close(self) -> None:
        """Close session and sources, remove the shared segment and the token."""
        if self.operator:
            self.operator.close()
        if self.session:
            self.session.close()
        self.system.close()
        self.segment.unlink()


def run(config: Config, capture: pathlib.Path | None) -> None:
    """Run the daemon until it is told to stop; raises CommandError when anything failed meanwhile."""
    set_switch_interval()
    notifier = Notifier.from_environment(os.environ)
    with terminable() as check:
        with showing_compilation(), on_compiled(lambda _name: notifier.extend(COMPILE_S)):
            daemon: Any = Daemon(config, capture, notifier)
        try:
            check()
            uvloop.run(daemon.main())
        finally:
            daemon.close()
    if daemon.failure:
        raise CommandError(daemon.failure)
