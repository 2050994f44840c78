"""The paper venue: our own FIX bytes in, ExecutionReports out, against the replayed real book.

Its two rings stand where the socket stands in live trading.  `receive` handles the requests whose time has
come (due time + order latency), `on_change` (queue_model.py) lets each real message reach our orders.  For
an order to meet the book as it stood when it arrived, call `receive` with the time of the next market
message *before* that message is applied, and `on_change` after.

A request is handled only while the reports ring has room for every answer it can cause and no older report
waits: until then it stays in its ring (counted).  Reports of fills that find the ring full wait, one line a
resting order, and are never lost.
"""

from __future__ import annotations

from typing import Any, Final

from nimbus.book.directory import find_symbol
from nimbus.book.layout import PX_MAX, BookState
from nimbus.book.publish import top_at
from nimbus.fix import tags
from nimbus.fix.codec import REPORT, Codec
from nimbus.fix.parse import FIELDS, create_fields, find, parse, to_char, to_px, to_qty, value_at
from nimbus.messages import BOOK_HALTED, BUY, SELL, TIF_DAY, TIF_IOC, TOP_OF_BOOK, WIRE, WIRE_BYTES_MAX
from nimbus.venue import paper_layout as layout
from nimbus.venue.matching import arrive
from nimbus.venue.paper_layout import (
    BATCH_MAX,
    NEW,
    REPORTS_MAX,
    VENUE,
    VENUE_COUNTERS,
    VENUE_ORDER,
    VENUE_ROW,
    count,
    next_number,
    order_at,
    slot_of,
)
from nimbus.venue.paper_reports import copy_id, flush, room, send_cancel_reject, send_report
from nimbus.venue.renew import end_resting, is_in_line
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    copy,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_i64,
    store_u8,
    store_u16,
    wrapping_multiply,
)
from ringbuf.segment import Segment
from ringbuf.spsc import MASK, front, pop

_V, _O, _C, _W, _FIELDS, _TOP = (
    VENUE.at,
    VENUE_ORDER.at,
    VENUE_COUNTERS.at,
    WIRE.at,
    FIELDS.at,
    TOP_OF_BOOK.at,
)
_ORDER_SIZE: Final = VENUE_ORDER.size
_ID_SIZE: Final = tags.ID_SIZE
_MIXER_ONE, _MIXER_TWO = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9
_SYMBOL_SIZE: Final = 8
ORDERS_MAX: Final = 4_096


@inlined
def _bucket(venue: int, cl_ord_id: int) -> int:
    """Return the address of the bucket of a 16-byte ClOrdID."""
    mixed = wrapping_multiply(load_i64(cl_ord_id), _MIXER_ONE)
    mixed ^= wrapping_multiply(load_i64(cl_ord_id + 8), _MIXER_TWO)
    return load_i64(venue + _V.heads) + ((mixed >> 24) & load_i64(venue + _V.heads_mask)) * 8


@inlined
def _find_order(venue: int, cl_ord_id: int) -> int:
    """Return the address of the order with a ClOrdID, resting or recently finished, or 0."""
    slot = load_i64(_bucket(venue, cl_ord_id))
    for _ in range(load_i64(venue + _V.orders_max)):
        if slot == 0:
            return 0
        order = order_at(venue, slot)
        known = order + _O.cl_ord_id
        if load_i64(known) == load_i64(cl_ord_id) and load_i64(known + 8) == load_i64(cl_ord_id + 8):
            return order
        slot = load_i64(order + _O.chain)
    return 0


@inlined
def _forget(venue: int, order: int) -> None:
    """Take a finished order out of its ClOrdID bucket: its slot is used again."""
    slot, at = slot_of(venue, order), _bucket(venue, order + _O.cl_ord_id)
    for _ in range(load_i64(venue + _V.orders_max)):
        here = load_i64(at)
        if here in (slot, 0):
            break
        at = order_at(venue, here) + _O.chain
    store_i64(at, load_i64(order + _O.chain))


