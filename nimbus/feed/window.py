"""The window of a live feed: messages that wait for earlier ones, and what was seen of each number.

Two tables are indexed by the low bits of the number.  SLOT rows hold the messages above a gap; a slot is
valid for a number when it says so, hence a newer number pushes out the one that lies a whole window below.
COPY rows remember, for twice as many numbers, when and on which line each came first and a digest of its
bytes: that decides the race between the lines and finds copies that differ.  A digest never leaves the
process, so it may be the processor's checksum where there is one.  Both cost a store or two per
message; nothing is searched.
"""

from __future__ import annotations

from typing import Final

from nimbus.feed.arbiter_state import (
    ARBITER,
    COPY,
    LEVEL_LINE,
    LEVEL_REREQUEST,
    LINE,
    MESSAGE_BYTES_MAX,
    PHASE_SNAPSHOT,
    SLOT,
)
from nimbus.feed.itch import SIZE_MAX, SYSTEM_EVENT, size_of
from nimbus.feed.state import FEED, bump
from nimbus.messages import LINE_RECOVERY
from ringbuf.crc32c import HAS_INSTRUCTION, crc_word
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    copy,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_i64,
    store_u16,
    store_u32,
    u1,
    u2,
    u8,
    wrapping_multiply,
)

_F, _A, _L, _S, _C = FEED.at, ARBITER.at, LINE.at, SLOT.at, COPY.at
_LINE_SIZE, _SLOT_SIZE, _COPY_SIZE = LINE.size, SLOT.size, COPY.size
_FACTOR: Final = -7046029254386353131  # 0x9E3779B97F4A7C15
_LOW: Final = 0xFFFF_FFFF
_TS_AT: Final = SYSTEM_EVENT.at.ts_ns  # in every message; in a block the 8 bytes from here end with it
_TIME: Final = (1 << 48) - 1
assert SIZE_MAX <= MESSAGE_BYTES_MAX
assert _C.first == _C.lines + 2  # both are stored as one word


@inlined
def line_at(arbiter: int, line: int) -> int:
    """Return the address of a LINE row; line < LINES_MAX."""
    row: int = arbiter + _A.lines + line * _LINE_SIZE
    return row


@inlined
def slot_of(arbiter: int, seq: int) -> int:
    """Return the address of the SLOT that a number falls into."""
    slot: int = load_i64(arbiter + _A.slots) + (seq & load_i64(arbiter + _A.mask)) * _SLOT_SIZE
    return slot


@inlined
def is_here(arbiter: int, seq: int) -> bool:
    """Say whether a number lies in the window."""
    return load_i64(slot_of(arbiter, seq) + _S.seq) == seq


@inlined
def copy_of(arbiter: int, seq: int) -> int:
    """Return the address of the COPY row that a number falls into."""
    return load_i64(arbiter + _A.copies) + (seq & load_i64(arbiter + _A.copies_mask)) * _COPY_SIZE


@inlined
def is_remembered(arbiter: int, seq: int) -> bool:
    """Say whether the COPY row of a number below FEED.expected is still its own."""
    remembered = load_i64(arbiter + _A.copies_mask) + 1
    return seq >= load_i64(arbiter + _A.recent) and seq + remembered >= load_i64(arbiter + _A.high)


@inlined
def _mix_by_product(state: int, value: int) -> int:
    mixed = wrapping_multiply(state ^ value, _FACTOR)
    return mixed ^ ((mixed >> 32) & _LOW)


_mix = crc_word if HAS_INSTRUCTION else _mix_by_product


@inlined
def digest(at: int, size: int) -> int:
    """Return 32 bits that depend on each of the size bytes at `at`; reads no other."""
    state = size
    if size < 8:
        for index in range(size):
            state = _mix(state, load_u8(at + index))
    else:
        last = at + size - 8
        while at < last:
            state = _mix(state, load_i64(at))
            at += 8
        state = _mix(state, load_i64(last))  # the last eight, whatever was mixed of them before
    return state & _LOW


@inlined
def remember(arbiter: int, seq: int, seen: int, recv_ns: int, line: int) -> None:
    """Note the first copy of a number: its digest, time and line."""
    row = copy_of(arbiter, seq)
    store_i64(row + _C.recv_ns, recv_ns)
    store_u32(row + _C.digest, seen)
    store_u16(row + _C.lines, 1 << line)
    store_u16(row + _C.first, line)


