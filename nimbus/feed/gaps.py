"""What a live feed does about missing numbers: wait, ask again, take a snapshot, or give them up.

Of the missing numbers below `high` the lowest range, the *hole*, holds everything up, so all deadlines are
its own: for gap_wait the other line may bring it (WAITING); then the books are stale and it is requested,
with the holes behind it, in rounds (REREQUEST); at gap_timeout, after too many rounds in vain, or with a full
window it is given up: for a snapshot (SNAPSHOT) or, where there is no snapshot server, for good.

A round asks for each hole once, lowest first.  It begins again when the hole has not come nearer for
round_timeout: with the same server while replies help, else with the next one and twice the time.  Nothing
here is searched twice: a hole is measured once, when the feed arrives at it.
"""

from __future__ import annotations

from nimbus.feed.arbiter_state import (
    ARBITER,
    BACKOFF_MAX,
    LEVEL_LINE,
    LEVEL_LOST,
    LEVEL_REREQUEST,
    LEVEL_SNAPSHOT,
    PHASE_LIVE,
    PHASE_REREQUEST,
    PHASE_SNAPSHOT,
    PHASE_WAITING,
    SCAN_MAX,
    SLOT,
)
from nimbus.feed.state import FEED, OK, bump
from nimbus.feed.window import is_here, slot_of
from ringbuf.atomics import store_release
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u32, store_i64

_F, _A, _S = FEED.at, ARBITER.at, SLOT.at


@inlined
def open_gap(feed: int, arbiter: int, hole_end: int) -> None:
    """Begin an episode of missing numbers, unless one is open."""
    if load_i64(arbiter + _A.open) != 0:
        return
    bump(arbiter + _A.gaps, 1)
    bump(feed + _F.gaps, 1)
    store_i64(arbiter + _A.open, 1)
    store_i64(arbiter + _A.busy, 1)
    store_i64(arbiter + _A.level, LEVEL_LINE)
    store_i64(arbiter + _A.hole_first, load_i64(feed + _F.expected))
    store_i64(arbiter + _A.hole_end, hole_end)
    store_i64(arbiter + _A.hole_ns, load_i64(arbiter + _A.now_ns))
    store_i64(arbiter + _A.asked, 0)
    store_i64(arbiter + _A.retries, 0)
    store_i64(arbiter + _A.progress, 0)
    if load_i64(arbiter + _A.phase) != PHASE_SNAPSHOT:
        store_i64(arbiter + _A.phase, PHASE_WAITING)


@inlined
def miss(feed: int, arbiter: int, first: int, behind: int) -> None:
    """Note that the numbers from first to behind, which end at or above `high`, are not there."""
    bump(arbiter + _A.missing, behind - first)
    bump(arbiter + _A.absent, behind - first)
    bump(feed + _F.missing, behind - first)
    store_i64(arbiter + _A.high, max(behind, load_i64(arbiter + _A.high)))


@kernel
def close_gap(arbiter: int) -> None:
    """End the episode, if one is open, and count what it has needed."""
    if load_i64(arbiter + _A.open) == 0:
        return
    level = load_i64(arbiter + _A.level)
    if level == LEVEL_LINE:
        bump(arbiter + _A.gaps_by_line, 1)
    elif level == LEVEL_REREQUEST:
        bump(arbiter + _A.gaps_by_rerequest, 1)
    elif level == LEVEL_SNAPSHOT:
        bump(arbiter + _A.gaps_by_snapshot, 1)
    else:
        bump(arbiter + _A.gaps_lost, 1)
    store_i64(arbiter + _A.open, 0)


@kernel
def lowest_kept(arbiter: int, first: int) -> int:
    """Return the lowest number from `first` on that lies in the window, or `high`."""
    high, slots = load_i64(arbiter + _A.high), load_i64(arbiter + _A.mask) + 1
    for seq in range(first, min(high, first + slots)):
        if is_here(arbiter, seq):
            return seq
    lowest = high
    if high > first + slots:  # rare: what was kept may lie anywhere
        for place in range(slots):
            seq = load_i64(slot_of(arbiter, place) + _S.seq)
            if first <= seq < lowest:
                lowest = seq
    return lowest


