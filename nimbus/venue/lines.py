"""A line of the feed: a connected UDP socket that datagrams are sent on, and what is done to them on the way.

A line can be impaired for tests: datagrams are lost, sent twice, or held back until some later ones have
passed them.  The draws come from a key and a counter, so the same seed does the same to the same datagrams.
A datagram that is held back leaves after at most `reorder_max` others of the line (heartbeats count), and
before the end of the session.  At most HELD_MAX are held at a time; one more is sent at once.

The kernel calls `send` of libc.  A full socket buffer is waited for, SEND_TRIES times; then the datagram is
counted as an error and is lost, as it would be on a wire: whoever misses it asks for it again.
"""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from ringbuf.atomics import pause
from ringbuf.jit import external, inlined, kernel
from ringbuf.memory import copy, load_i64, store_i64, wrapping_multiply
from ringbuf.records import record
from ringbuf.segment import Segment

DATAGRAM_MAX: Final = 1_472  # an Ethernet frame of 1,500 bytes, less IP and UDP headers
HELD_MAX: Final = 64
SEND_TRIES: Final = 256
PPM: Final = 1_000_000
SEND_BUFFER: Final = 1 << 20
_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_MIXER_ONE, _MIXER_TWO = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9
_MASK_32: Final = 0xFFFFFFFF
_PAUSES: Final = 64

_send = external("send", "intp", "intc", "intp", "intp", "intc")

HELD_DATAGRAM = record(
    "HELD_DATAGRAM",
    f"""
    i8  due    count of the line's datagrams at which it leaves; 0 = the place is free
    i8  size   bytes used
    {DATAGRAM_MAX}u1 bytes  the datagram
    48u1 pad   zero
    """,
)
LINE = record(
    "LINE",
    """
    i8  fd             connected UDP socket, -1 = the line is not there (fixed)
    i8  lost_ppm       datagrams in a million that are lost (fixed)
    i8  duplicated_ppm   that are sent twice (fixed)
    i8  reordered_ppm  that are held back (fixed)
    i8  reorder_max    by at most so many others (fixed)
    i8  key            of the draws (fixed)
    i8  draws          draws so far
    i8  held           address of HELD_MAX HELD_DATAGRAM records (fixed)
    i8  held_count     places in use
    i8  datagrams      datagrams offered
    i8  sent           datagrams handed to the socket
    i8  bytes          their bytes
    i8  lost           datagrams lost on purpose
    i8  duplicated     datagrams sent twice on purpose
    i8  reordered      datagrams held back on purpose
    i8  errors         datagrams the socket did not take
    """,
)
COUNTED: Final = ("datagrams", "sent", "bytes", "lost", "duplicated", "reordered", "errors")
_L, _H = LINE.at, HELD_DATAGRAM.at
_HELD_SIZE: Final = HELD_DATAGRAM.size
LINE_SIZE: Final = LINE.size


class Impairment(NamedTuple):
    """What is done to the datagrams of a line: parts of a million, and how far one may fall back."""

    lost_ppm: int = 0
    duplicated_ppm: int = 0
    reordered_ppm: int = 0
    reorder_max: int = 8
    seed: int = 1


@inlined
def draw(key: int, number: int) -> int:
    """Return 32 random bits, the same ones for the same key and number."""
    mixed = wrapping_multiply(number ^ key, _MIXER_ONE)
    mixed ^= (mixed >> 32) & _MASK_32
    mixed = wrapping_multiply(mixed, _MIXER_TWO)
    mixed ^= (mixed >> 29) & 0x7FFFFFFFF
    return (wrapping_multiply(mixed, _MIXER_ONE) >> 32) & _MASK_32


@inlined
def happens(key: int, number: int, ppm: int) -> bool:
    """Say yes in so many of a million draws."""
    return ppm > 0 and (draw(key, number) * PPM) >> 32 < ppm


@inlined
def _add(counter: int, by: int) -> None:
    store_i64(counter, load_i64(counter) + by)


@kernel
def transmit(line: int, datagram: int, size: int) -> None:
    """Hand a datagram to the socket.

    An error that an earlier datagram left behind (nobody listened at a unicast address) is reported by the
    next call instead of sending, so one failure is no reason to give up.
    """
    fd = load_i64(line + _L.fd)
    for _ in range(SEND_TRIES):
        if _send(fd, datagram, size, _FLAGS) == size:
            _add(line + _L.sent, 1)
            _add(line + _L.bytes, size)
            return
        for _pause in range(_PAUSES):
            pause()
    _add(line + _L.errors, 1)


