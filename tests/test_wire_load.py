"""Half a minute at 100,000 packets a second over a real wire: whole books, and every loss accounted for."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import pathlib
import sys
from collections.abc import Iterator

import pytest
from dpdk_rig import BridgeProcess, build_bridge
from pair_rig import IMPAIRED, Session, check_gaps, hashes, session, wire

from daemon.namespaces import VethPair
from daemon.wire.pair import DAEMON

__all__ = ["wire"]
pytestmark = [pytest.mark.alone, pytest.mark.slow]

RATE = 100_000
FULL = {
    "flow.packets_per_s": RATE, "feed.messages_max": 1, "feed.group_b": "",
    "generator.messages": 3_000_000, "generator.symbols": 64, "book.live_orders_max": 1_048_576,
    "book.levels_max": 262_144,
}  # fmt: skip
ROOMY = {
    "book.live_orders_max": 1_048_576, "book.levels_max": 262_144, "feed.gap_timeout_ms": 2_000,
    "feed.gap_messages": 1 << 20,
}  # fmt: skip
SHOWN = (
    "missing", "gaps", "by_line", "by_rerequest", "by_snapshot", "requests", "retried", "snapshots",
    "overflow",
)  # fmt: skip


def rate_of(seen: Session) -> float:
    """Return the packets a second that the venue has sent on each line, by its log."""
    events = [json.loads(line) for line in seen.venue.log.read_text().splitlines() if line.startswith("{")]
    times = {event["event"]: dt.datetime.fromisoformat(event["ts"]).timestamp() for event in events}
    return int(FULL["generator.messages"]) / (times["flow_ended"] - times["flow_started"])


def tell(what: str, seen: Session) -> dict[str, int]:
    """Show what the run has counted; return the counters."""
    source: dict[str, int] = seen.summary["source"]
    lines = {name: n for name, n in source.items() if name.endswith((".received", ".dropped"))}
    shown = lines | {name: source[name] for name in SHOWN}
    counts = ", ".join(f"{name} {count:,}" for name, count in shown.items())
    last = seen.told["last_seq"]
    sys.stdout.write(f"\n{what}: {rate_of(seen):,.0f} packets/s, last number {last:,}: {counts}\n")
    return source


@pytest.mark.parametrize("source", ["af_packet", "af_xdp", "udp"])
def test_half_a_minute_at_full_rate(source: str, wire: VethPair, tmp_path: pathlib.Path) -> None:
    """What is missing is what the ring dropped, to the packet, and it is repaired."""
    with session(wire, tmp_path, FULL, ROOMY | {"feed.source": source}) as seen:
        seen.wait_for_the_end()
    theirs, ours = hashes(seen)
    assert theirs == ours
    counted = tell(source, seen)
    check_gaps(counted)
    assert counted["missing"] == counted["0.dropped"]
    assert counted["0.received"] + counted["0.dropped"] >= seen.told["last_seq"]


@contextlib.contextmanager
def bridge(wire: VethPair, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Run a DPDK bridge at the daemon's end; its ring holds a second."""
    program, ring = build_bridge(folder), folder / "bridge"
    device = f"net_af_packet0,iface={wire.interfaces[DAEMON]},framecnt=16384,framesz=2048,blocksz=1048576"
    start = functools.partial(wire.start, DAEMON)
    running = BridgeProcess(program, ring, "--slots", "131072", devices=[device], start=start)
    try:
        running.wait_polling()
        yield ring
    finally:
        assert running.finish() == 0


def test_half_a_minute_at_full_rate_through_the_dpdk_bridge(wire: VethPair, tmp_path: pathlib.Path) -> None:
    """What the driver's own ring loses is not counted by it, but by the feed, which repairs it."""
    with bridge(wire, tmp_path) as ring:
        changes = ROOMY | {"feed.source": "dpdk", "feed.bridge": str(ring)}
        with session(wire, tmp_path, FULL, changes) as seen:
            seen.wait_for_the_end()
    theirs, ours = hashes(seen)
    assert theirs == ours
    counted = tell("dpdk", seen)
    check_gaps(counted)
    assert counted["missing"] >= counted["0.dropped"]
    assert counted["0.offered"] == counted["0.written"] + counted["0.dropped"]


def test_half_a_minute_of_bad_lines_at_full_rate(wire: VethPair, tmp_path: pathlib.Path) -> None:
    """1 % lost, 1 % twice, 1 % out of order on line A, 5 % lost on line B."""
    flow = FULL | IMPAIRED | {"feed.group_b": "239.192.7.2"}
    with session(wire, tmp_path, flow, ROOMY) as seen:
        seen.wait_for_the_end()
    theirs, ours = hashes(seen)
    assert theirs == ours
    counted = tell("bad lines", seen)
    check_gaps(counted)
    assert counted["by_line"] > 0
    assert counted["by_rerequest"] > 0
