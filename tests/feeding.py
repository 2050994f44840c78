"""Drive the feed from tests: frames or files in, delivered messages out."""

from __future__ import annotations

import ctypes
import pathlib
from typing import Any

import numpy as np

from nimbus.feed.capture import CaptureSource, next_packet
from nimbus.feed.decode import Feed, close_feed, next_message, open_packet
from nimbus.feed.itch import size_of
from nimbus.feed.state import FEED, OK
from nimbus.messages import LINK_COOKED1, LINK_COOKED2, LINK_ETHERNET, LINK_RAW_IP, PACKET
from ringbuf.jit import kernel
from ringbuf.memory import copy, load_i64, store_i64, u1
from ringbuf.records import record
from ringbuf.segment import Segment

LINKS = {"ethernet": LINK_ETHERNET, "cooked1": LINK_COOKED1, "cooked2": LINK_COOKED2, "raw": LINK_RAW_IP}
TAKEN = record("TAKEN", "i8 seq number\ni8 recv_ns time\ni8 size bytes\n5i8 pad zero\n64u1 bytes message")
TAKEN_MAX = 4_096
_T, _F, _TAKEN_SIZE = TAKEN.at, FEED.at, TAKEN.size


@kernel
def take(feed: int, target: int, room: int) -> int:
    """Copy the messages of the open packet into TAKEN rows; return how many there were."""
    count = 0
    while True:
        message = next_message(feed)
        if message == 0:
            return count
        if count < room:
            row = target + count * _TAKEN_SIZE
            size = size_of(u1(message))
            store_i64(row + _T.seq, load_i64(feed + _F.seq))
            store_i64(row + _T.recv_ns, load_i64(feed + _F.recv_ns))
            store_i64(row + _T.size, size)
            copy(row + _T.bytes, message, size)
        count += 1


@kernel
def open_at_end(feed: int) -> int:
    return close_feed(feed)


class Fed:
    """A Feed with a hand to put packets in; `messages` holds (sequence number, bytes) in order."""

    def __init__(self, **options: Any) -> None:
        self.segment = Segment.anonymous(4 * 1024 * 1024)
        self.feed = Feed(self.segment, **options)
        self.packet = self.segment.allocate("packet", PACKET.size)
        self.row = self.segment.array("packet", PACKET)[0]
        self._rows = self.segment.allocate("taken", TAKEN_MAX * TAKEN.size)
        self._taken = self.segment.array("taken", TAKEN)
        self.messages: list[tuple[int, bytes]] = []
        self.times: list[int] = []

    def frame(
        self, data: bytes, link: str = "ethernet", wire_size: int | None = None, recv_ns: int = 0
    ) -> int:
        """Offer one frame; return the status of open_packet."""
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        self.row["frame_at"], self.row["size"] = ctypes.addressof(buffer), len(data)
        self.row["wire_size"] = len(data) if wire_size is None else wire_size
        self.row["link"], self.row["recv_ns"] = LINKS[link], recv_ns
        status = open_packet(self.feed.addr, self.packet)
        self.drain()
        return status

    def drain(self) -> None:
        """Take what the open packet brings."""
        count = take(self.feed.addr, self._rows, TAKEN_MAX)
        assert count <= TAKEN_MAX
        for row in self._taken[:count]:
            self.messages.append((int(row["seq"]), bytes(row["bytes"][: row["size"]])))
            self.times.append(int(row["recv_ns"]))

    def close(self) -> None:
        """Say that the file has ended."""
        if open_at_end(self.feed.addr) == OK:
            self.drain()

    def is_balanced(self) -> bool:
        """Say whether every frame was delivered, a control packet, or refused for a reason."""
        counts = self.feed.counters()
        done = counts["delivered"] + counts["heartbeats"] + counts["session_ends"]
        return counts["frames"] == done + sum(self.feed.refused().values())


class Frames:
    """The packets of a file: bytes, time and link of each, and what the source said at the end."""

    def __init__(self, path: pathlib.Path, **options: Any) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.links: list[int] = []
        with CaptureSource.open(path, **options) as source:
            self._read(source)

    def _read(self, source: CaptureSource) -> None:
        segment = Segment.anonymous(8_192)
        packet = segment.allocate("packet", PACKET.size)
        row = segment.array("packet", PACKET)[0]
        more = True
        while more:
            while next_packet(source.state, packet) == 1:
                data = ctypes.string_at(int(row["frame_at"]), int(row["size"]))
                self.frames.append((int(row["recv_ns"]), data))
                self.links.append(int(row["link"]))
            more = source.refill()
        self.truncated, self.warnings, self.packets = source.truncated, source.warnings, source.packets


def guarded_page(pages: int = 20) -> int:
    """Map memory whose next page may not be touched; return the address behind its last byte."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, page = pages * 4_096, 4_096
    base = libc.mmap(None, size + page, 3, 0x22, -1, 0)  # read and write; private, anonymous
    assert base not in {None, ctypes.c_void_p(-1).value}
    assert libc.mprotect(base + size, page, 0) == 0
    return int(base) + size


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
