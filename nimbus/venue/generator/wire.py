"""Kernels that put messages into MoldUDP64 packets and packets into a pcap, in one output buffer.

The open packet is built in place behind the finished ones.  One frame is: pcap record header (16 bytes),
Ethernet (14), IPv4 (20), UDP (8), MoldUDP64 header (20), message blocks.
"""

from __future__ import annotations

import struct
from typing import Final

from nimbus.venue.generator.state import DAY, draw
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, put_u1, put_u2, put_u8, store_i64, store_u32, u2, u4

_D = DAY.at
PCAP_HEADER: Final = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1)  # ns stamps, Ethernet
_RECORD_SIZE: Final = 16
_IP_AT: Final = _RECORD_SIZE + 14
_UDP_AT: Final = _IP_AT + 20
_MOLD_AT: Final = _UDP_AT + 8
_MOLD_SIZE: Final = 20
TEMPLATE_SIZE: Final = 14 + 20 + 8 + _MOLD_SIZE
MOLD_BYTES_MAX: Final = 1_400
PACKET_WINDOW_NS: Final = 25_000  # messages of one packet lie within it
HEARTBEAT_NS: Final = 1_000_000_000
HEARTBEATS_MAX: Final = 1_000  # of one silence
END_OF_SESSION: Final = 0xFFFF
LATENCY_NS_MIN: Final = 8_000  # exchange stamp -> capture stamp
LATENCY_NS_BITS: Final = 13


def frame_template(session: str) -> bytes:
    """Return the constant header bytes of each frame; lengths, number, sums and counts are zero."""
    ethernet = bytes.fromhex("01005e400001 020000000001 0800")
    address = bytes([10, 64, 0, 1]), bytes([239, 192, 0, 1])
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0x4000, 16, 17, 0, *address)
    udp = struct.pack(">HHHH", 26_400, 26_400, 0, 0)
    return ethernet + ip + udp + session.encode().ljust(10)[:10] + bytes(10)


@inlined
def _add_words(addr: int, size: int, total: int) -> int:
    """Add the big-endian 32-bit words of an area whose last bytes past size are zero."""
    for at in range(0, size, 4):
        total += u4(addr + at)
    return total


@inlined
def _folded(total: int) -> int:
    """Return the complement of a ones'-complement sum of words."""
    for _ in range(4):
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


@kernel
def _write_frame(day: int, count: int, mold_size: int, ts_ns: int) -> None:
    """Finish the frame at out_at, whose message blocks stand in place, and step behind it."""
    frame = load_i64(day + _D.out_at)
    copy(frame + _RECORD_SIZE, load_i64(day + _D.template), TEMPLATE_SIZE)
    put_u8(frame + _MOLD_AT + 10, load_i64(day + _D.seq))
    put_u2(frame + _MOLD_AT + 18, count)

    packets = load_i64(day + _D.packets) + 1
    store_i64(day + _D.packets, packets)
    put_u2(frame + _IP_AT + 2, 28 + mold_size)
    put_u2(frame + _IP_AT + 4, packets)
    put_u2(frame + _IP_AT + 10, _folded(_add_words(frame + _IP_AT, 20, 0)))

    udp_size = 8 + mold_size
    put_u2(frame + _UDP_AT + 4, udp_size)
    for at in range(4):
        put_u1(frame + _UDP_AT + udp_size + at, 0)  # behind the frame: padding of the sum
    pseudo = u4(frame + _IP_AT + 12) + u4(frame + _IP_AT + 16) + 17 + udp_size
    check = _folded(_add_words(frame + _UDP_AT, udp_size, pseudo))
    put_u2(frame + _UDP_AT + 6, check if check != 0 else 0xFFFF)  # 0 would mean "no checksum" (RFC 768)

    stamp = load_i64(day + _D.midnight_ns) + ts_ns + LATENCY_NS_MIN + (draw(day) >> (32 - LATENCY_NS_BITS))
    stamp = max(stamp, load_i64(day + _D.stamp_ns) + 1)
    store_i64(day + _D.stamp_ns, stamp)
    size = _MOLD_AT + mold_size
    store_u32(frame, stamp // 1_000_000_000)
    store_u32(frame + 4, stamp % 1_000_000_000)
    store_u32(frame + 8, size - _RECORD_SIZE)
    store_u32(frame + 12, size - _RECORD_SIZE)
    store_i64(day + _D.out_at, frame + size)


@kernel
def close_packet(day: int) -> None:
    """Finish the open packet, if any."""
    if load_i64(day + _D.packet_size) == 0:
        return
    count = load_i64(day + _D.packet_count)
    _write_frame(day, count, load_i64(day + _D.packet_size), load_i64(day + _D.packet_last_ns))
    store_i64(day + _D.seq, load_i64(day + _D.seq) + count)
    store_i64(day + _D.packet_size, 0)
    store_i64(day + _D.packet_count, 0)


@kernel
def end_session(day: int) -> None:
    """Write the end-of-session packet one second after the last message."""
    close_packet(day)
    _write_frame(day, END_OF_SESSION, _MOLD_SIZE, load_i64(day + _D.packet_last_ns) + HEARTBEAT_NS)


@kernel
def _open_packet(day: int, ts_ns: int) -> None:
    """Begin a packet whose first message has exchange time ts_ns, after heartbeats for the silence."""
    quiet_ns = load_i64(day + _D.packet_last_ns)
    if quiet_ns != 0:
        for _ in range(HEARTBEATS_MAX):
            quiet_ns += HEARTBEAT_NS
            if quiet_ns >= ts_ns:
                break
            _write_frame(day, 0, _MOLD_SIZE, quiet_ns)
    store_i64(day + _D.packet_size, _MOLD_SIZE)
    store_i64(day + _D.packet_count, 0)
    store_i64(day + _D.packet_first_ns, ts_ns)


@kernel
def reserve(day: int, size: int, ts_ns: int) -> int:
    """Return the address at which the caller writes the next message of size bytes.

    ts_ns: its exchange time, never smaller than the one before.  The output buffer has room: the caller
    of the outermost kernel sees to that.
    """
    used = load_i64(day + _D.packet_size)
    late = ts_ns - load_i64(day + _D.packet_first_ns) > PACKET_WINDOW_NS
    if used != 0 and (late or used + 2 + size > MOLD_BYTES_MAX):
        close_packet(day)
        used = 0
    if used == 0:
        _open_packet(day, ts_ns)
        used = load_i64(day + _D.packet_size)
    block = load_i64(day + _D.out_at) + _MOLD_AT + used
    put_u2(block, size)
    store_i64(day + _D.packet_size, used + 2 + size)
    store_i64(day + _D.packet_count, load_i64(day + _D.packet_count) + 1)
    store_i64(day + _D.packet_last_ns, ts_ns)
    store_i64(day + _D.messages, load_i64(day + _D.messages) + 1)
    return block + 2


@kernel
def push(day: int, message: int, size: int, ts_ns: int) -> None:
    """Append a finished message (of script.py)."""
    copy(reserve(day, size, ts_ns), message, size)
    code = day + _D.by_code + (u2(message) >> 8) * 8
    store_i64(code, load_i64(code) + 1)
    store_i64(day + _D.now_ns, ts_ns)
