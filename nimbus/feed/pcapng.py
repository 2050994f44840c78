"""Walk pcapng blocks: sections of either byte order, interfaces with their own clocks, packets.

Source: draft-ietf-opsawg-pcapng.  The enhanced, simple and obsolete packet blocks give packets; section and
interface blocks change the state; every other block is skipped by its length.
"""

from __future__ import annotations

import struct
from typing import Final

from nimbus.feed import pcap
from nimbus.feed.pcap import INTERFACE, INTERFACES_MAX, RECORD_SIZE_MAX, SOURCE, emit, fail, tick, want, word
from nimbus.messages import LINK_COOKED1, LINK_COOKED2, LINK_ETHERNET, LINK_RAW_IP
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u16, load_u32, store_i64, u1, u2, u4

SECTION, INTERFACE_BLOCK, OBSOLETE_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
BLOCK_SIZE_MAX: Final = 16 * 1024 * 1024  # more than one packet; bounds the memory for blocks we skip
OPTION_END, OPTION_APPLICATION, OPTION_RESOLUTION, OPTION_OFFSET = 0, 4, 9, 14
RECORDED_BY: Final = b"contrafusion recorder"  # the application that our recordings name
OPTIONS_MAX: Final = 1_024  # looked at per interface block

# Smallest block of each kind that holds its fixed fields.
_SECTION_MIN, _INTERFACE_MIN, _SIMPLE_MIN, _ENHANCED_MIN, _BLOCK_MIN = 28, 20, 16, 32, 12
_ENHANCED_DATA, _SIMPLE_DATA = 28, 12
_S, _I, _INTERFACE_SIZE = SOURCE.at, INTERFACE.at, INTERFACE.size
_SECOND_NS: Final = 1_000_000_000
TIME_MAX: Final = (1 << 62) - 1
OFFSET_S_MAX: Final = TIME_MAX // _SECOND_NS


@inlined
def _half(at: int, big_endian: int) -> int:
    return u2(at) if big_endian else load_u16(at)


@inlined
def link_of(number: int) -> int:
    """Return the LINK_* of a file's link type, 0 = not supported (names: capture.LINK_NAMES)."""
    if number == 1:
        return LINK_ETHERNET
    if number in (12, 14, 101, 228, 229):
        return LINK_RAW_IP
    if number == 113:
        return LINK_COOKED1
    return LINK_COOKED2 if number == 276 else 0


@inlined
def _power_of_ten(exponent: int) -> int:
    power = 1
    for _ in range(exponent):
        power *= 10
    return power


@inlined
def _shift_right(value: int, bits: int) -> int:
    """Shift as if value were unsigned; bits is 0 to 63."""
    return value if bits == 0 else (value >> bits) & ((1 << (64 - bits)) - 1)


@inlined
def _unsigned_quotient(value: int, divisor: int) -> int:
    """Divide as if value were unsigned; divisor: 10 or more, even."""
    return value // divisor if value >= 0 else _shift_right(value, 1) // (divisor >> 1)


@inlined
def to_ns(row: int, units: int) -> int:
    """Turn a 64-bit time of the INTERFACE at row into Unix ns, held within +-TIME_MAX (the year 2116).

    Held, because no sum or product of times may leave int64 anywhere behind this door.
    """
    shift, divisor, multiplier = (
        load_i64(row + _I.shift),
        load_i64(row + _I.divisor),
        load_i64(row + _I.multiplier),
    )
    if shift >= 0:
        seconds = _shift_right(units, shift)
        fraction = units - (seconds << shift)
        if seconds < 0 or seconds >= TIME_MAX // _SECOND_NS:
            return TIME_MAX
        if shift > 32:  # keep 32 bits, so that the product below fits
            fraction = _shift_right(fraction, shift - 32)
            shift = 32
        ns = seconds * _SECOND_NS + ((fraction * _SECOND_NS) >> shift)
    elif divisor > 0:
        ns = _unsigned_quotient(units, divisor)
    elif units < 0 or units > TIME_MAX // multiplier:
        return TIME_MAX
    else:
        ns = units * multiplier
    return min(ns + load_i64(row + _I.offset_ns), TIME_MAX)


@inlined
def _set_resolution(row: int, code: int) -> int:
    """Write the clock of an interface from if_tsresol; return 0 when it is beyond what 64 bits can say."""
    exponent = code & 127
    store_i64(row + _I.shift, -1)
    store_i64(row + _I.divisor, 0)
    store_i64(row + _I.multiplier, 1)
    if code & 128:
        store_i64(row + _I.shift, exponent)
        return 1 if exponent < 64 else 0
    if exponent > 18:
        return 0
    if exponent > 9:
        store_i64(row + _I.divisor, _power_of_ten(exponent - 9))
    else:
        store_i64(row + _I.multiplier, _power_of_ten(9 - exponent))
    return 1


