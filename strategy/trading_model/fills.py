"""What the orders agent says about our orders: fills, partial fills, rejects, denials, cancels.

A fill is booked whatever the state; the position is the one that the orders agent reports.  Only a
terminal report (or leaves of 0) ends the working order: until then it counts as exposure.
"""

from __future__ import annotations

from nimbus.messages import (
    BUY,
    FILL,
    FILL_ACCEPTED,
    FILL_CANCEL_REJECTED,
    FILL_CANCELLED,
    FILL_DENIED,
    FILL_REJECTED,
    FILL_TRADE,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_f64, load_i64, load_u8, load_u16, store_f64, store_i64
from strategy.trading_model.state import HOLDING, TRADING, add, deadline, holding, settle

OK, BAD_LOCATE = 1, -1

_HEAD, _AT, _FILL = TRADING.at, HOLDING.at, FILL.at


@inlined
def _book(row: int, position: int, px: int, qty: int, now_ns: int) -> None:
    """Move the holding to its new position: average price, entry time, best and worst mid."""
    before = load_i64(row + _AT.position_qty)
    store_i64(row + _AT.position_qty, position)
    if position == 0:
        store_f64(row + _AT.average_px, 0.0)
    elif before == 0 or (before > 0) != (position > 0):
        store_f64(row + _AT.average_px, float(px))
        store_i64(row + _AT.entry_ns, now_ns)
        store_i64(row + _AT.high_px2, 2 * px)
        store_i64(row + _AT.low_px2, 2 * px)
    elif abs(position) > abs(before):
        cost = load_f64(row + _AT.average_px) * float(abs(position) - qty) + float(px) * float(qty)
        store_f64(row + _AT.average_px, cost / float(abs(position)))
    if load_i64(row + _AT.px) == 0:
        store_i64(row + _AT.px, px)


@inlined
def _end(model: int, row: int, locate: int) -> None:
    """Forget the working order."""
    if load_i64(row + _AT.working_qty) != 0:
        add(model + _HEAD.working_count, -1)
    store_i64(row + _AT.working_qty, 0)
    store_i64(row + _AT.decision, 0)
    store_i64(row + _AT.order, 0)
    store_i64(row + _AT.cancel, 0)
    store_i64(row + _AT.is_exit, 0)
    store_i64(row + _AT.filled_qty, 0)
    store_i64(deadline(model, locate), 0)


@inlined
def _strike(model: int, row: int, now_ns: int) -> None:
    """Rest after an order that came to nothing; after too many in a row rest longer."""
    strikes, rest_ns = load_i64(row + _AT.strikes) + 1, load_i64(model + _HEAD.cooldown_ns)
    if strikes >= load_i64(model + _HEAD.strikes_max):
        strikes, rest_ns = 0, load_i64(model + _HEAD.pause_ns)
    store_i64(row + _AT.strikes, strikes)
    store_i64(row + _AT.resume_ns, now_ns + rest_ns)


@inlined
def _names_working(row: int, fill: int) -> bool:
    """Say whether a FILL is about the order that works now: a refused cancel names its order."""
    order = load_i64(row + _AT.order)
    return order != 0 and load_i64(fill + _FILL.order) == order


@kernel
def on_fill(model: int, fill: int) -> int:
    """Take in one FILL record; return OK or BAD_LOCATE."""
    locate = load_u16(fill + _FILL.locate)
    if locate >= load_i64(model + _HEAD.symbols_max):
        return BAD_LOCATE
    row, kind = holding(model, locate), load_u8(fill + _FILL.kind)
    decision, now_ns = load_i64(fill + _FILL.decision), load_i64(fill + _FILL.now_ns)
    is_ours = decision != 0 and decision == load_i64(row + _AT.decision)
    if is_ours and kind != FILL_DENIED:
        store_i64(row + _AT.order, load_i64(fill + _FILL.order))
    if kind == FILL_TRADE:
        qty, leaves = load_i64(fill + _FILL.last_qty), load_i64(fill + _FILL.leaves_qty)
        _book(row, load_i64(fill + _FILL.position_qty), load_i64(fill + _FILL.last_px), qty, now_ns)
        if is_ours:
            add(row + _AT.filled_qty, qty)
            store_i64(row + _AT.strikes, 0)
            is_buy = load_u8(fill + _FILL.side) == BUY
            if leaves > 0:
                store_i64(row + _AT.working_qty, leaves if is_buy else -leaves)
            else:
                _end(model, row, locate)
        else:
            add(model + _HEAD.late_fills, 1)
    elif is_ours and kind in (FILL_REJECTED, FILL_DENIED):
        _strike(model, row, now_ns)
        _end(model, row, locate)
    elif is_ours and kind == FILL_CANCELLED:
        if load_i64(row + _AT.filled_qty) == 0 and load_i64(row + _AT.cancel) == 0:
            _strike(model, row, now_ns)  # an IOC that found nothing; a cancel we asked for is no failure
        _end(model, row, locate)
    elif (kind == FILL_CANCEL_REJECTED and _names_working(row, fill)) or (
        kind == FILL_DENIED and decision == load_i64(row + _AT.cancel)
    ):
        store_i64(row + _AT.cancel, 0)  # it works on; the next decision or its deadline asks again
    elif kind != FILL_ACCEPTED:
        add(model + _HEAD.late_fills, 1)
    settle(model, row)
    return OK
