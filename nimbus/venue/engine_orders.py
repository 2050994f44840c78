"""Our orders: checked, accepted, matched against the published book in order of price and time.

An order trades with everybody it crosses, other orders of ours included.  What is left joins the book as an A
of our own range of references (DAY), or is cancelled (IOC).  Each request is answered by ORDER_EVENTs.
"""

from __future__ import annotations

from nimbus.book.directory import find_symbol
from nimbus.book.layout import PX_MAX
from nimbus.fix.tags import QTY_MAX
from nimbus.messages import BUY, SELL, TIF_DAY, TIF_IOC
from nimbus.venue import engine_layout as layout
from nimbus.venue.engine_flow import is_halted
from nimbus.venue.engine_layout import (
    BATCH_MAX,
    CANCEL_ORDER,
    COUNTERS,
    ENGINE,
    EVENTS_MAX,
    NEW_ORDER,
    OWN,
    PRIVATE_REF,
    REQUEST,
    EngineState,
    count,
    own_at,
)
from nimbus.venue.engine_match import emit_add, emit_delete, take, tell
from nimbus.venue.store import room as store_room
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, store_i64, store_u8, store_u16
from ringbuf.spsc import front, pop, room

_E, _O, _Q, _C = ENGINE.at, OWN.at, REQUEST.at, COUNTERS.at


@inlined
def _judge(e: EngineState, request: int, locate: int) -> int:
    """Return why a new order must be refused, 0 = it may come in."""
    px, qty = load_i64(request + _Q.px), load_i64(request + _Q.qty)
    if load_u8(request + _Q.side) not in (BUY, SELL) or load_u8(request + _Q.tif) not in (TIF_DAY, TIF_IOC):
        return layout.BAD_FORM
    if locate < 1:
        return layout.UNKNOWN_SYMBOL
    if qty < 1 or qty > QTY_MAX:
        return layout.BAD_QTY
    if px < 1 or px > PX_MAX:
        return layout.BAD_PX
    return layout.CLOSED if is_halted(e, locate) else 0


@inlined
def _finish(e: EngineState, own: int, reason: int, request: int) -> None:
    """Cancel what is left of an order that is not in the book, and tell."""
    store_u8(own + _O.status, layout.CANCELED_STATUS)
    store_i64(own + _O.leaves_qty, 0)
    tell(e, own, layout.CANCELED, reason, request, 0, 0, 0)


@kernel
def new_order(e: EngineState, request: int) -> None:
    """Handle a REQUEST for a new order, whose number was never used."""
    words, cause = e.words, load_i64(request + _Q.request)
    own = own_at(words, load_i64(request + _Q.number))
    locate = find_symbol(e.books, load_i64(request + _Q.symbol))
    count(words, _C.orders)
    for field, value in (
        (_O.px, load_i64(request + _Q.px)),
        (_O.qty, load_i64(request + _Q.qty)),
        (_O.request, cause),
    ):
        store_i64(own + field, value)
    store_u8(own + _O.side, load_u8(request + _Q.side))
    store_u8(own + _O.tif, load_u8(request + _Q.tif))
    store_u16(own + _O.locate, max(locate, 0))
    reason = _judge(e, request, locate)
    if reason != 0:
        store_u8(own + _O.status, layout.REJECTED_STATUS)
        count(words, _C.rejected)
        tell(e, own, layout.REJECTED, reason, cause, 0, 0, 0)
        return
    store_i64(own + _O.leaves_qty, load_i64(own + _O.qty))
    store_u8(own + _O.status, layout.NEW)
    store_u8(load_i64(words + _E.touched) + locate, 1)
    count(words, _C.accepted)
    tell(e, own, layout.ACCEPTED, 0, cause, 0, 0, 0)
    whole = take(e, own, cause)
    if load_i64(own + _O.leaves_qty) == 0:
        return
    if not whole or load_u8(own + _O.tif) == TIF_IOC:
        count(words, _C.expired)
        _finish(e, own, layout.NOT_TAKEN if whole else layout.SWEPT, cause)
    elif emit_add(e, own) < 0:
        count(words, _C.expired)
        _finish(e, own, layout.FULL, cause)
    else:
        store_u8(own + _O.resting, 1)


@kernel
def cancel_order(e: EngineState, request: int) -> None:
    """Handle a REQUEST to cancel an order."""
    words, number, cause = e.words, load_i64(request + _Q.number), load_i64(request + _Q.request)
    own = own_at(words, number)
    count(words, _C.cancels)
    if load_u8(own + _O.resting) == 0:
        count(words, _C.cancel_rejected)
        reason = layout.TOO_LATE if load_u8(own + _O.status) != 0 else layout.UNKNOWN_ORDER
        tell(e, own, layout.CANCEL_REJECTED, reason, cause, 0, 0, 0)
        return
    emit_delete(e, load_u16(own + _O.locate), PRIVATE_REF + number)
    store_u8(own + _O.resting, 0)
    count(words, _C.cancelled)
    _finish(e, own, 0, cause)


@inlined
def has_room(e: EngineState, store: int) -> bool:
    """Say whether one more step can be taken: its events and messages have room."""
    has_events = room(load_i64(e.words + _E.events), EVENTS_MAX) == EVENTS_MAX
    if has_events and store_room(store) >= layout.MESSAGES_MAX:
        return True
    count(e.words, _C.waits)
    return False


@kernel
def step_requests(e: EngineState, store: int) -> int:
    """Handle the requests that wait, at most BATCH_MAX and as far as there is room; return how many."""
    ring = load_i64(e.words + _E.requests)
    for handled in range(BATCH_MAX):
        request = front(ring)
        if request == 0 or not has_room(e, store):
            return handled
        number, kind = load_i64(request + _Q.number), load_u8(request + _Q.kind)
        known = 0 < number <= load_i64(e.words + _E.orders_max)
        if known and kind == NEW_ORDER and load_u8(own_at(e.words, number) + _O.status) == 0:
            new_order(e, request)
        elif known and kind == CANCEL_ORDER:
            cancel_order(e, request)
        else:
            count(e.words, _C.bad_request)
        pop(ring)
    return BATCH_MAX
