"""Kernels that change one order of a symbol and write its ITCH message.

Each message moves the clock on by a fraction of a microsecond.  Past the budget of the day nothing is
written and nothing changes, so that the number of messages is exact.
"""

from __future__ import annotations

from typing import Final

from nimbus.feed.itch import (
    ADD,
    ADD_MPID,
    CANCEL,
    DELETE,
    EXECUTED,
    EXECUTED_PX,
    REPLACE,
    TRADE,
)
from nimbus.messages import BUY
from nimbus.venue.generator.state import (
    ADDS,
    CANCELS,
    DAY,
    DELETES,
    EXECUTES,
    EXECUTES_PX,
    LIVE,
    MPID_SHARE_PER_MILLE,
    ORDERS_MAX,
    REPLACES,
    SYMBOL,
    TICK_PX,
    TRADES,
    chance,
    draw,
    pick,
)
from nimbus.venue.generator.wire import reserve
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    load_f64,
    load_i64,
    put_u1,
    put_u2,
    put_u4,
    put_u6,
    put_u8,
    store_i64,
)

_D, _S, _L = DAY.at, SYMBOL.at, LIVE.at
_LIVE_SIZE: Final = LIVE.size
_ADD, _ADD_CODE, _ADD_SIZE = ADD.at, ADD.code, ADD.size
_ADD_MPID, _ADD_MPID_CODE, _ADD_MPID_SIZE = ADD_MPID.at, ADD_MPID.code, ADD_MPID.size
_CANCEL, _CANCEL_CODE, _CANCEL_SIZE = CANCEL.at, CANCEL.code, CANCEL.size
_DELETE, _DELETE_CODE, _DELETE_SIZE = DELETE.at, DELETE.code, DELETE.size
_EXECUTED, _EXECUTED_CODE, _EXECUTED_SIZE = EXECUTED.at, EXECUTED.code, EXECUTED.size
_EXECUTED_PX, _EXECUTED_PX_CODE, _EXECUTED_PX_SIZE = EXECUTED_PX.at, EXECUTED_PX.code, EXECUTED_PX.size
_REPLACE, _REPLACE_CODE, _REPLACE_SIZE = REPLACE.at, REPLACE.code, REPLACE.size
_TRADE, _TRADE_CODE, _TRADE_SIZE = TRADE.at, TRADE.code, TRADE.size
_MPID: Final = int.from_bytes(b"GENR", "big")
DEEPEN_PER_MILLE: Final = 620  # chance that an order stands one tick further away, and again
DEEPEST_TICKS: Final = 40
STEP_NS_BITS: Final = 10  # messages of one event follow each other within 2^10 ns


@inlined
def _begin(day: int, symbol: int, code: int, size: int, kind: int) -> int:
    """Count a message of a kind and write its header; return its address, 0 = the budget is used up."""
    written = load_i64(day + _D.flow_messages)
    if written >= load_i64(day + _D.budget):
        return 0
    store_i64(day + _D.flow_messages, written + 1)
    drawn, by_code = day + _D.drawn + kind * 8, day + _D.by_code + code * 8
    store_i64(drawn, load_i64(drawn) + 1)
    store_i64(by_code, load_i64(by_code) + 1)
    now_ns = load_i64(day + _D.now_ns) + 50 + (draw(day) >> (32 - STEP_NS_BITS))
    store_i64(day + _D.now_ns, now_ns)
    message = reserve(day, size, now_ns)
    put_u1(message + _ADD.code, code)
    put_u2(message + _ADD.locate, load_i64(symbol + _S.locate))
    put_u2(message + _ADD.tracking, 0)
    put_u6(message + _ADD.ts_ns, now_ns)
    return message


@inlined
def _next_ref(day: int) -> int:
    order_ref = load_i64(day + _D.last_ref) + 1 + pick(day, 3)
    store_i64(day + _D.last_ref, order_ref)
    return order_ref


@inlined
def _next_match(day: int) -> int:
    match = load_i64(day + _D.last_match) + 1
    store_i64(day + _D.last_match, match)
    return match


@inlined
def _new_qty(day: int) -> int:
    kind = pick(day, 8)
    if kind < 4:
        return 100
    if kind < 7:
        return (kind - 2) * 100 - 100 * (kind & 1)  # 200, 200, 400
    return 1 + pick(day, 999)


@inlined
def _new_tick(day: int, symbol: int, side: int) -> int:
    """Draw a price on the right side of the fair value; the best level is the likeliest."""
    width = load_i64(symbol + _S.width)
    away = width >> 1 if side == BUY else width - (width >> 1)
    for _ in range(DEEPEST_TICKS):
        if not chance(day, DEEPEN_PER_MILLE):
            break
        away += 1
    level = int(load_f64(symbol + _S.fair))
    return max(1, level - away) if side == BUY else level + 1 + away


@inlined
def _count_side(symbol: int, side: int, change: int) -> None:
    at = symbol + _S.bids if side == BUY else symbol + _S.asks
    store_i64(at, load_i64(at) + change)


@inlined
def _remove(symbol: int, order: int) -> None:
    """Take a row out: the last row moves into its place."""
    _count_side(symbol, load_i64(order + _L.side), -1)
    last = load_i64(symbol + _S.orders)
    last += (load_i64(symbol + _S.bids) + load_i64(symbol + _S.asks)) * _LIVE_SIZE
    for at in range(0, _LIVE_SIZE, 8):
        store_i64(order + at, load_i64(last + at))


