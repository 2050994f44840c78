"""The lines of a live feed merged into one: each number once and in order, gaps held back, not passed over.

What a datagram means, beside the rules of moldudp64.py:

| datagram                                    | then                                                       |
|---------------------------------------------|------------------------------------------------------------|
| the expected number, or one that overlaps   | deliver from where it is, then what waits in the window    |
| a higher number, up to a window ahead       | gap: into the window                                       |
| further ahead, or a whole window behind     | not believed before FEED.agree datagrams agree: a new run; |
|                                             | until something within the window comes, books are stale   |
| wholly below, as remembered                 | duplicate: decides the race between the lines              |
| wholly below, with other bytes              | conflict: trading must halt; and candidate for a restart   |
| any, while a snapshot is wanted             | into the window, the newest messages stay                  |
| heartbeat or end with a higher number       | gap; beyond the window only after FEED.agree packets       |
| session of zero bytes, number 0             | foreign: without numbers nothing can be arbitrated         |

The recovery line repairs; it never begins a run.  A run that is joined after its first message takes a
snapshot at once where there is a server for it.
"""

from __future__ import annotations

from nimbus.feed.arbiter_state import (
    ARBITER,
    LEVEL_LOST,
    LINE,
    LINES_MAX,
    LIVE_SEQ_MAX,
    PHASE_LIVE,
    PHASE_SNAPSHOT,
    PHASE_WAITING,
    SLOT,
)
from nimbus.feed.gaps import close_gap, give_up, miss, open_gap, want_snapshot
from nimbus.feed.moldudp64 import (
    AGREE_AT_END,
    END_OF_SESSION,
    HEARTBEAT,
    MOLD,
    check_blocks,
    count_blocks,
    deliver,
    follow,
    hold,
    is_left_session,
    is_session,
    is_text,
    pass_blocks,
)
from nimbus.feed.state import (
    DUPLICATE,
    FAR_AHEAD,
    FEED,
    FOREIGN,
    FRAMING,
    HELD,
    MODE_NONE,
    OK,
    SHORT_DATAGRAM,
    bump,
    refuse,
)
from nimbus.feed.window import (
    compare_known,
    is_here,
    is_new,
    keep,
    line_at,
    note_delivered,
    note_line,
    note_new,
)
from nimbus.messages import LINE_RECOVERY
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, store_i64, u2, u8
from ringbuf.spsc import pop

_F, _A, _L, _S, _M, _H = FEED.at, ARBITER.at, LINE.at, SLOT.at, MOLD.at, HELD.at
_MOLD_SIZE, _HELD_SIZE, _SLOT_SIZE = MOLD.size, HELD.size, SLOT.size


@kernel
def _begin_run(feed: int, arbiter: int, at: int, first: int) -> None:
    """Follow the session of the header at `at` with empty books; what was missing of the old run is lost."""
    absent = load_i64(arbiter + _A.absent)
    if absent > 0:
        bump(arbiter + _A.lost, absent)
        store_i64(arbiter + _A.absent, 0)
        store_i64(arbiter + _A.level, LEVEL_LOST)
    close_gap(arbiter)
    if load_i64(arbiter + _A.row_open) != 0:  # of a snapshot that nobody waits for any more
        store_i64(arbiter + _A.row_open, 0)
        pop(load_i64(arbiter + _A.ring))
    follow(feed, at, first)
    expected = 1 if load_i64(feed + _F.start_at_one) != 0 else first
    late = expected > 1
    for slot in range(load_i64(arbiter + _A.mask) + 1):
        store_i64(load_i64(arbiter + _A.slots) + slot * _SLOT_SIZE + _S.seq, 0)
    for line in range(LINES_MAX):
        store_i64(line_at(arbiter, line) + _L.next, 0)
    store_i64(feed + _F.expected, expected)
    store_i64(feed + _F.incomplete, 1 if late else 0)
    for word, value in (
        (_A.high, expected), (_A.recent, expected), (_A.phase, PHASE_LIVE), (_A.busy, 0), (_A.loading, 0),
        (_A.attempts, 0), (_A.due_ns, 0), (_A.lossy, 0), (_A.hollow, 1 if late else 0), (_A.doubts, 0),
    ):  # fmt: skip
        store_i64(arbiter + word, value)
    if late and load_i64(arbiter + _A.ring) != 0:
        want_snapshot(feed, arbiter)
    if first > expected:
        miss(feed, arbiter, expected, first)
        open_gap(feed, arbiter, first)


@inlined
def _lacks_room(feed: int, arbiter: int, behind: int) -> bool:
    """Say whether numbers up to `behind` would push out what waits in the window, and that matters."""
    beyond = behind - load_i64(feed + _F.expected) > load_i64(arbiter + _A.mask) + 1
    return beyond and load_i64(arbiter + _A.phase) != PHASE_SNAPSHOT


