"""Recorder on a veth pair: what came over the cable is in the file, to the byte and the nanosecond."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import time

import captures as c
import pytest
from feeding import Frames
from net.traffic import GROUP_A, GROUP_B, PORT_A, PORT_B, Datagrams, Packets, plain_frames, send, send_frames

from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.decode import Subscription
from nimbus.feed.pcapng import RECORDED_BY
from nimbus.feed.recorder import Recorder
from nimbus.feed.source import SourceError
from nimbus.feed.udp import UdpSocket
from nimbus.messages import LINK_ETHERNET
from ringbuf.segment import Segment

REPLY_PORT = 26_600
LINES = [Subscription(GROUP_A, PORT_A, 0), Subscription(GROUP_B, PORT_B, 1), Subscription(None, REPLY_PORT)]
GROUP = socket.inet_aton(GROUP_A)


@pytest.fixture
def segment():
    return Segment.anonymous(4 << 20)


@pytest.fixture
def record(rig, segment, tmp_path):
    """Return a maker of recorders at the client's end; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(subscriptions=LINES, **options) -> Recorder:
            options = {"ring_mib": 8} | options
            recorder = rig.client.run(Recorder, segment, "mdc0", tmp_path, subscriptions, **options)
            return stack.enter_context(contextlib.closing(recorder))

        yield make


def udp_frame(payload: bytes, *, port: int = PORT_A, group: bytes = GROUP, tags=()) -> bytes:
    return c.ethernet(c.ipv4(c.udp(payload, c.ipv4_pseudo(group), port), group=group), tags=tags)


def replayed(recorder: Recorder) -> list[bytes]:
    """Return the frames of all files, read by our own reader."""
    frames = [Frames(path) for path in recorder.files]
    assert all(part.warnings == [] and not part.truncated for part in frames)
    assert all(set(part.links) <= {LINK_ETHERNET} for part in frames)
    return [data for part in frames for _, data in part.frames]


def test_a_session_is_recorded_whole_and_replays_to_the_same_frames(rig, record):
    recorder, reference = record(), plain_frames(rig)
    send(rig.exchange, Datagrams([b"A1", b"A2" * 300, b""]))
    send(rig.exchange, Datagrams([b"B1"]), group=GROUP_B, port=PORT_B)
    send(rig.exchange, Datagrams([b"not subscribed"]), port=PORT_A + 5)
    send(rig.exchange, Datagrams([b"reply of the rerequest server"]), group="10.77.0.2", port=REPLY_PORT)
    wanted = []
    with reference:
        while not wanted or b"reply" not in wanted[-1]:
            frame = reference.recv(2_048)
            if frame[12:14] == b"\x08\x00" and b"not subscribed" not in frame:
                wanted.append(frame)
    recorder.close()
    assert len(wanted) == 5
    assert replayed(recorder) == wanted
    counts = recorder.counters()
    assert (counts["offered"], counts["recorded"], counts["dropped"]) == (5, 5, 0)
    assert counts["bytes"] == sum(path.stat().st_size for path in recorder.files)
    assert recorder.error == ""


def test_recording_ring_and_socket_give_one_and_the_same_time(rig, record, segment):
    recorder = record()
    ring = rig.client.run(AfPacketV2, segment, "mdc0", LINES, frames=512)
    udp = rig.client.run(UdpSocket, segment, GROUP_A, PORT_A, interface="10.77.0.2")
    with contextlib.closing(ring), contextlib.closing(udp):
        first, second = Packets(segment, ring, name="a"), Packets(segment, udp, name="b")

        def stamps() -> tuple[int, int]:
            send(rig.exchange, Datagrams([b"stamp"]))
            assert first.next() is not None
            assert second.next() is not None
            return int(first.row["recv_ns"]), int(second.row["recv_ns"])

        for _ in range(200):  # Linux begins to stamp a moment after it was asked
            pair = stamps()
            if pair[0] == pair[1]:
                break
        pairs = [stamps() for _ in range(20)]
    recorder.close()
    recorded = [ns for ns, _ in Frames(recorder.files[0]).frames]
    assert [a for a, _ in pairs] == [b for _, b in pairs] == recorded[-20:]


@pytest.mark.parametrize("tags", [[(0x8100, 7)], [(0x88A8, 5), (0x8100, 7)]])
def test_vlan_tags_are_in_the_recording(rig, record, tags):
    recorder = record()
    frames = [udp_frame(b"x" * size, tags=tags) for size in range(8)]  # every padding
    send_frames(rig.exchange, frames)
    recorder.close()
    assert replayed(recorder) == frames


def test_files_are_rotated_by_size_and_each_stands_alone(rig, record):
    recorder = record(file_mib=1)
    datagrams = Datagrams.numbered(9_000, 400)
    send(rig.exchange, datagrams, 50_000)
    recorder.close()
    assert len(recorder.files) > 2
    assert [path.name for path in recorder.files[:2]] == ["packets-00000.pcapng", "packets-00001.pcapng"]
    assert all(path.stat().st_size >= 1 << 20 for path in recorder.files[:-1])
    assert [frame[42:] for frame in replayed(recorder)] == datagrams.payloads


def test_a_later_session_does_not_touch_the_files_of_an_earlier_one(rig, record):
    first = record()
    send(rig.exchange, Datagrams([b"first"]))
    first.close()
    second = record(name="second")
    send(rig.exchange, Datagrams([b"second"]))
    second.close()
    assert second.files[0].name == "packets-00001.pcapng"
    assert [frame[42:] for frame in replayed(first) + replayed(second)] == [b"first", b"second"]


