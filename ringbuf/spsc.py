"""Single-producer single-consumer ring of fixed-size records; a ring is one int64, its base address.

Each side owns its index and a cached copy of the other side's, so in the steady state a push touches no line
that the consumer writes.  Processors fetch lines in pairs of 128 bytes: no pair holds words of both writers.
The producer works from a copy of its own index: the consumer polls the published one, and reading that line
back cost 0.6 of a round trip.  That copy is stored *after* the index is published: the processor asks for the
lines of neighbouring stores at once, and a store to a private line between the record's and the index's made
them wait for each other (0.3 of a round trip).  An empty poll asks for
the next record's line ahead, which pays in a ring that outgrows the first-level cache.

The producer may fill a slot in place: `claim` gives its address, `publish` makes it visible.  A full ring
refuses and counts; it never blocks.  Batches do the same for n records with one store of the index: `room`,
`slot_at`, `publish_many` and `ready`, `front_at`, `pop_many`.

The indexes in memory are the truth and only grow; a killed side loses at most the record it had not
published, or sees again the one it had not popped.  The cached copies are guesses: a side that attaches,
restarts or was driven by other code first calls `recover_producer` or `recover_consumer`.

    line 0  tail: records pushed   (producer)     line 4  cached head, refused, own tail  (producer)
    line 1  mask, record size      (fixed)        line 5  empty: the pair of line 4
    line 2  head: records popped   (consumer)     line 6  record 0, record 1, ...
    line 3  cached tail            (consumer)
"""

from __future__ import annotations

from typing import Final

from ringbuf.atomics import load_acquire, load_relaxed, store_relaxed, store_release
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, prefetch, prefetch_write, store_i64
from ringbuf.records import CACHE_LINE, LINE_PAIR, Record
from ringbuf.segment import Segment, SegmentError

TAIL, MASK, RECORD_SIZE, HEAD, TAIL_CACHE, HEAD_CACHE, REFUSED, TAIL_OWN = 0, 64, 72, 128, 192, 256, 264, 272
HEADER_SIZE: Final = 6 * CACHE_LINE
_WORD: Final = 8


def ring_size(capacity: int, record: Record) -> int:
    """Return the bytes of a ring of `capacity` records: a power of two, of a multiple of 8 bytes each."""
    if capacity < 1 or capacity & (capacity - 1):
        msg = f"ring capacity must be a power of two, got {capacity}"
        raise ValueError(msg)
    if record.size % _WORD:
        msg = f"ring records are multiples of {_WORD} bytes, {record.name} has {record.size}"
        raise ValueError(msg)
    return HEADER_SIZE + capacity * record.size


def create_ring(segment: Segment, name: str, capacity: int, record: Record) -> int:
    """Allocate an empty ring of `capacity` records (a power of two) in `segment`; return its address."""
    ring = segment.allocate(name, ring_size(capacity, record), align=LINE_PAIR)
    store_words(segment, ring, {MASK: capacity - 1, RECORD_SIZE: record.size})
    return ring


def attach_ring(segment: Segment, name: str, record: Record) -> int:
    """Find the ring `name` in an attached segment; return its address.

    Raises SegmentError when it is absent, holds other records, or its header is damaged.  The side that
    takes over calls recover_producer or recover_consumer next.
    """
    if name not in segment.areas:
        msg = f"{segment.path}: no ring {name!r}"
        raise SegmentError(msg)
    ring, size = segment.areas[name]
    view = RingView(segment, name) if size >= HEADER_SIZE else None
    if view is None or view.record_size != record.size:
        msg = f"{segment.path}: ring {name!r} does not hold {record.name} records of {record.size} bytes"
        raise SegmentError(msg)
    fits = view.capacity >= 1 and not view.capacity & (view.capacity - 1)
    if not fits or ring_size(view.capacity, record) > size or not 0 <= view.used <= view.capacity:
        msg = f"{segment.path}: ring {name!r} is damaged"
        raise SegmentError(msg)
    return ring


def store_words(segment: Segment, base: int, words: dict[int, int]) -> None:
    """Write int64 words at base + offset, before the segment is shared."""
    for offset, value in words.items():
        segment.words(base + offset, 1)[0] = value