@kernel
def _measure(feed: int, arbiter: int) -> None:
    """Find where the hole at FEED.expected ends and when it was seen."""
    end, seen_ns = lowest_kept(arbiter, load_i64(feed + _F.expected)), load_i64(arbiter + _A.tail_ns)
    if end < load_i64(arbiter + _A.high):
        seen_ns = load_i64(slot_of(arbiter, end) + _S.seen_ns)
    store_i64(arbiter + _A.hole_end, end)
    store_i64(arbiter + _A.hole_ns, max(seen_ns, load_i64(arbiter + _A.settled_ns)))


@kernel
def _settle(feed: int, arbiter: int) -> None:
    """Look at where the feed has stopped: at its end, at the hole it knows, or at the next one."""
    expected = load_i64(feed + _F.expected)
    if expected >= load_i64(arbiter + _A.high):
        close_gap(arbiter)
        store_i64(arbiter + _A.busy, 0)
        store_i64(arbiter + _A.phase, PHASE_LIVE)
        store_i64(arbiter + _A.attempts, 0)
        store_i64(feed + _F.stale, load_i64(arbiter + _A.lossy))
        return
    if expected == load_i64(arbiter + _A.hole_first):
        return
    store_i64(arbiter + _A.hole_first, expected)
    store_i64(arbiter + _A.round_ns, load_i64(arbiter + _A.now_ns))  # it came nearer
    if expected >= load_i64(arbiter + _A.hole_end):
        _measure(feed, arbiter)
        if load_i64(arbiter + _A.hole_ns) > load_i64(arbiter + _A.settled_ns):
            store_i64(arbiter + _A.attempts, 0)  # everything that the last snapshot left open is closed
        age_ns = load_i64(arbiter + _A.now_ns) - load_i64(arbiter + _A.hole_ns)
        if age_ns < load_i64(arbiter + _A.gap_wait_ns):
            store_i64(arbiter + _A.phase, PHASE_WAITING)
            store_i64(feed + _F.stale, load_i64(arbiter + _A.lossy))


@kernel
def next_kept(feed: int) -> int:
    """Return the address of the next message of the window and set FEED.seq and recv_ns; 0 = a hole, or all.

    The message stays where it is until the next packet or timer.
    """
    arbiter = load_i64(feed + _F.arbiter)
    if load_i64(arbiter + _A.busy) == 0 or load_i64(arbiter + _A.phase) == PHASE_SNAPSHOT:
        return 0
    expected, high = load_i64(feed + _F.expected), load_i64(arbiter + _A.high)
    while expected < high:
        slot = slot_of(arbiter, expected)
        if load_i64(slot + _S.seq) != expected:
            break
        expected += 1
        if load_u32(slot + _S.size) > 0:
            store_i64(feed + _F.expected, expected)
            store_i64(feed + _F.seq, expected - 1)
            store_i64(feed + _F.recv_ns, load_i64(slot + _S.recv_ns))
            message: int = slot + _S.bytes
            return message
    store_i64(feed + _F.expected, expected)
    _settle(feed, arbiter)
    return 0


# ---------------------------------------------------------------- giving up


@kernel
def want_snapshot(feed: int, arbiter: int) -> None:
    """Keep everything from now on, and ask for a snapshot: at once, or after a while when others failed."""
    now_ns, attempts = load_i64(arbiter + _A.now_ns), load_i64(arbiter + _A.attempts)
    store_i64(arbiter + _A.attempts, attempts + 1)
    store_i64(arbiter + _A.phase, PHASE_SNAPSHOT)
    store_i64(arbiter + _A.loading, 0)
    store_i64(arbiter + _A.heard_ns, now_ns)
    store_i64(feed + _F.stale, 1)
    store_i64(feed + _F.incomplete, 1)
    if attempts == 0:
        store_i64(arbiter + _A.due_ns, 0)
        # pairs with the client's load: it sees the phase that goes with the number
        store_release(arbiter + _A.wanted, load_i64(arbiter + _A.wanted) + 1)
    else:
        hold_ns = load_i64(arbiter + _A.snapshot_hold_ns) << min(attempts - 1, BACKOFF_MAX)
        store_i64(arbiter + _A.due_ns, now_ns + hold_ns)


@kernel
def give_up(feed: int, arbiter: int) -> int:
    """Give the hole up; return OK when next_message may have something to give, else 0."""
    if load_i64(arbiter + _A.ring) != 0:
        want_snapshot(feed, arbiter)
        return 0
    expected = load_i64(feed + _F.expected)
    behind = max(load_i64(arbiter + _A.hole_end), expected)
    lost = behind - expected
    bump(arbiter + _A.absent, -lost)
    bump(arbiter + _A.lost, lost)
    store_i64(arbiter + _A.level, LEVEL_LOST)
    store_i64(arbiter + _A.lossy, 1)
    store_i64(arbiter + _A.recent, behind)
    store_i64(feed + _F.expected, behind)
    store_i64(feed + _F.stale, 1)
    return OK


