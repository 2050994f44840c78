"""From bytes to states and positions: the venue's reports, parsed, judged, journaled, applied.

A report is judged first (which order, seen before, allowed by the table), then journaled with its raw bytes,
then applied.  `apply_execution` and `apply_cancel_reject` are functions of the EXECUTION record and the state
alone, so that recovery can run the journal through them.  Executions are never dropped: while the journal
has no room for a whole message, the message stays in the ring.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix import tags
from nimbus.fix.parse import FIELDS, find, parse, to_char, to_int, to_px, to_qty, value_at
from nimbus.journal.log import append, has_free
from nimbus.journal.types import RecordType
from nimbus.messages import (
    FILL,
    FILL_ACCEPTED,
    FILL_CANCEL_REJECTED,
    FILL_CANCELLED,
    FILL_REJECTED,
    FILL_TRADE,
    HALTED,
    ORDER,
    PENDING_CANCEL,
    PENDING_NEW,
    POSITION,
    WIRE,
    WIRE_BYTES_MAX,
)
from nimbus.orders import executions, kill_switch, pool
from nimbus.orders import states as st
from nimbus.orders.doubt import settle_doubt
from nimbus.orders.executions import (
    DIFFERENT,
    FULL,
    SAME,
    STORED,
    TEXT_SIZE_MAX,
    UNKNOWABLE,
    mix,
    text_hash,
)
from nimbus.orders.journal_records import (
    EXECUTION,
    VERDICT_APPLIED,
    VERDICT_CONFLICT,
    VERDICT_REFUSED,
    VERDICT_REPEATED,
    VERDICT_SESSION,
    VERDICT_UNKNOWN_ORDER,
    VERDICT_UNREADABLE,
)
from nimbus.orders.pool import order_at
from nimbus.orders.positions import add_open, add_open_orders, book_fill
from nimbus.orders.risk import position_at
from nimbus.orders.state import CUM_QTY_MAX, ORDERS, count, notify, send_fill
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, copy, load_i64, load_u8, load_u16, load_u32, store_i64, store_u8, store_u16
from ringbuf.spsc import front, pop

BATCH_MAX: Final = 256
JOURNAL_ROOM: Final = 16  # records one message may need: its parts, and a FILL
NO_REASON: Final = 255

_ORDERS, _ORDER, _WIRE, _FIELDS, _POSITION = ORDERS.at, ORDER.at, WIRE.at, FIELDS.at, POSITION.at
_E, _FILL = EXECUTION.at, FILL.at
_E_SIZE: Final = EXECUTION.size
_FILL_SIZE: Final = FILL.size
_KIND_EXECUTION: Final = int(RecordType.EXECUTION)
_KIND_FILL: Final = int(RecordType.FILL)
_RISK, _EXECUTIONS = kill_switch.RISK, kill_switch.EXECUTIONS
_REPORT, _CANCEL_REJECT = ord("8"), ord("9")


@inlined
def _find_by(orders: int, fields: int, tag: int) -> int:
    found = find(fields, tag)
    if found < 0:
        return 0
    return pool.find(load_i64(orders + _ORDERS.pool), value_at(fields, found), found & 0xFFFF)


@inlined
def _contents(report: int) -> int:
    """Return a hash of what an ExecID stands for."""
    value = mix(load_i64(report + _E.order), load_u8(report + _E.exec_type))
    return mix(mix(value, load_i64(report + _E.last_qty)), load_i64(report + _E.last_px))


@inlined
def _hash_of(fields: int, tag: int) -> int:
    """Return the hash of a text value of 1 to TEXT_SIZE_MAX bytes, else 0."""
    found = find(fields, tag)
    if found < 0 or found & 0xFFFF == 0 or found & 0xFFFF > TEXT_SIZE_MAX:
        return 0
    return text_hash(value_at(fields, found), found & 0xFFFF)


@kernel
def _judge_report(orders: int, fields: int, report: int) -> int:
    """Fill the EXECUTION record of a parsed ExecutionReport; return the verdict, change nothing else.

    Only these stop it (S37): no order to find, or an unreadable ExecID, ExecType, LastQty or LastPx.
    """
    exec_type, ord_status = to_char(fields, tags.EXEC_TYPE), to_char(fields, tags.ORD_STATUS)
    key = _hash_of(fields, tags.EXEC_ID)
    store_u8(report + _E.exec_type, max(exec_type, 0))
    store_u8(report + _E.ord_status, max(ord_status, 0))
    store_i64(report + _E.exec_id, key)
    store_i64(report + _E.venue_id, _hash_of(fields, tags.ORDER_ID))
    store_i64(report + _E.cum_qty, to_qty(fields, tags.CUM_QTY))
    store_i64(report + _E.leaves_qty, to_qty(fields, tags.LEAVES_QTY))
    reason = to_int(fields, tags.ORD_REJ_REASON)
    store_u8(report + _E.reason, reason if 0 <= reason < NO_REASON else NO_REASON)
    order = _find_by(orders, fields, tags.CL_ORD_ID)
    if order == 0:
        order = _find_by(orders, fields, tags.ORIG_CL_ORD_ID)
    store_i64(report + _E.order, load_i64(order + _ORDER.number) if order else 0)
    if exec_type < 0 or key == 0:
        return VERDICT_UNREADABLE
    if exec_type == st.EXEC_TRADE:
        qty, px = to_qty(fields, tags.LAST_QTY), to_px(fields, tags.LAST_PX)
        if qty <= 0 or px <= 0:
            return VERDICT_UNREADABLE
        store_i64(report + _E.last_qty, qty)
        store_i64(report + _E.last_px, px)
    if order == 0:
        return VERDICT_UNKNOWN_ORDER
    seen = executions.lookup(load_i64(orders + _ORDERS.executions), key, _contents(report))
    if seen == SAME:
        return VERDICT_REPEATED
    if seen == DIFFERENT:
        return VERDICT_CONFLICT
    if seen == UNKNOWABLE and exec_type == st.EXEC_TRADE:
        cum = load_i64(report + _E.cum_qty)
        if 0 <= cum <= load_i64(order + _ORDER.cum_qty):
            return VERDICT_REPEATED
    bits = st.action(load_i64(orders + _ORDERS.table), load_u8(order + _ORDER.status), exec_type)
    return VERDICT_APPLIED if bits else VERDICT_REFUSED


@kernel
def _judge_cancel_reject(orders: int, fields: int, report: int) -> int:
    """As _judge_report, for an OrderCancelReject; one for an order without a pending cancel is a repeat."""
    reason = to_int(fields, tags.CXL_REJ_REASON)
    store_u8(report + _E.reason, reason if 0 <= reason < NO_REASON else NO_REASON)
    store_u8(report + _E.ord_status, max(to_char(fields, tags.ORD_STATUS), 0))
    store_i64(report + _E.venue_id, _hash_of(fields, tags.ORDER_ID))
    order = _find_by(orders, fields, tags.ORIG_CL_ORD_ID)
    if order == 0:
        return VERDICT_UNKNOWN_ORDER
    store_i64(report + _E.order, load_i64(order + _ORDER.number))
    return VERDICT_APPLIED if load_u8(order + _ORDER.pending) & PENDING_CANCEL else VERDICT_REPEATED


@inlined
def _settle(orders: int, order: int, position: int, status: int, now_ns: int) -> None:
    """Show a status; when the order ends by it, release what is open and take it off the open list."""
    ends = st.is_final(status) and not st.is_final(load_u8(order + _ORDER.status))
    if ends:
        add_open(position, load_u8(order + _ORDER.side), -load_i64(order + _ORDER.leaves_qty))
        add_open_orders(position, -1)
        pool.close(load_i64(orders + _ORDERS.pool), load_i64(order + _ORDER.number))
        store_i64(order + _ORDER.leaves_qty, 0)
        store_u8(order + _ORDER.pending, 0)
    store_u8(order + _ORDER.status, status)
    store_i64(order + _ORDER.updated_ns, now_ns)


@inlined
def _book(orders: int, order: int, position: int, report: int, now_ns: int) -> bool:
    """Book the trade of a report into order and position; False when it is outside their range."""
    qty, px = load_i64(report + _E.last_qty), load_i64(report + _E.last_px)
    cum, side = load_i64(order + _ORDER.cum_qty) + qty, load_u8(order + _ORDER.side)
    if cum > CUM_QTY_MAX or book_fill(position, side, qty, px, now_ns) < 0:
        return False
    store_i64(order + _ORDER.cum_qty, cum)
    store_i64(order + _ORDER.cost, load_i64(order + _ORDER.cost) + qty * px)
    before = load_i64(order + _ORDER.leaves_qty)
    after = min(max(load_i64(order + _ORDER.qty) - cum, 0), before)
    store_i64(order + _ORDER.leaves_qty, after)
    add_open(position, side, after - before)
    if load_i64(position + _POSITION.mark_px2) == 0:
        store_i64(position + _POSITION.mark_px2, 2 * px)
    if cum > load_i64(order + _ORDER.qty):
        count(orders, _ORDERS.overfills)
    count(orders, _ORDERS.trades)
    return True


@inlined
def _halt(orders: int, source: int) -> None:
    kill_switch.raise_state(load_i64(orders + _ORDERS.kill_switch), source, HALTED)


@inlined
def _remember(orders: int, report: int) -> None:
    """Mark the execution as seen, after it was applied; short of room, no new orders."""
    table = load_i64(orders + _ORDERS.executions)
    found = executions.insert(table, load_i64(report + _E.exec_id), _contents(report))
    if found != STORED:
        _halt(orders, _EXECUTIONS)
    if found == FULL and load_u8(report + _E.exec_type) == st.EXEC_TRADE:
        count(orders, _ORDERS.unremembered)


@inlined
def _compare(orders: int, order: int, report: int) -> None:
    """Count a report whose quantities are not ours (X9); nothing is booked from them."""
    cum, leaves = load_i64(report + _E.cum_qty), load_i64(report + _E.leaves_qty)
    cum_differs = cum >= 0 and cum != load_i64(order + _ORDER.cum_qty)
    if cum_differs or (leaves >= 0 and leaves != load_i64(order + _ORDER.leaves_qty)):
        count(orders, _ORDERS.mismatches)


@inlined
def _tell(orders: int, order: int, position: int, report: int, bits: int) -> None:
    """Push the FILL of an applied report; a trade's is journaled too."""
    exec_type, now_ns = load_u8(report + _E.exec_type), load_i64(order + _ORDER.updated_ns)
    kind = 0
    if bits & st.BOOK:
        kind = FILL_TRADE
    elif bits & st.ACK:
        kind = FILL_ACCEPTED
        count(orders, _ORDERS.accepted)
    elif bits & st.END:
        kind = FILL_REJECTED if exec_type == st.REJECTED else FILL_CANCELLED
        count(orders, _ORDERS.rejected if exec_type == st.REJECTED else _ORDERS.cancelled)
    if kind == 0:
        return
    fill = notify(orders, kind, order, position, now_ns)
    store_i64(fill + _FILL.last_px, load_i64(report + _E.last_px))
    store_i64(fill + _FILL.last_qty, load_i64(report + _E.last_qty))
    if kind == FILL_TRADE:
        append(load_i64(orders + _ORDERS.stream), _KIND_FILL, fill, _FILL_SIZE, now_ns)
    send_fill(orders)


