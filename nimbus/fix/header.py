"""Read the header of a framed FIX message and judge it, as kernels: the same answers as classify.py.

The first of two equal tags counts.  All fields are looked at, so a header that is out of order costs nobody
an execution.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix import tags
from nimbus.fix.parse import soh_at, utc_ns
from nimbus.fix.table import Event
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, store_i64
from ringbuf.records import record

COMP_ID_MAX: Final = 64
NO_SEQ: Final = -1
NO_TYPE: Final = -1

PEER = record(
    "PEER",
    f"""
    i8  begin_size   bytes of begin_string
    i8  sender_size  bytes of sender
    i8  target_size  bytes of target
    i8  time_limit_ns  how far SendingTime(52) may be off
    8u1 begin_string BeginString(8) of its messages
    24u1 pad         zero
    {COMP_ID_MAX}u1 sender  its SenderCompID(49)
    {COMP_ID_MAX}u1 target  its TargetCompID(56): ours
    """,
)
HEADER = record(
    "HEADER",
    """
    i8  msg_type    first character + 256 x second; NO_TYPE = not one or two letters or digits
    i8  seq         MsgSeqNum(34), NO_SEQ = absent or unreadable
    i8  sent_ns     SendingTime(52), below zero = absent or unreadable
    i8  original_ns OrigSendingTime(122), below zero = unreadable
    i8  new_seq     NewSeqNo(36), NO_SEQ = absent or unreadable
    i8  found       FOUND_* bits: tags that were there
    i8  right       RIGHT_* bits: what is as agreed
    i8  pad         zero
    """,
)
FOUND_SEQ, FOUND_TIME, FOUND_ORIGINAL, FOUND_NEW, FOUND_SENDER, FOUND_TARGET = 1, 2, 4, 8, 16, 32
FOUND_DUP, FOUND_FILL = 64, 128
RIGHT_BEGIN, RIGHT_SENDER, RIGHT_TARGET, IS_DUP, IS_FILL = 1, 2, 4, 8, 16

_PEER, _HEADER = PEER.at, HEADER.at
_RIGHT_ALL_IDS: Final = RIGHT_SENDER | RIGHT_TARGET
_YES: Final = ord("Y")
_DIGITS_MAX: Final = 9
_LOGON, _RESEND_REQUEST, _SEQUENCE_RESET, _LOGOUT = ord("A"), ord("2"), ord("4"), ord("5")
_HEARTBEAT, _TEST_REQUEST = ord("0"), ord("1")
_REPORT, _CANCEL_REJECT = ord("8"), ord("9")

BAD_BEGIN_STRING: Final = int(Event.BAD_BEGIN_STRING)
NO_NUMBER: Final = int(Event.NO_NUMBER)
BAD_COMP_ID: Final = int(Event.BAD_COMP_ID)
BAD_TIME: Final = int(Event.BAD_TIME)
BAD_TIME_TAKEN: Final = int(Event.BAD_TIME_TAKEN)
BAD_MSG_TYPE: Final = int(Event.BAD_MSG_TYPE)
NO_ORIG_TIME: Final = int(Event.NO_ORIG_TIME)
LATE_ORIG_TIME: Final = int(Event.LATE_ORIG_TIME)
RESET: Final = int(Event.RESET)
RESET_LOW: Final = int(Event.RESET_LOW)
SEEN: Final = int(Event.SEEN)
TOO_LOW: Final = int(Event.TOO_LOW)
TOO_HIGH: Final = int(Event.TOO_HIGH)
LOGON: Final = int(Event.LOGON)
LOGON_HIGH: Final = int(Event.LOGON_HIGH)
LOGON_LOW: Final = int(Event.LOGON_LOW)
LOGOUT: Final = int(Event.LOGOUT)
RESEND_REQUEST: Final = int(Event.RESEND_REQUEST)
RESEND_REQUEST_HIGH: Final = int(Event.RESEND_REQUEST_HIGH)
GAP_FILL: Final = int(Event.GAP_FILL)
HEARTBEAT: Final = int(Event.HEARTBEAT)
TEST_REQUEST: Final = int(Event.TEST_REQUEST)
APPLICATION: Final = int(Event.APPLICATION)


@inlined
def _equal(at: int, size: int, text: int, text_size: int) -> bool:
    if size != text_size:
        return False
    index = 0
    while index < size and load_u8(at + index) == load_u8(text + index):  # text_size <= COMP_ID_MAX
        index += 1
    return index == size


@inlined
def _number(at: int, size: int) -> int:
    """Return the value of 1 to 9 digits, or NO_SEQ."""
    if size < 1 or size > _DIGITS_MAX:
        return NO_SEQ
    value = 0
    for index in range(size):
        digit = load_u8(at + index) - ord("0")
        if digit < 0 or digit > 9:
            return NO_SEQ
        value = 10 * value + digit
    return value


@inlined
def _is_alphanumeric(character: int) -> bool:
    folded = character | 0x20
    return ord("0") <= character <= ord("9") or ord("a") <= folded <= ord("z")


@inlined
def _msg_type(at: int, size: int) -> int:
    if size == 1 and _is_alphanumeric(load_u8(at)):
        return load_u8(at)
    if size == 2 and _is_alphanumeric(load_u8(at)) and _is_alphanumeric(load_u8(at + 1)):
        return load_u16(at)
    return NO_TYPE


@inlined
def _take_field(tag: int, at: int, size: int, header: int, peer: int) -> None:
    """Note one field, unless its tag was there before."""
    found, right = load_i64(header + _HEADER.found), load_i64(header + _HEADER.right)
    bit, good = 0, 0
    if tag == tags.MSG_SEQ_NUM:
        bit = FOUND_SEQ
        if found & bit == 0:
            store_i64(header + _HEADER.seq, _number(at, size))
    elif tag == tags.SENDER_COMP_ID:
        bit = FOUND_SENDER
        if _equal(at, size, peer + _PEER.sender, load_i64(peer + _PEER.sender_size)):
            good = RIGHT_SENDER
    elif tag == tags.TARGET_COMP_ID:
        bit = FOUND_TARGET
        if _equal(at, size, peer + _PEER.target, load_i64(peer + _PEER.target_size)):
            good = RIGHT_TARGET
    elif tag == tags.SENDING_TIME:
        bit = FOUND_TIME
        if found & bit == 0:
            store_i64(header + _HEADER.sent_ns, utc_ns(at, size))
    elif tag == tags.ORIG_SENDING_TIME:
        bit = FOUND_ORIGINAL
        if found & bit == 0:
            store_i64(header + _HEADER.original_ns, utc_ns(at, size))
    elif tag == tags.NEW_SEQ_NO:
        bit = FOUND_NEW
        if found & bit == 0:
            store_i64(header + _HEADER.new_seq, _number(at, size))
    elif tag == tags.POSS_DUP_FLAG:
        bit = FOUND_DUP
        if size == 1 and load_u8(at) == _YES:
            good = IS_DUP
    elif tag == tags.GAP_FILL_FLAG:
        bit = FOUND_FILL
        if size == 1 and load_u8(at) == _YES:
            good = IS_FILL
    if bit and found & bit == 0:
        store_i64(header + _HEADER.found, found | bit)
        store_i64(header + _HEADER.right, right | good)


@kernel
def read_header(at: int, size: int, header: int, peer: int) -> None:
    """Fill the HEADER record of the message at[:size] that cut() has found whole; nothing outside is read."""
    store_i64(header + _HEADER.seq, NO_SEQ)
    store_i64(header + _HEADER.new_seq, NO_SEQ)
    store_i64(header + _HEADER.sent_ns, -1)
    store_i64(header + _HEADER.original_ns, -1)
    store_i64(header + _HEADER.found, 0)
    stop = soh_at(at + 2)
    is_right = _equal(at + 2, stop - at - 2, peer + _PEER.begin_string, load_i64(peer + _PEER.begin_size))
    store_i64(header + _HEADER.right, RIGHT_BEGIN if is_right else 0)
    here, end = soh_at(stop + 1) + 1, at + size - 7
    stop = soh_at(here)
    store_i64(header + _HEADER.msg_type, _msg_type(here + 3, stop - here - 3))
    here = stop + 1
    while here < end:
        stop, tag, value = soh_at(here), 0, here
        while value < stop and value - here < _DIGITS_MAX and load_u8(value) != ord("="):
            digit = load_u8(value) - ord("0")
            if digit < 0 or digit > 9:
                break
            tag = 10 * tag + digit
            value += 1
        if value < stop and load_u8(value) == ord("=") and value > here:
            _take_field(tag, value + 1, stop - value - 1, header, peer)
        here = stop + 1


@inlined
def _below(header: int, kind: int) -> int:
    """Judge a number that was used before; see classify.py."""
    if load_i64(header + _HEADER.right) & IS_DUP == 0:
        if kind == _LOGON:
            return LOGON_LOW
        if kind == _RESEND_REQUEST:
            return RESEND_REQUEST
        return LOGOUT if kind == _LOGOUT else TOO_LOW
    if kind == _SEQUENCE_RESET:
        return SEEN
    if load_i64(header + _HEADER.found) & FOUND_ORIGINAL == 0:
        return NO_ORIG_TIME
    is_late = load_i64(header + _HEADER.original_ns) > load_i64(header + _HEADER.sent_ns)
    return LATE_ORIG_TIME if is_late else SEEN


@inlined
def _above(kind: int) -> int:
    if kind == _LOGON:
        return LOGON_HIGH
    if kind == _RESEND_REQUEST:
        return RESEND_REQUEST_HIGH
    return LOGOUT if kind == _LOGOUT else TOO_HIGH


@inlined
def _in_order(kind: int) -> int:
    if kind == NO_TYPE:
        return BAD_MSG_TYPE
    if kind == _LOGON:
        return LOGON
    if kind == _HEARTBEAT:
        return HEARTBEAT
    if kind == _TEST_REQUEST:
        return TEST_REQUEST
    if kind == _RESEND_REQUEST:
        return RESEND_REQUEST
    if kind == _LOGOUT:
        return LOGOUT
    return GAP_FILL if kind == _SEQUENCE_RESET else APPLICATION


@kernel
def judge(header: int, peer: int, expected: int, now_ns: int) -> int:
    """Return the Event that a message is, from its HEADER; expected: its number should be this one."""
    kind, seq = load_i64(header + _HEADER.msg_type), load_i64(header + _HEADER.seq)
    right, sent_ns = load_i64(header + _HEADER.right), load_i64(header + _HEADER.sent_ns)
    if right & RIGHT_BEGIN == 0:
        return BAD_BEGIN_STRING
    if seq == NO_SEQ:
        return NO_NUMBER
    if right & _RIGHT_ALL_IDS != _RIGHT_ALL_IDS:
        return BAD_COMP_ID
    limit_ns = load_i64(peer + _PEER.time_limit_ns)
    if sent_ns < 0 or now_ns - sent_ns > limit_ns or sent_ns - now_ns > limit_ns:
        return BAD_TIME_TAKEN if (kind == _REPORT or kind == _CANCEL_REJECT) and seq == expected else BAD_TIME
    if kind == _SEQUENCE_RESET and right & IS_FILL == 0:
        return RESET if load_i64(header + _HEADER.new_seq) >= expected else RESET_LOW
    if seq < expected:
        return _below(header, kind)
    if seq > expected:
        return _above(kind)
    if kind == _SEQUENCE_RESET and load_i64(header + _HEADER.new_seq) < expected:
        return RESET_LOW
    return _in_order(kind)
