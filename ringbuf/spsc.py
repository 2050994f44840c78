"""Single-producer single-consumer ring of fixed-size records; a ring is one int64, its base address.

Each side owns its index and a cached copy of the other side's, each on a line of its own, so in the
steady state a push touches no line that the consumer writes.  The producer may fill a slot in place:
`claim` gives its address, `publish` makes it visible.  A full ring refuses and counts; it never blocks.

    line 0  tail: records pushed          (producer)     line 3  cached tail            (consumer)
    line 1  cached head, refused count    (producer)     line 4  mask, record size, base of slots (fixed)
    line 2  head: records popped          (consumer)     line 5  record 0, record 1, ...
"""

from __future__ import annotations

from typing import Final

from ringbuf.atomics import load_acquire, load_relaxed, store_release
from ringbuf.jit import inlined
from ringbuf.memory import copy, load_i64, store_i64
from ringbuf.records import CACHE_LINE, Record
from ringbuf.segment import Segment

TAIL, HEAD_CACHE, REFUSED, HEAD, TAIL_CACHE, MASK, RECORD_SIZE = 0, 64, 72, 128, 192, 256, 264
HEADER_SIZE: Final = 5 * CACHE_LINE


def ring_size(capacity: int, record: Record) -> int:
    """Return the bytes of a ring of `capacity` records; capacity must be a power of two."""
    if capacity < 1 or capacity & (capacity - 1):
        msg = f"ring capacity must be a power of two, got {capacity}"
        raise ValueError(msg)
    return HEADER_SIZE + capacity * record.size


def create_ring(segment: Segment, name: str, capacity: int, record: Record) -> int:
    """Allocate an empty ring of `capacity` records (a power of two) in `segment`; return its address."""
    ring = segment.allocate(name, ring_size(capacity, record))
    store_words(segment, ring, {MASK: capacity - 1, RECORD_SIZE: record.size})
    return ring


def store_words(segment: Segment, base: int, words: dict[int, int]) -> None:
    """Write int64 words at base + offset, before the segment is shared."""
    for offset, value in words.items():
        segment.words(base + offset, 1)[0] = value


@inlined
def claim(ring: int) -> int:
    """Return the address of the slot to fill next, or 0 when the ring is full (counted)."""
    tail, mask = load_relaxed(ring + TAIL), load_i64(ring + MASK)
    if tail - load_i64(ring + HEAD_CACHE) > mask:
        head = load_acquire(ring + HEAD)  # pairs with store_release in pop(): the slot is free again
        store_i64(ring + HEAD_CACHE, head)
        if tail - head > mask:
            store_i64(ring + REFUSED, load_i64(ring + REFUSED) + 1)
            return 0
    return ring + HEADER_SIZE + (tail & mask) * load_i64(ring + RECORD_SIZE)


@inlined
def publish(ring: int) -> None:
    """Make the claimed slot visible to the consumer."""
    store_release(ring + TAIL, load_relaxed(ring + TAIL) + 1)  # pairs with load_acquire in front()


@inlined
def try_push(ring: int, source: int) -> bool:
    """Copy one record from source and publish it; False when the ring is full (counted)."""
    slot = claim(ring)
    if slot == 0:
        return False
    copy(slot, source, load_i64(ring + RECORD_SIZE))
    publish(ring)
    return True


@inlined
def front(ring: int) -> int:
    """Return the address of the oldest record, or 0 when the ring is empty; valid until pop()."""
    head, mask = load_relaxed(ring + HEAD), load_i64(ring + MASK)
    if head == load_i64(ring + TAIL_CACHE):
        tail = load_acquire(ring + TAIL)  # pairs with store_release in publish(): records are visible
        store_i64(ring + TAIL_CACHE, tail)
        if tail == head:
            return 0
    return ring + HEADER_SIZE + (head & mask) * load_i64(ring + RECORD_SIZE)


@inlined
def pop(ring: int) -> None:
    """Give the oldest record's slot back to the producer."""
    store_release(ring + HEAD, load_relaxed(ring + HEAD) + 1)  # pairs with load_acquire in claim()


@inlined
def used(ring: int) -> int:
    """Return how many records lie in the ring (exact for the calling side, a bound for others)."""
    return load_acquire(ring + TAIL) - load_acquire(ring + HEAD)
