"""Capture files of every kind: the same packets come out, and what is damaged is told in one line."""

from __future__ import annotations

import datetime as dt
import gzip
import os
import pathlib
import struct
import threading

import captures as c
import pytest
import zstandard
from feeding import Frames
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.feed import capture
from nimbus.feed.capture import CaptureError, CaptureSource
from nimbus.feed.inspect import inspect_capture
from nimbus.feed.pcapng import TIME_MAX
from nimbus.messages import LINK_COOKED1, LINK_COOKED2, LINK_ETHERNET, LINK_ITCH_FILE, LINK_RAW_IP

START = 1_692_705_600_123_456_789
DATA = [bytes([65 + k]) * (60 + 7 * k) for k in range(9)]
PACKETS = [(START + 1_000 * k, data) for k, data in enumerate(DATA)]
MICROS = [(ns // 1_000 * 1_000, data) for ns, data in PACKETS]


def write(folder: pathlib.Path, data: bytes) -> pathlib.Path:
    path = folder / "capture"
    path.write_bytes(data)
    return path


def refusal(folder: pathlib.Path, data: bytes) -> str:
    with pytest.raises(CaptureError) as caught:
        Frames(write(folder, data))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(folder / "capture"))
    return text


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_pcap_of_both_clocks_and_byte_orders(tmp_path: pathlib.Path, order: str, nanoseconds: bool) -> None:
    file = Frames(write(tmp_path, c.pcap(PACKETS, order=order, nanoseconds=nanoseconds)))
    assert file.frames == (PACKETS if nanoseconds else MICROS)
    assert (file.truncated, file.warnings, file.packets) == (False, [], len(PACKETS))


@pytest.mark.parametrize(
    ("number", "link"),
    [(1, LINK_ETHERNET), (113, LINK_COOKED1), (276, LINK_COOKED2), (101, LINK_RAW_IP), (228, LINK_RAW_IP)],
)
def test_link_types(tmp_path: pathlib.Path, number: int, link: int) -> None:
    assert set(Frames(write(tmp_path, c.pcap(PACKETS, link=number))).links) == {link}
    with_checksums = c.pcap(PACKETS, link=number | 0x14000000)  # frame check sequence of 2 half words
    assert set(Frames(write(tmp_path, with_checksums)).links) == {link}
    blocks = c.section() + c.interface(link=number) + c.enhanced("<", 0, 5, DATA[0])
    assert set(Frames(write(tmp_path, blocks)).links) == {link}


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_both_byte_orders_with_unknown_blocks_between(tmp_path: pathlib.Path, order: str) -> None:
    data = c.section(order) + c.block(order, 0x0BAD, b"whatever") + c.interface(order, resolution=9)
    for ns, frame in PACKETS:
        data += c.enhanced(order, 0, ns, frame) + c.block(order, 5, b"statistics")
    assert Frames(write(tmp_path, data)).frames == PACKETS


def test_a_pcapng_of_several_sections_each_with_its_own_byte_order_and_interfaces(
    tmp_path: pathlib.Path,
) -> None:
    data = b""
    for k, (ns, frame) in enumerate(PACKETS):
        order = "<>"[k % 2]
        data += c.section(order) + c.interface(order, link=101) * (k % 3) + c.interface(order, resolution=9)
        data += c.enhanced(order, k % 3, ns, frame)
    file = Frames(write(tmp_path, data))
    assert file.frames == PACKETS
    assert set(file.links) == {LINK_ETHERNET}


@pytest.mark.parametrize(
    ("resolution", "offset_s", "units", "ns"),
    [
        (None, None, 1_692_705_600_123_456, 1_692_705_600_123_456_000),
        (9, None, START, START),
        (3, None, 1_692_705_600_123, 1_692_705_600_123_000_000),
        (0, None, 1_692_705_600, 1_692_705_600_000_000_000),
        (12, None, 1_692_705_600_123_456, 1_692_705_600_123),
        (9, 3_600, START, START + 3_600_000_000_000),
        (9, -3_600, START, START - 3_600_000_000_000),
        (0x80 | 20, None, (1_692_705_600 << 20) + 524_288, 1_692_705_600_500_000_000),
        (0x80 | 32, None, (1_692_705_600 << 32) + (1 << 30), 1_692_705_600_250_000_000),
        (0x80 | 33, None, (1_692_705_600 << 33) + 1, 1_692_705_600_000_000_000),
        (0x80 | 63, None, (1 << 63) + (1 << 62), 1_500_000_000),
        (0x80, None, 1_692_705_600, 1_692_705_600_000_000_000),
        (9, None, (1 << 64) - 1, TIME_MAX),
        (6, None, 1 << 63, TIME_MAX),
        (0, None, (1 << 63) - 1, TIME_MAX),
        (0x80, None, 1 << 63, TIME_MAX),
        (0x80 | 1, None, (1 << 64) - 1, TIME_MAX),
        (9, (1 << 63) - 1, 1 << 61, TIME_MAX),
        (9, -(1 << 63), START, 0),
        (18, None, (1 << 64) - 1, 18_446_744_073),
    ],
)
def test_every_interface_has_its_own_clock(
    tmp_path: pathlib.Path, resolution: int | None, offset_s: int | None, units: int, ns: int
) -> None:
    for order in "<>":
        data = (
            c.section(order)
            + c.interface(order)
            + c.interface(order, resolution=resolution, offset_s=offset_s)
        )
        file = Frames(write(tmp_path, data + c.enhanced(order, 1, units, DATA[0])))
        assert file.frames == [(ns, DATA[0])]


def test_simple_packet_blocks_have_no_time_and_obey_the_snap_length(tmp_path: pathlib.Path) -> None:
    data = c.section() + c.interface(resolution=9, snap=40) + c.enhanced("<", 0, START, DATA[0])
    data += c.simple("<", b"x" * 33) + c.simple("<", b"y" * 40, wire_size=900)
    assert Frames(write(tmp_path, data)).frames == [(START, DATA[0]), (START, b"x" * 33), (START, b"y" * 40)]


def test_time_that_goes_backwards_is_counted_and_the_clock_holds(tmp_path: pathlib.Path) -> None:
    file = Frames(write(tmp_path, c.pcap([(50, b"a" * 60), (20, b"b" * 60), (60, b"c" * 60)])))
    assert [ns for ns, _ in file.frames] == [50, 50, 60]
    assert file.warnings == ["time goes backwards 1 times"]


ITCH = [c.itch("S", 12, 100), c.itch("A", 36, 250), c.itch("?", 5), c.itch("D", 19, 260)]


def test_a_raw_itch_file_counts_its_times_from_midnight_of_its_date(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, c.blocks(ITCH))
    file = Frames(path)
    assert file.frames == [(t, c.blocks([m])) for t, m in zip([100, 250, 250, 260], ITCH, strict=True)]
    assert set(file.links) == {LINK_ITCH_FILE}
    midnight = 15_512 * 86_400_000_000_000
    assert Frames(path, date=dt.date(2012, 6, 21)).frames[0][0] == midnight + 100
    counts = inspect_capture(path)
    assert counts["messages"] == {"S": 1, "A": 1, "D": 1}
    assert (counts["delivered"], counts["unknown"]) == (3, {"?": 1})


def test_a_length_of_zero_is_an_end_mark_only_as_the_last_two_bytes(tmp_path: pathlib.Path) -> None:
    whole = c.blocks(ITCH)
    file = Frames(write(tmp_path, whole + b"\0\0"))
    assert (len(file.frames), file.truncated, file.warnings) == (4, False, [])
    assert "message length 0: not an end mark, since data follows" in refusal(
        tmp_path, whole + b"\0\0" + whole
    )
    assert refusal(tmp_path, whole + b"\0\0\0").endswith(f"at byte {len(whole)}")
    assert refusal(tmp_path, b"\0\0" + ITCH[0]).endswith("prefixes? at byte 0")
    assert len(Frames(write(tmp_path, gzip.compress(whole + b"\0\0"))).frames) == 4


def ng(packets: list[tuple[int, bytes]]) -> bytes:
    blocks = b"".join(c.enhanced("<", 0, ns, data) for ns, data in packets)
    return c.section() + c.interface(resolution=9) + blocks


FILES = {"pcap": c.pcap(PACKETS), "pcapng": ng(PACKETS), "itch": c.blocks(ITCH)}


@pytest.mark.parametrize("kind", FILES)
def test_a_capture_cut_anywhere_gives_every_whole_record_and_one_warning(
    tmp_path: pathlib.Path, kind: str
) -> None:
    whole = FILES[kind]
    frames = Frames(write(tmp_path, whole)).frames
    smallest, boundaries = {"pcap": (24, 10), "pcapng": (4, 11), "itch": (14, 4)}[kind]
    ends = {len(whole)}
    for size in range(len(whole) - 1, smallest - 1, -1):
        for data in (whole[:size], gzip.compress(whole[:size], 1)):
            file = Frames(write(tmp_path, data))
            assert file.frames == frames[: len(file.frames)]
            assert file.truncated == bool(file.warnings)
            assert len(file.warnings) <= 1
            if not file.truncated:
                ends.add(size)
    assert len(ends) == boundaries  # a cut between two records is no cut; everywhere else it was told


COMPRESSORS = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("kind", FILES)
def test_compressed_files_of_one_and_of_several_members(
    tmp_path: pathlib.Path, suffix: str, kind: str
) -> None:
    compress, whole = COMPRESSORS[suffix], FILES[kind]
    frames = Frames(write(tmp_path, whole)).frames
    assert Frames(write(tmp_path, compress(whole))).frames == frames
    members = b"".join(compress(whole[at : at + 50]) for at in range(0, len(whole), 50))
    file = Frames(write(tmp_path, members + compress(b"")))
    assert (file.frames, file.warnings) == (frames, [])
    padded = Frames(write(tmp_path, members + bytes(512)))
    assert (padded.frames, padded.warnings) == (frames, [])
    followed = Frames(write(tmp_path, members + b"trailing rubbish"))
    assert followed.frames == frames
    assert len(followed.warnings) == 1


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_cut_compressed_file_is_used_to_its_end_with_a_warning(tmp_path: pathlib.Path, suffix: str) -> None:
    whole = c.pcap([(START + k, os.urandom(200)) for k in range(3_000)])
    packed = COMPRESSORS[suffix](whole)
    file = Frames(write(tmp_path, packed[: len(packed) // 2]))
    assert 1_000 < len(file.frames) < 2_000
    assert file.truncated
    assert file.warnings


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_damaged_compressed_data_is_refused_after_what_was_good(tmp_path: pathlib.Path, suffix: str) -> None:
    packed = bytearray(COMPRESSORS[suffix](c.pcap([(START + k, os.urandom(99)) for k in range(2_000)])))
    packed[10 if suffix == "zst" else -6] ^= 0xFF  # a block header; the member's CRC
    text = refusal(tmp_path, bytes(packed))
    assert "damaged" in text


def test_skippable_zstandard_frames_are_stepped_over(tmp_path: pathlib.Path) -> None:
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    packed = skippable + zstandard.ZstdCompressor().compress(FILES["pcap"]) + skippable
    assert Frames(write(tmp_path, packed)).frames == PACKETS


def test_a_stream_longer_than_its_buffer_slides(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "CHUNK_SIZE", 700)
    monkeypatch.setattr(capture, "HEAD_SIZE", 64)
    packets = [(START + k, bytes([k % 256]) * (1 + k * 37 % 300)) for k in range(500)]
    for whole in (c.pcap(packets), ng(packets)):
        assert Frames(write(tmp_path, gzip.compress(whole))).frames == packets


def test_a_record_larger_than_the_buffer_makes_it_grow(tmp_path: pathlib.Path) -> None:
    big = c.section() + c.block("<", 0x0BAD, bytes(6_000_000)) + ng(PACKETS)
    for data in (big, gzip.compress(big, 1)):
        assert Frames(write(tmp_path, data)).frames == PACKETS


def test_a_pipe_is_read_like_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(FILES["pcap"]))
    writer.start()
    assert Frames(path).frames == PACKETS
    writer.join()


def bad_block(size: int, second: int | None = None) -> bytes:
    return c.section() + struct.pack("<III", 6, size, size if second is None else second)


REFUSALS = {
    "empty file at byte 0": b"",
    "not a capture: begins with 0x68656c6c": b"hello, this is no capture at all",
    "pcap header of 24 bytes is cut at byte 10": FILES["pcap"][:10],
    "link type 127 (IEEE 802.11 radiotap) is not supported": c.pcap(PACKETS, link=127),
    "record of 262145 bytes": FILES["pcap"][:24] + struct.pack("<IIII", 1, 2, 262_145, 262_145) + bytes(99),
    "pcapng block length 13": bad_block(13) + bytes(99),
    "pcapng block length 4": bad_block(4) + bytes(99),
    "pcapng block length 4294967292": bad_block(0xFFFFFFFC) + bytes(99),
    "the two lengths of the pcapng block differ (the second is 16) at byte 28": bad_block(12, 16) + bytes(99),
    "pcapng section without a byte-order magic (0x01020304) at byte 0": c.section()[:8]
    + b"\1\2\3\4" + c.section()[12:],
    "packet of interface 1, which the pcapng section has not declared": c.section() + c.interface()
    + c.enhanced("<", 1, 0, DATA[0]),
    "packet of interface 0": c.section() + c.interface() + c.section() + c.enhanced("<", 0, 0, DATA[0]),
    "link type 189 (Linux USB) is not supported": c.section() + c.interface(link=189)
    + c.enhanced("<", 0, 0, DATA[0]),
    "if_tsresol 0x13 is beyond": c.section() + c.interface(resolution=19),
    "if_tsresol 0xc0 is beyond": c.section() + c.interface(resolution=0x80 | 64),
    "pcapng block of 12 bytes is too short for its kind": c.section() + c.interface() + c.block("<", 6, b""),
    "record of 70 bytes": c.section() + c.interface()
    + c.block("<", 6, struct.pack("<IIIII", 0, 0, 0, 70, 70) + bytes(60)),
    "more than 1024 interfaces": c.section() + c.interface() * 1_025,
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_defect_ends_the_capture_with_one_line(tmp_path: pathlib.Path, reason: str) -> None:
    text = refusal(tmp_path, REFUSALS[reason])
    assert reason in text
    assert " at byte " in text
    if REFUSALS[reason]:
        assert reason in refusal(tmp_path, gzip.compress(REFUSALS[reason]))


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path: pathlib.Path) -> None:
    for path, reason in ((tmp_path / "absent", "No such file"), (tmp_path, "directory")):
        with pytest.raises(CaptureError, match=reason):
            CaptureSource.open(path)


def test_refill_before_the_first_walk_loses_nothing(tmp_path: pathlib.Path) -> None:
    source = CaptureSource.open(write(tmp_path, FILES["pcap"]))
    assert source.refill()
    assert source.refill()
    source.close()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=5)
)
def test_a_capture_with_changed_bytes_ends_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(FILES[kind])
    for at, value in changes:
        data[at % len(data)] = value
    path = write(tmp_path_factory.mktemp("changed"), bytes(data))
    try:
        file = Frames(path)
    except CaptureError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(len(frame) <= len(data) for _, frame in file.frames)


def test_inspect_tells_what_was_odd(tmp_path: pathlib.Path) -> None:
    datagrams = [c.mold(b"SESSION001", n, [c.itch("D", 19)]) for n in (1, 2, 2, 5)]
    counts = inspect_capture(write(tmp_path, c.pcap(enumerate(map(c.frame, datagrams)))[:-1]))
    assert counts["messages"] == {"D": 3}
    assert (counts["delivered"], counts["packets"], counts["truncated"]) == (2, 3, True)
    assert len(counts["warnings"]) == 2