class RingView:
    """The numbers of a ring, read cold by anyone who maps its segment (`contrafusion top`, metrics).

    Each is exact at the moment it is read; two of them are read one after the other.
    """

    def __init__(self, segment: Segment, name: str) -> None:
        self._segment, self.name, self.addr = segment, name, segment.areas[name][0]

    def _word(self, offset: int) -> int:
        return int(self._segment.words(self.addr + offset, 1)[0])

    @property
    def pushed(self) -> int:
        """Records published since the ring was created."""
        return self._word(TAIL)

    @property
    def popped(self) -> int:
        """Records given back by the consumer."""
        return self._word(HEAD)

    @property
    def refused(self) -> int:
        """Records that met a full ring."""
        return self._word(REFUSED)

    @property
    def capacity(self) -> int:
        """Records the ring can hold."""
        return self._word(MASK) + 1

    @property
    def record_size(self) -> int:
        """Bytes of one record."""
        return self._word(RECORD_SIZE)

    @property
    def used(self) -> int:
        """Records in the ring; the head is read first, so it is never below 0, rarely one batch too high."""
        popped = self.popped
        return self.pushed - popped

    @property
    def used_ratio(self) -> float:
        """Fill level, 0 to 1."""
        return min(self.used / self.capacity, 1.0)


# ---------------------------------------------------------------- producer, one record


@inlined
def slot_at(ring: int, index: int) -> int:
    """Return the address of the index-th free slot; index < what room() or 1 what claim() has granted."""
    at = (load_i64(ring + TAIL_OWN) + index) & load_i64(ring + MASK)
    return ring + HEADER_SIZE + at * load_i64(ring + RECORD_SIZE)