@kernel
def front(symbol: int, side: int) -> int:
    """Return the first order in the queue of the best price of a side, 0 = the side is empty."""
    best, best_tick, best_ref = 0, 0, 0
    order = load_i64(symbol + _S.orders)
    for _ in range(load_i64(symbol + _S.bids) + load_i64(symbol + _S.asks)):
        if load_i64(order + _L.side) == side:
            tick, order_ref = load_i64(order + _L.tick), load_i64(order + _L.ref)
            better = tick > best_tick if side == BUY else tick < best_tick
            if best == 0 or better or (tick == best_tick and order_ref < best_ref):
                best, best_tick, best_ref = order, tick, order_ref
        order += _LIVE_SIZE
    return best


@kernel
def add_order(day: int, symbol: int, side: int) -> None:
    """Add an order (A, or F with a market participant)."""
    count = load_i64(symbol + _S.bids) + load_i64(symbol + _S.asks)
    if count >= ORDERS_MAX:
        return
    named = chance(day, MPID_SHARE_PER_MILLE)
    code = _ADD_MPID_CODE if named else _ADD_CODE
    message = _begin(day, symbol, code, _ADD_MPID_SIZE if named else _ADD_SIZE, ADDS)
    if message == 0:
        return
    order_ref, tick, qty = _next_ref(day), _new_tick(day, symbol, side), _new_qty(day)
    put_u8(message + _ADD.order_ref, order_ref)
    put_u1(message + _ADD.side, side)
    put_u4(message + _ADD.qty, qty)
    store_i64(message + _ADD.symbol, load_i64(symbol + _S.text))
    put_u4(message + _ADD.px, tick * TICK_PX)
    if named:
        put_u4(message + _ADD_MPID.mpid, _MPID)
    order = load_i64(symbol + _S.orders) + count * _LIVE_SIZE
    store_i64(order + _L.ref, order_ref)
    store_i64(order + _L.tick, tick)
    store_i64(order + _L.qty, qty)
    store_i64(order + _L.side, side)
    _count_side(symbol, side, 1)


@kernel
def delete_order(day: int, symbol: int, order: int) -> None:
    """Withdraw an order (D)."""
    message = _begin(day, symbol, _DELETE_CODE, _DELETE_SIZE, DELETES)
    if message != 0:
        put_u8(message + _DELETE.order_ref, load_i64(order + _L.ref))
        _remove(symbol, order)


@kernel
def cancel_order(day: int, symbol: int, order: int) -> None:
    """Withdraw a part, never all, of an order of more than one share (X)."""
    message = _begin(day, symbol, _CANCEL_CODE, _CANCEL_SIZE, CANCELS)
    if message != 0:
        qty = load_i64(order + _L.qty)
        part = 1 + pick(day, qty - 1)
        put_u8(message + _CANCEL.order_ref, load_i64(order + _L.ref))
        put_u4(message + _CANCEL.qty, part)
        store_i64(order + _L.qty, qty - part)


@kernel
def replace_order(day: int, symbol: int, order: int) -> None:
    """Give an order a new reference, price and size (U)."""
    message = _begin(day, symbol, _REPLACE_CODE, _REPLACE_SIZE, REPLACES)
    if message != 0:
        order_ref, qty = _next_ref(day), _new_qty(day)
        tick = _new_tick(day, symbol, load_i64(order + _L.side))
        put_u8(message + _REPLACE.order_ref, load_i64(order + _L.ref))
        put_u8(message + _REPLACE.new_ref, order_ref)
        put_u4(message + _REPLACE.qty, qty)
        put_u4(message + _REPLACE.px, tick * TICK_PX)
        store_i64(order + _L.ref, order_ref)
        store_i64(order + _L.tick, tick)
        store_i64(order + _L.qty, qty)


@kernel
def execute_order(day: int, symbol: int, order: int, qty: int, at_other_px: int) -> None:
    """Execute qty shares of an order (E), or at another price (C, at times not printable)."""
    other = at_other_px != 0
    code = _EXECUTED_PX_CODE if other else _EXECUTED_CODE
    size = _EXECUTED_PX_SIZE if other else _EXECUTED_SIZE
    message = _begin(day, symbol, code, size, EXECUTES_PX if other else EXECUTES)
    if message == 0:
        return
    put_u8(message + _EXECUTED.order_ref, load_i64(order + _L.ref))
    put_u4(message + _EXECUTED.qty, qty)
    put_u8(message + _EXECUTED.match, _next_match(day))
    if other:
        put_u1(message + _EXECUTED_PX.printable, ord("N") if chance(day, 100) else ord("Y"))
        tick = max(1, load_i64(order + _L.tick) + pick(day, 3) - 1)
        put_u4(message + _EXECUTED_PX.px, tick * TICK_PX)
    left = load_i64(order + _L.qty) - qty
    store_i64(order + _L.qty, left)
    if left <= 0:
        _remove(symbol, order)


@kernel
def print_hidden(day: int, symbol: int, side: int) -> None:
    """Print a trade of an order nobody saw, at the fair value (P)."""
    message = _begin(day, symbol, _TRADE_CODE, _TRADE_SIZE, TRADES)
    if message != 0:
        tick = int(load_f64(symbol + _S.fair)) + (1 if side == BUY else 0)
        put_u8(message + _TRADE.order_ref, 0)
        put_u1(message + _TRADE.side, BUY)  # since 2014 always B (ITCH 5.0, 1.5.1)
        put_u4(message + _TRADE.qty, _new_qty(day))
        store_i64(message + _TRADE.symbol, load_i64(symbol + _S.text))
        put_u4(message + _TRADE.px, tick * TICK_PX)
        put_u8(message + _TRADE.match, _next_match(day))
