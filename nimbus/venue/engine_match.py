"""Trades: what stands in the published book meets what arrives, in order of price and time.

Two walks over the queues of a side.  An order of ours (`take`) trades with everybody it meets.  A message of
the background flow (`meet`) trades only with those the recording does not have: orders of ours, and shares of
background orders beyond their recorded quantity, which are there because ours took part of the flow that was
recorded to fill them.  Who it traded with in the recording, the message itself says.
"""

from __future__ import annotations

from typing import Final

from nimbus.book import walk
from nimbus.book.book import apply
from nimbus.book.layout import BOOK, BookState
from nimbus.feed.itch import ADD, DELETE, EXECUTED
from nimbus.messages import BUY, CHANGE, SELL
from nimbus.venue.engine_layout import (
    ADDED,
    COUNTERS,
    ENGINE,
    FILLED,
    FILLS_MAX,
    ORDER_EVENT,
    OWN,
    PARTIALLY_FILLED,
    PRIVATE_REF,
    REMOVED,
    TRADED,
    WALK_MAX,
    EngineState,
    add,
    count,
    is_private,
    next_number,
    number_at,
    number_of,
    own_at,
)
from nimbus.venue.publisher import next_seq, publish
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    load_i64,
    load_u8,
    load_u16,
    put_u1,
    put_u2,
    put_u4,
    put_u6,
    put_u8,
    store_i64,
    store_u8,
    store_u16,
)
from ringbuf.spsc import claim
from ringbuf.spsc import publish as publish_record

_E, _O, _V, _C, _CHANGE, _BOOK = ENGINE.at, OWN.at, ORDER_EVENT.at, COUNTERS.at, CHANGE.at, BOOK.at
_ADD, _EXECUTED, _DELETE = ADD.at, EXECUTED.at, DELETE.at
_A, _X, _D = ADD.code, EXECUTED.code, DELETE.code
_ADD_SIZE, _EXECUTED_SIZE, _DELETE_SIZE = ADD.size, EXECUTED.size, DELETE.size
_EVENT_SIZE, _BOOK_SIZE = ORDER_EVENT.size, BOOK.size
NOBODY: Final = -1  # no slot: the walk goes as far as the limit


@inlined
def opposite(side: int) -> int:
    """Return S for B and B for S."""
    return BUY + SELL - side


@inlined
def better_by(side: int, px: int, than_px: int) -> int:
    """Return how much better px is than than_px for an order of a side; negative when it is worse."""
    return px - than_px if side == BUY else than_px - px


@kernel
def emit(e: EngineState, message: int, size: int, must_fit: int) -> int:
    """Apply a message to the published book, then publish it; return what apply() answered.

    must_fit: a message that the book refuses is not published; else it is published all the same.
    """
    words = e.words
    seq, now_ns = next_seq(e.publisher), load_i64(words + _E.now_ns)
    status = apply(e.books, message, seq, now_ns, load_i64(words + _E.change))
    if status < 0 and must_fit:
        return status
    publish(e.publisher, message, size)
    return status


@inlined
def begin_message(e: EngineState, code: int, locate: int, ref: int) -> int:
    """Begin a message of our own about an order; return its address."""
    message = load_i64(e.words + _E.message)
    put_u1(message, code)
    put_u2(message + _DELETE.locate, locate)
    put_u2(message + _DELETE.tracking, 0)
    put_u6(message + _DELETE.ts_ns, load_i64(e.words + _E.exch_ns))
    put_u8(message + _DELETE.order_ref, ref)
    return message


@kernel
def emit_add(e: EngineState, own: int) -> int:
    """Let the rest of an order of ours join the book; return what apply() answered."""
    locate = load_u16(own + _O.locate)
    message = begin_message(e, _A, locate, PRIVATE_REF + number_at(e.words, own))
    put_u1(message + _ADD.side, load_u8(own + _O.side))
    put_u4(message + _ADD.qty, load_i64(own + _O.leaves_qty))
    store_i64(message + _ADD.symbol, load_i64(e.books.books + locate * _BOOK_SIZE + _BOOK.symbol))
    put_u4(message + _ADD.px, load_i64(own + _O.px))
    return emit(e, message, _ADD_SIZE, 1)