@kernel
def apply_execution(orders: int, report: int, now_ns: int) -> None:
    """Change order, position and reservation as an EXECUTION record says whose verdict is APPLIED."""
    order = order_at(load_i64(orders + _ORDERS.pool), load_i64(report + _E.order))
    if order == 0:
        return
    exec_type, reported = load_u8(report + _E.exec_type), load_u8(report + _E.ord_status)
    status = load_u8(order + _ORDER.status)
    bits = st.action(load_i64(orders + _ORDERS.table), status, exec_type)
    position = position_at(load_i64(orders + _ORDERS.risk), load_u16(order + _ORDER.locate))
    if bits & st.BOOK and not _book(orders, order, position, report, now_ns):
        count(orders, _ORDERS.unbooked)
        _halt(orders, _RISK)
        return
    if bits & st.ALARM:
        count(orders, _ORDERS.late_trades)
    pending = load_u8(order + _ORDER.pending)
    if bits & (st.ACK | st.BOOK):
        pending &= ~PENDING_NEW
    if exec_type == st.PENDING_CANCEL_STATUS and bits & st.SHOW:
        pending |= PENDING_CANCEL
    store_u8(order + _ORDER.pending, pending)
    if bits & st.SHOW and st.is_status(reported):
        status = reported
    if bits & st.END and not st.is_final(status):
        status = exec_type  # the report contradicts itself; the event decides
    if load_i64(report + _E.venue_id):
        store_i64(order + _ORDER.venue_id, load_i64(report + _E.venue_id))
    _settle(orders, order, position, status, now_ns)
    _compare(orders, order, report)
    settle_doubt(order, load_i64(report + _E.cum_qty), load_i64(report + _E.leaves_qty))
    _remember(orders, report)
    _tell(orders, order, position, report, bits)


