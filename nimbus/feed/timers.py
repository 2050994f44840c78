"""The clock of a live feed: one call per duty cycle."""

from __future__ import annotations

from nimbus.feed.arbiter_state import ARBITER, PHASE_SNAPSHOT
from nimbus.feed.gaps import work_on_gap
from nimbus.feed.rerequest import send_request
from nimbus.feed.snapshot_rows import take_rows
from nimbus.feed.state import FEED, OK
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, store_i64
from ringbuf.spsc import front

_F, _A = FEED.at, ARBITER.at


@inlined
def is_loading(feed: int) -> bool:
    """Say whether the message in hand is one of a snapshot."""
    arbiter = load_i64(feed + _F.arbiter)
    return arbiter != 0 and load_i64(arbiter + _A.row_open) != 0


@kernel
def feed_timers(feed: int, now_ns: int) -> int:
    """Let time pass: deadlines of gaps, requests, rows of a snapshot.  A file has no timers.

    now_ns: the time of the duty cycle, on any clock that does not go back.  Called when next_message has
    given 0.  Returns OK when next_message has something to give again, else 0.
    """
    arbiter = load_i64(feed + _F.arbiter)
    if arbiter == 0:
        return 0
    before_ns = load_i64(arbiter + _A.now_ns)
    if before_ns == 0:  # packets may have come before the first look at the clock
        for since in (_A.hole_ns, _A.tail_ns, _A.heard_ns):
            store_i64(arbiter + since, now_ns)
    store_i64(arbiter + _A.now_ns, max(now_ns, before_ns))
    if load_i64(feed + _F.left) > 0:
        return OK  # the caller has not finished the last packet
    ring = load_i64(arbiter + _A.ring)
    if load_i64(arbiter + _A.phase) == PHASE_SNAPSHOT:
        return take_rows(feed, arbiter)
    if ring != 0 and front(ring) != 0 and take_rows(feed, arbiter) == OK:
        return OK
    if load_i64(arbiter + _A.busy) == 0:
        return 0
    status = work_on_gap(feed, arbiter)
    if load_i64(arbiter + _A.request_count) > 0:
        send_request(feed, arbiter)
    return status
