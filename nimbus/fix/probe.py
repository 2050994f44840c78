"""Kernels that repeat one FIX step, for `contrafusion bench` and bench/: no call from Python inside."""

from __future__ import annotations

from nimbus.fix import tags
from nimbus.fix.parse import FIELDS, find, parse, to_char, to_px, to_qty, value_at
from nimbus.fix.template import encode_new_order
from nimbus.messages import ORDER, WIRE
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, load_u8, store_i64

_ORDER, _WIRE, _FIELDS = ORDER.at, WIRE.at, FIELDS.at
_WIRE_SIZE = WIRE.size


@kernel
def encode_many(codec: int, target: int, order: int, now_ns: int, count: int) -> int:
    """Encode `count` NewOrderSingle, each with its own number, quantity, price, ClOrdID and time.

    Returns the sum of the sizes and of the last checksum digits, or the first refusal.
    """
    total = 0
    first = load_i64(order + _ORDER.cl_ord_id + 8)
    for index in range(count):
        store_i64(order + _ORDER.qty, 100 + index % 900)
        store_i64(order + _ORDER.px, 1_015_000 + index % 5000)
        store_i64(order + _ORDER.cl_ord_id + 8, first + index % 8)
        size = encode_new_order(codec, target, order, 1 + index, now_ns + 7_013 * index)
        if size < 0:
            return size
        total += size + load_u8(target + size - 2)
    return total


@kernel
def parse_many(messages: int, distinct: int, fields: int, count: int) -> int:
    """Parse `count` messages, in turn from `distinct` WIRE records; read 11, 32, 31 and 39 of each.

    Returns the sum of what was read (only lengths of 11), or the first refusal.
    """
    total, at, end = 0, messages, messages + distinct * _WIRE_SIZE
    for _ in range(count):
        status = parse(at + _WIRE.bytes, load_i64(at + _WIRE.size) & 0xFFFFFFFF, fields)
        if status < 0:
            return status
        found = find(fields, tags.CL_ORD_ID)
        qty, px = to_qty(fields, tags.LAST_QTY), to_px(fields, tags.LAST_PX)
        if found < 0 or qty < 0 or px < 0:
            return min(found, qty, px)
        total += qty + px + to_char(fields, tags.ORD_STATUS) + load_u8(value_at(fields, found))
        total += load_i64(fields + _FIELDS.count)
        at += _WIRE_SIZE
        if at == end:
            at = messages
    return total