@inlined
def note_line(arbiter: int, line: int, first: int, behind: int) -> int:
    """Follow a line's own numbers past a datagram; return what the line's next number was before it."""
    row = line_at(arbiter, line)
    store_i64(row + _L.heard_ns, load_i64(arbiter + _A.now_ns))
    before = load_i64(row + _L.next)
    if line == LINE_RECOVERY:
        return 0  # its numbers jump by nature
    if before == 0:
        before = first
    if first > before:
        bump(row + _L.missing, first - before)
    store_i64(row + _L.next, max(before, behind))
    return before


@inlined
def conflict(arbiter: int, seq: int) -> None:
    """Count a copy of a number that differs from the first."""
    bump(arbiter + _A.conflicts, 1)
    if load_i64(arbiter + _A.conflict_seq) == 0:
        store_i64(arbiter + _A.conflict_seq, seq)


@kernel
def other_copy(arbiter: int, seq: int, seen: int, recv_ns: int, line: int, line_next: int) -> bool:
    """Compare a further copy with the first, decide the race; return whether they are the same."""
    row, mine = copy_of(arbiter, seq), line_at(arbiter, line)
    lines, first = load_u16(row + _C.lines), load_u16(row + _C.first)
    if lines & (1 << line):
        bump(mine + _L.repeats, 1)
    else:
        store_u16(row + _C.lines, lines | (1 << line))
        bump(mine + _L.lost, 1)
        if seq < line_next:
            bump(mine + _L.missing, -1)
        winner = line_at(arbiter, first)
        lead_ns = max(recv_ns - load_i64(row + _C.recv_ns), 0)
        bump(winner + _L.leads, 1)
        bump(winner + _L.lead_ns, lead_ns)
        store_i64(winner + _L.lead_ns_max, max(lead_ns, load_i64(winner + _L.lead_ns_max)))
    if load_u32(row + _C.digest) == seen:
        return True
    conflict(arbiter, seq)
    return False


@inlined
def first_copy(arbiter: int, seq: int, seen: int, recv_ns: int, line: int, line_next: int) -> None:
    """Note the first copy of a number; one that was missing has been repaired."""
    row = line_at(arbiter, line)
    remember(arbiter, seq, seen, recv_ns, line)
    bump(row + _L.won, 1)
    if seq < line_next:
        bump(row + _L.missing, -1)
    if seq < load_i64(arbiter + _A.high):
        bump(arbiter + _A.absent, -1)
        level = LEVEL_LINE
        if line == LINE_RECOVERY:
            level = LEVEL_REREQUEST
            bump(arbiter + _A.by_rerequest, 1)
            store_i64(arbiter + _A.progress, 1)
        else:
            bump(arbiter + _A.by_line, 1)
        store_i64(arbiter + _A.level, max(level, load_i64(arbiter + _A.level)))
    else:
        store_i64(arbiter + _A.high, seq + 1)


@kernel
def compare_known(feed: int, at: int, count: int, first: int, line: int, line_next: int) -> int:
    """Look at `count` messages that were delivered before; return how many differ from their first copy."""
    arbiter, recv_ns = load_i64(feed + _F.arbiter), load_i64(feed + _F.recv_ns)
    differ = 0
    for seq in range(first, first + count):
        size = u2(at)
        if not is_remembered(arbiter, seq):
            bump(line_at(arbiter, line) + _L.late, 1)
        elif not other_copy(arbiter, seq, digest(at + 2, size), recv_ns, line, line_next):
            differ += 1
        at += 2 + size
    return differ


@inlined
def is_new(feed: int, arbiter: int, first: int, line: int) -> bool:
    """Say whether a datagram is the usual one: the expected number, which nobody has sent or announced."""
    expected, high = load_i64(feed + _F.expected), load_i64(arbiter + _A.high)
    calm = load_i64(arbiter + _A.phase) != PHASE_SNAPSHOT and line != LINE_RECOVERY
    return (
        first == expected and first == high and calm and load_i64(line_at(arbiter, line) + _L.next) <= first
    )


