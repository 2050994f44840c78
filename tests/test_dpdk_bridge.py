"""The real bridge over DPDK's virtual devices: a capture, a cable, a generator; books equal the file's."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import time

import captures as c
import pytest
from dpdk_rig import EAL, ROOT, BridgeProcess, build_bridge, reader, until
from feeding import Frames
from net.traffic import Packets, send_frames

from nimbus.book.owner import Books
from nimbus.book.snapshot import state_hash
from nimbus.feed.capture import CaptureSource
from nimbus.feed.decode import Feed, Subscription
from nimbus.feed.dpdk import DpdkBridge
from nimbus.feed.kinds import SourceError
from nimbus.feed.source import next_frame
from nimbus.feed.state import FEED
from nimbus.market import Market, MarketState, apply_message, fetch, take_packet
from nimbus.venue.generator import generate
from ringbuf.atomics import pause
from ringbuf.jit import kernel
from ringbuf.memory import load_i64
from ringbuf.segment import Segment
from ringbuf.spsc import front, pop

POLLS_MAX = 200_000_000
SEED, MESSAGES, SYMBOLS = 6, 9_000, 4
_F = FEED.at


@kernel
def useful(feed: int) -> int:
    """Return how many frames were market data."""
    return load_i64(feed + _F.delivered) + load_i64(feed + _F.heartbeats) + load_i64(feed + _F.session_ends)


@kernel
def walk(source: int, market: MarketState, frames: int, polls_max: int, *, all_count: bool) -> int:
    """Apply the messages of the next frames; return how many there were within polls_max empty polls.

    all_count: else only those that were market data.
    """
    taken, polls = 0, 0
    while taken < frames and polls < polls_max:
        if next_frame(source, market.packet) != 1:
            polls += 1
            pause()
            continue
        before = useful(market.feed)
        take_packet(market)
        taken += 1 if all_count or useful(market.feed) > before else 0
        message = fetch(market)
        while message != 0:
            apply_message(market, message)
            if front(market.events) != 0:
                pop(market.events)
            message = fetch(market)
    return taken


class Desk:
    """A feed with its books, fed from any source."""

    def __init__(self, subscriptions: tuple[Subscription, ...] = ()) -> None:
        self.segment = Segment.anonymous(64 << 20)
        self.feed = Feed(self.segment, subscriptions=subscriptions)
        self.books = Books(self.segment, symbols_max=64, live_orders_max=65_536, levels_max=16_384)
        self.market = Market(self.segment, self.feed, self.books)

    def take(self, source: int, frames: int, *, all_count: bool = True) -> None:
        """Take so many frames; without all_count, what is no market data is read and does not count."""
        assert walk(source, self.market.state, frames, POLLS_MAX, all_count=all_count) == frames

    @property
    def result(self) -> tuple[int, dict[str, int], dict[str, int]]:
        return state_hash(self.books.state), self.feed.messages_by_type(), self.feed.counters()


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> pathlib.Path:
    return build_bridge(tmp_path_factory.mktemp("bridge"))


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("day") / "day.pcap"
    generate(path, SEED, MESSAGES, SYMBOLS)
    return path


@pytest.fixture(scope="module")
def frames(capture) -> list[bytes]:
    return [data for _, data in Frames(capture).frames]


@pytest.fixture(scope="module")
def from_file(capture, frames) -> tuple:
    """Return what the file itself makes of the books."""
    desk = Desk()
    with CaptureSource.open(capture) as source:
        desk.take(source.state, len(frames))
    return desk.result


@pytest.fixture
def path(tmp_path):
    return tmp_path / "frames"


@pytest.fixture
def launch(program, path):
    """Return a maker of bridges; they are gone after the test."""
    made = []

    def make(*options: str, **arguments) -> BridgeProcess:
        made.append(BridgeProcess(program, path, *options, **arguments))
        return made[-1]

    yield make
    for bridge in made:
        bridge.finish(signal.SIGKILL)


@pytest.fixture
def attach(path):
    made = []

    def make() -> DpdkBridge:
        made.append(reader(path)[1])
        return made[-1]

    yield make
    for source in made:
        source.close()


def from_pcap(*captures: pathlib.Path, number: int = 0) -> str:
    return f"net_pcap{number}" + "".join(f",rx_pcap={capture}" for capture in captures)


def is_balanced(source: DpdkBridge) -> bool:
    counts = source.counters()
    return counts["offered"] == counts["received"] + counts["waiting"] + counts["dropped"]


# ---------------------------------------------------------------- the way of the frames


def test_a_capture_arrives_byte_for_byte_through_a_ring_of_sixteen(launch, attach, capture, frames):
    launch("--slots", "16", "--lossless", devices=[from_pcap(capture)]).wait_polling()
    source = attach()
    segment = Segment.anonymous(1 << 16)
    hand, found = Packets(segment, source), []
    before_ns = time.time_ns()
    until(lambda: found.extend(hand.all()) or len(found) == len(frames))
    assert found == frames
    assert abs(int(hand.row["recv_ns"]) - before_ns) < 600 * 10**9
    counts = source.counters()
    assert (counts["offered"], counts["dropped"], counts["oversized"]) == (len(frames), 0, 0)


def test_books_over_net_pcap_equal_those_of_the_file(launch, attach, capture, frames, from_file):
    launch("--slots", "64", "--lossless", devices=[from_pcap(capture)]).wait_polling()
    source, desk = attach(), Desk()
    desk.take(source.state, len(frames))
    assert desk.result == from_file
    assert source.counters()["received"] == len(frames)


def test_books_over_a_cable_equal_those_of_the_file(rig, launch, attach, frames, from_file):
    device = f"net_af_packet0,iface={rig.client.interface}"
    launch("--slots", "4096", devices=[device], start=rig.client.start).wait_polling()
    source, desk = attach(), Desk()
    for at in range(0, len(frames), 256):  # no more at once than the driver's own ring holds
        part = frames[at : at + 256]
        send_frames(rig.exchange, part)
        desk.take(source.state, len(part), all_count=False)
    books, messages, fed = desk.result
    others = sum(desk.feed.refused().values())  # what the systems at both ends said to each other
    assert (books, messages, fed | {"frames": fed["frames"] - others}) == from_file
    counts = source.counters()
    assert (counts["received"], counts["dropped"], counts["rx_missed"]) == (len(frames) + others, 0, 0)


def test_the_line_comes_from_the_subscription(launch, attach, tmp_path):
    lines = (Subscription("239.192.7.1", 26_477, 0), Subscription("239.192.7.2", 26_478, 1))
    made = []
    for number, (group, port) in enumerate([((239, 192, 7, 1), 26_477), ((239, 192, 7, 2), 26_478)]):
        datagram = c.mold(b"session  1", 1, [c.itch("S", 12)])
        frame = c.ethernet(c.ipv4(c.udp(datagram, port=port), group=bytes(group)))
        made.append(tmp_path / f"{number}.pcap")
        made[-1].write_bytes(c.pcap([(1, frame)]))
    devices = [from_pcap(made[0]), from_pcap(made[1], number=1)]
    launch(devices=devices).wait_polling()
    source, desk = attach(), Desk(lines)
    found = []
    for _ in range(2):
        desk.take(source.state, 1)
        found.append(int(desk.feed.record["line"]))
    assert sorted(found) == [0, 1]
    assert desk.feed.counters()["delivered"] == 1
    assert desk.feed.refused() == {"duplicate": 1}


def test_ports_and_queues_are_all_polled_and_named_in_the_frame(launch, attach, tmp_path):
    files = []
    for number in range(4):
        files.append(tmp_path / f"{number}.pcap")
        files[-1].write_bytes(c.pcap([(1, bytes([number]) * 60)] * 5))
    devices = [from_pcap(*files[:2]), from_pcap(*files[2:], number=1)]
    launch("--queues", "2", devices=devices).wait_polling()
    source, found = attach(), []
    hand = Packets(Segment.anonymous(1 << 16), source)
    while len(found) < 20:
        data = hand.next()
        if data is not None:
            port, queue = struct.unpack("HH", _head(hand)[16:20])
            found.append((port, queue, data[0]))
    assert sorted(set(found)) == [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]
    assert all(found.count(kind) == 5 for kind in set(found))


def _head(hand: Packets) -> bytes:
    import ctypes

    return ctypes.string_at(int(hand.row["frame_at"]) - 32, 32)


def test_only_the_chosen_ports_are_polled(launch, attach, capture, tmp_path):
    other = tmp_path / "other.pcap"
    other.write_bytes(c.pcap([(1, b"x" * 60)]))
    devices = [from_pcap(capture), from_pcap(other, number=1)]
    bridge = launch("--ports", "1", devices=devices)
    bridge.wait_polling()
    hand = Packets(Segment.anonymous(1 << 16), attach())
    until(lambda: hand.next() == b"x" * 60)
    assert bridge.finish() == 0
    assert hand.next() is None


def test_a_frame_longer_than_a_slot_is_cut_counted_and_refused_as_snapped(launch, attach, capture, frames):
    launch("--frame-size", "100", devices=[from_pcap(capture)]).wait_polling()
    source, desk = attach(), Desk()
    desk.take(source.state, len(frames))
    longer = sum(len(frame) > 100 for frame in frames)
    assert 0 < longer < len(frames)
    assert source.counters()["oversized"] == longer
    assert desk.feed.refused()["snapped"] == longer


@pytest.mark.parametrize("size", [1_518, 1_522, 2_048, 5_000, 9_018])
def test_long_frames_fit_when_configured(launch, attach, tmp_path, size):
    frame, file = os.urandom(size), tmp_path / "long.pcap"
    file.write_bytes(c.pcap([(1, frame)] * 3))
    launch("--frame-size", "9018", "--slots", "64", devices=[from_pcap(file)]).wait_polling()
    source = attach()
    hand, found = Packets(Segment.anonymous(1 << 16), source), []
    until(lambda: found.extend(hand.all()) or len(found) == 3)
    assert found == [frame] * 3
    assert source.counters()["oversized"] == 0


# ---------------------------------------------------------------- a full ring


def test_a_full_ring_drops_and_what_was_received_is_delivered_or_dropped(launch, attach, capture, frames):
    bridge = launch("--slots", "256", devices=[from_pcap(capture)])
    bridge.wait_polling()
    source = attach()
    until(lambda: source.counters()["offered"] == len(frames))
    counts = source.counters()
    assert (counts["written"], counts["dropped"]) == (256, len(frames) - 256)
    hand = Packets(Segment.anonymous(1 << 16), source)
    assert hand.all() == frames[:256]
    assert bridge.finish() == 0
    wanted = f"received {len(frames)}, written 256, dropped {len(frames) - 256}, cut 0, missed 0"
    assert bridge.lines[-1] == f"contrafusion-dpdk-bridge: stopped, {wanted}"
    assert is_balanced(source)


@pytest.mark.alone
def test_a_flood_is_accounted_for_to_the_last_frame(launch, attach):
    bridge = launch("--slots", "64", devices=["net_null0,size=64"])
    bridge.wait_polling()
    source, desk = attach(), Desk()
    desk.take(source.state, 200_000)
    assert bridge.finish() == 0
    counts = source.counters()
    assert counts["offered"] == counts["written"] + counts["dropped"]
    assert counts["dropped"] > 0
    assert counts["received"] == 200_000
    assert is_balanced(source)
    assert desk.feed.counters()["frames"] == 200_000


# ---------------------------------------------------------------- restarts


def test_a_killed_bridge_is_started_again_and_nothing_that_lay_in_the_ring_is_lost(
    launch, attach, frames, from_file, tmp_path
):
    half = len(frames) // 2
    parts = [tmp_path / "first.pcap", tmp_path / "second.pcap"]
    parts[0].write_bytes(c.pcap([(1, frame) for frame in frames[:half]]))
    parts[1].write_bytes(c.pcap([(1, frame) for frame in frames[half:]]))
    first = launch("--slots", "4096", "--lossless", devices=[from_pcap(parts[0])])
    first.wait_polling()
    source, desk = attach(), Desk()
    desk.take(source.state, 300)
    until(lambda: source.counters()["offered"] == half)
    assert source.status(time.monotonic_ns()).state == "polling"
    assert first.finish(signal.SIGKILL) == -signal.SIGKILL
    dead = source.status(time.monotonic_ns())
    assert (dead.state, dead.pid, dead.generation) == ("dead", first.child.pid, 1)
    desk.take(source.state, 300)  # while there is no bridge
    second = launch("--slots", "4096", "--lossless", devices=[from_pcap(parts[1])])
    second.wait_polling()
    desk.take(source.state, len(frames) - 600)
    assert desk.result == from_file
    alive = source.status(time.monotonic_ns())
    assert (alive.state, alive.pid, alive.generation) == ("polling", second.child.pid, 2)
    counts = source.counters()
    assert (counts["restarts"], counts["segments"], counts["dropped"]) == (1, 1, 0)


def test_kills_in_a_flood_leave_the_ring_and_its_counts_whole(launch, attach):
    source, desk, taken = None, Desk(), 0
    for generation in range(1, 6):
        bridge = launch("--slots", "64", devices=["net_null0,size=64"])
        bridge.wait_polling()
        source = source or attach()
        desk.take(source.state, 50_000 + generation)
        taken += 50_000 + generation
        bridge.finish(signal.SIGKILL)
        assert source.status(time.monotonic_ns())[0:3:2] == ("dead", generation)
        counts = source.counters()
        assert counts["received"] == taken
        assert counts["written"] == taken + counts["waiting"]
    bridge = launch("--slots", "64", devices=["net_null0,size=64"])
    bridge.wait_polling()
    assert bridge.finish() == 0
    assert is_balanced(source), "what the killed ones had not counted was made good"
    assert desk.feed.counters()["frames"] == taken


def test_a_bridge_with_another_ring_is_followed(launch, attach, frames, from_file, tmp_path):
    rest = tmp_path / "rest.pcap"
    rest.write_bytes(c.pcap([(1, frame) for frame in frames[1_000:]]))
    start = tmp_path / "start.pcap"
    start.write_bytes(c.pcap([(1, frame) for frame in frames[:1_000]]))
    first = launch("--slots", "1024", "--lossless", devices=[from_pcap(start)])
    first.wait_polling()
    source, desk = attach(), Desk()
    until(lambda: source.counters()["offered"] == 1_000)
    assert first.finish() == 0
    assert source.status(time.monotonic_ns()).state == "stopped"
    second = launch("--slots", "512", "--lossless", devices=[from_pcap(rest)])
    second.wait_polling()
    assert any("replaced a ring of 1024 frames of 1536 bytes" in line for line in second.lines)
    source.refresh()
    desk.take(source.state, len(frames))
    assert desk.result == from_file
    counts = source.counters()
    assert (counts["restarts"], counts["segments"], counts["offered"]) == (1, 2, len(frames))


def test_a_bridge_that_hangs_is_seen_by_its_heartbeat(launch, attach, capture):
    bridge = launch(devices=[from_pcap(capture)])
    bridge.wait_polling()
    source = attach()
    first = source.status(0)
    until(lambda: source._mapping._bridge["heartbeat_ns"] > time.monotonic_ns() - 10**9)
    bridge.child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, bridge.child.pid, os.WSTOPPED)
    later_ns = time.monotonic_ns() + 2 * 10**9
    assert source.status(later_ns).state == "silent"
    assert source.status(later_ns).silent_ns > 10**9
    bridge.child.send_signal(signal.SIGCONT)
    beat = int(source._mapping._bridge["heartbeat_ns"])
    until(lambda: source._mapping._bridge["heartbeat_ns"] > beat)
    assert first.generation == source.status(0).generation == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_bridge_that_waits_for_its_reader_stops_cleanly(launch, attach, capture, frames, number):
    bridge = launch("--slots", "16", "--lossless", devices=[from_pcap(capture)])
    bridge.wait_polling()
    source = attach()
    until(lambda: source.counters()["written"] == 16)
    assert bridge.finish(number) == 0
    assert source.status(time.monotonic_ns()).state == "stopped"
    counts = source.counters()
    assert (counts["written"], counts["dropped"]) == (16, 16)  # the burst in hand had 32
    assert re.search(r": stopped, received 32, written 16, dropped 16, ", bridge.lines[-1])
    assert Packets(Segment.anonymous(1 << 16), source).all() == frames[:16]


# ---------------------------------------------------------------- refusals


def run(program: pathlib.Path, *words: str) -> tuple[int, list[str]]:
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_help_names_every_option(program):
    code, lines = run(program, "--help")
    assert code == 0
    text = (SOURCES / "options.c").read_text()
    options = re.findall(r'\{"([a-z-]+)", \w+_argument', text)
    assert len(options) == 7
    assert [option for option in options if f"--{option}" not in "\n".join(lines)] == []


SOURCES = ROOT / "nimbus" / "feed" / "dpdk_bridge"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--slots", "1000"], "--slots 1000: not a value of this option, see --help"),
        (["--slots", "0"], "--slots 0: not a value of this option, see --help"),
        (["--slots", "33554432"], "--slots 33554432: not a value of this option, see --help"),
        (["--frame-size", "63"], "--frame-size 63: not a value of this option, see --help"),
        (["--frame-size", "16353"], "--frame-size 16353: not a value of this option, see --help"),
        (["--queues", "two"], "--queues two: not a value of this option, see --help"),
        (["--lossless", "eth0"], "unexpected argument eth0: what is meant for DPDK follows --"),
    ],
)
def test_wrong_usage_is_one_line(program, words, line):
    assert run(program, *words) == (2, [f"contrafusion-dpdk-bridge: {line}"])


def test_an_unknown_option_shows_the_usage(program):
    code, lines = run(program, "--fast")
    assert code == 2
    assert lines[0].endswith("unrecognized option '--fast'")
    assert lines[1].startswith("usage: contrafusion-dpdk-bridge [OPTIONS] [-- EAL ARGUMENTS]")


def failure(program: pathlib.Path, *words: str) -> str:
    """Run it with DPDK's arguments; return the one line that our program says of its failure."""
    ours, _, theirs = " ".join(words).partition(" -- ")
    code, lines = run(program, *ours.split(), "--", *EAL, *theirs.split())
    assert code == 1
    said = [line for line in lines if line.startswith("contrafusion-dpdk-bridge: ")]
    assert len(said) == 1
    return said[0].removeprefix("contrafusion-dpdk-bridge: ")


