"""Offer mutated datagrams and snapshot rows to live feeds, each ending at a page that may not be touched.

Run in a process of its own, the project and its tests on PYTHONPATH.
usage: live_fuzz.py STEPS SEED | live_fuzz.py overrun
"""

from __future__ import annotations

import json
import sys

import captures as c
from feed_fuzz import Samples, mutate, overrun, random
from feeding import guarded_page

from nimbus.feed.arbiter_state import ARBITER, ROW_BYTES_MAX, ROW_MESSAGES, SLOT, SNAPSHOT_ROW
from nimbus.feed.decode import Feed, next_message, open_packet
from nimbus.feed.itch import size_of
from nimbus.feed.live import LiveSettings
from nimbus.feed.state import FEED
from nimbus.feed.timers import feed_timers
from nimbus.messages import LINK_UDP, PACKET
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    copy,
    load_i64,
    put_u2,
    put_u8,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
    u1,
    u2,
)
from ringbuf.segment import Segment
from ringbuf.spsc import HEADER_SIZE, claim, publish

BROKEN = -1
WINDOW = 1_024
_P, _F, _A, _R = PACKET.at, FEED.at, ARBITER.at, SNAPSHOT_ROW.at
_SAMPLE_SIZE, _ROW_SIZE, _SLOT_SIZE = 64, SNAPSHOT_ROW.size, SLOT.size
_ROWS = 1_024


@inlined
def is_inside(feed: int, message: int, at: int, end: int) -> bool:
    """Say whether a message lies in the datagram, the window or the ring, and has its size."""
    size, arbiter = size_of(u1(message)), load_i64(feed + _F.arbiter)
    slots, ring = load_i64(arbiter + _A.slots), load_i64(arbiter + _A.ring)
    good = message >= at and size <= end - message
    good = good or (message >= slots and size <= slots + WINDOW * _SLOT_SIZE - message)
    rows = ring + HEADER_SIZE
    good = good or (ring != 0 and message >= rows and size <= rows + _ROWS * _ROW_SIZE - message)
    return size > 0 and good


@inlined
def drain(feed: int, at: int, end: int) -> int:
    """Take all messages; return how many, or BROKEN."""
    count = 0
    while True:
        message = next_message(feed)
        if message == 0:
            return count
        if not is_inside(feed, message, at, end):
            return BROKEN
        count += 1


@inlined
def push_row(feed: int, at: int, size: int, dice: int) -> None:
    """Put a row of any kind, with any bytes, into the ring."""
    arbiter = load_i64(feed + _F.arbiter)
    row = claim(load_i64(arbiter + _A.ring))
    if row == 0:
        return
    count = (dice >> 32) % 4
    if size >= 20 and (dice >> 36) & 7:  # the messages of the datagram
        at, size, count = at + 20, size - 20, u2(at + 18)
    size = min(size, ROW_BYTES_MAX)
    store_i64(row + _R.kind, ROW_MESSAGES if (dice >> 40) & 1 else dice % 5)
    store_i64(row + _R.wanted, load_i64(arbiter + _A.wanted) - (dice >> 4) % 2 * ((dice >> 5) & 1))
    seq = load_i64(feed + _F.expected) + (dice >> 8) % 40 - 20
    store_i64(row + _R.seq, seq if (dice >> 20) % 16 else (dice >> 3) - (1 << 58))
    store_i64(row + _R.session_high, load_i64(feed + _F.session_high) + ((dice >> 24) % 16 == 0))
    store_i64(row + _R.session_low, load_i64(feed + _F.session_low))
    store_u32(row + _R.size, size if (dice >> 28) % 8 else dice & 0xFFFF_FFFF)
    store_u32(row + _R.count, count)
    copy(row + _R.bytes, at, size)
    publish(load_i64(arbiter + _A.ring))


