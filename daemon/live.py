"""The daemon: the pipeline on a pinned hot thread, the control loop beside it.

The hot thread plays the configured capture at recorded speed through the same loop kernel as a replay.  The
control loop is the main thread: it drains the journal, answers the admin endpoint, watches the heartbeat and
receives the signals.  When the capture has ended the endpoint stays up until SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import gc
import pathlib
import signal
import time
from typing import Any, Final

import uvloop
from aiohttp import web

from daemon.admin.app import build
from daemon.admin.fills import RecentFills
from daemon.admin.views import SystemViews
from daemon.config import Config
from daemon.errors import CommandError, output_folder
from daemon.logs import logger
from daemon.outcome import write
from daemon.pipeline import NEED_INPUT, STOPPED, run_inline
from daemon.progress import showing_compilation
from daemon.replay import Replay
from daemon.start_up import masked, terminable
from daemon.system import System, close_input, segment_size
from daemon.warm import warm_up
from daemon.wind_down import cancel_working
from nimbus.feed.capture import CaptureError
from nimbus.journal.segments import JournalError
from nimbus.messages import HALTED, LAYOUT_VERSION
from nimbus.orders.kill_switch import CONTROL, JOURNAL
from ringbuf.affinity import set_switch_interval, usable_cores
from ringbuf.hot_thread import HotThread
from ringbuf.segment import Segment, SegmentError, remove_orphans

SEGMENT_NAME: Final = "contrafusion-{epoch}"
FOREVER: Final = 1 << 62


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
    """Own one run: segment, system, hot thread, endpoint."""

    def __init__(self, config: Config, capture: pathlib.Path) -> None:
        self.config, self.log = config, logger("control")
        self.folder = output_folder(pathlib.Path(config.run.folder))
        core = config.run.core if config.run.core >= 0 else usable_cores()[-1]
        if core not in usable_cores():
            msg = f"run.core {core}: this process may use {', '.join(map(str, usable_cores()))}"
            raise CommandError(msg)
        with masked() as unmask:
            self.segment = create_segment(config)
            try:
                unmask()
                self._build(capture, core)
            except BaseException:
                self.segment.unlink()
                raise

    def _build(self, capture: pathlib.Path, core: int) -> None:
        config = self.config
        self.system = System(config, capture, segment=self.segment)
        self.system.control["pace"] = 1.0 / config.feed.speed
        warm_up(self.system.pipeline)
        self.replay = Replay(self.system, self.folder)
        self.system.control["depths"] = 1
        self.system.control["drain_below"] = 0  # the control loop drains: the hot thread stays inside
        stop = self.system.control_addr
        self.thread = HotThread("market", self._crank, (), stop, core=core, on_error=self._fault)
        fills = RecentFills()
        self.replay.writer.listener = fills.take
        self.views = SystemViews(self.system, self.thread, fills)
        self.ended = asyncio.Event()
        self.failure = ""  # why the run is not a success: its exit code is 1

    def _crank(self) -> str:
        """Keep the hot thread inside the kernel; it comes out for the next chunk of the file only."""
        at_end = False
        while True:
            status = run_inline(self.system.pipeline, FOREVER)
            try:
                if status == STOPPED:
                    return "stopped"
                if status == NEED_INPUT and not self.system.source.refill():
                    if at_end:
                        return "end of capture"
                    close_input(self.system.market)
                    at_end = True
            except CaptureError as error:
                self.failure = str(error)
                return "capture at fault"

    def _fault(self, name: str, error: BaseException) -> None:
        """Halt: a programmer's error in the hot thread, which has ended."""
        self.failure = f"hot thread {name}: {error!r}"
        self.system.orders.kill_switch.set(CONTROL, HALTED)
        self.log.error("hot_thread_fault", thread=name, error=repr(error))

    async def _drain(self) -> None:
        """Write the journal every few ms; the first error halts trading and is final."""
        while True:
            await asyncio.sleep(self.config.run.drain_ms / 1_000)
            try:
                self.replay.drain()
            except JournalError as error:
                self.failure = str(error)
                self.system.orders.kill_switch.set(JOURNAL, HALTED)
                self.log.error("journal_failed", error=str(error))  # noqa: TRY400  one line, no traceback
                await self._wind_down()
                return
            if not self.thread.is_running and not self.ended.is_set():
                if self.thread.error is not None:
                    await self._wind_down()
                self.log.info("capture_ended", result=self.failure or str(self.thread.result))
                self.ended.set()

    async def _wind_down(self) -> None:
        """Stop the hot thread, if it still runs, and cancel what works: trading is HALTED for good."""
        self.thread.request_stop()
        if await asyncio.to_thread(self.thread.join, 10.0):
            open_before = self.system.orders.pool.open_count
            left = cancel_working(self.system)
            self.log.warning("orders_cancelled", cancelled=open_before - left, left=left)

    async def main(self) -> None:
        """Run until SIGTERM or SIGINT."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        runner = web.AppRunner(build(self.views), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, self.config.admin.host, self.config.admin.port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            at = f"{self.config.admin.host}:{self.config.admin.port}"
            msg = f"admin endpoint {at}: {error.strerror or error}"
            raise CommandError(msg) from None
        self.replay.arm("run", "the paper venue is armed at start")
        gc.collect()
        gc.freeze()
        self.thread.start()
        started = time.perf_counter()
        self.log.info("started", admin=runner.addresses[0], core=self.thread.core, epoch=self.config.epoch,
                      model=self.system.model.id, capture=str(self.system.capture))  # fmt: skip
        drain = asyncio.create_task(self._drain())
        await stop.wait()
        drain.cancel()
        await runner.cleanup()
        self._stop(time.perf_counter() - started)

    def _stop(self, elapsed_s: float) -> None:
        """Stop the hot thread, cancel what works, close the journal, write the results."""
        self.thread.request_stop()
        if not self.thread.join(10.0):
            self.failure = "the hot thread did not stop: no results were written"
            self.log.error("hot_thread_stuck")
            return
        self.replay.elapsed_s = elapsed_s
        try:
            self.replay.finish()
            summary = write(self.replay, self.folder)
        except (JournalError, CommandError) as error:
            self.failure = self.failure or str(error)
            return
        self.log.info("stopped", orders=summary["orders"], fills=summary["fills"],
                      journal_hash=summary["journal_hash"], folder=str(self.folder))  # fmt: skip

    def close(self) -> None:
        """Close the capture and remove the shared segment."""
        self.system.close()
        self.segment.unlink()


def run(config: Config, capture: pathlib.Path) -> None:
    """Run the daemon until it is told to stop; raises CommandError when anything failed meanwhile."""
    set_switch_interval()
    with terminable() as check:
        with showing_compilation():
            daemon: Any = Daemon(config, capture)
        try:
            check()
            uvloop.run(daemon.main())
        finally:
            daemon.close()
    if daemon.failure:
        raise CommandError(daemon.failure)
