"""A venue and a daemon in two namespaces, run for a while and ended: for the tests over a real wire."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from replays import replay

from daemon.config import Config
from daemon.exchange_config import ExchangeConfig
from daemon.namespaces import NamespaceError, VethPair
from daemon.wire.pair import DAEMON, Process, daemon_config, start_daemon, start_venue, venue_config

WAIT_S = 120.0
SMALL = {
    "book.symbols_max": 1_024, "book.live_orders_max": 65_536, "book.levels_max": 16_384,
    "orders.day_orders_max": 65_536, "admin.port": 0, "model.kind": "off",
}  # fmt: skip
FLOW = {
    "flow.pace": "packets", "flow.packets_per_s": 10_000, "flow.start": "on_logon", "feed.messages_max": 2,
    "generator.messages": 20_000, "generator.symbols": 8, "book.symbols_max": 1_024,
    "book.live_orders_max": 65_536, "book.levels_max": 16_384, "fix.orders_max": 65_536,
}  # fmt: skip
IMPAIRED = {
    "impair_a.lost_ppm": 10_000, "impair_a.duplicated_ppm": 10_000, "impair_a.reordered_ppm": 10_000,
    "impair_b.lost_ppm": 50_000,
}  # fmt: skip

EAGER = {
    "model.kind": "linear", "strategy.margin_bp": 0.0, "strategy.fee_bp": 0.0,
    "strategy.agreement_min": 0.5, "strategy.cooldown_ms": 0, "feed.record": True,
}  # fmt: skip
_FETCH = "import sys,urllib.request as u;sys.stdout.buffer.write(u.urlopen(sys.argv[1],timeout=5).read())"


@pytest.fixture
def wire() -> Iterator[VethPair]:
    """Give two joined namespaces, or skip with the reason."""
    pair = VethPair()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(pair)
        except NamespaceError as error:
            pytest.skip(str(error))
        yield pair


@dataclasses.dataclass
class Session:
    """One venue and one daemon, while they run and afterwards."""

    pair: VethPair
    folder: pathlib.Path
    venue: Process
    daemon: Process
    admin: tuple[str, int] = ("", 0)
    told: dict[str, Any] = dataclasses.field(default_factory=dict)  # the venue's summary

    @property
    def summary(self) -> dict[str, Any]:
        """The daemon's summary."""
        return dict(json.loads((self.folder / "run" / "summary.json").read_bytes()))

    @property
    def status(self) -> dict[str, Any]:
        """The venue's status, as last written."""
        return dict(json.loads((self.folder / "venue" / "status.json").read_bytes()))

    def table(self, name: str) -> list[dict[str, str]]:
        """Return the rows of one of the daemon's tables."""
        with (self.folder / "run" / name).open(newline="", encoding="ascii") as file:
            return list(csv.DictReader(file))

    def ask(self, path: str) -> bytes:
        """Ask the admin endpoint from inside the daemon's namespace."""
        url = f"http://{self.admin[0]}:{self.admin[1]}{path}"
        command = self.pair.command(DAEMON, [sys.executable, "-c", _FETCH, url])
        return subprocess.run(command, capture_output=True, check=True).stdout

    def metric(self, name: str) -> float:
        """Return the sum of one metric over its labels."""
        rows = [line for line in self.ask("/metrics").decode().splitlines() if not line.startswith("#")]
        full = f"contrafusion_{name}"
        return sum(float(row.rpartition(" ")[2]) for row in rows if row.startswith((full + " ", full + "{")))

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds; fail with what it is."""
        until = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < until, what
            assert self.daemon.process.poll() is None, self.daemon.log.read_text()[-2_000:]
            time.sleep(0.1)

    def wait_for_the_end(self) -> None:
        """Wait until the flow has ended and the daemon has applied every message of it."""
        self.venue.wait_for("flow_ended", WAIT_S)
        time.sleep(1.1)  # the venue's status is written each second
        last = self.status["last_seq"]
        self.wait_until(lambda: self.metric("feed_next_seq") > last, f"{last} messages")

    def stop(self) -> None:
        """End the daemon, then the venue."""
        self.daemon.stop()
        out = self.venue.stop()
        self.told = json.loads(out) if out else {}


@contextlib.contextmanager
def session(
    pair: VethPair,
    folder: pathlib.Path,
    venue: Mapping[str, Any] | None = None,
    daemon: Mapping[str, Any] | None = None,
) -> Iterator[Session]:
    """Start both inside the block; both have ended behind it."""
    settings = venue_config(pair, folder, FLOW | dict(venue or {}))
    with tempfile.TemporaryDirectory(prefix="contrafusion-", dir=Config().segment_directory) as memory:
        changes = SMALL | {"segment_directory": memory} | dict(daemon or {})
        yield from _running(pair, folder, settings, changes)


def _running(
    pair: VethPair, folder: pathlib.Path, settings: ExchangeConfig, changes: Mapping[str, Any]
) -> Iterator[Session]:
    exchange = start_venue(pair, folder, settings)
    try:
        client = start_daemon(pair, folder, daemon_config(pair, folder, settings, changes, Config()))
    except BaseException:
        exchange.stop()
        raise
    running = Session(pair, folder, exchange, client)
    try:
        host, port = client.wait_for("started", WAIT_S * 4)["admin"][:2]
        running.admin = (host, port)
        yield running
    finally:
        running.stop()


def hashes(seen: Session) -> tuple[str, str]:
    return seen.told["book_state_hash"], seen.summary["book_state_hash"]


def check_both_sides(seen: Session) -> None:
    """Check that orders, fills and positions are the same on both sides, and that no name was used twice."""
    ours, theirs = seen.summary, seen.told
    assert ours["orders"] == theirs["orders"]
    assert ours["fills"] == theirs["fills"]
    booked = theirs["positions"].get("CONTRAFUSION", {})
    assert {s: row["qty"] for s, row in booked.items() if row["qty"]} == {
        s: row["qty"] for s, row in ours["positions"].items() if row["qty"]
    }
    names = [row["cl_ord_id"] for row in seen.table("orders.csv")]
    assert len(set(names)) == len(names) == ours["orders"]
    assert ours["alarms"] == {}


def check_recording(seen: Session) -> None:
    """Check that the packets beside the journal lead to the books of the session."""
    (recorded,) = (seen.folder / "run").glob("packets*.pcapng")
    again = replay(recorded, seen.folder / "replayed").summary
    assert again["book_state_hash"] == seen.summary["book_state_hash"]
    assert again["source"].get("lost", 0) == 0


def check_gaps(source: dict[str, int]) -> None:
    """Every number that was missing was brought by somebody, and every gap was closed by somebody."""
    brought = source["by_line"] + source["by_rerequest"] + source["by_snapshot"]
    assert source["missing"] == brought
    assert source["lost"] == 0
    closed = source["gaps_by_line"] + source["gaps_by_rerequest"] + source["gaps_by_snapshot"]
    assert source["gaps"] == closed
    assert source["conflicts"] == 0