@kernel
def _believe(feed: int, arbiter: int, reason: int) -> int:
    """Begin the run of the held datagrams, which were counted as `reason`; they wait in the window."""
    agreed, held = load_i64(feed + _F.candidates), load_i64(feed + _F.held_at)
    line = load_i64(feed + _F.line) & (LINES_MAX - 1)
    _begin_run(feed, arbiter, held + _H.bytes, load_i64(held + _H.first))
    bump(feed + _F.refused - 8 * reason, -agreed)
    bump(arbiter + _A.kept, agreed)
    for index in range(agreed):
        slot = held + index * _HELD_SIZE
        first, count = load_i64(slot + _H.first), load_i64(slot + _H.count)
        if load_i64(arbiter + _A.ring) != 0 and _lacks_room(feed, arbiter, first + count):
            want_snapshot(feed, arbiter)
        line_next = note_line(arbiter, line, first, first + count)
        keep(feed, slot + _H.bytes + _MOLD_SIZE, count, first, line, line_next)
    store_i64(arbiter + _A.busy, 1)
    return OK


@inlined
def _doubt(feed: int, arbiter: int) -> bool:
    """Note a packet beyond the window: we may have lost more than that; say whether enough of them came."""
    bump(arbiter + _A.doubts, 1)
    store_i64(feed + _F.stale, 1)
    return load_i64(arbiter + _A.doubts) >= load_i64(feed + _F.agree)


@inlined
def _go_on(feed: int, arbiter: int) -> None:
    """Note that the present run goes on: nothing is doubted, no other run is a candidate."""
    store_i64(feed + _F.candidates, 0)
    if load_i64(arbiter + _A.doubts) != 0:
        store_i64(arbiter + _A.doubts, 0)
        if load_i64(arbiter + _A.phase) <= PHASE_WAITING:
            store_i64(feed + _F.stale, load_i64(arbiter + _A.lossy))


@kernel
def _control(feed: int, arbiter: int, at: int, size: int, first: int, count: int, line: int) -> int:
    """Take a heartbeat or an end of session."""
    mode = load_i64(feed + _F.mode)
    if mode == MODE_NONE or not is_session(feed, at):
        waiting = mode == MODE_NONE or (load_i64(feed + _F.ended) != 0 and not is_left_session(feed, at))
        if not waiting or line == LINE_RECOVERY or size != _MOLD_SIZE or not is_text(at):
            return refuse(feed, FOREIGN)
        _begin_run(feed, arbiter, at, first)
    high = load_i64(arbiter + _A.high)
    if first > high + load_i64(arbiter + _A.mask) + 1 and (
        line == LINE_RECOVERY or not _doubt(feed, arbiter)
    ):
        return refuse(feed, FAR_AHEAD)
    note_line(arbiter, line, first, first)
    if first > high:
        miss(feed, arbiter, high, first)
        store_i64(arbiter + _A.tail_ns, load_i64(arbiter + _A.now_ns))
        open_gap(feed, arbiter, first)
    if first >= load_i64(feed + _F.expected):
        _go_on(feed, arbiter)
    if size != _MOLD_SIZE:
        bump(feed + _F.trailing, 1)
    if count == END_OF_SESSION:
        bump(feed + _F.session_ends, 1)
        store_i64(feed + _F.ended, 1)
    else:
        bump(feed + _F.heartbeats, 1)
    return 0


@kernel
def _duplicate(feed: int, arbiter: int, at: int, size: int, first: int, count: int, line: int) -> int:
    """Take a datagram of numbers that were all delivered."""
    line_next = note_line(arbiter, line, first, first + count)
    differ = compare_known(feed, at + _MOLD_SIZE, count, first, line, line_next)
    expected = load_i64(feed + _F.expected)
    far_behind = expected - first - count >= load_i64(arbiter + _A.mask) + 1
    if line == LINE_RECOVERY or not (differ > 0 or far_behind):
        return refuse(feed, DUPLICATE)
    if hold(feed, at, size, first, count, DUPLICATE):
        return _believe(feed, arbiter, DUPLICATE)
    return DUPLICATE


@inlined
def _hand_on(feed: int, arbiter: int, at: int, count: int, first: int) -> int:
    """Deliver messages that were noted, from where they are."""
    _go_on(feed, arbiter)
    bump(feed + _F.delivered, 1)
    return deliver(feed, at, count, first, 0)


@inlined
def _deliver_now(feed: int, arbiter: int, at: int, first: int, count: int, line: int) -> int:
    """Deliver a datagram that holds the expected number, from where it is."""
    line_next = note_line(arbiter, line, first, first + count)
    at += _MOLD_SIZE
    skip = load_i64(feed + _F.expected) - first
    if skip > 0:
        bump(feed + _F.overlaps, 1)
        compare_known(feed, at, skip, first, line, line_next)
        at = pass_blocks(at, skip)
        first, count = first + skip, count - skip
    note_delivered(feed, at, count, first, line, line_next)
    return _hand_on(feed, arbiter, at, count, first)


