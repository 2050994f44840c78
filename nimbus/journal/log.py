"""The journal's hot side: append one record, or a group of them, to the ring of the producing loop.

A stream is one producing loop's part of the journal: its ring, its dense sequence, its number.  The loop
that appends is the only writer of the STREAM record.  The checksum is stored last and the ring's release
comes after it, so a reader of the ring (also after a kill of this process) sees whole records only.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from nimbus.messages import JOURNAL, JOURNAL_PAYLOAD_SIZE, LAYOUT_VERSION
from ringbuf.atomics import load_acquire, load_relaxed, store_release
from ringbuf.crc32c import record_crc
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, load_u8, prefetch_write, store_i64, store_u32
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment
from ringbuf.spsc import HEAD, HEADER_SIZE, MASK, TAIL, create_ring, publish_many, room, slot_at, used

MAGIC: Final = 0xCF
LAST_PART: Final = 0x80  # top bit of JOURNAL.part: last record of its group
PARTS_MAX: Final = 128
GROUP_SIZE_MAX: Final = PARTS_MAX * JOURNAL_PAYLOAD_SIZE
CAPACITY: Final = 16_384  # records; at 50,000 records/s group commit left 16 k half empty

STREAM = record(
    "STREAM",
    """
    i8  ring         address of the stream's ring of JOURNAL records
    i8  seq          sequence number given last
    i8  epoch        run number
    i8  number       stream number
    i8  mono_offset_ns  monotonic minus Unix time; 0 in replay
    i8  appended     groups accepted
    i8  refused      groups refused: ring full or a bad length
    i8  pad          zero
    """,
)

_RECORD_LINES: Final = JOURNAL.size // CACHE_LINE
_WARM_LINES: Final = 3 * _RECORD_LINES  # an order's record and those of the decision behind it
_J: Final = JOURNAL.at
_S: Final = STREAM.at


@inlined
def free_slots(stream: int) -> int:
    """Return how many records the stream's ring can take now."""
    ring = load_i64(stream + _S.ring)
    return load_i64(ring + MASK) + 1 - used(ring)


@inlined
def has_free(stream: int, least: int) -> bool:
    """Say whether the ring can take `least` records; the journal loop's index is fetched only if needed."""
    return room(load_i64(stream + _S.ring), least) >= least


