"""The background flow: what a message of the recording becomes when orders of ours take part.

Two sets of books.  The *recorded* one holds what the flow says.  The *published* one holds what is sent out:
the flow as it goes with our orders in it, and our orders themselves.  Everything that is published is applied
to the published book first, so the book of whoever listens is the same, order by order.

In a symbol where orders of ours were ever accepted (elsewhere, and for every other type, a message passes bit
for bit; and without orders of ours all of them do), where "the others" are those that the recording does not
have, our orders and what a background order has beyond its recorded quantity (engine_match.py):

A F     an order arrives: it first meets the others of the other side within its limit; what is left joins
        the book with its own reference.
E C     an aggressor of that quantity takes the price of the named order: it first meets the others in front
        of it; the named order gives the rest and keeps what ours took.  What it lacks, because ours took of
        it before, is sought among the others behind it, else it is lost (counted).
        A C that does not print is a part of a cross: the named order gives what it has, ours take no part.
X       the order shrinks by as much as it still has.
D       it goes, if it is still there.
U       it goes and comes back at another price, if it is still there; its new quantity differs from the
        recorded one by as much as the old did.  It meets the others as an A does.

While a symbol is halted nobody meets.  A message that the recording itself refuses (unknown reference, bad
price) passes as it came.  A reference of our private range in the flow is dropped and counted.
"""

from __future__ import annotations

from nimbus.book import walk
from nimbus.book.book import PRINTABLE, apply
from nimbus.book.publish import top_at
from nimbus.feed.itch import (
    ADD,
    ADD_MPID,
    CANCEL,
    DELETE,
    EXECUTED,
    EXECUTED_PX,
    REPLACE,
    size_of,
)
from nimbus.messages import BOOK_HALTED, CHANGE, TOP_OF_BOOK
from nimbus.venue.engine_layout import COUNTERS, ENGINE, EngineState, add, count, is_private
from nimbus.venue.engine_match import NOBODY, begin_walk, emit, emit_delete, meet, opposite
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, load_u8, load_u16, put_u4, store_i64, u1, u4, u6, u8

_E, _C, _CHANGE, _TOP = ENGINE.at, COUNTERS.at, CHANGE.at, TOP_OF_BOOK.at
_A, _F, _X, _D, _U = ADD.code, ADD_MPID.code, CANCEL.code, DELETE.code, REPLACE.code
_EXEC, _EXEC_PX = EXECUTED.code, EXECUTED_PX.code
_ADD, _EXECUTED, _EXECUTED_PX, _REPLACE, _DELETE = ADD.at, EXECUTED.at, EXECUTED_PX.at, REPLACE.at, DELETE.at
assert EXECUTED.at.qty == EXECUTED_PX.at.qty == CANCEL.at.qty  # one path changes the three


@inlined
def is_halted(e: EngineState, locate: int) -> bool:
    """Say whether a symbol is halted or paused."""
    return load_u8(top_at(e.books, locate) + _TOP.status) & BOOK_HALTED != 0


@kernel
def _pass(e: EngineState, message: int, size: int, status: int) -> None:
    """Publish a message as it came; what the recording accepts and the published book cannot is dropped."""
    if emit(e, message, size, status >= 0) < 0 <= status:
        count(e.words, _C.refused)
    else:
        count(e.words, _C.passed)


@kernel
def _change_qty(e: EngineState, message: int, size: int, qty_at: int, qty: int) -> None:
    """Publish a message with another quantity, or not at all when none is left."""
    if qty < 1:
        count(e.words, _C.swallowed)
        return
    made = load_i64(e.words + _E.message)
    copy(made, message, size)
    put_u4(made + qty_at, qty)
    count(e.words, _C.changed if emit(e, made, size, 1) >= 0 else _C.refused)


@kernel
def _meet(e: EngineState, locate: int, side: int, limit_px: int, qty: int, until: int) -> int:
    """Meet those the recording does not have; return how many of the qty shares are left."""
    begin_walk(e.words, qty)
    if qty > 0 and not is_halted(e, locate):
        meet(e, locate, side, limit_px, until)
    return load_i64(e.words + _E.left)


@kernel
def _arrive(e: EngineState, message: int, size: int) -> None:
    """Let an order of the flow arrive (A, F)."""
    flow, qty = load_i64(e.words + _E.flow), u4(message + _ADD.qty)
    locate, side = load_u16(flow + _CHANGE.locate), load_u8(flow + _CHANGE.side)
    left = _meet(e, locate, opposite(side), load_i64(flow + _CHANGE.px), qty, NOBODY)
    if left == qty:
        _pass(e, message, size, 0)
    else:
        _change_qty(e, message, size, _ADD.qty, left)