# ---------------------------------------------------------------- asking


@kernel
def _choose(feed: int, arbiter: int) -> int:
    """Find the next hole of this round that has waited long enough; return its messages, 0 = none.

    ARBITER.request_first is its first number.
    """
    now_ns, high = load_i64(arbiter + _A.now_ns), load_i64(arbiter + _A.high)
    expected, count_max = load_i64(feed + _F.expected), load_i64(arbiter + _A.request_max)
    seq = first = max(load_i64(arbiter + _A.asked), expected)
    while seq < high and seq - first < SCAN_MAX and is_here(arbiter, seq):
        seq += 1
    store_i64(arbiter + _A.asked, seq)
    if seq >= high or is_here(arbiter, seq):
        return 0
    first = seq
    while seq < high and seq - first < count_max and not is_here(arbiter, seq):
        seq += 1
    seen_ns = load_i64(arbiter + _A.hole_ns)
    if first >= load_i64(arbiter + _A.hole_end):
        if seq < high and is_here(arbiter, seq):
            seen_ns = load_i64(slot_of(arbiter, seq) + _S.seen_ns)
        elif seq >= high:
            seen_ns = load_i64(arbiter + _A.tail_ns)
        elif is_here(arbiter, first - 1):
            seen_ns = load_i64(slot_of(arbiter, first - 1) + _S.seen_ns)
    if now_ns - seen_ns < load_i64(arbiter + _A.gap_wait_ns):
        return 0
    store_i64(arbiter + _A.request_first, first)
    store_i64(arbiter + _A.asked, seq)
    if first == expected:
        store_i64(arbiter + _A.round_ns, now_ns)
    return seq - first


@inlined
def _begin_round(feed: int, arbiter: int, now_ns: int) -> None:
    """Ask for everything again when the hole was asked for and has not come nearer for too long."""
    retries = load_i64(arbiter + _A.retries)
    timeout_ns = load_i64(arbiter + _A.round_timeout_ns) << min(retries, BACKOFF_MAX)
    asked_for = load_i64(arbiter + _A.asked) > load_i64(feed + _F.expected)
    if not asked_for or now_ns - load_i64(arbiter + _A.round_ns) < timeout_ns:
        return
    store_i64(arbiter + _A.asked, 0)
    bump(arbiter + _A.retried, 1)
    if load_i64(arbiter + _A.progress) != 0:
        store_i64(arbiter + _A.progress, 0)
        store_i64(arbiter + _A.retries, 0)
    else:
        server = load_i64(arbiter + _A.server) + 1
        store_i64(arbiter + _A.retries, retries + 1)
        store_i64(arbiter + _A.server, server if server < load_i64(arbiter + _A.servers) else 0)


@kernel
def work_on_gap(feed: int, arbiter: int) -> int:
    """Do what the age of the hole asks for; return OK when messages can be delivered now, else 0.

    ARBITER.request_count is above 0 afterwards when a request is to be sent.
    """
    expected = load_i64(feed + _F.expected)
    if expected >= load_i64(arbiter + _A.high) or is_here(arbiter, expected):
        return OK
    now_ns = load_i64(arbiter + _A.now_ns)
    age_ns = now_ns - load_i64(arbiter + _A.hole_ns)
    if age_ns < load_i64(arbiter + _A.gap_wait_ns):
        return 0
    store_i64(feed + _F.stale, 1)
    can_ask = load_i64(arbiter + _A.servers) > 0
    if can_ask:
        store_i64(arbiter + _A.phase, PHASE_REREQUEST)
        _begin_round(feed, arbiter, now_ns)
    hopeless = load_i64(arbiter + _A.retries) > load_i64(arbiter + _A.retries_max)
    if not can_ask and load_i64(arbiter + _A.ring) != 0:
        hopeless = True
    if hopeless or age_ns >= load_i64(arbiter + _A.gap_timeout_ns):
        return give_up(feed, arbiter)
    if can_ask and now_ns >= load_i64(arbiter + _A.next_ns):
        count = _choose(feed, arbiter)
        store_i64(arbiter + _A.request_count, count)
        if count > 0:
            store_i64(arbiter + _A.next_ns, now_ns + load_i64(arbiter + _A.interval_ns))
    return 0
