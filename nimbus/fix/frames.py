"""Cut a byte stream into FIX messages, as a kernel: the same rules as framing.py, which explains them."""

from __future__ import annotations

from typing import Final

from nimbus.fix.digits import byte_sum
from nimbus.fix.framing import BEGIN_STRING_MAX, MESSAGE_MAX
from nimbus.fix.tags import SOH
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_u8, load_u32

_START_SIZE: Final = 5
_TRAILER_SIZE: Final = 7
_LENGTH_DIGITS_MAX: Final = 9
_TYPE_MIN: Final = 5  # 35=A and SOH
_8, _EQUALS, _ZERO = ord("8"), ord("="), ord("0")


@inlined
def starts(at: int) -> bool:
    """Say whether the five bytes at `at` are 8=FIX."""
    return load_u8(at) == _8 and load_u32(at + 1) == 0x5849463D  # =FIX


@inlined
def _may_start(at: int, size: int) -> bool:
    """Say whether size bytes, fewer than five, may be the beginning of 8=FIX."""
    if load_u8(at) != _8 or (size > 1 and load_u8(at + 1) != _EQUALS):
        return False
    return not ((size > 2 and load_u8(at + 2) != ord("F")) or (size > 3 and load_u8(at + 3) != ord("I")))


@inlined
def _junk(at: int, end: int) -> int:
    """Return how many bytes stand before the next 8=FIX, or before what may become one."""
    here = at
    while here < end:
        left = end - here
        if (left >= _START_SIZE and starts(here)) or (left < _START_SIZE and _may_start(here, left)):
            break
        here += 1
    return here - at


@inlined
def _digit(at: int) -> int:
    """Return the digit at `at`, or a number that is none."""
    value = load_u8(at) - _ZERO
    return value if 0 <= value <= 9 else -1


@inlined
def _is_whole(at: int, body: int, length: int) -> bool:
    """Compare CheckSum, and see that MsgType comes third; the trailer has its form."""
    value = body + length + 3
    given = _digit(value) * 100 + _digit(value + 1) * 10 + _digit(value + 2)
    if given != byte_sum(at, body + length - at) & 0xFF or length < _TYPE_MIN:
        return False
    has_tag = load_u8(body) == ord("3") and load_u8(body + 1) == ord("5") and load_u8(body + 2) == _EQUALS
    return has_tag and load_u8(body + 3) != SOH


@inlined
def _is_trailer(at: int) -> bool:
    """Say whether SOH, 10=, three digits and SOH stand at at - 1."""
    if load_u8(at - 1) != SOH or load_u8(at) != ord("1") or load_u8(at + 1) != _ZERO:
        return False
    if load_u8(at + 2) != _EQUALS or load_u8(at + 6) != SOH:
        return False
    return _digit(at + 3) >= 0 and _digit(at + 4) >= 0 and _digit(at + 5) >= 0


@kernel
def cut(at: int, end: int) -> int:
    """Judge the bytes from `at` to `end`; none outside is read.

    Returns the size of a whole message, 0 when more bytes are needed, or -n: n bytes are to be thrown away.
    """
    junk = _junk(at, end)
    if junk:
        return -junk
    here = at + _START_SIZE
    if here > end or at == end:
        return 0
    last = at + 2 + BEGIN_STRING_MAX
    while here < end and here < last and load_u8(here) != SOH:
        here += 1
    for index in range(3):  # SOH 9 =
        if here == end:
            return 0
        wanted = SOH if index == 0 else (ord("9") if index == 1 else _EQUALS)
        if load_u8(here) != wanted:
            return -_START_SIZE
        here += 1
    first, length = here, 0
    while here < end and here - first < _LENGTH_DIGITS_MAX and _digit(here) >= 0:
        length = 10 * length + _digit(here)
        here += 1
    if here == end:
        return 0
    if here == first or load_u8(here) != SOH:
        return -_START_SIZE
    body = here + 1
    size = body - at + length + _TRAILER_SIZE
    if size > MESSAGE_MAX:
        return -_START_SIZE
    if size > end - at:
        return 0
    if not _is_trailer(body + length):
        return at - body - length
    return size if _is_whole(at, body, length) else -size
