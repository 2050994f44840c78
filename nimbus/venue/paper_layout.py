"""The memory of the paper venue: its orders, one row a symbol, its words and counters.

Everything is written by the loop that steps the venue.  Slot 0 of the orders stands for "none"; its record
holds the request that is being looked at.  A finished order keeps its slot, and can be asked for by its
ClOrdID, until all slots that were free before it have been used again.
"""

from __future__ import annotations

from typing import Final

from ringbuf.jit import inlined
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import record

VENUE_ORDER = record(
    "VENUE_ORDER",
    """
    i8  number      OrderID
    i8  px          limit price
    i8  qty         shares ordered
    i8  leaves_qty  shares open
    i8  cum_qty     shares filled
    i8  cost        sum of qty x px of its fills
    i8  ahead_qty   real shares before it in the queue of its price
    i8  stamp       real orders with a smaller arrival stamp are before it
    i8  owed_qty    filled while it rested and not yet reported, always at px
    i8  owed_ns     time of the first of these fills
    i8  next        resting: the next one of its symbol and side, worse or later; 0 = last
    i8  prev        resting: the one before it
    i8  chain       next slot whose ClOrdID falls into the same bucket
    i8  line        next slot of the free list, or of those that owe a report
    u2  locate      stock locate; symbols_max = a symbol the book does not know
    u1  side        B or S
    u1  tif         TIF_*
    u1  status      OrdStatus(39) as its character
    u1  resting     1 = it stands in a queue
    u1  owing       1 = it stands in the line of those that owe a report
    u1  reason      OrdRejReason(103)
    16u1 cl_ord_id  ClOrdID(11)
    7i8 pad         zero
    """,
)

VENUE_ROW = record(
    "VENUE_ROW",
    """
    i8  resting     our orders that rest in this symbol, both sides
    i8  bids        slot of the best of our buy orders, 0 = none
    i8  asks        slot of the best of our sell orders
    i8  pad         zero
    """,
    line=32,
)

VENUE = record(
    "VENUE",
    """
    i8  orders_ring    WIRE ring we read
    i8  reports_ring   WIRE ring we write
    i8  codec          CODEC of the reports
    i8  fields         tag table of the parser
    i8  report         one REPORT record, scratch
    i8  orders         slot 0 of the orders
    i8  rows           VENUE_ROW of locate 0
    i8  heads          ClOrdID buckets: a slot each
    i8  heads_mask     number of buckets - 1
    i8  taken          by slot of the book: stamp << 32 | shares we took from that order
    i8  taken_max      last slot of the book
    i8  symbols        by locate: the symbol as our orders spelled it
    i8  symbols_max    locates from here on do not exist
    i8  orders_max     last slot of the orders
    i8  order_latency_ns   from an order's due time to its arrival
    i8  report_latency_ns  from an event to the due time of its report
    i8  orders_used    slots ever used
    i8  free_first     free list: next to be used
    i8  free_last      free list: freed last
    i8  owing_first    line of orders that owe a report
    i8  owing_last     its end
    i8  resting        our orders that rest, all symbols
    i8  order_number   OrderID given last
    i8  exec_number    ExecID given last
    i8  seq            MsgSeqNum given last
    i8  runs_ended     of the books, when our orders last were in line with them (renew.py)
    i8  taken_used     last slot of the book that has a note in `taken`
    5i8 pad            zero
    """,
)

VENUE_COUNTERS = record(
    "VENUE_COUNTERS",
    """
    i8  received            messages taken from the ring
    i8  accepted            orders that became New
    i8  rejected_symbol     unknown symbol
    i8  rejected_halted     symbol is halted or paused
    i8  rejected_limit      no slot for another order
    i8  rejected_duplicate  ClOrdID is known already
    i8  rejected_qty        quantity 0 or not a whole number
    i8  rejected_other      order type, time in force or price
    i8  fills_resting       fills by the real flow
    i8  fills_taking        fills on arrival, one a level
    i8  filled_qty          shares of all fills
    i8  cancelled           cancel requests that were granted
    i8  expired             remainders cancelled on arrival (IOC, or too many levels)
    i8  cancel_rejected     cancel requests that were refused
    i8  garbled             messages that cannot be parsed, or cannot be answered: ignored
    i8  foreign             messages that are neither D nor F: ignored
    i8  deferred            reports that had to wait for room in the ring
    i8  waits               times a request had to wait for room in the ring
    i8  unsent              reports that could not be written
    i8  renewed             resting orders cancelled because the books began anew
    4i8 pad                 zero
    """,
)

# OrdRejReason(103) of FIX 4.4, and what it means here.
UNKNOWN_SYMBOL, CLOSED, EXCEEDS_LIMIT, DUPLICATE_ORDER, BAD_QTY, OTHER = 1, 2, 3, 6, 13, 99
REJECT_TEXT: Final = {
    UNKNOWN_SYMBOL: "unknown symbol",
    CLOSED: "symbol is halted",
    EXCEEDS_LIMIT: "the venue has no room for another order",
    DUPLICATE_ORDER: "ClOrdID is known already",
    BAD_QTY: "quantity must be a whole number above zero",
    OTHER: "only limit orders, DAY or IOC, at a price above zero",
}
# CxlRejReason(102).
TOO_LATE, UNKNOWN_ORDER = 0, 1

NEW, PARTIALLY_FILLED, FILLED, CANCELED, REJECTED = ord("0"), ord("1"), ord("2"), ord("4"), ord("8")
TRADE: Final = ord("F")

BATCH_MAX: Final = 256  # requests in one call
TAKE_LEVELS_MAX: Final = 64  # levels one order may sweep; what is left then is cancelled
REPORTS_MAX: Final = TAKE_LEVELS_MAX + 2  # that one request can cause: New, trades, Canceled

_V: Final = VENUE.at
_O: Final = VENUE_ORDER.at
_ROW: Final = VENUE_ROW.at
_ORDER_SIZE: Final = VENUE_ORDER.size
_ROW_SIZE: Final = VENUE_ROW.size
_COUNTERS_AT: Final = VENUE.size  # the counters follow the words
COUNTED: Final = tuple(name for name in VENUE_COUNTERS.at._fields if name != "pad")


@inlined
def order_at(venue: int, slot: int) -> int:
    """Return the address of the VENUE_ORDER in a slot."""
    return load_i64(venue + _V.orders) + slot * _ORDER_SIZE


@inlined
def slot_of(venue: int, order: int) -> int:
    """Return the slot of the VENUE_ORDER at an address."""
    return (order - load_i64(venue + _V.orders)) // _ORDER_SIZE


@inlined
def row_at(venue: int, locate: int) -> int:
    """Return the address of the VENUE_ROW of a locate (below symbols_max)."""
    return load_i64(venue + _V.rows) + locate * _ROW_SIZE


@inlined
def head_at(row: int, side: int) -> int:
    """Return where a row keeps the best order of a side (B or S)."""
    at: int = row + _ROW.bids + (side & 1) * 8  # 'B' is even, 'S' is odd
    return at


@inlined
def count(venue: int, offset: int) -> None:
    """Add one to the counter at this offset of VENUE_COUNTERS."""
    add(venue, offset, 1)


@inlined
def add(venue: int, offset: int, value: int) -> None:
    """Add to the counter at this offset of VENUE_COUNTERS."""
    at = venue + _COUNTERS_AT + offset
    store_i64(at, load_i64(at) + value)


@inlined
def next_number(venue: int, offset: int) -> int:
    """Return the next of the numbers kept at this offset of VENUE, from 1."""
    value = load_i64(venue + offset) + 1
    store_i64(venue + offset, value)
    return value