def test_no_port_is_told_with_what_to_do(program, path):
    line = failure(program, "--segment", str(path))
    assert line == "no port: bind a card to a DPDK driver, or give a --vdev behind --"
    assert not path.exists()


def test_a_port_that_is_not_there_is_told(program, path):
    words = ("--segment", str(path), "--ports", "0,3", "--", "--vdev=net_null0")
    assert failure(program, *words) == "--ports 0,3: no port 3, there are 1"
    words = ("--segment", str(path), "--ports", "a", "--", "--vdev=net_null0")
    assert failure(program, *words) == "--ports a: no port a, there are 1"
    assert not path.exists()


def test_more_queues_than_the_port_has_is_told(program, path, capture):
    words = ("--segment", str(path), "--queues", "2", "--", f"--vdev={from_pcap(capture)}")
    assert failure(program, *words) == "port 0: has 1 receive queues, --queues asks for 2"
    assert not path.exists()


def test_what_dpdk_refuses_is_told(program, path):
    line = failure(program, "--segment", str(path), "--", "--vdev=net_pcap0,rx_pcap=/no/such.pcap")
    assert line.startswith(("DPDK does not start: ", "no port: "))


def test_a_second_bridge_is_refused(program, launch, path, capture):
    launch(devices=[from_pcap(capture)]).wait_polling()
    line = failure(program, "--segment", str(path), "--", f"--vdev={from_pcap(capture)}")
    assert re.fullmatch(rf"{re.escape(str(path))}: another bridge, process \d+, writes to it", line)


def test_a_segment_that_cannot_be_made_is_told(program, path, capture):
    words = ("--segment", f"{path}/below", "--", f"--vdev={from_pcap(capture)}")
    assert failure(program, *words) == f"{path}/below: cannot create: No such file or directory"


def test_without_a_bridge_the_reader_says_what_to_start(path):
    with pytest.raises(SourceError, match=r"no such segment: start contrafusion-dpdk-bridge first$"):
        reader(path)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_what_to_install_when_dpdk_is_absent(tmp_path):
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "dpdk", "PKG_CONFIG=false", f"OUT={tmp_path}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    wanted = "make dpdk: DPDK 22.11 is not installed: make dpdk-deps, or apt-get install libdpdk-dev"
    assert done.stderr.splitlines()[0] == wanted
    assert list(tmp_path.iterdir()) == []