@inlined
def warm_slot(ring: int) -> None:
    """Fetch the lines of the slot to fill next for writing, whether it is free yet or not."""
    slot = slot_at(ring, 0)
    for line in range(load_i64(ring + RECORD_SIZE) // CACHE_LINE):
        prefetch_write(slot + line * CACHE_LINE)


@inlined
def claim(ring: int) -> int:
    """Return the address of the slot to fill next, or 0 when the ring is full (counted)."""
    tail, mask = load_i64(ring + TAIL_OWN), load_i64(ring + MASK)
    if tail - load_i64(ring + HEAD_CACHE) > mask:
        head = load_acquire(ring + HEAD)  # pairs with store_release in pop(): the slot is free again
        store_i64(ring + HEAD_CACHE, head)
        if tail - head > mask:
            store_relaxed(ring + REFUSED, load_relaxed(ring + REFUSED) + 1)
            return 0
    return ring + HEADER_SIZE + (tail & mask) * load_i64(ring + RECORD_SIZE)


@inlined
def publish(ring: int) -> None:
    """Make the claimed slot visible to the consumer."""
    tail = load_i64(ring + TAIL_OWN) + 1
    store_release(ring + TAIL, tail)  # pairs with load_acquire in front(): the record is visible
    store_i64(ring + TAIL_OWN, tail)  # after it, see above; recover_producer heals a death in between


@inlined
def try_push(ring: int, source: int) -> bool:
    """Copy one record from source and publish it; False when the ring is full (counted)."""
    slot = claim(ring)
    if slot == 0:
        return False
    copy(slot, source, load_i64(ring + RECORD_SIZE))
    publish(ring)
    return True


# ---------------------------------------------------------------- producer, batches


@inlined
def room(ring: int, limit: int) -> int:
    """Return how many slots may be filled now, at most limit; fetches the consumer's index only if needed."""
    tail, capacity = load_i64(ring + TAIL_OWN), load_i64(ring + MASK) + 1
    free = capacity - (tail - load_i64(ring + HEAD_CACHE))
    if free < limit:
        head = load_acquire(ring + HEAD)  # pairs with store_release in pop_many(): the slots are free again
        store_i64(ring + HEAD_CACHE, head)
        free = capacity - (tail - head)
    return min(free, limit)


@inlined
def publish_many(ring: int, count: int) -> None:
    """Make the next count slots (filled through slot_at) visible to the consumer with one store."""
    tail = load_i64(ring + TAIL_OWN) + count
    store_release(ring + TAIL, tail)  # pairs with load_acquire in ready(): the records are visible
    store_i64(ring + TAIL_OWN, tail)


@inlined
def count_refused(ring: int, count: int) -> None:
    """Count records that the producer had to drop because room() was short."""
    store_relaxed(ring + REFUSED, load_relaxed(ring + REFUSED) + count)


@kernel
def push_many(ring: int, source: int, count: int) -> int:
    """Copy count records that lie side by side at source, publish once; return how many went in.

    The rest met a full ring and is counted as refused.
    """
    if count <= 0:
        return 0
    size = load_i64(ring + RECORD_SIZE)
    fit = room(ring, count)
    for index in range(fit):
        copy(slot_at(ring, index), source + index * size, size)
    publish_many(ring, fit)
    if fit < count:
        count_refused(ring, count - fit)
    return fit


# ---------------------------------------------------------------- consumer, one record


@inlined
def front(ring: int) -> int:
    """Return the address of the oldest record, or 0 when the ring is empty; valid until pop()."""
    head, mask = load_relaxed(ring + HEAD), load_i64(ring + MASK)
    if head == load_i64(ring + TAIL_CACHE):
        tail = load_acquire(ring + TAIL)  # pairs with store_release in publish(): records are visible
        if tail == head:
            prefetch(front_at(ring, 0))
            return 0
        store_i64(ring + TAIL_CACHE, tail)
    return ring + HEADER_SIZE + (head & mask) * load_i64(ring + RECORD_SIZE)


@inlined
def pop(ring: int) -> None:
    """Give the oldest record's slot back to the producer."""
    store_release(ring + HEAD, load_relaxed(ring + HEAD) + 1)  # pairs with load_acquire in claim()


# ---------------------------------------------------------------- consumer, batches


@inlined
def ready(ring: int, limit: int) -> int:
    """Return how many records may be read now, at most limit; fetches the producer's index only if needed."""
    head = load_relaxed(ring + HEAD)
    count = load_i64(ring + TAIL_CACHE) - head
    if count < limit:
        tail = load_acquire(ring + TAIL)  # pairs with store_release in publish_many(): records are visible
        store_i64(ring + TAIL_CACHE, tail)
        count = tail - head
        if count == 0:
            prefetch(front_at(ring, 0))
    return min(count, limit)


@inlined
def front_at(ring: int, index: int) -> int:
    """Return the address of the index-th oldest record, index < what ready() returned; valid until popped."""
    at = (load_relaxed(ring + HEAD) + index) & load_i64(ring + MASK)
    return ring + HEADER_SIZE + at * load_i64(ring + RECORD_SIZE)


@inlined
def pop_many(ring: int, count: int) -> None:
    """Give the count oldest slots back to the producer with one store."""
    store_release(ring + HEAD, load_relaxed(ring + HEAD) + count)  # pairs with load_acquire in room()


@kernel
def pop_into(ring: int, target: int, limit: int) -> int:
    """Copy up to limit records side by side to target, give their slots back once; return how many."""
    if limit <= 0:
        return 0
    size = load_i64(ring + RECORD_SIZE)
    count = ready(ring, limit)
    for index in range(count):
        copy(target + index * size, front_at(ring, index), size)
    pop_many(ring, count)
    return count


# ---------------------------------------------------------------- either side


@inlined
def used(ring: int) -> int:
    """Return how many records lie in the ring (exact for the calling side, a bound for others)."""
    head = load_acquire(ring + HEAD)  # first: the other order could show fewer than none to a third party
    return load_acquire(ring + TAIL) - head


@kernel
def recover_producer(ring: int) -> int:
    """Take over as the producer: re-read both indexes; return how many records lie in the ring."""
    tail, head = load_relaxed(ring + TAIL), load_acquire(ring + HEAD)  # pairs with store_release in pop()
    store_i64(ring + TAIL_OWN, tail)  # the last producer may have died between its two stores
    store_i64(ring + HEAD_CACHE, head)
    return tail - head


@kernel
def recover_consumer(ring: int) -> int:
    """Take over as the consumer: re-read the producer's index; return how many records lie in the ring."""
    tail = load_acquire(ring + TAIL)  # pairs with store_release in publish()
    store_i64(ring + TAIL_CACHE, tail)
    return tail - load_relaxed(ring + HEAD)
