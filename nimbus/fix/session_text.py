"""Encode session messages in the kernel that owns the outgoing number: minimal widths, milliseconds.

The control loop gives type and body of a message; number, time, length and checksum are put on here, when it
leaves.  The text is made in a scratch area: first what BodyLength(9) counts, then the head in front of it.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.digits import STAMP, check_digits, put_stamp, set_stamp
from nimbus.messages import SESSION_BYTES_MAX, SESSION_OUT
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, load_u32, store_u8, store_u16, store_u32
from ringbuf.records import record

SESSION_DIGITS: Final = 3  # of the second's fraction
STAMP_SIZE: Final = 21
HEAD_MAX: Final = 64  # 8= and 9= in front of what BodyLength counts
COMP_TEXT_MAX: Final = 96
TEXT_MAX: Final = HEAD_MAX + 3 * COMP_TEXT_MAX + 2 * STAMP_SIZE + SESSION_BYTES_MAX + 128

LABELS = record(
    "LABELS",
    f"""
    i8  begin_size   bytes of begin
    i8  sender_size  bytes of sender
    i8  target_size  bytes of target
    5i8 pad          zero
    32u1 begin       "8=FIX.4.4|9="
    {COMP_TEXT_MAX}u1 sender  "|49=SENDER|52="
    {COMP_TEXT_MAX}u1 target  "|56=TARGET|"
    32u1 pad2        zero
    {STAMP.size}u1 stamp  the STAMP of these messages
    """,
)
_LABELS, _OUT = LABELS.at, SESSION_OUT.at
_35, _34, _43, _36 = 0x3D3533, 0x3D3433, 0x3D3334, 0x3D3633  # "35=" and so on, as words
_SOH: Final = 1
_ORIG_TIME_SIZE: Final = 4  # 122=


@inlined
def put_number(at: int, value: int) -> int:
    """Write value >= 0 with as many digits as it needs (at most 10); return how many."""
    size, limit = 1, 10
    while value >= limit and size < 10:
        size += 1
        limit *= 10
    for index in range(size - 1, -1, -1):
        store_u8(at + index, ord("0") + value % 10)
        value //= 10
    return size


@inlined
def _put_field(at: int, tag: int, value: int) -> int:
    """Write a two-digit tag (as text with its =), a number and SOH; return where the next field begins."""
    store_u16(at, tag)
    store_u8(at + 2, tag >> 16)
    at += 3
    at += put_number(at, value)
    store_u8(at, _SOH)
    return at + 1


@inlined
def _put_text(at: int, text: int, size: int) -> int:
    copy(at, text, size)
    return at + size


@inlined
def _put_type(at: int, msg_type: int) -> int:
    store_u16(at, _35)
    store_u8(at + 2, _35 >> 16)
    store_u16(at + 3, msg_type)
    return at + (5 if msg_type > 0xFF else 4)


@kernel
def encode_session(target: int, labels: int, out: int, seq: int, new_seq: int, now_ns: int) -> int:
    """Write the message of a SESSION_OUT record into the scratch area `target` of TEXT_MAX bytes.

    seq: its MsgSeqNum.  new_seq: 0, or NewSeqNo of a GapFill, which is sent with 43=Y and 122 = 52.
    Returns offset << 32 | size of the message in the area.
    """
    inner = target + HEAD_MAX
    stamp = labels + _LABELS.stamp
    set_stamp(stamp, now_ns, SESSION_DIGITS)
    at = _put_type(inner, load_u32(out + _OUT.msg_type))
    store_u8(at, _SOH)
    at = _put_field(at + 1, _34, seq)
    if new_seq:
        store_u32(at, _43 | ord("Y") << 24)
        at += 4
    else:
        at -= 1  # the label of 49 begins with SOH
    text_size = load_i64(labels + _LABELS.sender_size)
    at = _put_text(at, labels + _LABELS.sender, text_size)
    put_stamp(at, stamp, SESSION_DIGITS)
    time_at = at
    at = _put_text(at + STAMP_SIZE, labels + _LABELS.target, load_i64(labels + _LABELS.target_size))
    if new_seq:
        store_u32(at, 0x3D323231)  # 122=
        at = _put_text(at + _ORIG_TIME_SIZE, time_at, STAMP_SIZE)
        store_u8(at, _SOH)
        at = _put_field(at + 1, _36, new_seq)
    body_size = min(load_u32(out + _OUT.size), SESSION_BYTES_MAX)
    at = _put_text(at, out + _OUT.body, body_size)
    length = at - inner
    digits = 1 + (length > 9) + (length > 99) + (length > 999)
    begin_size = load_i64(labels + _LABELS.begin_size)
    head = inner - begin_size - digits - 1
    copy(head, labels + _LABELS.begin, begin_size)
    put_number(head + begin_size, length)
    store_u8(inner - 1, _SOH)
    store_u32(at, 0x303D3031)  # 10=0
    store_u16(at + 4, 0x3030)
    store_u8(at + 6, _SOH)
    size = at + 7 - head
    check_digits(head, size)
    return (head - target) << 32 | size
