"""Fixed-width text in registers: decimal digits, base-32 identifiers, UTC timestamps.

Eight characters are made at once, each in its own byte of one int64 (SWAR), and stored with one
instruction.  Division is a multiplication and a shift (Python's `//` also minds the sign) that is exact for
the range at hand.  By 10: 103 / 2**10 below 100.  By 100: 10486 / 2**20 below 10**4.  By 10**3: 1099511628 /
2**40 below 10**9.  By 10**4: 109951163 / 2**40 below 10**8; a sixteenth of it by 625: 1759218605 / 2**40
below 10**10.  By 10**8: 1441151881 / 2**57 below 10**9.
Each `put_` returns the sum of the bytes it has written, for CheckSum(10): they stand in a register still,
while reading a message back that was written in pieces waits for its stores.
Nobody here checks a range: that happens once, at the door (template.py).  No sum and no product leaves
int64 on the way: Numba compiles them as "no signed wrap", so an overflow is not a wrong digit but undefined.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.tags import ID_SIZE, SOH
from ringbuf.atomics import load_relaxed, store_relaxed
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    load_i64,
    load_u8,
    load_u32,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
    wrapping_multiply,
)
from ringbuf.records import record

SECOND_NS: Final = 1_000_000_000
DAY_S: Final = 86_400
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUV"  # RFC 4648 base32hex: order of text = order of numbers

STAMP_SIZES: Final = {0: 17, 3: 21, 6: 24, 9: 27}  # timestamp_digits -> width of 52 and 60
STAMP = record(
    "STAMP",
    """
    i8  second_ns  start of the second that the text shows; SECOND_NEVER = none
    i8  day        its day since 1970-01-01
    i8  sum        sum of the first 16 bytes of the text
    i8  now_ns     the time that the second was rendered for
    32u1 text      YYYYMMDD-HH:MM:SS.fffffffff as set last
    """,
)
SECOND_NEVER: Final = -(1 << 62)

_STAMP = STAMP.at
_DOT: Final = ord(".")
_ZERO: Final = ord("0")
_ZEROS: Final = _ZERO * 0x0101010101010101
_LAST_AT: Final = 16  # of the text of a STAMP: last digit of the second, dot, six digits


@inlined
def _lanes(word: int) -> int:
    """Add the eight bytes of a word in pairs: four 16-bit lanes, which may be summed over 32 words."""
    return (word & 0x00FF00FF00FF00FF) + ((word >> 8) & 0x00FF00FF00FF00FF)


@inlined
def _fold(lanes: int) -> int:
    """Return the sum of four lanes, which is below 65536."""
    return (wrapping_multiply(lanes, 0x0001000100010001) >> 48) & 0xFFFF


@inlined
def _sum_of_digits(values: int) -> int:
    """Return the sum of eight bytes of 0-9."""
    return (values * 0x0101010101010101) >> 56


@inlined
def digits4(value: int) -> int:
    """Return four digits as four bytes of text; 0 <= value < 10**4."""
    hundreds = (value * 10_486) >> 20
    pairs = (value << 16) + hundreds * (1 - (100 << 16))
    tens = ((pairs * 103) >> 10) & 0x000F000F
    return (pairs << 8) + tens * (1 - (10 << 8)) + 0x30303030


@inlined
def values8(value: int) -> int:
    """Return eight digits as eight bytes of 0-9, first digit in the lowest byte; 0 <= value < 10**8.

    Each step splits its lanes in two, quotient | rest << width: in one product, since the rest is
    lane - divisor x quotient.
    """
    high = (value * 109_951_163) >> 40
    fours = (value << 32) + high * (1 - (10_000 << 32))
    hundreds = ((fours * 10_486) >> 20) & 0x0000007F0000007F
    pairs = (fours << 16) + hundreds * (1 - (100 << 16))
    tens = ((pairs * 103) >> 10) & 0x000F000F000F000F
    return (pairs << 8) + tens * (1 - (10 << 8))


@inlined
def digits8(value: int) -> int:
    """Return eight digits as eight bytes of text, first digit in the lowest byte; 0 <= value < 10**8."""
    return values8(value) + _ZEROS


@inlined
def put_qty(at: int, value: int) -> int:
    """Write 7 digits in front of the SOH that follows them; 0 <= value < 10**7."""
    values = values8(value)
    store_i64(at, (values >> 8) + ((_ZEROS >> 8) | (SOH << 56)))
    return _sum_of_digits(values) + 7 * _ZERO


@inlined
def put_px(at: int, px: int) -> int:
    """Write 6 digits, a dot and 4 digits; 0 <= px < 10**10 in 1/10,000."""
    whole = ((px >> 4) * 1_759_218_605) >> 40
    values, fraction = values8(whole), digits4(px - whole * 10_000)
    store_i64(at, (values >> 16) + ((_ZEROS >> 16) | (_DOT << 48)) + ((fraction & 0xFF) << 56))
    store_u32(at + 7, fraction)
    return _sum_of_digits(values) + 6 * _ZERO + _DOT + _fold(_lanes(fraction))


@inlined
def put_seq(at: int, value: int) -> int:
    """Write 9 digits; 0 <= value < 10**9."""
    first = (value * 1_441_151_881) >> 57
    values = values8(value - first * 100_000_000)
    store_u8(at, first + _ZERO)
    store_i64(at + 1, values + _ZEROS)
    return first + _sum_of_digits(values) + 9 * _ZERO


@inlined
def put_pair(at: int, value: int) -> int:
    """Write 2 digits; 0 <= value < 100."""
    digits = digits4(value) >> 16
    store_u16(at, digits)
    return (digits & 0xFF) + (digits >> 8)


@inlined
def put_char(at: int, char: int) -> int:
    """Write one byte."""
    store_u8(at, char)
    return char


@inlined
def base32(high: int, low: int) -> int:
    """Return the low 20 bits of both as four base-32 characters each, highest digit in the lowest byte."""
    twenties = (high & 0xFFFFF) | ((low & 0xFFFFF) << 32)
    tens = ((twenties >> 10) & 0x000003FF000003FF) | ((twenties & 0x000003FF000003FF) << 16)
    fives = ((tens >> 5) & 0x001F001F001F001F) | ((tens & 0x001F001F001F001F) << 8)
    letters = ((fives + 0x3636363636363636) >> 6) & 0x0101010101010101  # 1 where the digit is 10 or more
    return fives + 0x3030303030303030 + letters * 7


@inlined
def unbase32(text: int) -> int:
    """Return the 40 bits that eight base-32 characters stand for; nonsense for other characters."""
    letters = (text >> 6) & 0x0101010101010101
    fives = (text & 0x1F1F1F1F1F1F1F1F) + letters * 25 - 0x1010101010101010  # "0" is 0x30, "A" is 0x41
    tens = ((fives & 0x001F001F001F001F) << 5) | ((fives >> 8) & 0x001F001F001F001F)
    twenties = ((tens & 0x000003FF000003FF) << 10) | ((tens >> 16) & 0x000003FF000003FF)
    return ((twenties & 0xFFFFF) << 20) | ((twenties >> 32) & 0xFFFFF)


@inlined
def _put_words(at: int, first: int, second: int) -> int:
    store_i64(at, first)
    store_i64(at + ID_SIZE // 2, second)
    return _fold(_lanes(first) + _lanes(second))


@inlined
def put_id(at: int, epoch: int, number: int) -> int:
    """Write 16 characters: 4 for the run epoch (20 bits), 12 for number (60 bits)."""
    return _put_words(at, base32(epoch, number >> 40), base32(number >> 20, number))


@inlined
def copy_id(at: int, source: int) -> int:
    """Write the 16 characters at source."""
    return _put_words(at, load_i64(source), load_i64(source + ID_SIZE // 2))


@inlined
def id_number(at: int) -> int:
    """Return the 60-bit number of the 16 characters at `at`; the caller compares the text afterwards."""
    return ((unbase32(load_i64(at)) & 0xFFFFF) << 40) | unbase32(load_i64(at + ID_SIZE // 2))


@inlined
def byte_sum(buf: int, size: int) -> int:
    """Return the sum of size >= 8 bytes, modulo 65536 (FIX takes it modulo 256).

    Eight bytes a step in four 16-bit lanes; lanes are folded every 256 bytes, before their sum can overflow.
    """
    total, at, end = 0, buf, buf + size - 8
    while at <= end:
        stop = min(end, at + 248)
        lanes = 0
        while at <= stop:
            lanes += _lanes(load_i64(at))
            at += 8
        total += _fold(lanes)
    rest = end + 8 - at
    if rest > 0:  # the last 1-7 bytes: load the last eight, drop those already counted
        total += _fold(_lanes(((load_i64(end) >> 8) & 0x00FFFFFFFFFFFFFF) >> (56 - 8 * rest)))
    return total & 0xFFFF


@inlined
def days_of_date(year: int, month: int, day: int) -> int:
    """Return days since 1970-01-01 of a Gregorian date, year >= 1970 (March-based years, no table)."""
    shifted = year - (month <= 2)
    era_year = shifted % 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = era_year * 365 + era_year // 4 - era_year // 100 + day_of_year
    return (shifted // 400) * 146_097 + day_of_era - 719_468


@kernel
def date_of_days(days: int) -> int:
    """Return year * 10,000 + month * 100 + day of `days` >= 0 since 1970-01-01."""
    shifted = days + 719_468
    era = shifted // 146_097
    day_of_era = shifted - era * 146_097
    era_year = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * era_year + era_year // 4 - era_year // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + (3 if shifted_month < 10 else -9)
    year = era_year + era * 400 + (month <= 2)
    return year * 10_000 + month * 100 + day


@kernel
def render_second(stamp: int) -> int:
    """Write the second of STAMP.now_ns >= 0 into stamp (the date only when the day changes); return its rest.

    The time comes through memory: from an argument the compiler would work out date and clock ahead, for
    every message of its caller's loop, since nothing but the stores must wait for the new second.
    """
    now_ns = load_relaxed(stamp + _STAMP.now_ns)
    second = now_ns // SECOND_NS
    day = second // DAY_S
    of_day = second - day * DAY_S
    text = stamp + _STAMP.text
    if day != load_i64(stamp + _STAMP.day) or load_i64(stamp + _STAMP.second_ns) == SECOND_NEVER:
        store_i64(text, digits8(date_of_days(day)))
        store_u8(text + 8, ord("-"))
        store_i64(stamp + _STAMP.day, day)
    clock = of_day // 3600 * 10_000 + of_day // 60 % 60 * 100 + of_day % 60
    digits = digits8(clock)  # 00HHMMSS
    store_u16(text + 9, digits >> 16)
    store_u8(text + 11, ord(":"))
    store_u16(text + 12, digits >> 32)
    store_u8(text + 14, ord(":"))
    store_u16(text + 15, digits >> 48)
    store_i64(stamp + _STAMP.sum, _fold(_lanes(load_i64(text)) + _lanes(load_i64(text + 8))))
    store_i64(stamp + _STAMP.second_ns, second * SECOND_NS)
    return now_ns - second * SECOND_NS


@inlined
def _since_second(stamp: int, now_ns: int) -> int:
    """Bring stamp to the second of now_ns >= 0; return the nanoseconds since it began."""
    rest = now_ns - load_i64(stamp + _STAMP.second_ns)
    if rest < 0 or rest >= SECOND_NS:
        store_relaxed(stamp + _STAMP.now_ns, now_ns)
        rest = render_second(stamp)
    return rest


@inlined
def set_stamp(stamp: int, now_ns: int, digits: int) -> int:
    """Bring the text of stamp to now_ns >= 0, with 0, 3, 6 or 9 digits of the fraction (cut, not rounded).

    Returns the sum of its bytes.
    """
    fraction_ns, text = _since_second(stamp, now_ns), stamp + _STAMP.text
    micros = (fraction_ns * 1_099_511_628) >> 40
    last = load_u8(text + _LAST_AT) + (_DOT << 8) + values8(micros) + (_ZEROS >> 16 << 16)
    if digits == 3:
        last &= 0xFFFFFFFFFF
    elif digits == 0:
        last &= 0xFF
    store_i64(text + _LAST_AT, last)
    total = load_i64(stamp + _STAMP.sum) + _fold(_lanes(last))
    if digits == 9:
        nanos = digits4(fraction_ns - micros * 1000) >> 8
        store_u32(text + _LAST_AT + 8, nanos)
        total += _fold(_lanes(nanos))
    return total


@inlined
def put_stamp(at: int, stamp: int, digits: int) -> None:
    """Write the text of stamp, as set_stamp() has set it for as many digits."""
    text = stamp + _STAMP.text
    store_i64(at, load_i64(text))
    store_i64(at + 8, load_i64(text + 8))
    last = load_i64(text + _LAST_AT)
    if digits >= 6:
        store_i64(at + _LAST_AT, last)
    else:
        store_u8(at + _LAST_AT, last)
    if digits == 3:
        store_u32(at + _LAST_AT + 1, last >> 8)
    elif digits == 9:
        nanos = load_u32(text + _LAST_AT + 8)
        store_u16(at + _LAST_AT + 8, nanos)
        store_u8(at + _LAST_AT + 10, nanos >> 16)


@inlined
def put_check_sum(at: int, total: int) -> None:
    """Write the three digits of CheckSum(10) and the SOH that ends a message."""
    store_u32(at, (digits4(total & 0xFF) >> 8) | (SOH << 24))


@inlined
def check_digits(target: int, size: int) -> None:
    """Write the CheckSum(10) of a whole message into its last four bytes."""
    put_check_sum(target + size - 4, byte_sum(target, size - 7))
