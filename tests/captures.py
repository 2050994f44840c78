"""Write captures for tests, straight from the format specifications and without the product's code."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

GROUP, PORT = bytes([233, 54, 12, 111]), 26477


def itch(letter: str, size: int, ts_ns: int = 0, locate: int = 1, fill: int = 0x20) -> bytes:
    """Return a message of `size` bytes: the common header, the rest filled."""
    head = letter.encode() + struct.pack(">HH", locate, 0) + ts_ns.to_bytes(6, "big")
    return (head + bytes([fill]) * size)[:size]


def blocks(messages: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack(">H", len(m)) + m for m in messages)


def mold(session: bytes, seq: int, messages: Sequence[bytes], count: int | None = None) -> bytes:
    """Return a MoldUDP64 datagram; count overrides the number of messages in the header."""
    number = len(messages) if count is None else count
    return struct.pack(">10sQH", session, seq, number) + blocks(messages)


def internet_checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload: bytes, pseudo: bytes | None = None, port: int = PORT, size: int | None = None) -> bytes:
    """Return a UDP datagram; with the pseudo header's addresses it carries a right checksum, else 0."""
    length = 8 + len(payload) if size is None else size
    datagram = struct.pack(">HHHH", 30_000, port, length, 0) + payload
    if pseudo is not None:
        checksum = internet_checksum(pseudo + struct.pack(">HH", 17, length) + datagram) or 0xFFFF
        datagram = datagram[:6] + struct.pack(">H", checksum) + datagram[8:]
    return datagram


def ipv4(
    payload: bytes, *, protocol: int = 17, options: bytes = b"", fragment: int = 0, total: int | None = None,
    checksum: int | None = None, group: bytes = GROUP,
) -> bytes:  # fmt: skip
    size = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x40 | (5 + len(options) // 4), 0, size, 7, fragment, 16, protocol, 0,
        bytes([10, 0, 0, 1]), group,
    )  # fmt: skip
    head += options
    value = internet_checksum(head) if checksum is None else checksum
    return head[:10] + struct.pack(">H", value) + head[12:] + payload


def ipv4_pseudo(group: bytes = GROUP) -> bytes:
    return bytes([10, 0, 0, 1]) + group


IPV6_SOURCE, IPV6_GROUP = bytes(15) + b"\x01", bytes.fromhex("ff0e") + bytes(13) + b"\x42"


def ipv6(payload: bytes, *, following: int = 17, size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    return struct.pack(">IHBB", 6 << 28, length, following, 9) + IPV6_SOURCE + IPV6_GROUP + payload


def ethernet(payload: bytes, ethertype: int = 0x0800, tags: Sequence[tuple[int, int]] = ()) -> bytes:
    """Return a frame; tags: (tag protocol, VLAN number) from the outermost."""
    head = bytes.fromhex("01005e360c6f0200000000 0a".replace(" ", ""))
    for protocol, number in tags:
        head += struct.pack(">HH", protocol, number)
    return head + struct.pack(">H", ethertype) + payload


def cooked1(payload: bytes, ethertype: int = 0x0800) -> bytes:
    return struct.pack(">HHHQH", 2, 1, 6, 0, ethertype) + payload


def cooked2(payload: bytes, ethertype: int = 0x0800) -> bytes:
    return struct.pack(">HHIHBBQ", ethertype, 0, 3, 1, 2, 6, 0) + payload


def frame(datagram: bytes) -> bytes:
    """Return an ordinary Ethernet frame with a right IP checksum and no UDP checksum."""
    return ethernet(ipv4(udp(datagram)))


def pcap(
    frames: Iterable[tuple[int, bytes]], *, order: str = "<", nanoseconds: bool = True, link: int = 1,
    snap: int | None = None,
) -> bytes:  # fmt: skip
    """Return a pcap file of (Unix ns, frame); snap cuts the captured bytes."""
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1_000)
    out = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link)]
    for ns, data in frames:
        kept = data if snap is None else data[:snap]
        seconds, rest = divmod(ns, 1_000_000_000)
        out.append(struct.pack(order + "IIII", seconds, rest // unit, len(kept), len(data)) + kept)
    return b"".join(out)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(
    order: str = "<",
    *,
    link: int = 1,
    resolution: int | None = None,
    offset_s: int | None = None,
    snap: int = 0,
) -> bytes:
    """Return an interface block; resolution: the byte of if_tsresol."""
    options = struct.pack(order + "HH4s", 2, 4, b"eth0")
    if resolution is not None:
        options += struct.pack(order + "HHB3x", 9, 1, resolution)
    if offset_s is not None:
        options += struct.pack(order + "HHq", 14, 8, offset_s)
    options += struct.pack(order + "HH", 0, 0)
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options)


def enhanced(order: str, number: int, units: int, data: bytes, wire_size: int | None = None) -> bytes:
    head = struct.pack(
        order + "IIIII", number, units >> 32, units & 0xFFFFFFFF, len(data), wire_size or len(data)
    )
    return block(order, 6, head + data + b"\0" * (-len(data) % 4) + struct.pack(order + "HH", 0, 0))


def simple(order: str, data: bytes, wire_size: int | None = None) -> bytes:
    return block(order, 3, struct.pack(order + "I", wire_size or len(data)) + data)


def mold_messages(capture: bytes) -> list[tuple[int, bytes]]:
    """Read (sequence number, message) from a little-endian ns pcap of Ethernet, IPv4, UDP, MoldUDP64."""
    assert struct.unpack_from("<I", capture)[0] == 0xA1B23C4D
    out, at = [], 24
    while at < len(capture):
        size = struct.unpack_from("<I", capture, at + 8)[0]
        mold = capture[at + 16 : at + 16 + size][14 + 20 + 8 :]
        first, count = struct.unpack_from(">QH", mold, 10)
        block = 20
        for k in range(count if count != 0xFFFF else 0):
            length = struct.unpack_from(">H", mold, block)[0]
            out.append((first + k, mold[block + 2 : block + 2 + length]))
            block += 2 + length
        at += 16 + size
    return out


def pcapng_blocks(text: bytes) -> list[tuple[int, bytes]]:
    """Read (type, body) of each block of a little-endian pcapng file, strictly."""
    out, at = [], 0
    while at < len(text):
        kind, size = struct.unpack_from("<II", text, at)
        assert size % 4 == 0
        assert 12 <= size <= len(text) - at
        assert struct.unpack_from("<I", text, at + size - 4)[0] == size
        out.append((kind, text[at + 8 : at + size - 4]))
        at += size
    return out


def pcapng_options(text: bytes) -> dict[int, bytes]:
    """Read the options of a block up to their end mark."""
    out, at = {}, 0
    while True:
        code, size = struct.unpack_from("<HH", text, at)
        if code == 0:
            assert size == 0
            assert at + 4 == len(text)
            return out
        out[code] = text[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4


def pcapng_packet(body: bytes) -> tuple[int, bytes, int]:
    """Read (ns, frame, length on the wire) of an enhanced packet block of interface 0, without options."""
    number, high, low, kept, wire = struct.unpack_from("<IIIII", body)
    assert number == 0
    assert len(body) == 20 + kept + -kept % 4
    assert body[20 + kept :] == b"\0" * (-kept % 4)
    return high << 32 | low, body[20 : 20 + kept], wire
