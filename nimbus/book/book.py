"""The level-3 books: one ITCH message in, a CHANGE record and the published top out.

What each message does, and what happens when it does not fit:
A F   add an order.  Refused whole: reference live already, side not B or S, price 0 or above PX_MAX,
      quantity 0, locate 0 or beyond symbols_max, no room (FULL: the book is marked faulty).
E C   execute from the front of nothing in particular: the reference says which order.  E prints at the
      order's price, C at its own unless it is not printable.  X cancels a part, D all that is left.
      Reference unknown or quantity 0: refused.  More than is left: counted, all that is left is taken.
U     replace: the order leaves its queue and a new one (new reference, price and quantity; same symbol
      and side) joins the end of its queue.  Refused whole, and the old order stays, when the new
      reference is live (its own old one included), price or quantity are bad, or no room is left for its
      level while the old one still stands.
P Q   prints only.  B is counted.  The rest: state.py.
"""

from __future__ import annotations

from typing import Final

from nimbus.book import levels, order_map
from nimbus.book.layout import (
    BAD_LOCATE,
    BAD_PX,
    BAD_QTY,
    BAD_SIDE,
    BOOK,
    BOOKS,
    COUNTERS,
    DUPLICATE_REF,
    FULL,
    LEVEL,
    PX_MAX,
    RESTING,
    STAMP_MAX,
    UNKNOWN_REF,
    BookState,
    count,
    refuse,
)
from nimbus.book.publish import mark, publish_side, top_at
from nimbus.book.state import apply_state
from nimbus.feed.itch import (
    ADD,
    ADD_MPID,
    BROKEN_TRADE,
    CANCEL,
    CROSS_TRADE,
    DELETE,
    EXECUTED,
    EXECUTED_PX,
    REPLACE,
    TRADE,
)
from nimbus.messages import BOOK_FAULTY, BUY, CHANGE, DEPTH_CHANGED, SELL, TOP_OF_BOOK, TRADED
from ringbuf.jit import inlined
from ringbuf.memory import (
    clear,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
)

from ringbuf.memory import u1, u2, u4, u8  # isort: skip

_CHANGE, _BOOK, _BOOKS, _COUNTERS, _TOP = CHANGE.at, BOOK.at, BOOKS.at, COUNTERS.at, TOP_OF_BOOK.at
_LEVEL, _RESTING = LEVEL.at, RESTING.at
_CHANGE_SIZE, _BOOK_SIZE, _LEVEL_SIZE, _ORDER_SIZE = CHANGE.size, BOOK.size, LEVEL.size, RESTING.size
_ADD, _EXECUTED, _EXECUTED_PX, _CANCEL = ADD.at, EXECUTED.at, EXECUTED_PX.at, CANCEL.at
_DELETE, _REPLACE, _TRADE, _CROSS = DELETE.at, REPLACE.at, TRADE.at, CROSS_TRADE.at
_A, _F, _E, _C, _X, _D = ADD.code, ADD_MPID.code, EXECUTED.code, EXECUTED_PX.code, CANCEL.code, DELETE.code
_U, _P, _Q, _B = REPLACE.code, TRADE.code, CROSS_TRADE.code, BROKEN_TRADE.code
PRINTABLE: Final = ord("Y")
_TIME: Final = (1 << 48) - 1  # a time and the two bytes before it are one load
assert _EXECUTED.qty == _EXECUTED_PX.qty == _CANCEL.qty  # one path takes E, C and X


@inlined
def _full(books: BookState, locate: int, cause: int) -> int:
    """Refuse for want of room: the book of the symbol is not whole any more."""
    mark(books, locate, BOOK_FAULTY, 0, cause)
    return refuse(books, FULL)


@inlined
def _side_of(ladder: int) -> int:
    return BUY if ladder & 1 == 0 else SELL


@inlined
def _next_stamp(books: BookState, order: int, change: int) -> None:
    """Give an order the next arrival stamp."""
    stamp = load_i64(books.words + _BOOKS.stamp) + 1
    store_i64(books.words + _BOOKS.stamp, stamp)
    store_u32(order + _RESTING.stamp, stamp)
    store_i64(change + _CHANGE.new_stamp, stamp)


