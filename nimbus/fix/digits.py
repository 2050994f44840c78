"""Fixed-width text in registers: decimal digits, base-32 identifiers, UTC timestamps.

Eight characters are made at once, each in its own byte of one int64 (SWAR), and stored with one
instruction.  Division by 100 and by 10 inside lanes is a multiplication and a shift that is exact for
the lane's range: 10486 / 2**20 below 10**4, 103 / 2**10 below 100, 109951163 / 2**40 below 10**8.
Nobody here checks a range: that happens once, at the door (template.py).  No sum and no product leaves
int64 on the way: Numba compiles them as "no signed wrap", so an overflow is not a wrong digit but undefined.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.tags import ID_SIZE
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, store_i64, store_u8, store_u16, store_u32
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
    24u1 text      YYYYMMDD-HH:MM:SS of it
    24u1 pad       zero
    """,
)
SECOND_NEVER: Final = -(1 << 62)

_STAMP = STAMP.at
_DOT = ord(".")


@inlined
def digits4(value: int) -> int:
    """Return four digits as four bytes of text; 0 <= value < 10**4."""
    pairs = (value * 10_486) >> 20
    pairs |= (value - 100 * pairs) << 16
    tens = ((pairs * 103) >> 10) & 0x000F000F
    return (tens | ((pairs - 10 * tens) << 8)) + 0x30303030


@inlined
def digits8(value: int) -> int:
    """Return eight digits as eight bytes of text, first digit in the lowest byte; 0 <= value < 10**8."""
    high = (value * 109_951_163) >> 40
    fours = high | ((value - 10_000 * high) << 32)
    hundreds = ((fours * 10_486) >> 20) & 0x0000007F0000007F
    pairs = hundreds | ((fours - 100 * hundreds) << 16)
    tens = ((pairs * 103) >> 10) & 0x000F000F000F000F
    return (tens | ((pairs - 10 * tens) << 8)) + 0x3030303030303030


@inlined
def put_qty(at: int, value: int) -> None:
    """Write 7 digits; 0 <= value < 10**7."""
    text = digits8(value) >> 8
    store_u32(at, text)
    store_u32(at + 3, text >> 24)


@inlined
def put_px(at: int, px: int) -> None:
    """Write 6 digits, a dot and 4 digits; 0 <= px < 10**10 in 1/10,000."""
    whole = px // 10_000
    fraction = digits4(px - whole * 10_000)
    store_i64(at, (digits8(whole) >> 16) & 0xFFFFFFFFFFFF | (_DOT << 48) | ((fraction & 0xFF) << 56))
    store_u32(at + 7, fraction)


@inlined
def put_seq(at: int, value: int) -> None:
    """Write 9 digits; 0 <= value < 10**9."""
    first = value // 100_000_000
    store_u8(at, first + 48)
    store_i64(at + 1, digits8(value - first * 100_000_000))


@inlined
def put_3digits(at: int, value: int) -> None:
    """Write 3 digits; 0 <= value < 1000."""
    text = digits4(value) >> 8
    store_u16(at, text)
    store_u8(at + 2, text >> 16)


@inlined
def base32(value: int) -> int:
    """Return the low 40 bits as eight base-32 characters, highest digit in the lowest byte."""
    twenties = ((value >> 20) & 0xFFFFF) | ((value & 0xFFFFF) << 32)
    tens = ((twenties >> 10) & 0x000003FF000003FF) | ((twenties & 0x000003FF000003FF) << 16)
    fives = ((tens >> 5) & 0x001F001F001F001F) | ((tens & 0x001F001F001F001F) << 8)
    above = fives + 0x0606060606060606
    letters = ((above >> 4) | (above >> 5)) & 0x0101010101010101  # 1 where the digit is 10 or more
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
def put_id(at: int, epoch: int, number: int) -> None:
    """Write 16 characters: 4 for the run epoch (20 bits), 12 for number (60 bits)."""
    store_i64(at, base32((epoch << 20) | (number >> 40)))
    store_i64(at + ID_SIZE // 2, base32(number))


@inlined
def id_number(at: int) -> int:
    """Return the 60-bit number of the 16 characters at `at`; the caller compares the text afterwards."""
    return ((unbase32(load_i64(at)) & 0xFFFFF) << 40) | unbase32(load_i64(at + ID_SIZE // 2))


@inlined
def byte_sum(buf: int, size: int) -> int:
    """Return the sum of size >= 8 bytes, modulo 65536 (FIX takes it modulo 256).

    Eight bytes a step in four 16-bit lanes; lanes are folded every 512 bytes, before one can overflow.
    """
    lanes_mask = 0x00FF00FF00FF00FF
    total, at, end = 0, buf, buf + size - 8
    while at <= end:
        stop = min(end, at + 504)
        lanes = 0
        while at <= stop:
            word = load_i64(at)
            lanes += (word & lanes_mask) + ((word >> 8) & lanes_mask)
            at += 8
        total += (
            (lanes & 0xFFFF) + ((lanes >> 16) & 0xFFFF) + ((lanes >> 32) & 0xFFFF) + ((lanes >> 48) & 0xFFFF)
        )
    rest = end + 8 - at
    if rest > 0:  # the last 1-7 bytes: load the last eight, drop those already counted
        word = ((load_i64(end) >> 8) & 0x00FFFFFFFFFFFFFF) >> (56 - 8 * rest)
        lanes = (word & lanes_mask) + ((word >> 8) & lanes_mask)
        total += (
            (lanes & 0xFFFF) + ((lanes >> 16) & 0xFFFF) + ((lanes >> 32) & 0xFFFF) + ((lanes >> 48) & 0xFFFF)
        )
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
def render_second(stamp: int, now_ns: int) -> int:
    """Write the second of now_ns >= 0 into stamp (the date only when the day changes); return its rest."""
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
    store_i64(stamp + _STAMP.second_ns, second * SECOND_NS)
    return now_ns - second * SECOND_NS


@inlined
def since_second(stamp: int, now_ns: int) -> int:
    """Bring stamp to the second of now_ns >= 0; return the nanoseconds since it began."""
    rest = now_ns - load_i64(stamp + _STAMP.second_ns)
    if rest < 0 or rest >= SECOND_NS:
        rest = render_second(stamp, now_ns)
    return rest


@inlined
def put_stamp(at: int, stamp: int, fraction_ns: int, digits: int) -> None:
    """Write the second of stamp with 0, 3, 6 or 9 digits of its fraction (cut, not rounded)."""
    text = stamp + _STAMP.text
    store_i64(at, load_i64(text))
    store_i64(at + 8, load_i64(text + 8))
    store_u8(at + 16, load_u8(text + 16))
    if digits:
        eight = fraction_ns // 10
        fraction = digits8(eight)
        if digits == 9:
            store_i64(
                at + 19, ((fraction >> 8) & 0x00FFFFFFFFFFFFFF) | ((fraction_ns - 10 * eight + 48) << 56)
            )
        if digits == 6:
            store_u32(at + 20, fraction >> 16)
        store_u32(at + 17, (fraction << 8) | _DOT)


@inlined
def check_digits(target: int, size: int) -> None:
    """Write CheckSum(10) of a whole message into its last four bytes but one."""
    put_3digits(target + size - 4, byte_sum(target, size - 7) & 0xFF)
