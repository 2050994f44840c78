"""A snapshot on its way into the books: rows of a ring, filled by the control loop, drained here.

ROW_BEGIN empties the books (FEED.run rises), ROW_MESSAGES are delivered like those of a packet, ROW_END says
from which number the window continues.  Rows that do not answer the snapshot wanted last are passed over.
"""

from __future__ import annotations

from nimbus.feed.arbiter_state import (
    ARBITER,
    LEVEL_SNAPSHOT,
    LIVE_SEQ_MAX,
    PHASE_REREQUEST,
    PHASE_SNAPSHOT,
    ROW_BEGIN,
    ROW_BYTES_MAX,
    ROW_END,
    ROW_MESSAGES,
    ROWS_MAX,
    SLOT,
    SNAPSHOT_ROW,
)
from nimbus.feed.gaps import open_gap, want_snapshot
from nimbus.feed.moldudp64 import check_blocks
from nimbus.feed.state import FEED, OK, bump
from nimbus.feed.window import is_here, slot_of
from ringbuf.atomics import store_release
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u32, store_i64
from ringbuf.spsc import front, pop

_F, _A, _R, _S = FEED.at, ARBITER.at, SNAPSHOT_ROW.at, SLOT.at


@inlined
def _fail(feed: int, arbiter: int) -> None:
    """Count a snapshot that came to nothing and want another."""
    bump(arbiter + _A.snapshots_failed, 1)
    want_snapshot(feed, arbiter)


@inlined
def _count_here(arbiter: int, first: int, behind: int) -> int:
    """Return how many numbers from first to behind lie in the window."""
    count = 0
    for place in range(load_i64(arbiter + _A.mask) + 1):
        if first <= load_i64(slot_of(arbiter, place) + _S.seq) < behind:
            count += 1
    return count


@inlined
def _begin(feed: int, arbiter: int, row: int) -> None:
    same = load_i64(row + _R.session_high) == load_i64(feed + _F.session_high)
    if not same or load_i64(row + _R.session_low) != load_i64(feed + _F.session_low):
        _fail(feed, arbiter)
        return
    bump(feed + _F.run, 1)
    store_i64(feed + _F.stale, 1)
    store_i64(feed + _F.incomplete, 1)
    store_i64(arbiter + _A.loading, 1)
    store_i64(arbiter + _A.hollow, 1)


@kernel
def _finish(feed: int, arbiter: int, seq: int) -> None:
    """Continue from number seq, the first that is not in the books now."""
    expected, high = load_i64(feed + _F.expected), load_i64(arbiter + _A.high)
    if seq < expected:  # older than what was delivered: that is needed once more
        again = expected - seq - _count_here(arbiter, seq, expected)
        bump(arbiter + _A.missing, again)
        bump(feed + _F.missing, again)
        bump(arbiter + _A.absent, again)
    else:
        behind = min(seq, high)
        here = _count_here(arbiter, expected, behind)
        covered = max(behind - expected, 0) - here  # above `high` nobody knew of them
        bump(arbiter + _A.superseded, here)
        bump(arbiter + _A.by_snapshot, covered)
        bump(arbiter + _A.absent, -covered)
    store_i64(feed + _F.expected, seq)
    store_i64(feed + _F.incomplete, 0)
    store_i64(feed + _F.stale, 1 if seq < high else 0)
    if load_i64(arbiter + _A.open) != 0:
        store_i64(arbiter + _A.level, LEVEL_SNAPSHOT)
    elif load_i64(arbiter + _A.absent) > 0:
        open_gap(feed, arbiter, 0)
    for word, value in (
        (_A.high, max(seq, high)), (_A.recent, seq), (_A.loading, 0), (_A.lossy, 0), (_A.hollow, 0),
        (_A.hole_first, 0), (_A.hole_end, 0), (_A.asked, 0), (_A.retries, 0), (_A.busy, 1),
        (_A.settled_ns, load_i64(arbiter + _A.now_ns)), (_A.phase, PHASE_REREQUEST),
    ):  # fmt: skip
        store_i64(arbiter + word, value)
    bump(arbiter + _A.snapshots, 1)


