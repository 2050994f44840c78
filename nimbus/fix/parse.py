"""Parse one FIX message into a tag table, and read its values as exact integers.

The door checks everything before a value is used: size, 8 and 9 and 35 first, BodyLength, CheckSum, that
each field is digits, "=", value, SOH.  Tags we know are recorded (a second occurrence refuses the message,
a repeated group would need its own reader); all others are counted and skipped, never a reason to lose an
execution (S37).  Departure from the standard: raw data fields, whose value may hold SOH, are not known, so
such a message is refused as BAD_TAG.

The table has one word per tag: the number of the message that set it (31 bits), where the value begins (16)
and its size (16).  A word of an older message does not count, so nothing is cleared between messages.
Reading eight bytes at any position of the body is safe: seven bytes of trailer follow the body.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.digits import DAY_S, SECOND_NS, byte_sum, days_of_date
from nimbus.fix.tags import (
    BAD_BEGIN_STRING,
    BAD_BODY_LENGTH,
    BAD_CHECK_SUM,
    BAD_MSG_TYPE,
    BAD_NUMBER,
    BAD_SIZE,
    BAD_TAG,
    BAD_TIME,
    BAD_TRAILER,
    BEGIN_STRING,
    BODY_LENGTH,
    CHECK_SUM,
    DUPLICATE_TAG,
    KNOWN,
    MISSING,
    MSG_TYPE,
    OK,
    OUT_OF_RANGE,
    PX_MAX,
    QTY_MAX,
    SOH,
    TAGS_MAX,
    TOO_FINE,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import byte_marks, load_i64, load_u8, load_u16, load_u32, store_i64, trailing_zeros
from ringbuf.records import record
from ringbuf.segment import Segment

MESSAGE_SIZE_MIN: Final = len("8=FIX.4.4|9=5|35=0|10=000|")
MESSAGE_SIZE_MAX: Final = 4_096
BEGIN_STRING_MAX: Final = 8  # FIXT.1.1
DIGITS_MAX: Final = 18  # of an integer: it always fits int64
FRACTION_MAX: Final = 12  # digits after the dot of a decimal; only the first four may be other than 0

FIELDS = record(
    "FIELDS",
    f"""
    i8  generation  number of the message in the table, 31 bits, from 1
    i8  buf         address of its first byte
    i8  size        its bytes
    i8  count       its fields
    i8  unknown     those among them whose tag is not in tags.KNOWN
    i8  msg_type    MsgType(35): first character + 256 x second
    2i8 pad         zero
    {TAGS_MAX}i8 entries  by tag: generation << 32 | at << 16 | size; -1 = tag not known
    """,
)

_FIELDS = FIELDS.at
_ENTRIES: Final = FIELDS.at.entries
_EQUALS, _DOT, _ZERO = ord("="), ord("."), ord("0")
_GENERATION_MAX: Final = (1 << 31) - 1
_YEAR_MIN, _YEAR_MAX = 1970, 2199


def create_fields(segment: Segment, name: str) -> int:
    """Allocate an empty tag table; return its address."""
    addr = segment.allocate(name, FIELDS.size)
    entries = segment.array(name, FIELDS)[0]["entries"]
    entries[:] = -1
    entries[list(KNOWN)] = 0
    return addr


@inlined
def _next_generation(fields: int) -> int:
    """Give the message a number; every 2**31 messages the table is cleared, so no old word comes to life."""
    generation = load_i64(fields + _FIELDS.generation) + 1
    if generation > _GENERATION_MAX:
        generation = 1
        for tag in range(TAGS_MAX):
            if load_i64(fields + _ENTRIES + 8 * tag) > 0:
                store_i64(fields + _ENTRIES + 8 * tag, 0)
    store_i64(fields + _FIELDS.generation, generation)
    return generation


@inlined
def soh_at(at: int) -> int:
    """Return the address of the first SOH from `at` on; one lies within the body, eight bytes can be read."""
    marks = byte_marks(at, SOH)
    while marks == 0:
        at += 8
        marks = byte_marks(at, SOH)
    return at + (trailing_zeros(marks) >> 3)


@inlined
def _is_digit(character: int) -> bool:
    return 0 <= character - _ZERO <= 9


@kernel
def frame(buf: int, size: int) -> int:
    """Check BeginString, BodyLength and trailer of a message; return where its body begins, or a status."""
    if size < MESSAGE_SIZE_MIN or size > MESSAGE_SIZE_MAX:
        return BAD_SIZE
    if load_u32(buf) != 0x49463D38 or load_u8(buf + 4) != ord("X"):  # 8=FIX
        return BAD_BEGIN_STRING
    at = 5
    while at < 2 + BEGIN_STRING_MAX and load_u8(buf + at) != SOH:
        at += 1
    if load_u8(buf + at) != SOH:
        return BAD_BEGIN_STRING
    if load_u16(buf + at + 1) != 0x3D39:  # 9=
        return BAD_BODY_LENGTH
    at += 3
    length, first = 0, at
    while at - first < 9 and _is_digit(load_u8(buf + at)):
        length = 10 * length + load_u8(buf + at) - _ZERO
        at += 1
    if at == first or load_u8(buf + at) != SOH or length != size - 8 - at:
        return BAD_BODY_LENGTH
    trailer = buf + size - 7
    if load_u16(trailer) != 0x3031 or load_u8(trailer + 2) != _EQUALS or load_u8(trailer + 6) != SOH:
        return BAD_TRAILER
    if load_u8(trailer - 1) != SOH:
        return BAD_BODY_LENGTH
    hundreds, tens, ones = load_u8(trailer + 3), load_u8(trailer + 4), load_u8(trailer + 5)
    if not (_is_digit(hundreds) and _is_digit(tens) and _is_digit(ones)):
        return BAD_TRAILER
    if hundreds * 100 + tens * 10 + ones - 111 * _ZERO != byte_sum(buf, size - 7) & 0xFF:
        return BAD_CHECK_SUM
    return at + 1


@inlined
def _record(fields: int, generation: int, tag: int, at: int, size: int) -> None:
    store_i64(fields + _ENTRIES + 8 * tag, (generation << 32) | (at << 16) | size)


@kernel
def parse(buf: int, size: int, fields: int) -> int:
    """Parse the whole message buf[:size] into the tag table.

    Returns OK, or a status below zero; the table then holds nothing of use.  No byte outside is read.
    """
    body = frame(buf, size)
    if body < 0:
        return body
    if load_u16(buf + body) != 0x3533 or load_u8(buf + body + 2) != _EQUALS:  # 35=
        return BAD_MSG_TYPE
    generation = _next_generation(fields)
    entries, here, end = fields + _ENTRIES, buf + body, buf + size - 7
    generation_bits = generation << 32
    count, unknown = 0, 0
    while here < end:
        word = load_i64(here)
        tag = (word & 0xFF) - _ZERO
        if tag < 1 or tag > 9:
            return BAD_TAG
        value, digit = here + 1, (word >> 8) & 0xFF
        for shift in range(16, 48, 8):  # up to five digits
            if digit == _EQUALS:
                break
            if not _is_digit(digit):
                return BAD_TAG
            tag = 10 * tag + digit - _ZERO
            value += 1
            digit = (word >> shift) & 0xFF
        if digit != _EQUALS:
            return BAD_TAG
        value += 1
        stop = soh_at(value)
        count += 1
        entry = -1 if tag >= TAGS_MAX else load_i64(entries + 8 * tag)
        if entry < 0:
            unknown += 1
        elif entry >> 32 == generation:
            return DUPLICATE_TAG
        else:
            store_i64(entries + 8 * tag, generation_bits | ((value - buf) << 16) | (stop - value))
        here = stop + 1
    begin = body - 1
    while load_u8(buf + begin - 1) != _EQUALS:
        begin -= 1
    for tag in (BEGIN_STRING, BODY_LENGTH, CHECK_SUM):
        if load_i64(entries + 8 * tag) >> 32 == generation:
            return DUPLICATE_TAG
    _record(fields, generation, BEGIN_STRING, 2, begin - 5)
    _record(fields, generation, BODY_LENGTH, begin, body - 1 - begin)
    _record(fields, generation, CHECK_SUM, size - 4, 3)
    kind = load_i64(entries + 8 * MSG_TYPE) & 0xFFFF
    if kind not in (1, 2):
        return BAD_MSG_TYPE
    store_i64(fields + _FIELDS.msg_type, load_u16(buf + body + 3) if kind == 2 else load_u8(buf + body + 3))
    store_i64(fields + _FIELDS.buf, buf)
    store_i64(fields + _FIELDS.size, size)
    store_i64(fields + _FIELDS.count, count + 3)
    store_i64(fields + _FIELDS.unknown, unknown)
    return OK


@inlined
def find(fields: int, tag: int) -> int:
    """Return at << 16 | size of the value of a known tag, or MISSING; at counts from the first byte."""
    entry = load_i64(fields + _ENTRIES + 8 * tag)
    if entry >> 32 != load_i64(fields + _FIELDS.generation):
        return MISSING
    return entry & 0xFFFFFFFF


@inlined
def value_at(fields: int, found: int) -> int:
    """Return the address of a value that find() gave."""
    return load_i64(fields + _FIELDS.buf) + (found >> 16)


@inlined
def to_char(fields: int, tag: int) -> int:
    """Return the value of one character as its code, or MISSING or BAD_NUMBER (another size)."""
    found = find(fields, tag)
    if found < 0:
        return found
    return load_u8(value_at(fields, found)) if found & 0xFFFF == 1 else BAD_NUMBER


@inlined
def to_int(fields: int, tag: int) -> int:
    """Return a value of 1 to DIGITS_MAX digits (leading zeros allowed), or a status below zero."""
    found = find(fields, tag)
    if found < 0:
        return found
    at, size, value = value_at(fields, found), found & 0xFFFF, 0
    if size == 0 or size > DIGITS_MAX:
        return BAD_NUMBER
    for index in range(size):
        digit = load_u8(at + index) - _ZERO
        if digit < 0 or digit > 9:
            return BAD_NUMBER
        value = 10 * value + digit
    return value


@kernel
def _decimal(fields: int, tag: int, scale_digits: int) -> int:
    """Return an unsigned decimal times 10**scale_digits (0-4), exactly, or a status below zero."""
    found = find(fields, tag)
    if found < 0:
        return found
    at, size = value_at(fields, found), found & 0xFFFF
    if size == 0 or size > DIGITS_MAX + 1 + FRACTION_MAX:
        return BAD_NUMBER
    value, digits, fraction, dotted = 0, 0, 0, False
    for index in range(size):
        digit = load_u8(at + index) - _ZERO
        if digit == _DOT - _ZERO and not dotted:
            dotted = True
            continue
        if digit < 0 or digit > 9:
            return BAD_NUMBER
        digits += 1
        if dotted:
            fraction += 1
            if fraction > scale_digits:
                if digit:
                    return TOO_FINE
                continue
        value = 10 * value + digit
        if value > PX_MAX:
            return OUT_OF_RANGE
    if digits == 0:
        return BAD_NUMBER
    for _ in range(fraction, scale_digits):
        value *= 10
    return value if value <= PX_MAX else OUT_OF_RANGE


@inlined
def to_px(fields: int, tag: int) -> int:
    """Return a price in 1/10,000, exactly: TOO_FINE when it has more digits than that.

    0 <= px <= PX_MAX, else OUT_OF_RANGE; a sign or an exponent is BAD_NUMBER (FIX has no exponents).
    """
    return _decimal(fields, tag, 4)


@inlined
def to_qty(fields: int, tag: int) -> int:
    """Return a whole quantity ("100", "0000100", "100.00"); TOO_FINE for a fraction; at most QTY_MAX."""
    value = _decimal(fields, tag, 0)
    return value if value <= QTY_MAX else OUT_OF_RANGE


@inlined
def _number(at: int, size: int) -> int:
    """Return the value of size digits, or BAD_TIME."""
    value = 0
    for index in range(size):
        digit = load_u8(at + index) - _ZERO
        if digit < 0 or digit > 9:
            return BAD_TIME
        value = 10 * value + digit
    return value


@kernel
def utc_ns(at: int, size: int) -> int:
    """Return a UTCTimestamp of size bytes as Unix ns, or BAD_TIME (S38).

    0, 3, 6, 9 fraction digits and second 60 are accepted.
    """
    if size not in (17, 21, 24, 27):
        return BAD_TIME
    if load_u8(at + 8) != ord("-") or load_u8(at + 11) != ord(":") or load_u8(at + 14) != ord(":"):
        return BAD_TIME
    year, month, day = _number(at, 4), _number(at + 4, 2), _number(at + 6, 2)
    hour, minute, second = _number(at + 9, 2), _number(at + 12, 2), _number(at + 15, 2)
    if year < _YEAR_MIN or year > _YEAR_MAX or month < 1 or month > 12 or day < 1 or day > 31:
        return BAD_TIME
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 60:
        return BAD_TIME
    days = days_of_date(year, month, day)
    following = days_of_date(year + (month == 12), month % 12 + 1, 1)
    if days >= following:  # 31 June and the like
        return BAD_TIME
    fraction = 0
    if size > 17:
        fraction = _number(at + 18, size - 18)
        if load_u8(at + 17) != _DOT or fraction < 0:
            return BAD_TIME
        for _ in range(size - 18, 9):
            fraction *= 10
    return (days * DAY_S + hour * 3600 + minute * 60 + second) * SECOND_NS + fraction


@kernel
def to_ns(fields: int, tag: int) -> int:
    """Return the UTCTimestamp of a tag as Unix ns, or a status below zero."""
    found = find(fields, tag)
    if found < 0:
        return found
    return utc_ns(value_at(fields, found), found & 0xFFFF)
