"""Measure the ring on this machine: round trip against a bare ping-pong, and throughput by batch size.

Only ratios mean much on a shared machine, so both are measured in turn, batch by batch, by the same two
pinned threads, and the answer (every record's number and seal) is checked all the while:

    floor  two cache lines, one written by each side, each waiting for the other's: nothing moves faster
    ring   a 64-byte record there and back through two rings
"""

from __future__ import annotations

import time
from collections import namedtuple
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ringbuf.affinity import usable_cores
from ringbuf.agent import create_stop
from ringbuf.atomics import cycles, load_acquire, load_relaxed, store_release
from ringbuf.hot_thread import HotThread
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, store_i64, wrapping_multiply
from ringbuf.records import CACHE_LINE, LINE_PAIR, record
from ringbuf.segment import Segment
from ringbuf.spsc import (
    claim,
    create_ring,
    front,
    front_at,
    pop,
    pop_many,
    publish,
    publish_many,
    ready,
    room,
    slot_at,
    try_push,
)

CAPACITY: Final = 4_096
WINDOW: Final = 65_536  # records between two counter readings of the throughput
SMALL: Final = 64  # records: both rings stay in the first-level cache, as the floor's two lines do
WAITS_MAX: Final = 1 << 36  # a wait that long (half a minute) means that the other side is gone: give up
CALIBRATIONS: Final = 9
PLACES: Final = 10  # pieces of memory that the round trips are spread over
KINDS: Final = 2  # ways to go there and back: floor, ring
PUBLISH_BATCHES: Final = (1, 8, 64)
_SEAL: Final = 0x1E3779B97F4A7C15
_SEAL_AT: Final = 56
_LOST: Final = 1 << 40  # added to the count of bad records by a side that gave up

PROBE_RECORD: Final = record("PROBE_RECORD", "i8 number from 1\n6i8 pad zero\ni8 seal number times _SEAL")

# two rings; the floor's two lines; a record; counter readings
Paths = namedtuple("Paths", "there back ping pong buffer stamps")


class ProbeError(Exception):
    """The measurement cannot be made or its answer is wrong; the text is one line."""


@inlined
def _fill(addr: int, number: int) -> None:
    store_i64(addr, number)
    store_i64(addr + _SEAL_AT, wrapping_multiply(number, _SEAL))


@inlined
def _is_wrong(addr: int, number: int) -> bool:
    return load_i64(addr) != number or load_i64(addr + _SEAL_AT) != wrapping_multiply(number, _SEAL)


@inlined
def _await_word(addr: int, value: int) -> bool:
    for _ in range(WAITS_MAX):
        if load_acquire(addr) != value:  # pairs with store_release of the other side
            continue
        return True
    return False


@inlined
def _await_front(ring: int) -> int:
    for _ in range(WAITS_MAX):
        slot = front(ring)
        if slot != 0:
            return slot
    return 0


@inlined
def _exchange_words(paths: Any, token: int) -> bool:
    store_release(paths.ping, token)  # pairs with the other side's _await_word
    return _await_word(paths.pong, token)


@inlined
def _exchange_records(paths: Any, number: int) -> int:
    _fill(paths.buffer, number)
    try_push(paths.there, paths.buffer)
    slot = _await_front(paths.back)
    if slot == 0:
        return _LOST
    wrong = int(_is_wrong(slot, number))
    pop(paths.back)
    return wrong


@kernel
def ping(paths: Any, batches: int, rounds: int) -> int:
    """Drive the round trips in turn; return how many records came back wrong.

    paths.stamps: KINDS * batches + 1 counter readings between the batches: floor, ring, floor, ...
    """
    wrong = 0
    token = load_relaxed(paths.ping)
    at = paths.stamps
    store_i64(at, cycles())
    for _batch in range(batches):
        for _ in range(rounds):
            token += 1
            if not _exchange_words(paths, token):
                return _LOST
        store_i64(at + 8, cycles())
        for _ in range(rounds):
            token += 1
            wrong += _exchange_records(paths, token)
            if wrong >= _LOST:
                return wrong
        at += 8 * KINDS
        store_i64(at, cycles())
    store_release(paths.ping, token)  # for the next call
    return wrong


