"""Rehearsals: while nothing happens, make an order that is not sent, so that the next finds all at hand.

An order is made a few times a second, and what it needs leaves the caches in between: code, templates,
limits, the next slots of pool, ring and journal.  A rehearsal checks a recent intent again and, whatever the
answer, writes it into the slots that the next real order will use, and leaves them unpublished, as a refusal
would.  Nothing is counted but the rehearsals themselves; no state of orders, risk or journal changes.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.template import warm_new_order
from nimbus.journal.log import warm_next
from nimbus.messages import INTENT, INTENT_NEW, POSITION, TOP_OF_BOOK
from nimbus.orders.journal_records import ORDER_OUT
from nimbus.orders.pool import has_room, warm_next_order
from nimbus.orders.risk import RISK, check, position_at
from nimbus.orders.send import write_new
from nimbus.orders.state import INTENTS_KEPT, ORDERS
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, prefetch, prefetch_write, store_i64
from ringbuf.records import CACHE_LINE
from ringbuf.seqlock import cell_size
from ringbuf.spsc import room, slot_at, warm_slot

REHEARSE_NS: Final = 20_000  # between two rehearsals of an idle loop

_ORDERS, _INTENT, _RISK = ORDERS.at, INTENT.at, RISK.at
_POSITION_SIZE: Final = POSITION.size
_TOP_CELL: Final = cell_size(TOP_OF_BOOK)
_INTENT_SIZE: Final = INTENT.size
_PAYLOAD_LINES: Final = -(-ORDER_OUT.size // CACHE_LINE)
_HEAD_LINES: Final = ORDERS.at.denied // CACHE_LINE + 1  # up to the counters of what is sent


@inlined
def foresee(orders: int) -> None:
    """Fetch what every order reads and writes: counters, its slots in pool, ring and journal, its payload."""
    for line in range(_HEAD_LINES):
        prefetch_write(orders + line * CACHE_LINE)
    warm_slot(load_i64(orders + _ORDERS.out))
    warm_next_order(load_i64(orders + _ORDERS.pool))
    warm_next(load_i64(orders + _ORDERS.stream))
    for line in range(_PAYLOAD_LINES):
        prefetch_write(orders + _ORDERS.payload + line * CACHE_LINE)


@inlined
def warm_position(orders: int, locate: int) -> None:
    """Fetch what the checks of a symbol's order read: its position and the top of its book."""
    risk = load_i64(orders + _ORDERS.risk)
    for offset in range(0, _POSITION_SIZE, CACHE_LINE):
        prefetch(position_at(risk, locate) + offset)
    for offset in range(0, _TOP_CELL, CACHE_LINE):
        prefetch(load_i64(risk + _RISK.tops) + locate * _TOP_CELL + offset)


@inlined
def warm_intent(orders: int, intent: int) -> None:
    """Fetch what the message of a new order's INTENT is made of, which need not have been checked."""
    side, tif = load_u8(intent + _INTENT.side), load_u8(intent + _INTENT.tif)
    warm_new_order(load_i64(orders + _ORDERS.codec), load_u16(intent + _INTENT.locate), side, tif)


@inlined
def warm_kept(orders: int, slot: int) -> None:
    """Fetch what the next order of a kept intent's symbol reads; slot < INTENTS_KEPT."""
    intent = orders + _ORDERS.intents_kept + slot * _INTENT_SIZE
    warm_position(orders, load_u16(intent + _INTENT.locate))
    warm_intent(orders, intent)


@kernel
def rehearse(orders: int, now_ns: int) -> bool:
    """Rehearse the order of one of the recent intents; False when there was nothing to rehearse."""
    number = load_i64(orders + _ORDERS.rehearsed)
    store_i64(orders + _ORDERS.rehearsed, number + 1)
    intent = orders + _ORDERS.intents_kept + (number & (INTENTS_KEPT - 1)) * _INTENT_SIZE
    out = load_i64(orders + _ORDERS.out)
    if load_u8(intent + _INTENT.kind) != INTENT_NEW or room(out, 1) < 1:
        return False
    check(load_i64(orders + _ORDERS.risk), intent, now_ns)  # whatever it says: the next one may pass
    if not has_room(load_i64(orders + _ORDERS.pool)):
        return False
    write_new(orders, slot_at(out, 0), intent, now_ns)
    return True