@kernel
def _add_interface(source: int, at: int, size: int, big_endian: int) -> int:
    """Take the interface block of `size` bytes at `at`; return 1 or a negative status."""
    number = load_i64(source + _S.interfaces)
    if size < _INTERFACE_MIN:
        return fail(source, at, pcap.BLOCK_SHORT, size)
    if number >= INTERFACES_MAX:
        return fail(source, at, pcap.INTERFACE_COUNT, number)
    row = source + _S.interface + number * _INTERFACE_SIZE
    link_number = _half(at + 8, big_endian)
    store_i64(row + _I.link_number, link_number)
    store_i64(row + _I.link, link_of(link_number))
    store_i64(row + _I.snap_size, word(at + 12, big_endian))
    store_i64(row + _I.offset_ns, 0)
    _set_resolution(row, 6)
    option, end = at + 16, at + size - 4
    for _option in range(OPTIONS_MAX):
        if end - option < 4:
            break
        code, option_size = _half(option, big_endian), _half(option + 2, big_endian)
        padded_size = (option_size + 3) & -4
        if code == OPTION_END or padded_size > end - option - 4:
            break
        if code == OPTION_RESOLUTION and option_size == 1 and _set_resolution(row, u1(option + 4)) == 0:
            return fail(source, at, pcap.RESOLUTION, u1(option + 4))
        if code == OPTION_OFFSET and option_size == 8:
            high, low = (
                word(option + (4 if big_endian else 8), big_endian),
                word(option + (8 if big_endian else 4), big_endian),
            )
            seconds = min(max((high << 32) | low, -OFFSET_S_MAX), OFFSET_S_MAX)
            store_i64(row + _I.offset_ns, seconds * _SECOND_NS)
        option += 4 + padded_size
    store_i64(source + _S.interfaces, number + 1)
    return 1


@inlined
def _enter_section(source: int, at: int, size: int, big_endian: int) -> int:
    if size < _SECTION_MIN:
        return fail(source, at, pcap.BLOCK_SHORT, size)
    store_i64(source + _S.big_endian, big_endian)
    store_i64(source + _S.interfaces, 0)
    return 1


@inlined
def _give(source: int, packet: int, at: int, size: int, kind: int) -> int:
    """Give the packet of the block of `size` bytes at `at`; return 1 or a negative status."""
    big_endian = load_i64(source + _S.big_endian)
    number = 0
    if kind == ENHANCED_PACKET:
        number = word(at + 8, big_endian)
    elif kind == OBSOLETE_PACKET:
        number = _half(at + 8, big_endian)
    if size < (_SIMPLE_MIN if kind == SIMPLE_PACKET else _ENHANCED_MIN):
        return fail(source, at, pcap.BLOCK_SHORT, size)
    if number >= load_i64(source + _S.interfaces):
        return fail(source, at, pcap.NO_INTERFACE, number)
    row = source + _S.interface + number * _INTERFACE_SIZE
    link = load_i64(row + _I.link)
    if link == 0:
        return fail(source, at, pcap.UNKNOWN_LINK, load_i64(row + _I.link_number))
    if kind == SIMPLE_PACKET:
        room, frame, wire_size = size - _SIMPLE_MIN, at + _SIMPLE_DATA, word(at + 8, big_endian)
        kept, snap_size = wire_size, load_i64(row + _I.snap_size)
        if snap_size != 0 and snap_size < kept:
            kept = snap_size
        ns = load_i64(source + _S.clock_ns)  # a simple block has no time
    else:
        room, frame = size - _ENHANCED_MIN, at + _ENHANCED_DATA
        kept, wire_size = word(at + 20, big_endian), word(at + 24, big_endian)
        units = (word(at + 12, big_endian) << 32) | word(at + 16, big_endian)
        ns = tick(source, to_ns(row, units)) if kept <= RECORD_SIZE_MAX and kept <= room else 0
    if kept > RECORD_SIZE_MAX or kept > room:
        return fail(source, at, pcap.RECORD_TOO_LONG, kept)
    return emit(source, packet, frame, kept, wire_size, ns, link)


@kernel
def next_pcapng(source: int, packet: int) -> int:
    """Give the next packet of a pcapng file: 1, 0 = chunk used up, or a negative status.

    Every block walked is at least 12 bytes, so the loop ends with the chunk.
    """
    at, end = load_i64(source + _S.at), load_i64(source + _S.end)
    while True:
        if end - at < _BLOCK_MIN:
            return want(source, _BLOCK_MIN)
        kind, big_endian = load_u32(at), load_i64(source + _S.big_endian)
        if kind == SECTION:  # the same in both byte orders; the length behind it is not
            if load_u32(at + 8) == BYTE_ORDER_MAGIC:
                big_endian = 0
            elif u4(at + 8) == BYTE_ORDER_MAGIC:
                big_endian = 1
            else:
                return fail(source, at, pcap.BYTE_ORDER, u4(at + 8))
        else:
            kind = word(at, big_endian)
        size = word(at + 4, big_endian)
        if size < _BLOCK_MIN or size & 3 or size > BLOCK_SIZE_MAX:
            return fail(source, at, pcap.BLOCK_SIZE, size)
        if size > end - at:
            return want(source, size)
        if word(at + size - 4, big_endian) != size:
            return fail(source, at, pcap.BLOCK_MISMATCH, word(at + size - 4, big_endian))
        status = 1
        if kind == SECTION:
            status = _enter_section(source, at, size, big_endian)
        elif kind == INTERFACE_BLOCK:
            status = _add_interface(source, at, size, big_endian)
        elif kind in (ENHANCED_PACKET, SIMPLE_PACKET, OBSOLETE_PACKET):
            status = _give(source, packet, at, size, kind)
        if status < 0:
            return status
        at += size
        store_i64(source + _S.at, at)
        if kind in (ENHANCED_PACKET, SIMPLE_PACKET, OBSOLETE_PACKET):
            return 1


def application_of(head: bytes) -> bytes:
    """Return the application that a little-endian section header at the start of `head` names, b"" = none."""
    if head[8:12] != struct.pack("<I", BYTE_ORDER_MAGIC):
        return b""
    end, at = min(int.from_bytes(head[4:8], "little"), len(head)) - 4, 24
    while end - at >= 4:
        code, size = struct.unpack_from("<HH", head, at)
        if code == OPTION_APPLICATION and size <= end - at - 4:
            return head[at + 4 : at + 4 + size]
        if code == OPTION_END:
            break
        at += 4 + ((size + 3) & -4)
    return b""
