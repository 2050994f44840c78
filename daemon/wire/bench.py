"""`contrafusion bench wire`: tick-to-trade seen from the venue's end of the wire, and its floor.

Three runs over the same wire, with the same flow at the same rate: the echo (a packet in, a fixed order out),
the daemon with a fixed rule as its model, the daemon with the plan of 32 samples.  The tap stands at the
venue in all three; the ratios are of this one session.  Not in the figures: card, PCIe, switch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from daemon.config import Config
from daemon.errors import CommandError
from daemon.exchange_config import ExchangeConfig
from daemon.namespaces import VethPair
from daemon.wire.pair import (
    DAEMON,
    START_S,
    STOP_S,
    VENUE,
    daemon_config,
    start_daemon,
    start_venue,
    venue_config,
)
from ringbuf.affinity import usable_cores

SINK_PORT: Final = 26_499
SHARES: Final = (50.0, 90.0, 99.0, 99.9, 100.0)
ECHO_EVERY: Final = 10
# A strategy that is eager: the benchmark wants orders, not a profit.
EAGER: Final = {
    "strategy.margin_bp": 0.0, "strategy.fee_bp": 0.0, "strategy.agreement_min": 0.5,
    "strategy.cooldown_ms": 0, "strategy.risk_aversion": 0.01, "strategy.hold_max_s": 1.0,
    "strategy.working_max_s": 0.05, "risk.orders_per_s": 100_000, "risk.orders_burst": 100_000,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """What is measured: the rate of the flow, how long each run lasts, where its files go."""

    folder: pathlib.Path
    packets_per_s: int = 2_000
    seconds: float = 20.0
    symbols: int = 16
    book: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "book.symbols_max": 1_024, "book.live_orders_max": 262_144, "book.levels_max": 65_536,
            "orders.day_orders_max": 262_144,
        }
    )  # fmt: skip

    def venue(self, pair: VethPair, start: str) -> ExchangeConfig:
        """Return the venue's configuration; its flow lasts longer than the run."""
        messages = int(self.packets_per_s * (self.seconds + 10.0)) * 2
        return venue_config(pair, self.folder, {
            "flow.pace": "packets", "flow.packets_per_s": self.packets_per_s, "flow.start": start,
            "generator.messages": messages, "generator.symbols": self.symbols, "feed.group_b": "",
            "feed.messages_max": 1,
        })  # fmt: skip


@contextlib.contextmanager
def huge_memory(folder: pathlib.Path) -> Iterator[str]:
    """Mount memory in huge pages for the block and yield its folder, "" where the machine gives none."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "huge=within_size,mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)  # noqa: S603  a fixed program
    try:
        yield "" if done.returncode else str(folder)
    finally:
        if not done.returncode:
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)  # noqa: S603, S607


@contextlib.contextmanager
def helper(pair: VethPair, side: int, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of this package's processes; wait until it says that it is ready, end it with SIGTERM."""
    process = pair.start(side, [sys.executable, "-m", *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            msg = f"{command[0]} did not start"
            raise CommandError(msg)
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_S)


@contextlib.contextmanager
def tapped(
    pair: VethPair, folder: pathlib.Path, market_port: int, order_port: int
) -> Iterator[dict[str, Any]]:
    """Tap the wire inside the block; what was seen is in the dictionary afterwards."""
    out, seen = folder / "tap.json", dict[str, Any]()
    arguments = (pair.interfaces[VENUE], str(market_port), str(order_port), str(out))
    with helper(pair, VENUE, "daemon.wire.tap", *arguments):
        yield seen
    seen |= json.loads(out.read_bytes())


def row_of(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one run: percentiles in ns, and what must be zero."""
    ticks = np.asarray(seen["ticks_ns"], np.int64)
    if not len(ticks):
        msg = f"the tap saw no order ({seen['packets']} packets, {seen['unmatched']} orders without a cause)"
        raise CommandError(msg)
    names = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")
    values = np.percentile(ticks, SHARES, method="inverted_cdf")
    return dict(zip(names, map(int, values), strict=True)) | {
        "orders": seen["orders"], "packets": seen["packets"], "unmatched": seen["unmatched"],
        "dropped_by_tap": seen["dropped"], "ticks_ns": sorted(map(int, ticks)),
    }  # fmt: skip


def measure_echo(session: Session) -> dict[str, Any]:
    """Measure the floor."""
    with VethPair() as pair:
        config = session.venue(pair, "at_once")
        line, sink = f"{config.feed.group_a}:{config.feed.port_a}", f"{pair.addresses[VENUE]}:{SINK_PORT}"
        core = str(usable_cores()[-1])
        with helper(pair, VENUE, "daemon.wire.sink", pair.addresses[VENUE], str(SINK_PORT)):
            arguments = (pair.interfaces[DAEMON], line, sink, str(ECHO_EVERY), core)
            with (
                helper(pair, DAEMON, "daemon.wire.echo", *arguments),
                tapped(pair, session.folder, config.feed.port_a, SINK_PORT) as seen,
            ):
                venue = start_venue(pair, session.folder, config)
                try:
                    venue.wait_for("flow_started", START_S)
                    time.sleep(session.seconds)
                finally:
                    venue.stop()
    return row_of(seen)


def measure_daemon(session: Session, model: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the daemon with a model; its own stages stand beside what the tap saw."""
    changes = EAGER | dict(session.book) | {"model.kind": model, "admin.port": 0, "run.lock_memory": True}
    with huge_memory(session.folder / "memory") as memory, VethPair() as pair:
        changes |= ({"segment_directory": memory} if memory else {}) | dict(more)
        config = session.venue(pair, "on_logon")
        daemon_settings = daemon_config(pair, session.folder, config, changes, Config())
        with tapped(pair, session.folder, config.feed.port_a, config.fix.port) as seen:
            venue = start_venue(pair, session.folder, config)
            daemon = start_daemon(pair, session.folder, daemon_settings)
            try:
                daemon.wait_for("started", START_S)
                venue.wait_for("flow_started", START_S)
                time.sleep(session.seconds)
            finally:
                daemon.stop()
                told = json.loads(venue.stop() or b"{}")
    summary = json.loads((session.folder / "run" / "summary.json").read_bytes())
    row = row_of(seen) | {
        "stages": summary["latency_ns"],
        "model": summary["model"]["id"],
        "huge_pages": bool(memory),
    }
    if told.get("orders") != summary["orders"]:
        msg = f"orders sent {summary['orders']}, received by the venue {told.get('orders')}"
        raise CommandError(msg)
    return row


def measure(session: Session, tell: Callable[[str], object]) -> dict[str, Any]:
    """Measure the three and return them with their ratios to the floor; tell(what comes next)."""
    rows: dict[str, Any] = {}
    for name, model in (("echo", ""), ("rule", "linear"), ("model", "rule")):
        tell(name)
        for part in ("venue", "run"):  # a day of its own: the venue would go on with its ledger
            shutil.rmtree(session.folder / part, ignore_errors=True)
        rows[name] = measure_daemon(session, model, {}) if model else measure_echo(session)
    floor = rows["echo"]["p50_ns"]
    for row in rows.values():
        row["ratio_p50"] = round(row["p50_ns"] / floor, 3)
    return {"packets_per_s": session.packets_per_s, "seconds": session.seconds, "rows": rows}
