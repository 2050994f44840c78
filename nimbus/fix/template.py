"""Encode FIX 4.4 messages: a template per (symbol, form), copied and patched with fixed-width values.

A kernel renders a template at its first use, and again should the symbol of a locate change.  The date and
clock of 52 and 60 are text that changes once a second; the sum of CheckSum(10) is taken over the whole
message each time (an incremental sum was no faster, and this one heals itself).

`padding = "fixed"` is this file; a minimal-width encoder would stand beside it with the same signatures.
A value that does not fit its width is refused (DOES_NOT_FIT), never cut.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.codec import (
    CANCEL,
    CANCEL_REJECT,
    CANCEL_REJECT_UNKNOWN,
    CANCELLED,
    CODEC,
    FORM,
    NEW_ORDER,
    REJECTED,
    REPORT,
    STATUS,
    SYMBOL_SIZE,
    TEMPLATE,
    TRADE,
)
from nimbus.fix.digits import check_digits, digits4, put_id, put_px, put_qty, put_seq, put_stamp, since_second
from nimbus.fix.tags import (
    BAD_FORM,
    DOES_NOT_FIT,
    ID_SIZE,
    MSG_SEQ_NUM_MAX,
    NO_SYMBOL,
    PX_MAX,
    QTY_MAX,
    SOH,
)
from nimbus.messages import BUY, ORDER, SELL, TIF_DAY, TIF_IOC
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, load_u8, load_u16, store_i64, store_u8, store_u16, store_u32

_FORM, _TEMPLATE, _CODEC, _REPORT, _ORDER = FORM.at, TEMPLATE.at, CODEC.at, REPORT.at, ORDER.at
_FORM_SIZE: Final = FORM.size
_TEMPLATE_SIZE: Final = TEMPLATE.size


@kernel
def render(template: int, form: int, symbol: int) -> int:
    """Write the whole message of a form (an address) and a symbol (8 bytes as one word) into template.

    Returns the address of the template, or NO_SYMBOL when the bytes hold no printable symbol.
    """
    size, text = load_i64(form + _FORM.size), template + _TEMPLATE.text
    store_i64(template + _TEMPLATE.symbol, 0)  # a refusal below leaves half a text: it is nobody's template
    copy(text, form + _FORM.text, size)
    length = 0
    for index in range(SYMBOL_SIZE):
        letter = (symbol >> (8 * index)) & 0xFF
        if letter in (ord(" "), 0):
            break
        if letter < ord(" ") or letter > ord("~"):
            return NO_SYMBOL
        store_u8(text + size + index, letter)
        length += 1
    if length == 0:
        return NO_SYMBOL
    size += length
    store_u8(text + size, SOH)
    store_u32(text + size + 1, 0x303D3031)  # 10=0
    store_u16(text + size + 5, 0x3030)
    store_u8(text + size + 7, SOH)
    store_u32(text + load_i64(form + _FORM.tag9), digits4(size + 1 - load_i64(form + _FORM.body_at)))
    store_i64(template + _TEMPLATE.size, size + 8)
    store_i64(template + _TEMPLATE.symbol, symbol)
    return template


@inlined
def _start(codec: int, target: int, locate: int, form_index: int, seq: int, now_ns: int) -> int:
    """Copy the template of (locate, form) to target, patch 34 and 52; return its size or a refusal."""
    if seq < 1 or seq > MSG_SEQ_NUM_MAX or now_ns < 0:
        return DOES_NOT_FIT
    if locate >= load_i64(codec + _CODEC.symbols_max):
        return NO_SYMBOL
    count = load_i64(codec + _CODEC.forms_count)
    form = load_i64(codec + _CODEC.forms) + form_index * _FORM_SIZE
    template = load_i64(codec + _CODEC.templates) + (locate * count + form_index) * _TEMPLATE_SIZE
    if locate:
        symbol = load_i64(load_i64(codec + _CODEC.symbols) + locate * load_i64(codec + _CODEC.symbols_stride))
        if symbol == 0 or symbol != load_i64(template + _TEMPLATE.symbol):
            template = render(template, form, symbol)
            if template < 0:
                return template
    size = load_i64(template + _TEMPLATE.size)
    copy(target, template + _TEMPLATE.text, size)
    put_seq(target + load_i64(form + _FORM.tag34), seq)
    stamp, digits = load_i64(codec + _CODEC.stamp), load_i64(codec + _CODEC.digits)
    fraction_ns = since_second(stamp, now_ns)
    put_stamp(target + load_i64(form + _FORM.tag52), stamp, fraction_ns, digits)
    put_stamp(target + load_i64(form + _FORM.tag60), stamp, fraction_ns, digits)
    return size


@inlined
def _copy_id(target: int, source: int) -> None:
    store_i64(target, load_i64(source))
    store_i64(target + ID_SIZE // 2, load_i64(source + ID_SIZE // 2))


@inlined
def _form(codec: int, form_index: int) -> int:
    return load_i64(codec + _CODEC.forms) + form_index * _FORM_SIZE


@kernel
def encode_new_order(codec: int, target: int, order: int, seq: int, now_ns: int) -> int:
    """Write the NewOrderSingle of an ORDER record to target (room for WIRE_BYTES_MAX bytes).

    seq: MsgSeqNum.  Returns the size, or a status below zero; target then holds nothing of use.
    """
    side, tif = load_u8(order + _ORDER.side), load_u8(order + _ORDER.tif)
    qty, px = load_i64(order + _ORDER.qty), load_i64(order + _ORDER.px)
    if qty < 0 or qty > QTY_MAX or px < 0 or px > PX_MAX:
        return DOES_NOT_FIT
    if side not in (BUY, SELL) or tif not in (TIF_DAY, TIF_IOC) or load_u16(order + _ORDER.locate) == 0:
        return BAD_FORM
    index = NEW_ORDER + 2 * (side == SELL) + (tif == TIF_IOC)
    size = _start(codec, target, load_u16(order + _ORDER.locate), index, seq, now_ns)
    if size < 0:
        return size
    form = _form(codec, index)
    _copy_id(target + load_i64(form + _FORM.tag11), order + _ORDER.cl_ord_id)
    put_qty(target + load_i64(form + _FORM.tag38), qty)
    put_px(target + load_i64(form + _FORM.tag44), px)
    check_digits(target, size)
    return size


@kernel
def encode_cancel(codec: int, target: int, order: int, seq: int, now_ns: int) -> int:
    """Write the OrderCancelRequest of an ORDER record: 11 = its cancel_id, 41 = its cl_ord_id.

    As encode_new_order.
    """
    side, qty = load_u8(order + _ORDER.side), load_i64(order + _ORDER.qty)
    if qty < 0 or qty > QTY_MAX:
        return DOES_NOT_FIT
    if side not in (BUY, SELL) or load_u16(order + _ORDER.locate) == 0:
        return BAD_FORM
    index = CANCEL + (side == SELL)
    size = _start(codec, target, load_u16(order + _ORDER.locate), index, seq, now_ns)
    if size < 0:
        return size
    form = _form(codec, index)
    _copy_id(target + load_i64(form + _FORM.tag11), order + _ORDER.cancel_id)
    _copy_id(target + load_i64(form + _FORM.tag41), order + _ORDER.cl_ord_id)
    put_qty(target + load_i64(form + _FORM.tag38), qty)
    check_digits(target, size)
    return size


@inlined
def _put_pair(at: int, value: int) -> None:
    store_u16(at, digits4(value) >> 16)


@inlined
def _fits(report: int, qty_at: int, px_at: int) -> bool:
    qty, px = load_i64(report + qty_at), load_i64(report + px_at)
    return 0 <= qty <= QTY_MAX and 0 <= px <= PX_MAX


@kernel
def encode_report(codec: int, target: int, report: int, seq: int, now_ns: int) -> int:
    """Write the ExecutionReport of a REPORT record; its form follows from exec_type and orig_cl_ord_id.

    As encode_new_order.  AvgPx(6) is cost / cum_qty, cut to 1/10,000.
    """
    exec_type, side = load_u8(report + _REPORT.exec_type), load_u8(report + _REPORT.side)
    cum, cost = load_i64(report + _REPORT.cum_qty), load_i64(report + _REPORT.cost)
    average = cost // cum if cum > 0 and cost > 0 else 0
    leaves, reason = load_i64(report + _REPORT.leaves_qty), load_u8(report + _REPORT.reason)
    if not (_fits(report, _REPORT.qty, _REPORT.px) and _fits(report, _REPORT.last_qty, _REPORT.last_px)):
        return DOES_NOT_FIT
    if cum < 0 or cum > QTY_MAX or leaves < 0 or leaves > QTY_MAX or average > PX_MAX or reason > 99:
        return DOES_NOT_FIT
    if side not in (BUY, SELL) or load_u16(report + _REPORT.locate) == 0:
        return BAD_FORM
    index = STATUS
    if exec_type == ord("F"):
        index = TRADE
    elif exec_type == ord("8"):
        index = REJECTED
    elif load_u8(report + _REPORT.orig_cl_ord_id):
        index = CANCELLED
    size = _start(codec, target, load_u16(report + _REPORT.locate), index, seq, now_ns)
    if size < 0:
        return size
    form = _form(codec, index)
    _copy_id(target + load_i64(form + _FORM.tag11), report + _REPORT.cl_ord_id)
    epoch = load_i64(codec + _CODEC.epoch)
    put_id(target + load_i64(form + _FORM.tag37), epoch, load_i64(report + _REPORT.order_id))
    put_id(target + load_i64(form + _FORM.tag17), epoch, load_i64(report + _REPORT.exec_id))
    store_u8(target + load_i64(form + _FORM.tag150), exec_type)
    store_u8(target + load_i64(form + _FORM.tag39), load_u8(report + _REPORT.ord_status))
    store_u8(target + load_i64(form + _FORM.tag54), ord("1") + (side == SELL))
    put_qty(target + load_i64(form + _FORM.tag38), load_i64(report + _REPORT.qty))
    put_px(target + load_i64(form + _FORM.tag44), load_i64(report + _REPORT.px))
    put_qty(target + load_i64(form + _FORM.tag151), leaves)
    put_qty(target + load_i64(form + _FORM.tag14), cum)
    put_px(target + load_i64(form + _FORM.tag6), average)
    if index == TRADE:
        put_qty(target + load_i64(form + _FORM.tag32), load_i64(report + _REPORT.last_qty))
        put_px(target + load_i64(form + _FORM.tag31), load_i64(report + _REPORT.last_px))
    elif index == CANCELLED:
        _copy_id(target + load_i64(form + _FORM.tag41), report + _REPORT.orig_cl_ord_id)
    elif index == REJECTED:
        _put_pair(target + load_i64(form + _FORM.tag103), reason)
    check_digits(target, size)
    return size


@kernel
def encode_cancel_reject(codec: int, target: int, report: int, seq: int, now_ns: int) -> int:
    """Write the OrderCancelReject of a REPORT record; order_id 0 is OrderID NONE (unknown order).

    As encode_new_order.
    """
    order_id, reason = load_i64(report + _REPORT.order_id), load_u8(report + _REPORT.reason)
    if reason > 99:
        return DOES_NOT_FIT
    index = CANCEL_REJECT if order_id else CANCEL_REJECT_UNKNOWN
    size = _start(codec, target, 0, index, seq, now_ns)
    if size < 0:
        return size
    form = _form(codec, index)
    if order_id:
        put_id(target + load_i64(form + _FORM.tag37), load_i64(codec + _CODEC.epoch), order_id)
    _copy_id(target + load_i64(form + _FORM.tag11), report + _REPORT.cl_ord_id)
    _copy_id(target + load_i64(form + _FORM.tag41), report + _REPORT.orig_cl_ord_id)
    store_u8(target + load_i64(form + _FORM.tag39), load_u8(report + _REPORT.ord_status))
    _put_pair(target + load_i64(form + _FORM.tag102), reason)
    check_digits(target, size)
    return size