@inlined
def _add(books: BookState, msg: int, change: int, cause: int) -> int:
    locate, ref, side = u2(msg + _ADD.locate), u8(msg + _ADD.order_ref), u1(msg + _ADD.side)
    px, qty = u4(msg + _ADD.px), u4(msg + _ADD.qty)
    if locate < 1 or locate >= books.symbols_max:
        return refuse(books, BAD_LOCATE)
    if side not in (BUY, SELL):
        return refuse(books, BAD_SIDE)
    if px < 1 or px > PX_MAX:
        return refuse(books, BAD_PX)
    if qty < 1:
        return refuse(books, BAD_QTY)
    vacant, slot = order_map.vacancy(books, ref), order_map.spare_slot(books)
    if vacant == DUPLICATE_REF:
        return refuse(books, DUPLICATE_REF)
    if vacant == FULL or slot == 0 or load_i64(books.words + _BOOKS.stamp) >= STAMP_MAX:
        return _full(books, locate, cause)
    ladder = 2 * locate + (side & 1)
    level, is_best = levels.level_for(books, ladder, px)
    if level == 0:
        return _full(books, locate, cause)
    if load_u8(books.books + locate * _BOOK_SIZE + _BOOK.known) == 0:
        count(books, _COUNTERS.unannounced)
    order = books.orders + slot * _ORDER_SIZE
    order_map.take_slot(books, slot)
    order_map.link(books, slot, ref)
    levels.append(books, level, slot, qty)
    _next_stamp(books, order, change)
    store_i64(change + _CHANGE.order_ref, ref)
    store_i64(change + _CHANGE.px, px)
    store_i64(change + _CHANGE.qty, qty)
    store_i64(change + _CHANGE.left_qty, qty)
    store_i64(change + _CHANGE.stamp, load_i64(change + _CHANGE.new_stamp))
    store_u8(change + _CHANGE.side, side)
    return DEPTH_CHANGED | publish_side(books, ladder, level, cause) if is_best else DEPTH_CHANGED


@inlined
def _describe(books: BookState, slot: int, ref: int, msg: int, change: int) -> int:
    """Write into CHANGE which order a message is about, `ref` at `slot`; return its ladder."""
    order = books.orders + slot * _ORDER_SIZE
    record = books.levels + load_u32(order + _RESTING.level) * _LEVEL_SIZE
    ladder = load_u32(record + _LEVEL.ladder)
    if u2(msg + _DELETE.locate) != ladder >> 1:
        count(books, _COUNTERS.other_locate)
    store_i64(change + _CHANGE.order_ref, ref)
    store_i64(change + _CHANGE.px, load_u32(record + _LEVEL.px))
    store_i64(change + _CHANGE.stamp, load_u32(order + _RESTING.stamp))
    store_u16(change + _CHANGE.locate, ladder >> 1)
    store_u8(change + _CHANGE.side, _side_of(ladder))
    return ladder


@inlined
def _print(books: BookState, msg: int, change: int, cause: int) -> int:
    """Write the print of an execution into CHANGE, if it prints; return TRADED or 0."""
    px = load_i64(change + _CHANGE.px)
    if cause == _C:
        px = u4(msg + _EXECUTED_PX.px)
        if u1(msg + _EXECUTED_PX.printable) != PRINTABLE:
            count(books, _COUNTERS.hidden)
            return 0
        if px < 1 or px > PX_MAX:
            count(books, _COUNTERS.bad_px)
            return 0
    store_i64(change + _CHANGE.trade_px, px)
    store_i64(change + _CHANGE.trade_qty, u4(msg + _EXECUTED.qty))
    store_u8(change + _CHANGE.printable, 1)
    return TRADED


@inlined
def _take(books: BookState, msg: int, change: int, cause: int) -> int:
    """Apply D, E, C or X: take shares from an order, and the order away when none is left."""
    ref = u8(msg + _DELETE.order_ref)
    slot = order_map.find(books, ref)
    if slot == 0:
        return refuse(books, UNKNOWN_REF)
    order = books.orders + slot * _ORDER_SIZE
    level, rest = load_u32(order + _RESTING.level), load_u32(order + _RESTING.qty)
    qty = rest
    if cause != _D:
        qty = u4(msg + _CANCEL.qty)
        if qty < 1:
            return refuse(books, BAD_QTY)
        if qty > rest:
            count(books, _COUNTERS.oversize)
            qty = rest
    ladder = _describe(books, slot, ref, msg, change)
    flags = DEPTH_CHANGED
    if cause in (_E, _C):
        flags |= _print(books, msg, change, cause)
    store_i64(change + _CHANGE.qty, qty)
    store_i64(change + _CHANGE.left_qty, rest - qty)
    at = levels.ladder_at(books, ladder)
    best = levels.best_of(at)
    is_best = level == best
    if qty < rest:
        record = books.levels + level * _LEVEL_SIZE
        store_u32(order + _RESTING.qty, rest - qty)
        store_i64(record + _LEVEL.qty, load_i64(record + _LEVEL.qty) - qty)
    else:
        order_map.unlink(books, slot, ref)
        if levels.leave(books, slot) == 0:
            levels.drop_level(books, level, is_best)
            best = levels.best_of(at)
        order_map.free_slot(books, slot)
    return flags | publish_side(books, ladder, best, cause) if is_best else flags


