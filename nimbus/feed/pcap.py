"""SOURCE, the state of a capture being walked, and the kernels that walk pcap and raw ITCH records.

A chunk is a piece of the (decompressed) file in memory: all of it when the file is mapped.  A walker never
looks beyond the chunk; when the record at `at` is not whole it says in `need` how many bytes it wants and
returns 0, and the owner brings the next chunk.  Written by the loop that calls next_packet.
"""

from __future__ import annotations

from typing import Final

from nimbus.feed.itch import HEADER_SIZE, SYSTEM_EVENT
from nimbus.messages import LINK_ITCH_FILE, PACKET, STAMP_FILE
from ringbuf.jit import inlined
from ringbuf.memory import load_i64, load_u32, store_i64, store_u8, store_u16, store_u32, u2, u4, u6
from ringbuf.records import record

RECORD_SIZE_MAX: Final = 262_144  # the largest frame a capture may hold
FORMAT_PCAP, FORMAT_PCAPNG, FORMAT_ITCH = 1, 2, 3

# Statuses of a walk that cannot go on; SOURCE.error_at points at the record.
RECORD_TOO_LONG, BLOCK_SIZE, BLOCK_MISMATCH, BYTE_ORDER, NO_INTERFACE = -1, -2, -3, -4, -5
UNKNOWN_LINK, RESOLUTION, INTERFACE_COUNT, ZERO_LENGTH, BLOCK_SHORT = -6, -7, -8, -9, -10

INTERFACES_MAX: Final = 1_024
INTERFACE = record(
    "INTERFACE",
    """
    i8  link        LINK_*, 0 = not supported
    i8  link_number link type as the file names it
    i8  snap_size   most bytes kept of a packet, 0 = no limit
    i8  offset_ns   added to every time
    i8  multiplier  ns per unit of time, when a unit is a power of ten of at least 1 ns
    i8  divisor     units per ns, when it is a smaller power of ten; 0 = not so
    i8  shift       units per second as a power of two; -1 = not so
    i8  pad         zero
    """,
)

SOURCE = record(
    "SOURCE",
    f"""
    i8  kind        SOURCE_CAPTURE
    i8  at          address of the next record
    i8  end         address behind the last byte of the chunk
    i8  origin      address that byte 0 of the file would have: file offset = address - origin
    i8  format      FORMAT_*
    i8  big_endian  1 = headers are big-endian (pcapng: of the present section)
    i8  fraction_ns pcap: ns per unit of the fraction, 1 or 1,000
    i8  link        pcap: LINK_*

    i8  packets     packets given so far
    i8  clock_ns    time of the last packet; never falls
    i8  backwards   packets whose time lay before it
    i8  status      0, or the negative status that ended the walk
    i8  error_at    address of the record behind it
    i8  error_value the length or number that was refused
    i8  need        bytes wanted from `at` on; 0 = not asked since the last refill
    i8  last        1 = no chunk follows

    i8  midnight_ns raw ITCH: Unix time of the midnight its times count from
    i8  interfaces  pcapng: interfaces of the present section
    6i8 pad         zero
    {INTERFACES_MAX * 8}i8 interface  INTERFACE rows
    """,
)

_S, _P = SOURCE.at, PACKET.at
_PCAP_RECORD_SIZE: Final = 16
_TS_NS, _LENGTH_SIZE = SYSTEM_EVENT.at.ts_ns, 2


@inlined
def word(at: int, big_endian: int) -> int:
    """Load 32 bits in the file's byte order."""
    return u4(at) if big_endian else load_u32(at)


@inlined
def fail(source: int, at: int, status: int, value: int) -> int:
    """End the walk at this address for good; return the status."""
    store_i64(source + _S.status, status)
    store_i64(source + _S.error_at, at)
    store_i64(source + _S.error_value, value)
    return status


@inlined
def want(source: int, size: int) -> int:
    """Ask for a chunk that holds `size` bytes from the present record on."""
    store_i64(source + _S.need, size)
    return 0


@inlined
def tick(source: int, ns: int) -> int:
    """Return the packet's time (below 2^62), held at the last one when it goes backwards (counted)."""
    clock_ns = load_i64(source + _S.clock_ns)
    if ns < clock_ns:
        store_i64(source + _S.backwards, load_i64(source + _S.backwards) + 1)
        return clock_ns
    store_i64(source + _S.clock_ns, ns)
    return ns


@inlined
def emit(source: int, packet: int, frame: int, size: int, wire_size: int, ns: int, link: int) -> int:
    """Fill the PACKET; return 1."""
    number = load_i64(source + _S.packets) + 1
    store_i64(source + _S.packets, number)
    store_i64(packet + _P.frame_at, frame)
    store_i64(packet + _P.recv_ns, ns)
    store_i64(packet + _P.number, number)
    store_u32(packet + _P.size, size)
    store_u32(packet + _P.wire_size, wire_size)
    store_u16(packet + _P.link, link)
    store_u8(packet + _P.stamp, STAMP_FILE)
    store_u8(packet + _P.line, 0)
    return 1


@inlined
def next_pcap(source: int, packet: int) -> int:
    """Give the next record of a pcap file: 1, 0 = chunk used up, or a negative status."""
    at = load_i64(source + _S.at)
    left = load_i64(source + _S.end) - at
    if left < _PCAP_RECORD_SIZE:
        return want(source, _PCAP_RECORD_SIZE)
    big_endian = load_i64(source + _S.big_endian)
    size = word(at + 8, big_endian)
    if size > RECORD_SIZE_MAX:
        return fail(source, at, RECORD_TOO_LONG, size)
    if size > left - _PCAP_RECORD_SIZE:
        return want(source, _PCAP_RECORD_SIZE + size)
    fraction = word(at + 4, big_endian) * load_i64(source + _S.fraction_ns)
    ns = tick(source, word(at, big_endian) * 1_000_000_000 + fraction)
    frame, wire_size = at + _PCAP_RECORD_SIZE, word(at + 12, big_endian)
    store_i64(source + _S.at, frame + size)
    return emit(source, packet, frame, size, wire_size, ns, load_i64(source + _S.link))


@inlined
def next_itch(source: int, packet: int) -> int:
    """Give the next message of a raw ITCH file with its 2-byte length: 1, 0, or a negative status.

    A length of 0 is an end mark as the last two bytes of the file and a defect anywhere else.
    """
    at, end = load_i64(source + _S.at), load_i64(source + _S.end)
    left = end - at
    if left < _LENGTH_SIZE:
        return want(source, _LENGTH_SIZE)
    size = u2(at)
    if size == 0:
        if left > _LENGTH_SIZE:
            return fail(source, at, ZERO_LENGTH, 0)
        if load_i64(source + _S.last) != 0:
            store_i64(source + _S.at, end)
        return want(source, _LENGTH_SIZE + 1)
    if size > left - _LENGTH_SIZE:
        return want(source, _LENGTH_SIZE + size)
    ns = load_i64(source + _S.clock_ns)
    if size >= HEADER_SIZE:
        ns = tick(source, load_i64(source + _S.midnight_ns) + u6(at + _LENGTH_SIZE + _TS_NS))
    size += _LENGTH_SIZE
    store_i64(source + _S.at, at + size)
    return emit(source, packet, at, size, size, ns, LINK_ITCH_FILE)
