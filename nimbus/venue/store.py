"""The messages of the session, kept for those who missed some: a row of 64-byte slots, used round and round.

A slot is one MoldUDP64 message block: two bytes of length (big-endian), the message.  Sequence number n
stands in slot n modulo their number, so the last `slots` messages can be asked for; older ones are gone, and
a request for them is counted and not answered.

One follower, the shadow book of the snapshot server, reads every message in order from another thread.  It
is never overtaken: the publisher waits while a slot it needs has not been read (`room`).
"""

from __future__ import annotations

from typing import Final

from nimbus.feed.itch import SIZE_MAX
from ringbuf.atomics import load_acquire, store_release
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, put_u2
from ringbuf.records import record
from ringbuf.segment import Segment

SLOT_SIZE: Final = 64
LENGTH_SIZE: Final = 2
SLOTS_DEFAULT: Final = 1 << 22
_UNFOLLOWED: Final = 1 << 62
assert LENGTH_SIZE + SIZE_MAX <= SLOT_SIZE

STORE = record(
    "STORE",
    """
    i8  last      sequence number of the newest message, 0 = none (publisher)
    7i8 pad0      zero
    i8  followed  newest message that the follower has read; without a follower beyond all (follower)
    7i8 pad1      zero
    i8  first_at  address of slot 0 (fixed)
    i8  mask      number of slots - 1 (fixed)
    6i8 pad2      zero
    """,
)
_S = STORE.at


@inlined
def last_seq(store: int) -> int:
    """Return the number of the newest message: for the publisher's own thread."""
    return load_i64(store + _S.last)


@inlined
def block_at(store: int, seq: int) -> int:
    """Return the address of the block of a message that is still kept."""
    return load_i64(store + _S.first_at) + (seq & load_i64(store + _S.mask)) * SLOT_SIZE


@inlined
def oldest_seq(store: int) -> int:
    """Return the number of the oldest message that is kept, for the publisher's own thread."""
    return max(load_i64(store + _S.last) - load_i64(store + _S.mask), 1)


@inlined
def room(store: int) -> int:
    """Return how many messages may be kept before the follower must have read on."""
    followed = load_acquire(store + _S.followed)  # pairs with store_release in follow_to(): slots are free
    return load_i64(store + _S.mask) + 1 - (load_i64(store + _S.last) - followed)


@inlined
def keep(store: int, message: int, size: int) -> int:
    """Keep the next message (size <= SIZE_MAX, there is room); return its sequence number."""
    seq = load_i64(store + _S.last) + 1
    slot = block_at(store, seq)
    put_u2(slot, size)
    copy(slot + LENGTH_SIZE, message, size)
    store_release(store + _S.last, seq)  # pairs with load_acquire in newest(): the slot is written
    return seq


@inlined
def newest(store: int) -> int:
    """Return the number of the newest message, for the follower's thread."""
    return load_acquire(store + _S.last)  # pairs with store_release in keep()


@inlined
def follow_to(store: int, seq: int) -> None:
    """Say that the follower has read everything up to seq."""
    store_release(store + _S.followed, seq)  # pairs with load_acquire in room()


@kernel
def copy_block(store: int, seq: int, target: int) -> int:
    """Copy the block of one message (cold: tests and tools); return 1, or 0 when it is not kept."""
    last = newest(store)
    if seq < 1 or seq > last or last - seq > load_i64(store + _S.mask):
        return 0
    copy(target, block_at(store, seq), SLOT_SIZE)
    return 1


class Store:
    """Own the slots; `addr` goes to the kernels.

    slots: a power of two, 64 bytes each; pages that were never used cost nothing.
    """

    def __init__(self, segment: Segment, slots: int = SLOTS_DEFAULT, *, followed: bool = False) -> None:
        if slots < 1 or slots & (slots - 1):
            msg = f"the number of slots must be a power of two, got {slots}"
            raise ValueError(msg)
        self.addr = segment.allocate("store", STORE.size)
        self._record = segment.array("store", STORE)[0]
        self._record["first_at"] = segment.allocate("store.slots", slots * SLOT_SIZE)
        self._record["mask"] = slots - 1
        self._record["followed"] = 0 if followed else _UNFOLLOWED
        self._block = segment.allocate("store.block", SLOT_SIZE)
        self._words = segment.words(self._block, SLOT_SIZE // 8)

    @property
    def last(self) -> int:
        """Sequence number of the newest message."""
        return int(self._record["last"])

    def message(self, seq: int) -> bytes | None:
        """Return a message by number, None when it is not kept (or not there yet); for the cold thread."""
        if copy_block(self.addr, seq, self._block) == 0:
            return None
        block = self._words.tobytes()
        return block[LENGTH_SIZE : LENGTH_SIZE + int.from_bytes(block[:LENGTH_SIZE], "big")]