@kernel
def _execute(e: EngineState, message: int, size: int, cause: int) -> None:
    """Let an aggressor of the flow take an order (E, C), those in front of it first."""
    flow = load_i64(e.words + _E.flow)
    locate, side, px = (
        load_u16(flow + _CHANGE.locate),
        load_u8(flow + _CHANGE.side),
        load_i64(flow + _CHANGE.px),
    )
    qty = load_i64(flow + _CHANGE.qty)
    before = qty + load_i64(flow + _CHANGE.left_qty)
    meets = cause == _EXEC or u1(message + _EXECUTED_PX.printable) == PRINTABLE
    slot = walk.find_order(e.books, load_i64(flow + _CHANGE.order_ref))
    left = _meet(e, locate, side, px, qty, slot) if meets else qty
    has = walk.order_qty(e.books, slot) if slot >= 0 else 0
    if left == qty and has == before:
        _pass(e, message, size, 0)
        return
    given = min(left, has)
    _change_qty(e, message, size, _EXECUTED.qty, given)
    left -= given
    if left > 0 and meets:
        left = _meet(e, locate, side, px, left, NOBODY)
    add(e.words, _C.flow_lost_qty, left)


@kernel
def _shrink(e: EngineState, message: int, size: int) -> None:
    """Let an order of the flow shrink or go (X, D)."""
    flow, cause = load_i64(e.words + _E.flow), u1(message)
    qty, left = load_i64(flow + _CHANGE.qty), load_i64(flow + _CHANGE.left_qty)
    ref = load_i64(flow + _CHANGE.order_ref)
    slot = walk.find_order(e.books, ref)
    has = walk.order_qty(e.books, slot) if slot >= 0 else 0
    if has == qty + left or (cause == _D and has > 0):
        _pass(e, message, size, 0)
    elif has == 0:
        count(e.words, _C.swallowed)
    elif left == 0:
        emit_delete(e, load_u16(flow + _CHANGE.locate), ref)
        count(e.words, _C.changed)
    else:
        _change_qty(e, message, size, _EXECUTED.qty, min(qty, has))


@kernel
def _replace(e: EngineState, message: int, size: int) -> None:
    """Let an order of the flow go and come back (U)."""
    flow = load_i64(e.words + _E.flow)
    locate, side, px = (
        load_u16(flow + _CHANGE.locate),
        load_u8(flow + _CHANGE.side),
        load_i64(flow + _CHANGE.new_px),
    )
    ref, qty = load_i64(flow + _CHANGE.order_ref), load_i64(flow + _CHANGE.new_qty)
    slot = walk.find_order(e.books, ref)
    if slot < 0:
        count(e.words, _C.swallowed)
        return
    wanted = qty + walk.order_qty(e.books, slot) - load_i64(flow + _CHANGE.qty)
    left = _meet(e, locate, opposite(side), px, max(wanted, 0), NOBODY)
    if left == qty:
        _pass(e, message, size, 0)
    elif left > 0:
        _change_qty(e, message, size, _REPLACE.qty, left)
    else:
        emit_delete(e, locate, ref)
        count(e.words, _C.changed)


@inlined
def _is_foreign(message: int, cause: int) -> bool:
    """Say whether a message of the flow uses a reference of our private range."""
    if cause in (_A, _F, _EXEC, _EXEC_PX, _X, _D):
        return is_private(u8(message + _DELETE.order_ref))
    return cause == _U and (
        is_private(u8(message + _DELETE.order_ref)) or is_private(u8(message + _REPLACE.new_ref))
    )


@kernel
def step_flow(e: EngineState, message: int) -> None:
    """Let a well-formed message of the background flow happen: has_room() has said yes."""
    cause, words, flow = u1(message), e.words, load_i64(e.words + _E.flow)
    size, now_ns = size_of(cause), load_i64(words + _E.now_ns)
    count(words, _C.background)
    if _is_foreign(message, cause):
        count(words, _C.foreign_ref)
        return
    store_i64(words + _E.exch_ns, max(load_i64(words + _E.exch_ns), u6(message + _DELETE.ts_ns)))
    status = apply(e.recorded, message, 0, now_ns, flow)
    touched = load_u8(load_i64(words + _E.touched) + load_u16(flow + _CHANGE.locate))
    if status < 0 or touched == 0:
        _pass(e, message, size, status)
    elif cause in (_A, _F):
        _arrive(e, message, size)
    elif cause in (_EXEC, _EXEC_PX):
        _execute(e, message, size, cause)
    elif cause in (_X, _D):
        _shrink(e, message, size)
    elif cause == _U:
        _replace(e, message, size)
    else:
        _pass(e, message, size, status)