@inlined
def _new_slot(venue: int) -> int:
    """Return the address of an unused order, or 0: all are open, or owe a report."""
    used = load_i64(venue + _V.orders_used)
    if used < load_i64(venue + _V.orders_max):
        store_i64(venue + _V.orders_used, used + 1)
        return order_at(venue, used + 1)
    slot = load_i64(venue + _V.free_first)
    if slot == 0:
        return 0
    order = order_at(venue, slot)
    store_i64(venue + _V.free_first, load_i64(order + _O.line))
    if load_i64(order + _O.line) == 0:
        store_i64(venue + _V.free_last, 0)
    _forget(venue, order)
    return order


@inlined
def _symbol8(fields: int) -> int:
    """Return the first 8 bytes of Symbol(55), padded with spaces, as one word; 0 when there is none."""
    found = find(fields, tags.SYMBOL)
    if found < 0 or found & 0xFFFF == 0:
        return 0
    at, size, word = value_at(fields, found), found & 0xFFFF, 0
    for index in range(_SYMBOL_SIZE):
        letter = load_u8(at + index) if index < size else ord(" ")
        word |= letter << (8 * index)
    return word


@inlined
def _id_at(fields: int, tag: int) -> int:
    """Return the address of an identifier of 16 characters, or 0."""
    found = find(fields, tag)
    return value_at(fields, found) if found >= 0 and found & 0xFFFF == _ID_SIZE else 0


@inlined
def _read_order(venue: int, books: BookState, fields: int) -> int:
    """Parse a NewOrderSingle into slot 0; return 0, an OrdRejReason, or -1 when it cannot be answered."""
    order, cl_ord_id = order_at(venue, 0), _id_at(fields, tags.CL_ORD_ID)
    side, symbol8 = to_char(fields, tags.SIDE), _symbol8(fields)
    if cl_ord_id == 0 or symbol8 == 0 or side not in (ord("1"), ord("2")):
        return -1
    clear(order, _ORDER_SIZE)
    copy_id(order + _O.cl_ord_id, cl_ord_id)
    store_u8(order + _O.side, BUY if side == ord("1") else SELL)
    qty, px, tif = (
        to_qty(fields, tags.ORDER_QTY),
        to_px(fields, tags.PRICE),
        to_char(fields, tags.TIME_IN_FORCE),
    )
    store_i64(order + _O.qty, max(qty, 0))
    store_i64(order + _O.px, max(px, 0))
    store_u8(order + _O.tif, TIF_IOC if tif == ord("3") else TIF_DAY)
    locate, limit = find_symbol(books, symbol8), load_i64(venue + _V.symbols_max)
    known = 0 < locate < limit and find(fields, tags.SYMBOL) & 0xFFFF <= _SYMBOL_SIZE
    store_u16(order + _O.locate, locate if known else limit)
    store_i64(load_i64(venue + _V.symbols) + load_u16(order + _O.locate) * 8, symbol8)
    if not known:
        return layout.UNKNOWN_SYMBOL
    if _find_order(venue, order + _O.cl_ord_id) != 0:
        return layout.DUPLICATE_ORDER
    if qty < 1:
        return layout.BAD_QTY
    if px < 1 or px > PX_MAX or to_char(fields, tags.ORD_TYPE) != ord("2"):
        return layout.OTHER
    if tif not in (ord("0"), ord("3"), tags.MISSING):
        return layout.OTHER
    return layout.CLOSED if load_u8(top_at(books, locate) + _TOP.status) & BOOK_HALTED else 0


@inlined
def _count_reject(venue: int, reason: int) -> None:
    if reason == layout.UNKNOWN_SYMBOL:
        count(venue, _C.rejected_symbol)
    elif reason == layout.CLOSED:
        count(venue, _C.rejected_halted)
    elif reason == layout.EXCEEDS_LIMIT:
        count(venue, _C.rejected_limit)
    elif reason == layout.DUPLICATE_ORDER:
        count(venue, _C.rejected_duplicate)
    elif reason == layout.BAD_QTY:
        count(venue, _C.rejected_qty)
    else:
        count(venue, _C.rejected_other)