@kernel
def pong(paths: Any, batches: int, rounds: int) -> int:
    """Answer ping(); return 0, or _LOST when the other side went away."""
    token = load_relaxed(paths.pong)
    for _batch in range(batches):
        for _ in range(rounds):
            token += 1
            if not _await_word(paths.ping, token):
                return _LOST
            store_release(paths.pong, token)  # pairs with the other side's _await_word
        for _ in range(rounds):
            token += 1
            slot = _await_front(paths.there)
            if slot == 0:
                return _LOST
            try_push(paths.back, slot)
            pop(paths.there)
    store_release(paths.pong, token)  # for the next call
    return 0


@kernel
def produce(ring: int, total: int, batch: int) -> int:
    """Push numbers 1..total, one publish for up to `batch` of them; return 0, or _LOST."""
    sent = 0
    for _ in range(WAITS_MAX):
        if batch == 1:
            slot = claim(ring)
            if slot != 0:
                sent += 1
                _fill(slot, sent)
                publish(ring)
        else:
            count = room(ring, min(batch, total - sent))
            for index in range(count):
                _fill(slot_at(ring, index), sent + index + 1)
            publish_many(ring, count)
            sent += count
        if sent == total:
            return 0
    return _LOST


@kernel
def consume(ring: int, total: int, batch: int, stamps: int) -> int:
    """Pop records 1..total, one pop for up to `batch` of them; return how many were wrong or out of order.

    stamps: total // WINDOW + 1 pairs (counter reading, records seen), the first at the start.
    """
    wrong = 0
    seen = 0
    store_i64(stamps, cycles())
    store_i64(stamps + 8, 0)
    at = stamps
    due = WINDOW
    for _ in range(WAITS_MAX):
        if batch == 1:
            slot = front(ring)
            if slot != 0:
                seen += 1
                wrong += _is_wrong(slot, seen)
                pop(ring)
        else:
            count = ready(ring, batch)
            for index in range(count):
                wrong += _is_wrong(front_at(ring, index), seen + index + 1)
            pop_many(ring, count)
            seen += count
        if seen >= due:
            at += 16
            due += WINDOW
            store_i64(at, cycles())
            store_i64(at + 8, seen)
        if seen == total:
            return wrong
    return wrong + _LOST


