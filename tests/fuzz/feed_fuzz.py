"""Mutate frames and captures in a kernel, each ending at a page that may not be touched; print counts.

Run in a process of its own, the project and its tests on PYTHONPATH: one byte read too far ends it with a
segmentation fault.
usage: feed_fuzz.py FRAMES CAPTURES SEED | feed_fuzz.py overrun
"""

from __future__ import annotations

import json
import struct
import sys

import captures as c
import numpy as np
from feeding import LINKS, guarded_page
from test_feed_captures import FILES
from test_feed_frames import ALL_FRAMES

from nimbus.feed.capture import next_packet
from nimbus.feed.decode import Feed, next_message, open_packet
from nimbus.feed.itch import size_of
from nimbus.feed.pcap import FORMAT_ITCH, FORMAT_PCAP, FORMAT_PCAPNG, SOURCE
from nimbus.feed.state import FEED, OK
from nimbus.messages import LINK_ITCH_FILE, PACKET
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, load_u8, load_u32, store_i64, store_u8, store_u16, store_u32, u1
from ringbuf.records import record
from ringbuf.segment import Segment

SAMPLE = record("SAMPLE", "i8 at address\ni8 size bytes\ni8 link kind\n5i8 pad zero")
BROKEN = -1
_P, _F, _S, _SAMPLE, _SAMPLE_SIZE, _SOURCE_SIZE = (
    PACKET.at,
    FEED.at,
    SOURCE.at,
    SAMPLE.at,
    SAMPLE.size,
    SOURCE.size,
)


@inlined
def random(seed: int, counter: int) -> int:
    """Return 62 random bits that depend on (seed, counter) alone (splitmix64 in signed words)."""
    x = seed + counter * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return (x ^ (x >> 31)) & 0x3FFFFFFFFFFFFFFF


@inlined
def mutate(seed: int, step: int, sample: int, end: int) -> int:
    """Put a changed copy of the SAMPLE so that it ends at `end`; return its size."""
    size, dice = load_i64(sample + _SAMPLE.size), random(seed, step * 32)
    if dice & 3 == 0:
        size = (dice >> 8) % (size + 1)  # cut
    at = end - size
    copy(at, load_i64(sample + _SAMPLE.at), size)
    for change in range((dice >> 3) & 7):
        value = random(seed, step * 32 + 1 + change)
        if size > 0:
            kind, where = value & 3, at + (value >> 16) % size
            old = load_u8(where)
            new = (value >> 3) & 255
            if kind == 0:
                new = old ^ (1 << ((value >> 3) & 7))
            elif kind == 1:
                new = old + 1 if value & 4 else old - 1
            elif kind == 2:
                new = 255 if value & 4 else 0
            store_u8(where, new)
    return size


@inlined
def message_is_inside(feed: int, message: int, at: int, end: int) -> bool:
    """Say whether a delivered message lies in the frame, or among the held datagrams, and has its size."""
    size = size_of(u1(message))
    held, held_size = load_i64(feed + _F.held_at), 16 * 65_600
    inside = message >= at and size <= end - message
    kept = message >= held and size <= held + held_size - message
    return size > 0 and (inside or kept)


@kernel
def fuzz_frames(
    feed: int, packet: int, samples: int, sample_count: int, end: int, steps: int, seed: int
) -> int:
    """Offer `steps` mutated frames; return the messages delivered, or BROKEN."""
    messages = 0
    for step in range(steps):
        sample = samples + random(seed, step * 32 + 31) % sample_count * _SAMPLE_SIZE
        size = mutate(seed, step, sample, end)
        store_i64(packet + _P.frame_at, end - size)
        store_u32(packet + _P.size, size)
        store_u32(packet + _P.wire_size, size)
        store_u16(packet + _P.link, load_i64(sample + _SAMPLE.link))
        if open_packet(feed, packet) == OK:
            while True:
                message = next_message(feed)
                if message == 0:
                    break
                if not message_is_inside(feed, message, end - size, end):
                    return BROKEN
                messages += 1
    return messages


@kernel
def fuzz_captures(
    source: int, packet: int, samples: int, sample_count: int, end: int, steps: int, seed: int
) -> int:
    """Walk `steps` mutated captures; return the packets they gave, or BROKEN."""
    packets = 0
    for step in range(steps):
        sample = samples + random(seed, step * 32 + 31) % sample_count * _SAMPLE_SIZE
        size, kind = mutate(seed, step, sample, end), load_i64(sample + _SAMPLE.link)
        for word in range(0, 128 + 16, 8):
            store_i64(source + word, 0)
        store_i64(source + _S.format, kind)
        store_i64(source + _S.big_endian, step & 1)
        store_i64(source + _S.last, (step >> 1) & 1)
        store_i64(source + _S.at, end - size)
        store_i64(source + _S.end, end)
        for _record in range(size + 1):  # every record takes at least a byte
            if next_packet(source, packet) != 1:
                break
            frame, frame_size = load_i64(packet + _P.frame_at), load_u32(packet + _P.size)
            if frame < end - size or frame_size > end - frame:
                return BROKEN
            packets += 1
        at = load_i64(source + _S.at)
        if at < end - size or at > end or next_packet(source, packet) == 1:
            return BROKEN
    return packets