@kernel
def release(line: int, now: int) -> None:
    """Send the held datagrams that have been passed by enough others: those due by `now`."""
    for place in range(HELD_MAX):
        if load_i64(line + _L.held_count) == 0:
            return
        held = load_i64(line + _L.held) + place * _HELD_SIZE
        due = load_i64(held + _H.due)
        if due != 0 and due <= now:
            transmit(line, held + _H.bytes, load_i64(held + _H.size))
            store_i64(held + _H.due, 0)
            _add(line + _L.held_count, -1)


@kernel
def release_all(line: int) -> None:
    """Send everything that is held back: before the end of a session."""
    release(line, 1 << 62)


@inlined
def _hold(line: int, datagram: int, size: int, due: int) -> bool:
    for place in range(HELD_MAX):
        held = load_i64(line + _L.held) + place * _HELD_SIZE
        if load_i64(held + _H.due) == 0:
            copy(held + _H.bytes, datagram, size)
            store_i64(held + _H.size, size)
            store_i64(held + _H.due, due)
            _add(line + _L.held_count, 1)
            _add(line + _L.reordered, 1)
            return True
    return False


@kernel
def _impaired(line: int, datagram: int, size: int) -> None:
    key, number = load_i64(line + _L.key), load_i64(line + _L.draws)
    store_i64(line + _L.draws, number + 4)
    now = load_i64(line + _L.datagrams)
    if happens(key, number, load_i64(line + _L.lost_ppm)):
        _add(line + _L.lost, 1)
    else:
        held = False
        if happens(key, number + 1, load_i64(line + _L.reordered_ppm)):
            after = 1 + ((draw(key, number + 2) * load_i64(line + _L.reorder_max)) >> 32)
            held = _hold(line, datagram, size, now + after)
        if not held:
            transmit(line, datagram, size)
        if happens(key, number + 3, load_i64(line + _L.duplicated_ppm)):
            _add(line + _L.duplicated, 1)
            transmit(line, datagram, size)
    release(line, now)


@inlined
def offer(line: int, datagram: int, size: int) -> None:
    """Send a datagram of at most DATAGRAM_MAX bytes on a line, as well as the line does it."""
    if load_i64(line + _L.fd) < 0:
        return
    _add(line + _L.datagrams, 1)
    if load_i64(line + _L.lost_ppm) | load_i64(line + _L.duplicated_ppm) | load_i64(line + _L.reordered_ppm):
        _impaired(line, datagram, size)
    else:
        transmit(line, datagram, size)


class Lines:
    """Own the sockets of lines A and B and their LINE records, side by side at `addr`.

    targets: (group, port) of each line, None = the line is not there.  interface: IPv4 address of the
    interface that multicast leaves by.  Raises OSError.
    """

    def __init__(
        self,
        segment: Segment,
        targets: list[tuple[str, int] | None],
        *,
        interface: str = "127.0.0.1",
        ttl: int = 1,
        loop: bool = True,
        impairments: list[Impairment] | None = None,
    ) -> None:
        count = len(targets)
        self.addr = segment.allocate("lines", count * LINE.size)
        self.count, self._rows = count, segment.array("lines", LINE)
        held = segment.allocate("lines.held", count * HELD_MAX * HELD_DATAGRAM.size)
        self._sockets: list[socket.socket] = []
        wanted = impairments or [Impairment()] * count
        for index, (row, target, bad) in enumerate(zip(self._rows, targets, wanted, strict=False)):
            row["fd"], row["held"] = -1, held + index * HELD_MAX * HELD_DATAGRAM.size
            row["lost_ppm"], row["duplicated_ppm"] = bad.lost_ppm, bad.duplicated_ppm
            row["reordered_ppm"], row["reorder_max"] = bad.reordered_ppm, bad.reorder_max
            row["key"] = (bad.seed * 0x9E3779B1 + index * 0x85EBCA77) & 0x7FFFFFFFFFFFFFFF
            if target is not None:
                try:
                    row["fd"] = self._connect(target, interface, ttl, loop).fileno()
                except OSError:
                    self.close()
                    raise

    def _connect(self, target: tuple[str, int], interface: str, ttl: int, loop: bool) -> socket.socket:
        line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(line)
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(loop))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        line.connect(target)
        return line

    def counters(self) -> list[dict[str, int]]:
        """Return the counters of each line."""
        return [{name: int(row[name]) for name in COUNTED} for row in self._rows[: self.count]]

    def close(self) -> None:
        """Close the sockets; no kernel may send any more."""
        for row in self._rows:
            row["fd"] = -1
        for line in self._sockets:
            line.close()
