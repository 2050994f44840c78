"""From intent to bytes: risk, pool slot, FIX message, journal, and only then the ring to the wire.

The message is encoded straight into the next free WIRE slot and the order straight into the next free slot
of the pool.  Neither counts until everything has succeeded, so a refusal at any step has nothing to undo.
The order of the last three steps is the promise of the journal: record, reservation, publish.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.codec import CODEC
from nimbus.fix.template import encode_cancel, encode_new_order
from nimbus.journal.log import append
from nimbus.journal.types import RecordType
from nimbus.messages import (
    FILL_CANCEL_REJECTED,
    FILL_DENIED,
    INTENT,
    INTENT_CANCEL,
    INTENT_NEW,
    LIMITS,
    ORDER,
    PENDING_CANCEL,
    PENDING_NEW,
    TOP_OF_BOOK,
    WIRE,
)
from nimbus.orders.journal_records import CANCEL_OUT, DENIAL, ORDER_OUT
from nimbus.orders.pool import (
    first_open,
    next_cancel_id,
    next_open,
    next_order,
    order_at,
    prepare,
    take,
    take_cancel_id,
)
from nimbus.orders.positions import add_open, add_open_orders
from nimbus.orders.risk import (
    COLLAR,
    FIELD_KIND,
    FIELD_ORDER,
    FIELD_TEXT,
    INSANE,
    JOURNAL_LOW,
    MARKET_DATA,
    NOT_LOGGED_ON,
    PASSED,
    POSITION_LIMIT,
    RATE,
    REDUCING_ONLY,
    RING_FULL,
    RISK,
    SESSION_DOWN,
    Reason,
    check,
    is_logged_on,
    position_at,
    spend,
)
from nimbus.orders.state import ORDERS, count, notify_denial
from nimbus.orders.states import PENDING_NEW_STATUS, is_final
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, load_u8, load_u16, store_i64, store_u8, store_u16
from ringbuf.spsc import claim, publish

_ORDERS, _ORDER, _INTENT, _RISK, _WIRE, _CODEC = ORDERS.at, ORDER.at, INTENT.at, RISK.at, WIRE.at, CODEC.at
_OUT, _CANCEL, _DENIAL = ORDER_OUT.at, CANCEL_OUT.at, DENIAL.at
_LIMITS, _TOP = LIMITS.at, TOP_OF_BOOK.at
_OUT_SIZE: Final = ORDER_OUT.size
_CANCEL_SIZE: Final = CANCEL_OUT.size
_DENIAL_SIZE: Final = DENIAL.size
_KIND_ORDER: Final = int(RecordType.ORDER_OUT)
_KIND_CANCEL: Final = int(RecordType.CANCEL_OUT)
_KIND_DENIAL: Final = int(RecordType.DENIAL)
_DUPLICATE: Final = int(Reason.DUPLICATE)

# The small fields are one word of each record, written and read whole: what is read back at once (by the
# journal's checksum for one) need not wait for the pieces.
#   INTENT     locate strategy kind side tif tag
#   ORDER      locate strategy side tif status pending, then tag
#   ORDER_OUT  locate strategy side tif timestamp_digits tag
_TO_STRATEGY: Final = 0xFFFFFFFF
_SIDE_TIF: Final = 0xFFFF << 32
_TO_TIF: Final = _TO_STRATEGY | _SIDE_TIF


@inlined
def _symbol(codec: int, locate: int) -> int:
    return load_i64(load_i64(codec + _CODEC.symbols) + locate * load_i64(codec + _CODEC.symbols_stride))


@inlined
def _observe(orders: int, observed: int) -> None:
    risk = load_i64(orders + _ORDERS.risk)
    store_i64(risk + _RISK.observed, observed)
    store_i64(risk + _RISK.limit, 0)


@inlined
def _hand_over(orders: int, wire: int, order: int, size: int, now_ns: int) -> None:
    """Complete a WIRE slot and make it visible: the message has left, its number is used."""
    store_i64(wire + _WIRE.due_ns, now_ns)
    store_i64(wire + _WIRE.order, load_i64(order + _ORDER.number))
    store_i64(wire + _WIRE.size, size)  # and pad
    store_i64(wire + _WIRE.pad2, 0)
    store_i64(orders + _ORDERS.next_seq, load_i64(orders + _ORDERS.next_seq) + 1)
    publish(load_i64(orders + _ORDERS.out))


@inlined
def _journal_order(orders: int, order: int, now_ns: int) -> int:
    payload, codec = orders + _ORDERS.payload, load_i64(orders + _ORDERS.codec)
    risk, locate = load_i64(orders + _ORDERS.risk), load_u16(order + _ORDER.locate)
    store_i64(payload + _OUT.order, load_i64(order + _ORDER.number))
    store_i64(payload + _OUT.decision, load_i64(order + _ORDER.decision))
    store_i64(payload + _OUT.cause_seq, load_i64(order + _ORDER.cause_seq))
    store_i64(payload + _OUT.px, load_i64(order + _ORDER.px))
    store_i64(payload + _OUT.qty, load_i64(order + _ORDER.qty))
    store_i64(payload + _OUT.sent_ns, now_ns)
    store_i64(payload + _OUT.msg_seq_num, load_i64(orders + _ORDERS.next_seq))
    store_i64(payload + _OUT.symbol, _symbol(codec, locate))
    store_i64(payload + _OUT.limits_version, load_i64(risk + _RISK.limits_copy + _LIMITS.version))
    store_i64(payload + _OUT.book_update, load_i64(risk + _RISK.top_copy + _TOP.update))
    kept = load_i64(order + _ORDER.locate) & _TO_TIF
    digits, tag = load_i64(codec + _CODEC.digits), load_u8(order + _ORDER.tag)
    store_i64(payload + _OUT.locate, kept | digits << 48 | tag << 56)
    return append(load_i64(orders + _ORDERS.stream), _KIND_ORDER, payload, _OUT_SIZE, now_ns)


@inlined
def _reserve(orders: int, order: int) -> None:
    """Reserve everything a new order needs, after the last check."""
    take(load_i64(orders + _ORDERS.pool))
    position = position_at(load_i64(orders + _ORDERS.risk), load_u16(order + _ORDER.locate))
    add_open(position, load_u8(order + _ORDER.side), load_i64(order + _ORDER.qty))
    add_open_orders(position, 1)


@kernel
def write_new(orders: int, wire: int, intent: int, now_ns: int) -> int:
    """Write the order of an intent into the next free slot of the pool and its message to the WIRE record.

    Neither counts yet.  Returns the size of the message, or a negative status when it cannot be encoded.
    """
    order = prepare(load_i64(orders + _ORDERS.pool), load_i64(intent + _INTENT.cause_seq))
    qty = load_i64(intent + _INTENT.qty)
    store_i64(order + _ORDER.decision, load_i64(intent + _INTENT.decision))
    store_i64(order + _ORDER.px, load_i64(intent + _INTENT.px))
    store_i64(order + _ORDER.qty, qty)
    store_i64(order + _ORDER.leaves_qty, qty)
    store_i64(order + _ORDER.created_ns, now_ns)
    store_i64(order + _ORDER.sent_ns, now_ns)
    store_i64(order + _ORDER.updated_ns, now_ns)
    store_i64(order + _ORDER.book_update, load_i64(intent + _INTENT.book_update))
    small = load_i64(intent + _INTENT.locate)
    kept = small & _TO_STRATEGY | small >> 8 & _SIDE_TIF
    store_i64(order + _ORDER.locate, kept | PENDING_NEW_STATUS << 48 | PENDING_NEW << 56)
    store_i64(order + _ORDER.tag, small >> 56 & 0xFF)
    seq = load_i64(orders + _ORDERS.next_seq)
    return int(encode_new_order(load_i64(orders + _ORDERS.codec), wire + _WIRE.bytes, order, seq, now_ns))


@inlined
def _send_new(orders: int, intent: int, now_ns: int) -> int:
    """Make and hand over the order of an intent that has passed; return PASSED or a reason, undone."""
    wire = claim(load_i64(orders + _ORDERS.out))
    if wire == 0:
        _observe(orders, RING_FULL)
        return SESSION_DOWN
    size = write_new(orders, wire, intent, now_ns)
    if size < 0:
        _observe(orders, FIELD_TEXT)
        return INSANE
    order = next_order(load_i64(orders + _ORDERS.pool))
    if _journal_order(orders, order, now_ns) == 0:
        _observe(orders, JOURNAL_LOW)
        return SESSION_DOWN
    _reserve(orders, order)
    count(orders, _ORDERS.sent)
    _hand_over(orders, wire, order, size, now_ns)
    return PASSED


@kernel
def send_cancel(orders: int, number: int, decision: int, cause_seq: int, now_ns: int) -> int:
    """Ask the venue to cancel an open order; only "logged on" is checked (R20).

    Returns PASSED, SESSION_DOWN, INSANE (no such open order), or DUPLICATE (a cancel is pending).
    """
    order = order_at(load_i64(orders + _ORDERS.pool), number)
    if order == 0 or is_final(load_u8(order + _ORDER.status)):
        _observe(orders, FIELD_ORDER)
        return INSANE
    if load_u8(order + _ORDER.pending) & PENDING_CANCEL:
        _observe(orders, FIELD_ORDER)
        return _DUPLICATE
    if not is_logged_on(load_i64(orders + _ORDERS.session)):
        _observe(orders, NOT_LOGGED_ON)
        return SESSION_DOWN
    wire = claim(load_i64(orders + _ORDERS.out))
    if wire == 0:
        _observe(orders, RING_FULL)
        return SESSION_DOWN
    pool, codec = load_i64(orders + _ORDERS.pool), load_i64(orders + _ORDERS.codec)
    if not next_cancel_id(pool, order + _ORDER.cancel_id, cause_seq):
        _observe(orders, FIELD_TEXT)
        return INSANE
    seq = load_i64(orders + _ORDERS.next_seq)
    size = encode_cancel(codec, wire + _WIRE.bytes, order, seq, now_ns)
    if size < 0:
        _observe(orders, FIELD_TEXT)
        return INSANE
    payload = orders + _ORDERS.payload
    clear(payload, _CANCEL_SIZE)
    request = take_cancel_id(pool)  # used up even when the journal refuses: never given twice
    store_i64(payload + _CANCEL.order, number)
    store_i64(payload + _CANCEL.request, request)
    store_i64(payload + _CANCEL.decision, decision)
    store_i64(payload + _CANCEL.cause_seq, cause_seq)
    store_i64(payload + _CANCEL.qty, load_i64(order + _ORDER.qty))
    store_i64(payload + _CANCEL.sent_ns, now_ns)
    store_i64(payload + _CANCEL.msg_seq_num, seq)
    store_i64(payload + _CANCEL.symbol, _symbol(codec, load_u16(order + _ORDER.locate)))
    store_u16(payload + _CANCEL.locate, load_u16(order + _ORDER.locate))
    store_u16(payload + _CANCEL.strategy, load_u16(order + _ORDER.strategy))
    store_u8(payload + _CANCEL.side, load_u8(order + _ORDER.side))
    store_u8(payload + _CANCEL.timestamp_digits, load_i64(codec + _CODEC.digits))
    if append(load_i64(orders + _ORDERS.stream), _KIND_CANCEL, payload, _CANCEL_SIZE, now_ns) == 0:
        _observe(orders, JOURNAL_LOW)
        return SESSION_DOWN
    store_u8(order + _ORDER.pending, load_u8(order + _ORDER.pending) | PENDING_CANCEL)
    store_i64(order + _ORDER.updated_ns, now_ns)
    count(orders, _ORDERS.cancels_sent)
    _hand_over(orders, wire, order, size, now_ns)
    return PASSED


@kernel
def _deny(orders: int, intent: int, reason: int, now_ns: int) -> None:
    """Count, journal and report a denial: reason, observed value, limit."""
    payload, risk = orders + _ORDERS.payload, load_i64(orders + _ORDERS.risk)
    kind = load_u8(intent + _INTENT.kind)
    looked = reason in (MARKET_DATA, COLLAR, RATE, REDUCING_ONLY, POSITION_LIMIT)  # the top was read
    store_i64(payload + _DENIAL.decision, load_i64(intent + _INTENT.decision))
    store_i64(payload + _DENIAL.cause_seq, load_i64(intent + _INTENT.cause_seq))
    store_i64(payload + _DENIAL.px, load_i64(intent + _INTENT.px))
    store_i64(payload + _DENIAL.qty, load_i64(intent + _INTENT.qty))
    store_i64(payload + _DENIAL.order, load_i64(intent + _INTENT.order))
    store_i64(payload + _DENIAL.observed, load_i64(risk + _RISK.observed))
    store_i64(payload + _DENIAL.limit, load_i64(risk + _RISK.limit))
    store_i64(payload + _DENIAL.limits_version, load_i64(risk + _RISK.limits_copy + _LIMITS.version))
    store_i64(payload + _DENIAL.book_update, load_i64(risk + _RISK.top_copy + _TOP.update) if looked else 0)
    store_u16(payload + _DENIAL.locate, load_u16(intent + _INTENT.locate))
    store_u16(payload + _DENIAL.strategy, load_u16(intent + _INTENT.strategy))
    store_u16(payload + _DENIAL.reason, reason)
    store_u8(payload + _DENIAL.kind, kind)
    store_u8(payload + _DENIAL.side, load_u8(intent + _INTENT.side))
    if append(load_i64(orders + _ORDERS.stream), _KIND_DENIAL, payload, _DENIAL_SIZE, now_ns) == 0:
        count(orders, _ORDERS.unjournaled)
    count(orders, _ORDERS.denied)
    count(orders, _ORDERS.denied_by_reason + 8 * reason)
    told = FILL_CANCEL_REJECTED if kind == INTENT_CANCEL else FILL_DENIED
    notify_denial(orders, told, intent, reason, now_ns)


@kernel
def take_intent(orders: int, intent: int, now_ns: int) -> int:
    """Turn one INTENT record into a message on the way to the venue, or into a denial.

    Returns 0 when it was sent, else the Reason, which is journaled and told to the strategy.
    """
    count(orders, _ORDERS.intents)
    kind = load_u8(intent + _INTENT.kind)
    if kind == INTENT_NEW:
        risk = load_i64(orders + _ORDERS.risk)
        reason = check(risk, intent, now_ns)
        spend(risk, now_ns)
        if reason == PASSED:
            reason = _send_new(orders, intent, now_ns)
    elif kind == INTENT_CANCEL:
        number, decision = load_i64(intent + _INTENT.order), load_i64(intent + _INTENT.decision)
        reason = send_cancel(orders, number, decision, load_i64(intent + _INTENT.cause_seq), now_ns)
    else:
        _observe(orders, FIELD_KIND)
        reason = INSANE
    if reason != PASSED:
        _deny(orders, intent, reason, now_ns)
    return reason


@kernel
def cancel_all(orders: int, cause_seq: int, now_ns: int) -> int:
    """Send one cancel for each open order that has none pending, oldest first; return how many were sent."""
    pool, sent = load_i64(orders + _ORDERS.pool), 0
    number = first_open(pool)
    while number:  # bounded by open_orders_max; a cancel request closes nothing
        if send_cancel(orders, number, 0, cause_seq, now_ns) == PASSED:
            sent += 1
        number = next_open(pool, number)
    return sent