@kernel
def overrun(end: int) -> int:
    """Read the byte that may not be touched."""
    return u1(end)


class Samples:
    """SAMPLE rows and the bytes they point at."""

    def __init__(self, rows: list[tuple[bytes, int]]) -> None:
        self.rows, self.bytes = (
            np.zeros(len(rows), SAMPLE.dtype),
            [np.frombuffer(d, np.uint8) for d, _ in rows],
        )
        for row, data, (_, link) in zip(self.rows, self.bytes, rows, strict=True):
            row["at"], row["size"], row["link"] = data.ctypes.data, len(data), link
        self.addr, self.count = self.rows.ctypes.data, len(rows)


def frame_samples() -> Samples:
    """Return the frames of the tests, longer datagrams, control packets and pieces of ITCH files."""
    rows = [(data, LINKS[link]) for link, data in ALL_FRAMES]
    many = [
        c.itch(letter, size) for letter, size in (("A", 36), ("D", 19), ("P", 44), ("E", 31), ("?", 7))
    ] * 7
    for first in (1, 20, 36, 1_000):
        rows.append((c.frame(c.mold(b"SESSION001", first, many)), LINKS["ethernet"]))
        rows.append((c.frame(c.mold(b"SESSION002", first, many[:3])), LINKS["ethernet"]))
        rows.extend(
            (c.frame(c.mold(b"SESSION001", first, [], count=n)), LINKS["ethernet"]) for n in (0, 0xFFFF)
        )
    rows += [(c.blocks(many), LINK_ITCH_FILE), (c.blocks(many[:1]), LINK_ITCH_FILE)]
    return Samples(rows)


def capture_samples() -> Samples:
    """Return whole captures without the header that the owner steps over."""
    rows = [(FILES["pcap"][24:], FORMAT_PCAP), (FILES["pcapng"], FORMAT_PCAPNG), (FILES["itch"], FORMAT_ITCH)]
    big = (
        c.section(">")
        + c.interface(">", resolution=0xA0, offset_s=-9)
        + c.enhanced(">", 0, 1 << 40, b"x" * 61)
    )
    rows.append((big + c.section() + c.interface(snap=9) + c.simple("<", b"y" * 21), FORMAT_PCAPNG))
    endless = c.block("<", 1, struct.pack("<HHIHHI", 1, 0, 0, 2, 4, 7))  # options without an end mark
    cut = c.block("<", 1, struct.pack("<HHIHH", 1, 0, 0, 14, 8))  # an offset without its 8 bytes
    rows += [(c.section() + tail, FORMAT_PCAPNG) for tail in (endless, endless * 3, cut)]
    return Samples(rows)


def main() -> None:
    """Fuzz and print what came of it as JSON."""
    end = guarded_page()
    if sys.argv[1] == "overrun":
        overrun(end)
        return
    frames, walks, seed = (int(text) for text in sys.argv[1:4])
    segment = Segment.anonymous(4 * 1024 * 1024)
    feed, packet = Feed(segment), segment.allocate("packet", PACKET.size)
    source = segment.allocate("source", SOURCE.size)
    rows, files = frame_samples(), capture_samples()
    half = frames // 2
    messages = fuzz_frames(feed.addr, packet, rows.addr, rows.count, end, half, seed)
    feed.record["agree"] = 1  # every datagram that is held begins a new run
    more = fuzz_frames(feed.addr, packet, rows.addr, rows.count, end, frames - half, seed + 1)
    assert min(messages, more) >= 0
    messages += more
    packets = fuzz_captures(source, packet, files.addr, files.count, end, walks, seed)
    counts, refused = feed.counters(), feed.refused()
    done = counts["delivered"] + counts["heartbeats"] + counts["session_ends"] + sum(refused.values())
    result = {
        "messages": messages,
        "packets": packets,
        "balance": counts["frames"] - done,
        "refused": refused,
    }
    sys.stdout.write(json.dumps({**result, "frames": counts["frames"], "runs": feed.run}) + "\n")


if __name__ == "__main__":
    main()