@kernel
def emit_delete(e: EngineState, locate: int, ref: int) -> int:
    """Take an order out of the book; return what apply() answered."""
    return emit(e, begin_message(e, _D, locate, ref), _DELETE_SIZE, 1)


@kernel
def tell(
    e: EngineState, own: int, kind: int, reason: int, request: int, px: int, qty: int, liquidity: int
) -> None:
    """Write the ORDER_EVENT of an order as it stands; the ring has room for EVENTS_MAX.

    px, qty, liquidity: of a trade, else 0.  Its sequence number is that of the message published last.
    """
    ring = load_i64(e.words + _E.events)
    event = claim(ring)
    if event == 0:
        return
    clear(event, _EVENT_SIZE)
    store_i64(event + _V.number, number_at(e.words, own))
    store_i64(event + _V.request, request)
    store_i64(event + _V.exec, next_number(e.words, _E.exec_number))
    store_i64(event + _V.now_ns, load_i64(e.words + _E.now_ns))
    store_i64(event + _V.px, load_i64(own + _O.px))
    store_i64(event + _V.qty, load_i64(own + _O.qty))
    store_i64(event + _V.last_px, px)
    store_i64(event + _V.last_qty, qty)
    store_i64(event + _V.leaves_qty, load_i64(own + _O.leaves_qty))
    store_i64(event + _V.cum_qty, load_i64(own + _O.cum_qty))
    store_i64(event + _V.cost, load_i64(own + _O.cost))
    if kind == TRADED:
        store_i64(event + _V.seq, next_seq(e.publisher) - 1)
        store_i64(event + _V.match, load_i64(e.words + _E.match_number))
    store_u16(event + _V.locate, load_u16(own + _O.locate))
    store_u8(event + _V.kind, kind)
    store_u8(event + _V.status, load_u8(own + _O.status))
    store_u8(event + _V.reason, reason)
    store_u8(event + _V.side, load_u8(own + _O.side))
    store_u8(event + _V.liquidity, liquidity)
    publish_record(ring)


@kernel
def book_trade(e: EngineState, own: int, px: int, qty: int, request: int, liquidity: int) -> None:
    """Move shares of an order of ours from open to filled, and tell."""
    leaves = load_i64(own + _O.leaves_qty) - qty
    store_i64(own + _O.leaves_qty, leaves)
    store_i64(own + _O.cum_qty, load_i64(own + _O.cum_qty) + qty)
    store_i64(own + _O.cost, load_i64(own + _O.cost) + qty * px)
    store_u8(own + _O.status, PARTIALLY_FILLED if leaves else FILLED)
    count(e.words, _C.fills)
    add(e.words, _C.filled_qty, qty)
    tell(e, own, TRADED, 0, request, px, qty, liquidity)


@kernel
def hit(e: EngineState, slot: int, px: int, qty: int) -> None:
    """Execute shares of the order in a slot of the published book (at most what it has) at its price px."""
    ref = walk.order_ref(e.books, slot)
    locate = walk.level_locate(e.books, walk.order_level(e.books, slot))
    match = next_number(e.words, _E.match_number)
    message = begin_message(e, _X, locate, ref)
    put_u4(message + _EXECUTED.qty, qty)
    put_u8(message + _EXECUTED.match, PRIVATE_REF + match)
    emit(e, message, _EXECUTED_SIZE, 1)
    store_i64(e.words + _E.met, load_i64(e.words + _E.met) + 1)
    if is_private(ref):
        own = own_at(e.words, number_of(ref))
        book_trade(e, own, px, qty, 0, ADDED)
        if load_i64(own + _O.leaves_qty) == 0:
            store_u8(own + _O.resting, 0)


