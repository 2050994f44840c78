"""Rehearsals: while nothing happens, make an order that is not sent, so that the next finds all at hand.

An order is made a few times a second, and what it needs leaves the caches in between: code, templates,
limits, the next slots of pool, ring and journal.  A rehearsal checks a recent intent again, writes it into
the slots that the next real order will use, and leaves them unpublished, as a refusal would.  Nothing is
counted but the rehearsals themselves; no state of orders, risk or journal changes.
"""

from __future__ import annotations

from typing import Final

from nimbus.journal.log import warm_next
from nimbus.messages import INTENT, INTENT_NEW
from nimbus.orders.journal_records import ORDER_OUT
from nimbus.orders.pool import warm_next_order
from nimbus.orders.risk import PASSED, check
from nimbus.orders.send import write_new
from nimbus.orders.state import INTENTS_KEPT, ORDERS
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, prefetch_write, store_i64
from ringbuf.records import CACHE_LINE
from ringbuf.spsc import room, slot_at, warm_slot

REHEARSE_NS: Final = 20_000  # between two rehearsals of an idle loop

_ORDERS, _INTENT = ORDERS.at, INTENT.at
_INTENT_SIZE: Final = INTENT.size
_PAYLOAD_LINES: Final = -(-ORDER_OUT.size // CACHE_LINE)


@inlined
def foresee(orders: int) -> None:
    """Fetch what the next order is written to: its slots in pool, ring and journal, its payload."""
    warm_slot(load_i64(orders + _ORDERS.out))
    warm_next_order(load_i64(orders + _ORDERS.pool))
    warm_next(load_i64(orders + _ORDERS.stream))
    for line in range(_PAYLOAD_LINES):
        prefetch_write(orders + _ORDERS.payload + line * CACHE_LINE)


@kernel
def rehearse(orders: int, now_ns: int) -> bool:
    """Rehearse the order of one of the recent intents; False when there was nothing to rehearse."""
    number = load_i64(orders + _ORDERS.rehearsed)
    store_i64(orders + _ORDERS.rehearsed, number + 1)
    intent = orders + _ORDERS.intents_kept + (number & (INTENTS_KEPT - 1)) * _INTENT_SIZE
    out = load_i64(orders + _ORDERS.out)
    if load_u8(intent + _INTENT.kind) != INTENT_NEW or room(out, 1) < 1:
        return False
    if check(load_i64(orders + _ORDERS.risk), intent, now_ns) != PASSED:
        return False
    write_new(orders, slot_at(out, 0), intent, now_ns)
    return True