@inlined
def _replace(books: BookState, msg: int, change: int, cause: int) -> int:
    ref, px, qty = u8(msg + _REPLACE.new_ref), u4(msg + _REPLACE.px), u4(msg + _REPLACE.qty)
    old_ref = u8(msg + _REPLACE.order_ref)
    slot = order_map.find(books, old_ref)
    if slot == 0:
        return refuse(books, UNKNOWN_REF)
    if px < 1 or px > PX_MAX:
        return refuse(books, BAD_PX)
    if qty < 1:
        return refuse(books, BAD_QTY)
    vacant, order = order_map.vacancy(books, ref), books.orders + slot * _ORDER_SIZE
    if vacant == DUPLICATE_REF:
        return refuse(books, DUPLICATE_REF)
    old_level, rest = load_u32(order + _RESTING.level), load_u32(order + _RESTING.qty)
    ladder = load_u32(books.levels + old_level * _LEVEL_SIZE + _LEVEL.ladder)
    if vacant == FULL or load_i64(books.words + _BOOKS.stamp) >= STAMP_MAX:
        return _full(books, ladder >> 1, cause)
    level, _ = levels.level_for(books, ladder, px)
    if level == 0:
        return _full(books, ladder >> 1, cause)
    _describe(books, slot, old_ref, msg, change)
    order_map.unlink(books, slot, old_ref)
    order_map.link(books, slot, ref)
    left = levels.leave(books, slot)
    levels.append(books, level, slot, qty)
    if left == 0 and level != old_level:
        levels.drop_level(books, old_level, is_best=False)
    _next_stamp(books, order, change)
    store_i64(change + _CHANGE.qty, rest)
    store_i64(change + _CHANGE.new_ref, ref)
    store_i64(change + _CHANGE.new_px, px)
    store_i64(change + _CHANGE.new_qty, qty)
    best = levels.best_of(levels.ladder_at(books, ladder))
    return DEPTH_CHANGED | publish_side(books, ladder, best, cause)


@inlined
def _trade(books: BookState, msg: int, change: int, cause: int) -> int:
    """Take a print that touches no visible order: P, or Q (where quantity 0 means no cross took place)."""
    locate = u2(msg + _TRADE.locate)
    px = u4(msg + _TRADE.px) if cause == _P else u4(msg + _CROSS.px)
    qty = u4(msg + _TRADE.qty) if cause == _P else u8(msg + _CROSS.qty)
    if locate < 1 or locate >= books.symbols_max:
        return refuse(books, BAD_LOCATE)
    if qty == 0 and cause == _Q:
        return 0
    if qty < 1:
        return refuse(books, BAD_QTY)
    if px < 1 or px > PX_MAX:
        return refuse(books, BAD_PX)
    if load_u8(books.books + locate * _BOOK_SIZE + _BOOK.known) == 0:
        count(books, _COUNTERS.unannounced)
    store_i64(change + _CHANGE.trade_px, px)
    store_i64(change + _CHANGE.trade_qty, qty)
    store_u8(change + _CHANGE.printable, 1)
    return TRADED


@inlined
def apply(books: BookState, msg: int, seq: int, recv_ns: int, change: int) -> int:
    """Apply the ITCH message at msg to its book, and fill the CHANGE record at change.

    msg: address of a message whose type and length have been checked; seq: its MoldUDP64 sequence number;
    recv_ns: receive time of its packet.  CHANGE is always written; after a refusal it names the message.
    Returns flags as in BOOK_EVENT (0 or more), or a status below zero (layout.py).
    """
    cause, exch_ns = u1(msg), u8(msg + _DELETE.ts_ns - 2) & _TIME
    clear(change, _CHANGE_SIZE)
    store_i64(change + _CHANGE.seq, seq)
    store_i64(change + _CHANGE.exch_ns, exch_ns)
    store_u16(change + _CHANGE.locate, u2(msg + _DELETE.locate))
    store_u8(change + _CHANGE.cause, cause)
    store_i64(books.words + _BOOKS.exch_ns, exch_ns)
    store_i64(books.words + _BOOKS.recv_ns, recv_ns)
    if cause in (_A, _F):
        status = _add(books, msg, change, cause)
    elif cause in (_D, _E, _X, _C):
        status = _take(books, msg, change, cause)
    elif cause == _U:
        status = _replace(books, msg, change, cause)
    elif cause in (_P, _Q):
        status = _trade(books, msg, change, cause)
    elif cause == _B:
        count(books, _COUNTERS.broken)
        status = 0
    else:
        status = apply_state(books, msg, change, cause)
    locate = load_u16(change + _CHANGE.locate)
    if status >= 0 and locate < books.symbols_max:
        store_u8(change + _CHANGE.flags, status)
        store_u8(change + _CHANGE.status, load_u8(top_at(books, locate) + _TOP.status))
    return status
