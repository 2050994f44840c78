"""Datagrams from memory on one side, sources that are checked byte by byte on the other."""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from typing import Any

import numpy as np
from net.rig import Rig, Side, packet_socket

from nimbus.feed.source import Source, Sources, next_of
from nimbus.feed.udp_send import UdpSender, send_paced
from nimbus.messages import LINK_UDP, PACKET
from ringbuf.agent import create_stop, request_stop, should_stop
from ringbuf.atomics import store_relaxed
from ringbuf.jit import external, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, load_u32, store_u8, u8
from ringbuf.segment import Segment

GROUP_A, PORT_A, GROUP_B, PORT_B = "239.192.7.1", 26_477, "239.192.7.2", 26_478
HEADERS_SIZE = 42  # Ethernet, IPv4 without options, UDP
NUMBER_AT = 10  # where a numbered datagram has its number, as MoldUDP64 has
WAIT_S = 60
_P = PACKET.at
_memcmp = external("memcmp", "intc", "intp", "intp", "intp")


class Datagrams:
    """Payloads in memory, with the table that send_paced takes."""

    def __init__(self, payloads: list[bytes]) -> None:
        sizes = np.array([len(payload) for payload in payloads], np.int64)
        self._place(np.frombuffer(b"".join(payloads) or b"\0", np.uint8), sizes)

    def _place(self, text: np.ndarray, sizes: np.ndarray) -> None:
        self._bytes, self.count = text, len(sizes)
        self.rows = np.zeros((self.count, 2), np.int64)
        self.rows[:, 0] = text.ctypes.data + np.concatenate(([0], np.cumsum(sizes[:-1])))
        self.rows[:, 1] = sizes

    @classmethod
    def numbered(cls, count: int, size: int = 64, seed: int = 1) -> Datagrams:
        """Return random payloads that carry their number."""
        made = np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)
        made[:, NUMBER_AT : NUMBER_AT + 8] = np.arange(count, dtype=">u8").view(np.uint8).reshape(count, 8)
        datagrams = cls([])
        datagrams._place(made.reshape(-1), np.full(count, size, np.int64))
        return datagrams

    @property
    def payloads(self) -> list[bytes]:
        return [ctypes.string_at(at, size) for at, size in self.rows.tolist()]


@kernel
def check_datagrams(
    sources: int, packet: int, rows: int, count: int, seen: int, totals: int, stop: int
) -> int:
    """Take packets until the stop word is set and none is left; totals: good, wrong, times in order.

    seen: a byte for each datagram, how often it came.
    """
    good, wrong, ordered, last_ns = 0, 0, 0, 0
    while True:
        if next_of(sources, packet) <= 0:
            if should_stop(stop):
                return good
            continue
        at, size = load_i64(packet + _P.frame_at), load_u32(packet + _P.size)
        headers = 0 if load_u16(packet + _P.link) == LINK_UDP else HEADERS_SIZE
        number = u8(at + headers + NUMBER_AT) if size - headers >= NUMBER_AT + 8 else -1
        fits = size == load_u32(packet + _P.wire_size) and 0 <= number < count
        row = rows + number * 16
        if (
            fits
            and load_i64(row + 8) == size - headers
            and _memcmp(load_i64(row), at + headers, size - headers) == 0
        ):
            good += 1
            store_u8(seen + number, load_u8(seen + number) + 1)
        else:
            wrong += 1
        ns = load_i64(packet + _P.recv_ns)
        ordered += 1 if ns >= last_ns else 0
        last_ns = ns
        store_relaxed(totals, good)
        store_relaxed(totals + 8, wrong)
        store_relaxed(totals + 16, ordered)


class Reader:
    """A thread inside check_datagrams over some sources, from `start` to `stop`."""

    def __init__(self, segment: Segment, owners: list[Source], datagrams: Datagrams) -> None:
        self.sources = Sources(segment, owners)
        self._stop = create_stop(segment)
        self.seen, self._totals = np.zeros(datagrams.count, np.uint8), np.zeros(8, np.int64)
        packet = segment.allocate("packet", PACKET.size)
        arguments = (
            self.sources.state, packet, datagrams.rows.ctypes.data, datagrams.count, self.seen.ctypes.data,
            self._totals.ctypes.data, self._stop,
        )  # fmt: skip
        self._thread = threading.Thread(target=check_datagrams, args=arguments)

    @property
    def good(self) -> int:
        return int(self._totals[0])

    @property
    def wrong(self) -> int:
        return int(self._totals[1])

    @property
    def ordered(self) -> int:
        return int(self._totals[2])

    def start(self) -> None:
        self._thread.start()

    def finish(self, is_done) -> None:
        """Wait until is_done(), at most WAIT_S, then stop the thread."""
        until = time.monotonic() + WAIT_S
        while not is_done() and time.monotonic() < until:
            time.sleep(0.002)
        request_stop(self._stop)
        self._thread.join()


class Packets:
    """A hand at a source: takes packets one at a time."""

    def __init__(self, segment: Segment, *owners: Source, name: str = "hand") -> None:
        self.sources = Sources(segment, owners, name)
        self.packet = segment.allocate(f"{name}.packet", PACKET.size)
        self.row: Any = segment.array(f"{name}.packet", PACKET)[0]

    def next(self) -> bytes | None:
        """Return the bytes of the next packet (`row` has the rest), or None."""
        status = next_of(self.sources.state, self.packet)
        if status <= 0:
            assert status == 0, status
            return None
        return ctypes.string_at(int(self.row["frame_at"]), int(self.row["size"]))

    def all(self) -> list[bytes]:
        found = []
        while (data := self.next()) is not None:
            found.append(data)
        return found


def send(
    side: Side, datagrams: Datagrams, per_second: int = 0, group: str = GROUP_A, port: int = PORT_A
) -> int:
    """Send datagrams out of a side by the kernel; return how many went out, when they are through."""

    def work() -> int:
        sender = UdpSender(Segment.anonymous(65_536), group, port, interface=side.address)
        try:
            return send_paced(sender.state, datagrams.rows.ctypes.data, datagrams.count, per_second, 0)
        finally:
            sender.close()

    return side.transmit(work)


def send_frames(side: Side, frames: list[bytes]) -> None:
    """Put whole Ethernet frames on the cable; return when they are through."""

    def work() -> None:
        with packet_socket(side.interface, 0) as sock:
            for frame in frames:
                sock.send(frame)

    side.transmit(work)


def plain_frames(rig: Rig) -> socket.socket:
    """Return an ordinary packet socket at the client: the reference for what came over the cable."""
    return rig.client.run(packet_socket, rig.client.interface, 0x0003)