@kernel
def apply_cancel_reject(orders: int, report: int, now_ns: int) -> None:
    """Drop the pending cancel and take the reported status, of an order that has not ended."""
    order = order_at(load_i64(orders + _ORDERS.pool), load_i64(report + _E.order))
    if order == 0:
        return
    position = position_at(load_i64(orders + _ORDERS.risk), load_u16(order + _ORDER.locate))
    store_u8(order + _ORDER.pending, load_u8(order + _ORDER.pending) & ~PENDING_CANCEL)
    status, reported = load_u8(order + _ORDER.status), load_u8(report + _E.ord_status)
    if status == st.PENDING_CANCEL_STATUS:
        status = st.PARTIALLY_FILLED if load_i64(order + _ORDER.cum_qty) else st.NEW
    if not st.is_final(status) and st.is_status(reported):
        status = reported
    _settle(orders, order, position, status, now_ns)
    count(orders, _ORDERS.cancel_rejects)
    notify(orders, FILL_CANCEL_REJECTED, order, position, now_ns)
    send_fill(orders)


@inlined
def _count_verdict(orders: int, verdict: int) -> None:
    if verdict == VERDICT_REPEATED:
        count(orders, _ORDERS.repeated)
    elif verdict == VERDICT_CONFLICT:
        count(orders, _ORDERS.conflicts)
    elif verdict == VERDICT_UNKNOWN_ORDER:
        count(orders, _ORDERS.unknown_orders)
    elif verdict == VERDICT_REFUSED:
        count(orders, _ORDERS.refused)
    elif verdict == VERDICT_UNREADABLE:
        count(orders, _ORDERS.unreadable)
    elif verdict == VERDICT_SESSION:
        count(orders, _ORDERS.session_messages)


