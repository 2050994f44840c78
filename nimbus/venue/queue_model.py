"""Where our resting orders stand in the real queues, and when the real flow reaches them.

The replayed market does not know of our orders: they have **no market impact**.  A real order that we fill
against is executed in the replay as it was in the market; what it could have traded with others is not
taken from them, and nobody reacts to us.  Small orders are modelled well, large ones too kindly.

Position.  An order joins the end of the queue of its price.  A real order is before it if and only if its
arrival stamp is smaller, so `ahead_qty` is exact: all shares of the level on arrival, less every share that
such an order loses by execution, cancellation, deletion or replacement.  Our own orders at one price are
served in the order of their arrival.

Fills.  Only an order with nothing ahead can be filled, always at its own price, by
* a real execution of an order on its side that stands behind it in its queue, or at a worse price;
* a real order that arrives on the other side at a price that crosses or meets its own (Add, Replace), while
  the symbol is not halted;
* a print against an order that is not displayed (P) at its price or worse: displayed orders go first.
One message fills at most as many of our shares as it moved real ones, best price first.  Executions that
do not print (C) and crosses (Q) fill nothing: we take no part in auctions.

Our own orders never trade with each other; an own buy and an own sell order may stand crossed.
"""

from __future__ import annotations

from typing import Final

from nimbus.book.layout import BookState, runs_ended
from nimbus.book.publish import top_at
from nimbus.feed.itch import ADD, ADD_MPID, CANCEL, DELETE, EXECUTED, EXECUTED_PX, REPLACE, TRADE
from nimbus.messages import BOOK_HALTED, BUY, CHANGE, SELL, TOP_OF_BOOK
from nimbus.venue.paper_layout import (
    VENUE,
    VENUE_COUNTERS,
    VENUE_ORDER,
    VENUE_ROW,
    count,
    head_at,
    order_at,
    row_at,
    slot_of,
)
from nimbus.venue.paper_reports import book_fill, flush, owe
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, store_i64, store_u8

_V, _O, _ROW, _C = VENUE.at, VENUE_ORDER.at, VENUE_ROW.at, VENUE_COUNTERS.at
_CHANGE, _TOP = CHANGE.at, TOP_OF_BOOK.at
_A, _F, _E, _CPX = ADD.code, ADD_MPID.code, EXECUTED.code, EXECUTED_PX.code
_X, _D, _U, _P = CANCEL.code, DELETE.code, REPLACE.code, TRADE.code
NO_STAMP: Final = 0  # of a print: it has no place in a queue


@inlined
def opposite(side: int) -> int:
    """Return S for B and B for S."""
    return BUY + SELL - side


@inlined
def better_by(side: int, px: int, than_px: int) -> int:
    """Return how much better px is than than_px for an order of a side; negative when it is worse."""
    return px - than_px if side == BUY else than_px - px


@kernel
def enqueue(venue: int, order: int) -> None:
    """Let an order rest: behind our orders of its symbol and side that are better, or as good and earlier."""
    slot, side, px = slot_of(venue, order), load_u8(order + _O.side), load_i64(order + _O.px)
    row = row_at(venue, load_u16(order + _O.locate))
    before, behind = 0, load_i64(head_at(row, side))
    for _ in range(load_i64(venue + _V.orders_max)):
        if behind == 0 or better_by(side, px, load_i64(order_at(venue, behind) + _O.px)) > 0:
            break
        before, behind = behind, load_i64(order_at(venue, behind) + _O.next)
    store_i64(order + _O.prev, before)
    store_i64(order + _O.next, behind)
    if before == 0:
        store_i64(head_at(row, side), slot)
    else:
        store_i64(order_at(venue, before) + _O.next, slot)
    if behind != 0:
        store_i64(order_at(venue, behind) + _O.prev, slot)
    store_u8(order + _O.resting, 1)
    store_i64(row + _ROW.resting, load_i64(row + _ROW.resting) + 1)
    store_i64(venue + _V.resting, load_i64(venue + _V.resting) + 1)


@kernel
def dequeue(venue: int, order: int) -> None:
    """Take a resting order out of its queue."""
    row = row_at(venue, load_u16(order + _O.locate))
    before, behind = load_i64(order + _O.prev), load_i64(order + _O.next)
    if before == 0:
        store_i64(head_at(row, load_u8(order + _O.side)), behind)
    else:
        store_i64(order_at(venue, before) + _O.next, behind)
    if behind != 0:
        store_i64(order_at(venue, behind) + _O.prev, before)
    store_u8(order + _O.resting, 0)
    store_i64(row + _ROW.resting, load_i64(row + _ROW.resting) - 1)
    store_i64(venue + _V.resting, load_i64(venue + _V.resting) - 1)


