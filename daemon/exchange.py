"""The paper exchange as a process: the engine on a hot thread, its servers and the FIX acceptor beside it.

The control loop is the main thread: it follows the feed with the shadow book, hands events to the gateway and
reports to the clients, writes status.json, and receives the signals.  SIGTERM or SIGINT ends the session in
order: the flow stops, working orders are cancelled and reported, clients are logged out, the end of the
MoldUDP64 session is announced, and the summary is returned.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from typing import Any, Final

import orjson
import uvloop

from daemon.errors import CommandError
from daemon.exchange_config import ExchangeConfig
from daemon.exchange_fix import Acceptor
from daemon.exchange_system import ExchangeSystem
from daemon.logs import logger
from daemon.progress import showing_compilation
from nimbus.book.snapshot import state_hash
from nimbus.feed.capture import CaptureError
from nimbus.fix.store import StoreError
from nimbus.venue.exchange_loop import STOPPED, run_exchange
from nimbus.venue.ledger import LedgerError
from nimbus.venue.publisher import end_session
from nimbus.venue.snapshot_server import SnapshotServer
from ringbuf.affinity import set_switch_interval, usable_cores
from ringbuf.hot_thread import HotThread

FOREVER: Final = 1 << 62
POLL_S: Final = 0.001
QUIET_TURNS: Final = 20  # turns without pause after the last work: an order's answer comes within them
FOLLOW_BATCH: Final = 16_384
CANCEL_S: Final = 1.0
END_PAUSE_S: Final = 0.01


def warm_up(system: ExchangeSystem) -> None:
    """Load, or the first time compile, every kernel before the first packet."""
    run_exchange(system.exchange, 0)
    end_session(system.publisher.addr, 0)
    system.shadow.warm()
    system.gateway.warm()
    state_hash(system.recorded.state)


class ExchangeProcess:
    """Own one run of the exchange."""

    def __init__(self, config: ExchangeConfig, *, wait_for_session: bool = False) -> None:
        self.config, self.log = config, logger("venue")
        self.system = ExchangeSystem(config)
        self.failure = ""
        self.started_ns = 0
        self._flow_told = False
        try:
            self._build(wait_for_session or config.flow.start == "on_logon")
        except BaseException:
            self.system.close()
            raise

    def _build(self, on_logon: bool) -> None:
        system, run = self.system, self.config.run
        if run.core >= 0 and run.core not in usable_cores():
            msg = f"run.core {run.core}: this process may use {', '.join(map(str, usable_cores()))}"
            raise CommandError(msg)
        warm_up(system)
        self.stop = asyncio.Event()
        self._waits = on_logon
        self.acceptor = Acceptor(self.config, system.gateway, system.folder / "fix", self._on_logon)
        snapshot = self.config.snapshot
        self.snapshots = SnapshotServer(
            system.shadow, system.session, user=snapshot.user, password=snapshot.password
        )
        core = run.core if run.core >= 0 else None
        self.thread = HotThread("venue", self._crank, (), system.loop_addr, core=core, on_error=self._fault)

    def _on_logon(self) -> None:
        if self._waits:
            self._waits = False
            self._start_flow()

    def _start_flow(self) -> None:
        self.system.loop["started"] = 1
        self.log.info("flow_started", source=self.config.flow.source, capture=str(self.system.capture or ""))

    def _crank(self) -> str:
        """Keep the hot thread inside the kernel; it comes out for the next chunk of the file only."""
        source, loop = self.system.source, self.system.loop
        while True:
            if run_exchange(self.system.exchange, FOREVER) == STOPPED:
                return "stopped"
            try:
                if source is None or loop["other_run"] or not source.refill():
                    loop["at_end"] = 1
            except CaptureError as error:
                self.failure = str(error)
                loop["at_end"] = 1

    def _fault(self, name: str, error: BaseException) -> None:
        """Note a programmer's error in the hot thread, which has ended."""
        self.failure = f"hot thread {name}: {error!r}"
        self.log.error("hot_thread_fault", thread=name, error=repr(error))

    # ---------------------------------------------------------------- control loop

    async def main(self) -> dict[str, Any]:
        """Run until SIGTERM, SIGINT or the end of the flow (where so configured); return the summary."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        await self._listen()
        gc.collect()
        gc.freeze()
        self.started_ns = time.time_ns()
        self.thread.start()
        config, system = self.config, self.system
        self.log.info(
            "venue_started", session=system.session, epoch=system.epoch, fix_port=self.acceptor.port,
            snapshot_port=self.snapshots.port, rerequest_port=system.rerequests.port,
            line_a=f"{config.feed.group_a}:{config.feed.port_a}",
            line_b=f"{config.feed.group_b}:{config.feed.port_b}", capture=str(system.capture or ""),
        )  # fmt: skip
        if not self._waits:
            self._start_flow()
        tasks = [asyncio.create_task(work()) for work in (self._poll, self._report)]
        await self.stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await self._end()

    async def _listen(self) -> None:
        for what, server, at in (
            ("snapshot server", self.snapshots, self.config.snapshot),
            ("FIX acceptor", self.acceptor, self.config.fix),
        ):
            try:
                await server.start(at.host, at.port)
            except OSError as error:
                msg = f"{what} {at.host}:{at.port}: {error.strerror or error}"
                raise CommandError(msg) from None

    def _turn(self) -> int:
        """Move what lies between the planes: shadow book, events, reports; return what cannot wait.

        The shadow book can: the flow alone is no reason to turn without pause.
        """
        followed = self.system.shadow.follow(FOLLOW_BATCH)
        done = followed if followed == FOLLOW_BATCH else 0
        done += self.system.gateway.drain()
        return done + self.acceptor.deliver()

    async def _poll(self) -> None:
        """Turn, without pause while there is something to do and shortly after; a failed file is the end."""
        quiet, handled = 0, 0
        while True:
            try:
                done = self._turn() + self.acceptor.handled - handled
                handled = self.acceptor.handled
            except (LedgerError, StoreError) as error:
                self.failure = str(error)
                self.log.error("venue_failed", error=str(error))  # noqa: TRY400  one line, no traceback
                self.stop.set()
                return
            if not self.thread.is_running or self.acceptor.failure:
                self.failure = self.failure or self.acceptor.failure or "the hot thread has ended"
                self.stop.set()
            self._watch_flow()
            quiet = 0 if done else quiet + 1
            await asyncio.sleep(0 if quiet < QUIET_TURNS else POLL_S)

    def _watch_flow(self) -> None:
        loop = self.system.loop
        if self._flow_told or not loop["started"] or not (loop["at_end"] or loop["other_run"]):
            return
        self._flow_told = True
        why = "another session begins in the capture" if loop["other_run"] else "end of capture"
        self.log.info("flow_ended", result=self.failure or why, messages=int(loop["messages"]))
        if self.failure or self.config.flow.at_end == "stop":
            self.stop.set()

    async def _report(self) -> None:
        """Write status.json and tell the progress of the flow, each at its interval."""
        told = time.monotonic()
        while True:
            await asyncio.sleep(self.config.run.status_ms / 1_000)
            self.write_status()
            if time.monotonic() - told >= self.config.run.progress_s:
                told = time.monotonic()
                loop, counts = self.system.loop, self.system.engine.counters()
                self.log.info(
                    "venue_progress", messages=int(loop["messages"]), last_seq=self.system.store.last,
                    market_ns=int(loop["due_ns"]), late_ns_max=int(loop["late_ns_max"]),
                    orders=counts["orders"], fills=counts["fills"],
                )  # fmt: skip

    def write_status(self) -> None:
        """Replace status.json; readers see the old or the new one."""
        path = self.system.folder / "status.json"
        try:
            fresh = path.with_suffix(".new")
            fresh.write_bytes(orjson.dumps(self.status(), option=orjson.OPT_INDENT_2))
            fresh.replace(path)
        except OSError as error:
            self.log.warning("status_not_written", path=str(path), error=error.strerror)

    def status(self) -> dict[str, Any]:
        """Return what the exchange has done so far, as plain values."""
        system = self.system
        engine = system.engine.counters()
        gateway = system.gateway.counts
        return {
            "session": system.session.strip(),
            "epoch": system.epoch,
            "last_seq": system.store.last,
            "packets": system.publisher.counters()["packets"],
            "heartbeats": system.publisher.counters()["heartbeats"],
            "lines": system.lines.counters(),
            "flow_messages": int(system.loop["messages"]),
            "orders": gateway.orders,
            "rejected": gateway.rejected + engine["rejected"],
            "cancels": gateway.cancels,
            "disconnect_cancels": gateway.disconnect_cancels,
            "open_orders": len(system.engine.resting()),
            "fills": engine["fills"],
            "filled_qty": engine["filled_qty"],
            "positions": system.ledger.positions(),
            "engine": engine,
            "rerequests": system.rerequests.counters(),
            "snapshots": dict(self.snapshots.counts),
            "fix": self.acceptor.status(),
        }

    async def _end(self) -> dict[str, Any]:
        """End the session in order; return the summary."""
        system = self.system
        system.loop["started"] = 0
        await self._cancel_orders()
        await self.acceptor.close()
        await self.snapshots.close()
        self.thread.request_stop()
        if not await asyncio.to_thread(self.thread.join, 10.0):
            self.log.error("hot_thread_stuck")
            msg = "the hot thread did not stop: the session is not ended"
            raise CommandError(msg)
        for _ in range(self.config.run.ends):
            end_session(system.publisher.addr, 1)
            await asyncio.sleep(END_PAUSE_S)
        while system.shadow.follow():
            pass
        books, recorded, shadow = (
            f"{value & 0xFFFFFFFFFFFFFFFF:016x}"
            for value in (
                state_hash(system.books.state), state_hash(system.recorded.state), system.shadow.state_hash(),
            )
        )  # fmt: skip
        summary = self.status() | {
            "book_state_hash": books, "recorded_state_hash": recorded, "shadow_state_hash": shadow,
            "elapsed_s": (time.time_ns() - self.started_ns) / 1e9,
        }  # fmt: skip
        self.write_status()
        self.log.info(
            "venue_stopped", last_seq=summary["last_seq"], orders=summary["orders"], fills=summary["fills"],
            book_state_hash=books,
        )  # fmt: skip
        return summary

    async def _cancel_orders(self) -> None:
        """Cancel what still works, and deliver the reports, within CANCEL_S."""
        clients = list(self.acceptor.clients)
        left = sum(self.system.gateway.cancel_all(client) for client in clients)
        deadline = time.monotonic() + CANCEL_S
        try:
            while time.monotonic() < deadline:
                self._turn()
                if left == 0 and not any(self.system.gateway.open_orders(client) for client in clients):
                    return
                await asyncio.sleep(POLL_S)
        except (LedgerError, StoreError) as error:
            self.failure = self.failure or str(error)


def run(config: ExchangeConfig, *, wait_for_session: bool = False) -> dict[str, Any]:
    """Run the exchange until it is told to stop; raises CommandError when anything failed meanwhile."""
    set_switch_interval()
    with showing_compilation():
        process = ExchangeProcess(config, wait_for_session=wait_for_session)
    try:
        summary: dict[str, Any] = uvloop.run(process.main())
    finally:
        process.system.close()
    if process.failure:
        raise CommandError(process.failure)
    return summary