@inlined
def warm_next(stream: int) -> None:
    """Fetch the lines of the next records for writing, and the index that publishes them."""
    ring = load_i64(stream + _S.ring)
    prefetch_write(ring + TAIL)
    for line in range(_WARM_LINES):
        prefetch_write(slot_at(ring, line // _RECORD_LINES) + line % _RECORD_LINES * CACHE_LINE)


@inlined
def _copy_payload(target: int, source: int, size: int) -> None:
    """Copy size bytes, at most JOURNAL_PAYLOAD_SIZE, and fill up with zeros; no other byte is read.

    Word by word: these are the words that were stored a moment ago, and the checksum reads them back.
    """
    if size == JOURNAL_PAYLOAD_SIZE:
        for at in range(0, JOURNAL_PAYLOAD_SIZE, 8):
            store_i64(target + at, load_i64(source + at))
        return
    clear(target, JOURNAL_PAYLOAD_SIZE)
    whole = size & ~7
    for at in range(0, JOURNAL_PAYLOAD_SIZE, 8):
        if at >= whole:
            break
        store_i64(target + at, load_i64(source + at))
    word = 0
    for at in range(size - whole):
        word |= load_u8(source + whole + at) << 8 * at
    if size != whole:
        store_i64(target + whole, word)


@inlined
def _fill(slot: int, marks: int, meaning: int, seq: int, mono_ns: int, now_ns: int) -> None:
    """Write the head of a record, in whole words, which the checksum reads back at once."""
    store_i64(slot, marks << 32)
    store_i64(slot + _J.type, meaning)
    store_i64(slot + _J.seq, seq)
    store_i64(slot + _J.mono_ns, mono_ns)
    store_i64(slot + _J.wall_ns, now_ns)


@kernel
def append(stream: int, kind: int, payload: int, payload_size: int, now_ns: int) -> int:
    """Append payload_size bytes at payload as a record of type kind, or as a group of them.

    A group is accepted whole or refused whole (counted).  Returns 1, or 0 when it was refused.
    """
    ring, parts = load_i64(stream + _S.ring), 1
    if payload_size > JOURNAL_PAYLOAD_SIZE:
        parts = (payload_size + JOURNAL_PAYLOAD_SIZE - 1) // JOURNAL_PAYLOAD_SIZE
    if payload_size < 0 or parts > PARTS_MAX or kind < 1 or kind > 0xFFFF or room(ring, parts) < parts:
        store_i64(stream + _S.refused, load_i64(stream + _S.refused) + 1)
        return 0
    marks = MAGIC | LAYOUT_VERSION << 8 | load_i64(stream + _S.number) << 16
    meaning = kind | load_i64(stream + _S.epoch) << 32
    mono_ns, seq = now_ns + load_i64(stream + _S.mono_offset_ns), load_i64(stream + _S.seq)
    for part in range(parts):
        slot, size = slot_at(ring, part), min(payload_size, JOURNAL_PAYLOAD_SIZE)
        mark = part | LAST_PART if part == parts - 1 else part
        seq += 1
        _fill(slot, marks | mark << 24, meaning | size << 16, seq, mono_ns, now_ns)
        _copy_payload(slot + _J.payload, payload, size)
        store_u32(slot + _J.crc32c, record_crc(slot))
        payload, payload_size = payload + size, payload_size - size
    store_i64(stream + _S.seq, seq)
    publish_many(ring, parts)
    store_i64(stream + _S.appended, load_i64(stream + _S.appended) + 1)
    return 1


@kernel
def backlog(stream: int) -> int:
    """Return how many records wait in the stream's ring (called by its consumer)."""
    return used(load_i64(stream + _S.ring))


@kernel
def oldest(stream: int) -> int:
    """Return the slot number of the oldest record that waits."""
    ring = load_i64(stream + _S.ring)
    return load_relaxed(ring + HEAD) & load_i64(ring + MASK)


@kernel
def release(stream: int, count: int) -> None:
    """Give the oldest count slots back to the producer."""
    ring = load_i64(stream + _S.ring)
    store_release(ring + HEAD, load_acquire(ring + HEAD) + count)  # pairs with load_acquire in claim()


class Stream:
    """Owns one producing loop's STREAM record and ring; `addr` goes to the kernels.

    `seq` is the sequence number that was given last (0 at the very first start).
    """

    def __init__(
        self, segment: Segment, number: int, *, epoch: int, capacity: int = CAPACITY, seq: int = 0
    ) -> None:
        if not 0 <= number <= 0xFF or not 0 <= epoch <= 0xFFFFFFFF:
            msg = f"stream {number} or epoch {epoch} does not fit its field"
            raise ValueError(msg)
        name = f"journal.stream{number}"
        self.addr = segment.allocate(name, STREAM.size)
        self._words = segment.array(name, STREAM)
        self.ring = create_ring(segment, f"{name}.ring", capacity, JOURNAL)
        self.number, self.epoch, self.capacity = number, epoch, capacity
        for field, value in (("ring", self.ring), ("seq", seq), ("epoch", epoch), ("number", number)):
            self._words[0][field] = value
        slots = (ctypes.c_char * (capacity * JOURNAL.size)).from_address(self.ring + HEADER_SIZE)
        self._slots = memoryview(slots).cast("B")
        self._segment = segment  # keeps the memory alive

    def set_mono_offset(self, offset_ns: int) -> None:
        """Set monotonic minus Unix time; before the loop runs."""
        self._words[0]["mono_offset_ns"] = offset_ns

    def waiting(self) -> list[memoryview]:
        """Return the waiting records, oldest first, as one or two views into the ring."""
        count, first = backlog(self.addr), oldest(self.addr)
        straight = min(count, self.capacity - first)
        views = [self._slots[first * JOURNAL.size : (first + straight) * JOURNAL.size]]
        if count > straight:
            views.append(self._slots[: (count - straight) * JOURNAL.size])
        return views

    def release(self, count: int) -> None:
        """Give the oldest count records back to the producer, once they are safe."""
        release(self.addr, count)

    def append(self, kind: int, payload: Any, now_ns: int) -> bool:
        """Append from Python (cold): payload is bytes, or one numpy record; False when refused."""
        raw = payload if isinstance(payload, bytes) else payload.tobytes()
        buffer = ctypes.create_string_buffer(raw, max(len(raw), 1))
        return bool(append(self.addr, int(kind), ctypes.addressof(buffer), len(raw), now_ns))

    @property
    def seq(self) -> int:
        """Sequence number given last."""
        return int(self._words[0]["seq"])

    @property
    def appended(self) -> int:
        """Groups accepted so far."""
        return int(self._words[0]["appended"])

    @property
    def refused(self) -> int:
        """Groups refused so far."""
        return int(self._words[0]["refused"])