@inlined
def _fill(venue: int, order: int, flow: int, now_ns: int) -> int:
    """Fill an order from `flow` shares; return how many it took."""
    qty = min(flow, load_i64(order + _O.leaves_qty))
    book_fill(venue, order, load_i64(order + _O.px), qty)
    owe(venue, order, qty, now_ns)
    count(venue, _C.fills_resting)
    if load_i64(order + _O.leaves_qty) == 0:
        dequeue(venue, order)
    return qty


@kernel
def reach(venue: int, locate: int, side: int, px: int, stamp: int, flow: int, now_ns: int) -> int:
    """Let `flow` real shares reach our orders of a side at px or better; return how many were filled.

    stamp: arrival stamp of the real order of our side that was executed at px: it was before those of
    ours that came later, and moves them up instead.  NO_STAMP: the flow met no displayed order of our side.
    """
    left, slot = flow, load_i64(head_at(row_at(venue, locate), side))
    for _ in range(load_i64(venue + _V.orders_max)):
        if slot == 0:
            break
        order = order_at(venue, slot)
        slot = load_i64(order + _O.next)
        better = better_by(side, load_i64(order + _O.px), px)
        if better < 0:
            break
        ahead = load_i64(order + _O.ahead_qty)
        if better == 0 and stamp != NO_STAMP and stamp < load_i64(order + _O.stamp):
            store_i64(order + _O.ahead_qty, max(ahead - flow, 0))
        elif ahead == 0 and left > 0:
            left -= _fill(venue, order, left, now_ns)
    return flow - left


@kernel
def move_up(venue: int, locate: int, side: int, px: int, stamp: int, qty: int) -> None:
    """Move up those of ours that came later than a real order of that price and stamp, which lost qty."""
    slot = load_i64(head_at(row_at(venue, locate), side))
    for _ in range(load_i64(venue + _V.orders_max)):
        if slot == 0:
            break
        order = order_at(venue, slot)
        better = better_by(side, load_i64(order + _O.px), px)
        if better < 0:
            break
        if better == 0 and stamp < load_i64(order + _O.stamp):
            store_i64(order + _O.ahead_qty, max(load_i64(order + _O.ahead_qty) - qty, 0))
        slot = load_i64(order + _O.next)


@kernel
def _flow(venue: int, books: BookState, change: int, now_ns: int) -> int:
    """Apply a CHANGE of a symbol in which we have orders; return how many of our shares were filled."""
    locate, side = load_u16(change + _CHANGE.locate), load_u8(change + _CHANGE.side)
    px, qty = load_i64(change + _CHANGE.px), load_i64(change + _CHANGE.qty)
    stamp, cause = load_i64(change + _CHANGE.stamp), load_u8(change + _CHANGE.cause)
    if cause == _P:
        print_px, print_qty = load_i64(change + _CHANGE.trade_px), load_i64(change + _CHANGE.trade_qty)
        if print_px < 1 or print_qty < 1:
            return 0
        bought = reach(venue, locate, BUY, print_px, NO_STAMP, print_qty, now_ns)
        return bought + reach(venue, locate, SELL, print_px, NO_STAMP, print_qty - bought, now_ns)
    if px < 1 or qty < 1:  # refused, or nothing about an order
        return 0
    if cause == _E or (cause == _CPX and load_u8(change + _CHANGE.printable)):
        return reach(venue, locate, side, px, stamp, qty, now_ns)
    if cause in (_X, _D, _U, _CPX):
        move_up(venue, locate, side, px, stamp, qty)
    arrived = cause in (_A, _F)
    if cause == _U:
        px, qty = load_i64(change + _CHANGE.new_px), load_i64(change + _CHANGE.new_qty)
        arrived = True
    if not arrived or load_u8(top_at(books, locate) + _TOP.status) & BOOK_HALTED:
        return 0
    return reach(venue, locate, opposite(side), px, NO_STAMP, qty, now_ns)


@kernel
def _on_change(venue: int, books: BookState, change: int, now_ns: int) -> int:
    filled, locate = 0, load_u16(change + _CHANGE.locate)
    is_in_line = load_i64(venue + _V.runs_ended) == runs_ended(books)  # else they wait for their cancel
    is_known = is_in_line and locate < load_i64(venue + _V.symbols_max)
    if is_known and load_i64(row_at(venue, locate) + _ROW.resting) > 0:
        filled = _flow(venue, books, change, now_ns)
    if load_i64(venue + _V.owing_first) != 0 and flush(venue) == 0:
        count(venue, _C.deferred)
    return filled


@inlined
def on_change(venue: int, books: BookState, change: int, now_ns: int) -> int:
    """Let a real message reach our resting orders: called after each apply(), with its CHANGE.

    Returns how many of our shares were filled.  Costs two loads while no order of ours rests.
    """
    if load_i64(venue + _V.resting) | load_i64(venue + _V.owing_first) == 0:
        return 0
    return _on_change(venue, books, change, now_ns)
