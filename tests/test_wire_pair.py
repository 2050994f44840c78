"""Venue and daemon over a real wire: the same books, the same orders, and what happens when things break."""

from __future__ import annotations

import functools
import pathlib
import signal
import time

import pytest
from dpdk_rig import BridgeProcess, build_bridge
from pair_rig import (
    EAGER,
    IMPAIRED,
    Session,
    check_both_sides,
    check_gaps,
    check_recording,
    hashes,
    session,
    wire,
)
from replays import replay

from daemon.exchange_config import read_exchange_config
from daemon.namespaces import VethPair
from daemon.wire.pair import DAEMON, VENUE, Process, start_venue

__all__ = ["wire"]
pytestmark = pytest.mark.alone


@pytest.mark.parametrize("source", ["af_packet", "af_xdp", "udp"])
def test_the_books_of_a_live_feed_are_those_of_its_file(
    source: str, wire: VethPair, tmp_path: pathlib.Path
) -> None:
    with session(wire, tmp_path, {}, {"feed.source": source}) as seen:
        seen.wait_for_the_end()
    theirs, ours = hashes(seen)
    assert theirs == ours
    assert seen.summary["gaps"] == 0
    (day,) = (tmp_path / "venue").glob("day*.pcap")
    assert replay(day, tmp_path / "replayed").summary["book_state_hash"] == ours


def test_a_lossy_wire_gives_the_same_books_and_every_gap_is_accounted_for(
    wire: VethPair, tmp_path: pathlib.Path
) -> None:
    with session(wire, tmp_path, IMPAIRED | {"impair_b.lost_ppm": 300_000}) as seen:
        seen.wait_for_the_end()
    theirs, ours = hashes(seen)
    assert theirs == ours
    source = seen.summary["source"]
    check_gaps(source)
    assert source["by_line"] > 0
    assert source["by_rerequest"] > 0, "30 % of one line and 1 % of the other: some are on neither"


def test_a_late_start_loads_a_snapshot(wire: VethPair, tmp_path: pathlib.Path) -> None:
    flow = {"flow.start": "at_once", "flow.packets_per_s": 2_000}
    with session(wire, tmp_path, flow) as seen:
        seen.wait_for_the_end()
    theirs, ours = hashes(seen)
    assert theirs == ours
    assert seen.summary["source"]["snapshots"] >= 1


def test_both_sides_book_the_same_orders_fills_and_positions(wire: VethPair, tmp_path: pathlib.Path) -> None:
    with session(wire, tmp_path, {"flow.packets_per_s": 4_000}, EAGER) as seen:
        seen.wait_for_the_end()
    check_both_sides(seen)
    assert seen.summary["orders"] > 50
    assert seen.summary["fills"] > 10
    check_recording(seen)


def test_both_sides_agree_over_a_lossy_wire_and_the_recording_leads_to_the_same_books(
    wire: VethPair, tmp_path: pathlib.Path
) -> None:
    flow = IMPAIRED | {"impair_b.lost_ppm": 300_000, "flow.packets_per_s": 4_000}
    with session(wire, tmp_path, flow, EAGER | {"feed.gap_timeout_ms": 10_000}) as seen:
        seen.wait_for_the_end()
    check_both_sides(seen)
    source = seen.summary["source"]
    check_gaps(source)
    assert source["by_rerequest"] > 0
    assert source["snapshots"] == 0
    assert seen.summary["orders"] > 20
    check_recording(seen)


def test_the_daemon_survives_a_wire_that_goes_down_and_a_venue_that_is_killed(
    wire: VethPair, tmp_path: pathlib.Path
) -> None:
    flow = {"flow.packets_per_s": 2_000, "flow.at_end": "stay"}
    with session(wire, tmp_path, flow) as seen:
        seen.daemon.wait_for("fix_logged_on", 60)
        seen.wait_until(lambda: seen.metric("feed_messages_total") > 2_000, "the first messages")
        for side in (VENUE, DAEMON):
            wire.set_link(side, "down")
            time.sleep(0.5)
            wire.set_link(side, "up")
            time.sleep(0.5)
        seen.wait_for_the_end()
        before = seen.metric("feed_messages_total")
        seen.venue.stop(signal.SIGKILL)
        seen.daemon.wait_for("fix_disconnected", 60)
        again = session_again(seen)
        try:
            seen.daemon.wait_for("fix_logged_on", 60)
            seen.wait_until(lambda: seen.metric("feed_messages_total") > before + 1_000, "the new session")
        finally:
            again.stop()
    source = seen.summary["source"]
    assert source["missing"] > 1_000, "nothing was lost while the wire was down"
    assert source["0.link_downs"] >= 1
    check_gaps(source)


def session_again(seen: Session) -> Process:
    """Start a venue in the place of the one that was killed."""
    return start_venue(seen.pair, seen.folder, read_exchange_config(seen.folder / "venue.toml"))


def test_a_storm_drops_and_the_books_are_whole_again(wire: VethPair, tmp_path: pathlib.Path) -> None:
    """As fast as the venue can, into a ring of 64 packets, while the daemon stands still for a moment."""
    flow = {"flow.pace": "max", "feed.messages_max": 1, "feed.group_b": "", "generator.messages": 200_000}
    slow = {"feed.ring_packets": 64, "run.idle": "backoff"}
    with session(wire, tmp_path, flow, slow) as seen:
        seen.wait_until(lambda: seen.metric("feed_messages_total") > 0, "the first messages")
        seen.daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        seen.daemon.process.send_signal(signal.SIGCONT)
        seen.wait_for_the_end()
        seen.daemon.wait_for("packets_dropped", 60)
    theirs, ours = hashes(seen)
    assert theirs == ours
    source = seen.summary["source"]
    check_gaps(source)
    assert source["missing"] == source["0.dropped"] > 0, "what is missing is what was dropped, to the packet"


def test_the_books_over_a_dpdk_bridge_that_is_killed_and_restarted(
    wire: VethPair, tmp_path: pathlib.Path
) -> None:
    program, ring = build_bridge(tmp_path), tmp_path / "bridge"
    device = f"net_af_packet0,iface={wire.interfaces[DAEMON]}"

    def bridge() -> BridgeProcess:
        made = BridgeProcess(program, ring, devices=[device], start=functools.partial(wire.start, DAEMON))
        made.wait_polling()
        return made

    first = bridge()
    source = {"feed.source": "dpdk", "feed.bridge": str(ring)}
    with session(wire, tmp_path, {"flow.packets_per_s": 2_000}, source) as seen:
        seen.wait_until(lambda: seen.metric("feed_messages_total") > 2_000, "the first messages")
        first.finish(signal.SIGKILL)
        while seen.daemon.wait_for("bridge_status", 60)["state"] != "dead":
            pass
        second = bridge()
        assert seen.daemon.wait_for("bridge_status", 60)["generation"] == 2
        seen.wait_for_the_end()
        assert second.finish() == 0
    theirs, ours = hashes(seen)
    assert theirs == ours
    check_gaps(seen.summary["source"])
