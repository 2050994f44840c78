"""Encode FIX 4.4 messages: a template per (symbol, form), copied and patched with fixed-width values.

A kernel renders a template at its first use, and again should the symbol of a locate change.  The date and
clock of 52 and 60 are text that changes once a second.  CheckSum(10) is the sum of the template, which is
taken whenever it is rendered, and of each value that is put into it.

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
from nimbus.fix.digits import (
    byte_sum,
    copy_id,
    digits4,
    put_char,
    put_check_sum,
    put_id,
    put_pair,
    put_px,
    put_qty,
    put_seq,
    put_stamp,
    set_stamp,
)
from nimbus.fix.tags import (
    BAD_FORM,
    DOES_NOT_FIT,
    MSG_SEQ_NUM_MAX,
    NO_SYMBOL,
    PX_MAX,
    QTY_MAX,
    SOH,
)
from nimbus.messages import BUY, ORDER, SELL, TIF_DAY, TIF_IOC
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    copy,
    copy_line,
    load_i64,
    load_u8,
    load_u16,
    prefetch,
    store_i64,
    store_u8,
    store_u32,
)
from ringbuf.records import CACHE_LINE

_FORM, _TEMPLATE, _CODEC, _REPORT, _ORDER = FORM.at, TEMPLATE.at, CODEC.at, REPORT.at, ORDER.at
_FORM_SIZE: Final = FORM.size
_TEMPLATE_SIZE: Final = TEMPLATE.size
_TRAILER_SIZE: Final = 7  # 10=nnn and SOH
_FIRST_SIZE: Final = 4 * CACHE_LINE  # copied of every template, without a loop: an order is not longer


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
    size += length + 1
    store_u8(text + size - 1, SOH)
    store_u32(text + size, 0x003D3031)  # 10=, the rest is put there for each message
    store_u32(text + load_i64(form + _FORM.tag9), digits4(size - load_i64(form + _FORM.body_at)))
    store_i64(template + _TEMPLATE.sum, byte_sum(text, size))
    store_i64(template + _TEMPLATE.size, size + _TRAILER_SIZE)
    store_i64(template + _TEMPLATE.symbol, symbol)
    return template


@inlined
def _form(codec: int, index: int) -> int:
    return load_i64(codec + _CODEC.forms) + index * _FORM_SIZE


@inlined
def _template_at(codec: int, locate: int, index: int) -> int:
    """Return the address of a template; locate < symbols_max."""
    place = locate * load_i64(codec + _CODEC.forms_count) + index
    return load_i64(codec + _CODEC.templates) + place * _TEMPLATE_SIZE


@inlined
def _template(codec: int, locate: int, index: int, seq: int, now_ns: int) -> int:
    """Return the template of (locate, form) for a message that can be numbered and dated, or a refusal."""
    if seq < 1 or seq > MSG_SEQ_NUM_MAX or now_ns < 0:
        return DOES_NOT_FIT
    if locate >= load_i64(codec + _CODEC.symbols_max):
        return NO_SYMBOL
    template = _template_at(codec, locate, index)
    if locate:
        symbol = load_i64(load_i64(codec + _CODEC.symbols) + locate * load_i64(codec + _CODEC.symbols_stride))
        if symbol == 0 or symbol != load_i64(template + _TEMPLATE.symbol):
            return render(template, _form(codec, index), symbol)
    return template


@inlined
def _start(codec: int, target: int, template: int, form: int, seq: int, now_ns: int) -> int:
    """Copy a template to target, put 34, 52 and 60 into it; return the sum of the bytes so far."""
    text = template + _TEMPLATE.text
    for at in range(0, _FIRST_SIZE, CACHE_LINE):
        copy_line(target + at, text + at)
    for at in range(_FIRST_SIZE, load_i64(template + _TEMPLATE.size), CACHE_LINE):
        copy_line(target + at, text + at)
    stamp, digits = load_i64(codec + _CODEC.stamp), load_i64(codec + _CODEC.digits)
    total = load_i64(template + _TEMPLATE.sum) + 2 * set_stamp(stamp, now_ns, digits)
    put_stamp(target + load_i64(form + _FORM.tag52), stamp, digits)
    put_stamp(target + load_i64(form + _FORM.tag60), stamp, digits)
    return total + put_seq(target + load_i64(form + _FORM.tag34), seq)


@inlined
def _finish(target: int, template: int, total: int) -> int:
    """Put the sum of all bytes into 10; return the size of the message."""
    size = load_i64(template + _TEMPLATE.size)
    put_check_sum(target + size - 4, total)
    return size


@inlined
def _new_order_form(side: int, tif: int) -> int:
    return NEW_ORDER + 2 * (side == SELL) + (tif == TIF_IOC)


@inlined
def warm_new_order(codec: int, locate: int, side: int, tif: int) -> None:
    """Fetch what the NewOrderSingle of a symbol is copied from; nothing of it is read here."""
    index = _new_order_form(side, tif)
    template, form = _template_at(codec, locate, index), _form(codec, index)
    for offset in range(0, _TEMPLATE.text + _FIRST_SIZE, CACHE_LINE):
        prefetch(template + offset)
    for offset in range(0, _FORM.text, CACHE_LINE):
        prefetch(form + offset)


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
    index = _new_order_form(side, tif)
    template = _template(codec, load_u16(order + _ORDER.locate), index, seq, now_ns)
    if template < 0:
        return template
    form = _form(codec, index)
    total = _start(codec, target, template, form, seq, now_ns)
    total += copy_id(target + load_i64(form + _FORM.tag11), order + _ORDER.cl_ord_id)
    total += put_qty(target + load_i64(form + _FORM.tag38), qty)
    total += put_px(target + load_i64(form + _FORM.tag44), px)
    return _finish(target, template, total)


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
    template = _template(codec, load_u16(order + _ORDER.locate), index, seq, now_ns)
    if template < 0:
        return template
    form = _form(codec, index)
    total = _start(codec, target, template, form, seq, now_ns)
    total += copy_id(target + load_i64(form + _FORM.tag11), order + _ORDER.cancel_id)
    total += copy_id(target + load_i64(form + _FORM.tag41), order + _ORDER.cl_ord_id)
    total += put_qty(target + load_i64(form + _FORM.tag38), qty)
    return _finish(target, template, total)


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
    template = _template(codec, load_u16(report + _REPORT.locate), index, seq, now_ns)
    if template < 0:
        return template
    form = _form(codec, index)
    total = _start(codec, target, template, form, seq, now_ns)
    total += copy_id(target + load_i64(form + _FORM.tag11), report + _REPORT.cl_ord_id)
    epoch = load_i64(codec + _CODEC.epoch)
    total += put_id(target + load_i64(form + _FORM.tag37), epoch, load_i64(report + _REPORT.order_id))
    total += put_id(target + load_i64(form + _FORM.tag17), epoch, load_i64(report + _REPORT.exec_id))
    total += put_char(target + load_i64(form + _FORM.tag150), exec_type)
    total += put_char(target + load_i64(form + _FORM.tag39), load_u8(report + _REPORT.ord_status))
    total += put_char(target + load_i64(form + _FORM.tag54), ord("1") + (side == SELL))
    total += put_qty(target + load_i64(form + _FORM.tag38), load_i64(report + _REPORT.qty))
    total += put_px(target + load_i64(form + _FORM.tag44), load_i64(report + _REPORT.px))
    total += put_qty(target + load_i64(form + _FORM.tag151), leaves)
    total += put_qty(target + load_i64(form + _FORM.tag14), cum)
    total += put_px(target + load_i64(form + _FORM.tag6), average)
    if index == TRADE:
        total += put_qty(target + load_i64(form + _FORM.tag32), load_i64(report + _REPORT.last_qty))
        total += put_px(target + load_i64(form + _FORM.tag31), load_i64(report + _REPORT.last_px))
    elif index == CANCELLED:
        total += copy_id(target + load_i64(form + _FORM.tag41), report + _REPORT.orig_cl_ord_id)
    elif index == REJECTED:
        total += put_pair(target + load_i64(form + _FORM.tag103), reason)
    return _finish(target, template, total)


@kernel
def encode_cancel_reject(codec: int, target: int, report: int, seq: int, now_ns: int) -> int:
    """Write the OrderCancelReject of a REPORT record; order_id 0 is OrderID NONE (unknown order).

    As encode_new_order.
    """
    order_id, reason = load_i64(report + _REPORT.order_id), load_u8(report + _REPORT.reason)
    if reason > 99:
        return DOES_NOT_FIT
    index = CANCEL_REJECT if order_id else CANCEL_REJECT_UNKNOWN
    template = _template(codec, 0, index, seq, now_ns)
    if template < 0:
        return template
    form = _form(codec, index)
    total = _start(codec, target, template, form, seq, now_ns)
    if order_id:
        total += put_id(target + load_i64(form + _FORM.tag37), load_i64(codec + _CODEC.epoch), order_id)
    total += copy_id(target + load_i64(form + _FORM.tag11), report + _REPORT.cl_ord_id)
    total += copy_id(target + load_i64(form + _FORM.tag41), report + _REPORT.orig_cl_ord_id)
    total += put_char(target + load_i64(form + _FORM.tag39), load_u8(report + _REPORT.ord_status))
    total += put_pair(target + load_i64(form + _FORM.tag102), reason)
    return _finish(target, template, total)
