"""Orders in doubt: what a lost connection does to working orders (S28).

An order in doubt keeps its reservation, is never sent again, and is never assumed dead by a timeout: the next
report of the venue that agrees with our quantities settles it.  Both functions depend on the state alone, so
recovery can run them again.
"""

from __future__ import annotations

from nimbus.messages import IN_DOUBT, ORDER, PENDING_CANCEL, PENDING_NEW
from nimbus.orders.pool import first_open, next_open, order_at
from nimbus.orders.state import ORDERS
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, store_i64, store_u8

_ORDERS, _ORDER = ORDERS.at, ORDER.at


@inlined
def _doubt(order: int, now_ns: int) -> None:
    """Put an order in doubt; a cancel request of it pends no longer, so that it can be sent again."""
    pending = (load_u8(order + _ORDER.pending) | IN_DOUBT) & ~PENDING_CANCEL
    store_u8(order + _ORDER.pending, pending)
    store_i64(order + _ORDER.updated_ns, now_ns)


@kernel
def doubt_open(orders: int, now_ns: int) -> int:
    """Put every open order in doubt; return how many there are."""
    pool, doubted = load_i64(orders + _ORDERS.pool), 0
    number = first_open(pool)
    while number:  # bounded by open_orders_max
        _doubt(order_at(pool, number), now_ns)
        doubted += 1
        number = next_open(pool, number)
    return doubted


@kernel
def doubt_pending(orders: int, now_ns: int) -> int:
    """Put every order in doubt whose request is not answered yet; return how many there are.

    That is what a GapFill over our own numbers means (S30): a request in it may be lost.
    """
    pool, doubted = load_i64(orders + _ORDERS.pool), 0
    number = first_open(pool)
    while number:  # bounded by open_orders_max
        order = order_at(pool, number)
        if load_u8(order + _ORDER.pending) & (PENDING_NEW | PENDING_CANCEL):
            _doubt(order, now_ns)
            doubted += 1
        number = next_open(pool, number)
    return doubted


@inlined
def settle_doubt(order: int, cum_qty: int, leaves_qty: int) -> None:
    """Clear the doubt of an order when a report has been applied whose quantities are ours (X7)."""
    agrees = cum_qty == load_i64(order + _ORDER.cum_qty) and leaves_qty == load_i64(order + _ORDER.leaves_qty)
    if agrees:
        store_u8(order + _ORDER.pending, load_u8(order + _ORDER.pending) & ~IN_DOUBT)
