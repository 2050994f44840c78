"""The ring between a bridge and its reader, without DPDK: layout, take-over, kills, refusals.

The producer is the bridge's own C code.
"""

from __future__ import annotations

import ctypes
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from dpdk_load import POLLS_MAX, check_numbered
from dpdk_rig import ROOT, SHIM, Producer, compile_c, load_library, reader, try_reader_lock, until
from net.traffic import Packets

from nimbus.feed import dpdk_layout
from nimbus.feed.dpdk import BAD_FRAME, HEARTBEAT_MAX_NS, DpdkBridge
from nimbus.feed.kinds import CLOSED, SourceError
from nimbus.feed.source import next_frame
from nimbus.messages import LINK_ETHERNET, PACKET, STAMP_USER
from ringbuf.process import this_process
from ringbuf.segment import MAGIC, SEGMENT_HEADER, Segment, orphans
from ringbuf.spsc import RingView

LAST, ENDLESS = 400_000, 1 << 40


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return load_library(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    done = compile_c(folder, "producer", SHIM, "-DPROGRAM")
    assert done.returncode == 0, done.stderr
    return folder / "producer"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "frames"


@pytest.fixture
def bridge(library, path):
    """Return a maker of bridges on the one path; what lives at the end dies."""
    made = []

    def make(**options) -> Producer:
        made.append(Producer(library, path, **options))
        return made[-1]

    yield make
    for producer in made:
        producer.die()


@pytest.fixture
def attach(path):
    """Return a maker of (source, hand) pairs."""
    made = []

    def make() -> tuple[DpdkBridge, Packets]:
        segment, source = reader(path)
        made.append(source)
        return source, Packets(segment, source)

    yield make
    for source in made:
        source.close()


def is_balanced(source: DpdkBridge, before: int = 0) -> bool:
    """Say whether every frame is accounted for; before: frames that readers before this one took."""
    counts = source.counters()
    given = before + counts["received"] + counts["damaged"] + counts["waiting"]
    return counts["offered"] == given + counts["dropped"]


# ---------------------------------------------------------------- layout


def test_the_c_header_is_the_tables_as_text():
    assert dpdk_layout.HEADER_PATH.read_text() == dpdk_layout.c_header(), (
        "run `python -m nimbus.feed.dpdk_layout`"
    )


def test_the_layout_is_pinned():
    at = dpdk_layout.DPDK_BRIDGE.at
    assert (at.generation, at.heartbeat_ns, at.rx_missed) == (0, 128, 256)
    assert dpdk_layout.DPDK_BRIDGE.size == 384
    assert dpdk_layout.DPDK_FRAME.size == dpdk_layout.frame_record(64).at.bytes == 32
    assert [dpdk_layout.frame_record(size).size for size in (64, 96, 97, 1_536)] == [128, 128, 192, 1_600]


def test_the_compiler_lays_the_structs_out_as_numpy_does_and_would_say_if_not(tmp_path):
    header = dpdk_layout.c_header()
    assert compile_c(tmp_path, "right", SHIM, "-DPROGRAM").returncode == 0
    wrong = header.replace("    uint32_t size;", "    uint64_t size;")
    assert wrong != header
    (tmp_path / "layout.h").write_text(wrong)
    done = compile_c(tmp_path, "wrong", f'#include "{tmp_path}/layout.h"\n{SHIM}', "-DPROGRAM")
    assert done.returncode != 0
    assert "dpdk_frame.wire_size" in done.stderr


def test_the_file_is_a_segment_of_ours_and_its_owner_is_known(bridge, path):
    bridge()
    segment = Segment.attach(path)
    assert segment.owner == this_process()
    assert segment.epoch == 1
    assert set(segment.areas) == {"dpdk.bridge", "dpdk.frames"}
    assert not segment.is_orphan
    assert orphans(path.parent) == []
    assert path.stat().st_mode & 0o777 == 0o600
    ring = RingView(segment, "dpdk.frames")
    assert (ring.capacity, ring.record_size, ring.pushed) == (8, 128, 0)
    segment.close()


# ---------------------------------------------------------------- frames


def test_a_frame_is_given_byte_for_byte_and_stays_until_the_next_call(bridge, attach):
    producer = bridge()
    source, hand = attach()
    assert hand.next() is None
    assert producer.push(b"first", wire_size=70, ns=77)
    assert producer.push(bytes(range(96)), ns=78)
    assert hand.next() == b"first"
    row = hand.row
    assert (row["recv_ns"], row["number"], row["wire_size"]) == (77, 1, 70)
    assert (row["link"], row["stamp"], row["line"]) == (LINK_ETHERNET, STAMP_USER, 0)
    for _ in range(6):
        assert producer.push(b"more")
    assert not producer.push(b"no slot: the first is still in hand")
    assert ctypes.string_at(int(row["frame_at"]), int(row["size"])) == b"first"
    assert hand.next() == bytes(range(96))
    assert hand.row["number"] == 2
    assert producer.push(b"its slot again")
    assert hand.all() == [b"more"] * 6 + [b"its slot again"]
    assert is_balanced(source)
    assert source.counters()["dropped"] == 1
    assert source.fd == -1


def test_a_full_ring_drops_and_counts_exactly(bridge, attach):
    producer = bridge()
    source, hand = attach()
    sent = [bytes([k]) * 20 for k in range(30)]
    assert [producer.push(data) for data in sent] == [True] * 8 + [False] * 22
    counts = source.counters()
    assert (counts["offered"], counts["written"], counts["dropped"], counts["waiting"]) == (30, 8, 22, 8)
    assert hand.all() == sent[:8]
    counts = source.counters()
    assert (counts["received"], counts["waiting"]) == (8, 0)
    assert is_balanced(source)


@pytest.mark.parametrize("sizes", [(97, 97), (4_000_000_000, 4_000_000_000), (50, 49)])
def test_a_record_that_cannot_be_is_refused_and_the_next_is_read(bridge, attach, sizes):
    producer = bridge()
    source, hand = attach()
    producer.push(b"x" * 96)
    # one word of the record is damaged after it was written
    segment = Segment.attach(source.path, writable=True)
    frames = segment.areas["dpdk.frames"][0] + 384
    words = (ctypes.c_uint32 * 2).from_address(frames + 8)
    words[0], words[1] = sizes
    producer.push(b"after")
    assert next_frame(source.state, hand.packet) == BAD_FRAME
    assert hand.next() == b"after"
    assert source.counters()["damaged"] == 1
    assert is_balanced(source)
    segment.close()


# ---------------------------------------------------------------- restarts


def test_a_bridge_that_starts_again_takes_the_ring_over_with_what_lies_in_it(bridge, attach, path):
    first = bridge()
    source, hand = attach()
    inode = path.stat().st_ino
    first.push(b"one")
    first.push(b"two")
    assert hand.next() == b"one"
    first.die()
    second = bridge()
    assert second.note == ""
    assert path.stat().st_ino == inode
    assert second.push(b"three")
    assert hand.all() == [b"two", b"three"]
    counts = source.counters()
    assert (counts["restarts"], counts["segments"], counts["offered"]) == (1, 1, 3)
    assert source.status(0).generation == 2
    segment = Segment.attach(path)
    assert segment.epoch == 2
    segment.close()


def test_indexes_left_between_two_stores_are_healed(bridge, attach, path):
    first = bridge()
    source, hand = attach()
    first.push(b"one")
    first.die()
    segment = Segment.attach(path, writable=True)
    segment.words(segment.areas["dpdk.frames"][0] + 272, 1)[0] = 0  # died before its own copy was stored
    segment.words(segment.areas["dpdk.frames"][0] + 256, 1)[0] = 99  # and with a wrong guess of the head
    segment.words(segment.areas["dpdk.bridge"][0] + 136, 1)[0] = 0  # and before it had counted
    segment.close()
    second = bridge()
    pushed = [second.push(bytes([k])) for k in range(9)]
    assert pushed == [True] * 7 + [False] * 2
    assert hand.all() == [b"one", *(bytes([k]) for k in range(7))]
    assert is_balanced(source)


def test_a_reader_that_starts_again_goes_on_at_the_frame_it_had_in_hand(bridge, path):
    producer = bridge()
    for data in (b"one", b"two", b"three"):
        producer.push(data)
    segment, source = reader(path)
    hand = Packets(segment, source)
    assert hand.next() == b"one"
    assert hand.next() == b"two"
    source._mapping.close()  # as a kill leaves it: nothing handed back
    segment, source = reader(path)
    assert Packets(segment, source).all() == [b"two", b"three"]
    source.close()


def test_close_hands_the_frame_in_hand_back(bridge, path):
    producer = bridge()
    producer.push(b"one")
    producer.push(b"two")
    segment, source = reader(path)
    hand = Packets(segment, source)
    assert hand.next() == b"one"
    source.close()
    source.close()
    assert next_frame(source.state, hand.packet) < 0
    assert segment.array("dpdk", _record())[0]["kind"] == CLOSED
    segment, source = reader(path)
    assert Packets(segment, source).all() == [b"two"]
    source.close()


def _record():
    from nimbus.feed.dpdk import DPDK_SOURCE

    return DPDK_SOURCE


def test_a_ring_of_other_sizes_is_made_anew_and_nothing_in_the_old_one_is_lost(bridge, attach, path):
    first = bridge()
    source, hand = attach()
    sent = [b"a", b"b", b"c"]
    for data in sent:
        first.push(data)
    assert hand.next() == b"a"
    first.die()
    second = bridge(slots=16, frame_size=200)
    assert second.note == f"{path}: replaced a ring of 8 frames of 96 bytes"
    second.push(b"d" * 200)
    source.refresh()
    assert source.status(0).generation == 1
    assert hand.next() == b"b"  # the old ring first
    source.refresh()
    assert not try_reader_lock(path), "the new one is ours already"
    assert hand.all() == [b"c"]  # empty now: the loop moves over
    assert hand.all() == [b"d" * 200]
    counts = source.counters()
    assert (counts["restarts"], counts["segments"]) == (1, 2)
    assert (counts["offered"], counts["received"], counts["written"]) == (4, 4, 4)
    second.push(b"e")
    assert hand.all() == [b"e"]
    assert is_balanced(source)
    assert source.trouble == ""


def test_a_removed_file_is_followed_to_the_one_made_next(bridge, attach, path):
    first = bridge()
    source, hand = attach()
    first.push(b"a")
    first.die()
    path.unlink()  # as the removal of orphans does
    source.refresh()
    assert source.trouble == ""
    bridge().push(b"b")
    source.refresh()
    assert hand.all() == [b"a"]
    assert hand.all() == [b"b"]
    assert source.counters()["segments"] == 2


def test_a_file_put_in_the_place_of_a_living_bridge_is_not_followed(bridge, attach, path, library):
    first = bridge()
    source, hand = attach()
    path.unlink()
    other = Producer(library, path)
    first.push(b"still here")
    source.refresh()
    assert hand.all() == [b"still here"]
    assert source.counters()["segments"] == 1
    other.die()


def test_a_new_file_that_is_no_ring_is_told_and_the_old_one_kept(bridge, attach, path):
    first = bridge()
    source, hand = attach()
    first.push(b"a")
    first.die()
    path.unlink()
    path.write_bytes(b"what is this" * 20)
    source.refresh()
    assert "not a segment" in source.trouble
    assert hand.all() == [b"a"]
    path.unlink()
    bridge().push(b"b")
    source.refresh()
    assert source.trouble == ""
    assert hand.all() + hand.all() == [b"b"]


def test_a_closed_reader_leaves_no_mapping_and_no_lock_behind(bridge, attach, path):
    first = bridge()
    source, _hand = attach()
    first.die()
    second = bridge(slots=16)
    source.refresh()  # two segments are mapped
    second.die()  # and a third time by the bridge, which lives in this process
    assert _mapped(path) == 2
    source.close()
    assert _mapped(path) == 0
    assert try_reader_lock(path)


def _mapped(path: pathlib.Path) -> int:
    return pathlib.Path("/proc/self/maps").read_text().count(str(path))


def test_frames_survive_any_number_of_kills_of_the_bridge(program, path):
    """Each bridge goes on with the number the ring stands at, so every loss and every repeat would show."""
    rand = random.Random(5)
    segment, source, packet = None, None, 0
    number, kills = 1, 0
    while number <= LAST:
        child = subprocess.Popen([program, path, "256", str(LAST)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        if source is None:
            segment, source = reader(path)
            packet = segment.allocate("packet", PACKET.size)
        if kills < 25:
            number = check_numbered(source.state, packet, number, number + rand.randrange(9_000), POLLS_MAX)
            child.kill()
            assert child.wait() == -signal.SIGKILL
            kills += 1
        else:
            number = check_numbered(source.state, packet, number, LAST, POLLS_MAX)
            assert child.wait(60) == 0
        child.stdout.close()
        assert number > 0, f"frame {-number} is wrong"
    counts = source.counters()
    assert number == LAST + 1
    assert (counts["received"], counts["written"], counts["waiting"]) == (LAST, LAST, 0)
    assert counts["restarts"] == kills == 25
    source.close()


def test_frames_survive_any_number_of_kills_of_the_reader(program, path):
    rand = random.Random(6)
    bridge = subprocess.Popen([program, path, "256", str(ENDLESS)], stdout=subprocess.PIPE)
    assert bridge.stdout.readline() == b"ready\n"
    watched = Segment.attach(path, layout_version=dpdk_layout.DPDK_LAYOUT_VERSION)
    ring, expected = RingView(watched, "dpdk.frames"), 1
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "dpdk_load.py", path, str(ENDLESS)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        assert int(child.stdout.readline()) == expected
        enough = expected + rand.randrange(20_000)
        until(lambda enough=enough: ring.popped > enough)
        child.kill()
        rest, _ = child.communicate()
        assert rest == "", f"it ended by itself: {rest}"
        expected = ring.popped + 1
    segment, source = reader(path)
    packet = segment.allocate("packet", PACKET.size)
    last = expected + 100_000
    assert check_numbered(source.state, packet, expected, last, POLLS_MAX) == last + 1
    bridge.kill()
    bridge.communicate()
    assert source.counters()["dropped"] == 0
    subprocess.run([program, path, "256", "1"], check=True)  # takes over, has nothing to send, ends
    assert is_balanced(source, expected - 1)
    source.close()
    watched.close()


# ---------------------------------------------------------------- who lives


def test_the_state_of_the_bridge_is_told(bridge, attach):
    producer = bridge()
    source, _hand = attach()
    producer.beat(5_000)
    assert source.status(6_000) == ("starting", this_process().pid, 1, 1_000)
    producer.set_state(dpdk_layout.BRIDGE_POLLING)
    assert source.status(6_000).state == "polling"
    assert source.status(5_000 + HEARTBEAT_MAX_NS).state == "polling"
    assert source.status(5_001 + HEARTBEAT_MAX_NS).state == "silent"
    producer.die()
    assert source.status(6_000).state == "dead"
    producer = bridge()
    assert source.status(time.monotonic_ns()).state == "starting"
    producer.stop()
    assert source.status(6_000).state == "stopped"


def test_a_second_bridge_is_refused(bridge, library, path):
    bridge()
    with pytest.raises(
        OSError, match=f"^{re.escape(str(path))}: another bridge, process \\d+, writes to it$"
    ):
        Producer(library, path, slots=16)


def test_a_second_reader_is_refused(bridge, attach):
    bridge()
    source, _hand = attach()
    with pytest.raises(SourceError, match=r"another reader takes its frames$"):
        attach()
    source.close()
    attach()


# ---------------------------------------------------------------- refusals


def test_a_missing_segment_is_told_with_what_to_start(attach, path):
    with pytest.raises(SourceError) as error:
        attach()
    assert str(error.value) == f"source dpdk: {path}: no such segment: start contrafusion-dpdk-bridge first"


def _patched(path, at: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value.to_bytes(8, "little"))


def test_a_segment_of_another_version_is_refused_by_the_reader_and_replaced_by_a_bridge(bridge, attach, path):
    bridge().die()
    _patched(path, SEGMENT_HEADER.at.layout_version, 9)
    with pytest.raises(
        SourceError,
        match=r"layout version 9, expected 1: not a ring of this version of contrafusion-dpdk-bridge$",
    ):
        attach()
    assert bridge().note == f"{path}: replaced a ring of layout version 9"
    attach()


def test_a_damaged_ring_is_refused_by_the_reader_and_replaced_by_a_bridge(bridge, attach, path):
    bridge().die()
    watched = Segment.attach(path, writable=True)
    watched.words(watched.areas["dpdk.frames"][0] + 128, 1)[0] = 5  # head above tail
    watched.close()
    with pytest.raises(SourceError, match=r"ring 'dpdk.frames' is damaged$"):
        attach()
    assert bridge().note == f"{path}: replaced a damaged ring"
    attach()


def test_an_impossible_frame_size_is_refused(bridge, attach, path):
    bridge()
    watched = Segment.attach(path, writable=True)
    watched.words(watched.areas["dpdk.bridge"][0] + 8, 1)[0] = -1
    watched.close()
    with pytest.raises(SourceError, match=r"frames of -1 bytes: the segment is damaged$"):
        attach()


def test_a_segment_of_the_daemon_is_neither_read_nor_replaced(library, attach, path):
    daemon = Segment.create(path, 4_096, 1)
    with pytest.raises(SourceError, match=r"a segment without a DPDK ring$"):
        attach()
    with pytest.raises(OSError, match=r"exists already and is a segment without a DPDK ring$"):
        Producer(library, path)
    assert path.stat().st_size > 4_096
    daemon.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "exists already and is not a segment of ours"),
        (b"a file of somebody", "exists already and is not a segment of ours"),
        (
            MAGIC.to_bytes(8, "little") + (7).to_bytes(8, "little") + bytes(112),
            "exists already, header version 7, expected 1",
        ),
        (MAGIC.to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(112), "exists already and is cut"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_kept(library, path, text, reason):
    path.write_bytes(text)
    with pytest.raises(OSError, match=f"{reason}$"):
        Producer(library, path)
    assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there_and_a_link_are_refused(library, path):
    with pytest.raises(OSError, match=r"cannot create: No such file or directory$"):
        Producer(library, path / "below")
    path.symlink_to("/dev/null")
    with pytest.raises(OSError, match=r"cannot open: Too many levels of symbolic links$"):
        Producer(library, path)


def test_a_disk_that_is_too_small_is_told_before_anything_runs(library, path):
    with pytest.raises(OSError, match=r"cannot reserve \d+ bytes: (No space left on device|File too large)$"):
        Producer(library, path, slots=1 << 50, frame_size=1_024)
    assert list(path.parent.iterdir()) == []


def test_a_name_that_is_taken_leaves_no_lock_behind(bridge, path):
    bridge()
    segment, source = reader(path)
    source.close()
    with pytest.raises(ValueError, match="exists already"):
        DpdkBridge(segment, path)
    assert try_reader_lock(path)


def test_waiting_for_something_that_never_happens_is_a_failure(monkeypatch):
    monkeypatch.setattr("dpdk_rig.WAIT_S", 0)
    with pytest.raises(AssertionError, match="within 0 s"):
        until(lambda: False)