@kernel
def new_order(venue: int, books: BookState, fields: int, now_ns: int) -> None:
    """Handle a NewOrderSingle: Rejected, or New and what follows at once."""
    reason, request = _read_order(venue, books, fields), order_at(venue, 0)
    if reason < 0:
        count(venue, _C.garbled)
        return
    order = 0
    if reason == 0:
        order = _new_slot(venue)
        reason = 0 if order != 0 else layout.EXCEEDS_LIMIT
    store_i64(request + _O.number, next_number(venue, _V.order_number))
    if reason:
        store_u8(request + _O.status, layout.REJECTED)
        store_u8(request + _O.reason, reason)
        _count_reject(venue, reason)
        send_report(venue, request, layout.REJECTED, 0, 0, 0, now_ns)
        return
    copy(order, request, _ORDER_SIZE)
    store_i64(order + _O.leaves_qty, load_i64(order + _O.qty))
    store_u8(order + _O.status, NEW)
    bucket = _bucket(venue, order + _O.cl_ord_id)
    store_i64(order + _O.chain, load_i64(bucket))
    store_i64(bucket, slot_of(venue, order))
    count(venue, _C.accepted)
    send_report(venue, order, NEW, 0, 0, 0, now_ns)
    arrive(venue, books, order, now_ns)


@kernel
def cancel_order(venue: int, fields: int, now_ns: int) -> None:
    """Handle an OrderCancelRequest: Canceled, or OrderCancelReject (too late, or unknown order)."""
    request, orig = _id_at(fields, tags.CL_ORD_ID), _id_at(fields, tags.ORIG_CL_ORD_ID)
    if request == 0 or orig == 0:
        count(venue, _C.garbled)
        return
    order = _find_order(venue, orig)
    if order == 0 or load_u8(order + _O.resting) == 0:
        reason = layout.UNKNOWN_ORDER if order == 0 else layout.TOO_LATE
        count(venue, _C.cancel_rejected)
        send_cancel_reject(venue, order, request, orig, reason, now_ns)
        return
    count(venue, _C.cancelled)
    end_resting(venue, order, request, now_ns)


@inlined
def _handle(venue: int, books: BookState, wire: int, now_ns: int) -> None:
    fields, size = load_i64(venue + _V.fields), load_u32(wire + _W.size)
    count(venue, _C.received)
    if size > WIRE_BYTES_MAX or parse(wire + _W.bytes, size, fields) < 0:
        count(venue, _C.garbled)
        return
    kind = load_i64(fields + _FIELDS.msg_type)
    if kind == ord("D"):
        new_order(venue, books, fields, now_ns)
    elif kind == ord("F"):
        cancel_order(venue, fields, now_ns)
    else:
        count(venue, _C.foreign)


@inlined
def _arrived(venue: int, now_ns: int) -> int:
    """Return the address of the oldest request if it has arrived by now_ns, else 0."""
    wire = front(load_i64(venue + _V.orders_ring))
    if wire == 0 or load_i64(wire + _W.due_ns) + load_i64(venue + _V.order_latency_ns) > now_ns:
        return 0
    return wire


@kernel
def _receive(venue: int, books: BookState, now_ns: int) -> int:
    for handled in range(BATCH_MAX):
        wire = _arrived(venue, now_ns)
        if wire == 0:
            return handled
        if flush(venue) == 0 or room(venue) < REPORTS_MAX:
            count(venue, _C.waits)
            return handled
        _handle(venue, books, wire, now_ns)
        pop(load_i64(venue + _V.orders_ring))
    return BATCH_MAX


