"""The memory of the matching engine: requests in, events out, its orders, its words and counters.

Everything is written by the loop that steps the engine, except the requests (written by the gateway).
An order has the number that the gateway gave it: its slot in the table, used once in the life of the
process.  Its reference in the published book is PRIVATE_REF + number.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Final

from ringbuf.jit import inlined
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import record

# REQUEST.kind
NEW_ORDER, CANCEL_ORDER = 1, 2

REQUEST = record(
    "REQUEST",
    """
    i8  number   order number, from 1: a new order's is unused
    i8  request  number of the request, given back in the events it causes
    i8  symbol   new order: 8 bytes, padded with spaces
    i8  px       new order: limit price
    i8  qty      new order: shares
    u1  kind     NEW_ORDER, CANCEL_ORDER
    u1  side     new order: B or S
    u1  tif      new order: TIF_*
    5u1 pad      zero
    2i8 pad2     zero
    """,
)

# ORDER_EVENT.kind
ACCEPTED, TRADED, CANCELED, REJECTED, CANCEL_REJECTED = 1, 2, 3, 4, 5
# ORDER_EVENT.liquidity: what a trade did to the book.
ADDED, REMOVED = 1, 2

ORDER_EVENT = record(
    "ORDER_EVENT",
    """
    i8  number      order number
    i8  request     request that is answered, 0 = the market caused it
    i8  exec        number of the execution, from 1
    i8  now_ns      time of the event
    i8  px          limit price
    i8  qty         shares ordered
    i8  last_px     price of the trade, else 0
    i8  last_qty    shares of the trade, else 0
    i8  leaves_qty  shares open
    i8  cum_qty     shares filled
    i8  cost        sum of qty x px of its fills
    i8  seq         sequence number of the published message, 0 = none
    i8  match       match number of the trade, else 0
    u2  locate      stock locate, 0 = not known
    u1  kind        ACCEPTED, TRADED, CANCELED, REJECTED, CANCEL_REJECTED
    u1  status      OrdStatus(39) as its character
    u1  reason      why it was refused or cancelled: REASONS, 0 = as asked
    u1  side        B or S
    u1  liquidity   ADDED, REMOVED
    u1  pad         zero
    2i8 pad2        zero
    """,
)

# Why an order was refused or cancelled, or a cancel refused.
(
    UNKNOWN_SYMBOL, CLOSED, BAD_QTY, BAD_PX, BAD_FORM, BAD_NUMBER, FULL, NOT_TAKEN, SWEPT, UNKNOWN_ORDER,
    TOO_LATE,
) = range(1, 12)  # fmt: skip
REASONS: Final = (
    "",
    "unknown symbol",
    "symbol is halted",
    "quantity must be a whole number from 1 to 9999999",
    "price must be from 0.0001 to 199999.9900",
    "only limit orders to buy or sell, DAY or IOC",
    "the venue takes no more orders today",
    "the book has no room for the order",
    "immediate or cancel: nothing more to take",
    "order met too many others: the rest is cancelled",
    "unknown order",
    "too late to cancel",
)

NEW, PARTIALLY_FILLED, FILLED, CANCELED_STATUS, REJECTED_STATUS = (
    ord("0"), ord("1"), ord("2"), ord("4"), ord("8"),
)  # fmt: skip

OWN = record(
    "OWN",
    """
    i8  px          limit price
    i8  qty         shares ordered
    i8  leaves_qty  shares open
    i8  cum_qty     shares filled
    i8  cost        sum of qty x px of its fills
    i8  request     request that brought it
    u2  locate      stock locate
    u1  side        B or S
    u1  tif         TIF_*
    u1  status      OrdStatus(39) as its character, 0 = the number was never used
    u1  resting     1 = it stands in the book
    2u1 pad         zero
    i8  pad2        zero
    """,
)

FILLS_MAX: Final = 256  # orders that one message or one order may meet
WALK_MAX: Final = 4_096  # orders of a queue that are looked at for one message
MESSAGES_MAX: Final = FILLS_MAX + 2  # that one step can publish
EVENTS_MAX: Final = 2 * FILLS_MAX + 2  # that one step can cause
BATCH_MAX: Final = 64  # requests in one call
LOCATES: Final = 65_536

ENGINE = record(
    "ENGINE",
    """
    i8  requests     REQUEST ring we read (fixed)
    i8  events       ORDER_EVENT ring we write (fixed)
    i8  own          slot 0 of the orders (fixed)
    i8  orders_max   last slot (fixed)
    i8  touched      one byte a locate: 1 = orders of ours were accepted there (fixed)
    i8  message      message being made (fixed)
    i8  change       CHANGE of the published book (fixed)
    i8  flow         CHANGE of the recorded book (fixed)
    i8  now_ns       time of the duty cycle, set by the loop
    i8  exch_ns      exchange time given to messages of our own
    i8  exec_number  ExecID given last
    i8  match_number match number given last
    i8  left         shares still to meet, of the message in hand
    i8  met          orders met by it
    i8  walked       orders looked at for it
    i8  pad          zero
    """,
)

COUNTERS = record(
    "COUNTERS",
    """
    i8  background      messages of the background flow
    i8  passed          of these: published as they came
    i8  changed         published with other numbers, because of orders of ours
    i8  swallowed       not published: filled or gone by orders of ours
    i8  foreign_ref     dropped: a reference of our private range
    i8  refused         dropped: the published book had no room
    i8  flow_met_qty    shares of the flow that met orders the recording does not have
    i8  flow_lost_qty   shares of the flow that found nobody, since ours had been there first
    i8  walk_limit      times the queue was not looked at to its end
    i8  orders          new orders received
    i8  accepted        of these: accepted
    i8  rejected        refused, with a reason
    i8  cancels         cancel requests received
    i8  cancelled       of these: granted
    i8  cancel_rejected refused, with a reason
    i8  expired         orders whose rest was cancelled on arrival (IOC, or met too many)
    i8  fills           trades of our orders: two when both sides are ours
    i8  filled_qty      shares of these
    i8  bad_request     requests that make no sense: ignored
    i8  waits           times the step waited for room in the events or the store
    4i8 pad             zero
    """,
)
COUNTED: Final = tuple(name for name in COUNTERS.at._fields if name != "pad")

PRIVATE_REF: Final = 0x4346 << 48  # "CF": references (and match numbers) of our own
_PRIVATE_BITS: Final = 48
_PRIVATE_MARK: Final = PRIVATE_REF >> _PRIVATE_BITS
_NUMBER_MASK: Final = (1 << _PRIVATE_BITS) - 1

# Books as published and as recorded, the PUBLISHER, the ENGINE and its COUNTERS behind it.
EngineState = namedtuple("EngineState", ["books", "recorded", "publisher", "words"])

_E, _O = ENGINE.at, OWN.at
_OWN_SIZE: Final = OWN.size
_COUNTERS_AT: Final = ENGINE.size


@inlined
def is_private(ref: int) -> bool:
    """Say whether a reference is of our own range."""
    return ref >> _PRIVATE_BITS == _PRIVATE_MARK


@inlined
def number_of(ref: int) -> int:
    """Return the order number in a private reference."""
    return ref & _NUMBER_MASK


@inlined
def own_at(words: int, number: int) -> int:
    """Return the address of the OWN record of an order number (0 to orders_max)."""
    return load_i64(words + _E.own) + number * _OWN_SIZE


@inlined
def number_at(words: int, own: int) -> int:
    """Return the number of the order at an address."""
    return (own - load_i64(words + _E.own)) // _OWN_SIZE


@inlined
def add(words: int, counter: int, value: int) -> None:
    """Add to the counter at this offset of COUNTERS."""
    at = words + _COUNTERS_AT + counter
    store_i64(at, load_i64(at) + value)


@inlined
def count(words: int, counter: int) -> None:
    """Add one to the counter at this offset of COUNTERS."""
    add(words, counter, 1)


@inlined
def next_number(words: int, offset: int) -> int:
    """Return the next of the numbers kept at this offset of ENGINE, from 1."""
    value = load_i64(words + offset) + 1
    store_i64(words + offset, value)
    return value
