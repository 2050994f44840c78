"""The memory of the orders agent: one ORDERS record that both of its halves (send, reports) work on."""

from __future__ import annotations

from typing import Final

from nimbus.messages import FILL, INTENT, ORDER, POSITION
from nimbus.orders.positions import POSITION_QTY_MAX
from ringbuf.jit import inlined
from ringbuf.memory import clear, copy, load_i64, load_u8, load_u16, store_i64, store_u8, store_u16
from ringbuf.records import record
from ringbuf.spsc import try_push

INTENTS_KEPT: Final = 16  # a power of two
ORDERS = record(
    "ORDERS",
    f"""
    i8  pool            address of the POOL
    i8  risk            address of RISK
    i8  codec           address of the CODEC
    i8  table           address of the table of order states
    i8  fields          address of the tag table
    i8  executions      address of the executions seen
    i8  session         address of the SESSION words
    i8  stream          address of the journal STREAM of this loop
    i8  kill_switch     address of the words
    i8  out             ring of WIRE records to the venue
    i8  inbound         ring of WIRE records from it
    i8  fills           ring of FILL records to the strategy
    i8  next_seq        MsgSeqNum of the next message out
    3i8 pad             zero
    i8  intents         intents taken
    i8  sent            NewOrderSingle sent
    i8  cancels_sent    OrderCancelRequest sent
    i8  denied          intents refused, of either kind
    i8  received        messages taken from the venue
    i8  accepted        orders the venue acknowledged
    i8  trades          executions booked
    i8  cancelled       orders that ended cancelled or expired
    i8  rejected        orders the venue rejected
    i8  cancel_rejects  cancel requests it rejected
    i8  session_messages  messages of other types
    i8  unknown_tags    tags skipped (S37)
    i8  repeated        executions seen before (X1)
    i8  unreadable      alarm: messages refused by the parser or without a needed value
    i8  conflicts       alarm: an ExecID came with other contents (X2)
    i8  unknown_orders  alarm: no order of ours (X5)
    i8  refused         alarm: reports that the table of states refuses
    i8  late_trades     alarm: booked after the order had ended (X4)
    i8  overfills       alarm: booked beyond the order's quantity (X6)
    i8  mismatches      alarm: CumQty or LeavesQty reported is not ours (X9)
    i8  unbooked        alarm: execution outside the range of positions; trips the kill switch
    i8  unremembered    alarm: booked while the table of executions was full
    i8  fills_lost      FILL records the strategy's ring refused
    i8  unjournaled     denials the journal refused
    i8  stalls          times the journal had no room for an execution; it stays in the ring
    26i8 denied_by_reason  denials by Reason
    5i8 pad2            zero
    64u1 fill           the FILL record being made
    576u1 payload       the journal payload being made
    i8  rehearsed       rehearsals so far
    7i8 pad3            zero
    {INTENTS_KEPT * INTENT.size}u1 intents_kept  recent INTENTs, one for each of so many symbols
    """,
)

_ORDERS, _FILL, _ORDER, _INTENT, _POSITION = ORDERS.at, FILL.at, ORDER.at, INTENT.at, POSITION.at
_INTENT_SIZE: Final = INTENT.size
_FILL_SIZE: Final = FILL.size
COUNTERS: Final = tuple(
    name
    for name in ORDERS.dtype.names or ()
    if ORDERS.at.intents <= getattr(ORDERS.at, name) < ORDERS.at.denied_by_reason
)
ALARMS: Final = (
    "unreadable", "conflicts", "unknown_orders", "refused", "late_trades", "overfills", "mismatches",
    "unbooked", "unremembered",
)  # fmt: skip
# What each means in the journal's ALARM records; code there is the place in ALARMS, from 1: append only.
ALARM_TEXTS: Final = {
    "unreadable": "a message could not be parsed or lacks what is needed",
    "conflicts": "an ExecID came again with other contents",
    "unknown_orders": "a report names no order of ours",
    "refused": "a report does not fit the state of its order",
    "late_trades": "a trade was booked after its order had ended",
    "overfills": "more was traded than ordered",
    "mismatches": "the venue's quantities are not ours",
    "unbooked": "a trade leaves the range of positions and is not booked",
    "unremembered": "a trade was booked while no more ExecIDs can be kept",
}
CUM_QTY_MAX: Final = POSITION_QTY_MAX  # of one order, overfills included


@inlined
def count(orders: int, counter: int) -> None:
    """Count one event; counter: an offset of ORDERS."""
    store_i64(orders + counter, load_i64(orders + counter) + 1)


@inlined
def _push(orders: int, fill: int) -> None:
    if not try_push(load_i64(orders + _ORDERS.fills), fill):
        count(orders, _ORDERS.fills_lost)


@inlined
def notify(orders: int, kind: int, order: int, position: int, now_ns: int) -> int:
    """Start the FILL record of an order's event; the caller may add a trade, then calls send_fill()."""
    fill: int = orders + _ORDERS.fill
    clear(fill, _FILL_SIZE)
    store_i64(fill + _FILL.decision, load_i64(order + _ORDER.decision))
    store_i64(fill + _FILL.order, load_i64(order + _ORDER.number))
    store_i64(fill + _FILL.now_ns, now_ns)
    store_i64(fill + _FILL.leaves_qty, load_i64(order + _ORDER.leaves_qty))
    store_i64(fill + _FILL.position_qty, load_i64(position + _POSITION.position_qty))
    store_u16(fill + _FILL.locate, load_u16(order + _ORDER.locate))
    store_u16(fill + _FILL.strategy, load_u16(order + _ORDER.strategy))
    store_u8(fill + _FILL.side, load_u8(order + _ORDER.side))
    store_u8(fill + _FILL.kind, kind)
    return fill


@inlined
def send_fill(orders: int) -> None:
    """Push the FILL record that was made; a full ring is counted, the agent goes on."""
    _push(orders, orders + _ORDERS.fill)


@inlined
def notify_denial(orders: int, kind: int, intent: int, reason: int, now_ns: int) -> None:
    """Tell the strategy that its intent was denied; there is no order, or it stays as it is."""
    fill = orders + _ORDERS.fill
    clear(fill, _FILL_SIZE)
    store_i64(fill + _FILL.decision, load_i64(intent + _INTENT.decision))
    store_i64(fill + _FILL.order, load_i64(intent + _INTENT.order))
    store_i64(fill + _FILL.now_ns, now_ns)
    store_u16(fill + _FILL.locate, load_u16(intent + _INTENT.locate))
    store_u16(fill + _FILL.strategy, load_u16(intent + _INTENT.strategy))
    store_u16(fill + _FILL.reason, reason)
    store_u8(fill + _FILL.side, load_u8(intent + _INTENT.side))
    store_u8(fill + _FILL.kind, kind)
    _push(orders, fill)


@inlined
def kept_locate(orders: int, slot: int) -> int:
    """Return the symbol of a kept intent, 0 = none; slot < INTENTS_KEPT."""
    return load_u16(orders + _ORDERS.intents_kept + slot * _INTENT_SIZE + _INTENT.locate)


@inlined
def note_intent(orders: int, intent: int) -> None:
    """Keep a copy of a new order's intent, for rehearsals."""
    slot = (load_u16(intent + _INTENT.locate) & (INTENTS_KEPT - 1)) * _INTENT_SIZE
    copy(orders + _ORDERS.intents_kept + slot, intent, _INTENT_SIZE)