@kernel
def fuzz_live(
    feed: int, packet: int, samples: int, sample_count: int, end: int, steps: int, seed: int
) -> int:
    """Offer `steps` mutated datagrams on any line, let time pass; return the messages given, or BROKEN."""
    messages, now_ns, arbiter = 0, 1_000_000_000, load_i64(feed + _F.arbiter)
    for step in range(steps):
        dice = random(seed, step * 32 + 30)
        sample = samples + random(seed, step * 32 + 31) % sample_count * _SAMPLE_SIZE
        size = mutate(seed, step, sample, end)
        at = end - size
        if size >= 20 and load_i64(feed + _F.run) != 0 and (dice >> 8) & 15 != 0:
            put_u8(at, load_i64(feed + _F.session_high))
            put_u2(at + 8, load_i64(feed + _F.session_low))
        if size >= 20 and dice & 7 < 6:  # most of them near the place where the feed stands
            put_u8(at + 10, load_i64(feed + _F.expected) + (dice >> 3) % 24 - 12)
        elif size >= 20 and dice & 7 == 6:
            put_u8(at + 10, load_i64(arbiter + _A.high) + (dice >> 3) % (2 * WINDOW))
        store_i64(packet + _P.frame_at, at)
        store_i64(packet + _P.recv_ns, now_ns)
        store_u32(packet + _P.size, size)
        store_u32(packet + _P.wire_size, size)
        store_u16(packet + _P.link, LINK_UDP)
        store_u8(packet + _P.line, (dice >> 16) % 5)
        open_packet(feed, packet)
        count = drain(feed, at, end)
        if load_i64(arbiter + _A.ring) != 0 and (dice >> 20) % 4 == 0:
            push_row(feed, at, size, random(seed, step * 32 + 29))
        now_ns += (dice >> 24) % 400_000
        feed_timers(feed, now_ns)
        more = drain(feed, at, end)
        if count < 0 or more < 0:
            return BROKEN
        messages += count + more
    return messages


def samples() -> Samples:
    """Return datagrams of two sessions, control packets, and length-framed messages as rows hold them."""
    kinds = [
        c.itch(letter, size)
        for letter, size in (("A", 36), ("D", 19), ("?", 7), ("", 0), ("P", 44), ("E", 31))
    ]
    rows = [c.mold(b"SESSION001", n, kinds[: n % 7]) for n in range(1, 30)]
    rows += [c.mold(b"SESSION001", n, kinds[:1]) for n in range(1, 30)]
    rows += [c.mold(b"SESSION002", n, kinds[:2]) for n in range(1, 5)]
    rows += [c.mold(b"SESSION001", 1, [], count=n) for n in (0, 0, 0xFFFF)]
    rows += [c.blocks(kinds[:n]) for n in range(1, 4)]
    return Samples([(row, LINK_UDP) for row in rows])


def balance(feed: Feed) -> list[int]:
    """Return what is left over of each account; all are 0."""
    counts, live = feed.counters(), feed.live.counters()
    done = counts["delivered"] + live["kept"] + counts["heartbeats"] + counts["session_ends"]
    repaired = live["by_line"] + live["by_rerequest"] + live["by_snapshot"]
    closed = sum(live[f"gaps_{how}"] for how in ("by_line", "by_rerequest", "by_snapshot", "lost"))
    return [
        counts["frames"] - done - sum(feed.refused().values()),
        live["missing"] - repaired - live["lost"] - feed.live.missing_now(),
        live["gaps"] - closed - int(feed.live.record["open"]),
    ]


def main() -> None:
    """Fuzz feeds with and without servers and print what came of it as JSON."""
    end = guarded_page()
    if sys.argv[1] == "overrun":
        overrun(end)
        return
    steps, seed = int(sys.argv[1]), int(sys.argv[2])
    rows, results = samples(), []
    for number, (servers, snapshot, agree) in enumerate(
        [(2, True, 3), (1, False, 3), (0, True, 2), (0, False, 1), (2, True, 1)]
    ):
        segment = Segment.anonymous(8 * 1024 * 1024)
        settings = LiveSettings(
            window_messages=WINDOW, servers=[("127.0.0.1", 1 + n) for n in range(servers)],
            snapshot=snapshot, gap_timeout_ms=20, snapshot_hold_ms=1, snapshot_timeout_ms=100, retries=2,
        )  # fmt: skip
        feed, packet = Feed(segment, live=settings, agree=agree), segment.allocate("packet", PACKET.size)
        messages = fuzz_live(feed.addr, packet, rows.addr, rows.count, end, steps, seed + number)
        results.append({
            "messages": messages, "balance": balance(feed), "runs": feed.run, "refused": feed.refused(),
            **feed.live.counters(),
        })  # fmt: skip
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