@inlined
def note_new(feed: int, arbiter: int, at: int, count: int, first: int, line: int) -> int:
    """Count and note well-formed messages of which is_new() holds, in one walk; return the address behind.

    Does what count_blocks, note_line and note_delivered do for them.
    """
    row, behind = line_at(arbiter, line), first + count
    bump(row + _L.datagrams, 1)
    bump(row + _L.won, count)
    note_line(arbiter, line, first, behind)
    store_i64(arbiter + _A.high, behind)
    store_i64(feed + _F.wrong_run, 0)
    bump(feed + _F.blocks, count)
    store_i64(feed + _F.first_ns, u8(at + _TS_AT) & _TIME)
    recv_ns, copies = load_i64(feed + _F.recv_ns), load_i64(arbiter + _A.copies)
    mask, lines, last_ns = load_i64(arbiter + _A.copies_mask), 1 << line | line << 16, 0
    for seq in range(first, behind):
        size, seen = u2(at), copies + (seq & mask) * _COPY_SIZE
        bump(feed + _F.types + 8 * u1(at + 2), 1)
        last_ns = u8(at + _TS_AT) & _TIME
        store_i64(seen + _C.recv_ns, recv_ns)
        store_u32(seen + _C.digest, digest(at + 2, size))
        store_u32(seen + _C.lines, lines)  # and which of them was first
        at += 2 + size
    store_i64(feed + _F.last_ns, last_ns)
    return at


@kernel
def note_delivered(feed: int, at: int, count: int, first: int, line: int, line_next: int) -> None:
    """Note `count` messages that are delivered from where they are: nobody needs their window slots."""
    arbiter, recv_ns = load_i64(feed + _F.arbiter), load_i64(feed + _F.recv_ns)
    for seq in range(first, first + count):
        size = u2(at)
        if is_here(arbiter, seq):
            other_copy(arbiter, seq, digest(at + 2, size), recv_ns, line, line_next)
        else:
            first_copy(arbiter, seq, digest(at + 2, size), recv_ns, line, line_next)
        at += 2 + size


@inlined
def _store(feed: int, arbiter: int, at: int, size: int, seq: int) -> None:
    """Put a message into its slot; an undelivered one that stood there is missing again."""
    slot = slot_of(arbiter, seq)
    before = load_i64(slot + _S.seq)
    if before >= load_i64(feed + _F.expected):
        bump(arbiter + _A.overflow, 1)
        bump(arbiter + _A.absent, 1)
        bump(arbiter + _A.missing, 1)
        bump(feed + _F.missing, 1)
    store_i64(slot + _S.seq, seq)
    store_i64(slot + _S.recv_ns, load_i64(feed + _F.recv_ns))
    store_i64(slot + _S.seen_ns, load_i64(arbiter + _A.now_ns))
    good = size > 0 and size_of(u1(at)) == size
    store_u32(slot + _S.size, size if good else 0)
    if good:
        copy(slot + _S.bytes, at, size)


@kernel
def keep(feed: int, at: int, count: int, first: int, line: int, line_next: int) -> int:
    """Put messages that cannot be delivered yet into the window; return how many were new.

    Numbers above `high` are made missing by the caller.  A number that the window has left behind is not
    kept: it stays missing.
    """
    arbiter, recv_ns = load_i64(feed + _F.arbiter), load_i64(feed + _F.recv_ns)
    expected, new = load_i64(feed + _F.expected), 0
    for seq in range(first, first + count):
        size = u2(at)
        seen, here = digest(at + 2, size), load_i64(slot_of(arbiter, seq) + _S.seq)
        if seq < expected:
            if is_remembered(arbiter, seq):
                other_copy(arbiter, seq, seen, recv_ns, line, line_next)
            else:
                bump(line_at(arbiter, line) + _L.late, 1)
        elif here == seq:
            other_copy(arbiter, seq, seen, recv_ns, line, line_next)
        elif here > seq:
            bump(line_at(arbiter, line) + _L.late, 1)
        else:
            first_copy(arbiter, seq, seen, recv_ns, line, line_next)
            _store(feed, arbiter, at + 2, size, seq)
            new += 1
        at += 2 + size
    return new
