"""What happens to an order on arrival: it takes what it crosses, and the rest joins a queue or is cancelled.

Taking walks the other side's real levels, best first, within the limit, and the orders of a level in their
order.  The real book does not change by it (no market impact, see queue_model.py), so the venue remembers
how many shares it took from each real order: the same displayed shares are never sold to us twice.  The
note is tagged with the order's arrival stamp and dies with it, or with the run of the feed (renew.py); when
the real order shrinks, what we took still counts against what is left of it.
"""

from __future__ import annotations

from typing import Final

from nimbus.book.layout import BOOKS, BookState
from nimbus.book.walk import (
    best_level,
    find_level,
    level_count,
    level_first,
    level_px,
    level_qty,
    order_next,
    order_qty,
    order_stamp,
    worse_level,
)
from nimbus.messages import TIF_IOC
from nimbus.venue.paper_layout import (
    CANCELED,
    TAKE_LEVELS_MAX,
    TRADE,
    VENUE,
    VENUE_COUNTERS,
    VENUE_ORDER,
    count,
)
from nimbus.venue.paper_reports import book_fill, free, send_report
from nimbus.venue.queue_model import better_by, enqueue, opposite
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, store_i64, store_u8

_V, _O, _C, _BOOKS = VENUE.at, VENUE_ORDER.at, VENUE_COUNTERS.at, BOOKS.at
_QTY_MASK: Final = 0xFFFFFFFF


@inlined
def _take_from(venue: int, books: BookState, slot: int, wanted: int) -> int:
    """Take up to `wanted` shares from the real order in a slot of the book; return how many it had for us."""
    if slot > load_i64(venue + _V.taken_max):
        return 0
    note_at, stamp = load_i64(venue + _V.taken) + slot * 8, order_stamp(books, slot)
    note = load_i64(note_at)
    taken = note & _QTY_MASK if (note >> 32) & _QTY_MASK == stamp else 0
    got = max(min(wanted, order_qty(books, slot) - taken), 0)
    if got:
        store_i64(note_at, (stamp << 32) | (taken + got))
        store_i64(venue + _V.taken_used, max(load_i64(venue + _V.taken_used), slot))
    return got


@inlined
def _take_level(venue: int, books: BookState, level: int, wanted: int) -> int:
    got, slot = 0, level_first(books, level)
    for _ in range(level_count(books, level)):
        if slot < 0 or got == wanted:
            break
        got += _take_from(venue, books, slot, wanted - got)
        slot = order_next(books, slot)
    return got


@kernel
def take(venue: int, books: BookState, order: int, now_ns: int) -> int:
    """Fill an arriving order from the real book, one report a level.

    Returns 1, or 0 when it was stopped after TAKE_LEVELS_MAX levels and still crosses the next.
    """
    side, px, locate = load_u8(order + _O.side), load_i64(order + _O.px), load_u16(order + _O.locate)
    level = best_level(books, locate, opposite(side))
    for _ in range(TAKE_LEVELS_MAX):
        leaves = load_i64(order + _O.leaves_qty)
        if level < 0 or leaves == 0 or better_by(side, px, level_px(books, level)) < 0:
            return 1
        got = _take_level(venue, books, level, leaves)
        if got:
            book_fill(venue, order, level_px(books, level), got)
            count(venue, _C.fills_taking)
            send_report(venue, order, TRADE, level_px(books, level), got, 0, now_ns)
        level = worse_level(books, level)
    leaves = load_i64(order + _O.leaves_qty)
    return 1 if level < 0 or leaves == 0 or better_by(side, px, level_px(books, level)) < 0 else 0


@kernel
def arrive(venue: int, books: BookState, order: int, now_ns: int) -> None:
    """Match an accepted order, then let the rest join its queue, or cancel it (IOC, or swept too far).

    The ring has room for REPORTS_MAX reports.
    """
    whole = take(venue, books, order, now_ns)
    if load_i64(order + _O.leaves_qty) == 0:
        free(venue, order)
        return
    if load_u8(order + _O.tif) == TIF_IOC or whole == 0:
        store_i64(order + _O.leaves_qty, 0)
        store_u8(order + _O.status, CANCELED)
        count(venue, _C.expired)
        send_report(venue, order, CANCELED, 0, 0, 0, now_ns)
        free(venue, order)
        return
    level = find_level(books, load_u16(order + _O.locate), load_u8(order + _O.side), load_i64(order + _O.px))
    store_i64(order + _O.ahead_qty, level_qty(books, level) if level > 0 else 0)
    store_i64(order + _O.stamp, load_i64(books.words + _BOOKS.stamp) + 1)
    enqueue(venue, order)