@kernel
def take_message(orders: int, buf: int, size: int, now_ns: int) -> int:
    """Judge, journal and apply one message buf[:size], size <= WIRE_BYTES_MAX; return the verdict.

    The journal must have JOURNAL_ROOM free records.
    """
    report, fields = orders + _ORDERS.payload, load_i64(orders + _ORDERS.fields)
    clear(report, _E_SIZE)
    status, verdict, kind = parse(buf, size, fields), VERDICT_UNREADABLE, 0
    if status == tags.OK:
        kind = load_i64(fields + _FIELDS.msg_type)
        unknown = load_i64(fields + _FIELDS.unknown)
        store_i64(orders + _ORDERS.unknown_tags, load_i64(orders + _ORDERS.unknown_tags) + unknown)
        store_u8(report + _E.unknown_tags, min(unknown, 255))
        store_u8(report + _E.msg_type, kind)
        store_i64(report + _E.msg_seq_num, to_int(fields, tags.MSG_SEQ_NUM))
        if kind == _REPORT:
            verdict = _judge_report(orders, fields, report)
        elif kind == _CANCEL_REJECT:
            verdict = _judge_cancel_reject(orders, fields, report)
        else:
            verdict = VERDICT_SESSION
    store_i64(report + _E.status, status)
    store_u8(report + _E.verdict, verdict)
    store_u16(report + _E.raw_size, size)
    copy(report + _E_SIZE, buf, size)
    append(load_i64(orders + _ORDERS.stream), _KIND_EXECUTION, report, _E_SIZE + size, now_ns)
    _count_verdict(orders, verdict)
    if verdict == VERDICT_APPLIED:
        if kind == _REPORT:
            apply_execution(orders, report, now_ns)
        else:
            apply_cancel_reject(orders, report, now_ns)
    return verdict


@kernel
def receive(orders: int, now_ns: int) -> int:
    """Take the venue's messages whose time has come, at most BATCH_MAX; return how many were taken."""
    ring, taken = load_i64(orders + _ORDERS.inbound), 0
    while taken < BATCH_MAX:
        wire = front(ring)
        if wire == 0 or load_i64(wire + _WIRE.due_ns) > now_ns:
            break
        if not has_free(load_i64(orders + _ORDERS.stream), JOURNAL_ROOM):
            count(orders, _ORDERS.stalls)
            break
        size = min(load_u32(wire + _WIRE.size), WIRE_BYTES_MAX)
        take_message(orders, wire + _WIRE.bytes, size, now_ns)
        pop(ring)
        count(orders, _ORDERS.received)
        taken += 1
    return taken