def test_what_the_ring_has_no_room_for_is_counted_and_noted_in_the_file(rig, record, monkeypatch):
    recorder = record(ring_mib=1)
    monkeypatch.setattr(recorder, "_move", lambda: 0)  # the disk stalls
    datagrams = Datagrams.numbered(20_000)
    send(rig.exchange, datagrams)
    monkeypatch.undo()
    recorder.close()
    counts, kept = recorder.counters(), replayed(recorder)
    assert counts["offered"] == 20_000
    assert counts["recorded"] + counts["dropped"] == 20_000
    assert 0 < counts["recorded"] == len(kept) < 20_000
    assert [frame[42:] for frame in kept] == datagrams.payloads[: len(kept)]
    kind, body = c.pcapng_blocks(recorder.files[-1].read_bytes())[-1]
    assert kind == 5  # interface statistics
    noted = c.pcapng_options(body[12:])
    assert int.from_bytes(noted[4], "little") == counts["offered"]
    assert int.from_bytes(noted[5], "little") == counts["dropped"]


def test_a_full_disk_ends_the_recording_at_a_whole_packet_and_goes_on_counting(rig, record, monkeypatch):
    recorder = record(ring_mib=1)
    send(rig.exchange, Datagrams([b"before"]))
    wait(lambda: recorder.counters()["recorded"] == 1)
    from nimbus.feed import recorder as module

    real = module.os.write

    def full(fd: int, text) -> int:
        if fd == recorder._file:
            if len(text) > 20:
                return real(fd, bytes(text[:20]))  # some of it fits
            raise OSError(28, "No space left on device")
        return real(fd, text)

    monkeypatch.setattr(module.os, "write", full)
    send(rig.exchange, Datagrams([b"does not fit"]))
    wait(lambda: recorder.error != "")
    monkeypatch.undo()
    send(rig.exchange, Datagrams.numbered(20_000))
    wait(lambda: recorder.counters()["offered"] == 20_002)
    assert recorder.counters()["dropped"] > 0
    recorder.close()
    assert recorder.error.endswith("packets-00000.pcapng: No space left on device")
    assert [frame[42:] for frame in replayed(recorder)] == [b"before"]


def wait(is_done) -> None:
    until = time.monotonic() + 30
    while not is_done():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_the_recording_goes_on_after_the_interface_was_down(rig, record):
    recorder = record()
    send(rig.exchange, Datagrams([b"before"]))
    rig.client.set_link(up=False)
    wait(lambda: recorder.counters()["link_downs"] == 1)
    rig.client.set_link(up=True)
    send(rig.exchange, Datagrams([b"after"]))
    recorder.close()
    assert [frame[42:] for frame in replayed(recorder)] == [b"before", b"after"]


def test_an_empty_session_is_a_valid_file(record):
    recorder = record()
    recorder.close()
    assert replayed(recorder) == []


def test_the_file_is_pcapng_as_its_specification_has_it(rig, record):
    recorder, reference = record(), plain_frames(rig)
    payloads = [b"x" * size for size in (0, 1, 2, 3, 4, 1_472)]
    send(rig.exchange, Datagrams(payloads))
    recorder.close()
    blocks = c.pcapng_blocks(recorder.files[0].read_bytes())
    assert [kind for kind, _ in blocks] == [0x0A0D0D0A, 1, *[6] * 6, 5]
    assert blocks[0][1][:16] == bytes.fromhex("4d3c2b1a01000000ffffffffffffffff")
    assert c.pcapng_options(blocks[0][1][16:]) == {4: RECORDED_BY}
    assert blocks[1][1][:8] == struct.pack("<HHI", 1, 0, 0)
    assert c.pcapng_options(blocks[1][1][8:]) == {2: b"mdc0", 9: b"\x09"}
    packets = [c.pcapng_packet(body) for _, body in blocks[2:-1]]
    with reference:
        assert [frame for _, frame, _ in packets] == [reference.recv(2_048) for _ in payloads]
    assert all(wire == len(frame) for _, frame, wire in packets)
    assert [(ns, frame) for ns, frame, _ in packets] == Frames(recorder.files[0]).frames
    assert abs(packets[0][0] - time.time_ns()) < 600_000_000_000


def test_wireshark_reads_the_file(rig, record):
    tshark = shutil.which("tshark") or pytest.skip("tshark is not installed")
    recorder = record()
    send(rig.exchange, Datagrams([b"seen"]))
    recorder.close()
    command = [tshark, "-r", str(recorder.files[0]), "-T", "fields", "-e", "frame.time_epoch", "-e", "ip.dst"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    ns = Frames(recorder.files[0]).frames[0][0]
    assert answer == [f"{ns // 10**9}.{ns % 10**9:09d}", GROUP_A]


def test_a_folder_that_cannot_be_is_an_error_and_leaves_nothing_open(rig, segment, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        rig.client.run(Recorder, segment, "mdc0", tmp_path / "file" / "below", LINES)
    with pytest.raises(SourceError, match="no such interface"):
        rig.client.run(Recorder, segment, "mdc7", tmp_path, LINES)


@pytest.mark.alone
def test_two_seconds_at_full_rate_are_recorded_or_counted(rig, record):
    recorder = record(ring_mib=64)
    datagrams = Datagrams.numbered(200_000, 200)
    send(rig.exchange, datagrams, 100_000)
    recorder.close()
    counts = recorder.counters()
    assert counts["offered"] == counts["recorded"] + counts["dropped"] == 200_000
    kept = [frame[42:] for frame in replayed(recorder)]
    assert len(kept) == counts["recorded"]
    if counts["dropped"] == 0:
        assert kept == datagrams.payloads