@inlined
def receive(venue: int, books: BookState, now_ns: int) -> int:
    """Handle the requests that have arrived by now_ns, at most BATCH_MAX; return how many.

    When the books have begun anew our resting orders are cancelled first.
    """
    if not is_in_line(venue, books, now_ns):
        count(venue, _C.waits)
        return 0
    return _receive(venue, books, now_ns) if _arrived(venue, now_ns) else 0


class Venue:
    """Owns the paper venue's memory; `addr` goes to the kernels.

    orders_ring, reports_ring: WIRE rings, read and written here; the latter holds REPORTS_MAX or more.
    symbols_max, live_orders_max: as in Books.  orders_max: orders of ours that may be open at one time.
    """

    def __init__(
        self, segment: Segment, *, orders_ring: int, reports_ring: int, symbols_max: int,
        live_orders_max: int, orders_max: int = ORDERS_MAX, order_latency_ns: int = 0,
        report_latency_ns: int = 0, comp_ids: tuple[str, str] = ("VENUE", "CONTRAFUSION"), epoch: int = 1,
    ) -> None:  # fmt: skip
        if symbols_max > 0xFFFF:
            msg = f"symbols_max must be at most {0xFFFF}, got {symbols_max}"
            raise ValueError(msg)
        capacity = int(segment.words(reports_ring + MASK, 1)[0]) + 1
        if capacity < REPORTS_MAX:
            msg = f"the reports ring holds {capacity} records, {REPORTS_MAX} are needed"
            raise ValueError(msg)
        buckets = 1 << (2 * orders_max - 1).bit_length()
        self.addr = segment.allocate("venue", VENUE.size + VENUE_COUNTERS.size)
        symbols = segment.allocate("venue.symbols", (symbols_max + 1) * _SYMBOL_SIZE)
        self.codec = Codec.for_venue(
            segment,
            "venue.codec",
            comp_ids=comp_ids,
            symbols=symbols,
            symbols_max=symbols_max + 1,
            epoch=epoch,
        )
        state = {
            "orders_ring": orders_ring, "reports_ring": reports_ring, "codec": self.codec.addr,
            "fields": create_fields(segment, "venue.fields"),
            "report": segment.allocate("venue.report", REPORT.size),
            "orders": segment.allocate("venue.orders", (orders_max + 1) * VENUE_ORDER.size),
            "rows": segment.allocate("venue.rows", (symbols_max + 1) * VENUE_ROW.size),
            "heads": segment.allocate("venue.heads", buckets * 8), "heads_mask": buckets - 1,
            "taken": segment.allocate("venue.taken", (live_orders_max + 1) * 8), "taken_max": live_orders_max,
            "symbols": symbols, "symbols_max": symbols_max, "orders_max": orders_max,
            "order_latency_ns": order_latency_ns, "report_latency_ns": report_latency_ns,
        }  # fmt: skip
        self._words = segment.words(self.addr, (VENUE.size + VENUE_COUNTERS.size) // 8)
        for field, value in state.items():
            self._words[getattr(_V, field) // 8] = value
        self._orders = segment.array("venue.orders", VENUE_ORDER)

    def counters(self) -> dict[str, int]:
        """Return how often each thing happened (VENUE_COUNTERS says what each means)."""
        first = VENUE.size // 8
        return {name: int(self._words[first + getattr(_C, name) // 8]) for name in layout.COUNTED}

    def open_orders(self) -> list[dict[str, Any]]:
        """Return our resting orders, by OrderID: every field that says something to a person."""
        rows = [row for row in self._orders[1:] if row["resting"]]
        names = (
            "number",
            "px",
            "qty",
            "leaves_qty",
            "cum_qty",
            "cost",
            "ahead_qty",
            "stamp",
            "locate",
            "side",
        )
        return [
            {name: int(row[name]) for name in names}
            | {"cl_ord_id": bytes(row["cl_ord_id"]).decode("latin-1")}
            for row in sorted(rows, key=lambda row: int(row["number"]))
        ]
