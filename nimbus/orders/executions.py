"""The executions already seen: a fill counts once per ExecID, whatever the session repeats (X1, X2).

A fixed table of two words per execution, hash of its ExecID and hash of its contents, probed linearly and
never deleted from within the day.  64 bits of hash: with 1e6 executions a day two different ExecIDs collide
once in about 40,000 years, and then the contents differ and an alarm tells.

At three quarters of the table `insert` says NEARLY_FULL: the agent halts new orders (kill switch, source
"executions"), and the last quarter is for the reports of those that work.  What comes once it is full:
* an ExecID that it holds is told apart as ever (SAME, DIFFERENT);
* for any other `lookup` says UNKNOWABLE.  A trade whose CumQty(14) is not above what its order has had is a
  repeat and is not booked: no new trade leaves that sum as it was.  One above it, or without CumQty, is
  booked, for a trade that is not booked is a wrong position too, but it cannot be remembered: `insert` says
  FULL, which halts as above and raises the alarm `unremembered`, so that positions are compared with the
  venue's before anybody arms again.  Only a repeat without CumQty could then be booked twice.
* reports that are no trades need no memory: the table of states takes them twice as once.
"""

from __future__ import annotations

from typing import Final

from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, store_i64, wrapping_multiply
from ringbuf.records import record
from ringbuf.segment import Segment

UNSEEN, SAME, DIFFERENT, UNKNOWABLE = 0, 1, 2, 3
STORED, NEARLY_FULL, FULL = 1, 0, -1
EXECUTIONS_MAX: Final = 1_048_576
TEXT_SIZE_MAX: Final = 64  # bytes of an ExecID that is taken
_PRIME: Final = 1_099_511_628_211  # FNV-1a, 64 bits
_BASIS: Final = -3_750_763_034_362_895_579
_MIX: Final = -49_064_778_989_728_563

EXECUTIONS = record(
    "EXECUTIONS",
    """
    i8  slots       address of the slots: two words each
    i8  mask        slots - 1
    i8  count       executions stored
    i8  limit       from this count on, new orders stop
    4i8 pad         zero
    """,
)
_E = EXECUTIONS.at


@inlined
def mix(seed: int, word: int) -> int:
    """Fold a word into a hash."""
    value = wrapping_multiply(seed ^ word, _MIX)
    return value ^ ((value >> 29) & 0x7FFFFFFFF)


@kernel
def text_hash(at: int, size: int) -> int:
    """Return a hash of size bytes, never 0."""
    value = _BASIS
    for index in range(size):
        value = wrapping_multiply(value ^ load_u8(at + index), _PRIME)
    value = mix(value, size)
    return value or 1


@inlined
def _slot(executions: int, key: int) -> int:
    """Return the slot of key, or the free slot where it would stand, or 0: full without it."""
    slots, mask = load_i64(executions + _E.slots), load_i64(executions + _E.mask)
    place = key & mask
    for _ in range(mask + 1):
        slot = slots + 16 * place
        held = load_i64(slot)
        if held in (key, 0):
            return slot
        place = (place + 1) & mask
    return 0


@kernel
def lookup(executions: int, key: int, contents: int) -> int:
    """Return UNSEEN, SAME (a repeat), DIFFERENT (other contents), or UNKNOWABLE: full without it."""
    slot = _slot(executions, key)
    if slot == 0:
        return UNKNOWABLE
    if load_i64(slot) == 0:
        return UNSEEN
    return SAME if load_i64(slot + 8) == contents else DIFFERENT


@kernel
def insert(executions: int, key: int, contents: int) -> int:
    """Remember an unseen execution; return STORED, NEARLY_FULL (stored too) or FULL."""
    slot, count = _slot(executions, key), load_i64(executions + _E.count) + 1
    if slot == 0:
        return FULL
    store_i64(slot, key)
    store_i64(slot + 8, contents)
    store_i64(executions + _E.count, count)
    return STORED if count < load_i64(executions + _E.limit) else NEARLY_FULL


def create_executions(segment: Segment, name: str, executions_max: int = EXECUTIONS_MAX) -> int:
    """Allocate an empty table; executions_max: a power of two.  Returns its address."""
    if executions_max < 4 or executions_max & (executions_max - 1):
        msg = f"executions_max must be a power of two, got {executions_max}"
        raise ValueError(msg)
    addr = segment.allocate(name, EXECUTIONS.size)
    state = segment.array(name, EXECUTIONS)[0]
    state["slots"] = segment.allocate(f"{name}.slots", 16 * executions_max)
    state["mask"], state["limit"] = executions_max - 1, executions_max // 4 * 3
    return addr