def _pair(first: tuple[Any, tuple[Any, ...]], second: tuple[Any, tuple[Any, ...]]) -> None:
    """Run two kernels on two cores and check that both return 0."""
    cores = usable_cores()
    if len(cores) < 2:
        msg = "the ring benchmark needs two cores"
        raise ProbeError(msg)
    segment = Segment.anonymous(CACHE_LINE)
    stop = create_stop(segment)
    threads = [
        HotThread(f"probe-{core}", fn, arguments, stop, core=core)
        for core, (fn, arguments) in zip(cores[:2], (first, second), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threads:
        if thread.error is not None:
            raise thread.error
        if thread.result != 0:
            msg = f"{thread.name}: {thread.result} records were lost or came out wrong"
            raise ProbeError(msg)


def _paths(segment: Segment, batches: int, capacity: int) -> Any:
    return Paths(
        there=create_ring(segment, "there", capacity, PROBE_RECORD),
        back=create_ring(segment, "back", capacity, PROBE_RECORD),
        ping=segment.allocate("ping", LINE_PAIR, align=LINE_PAIR),
        pong=segment.allocate("pong", LINE_PAIR, align=LINE_PAIR),
        buffer=segment.allocate("buffer", PROBE_RECORD.size),
        stamps=segment.allocate("stamps", (KINDS * batches + 1) * 8),
    )


def round_trips(
    batches: int = 200, rounds: int = 1_000, capacity: int = SMALL
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ns per round trip of each batch: (floor, ring).  capacity: records of each ring.

    The batches are spread over PLACES pieces of memory: how far a line has to travel depends on its address.
    """
    parts = [_round_trips(max(batches // PLACES, 1), rounds, capacity) for _ in range(PLACES)]
    floor, ring = (np.concatenate([part[kind::KINDS] for part in parts]) for kind in range(KINDS))
    return floor, ring


def _round_trips(batches: int, rounds: int, capacity: int) -> NDArray[Any]:
    segment = Segment.anonymous(2 * capacity * PROBE_RECORD.size + 64 * 1_024 + 8 * KINDS * batches)
    paths = _paths(segment, batches, capacity)
    ping(paths, 0, 0)  # compiled
    pong(paths, 0, 0)
    _pair((pong, (paths, 1, CAPACITY)), (ping, (paths, 1, CAPACITY)))  # every page and line touched
    counter = cycles_per_ns()
    _pair((pong, (paths, batches, rounds)), (ping, (paths, batches, rounds)))
    ns: NDArray[Any] = np.diff(segment.words(paths.stamps, KINDS * batches + 1)) / counter / rounds
    return ns


def throughput(batch: int, total: int = 64 * WINDOW, repeats: int = 3) -> float:
    """Return 64-byte records a second from one pinned thread to another.

    The best of all windows of WINDOW records (16 fillings of the ring): neighbours who take a core away for a
    while spoil some windows, not the figure.
    """
    best = 0.0
    for _ in range(repeats):
        segment = Segment.anonymous(CAPACITY * PROBE_RECORD.size + 8_192 + 16 * (total // WINDOW + 1))
        stamps = segment.allocate("stamps", 16 * (total // WINDOW + 1))
        spare = create_ring(segment, "spare", 1, PROBE_RECORD)
        produce(spare, 1, batch)  # compiled
        consume(spare, 1, batch, stamps)
        ring = create_ring(segment, "ring", CAPACITY, PROBE_RECORD)
        counter = cycles_per_ns()
        _pair((produce, (ring, total, batch)), (consume, (ring, total, batch, stamps)))
        reading = segment.words(stamps, 2 * (total // WINDOW + 1)).reshape(-1, 2)
        count, seen = np.diff(reading, axis=0).T
        best = max(best, float((seen / (count / counter)).max()) * 1e9)
    return best


@kernel
def _cycles() -> int:
    return cycles()


def cycles_per_ns(seconds: float = 0.02) -> float:
    """Measure the rate of the time-stamp counter.

    The median of several tries: a thread that loses its core between the two readings of a pair is wrong.
    """
    _cycles()
    rates = []
    for _ in range(CALIBRATIONS):
        began, ns = _cycles(), time.perf_counter_ns()
        time.sleep(seconds / CALIBRATIONS)
        rates.append((_cycles() - began) / (time.perf_counter_ns() - ns))
    return float(np.median(rates))


def measure(batches: int = 200, rounds: int = 1_000) -> dict[str, float]:
    """Return the ring rows of the benchmark table; raises ProbeError when a record got lost or changed.

    ring_rtt_ns, ring_pingpong_floor_ns: medians over batches; ring_rtt_ns_p99: 99th percentile of batches;
    ring_rtt_ratio: median over batches of ring to the floor beside it;
    ring_large_rtt_ratio: the same with rings of CAPACITY records, which the first-level cache cannot hold;
    ring_records_per_s_<n>: throughput at n records a publish; n: round trips of each kind.
    """
    floor, ring = round_trips(batches, rounds)
    large_floor, large = round_trips(batches, rounds, CAPACITY)
    row = {
        "ring_rtt_ns": float(np.median(ring)),
        "ring_rtt_ns_p99": float(np.percentile(ring, 99)),
        "ring_pingpong_floor_ns": float(np.median(floor)),
        "ring_rtt_ratio": float(np.median(ring / floor)),
        "ring_large_rtt_ratio": float(np.median(large / large_floor)),
        "n": float(len(floor) * rounds),
    }
    return row | {f"ring_records_per_s_{batch}": throughput(batch) for batch in PUBLISH_BATCHES}