@inlined
def _beyond_recorded(recorded: BookState, ref: int, qty: int) -> int:
    """Return how many shares of a published order the recording does not have."""
    if is_private(ref):
        return qty
    slot = walk.find_order(recorded, ref)
    return qty if slot < 0 else max(qty - walk.order_qty(recorded, slot), 0)


@inlined
def begin_walk(words: int, qty: int) -> None:
    """Begin a message or an order that wants to trade qty shares."""
    store_i64(words + _E.left, qty)
    store_i64(words + _E.met, 0)
    store_i64(words + _E.walked, 0)


@inlined
def _may_walk(words: int) -> bool:
    if load_i64(words + _E.left) == 0:
        return False
    if load_i64(words + _E.walked) < WALK_MAX and load_i64(words + _E.met) < FILLS_MAX:
        return True
    count(words, _C.walk_limit)
    return False


@kernel
def _meet_level(e: EngineState, level: int, until: int) -> bool:
    """Meet the queue of a level up to the slot `until`; say whether the walk goes on."""
    words, books, px = e.words, e.books, walk.level_px(e.books, level)
    slot = walk.level_first(books, level)
    for _ in range(walk.level_count(books, level)):
        if slot == until or slot < 0 or not _may_walk(words):
            return False
        behind = walk.order_next(books, slot)  # before it trades: an order without shares leaves the queue
        store_i64(words + _E.walked, load_i64(words + _E.walked) + 1)
        extra = _beyond_recorded(e.recorded, walk.order_ref(books, slot), walk.order_qty(books, slot))
        if extra > 0:
            left = load_i64(words + _E.left)
            qty = min(extra, left)
            store_i64(words + _E.left, left - qty)
            add(words, _C.flow_met_qty, qty)
            hit(e, slot, px, qty)
        slot = behind
    return True


@kernel
def meet(e: EngineState, locate: int, side: int, limit_px: int, until: int) -> None:
    """Let ENGINE.left shares of the flow meet the orders of a side that the recording does not have.

    Best price first, then time; as far as limit_px; not those at or behind the slot `until` (-1 = no such).
    """
    level = walk.best_level(e.books, locate, side)
    for _ in range(WALK_MAX):
        if level < 0 or better_by(side, walk.level_px(e.books, level), limit_px) < 0:
            return
        worse = walk.worse_level(e.books, level)  # before it trades: an empty level goes
        if not _meet_level(e, level, until):
            return
        level = worse


@kernel
def _take_level(e: EngineState, own: int, level: int, request: int) -> None:
    words, books, px = e.words, e.books, walk.level_px(e.books, level)
    slot = walk.level_first(books, level)
    for _ in range(walk.level_count(books, level)):
        leaves = load_i64(own + _O.leaves_qty)
        if slot < 0 or leaves == 0 or load_i64(words + _E.met) >= FILLS_MAX:
            return
        behind, qty = walk.order_next(books, slot), min(walk.order_qty(books, slot), leaves)
        hit(e, slot, px, qty)
        book_trade(e, own, px, qty, request, REMOVED)
        slot = behind


@kernel
def take(e: EngineState, own: int, request: int) -> bool:
    """Let an arriving order of ours trade with everybody within its limit.

    Returns False when it was stopped after FILLS_MAX trades and still crosses somebody.
    """
    side, px, locate = load_u8(own + _O.side), load_i64(own + _O.px), load_u16(own + _O.locate)
    begin_walk(e.words, 0)
    for _ in range(FILLS_MAX + 1):
        level = walk.best_level(e.books, locate, opposite(side))
        if level < 0 or load_i64(own + _O.leaves_qty) == 0:
            return True
        if better_by(side, px, walk.level_px(e.books, level)) < 0:
            return True
        if load_i64(e.words + _E.met) >= FILLS_MAX:
            return False
        _take_level(e, own, level, request)
    return False
