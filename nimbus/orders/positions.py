"""Positions and profit by average cost, in int64 only: nothing is rounded away, nothing is lost.

Money is px x quantity, in 1/10,000 of the currency.  `cash` is what all fills have paid (negative for a
buyer) and `basis` what the open position has cost, with the position's sign.  A fill against the position
releases its share of the basis, floor(abs(basis) x r / p), computed in two parts so that no product
overflows.  What the floor leaves behind stays in the basis and is gone when the position is flat.
Realised = cash + basis and unrealised = position x mark - basis, so their sum is cash + position x mark,
exactly and always.  The mark is kept doubled: the mid of a one-tick spread is a whole number.
"""

from __future__ import annotations

from typing import Final

from nimbus.messages import BUY, POSITION
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, store_i64

POSITION_QTY_MAX: Final = 400_000_000  # x the largest price fits int64, see risk.LIMIT_BOUNDS
CASH_MAX: Final = 1 << 61
OK: Final = 1
TOO_LARGE: Final = -1

_POSITION = POSITION.at


@kernel
def book_fill(position: int, side: int, qty: int, px: int, now_ns: int) -> int:
    """Book one execution into a POSITION row; qty <= QTY_MAX and px <= PX_MAX, both positive.

    Returns OK, or TOO_LARGE (nothing is booked) when the position or the cash would leave its range.
    """
    sign = 1 if side == BUY else -1
    held, basis = load_i64(position + _POSITION.position_qty), load_i64(position + _POSITION.basis)
    cash = load_i64(position + _POSITION.cash) - sign * qty * px
    after = held + sign * qty
    if abs(after) > POSITION_QTY_MAX or abs(cash) > CASH_MAX:
        return TOO_LARGE
    opening = qty
    if held * sign < 0:
        size, cost = abs(held), abs(basis)
        closing = min(qty, size)
        whole = cost // size
        released = whole * closing + (cost - whole * size) * closing // size
        basis += sign * released  # the basis has the sign of what is held, that is -sign
        opening = qty - closing
    basis += sign * opening * px
    store_i64(position + _POSITION.position_qty, after)
    store_i64(position + _POSITION.cash, cash)
    store_i64(position + _POSITION.basis, basis)
    side_at = position + (_POSITION.bought_qty if side == BUY else _POSITION.sold_qty)
    store_i64(side_at, load_i64(side_at) + qty)
    store_i64(position + _POSITION.fills, load_i64(position + _POSITION.fills) + 1)
    store_i64(position + _POSITION.last_ns, now_ns)
    return OK


@inlined
def realised(position: int) -> int:
    """Return the realised profit, before fees, in 1/10,000 of the currency."""
    return load_i64(position + _POSITION.cash) + load_i64(position + _POSITION.basis)


@inlined
def unrealised_px2(position: int) -> int:
    """Return twice the unrealised profit at the mark; 0 while there is no mark."""
    mark_px2 = load_i64(position + _POSITION.mark_px2)
    if mark_px2 == 0:
        return 0
    held, basis = load_i64(position + _POSITION.position_qty), load_i64(position + _POSITION.basis)
    return held * mark_px2 - 2 * basis


@inlined
def set_mark(position: int, mark_px2: int) -> None:
    """Set twice the mark price: bid + ask of a good book, else twice the last trade."""
    store_i64(position + _POSITION.mark_px2, mark_px2)


@inlined
def add_open(position: int, side: int, qty: int) -> None:
    """Add qty (negative: release) to the open quantity of a side; it stops at zero (X6)."""
    at = position + (_POSITION.open_buy_qty if side == BUY else _POSITION.open_sell_qty)
    store_i64(at, max(load_i64(at) + qty, 0))


@inlined
def add_open_orders(position: int, count: int) -> None:
    """Add count to the number of open orders of the symbol; it stops at zero."""
    at = position + _POSITION.open_orders
    store_i64(at, max(load_i64(at) + count, 0))