@inlined
def _is_repaired(feed: int, arbiter: int) -> bool:
    """Say whether the hole was filled before the snapshot began: then it is not needed."""
    if load_i64(arbiter + _A.loading) != 0 or load_i64(arbiter + _A.hollow) != 0:
        return False
    expected = load_i64(feed + _F.expected)
    return expected == load_i64(arbiter + _A.high) or is_here(arbiter, expected)


@inlined
def _wait(feed: int, arbiter: int) -> int:
    """While a snapshot is wanted: see whether it still is, whether its time has come or has run out."""
    now_ns, due_ns = load_i64(arbiter + _A.now_ns), load_i64(arbiter + _A.due_ns)
    if _is_repaired(feed, arbiter):
        bump(arbiter + _A.cancelled, 1)
        store_i64(arbiter + _A.due_ns, 0)
        store_i64(arbiter + _A.phase, PHASE_REREQUEST)
        store_i64(feed + _F.incomplete, 0)
        return OK
    if due_ns != 0:
        if now_ns >= due_ns:
            store_i64(arbiter + _A.due_ns, 0)
            store_i64(arbiter + _A.heard_ns, now_ns)
            # pairs with the client's load: it sees the phase that goes with the number
            store_release(arbiter + _A.wanted, load_i64(arbiter + _A.wanted) + 1)
    elif now_ns - load_i64(arbiter + _A.heard_ns) >= load_i64(arbiter + _A.snapshot_timeout_ns):
        _fail(feed, arbiter)
    return 0


@inlined
def _take_messages(feed: int, arbiter: int, row: int) -> int:
    """Set the cursor on the messages of a row; return OK, or 0 when they do not fit their row."""
    at, size, count = row + _R.bytes, load_u32(row + _R.size), load_u32(row + _R.count)
    if size > ROW_BYTES_MAX or check_blocks(at, at + size, count) != count:
        _fail(feed, arbiter)
        return 0
    bump(arbiter + _A.snapshot_messages, count)
    store_i64(feed + _F.at, at)
    store_i64(feed + _F.left, count)
    store_i64(feed + _F.next_seq, 0)
    return OK


@kernel
def take_rows(feed: int, arbiter: int) -> int:
    """Take the next rows of a snapshot; return OK when next_message has something to give, else 0."""
    ring = load_i64(arbiter + _A.ring)
    if load_i64(arbiter + _A.row_open) != 0:
        store_i64(arbiter + _A.row_open, 0)
        pop(ring)
    for _row in range(ROWS_MAX):
        row = front(ring)
        if row == 0:
            break
        answered, kind = load_i64(row + _R.wanted), load_i64(row + _R.kind)
        waiting = load_i64(arbiter + _A.phase) == PHASE_SNAPSHOT and load_i64(arbiter + _A.due_ns) == 0
        loading = load_i64(arbiter + _A.loading) != 0
        if not waiting or answered != load_i64(arbiter + _A.wanted) or (kind != ROW_BEGIN and not loading):
            bump(arbiter + _A.stale_rows, 1)
            pop(ring)
            continue
        store_i64(arbiter + _A.heard_ns, load_i64(arbiter + _A.now_ns))
        if kind == ROW_MESSAGES:
            if _take_messages(feed, arbiter, row) == OK:
                store_i64(arbiter + _A.row_open, 1)
                return OK
        elif kind == ROW_BEGIN:
            _begin(feed, arbiter, row)
        elif kind == ROW_END and 1 <= load_i64(row + _R.seq) <= LIVE_SEQ_MAX:
            _finish(feed, arbiter, load_i64(row + _R.seq))
            pop(ring)
            return OK
        else:
            _fail(feed, arbiter)
        pop(ring)
    if load_i64(arbiter + _A.phase) == PHASE_SNAPSHOT:
        return _wait(feed, arbiter)
    return 0
