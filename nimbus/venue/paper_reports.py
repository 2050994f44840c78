"""What the paper venue says: ExecutionReports and OrderCancelRejects into the reports ring, as FIX bytes.

A full ring never loses a fill.  A fill by the real flow is first booked as owed by its order, and the order
joins a line; `flush` writes the owed reports as far as the ring has room.  Fills of one order that wait
together become one report, at its price; nothing is allocated, since an order stands in the line once.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.codec import REPORT
from nimbus.fix.template import encode_cancel_reject, encode_report
from nimbus.messages import WIRE
from nimbus.venue.paper_layout import (
    FILLED,
    PARTIALLY_FILLED,
    REJECTED,
    TRADE,
    UNKNOWN_ORDER,
    VENUE,
    VENUE_COUNTERS,
    VENUE_ORDER,
    add,
    count,
    next_number,
    order_at,
    slot_of,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, load_u8, load_u16, store_i64, store_u8, store_u16, store_u32
from ringbuf.spsc import MASK, claim, publish, used

_V, _O, _R, _W, _C = VENUE.at, VENUE_ORDER.at, REPORT.at, WIRE.at, VENUE_COUNTERS.at
_REPORT_SIZE: Final = REPORT.size


@inlined
def copy_id(target: int, source: int) -> None:
    """Copy 16 bytes of a ClOrdID."""
    store_i64(target, load_i64(source))
    store_i64(target + 8, load_i64(source + 8))


@inlined
def room(venue: int) -> int:
    """Return how many reports the ring can take now."""
    ring = load_i64(venue + _V.reports_ring)
    return load_i64(ring + MASK) + 1 - used(ring)


@inlined
def _post(venue: int, slot: int, size: int, now_ns: int) -> None:
    """Publish the WIRE record at slot whose message has size bytes, or count it when size is a refusal."""
    if size < 0:
        count(venue, _C.unsent)
        return
    next_number(venue, _V.seq)
    store_i64(slot + _W.due_ns, now_ns + load_i64(venue + _V.report_latency_ns))
    store_i64(slot + _W.order, 0)
    store_u32(slot + _W.size, size)
    store_u32(slot + _W.pad, 0)
    store_i64(slot + _W.pad2, 0)
    publish(load_i64(venue + _V.reports_ring))


@kernel
def send_report(
    venue: int, order: int, exec_type: int, last_px: int, last_qty: int, request: int, now_ns: int
) -> int:
    """Write the ExecutionReport of the VENUE_ORDER at `order` as it stands.

    request: address of the ClOrdID of the cancel request that it answers, or 0.
    Returns 1, or 0 when the ring is full.
    """
    slot = claim(load_i64(venue + _V.reports_ring))
    if slot == 0:
        return 0
    report = load_i64(venue + _V.report)
    clear(report, _REPORT_SIZE)
    store_i64(report + _R.order_id, load_i64(order + _O.number))
    store_i64(report + _R.exec_id, next_number(venue, _V.exec_number))
    store_i64(report + _R.px, load_i64(order + _O.px))
    store_i64(report + _R.qty, load_i64(order + _O.qty))
    store_i64(report + _R.last_px, last_px)
    store_i64(report + _R.last_qty, last_qty)
    store_i64(report + _R.leaves_qty, load_i64(order + _O.leaves_qty))
    store_i64(report + _R.cum_qty, load_i64(order + _O.cum_qty))
    store_i64(report + _R.cost, load_i64(order + _O.cost))
    store_u16(report + _R.locate, load_u16(order + _O.locate))
    store_u8(report + _R.side, load_u8(order + _O.side))
    store_u8(report + _R.exec_type, exec_type)
    store_u8(report + _R.ord_status, load_u8(order + _O.status))
    store_u8(report + _R.reason, load_u8(order + _O.reason))
    if request == 0:
        copy_id(report + _R.cl_ord_id, order + _O.cl_ord_id)
    else:
        copy_id(report + _R.cl_ord_id, request)
        copy_id(report + _R.orig_cl_ord_id, order + _O.cl_ord_id)
    seq = load_i64(venue + _V.seq) + 1
    size = encode_report(load_i64(venue + _V.codec), slot + _W.bytes, report, seq, now_ns)
    _post(venue, slot, size, now_ns)
    return 1


@kernel
def send_cancel_reject(venue: int, order: int, request: int, orig: int, reason: int, now_ns: int) -> int:
    """Refuse a cancel request: request, orig are the addresses of its 11 and 41; order 0 = not known.

    Returns 1, or 0 when the ring is full.
    """
    slot = claim(load_i64(venue + _V.reports_ring))
    if slot == 0:
        return 0
    report = load_i64(venue + _V.report)
    clear(report, _REPORT_SIZE)
    copy_id(report + _R.cl_ord_id, request)
    copy_id(report + _R.orig_cl_ord_id, orig)
    store_u8(report + _R.reason, reason)
    store_u8(report + _R.ord_status, REJECTED)
    if reason != UNKNOWN_ORDER:
        store_i64(report + _R.order_id, load_i64(order + _O.number))
        store_u8(report + _R.ord_status, load_u8(order + _O.status))
    seq = load_i64(venue + _V.seq) + 1
    size = encode_cancel_reject(load_i64(venue + _V.codec), slot + _W.bytes, report, seq, now_ns)
    _post(venue, slot, size, now_ns)
    return 1


@inlined
def book_fill(venue: int, order: int, px: int, qty: int) -> None:
    """Move qty shares of an order from open to filled."""
    leaves = load_i64(order + _O.leaves_qty) - qty
    store_i64(order + _O.leaves_qty, leaves)
    store_i64(order + _O.cum_qty, load_i64(order + _O.cum_qty) + qty)
    store_i64(order + _O.cost, load_i64(order + _O.cost) + qty * px)
    store_u8(order + _O.status, PARTIALLY_FILLED if leaves else FILLED)
    add(venue, _C.filled_qty, qty)


@inlined
def owe(venue: int, order: int, qty: int, now_ns: int) -> None:
    """Note that an order has a fill to report, at its price."""
    if load_i64(order + _O.owed_qty) == 0:
        store_i64(order + _O.owed_ns, now_ns)
    store_i64(order + _O.owed_qty, load_i64(order + _O.owed_qty) + qty)
    if load_u8(order + _O.owing):
        return
    slot, last = slot_of(venue, order), load_i64(venue + _V.owing_last)
    store_u8(order + _O.owing, 1)
    store_i64(order + _O.line, 0)
    if last == 0:
        store_i64(venue + _V.owing_first, slot)
    else:
        store_i64(order_at(venue, last) + _O.line, slot)
    store_i64(venue + _V.owing_last, slot)


@inlined
def free(venue: int, order: int) -> None:
    """Put a finished order at the end of the free list."""
    slot, last = slot_of(venue, order), load_i64(venue + _V.free_last)
    store_i64(order + _O.line, 0)
    if last == 0:
        store_i64(venue + _V.free_first, slot)
    else:
        store_i64(order_at(venue, last) + _O.line, slot)
    store_i64(venue + _V.free_last, slot)


@kernel
def flush(venue: int) -> int:
    """Write the owed reports, first come first served; return 1, or 0 when some are left (ring full)."""
    for _ in range(load_i64(venue + _V.orders_max)):
        slot = load_i64(venue + _V.owing_first)
        if slot == 0:
            return 1
        order = order_at(venue, slot)
        if room(venue) < 1:
            return 0
        qty, px = load_i64(order + _O.owed_qty), load_i64(order + _O.px)
        send_report(venue, order, TRADE, px, qty, 0, load_i64(order + _O.owed_ns))
        store_i64(venue + _V.owing_first, load_i64(order + _O.line))
        if load_i64(order + _O.line) == 0:
            store_i64(venue + _V.owing_last, 0)
        store_i64(order + _O.owed_qty, 0)
        store_u8(order + _O.owing, 0)
        if load_i64(order + _O.leaves_qty) == 0:
            free(venue, order)
    return 1