@kernel
def _keep(feed: int, arbiter: int, at: int, first: int, count: int, line: int) -> int:
    """Put a datagram that cannot be delivered yet into the window."""
    line_next, high = note_line(arbiter, line, first, first + count), load_i64(arbiter + _A.high)
    if first > high:
        miss(feed, arbiter, high, first)
        open_gap(feed, arbiter, first)
    if _lacks_room(feed, arbiter, first + count):
        if load_i64(arbiter + _A.ring) == 0:
            refuse(feed, FAR_AHEAD)  # it is asked for again when there is room
            if first > high:  # nothing is kept that says when the numbers before it were missed
                store_i64(arbiter + _A.tail_ns, load_i64(arbiter + _A.now_ns))
            return give_up(feed, arbiter)
        want_snapshot(feed, arbiter)
    if keep(feed, at + _MOLD_SIZE, count, first, line, line_next) == 0:
        return refuse(feed, DUPLICATE)
    hole_end = load_i64(arbiter + _A.hole_end)
    if first < hole_end and first > load_i64(feed + _F.expected) and is_here(arbiter, first):
        store_i64(arbiter + _A.hole_end, first)  # a part of the hole has come
    _go_on(feed, arbiter)
    bump(arbiter + _A.kept, 1)
    return 0


@inlined
def _take(feed: int, arbiter: int, at: int, size: int, first: int, count: int, line: int) -> int:
    """Sequence a well-framed datagram of the session."""
    bump(line_at(arbiter, line) + _L.datagrams, 1)
    if line == LINE_RECOVERY:
        bump(arbiter + _A.replies, 1)
    expected = load_i64(feed + _F.expected)
    if first + count <= expected:
        return _duplicate(feed, arbiter, at, size, first, count, line)
    if first > load_i64(arbiter + _A.high) + load_i64(arbiter + _A.mask) + 1:
        if line == LINE_RECOVERY:
            return refuse(feed, FAR_AHEAD)
        _doubt(feed, arbiter)
        if hold(feed, at, size, first, count, FAR_AHEAD):
            return _believe(feed, arbiter, FAR_AHEAD)
        return FAR_AHEAD
    if first <= expected and load_i64(arbiter + _A.phase) != PHASE_SNAPSHOT:
        return _deliver_now(feed, arbiter, at, first, count, line)
    return _keep(feed, arbiter, at, first, count, line)


@kernel
def close_live(feed: int) -> int:
    """At the end of a recording: give up the lowest hole, else begin a session that datagrams announced.

    Returns OK when next_message has something to give, and this may be called again afterwards; else 0.
    """
    arbiter = load_i64(feed + _F.arbiter)
    if load_i64(feed + _F.expected) < load_i64(arbiter + _A.high):
        return give_up(feed, arbiter)
    high, low = load_i64(feed + _F.candidate_high), load_i64(feed + _F.candidate_low)
    same = high == load_i64(feed + _F.session_high) and low == load_i64(feed + _F.session_low)
    if same or load_i64(feed + _F.candidates) < AGREE_AT_END:
        return 0
    return _believe(feed, arbiter, FOREIGN)


@kernel
def _take_other(feed: int, at: int, size: int, first: int, count: int, ours: bool, strange: bool) -> int:
    """Count and sequence a well-framed datagram that is not the usual one.

    ours: of the session that is followed; strange: without a well-formed message.
    """
    arbiter, line = load_i64(feed + _F.arbiter), load_i64(feed + _F.line) & (LINES_MAX - 1)
    behind = count_blocks(feed, at + _MOLD_SIZE, count)
    if behind != at + size:
        bump(feed + _F.trailing, 1)
    if not ours:
        if strange or line == LINE_RECOVERY or is_left_session(feed, at):
            return refuse(feed, FOREIGN)
        if load_i64(feed + _F.mode) != MODE_NONE and load_i64(feed + _F.ended) == 0:
            if hold(feed, at, size, first, count, FOREIGN):
                return _believe(feed, arbiter, FOREIGN)
            return FOREIGN
        _begin_run(feed, arbiter, at, first)
    return _take(feed, arbiter, at, size, first, count, line)


@inlined
def open_live(feed: int, at: int, size: int) -> int:
    """Sequence the datagram of `size` bytes at `at`, which came on line FEED.line.

    Returns OK (next_message has something to give), 0 (nothing now) or the counted reason of refusal.
    """
    arbiter, line = load_i64(feed + _F.arbiter), load_i64(feed + _F.line) & (LINES_MAX - 1)
    if size < _MOLD_SIZE:
        return refuse(feed, SHORT_DATAGRAM)
    first, count = u8(at + _M.seq), u2(at + _M.count)
    if first < 1 or first > LIVE_SEQ_MAX:
        return refuse(feed, FOREIGN)
    if count in (HEARTBEAT, END_OF_SESSION):
        return _control(feed, arbiter, at, size, first, count, line)
    mode = load_i64(feed + _F.mode)
    ours = mode != MODE_NONE and is_session(feed, at)
    good = check_blocks(at + _MOLD_SIZE, at + size, count)
    if good < 0:
        return refuse(feed, FRAMING if ours else FOREIGN)
    if ours and good == count and is_new(feed, arbiter, first, line):
        behind = note_new(feed, arbiter, at + _MOLD_SIZE, count, first, line)
        if behind != at + size:
            bump(feed + _F.trailing, 1)
        return _hand_on(feed, arbiter, at + _MOLD_SIZE, count, first)
    return _take_other(feed, at, size, first, count, ours, good == 0)
