"""Mutated packets of a generated day through the whole pipeline, every table before a guard page.

    python pipeline_fuzz.py DAY.pcap PACKETS SEED FOLDER

Run in a process of its own: an access outside a table is a SIGSEGV.  Prints one JSON object of counts.
SEED `plant` writes one word behind a table on purpose, to show that the guard pages are there.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import mmap
import pathlib
import random
import struct
import sys
from collections import Counter

from captures import pcap

from daemon.config import BookConfig, Config, JournalConfig, ModelConfig, NewsConfig, OrdersConfig
from daemon.replay import Replay
from daemon.system import System, segment_size
from nimbus.book.invariants import FAULTS, check_books
from nimbus.feed.itch import MESSAGES
from nimbus.journal.verify import verify
from ringbuf.segment import Segment

PAGE = mmap.PAGESIZE
GUARDS = 256
PACKETS_A_ROUND = 2_000
MOLD_AT = 14 + 20 + 8  # Ethernet, IPv4, UDP
BLOCKS_AT = MOLD_AT + 20
LAYOUTS = {message.code: message for message in MESSAGES}
EXTREMES = (
    0,
    1,
    2,
    100,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    2**63,
    2**64 - 1,
)
FIELDS, BYTES, SEQUENCE = range(3)  # what a round mutates


class GuardedSegment(Segment):
    """Puts each area directly before a page that cannot be touched."""

    def allocate(self, name: str, size: int, *, align: int = 64) -> int:
        size = (size + align - 1) & -align
        at = self._base + int(self._header["used"][0])
        super().allocate(f"{name}<", -(at + size) % PAGE)
        found = super().allocate(name, size)
        guard = super().allocate(f"{name}>", PAGE)
        assert guard % PAGE == 0
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), PAGE, 0) == 0
        return found


def small_config(news: pathlib.Path | None = None) -> Config:
    """Return small tables, so that their limits are reached too."""
    return dataclasses.replace(
        Config(),
        book=BookConfig(symbols_max=64, live_orders_max=300, levels_max=150),
        model=ModelConfig(kind="rule"),
        news=NewsConfig(file=str(news) if news else ""),
        orders=OrdersConfig(day_orders_max=1_024),
        journal=JournalConfig(ring_records=4_096, segment_mib=1),
    )


def split(capture: bytes) -> list[tuple[int, bytes]]:
    """Return (ns, frame) of each record of a little-endian ns pcap."""
    out, at = [], 24
    while at < len(capture):
        seconds, fraction, size, _ = struct.unpack_from("<IIII", capture, at)
        out.append((seconds * 10**9 + fraction, capture[at + 16 : at + 16 + size]))
        at += 16 + size
    return out


def blocks_of(frame: bytes) -> list[int]:
    """Return where each message of a frame begins."""
    (count,) = struct.unpack_from(">H", frame, MOLD_AT + 18)
    found, at = [], BLOCKS_AT
    for _ in range(count if count != 0xFFFF else 0):
        found.append(at + 2)
        at += 2 + struct.unpack_from(">H", frame, at)[0]
    return found


def change_field(frame: bytearray, rand: random.Random, refs: list[bytes]) -> None:
    """Give one field of one message another value: an extreme, any, or one that another message had."""
    starts = blocks_of(bytes(frame))
    if not starts:
        return
    start = rand.choice(starts)
    layout = LAYOUTS[frame[start]]
    field = rand.choice(layout.dtype.names[1:])
    kind, at = layout.dtype.fields[field][:2]
    size = kind.itemsize
    if field in {"order_ref", "new_ref"}:
        refs.append(bytes(frame[start + at : start + at + size]))
        del refs[:-4_096]
        value = rand.choice(refs) if rand.random() < 0.7 else rand.randbytes(size)
    elif size <= 8 and rand.random() < 0.6:
        value = (rand.choice(EXTREMES) % 2 ** (8 * size)).to_bytes(size, "big")
    else:
        value = rand.randbytes(size)
    frame[start + at : start + at + size] = value


def change_bytes(frame: bytearray, rand: random.Random) -> None:
    """Flip bytes, mostly behind the headers; or cut the frame, or let it go on."""
    draw = rand.random()
    if draw < 0.1:
        del frame[rand.randrange(len(frame)) :]
    elif draw < 0.2:
        frame += rand.randbytes(rand.randrange(1, 200))
    else:
        first = 0 if draw < 0.3 else BLOCKS_AT
        for _ in range(rand.randrange(1, 5)):
            if len(frame) > first:
                frame[rand.randrange(first, len(frame))] = rand.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, rand.randrange(256))
                )


def change_sequence(frame: bytearray, rand: random.Random) -> None:
    """Change the MoldUDP64 header: session, sequence number or count."""
    seq, count = struct.unpack_from(">QH", frame, MOLD_AT + 10)
    draw = rand.random()
    if draw < 0.4:
        step = rand.choice((-50, -2, -1, 1, 2, 50, 10**6))
        struct.pack_into(">Q", frame, MOLD_AT + 10, (seq + step) % 2**64)
    elif draw < 0.6:
        struct.pack_into(
            ">H", frame, MOLD_AT + 18, rand.choice((0, count + 1, count - 1, 0xFFFE, 0xFFFF)) & 0xFFFF
        )
    elif draw < 0.9:
        frame[MOLD_AT : MOLD_AT + 10] = rand.choice((b"SECOND    ", b"THIRD     ", bytes(10)))
    else:
        struct.pack_into(">Q", frame, MOLD_AT + 10, rand.choice(EXTREMES))


def mutated(frames: list[tuple[int, bytes]], what: int, rand: random.Random, refs: list[bytes]) -> bytes:
    """Return a capture of the frames, about one in three of them changed."""
    out: list[tuple[int, bytes]] = []
    for ns, whole in frames:
        frame = bytearray(whole)
        if rand.random() < 0.33 and len(frame) >= BLOCKS_AT:
            if what == FIELDS or rand.random() < 0.3:
                change_field(frame, rand, refs)
            elif what == BYTES:
                change_bytes(frame, rand)
            else:
                change_sequence(frame, rand)
        copies = rand.choice((0, 2)) if what == SEQUENCE and rand.random() < 0.02 else 1
        out += [
            (max(ns + (rand.randrange(-(10**9), 10**9) if rand.random() < 0.01 else 0), 0), bytes(frame))
        ] * copies
    return pcap(out)


def check(system: System, folder: pathlib.Path) -> None:
    """Assert what must hold after any input."""
    fault = check_books(system.books.state)
    assert fault == 0, FAULTS[fault]
    feed, refused = system.feed.counters(), system.feed.refused()
    assert feed["frames"] == feed["delivered"] + feed["heartbeats"] + feed["session_ends"] + sum(
        refused.values()
    )
    text_of = system.books.symbol_text
    held: Counter[int] = Counter()
    for row in system.orders.pool.taken:
        held[int(row["locate"])] += int(row["cum_qty"]) * (1 if row["side"] == ord("B") else -1)
        assert 0 <= row["cum_qty"] <= row["qty"]
        assert row["px"] > 0
    for locate, qty in held.items():
        assert int(system.orders.position_row(locate)["position_qty"]) == qty, text_of(locate)
    assert verify(folder / "journal").ok
    assert system.orders.alarms() == {}


def one_round(capture: bytes, folder: pathlib.Path, config: Config) -> Counter[str]:
    """Replay one mutated capture with every table guarded; return what happened."""
    path = folder / "round.pcap"
    path.write_bytes(capture)
    segment = GuardedSegment.anonymous(segment_size(config) + 2 * GUARDS * PAGE)
    system = System(config, path, segment=segment)
    replay = Replay(system, folder)
    replay.run()
    system.close()
    check(system, folder)
    orders = system.orders.counters()
    feed, books = system.feed, system.books.counters()
    return Counter(
        messages=int(system.control["heartbeat"]),
        packets=feed.counters()["frames"],
        orders=orders["sent"],
        fills=orders["trades"],
        bad=sum(books[name] for name in ("unknown_ref", "bad_px", "bad_qty")),
        refused=sum(feed.refused().values()),
        full=books["full"],
        runs=feed.run,
    )


def plant(config: Config) -> None:
    """Write one word behind a guarded table."""
    segment = GuardedSegment.anonymous(segment_size(config) + 2 * GUARDS * PAGE)
    addr = segment.allocate("table", 640)
    ctypes.c_int64.from_address(addr + 632).value = 1
    sys.stdout.write("inside\n")
    sys.stdout.flush()
    ctypes.c_int64.from_address(addr + 640).value = 1


def main() -> None:
    day, packets, seed, folder = sys.argv[1:]
    path = pathlib.Path(day)
    config = small_config(path.with_suffix(".news.jsonl"))
    if seed == "plant":
        plant(config)
        return
    frames, rand, refs = split(path.read_bytes()), random.Random(int(seed)), [bytes(8)]
    opening, total, done = frames[:20], Counter[str](), 0
    while done < int(packets):
        start = rand.randrange(20, len(frames) - PACKETS_A_ROUND) if done else 20
        chunk = frames[start : start + PACKETS_A_ROUND - 20]
        gap = struct.unpack_from(">Q", chunk[0][1], MOLD_AT + 10)[0] - following(opening[-1][1])
        what = (done // PACKETS_A_ROUND) % 3
        capture = mutated(opening + [(ns, renumbered(f, gap)) for ns, f in chunk], what, rand, refs)
        total += one_round(capture, pathlib.Path(folder), config)
        done += PACKETS_A_ROUND
        gc.collect()
    sys.stdout.write(json.dumps(dict(total)) + "\n")


def following(frame: bytes) -> int:
    """Return the sequence number after a frame's last message."""
    seq, count = struct.unpack_from(">QH", frame, MOLD_AT + 10)
    return seq + (count if count != 0xFFFF else 0)


def renumbered(frame: bytes, less: int) -> bytes:
    """Return the frame with its sequence number lowered: the rounds begin anywhere in the day."""
    seq = struct.unpack_from(">Q", frame, MOLD_AT + 10)[0]
    return frame[: MOLD_AT + 10] + struct.pack(">Q", seq - less) + frame[MOLD_AT + 18 :]


if __name__ == "__main__":
    main()
