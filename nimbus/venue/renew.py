"""What the venue does when the books begin anew: our resting orders are cancelled, its notes forgotten.

A new run of the feed empties the books (nimbus/book/reset.py): slots are used again and arrival stamps
begin at 1, so the places of our orders in their queues and the notes of shares taken mean nothing any more.
Fills that are owed are reported first, then each resting order ends by an ExecutionReport (Canceled, not
asked for), in the order of the slots.  Positions are not the venue's and stay.  A full ring of reports
stops this half-way; until it is done no request is handled and no real message reaches our orders.
"""

from __future__ import annotations

from nimbus.book.layout import BookState, runs_ended
from nimbus.venue.paper_layout import (
    CANCELED,
    VENUE,
    VENUE_COUNTERS,
    VENUE_ORDER,
    count,
    order_at,
)
from nimbus.venue.paper_reports import flush, free, room, send_report
from nimbus.venue.queue_model import dequeue
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, load_u8, store_i64, store_u8

_V, _O, _C = VENUE.at, VENUE_ORDER.at, VENUE_COUNTERS.at


@inlined
def end_resting(venue: int, order: int, request: int, now_ns: int) -> None:
    """Cancel a resting order and report it; request: as in send_report().  The ring has room for it."""
    dequeue(venue, order)
    store_i64(order + _O.leaves_qty, 0)
    store_u8(order + _O.status, CANCELED)
    send_report(venue, order, CANCELED, 0, 0, request, now_ns)
    free(venue, order)


@kernel
def _renew(venue: int, books: BookState, now_ns: int) -> int:
    """Bring the venue in line with books that began anew; return 1, or 0 when the reports ring is full."""
    if flush(venue) == 0:
        return 0
    for slot in range(1, load_i64(venue + _V.orders_used) + 1):
        if load_i64(venue + _V.resting) == 0:
            break
        order = order_at(venue, slot)
        if load_u8(order + _O.resting) == 0:
            continue
        if room(venue) < 1:
            return 0
        end_resting(venue, order, 0, now_ns)
        count(venue, _C.renewed)
    clear(load_i64(venue + _V.taken), (load_i64(venue + _V.taken_used) + 1) * 8)
    store_i64(venue + _V.taken_used, 0)
    store_i64(venue + _V.runs_ended, runs_ended(books))
    return 1


@inlined
def is_in_line(venue: int, books: BookState, now_ns: int) -> bool:
    """Say whether our orders belong to the run that the books hold, after seeing to it where possible."""
    return load_i64(venue + _V.runs_ended) == runs_ended(books) or _renew(venue, books, now_ns) != 0
