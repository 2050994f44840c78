"""Drive a live feed from tests: datagrams of lines and the time in; messages, requests, rows out."""

from __future__ import annotations

import ctypes
from typing import Any

from feeding import TAKEN, TAKEN_MAX, take

from nimbus.feed.arbiter_state import ROW_ABORT, ROW_BEGIN, ROW_END, ROW_MESSAGES, SNAPSHOT_ROW
from nimbus.feed.decode import Feed, open_packet
from nimbus.feed.live import LiveSettings
from nimbus.feed.timers import feed_timers, is_loading
from nimbus.messages import LINK_UDP, PACKET
from ringbuf.jit import kernel
from ringbuf.segment import Segment
from ringbuf.spsc import claim, publish

US, MS = 1_000, 1_000_000


@kernel
def claim_row(ring: int) -> int:
    return claim(ring)


@kernel
def publish_row(ring: int) -> None:
    publish(ring)


@kernel
def loading(feed: int) -> bool:
    return is_loading(feed)


class LiveFed:
    """A live Feed with a hand to put datagrams, rows and time in.

    messages: (number, bytes) delivered; books: the same without numbers and with those of snapshots, None
    where the books begin empty; requests: (server, first, count), none is ever sent.
    """

    def __init__(self, settings: LiveSettings, **options: Any) -> None:
        self.segment = Segment.anonymous(16 * 1024 * 1024)
        self.feed = Feed(self.segment, live=settings, **options)
        self.live = self.feed.live
        self.packet = self.segment.allocate("packet", PACKET.size)
        self.row = self.segment.array("packet", PACKET)[0]
        self._rows = self.segment.allocate("taken", TAKEN_MAX * TAKEN.size)
        self._taken = self.segment.array("taken", TAKEN)
        self.messages: list[tuple[int, bytes]] = []
        self.books: list[bytes | None] = []
        self.requests: list[tuple[int, int, int]] = []
        self.run = 0
        self.now_ns = 0

    def datagram(self, data: bytes, line: int = 0, recv_ns: int | None = None) -> int:
        """Offer one datagram; return the status of open_packet."""
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        self.row["frame_at"], self.row["size"] = ctypes.addressof(buffer), len(data)
        self.row["wire_size"], self.row["link"], self.row["line"] = len(data), LINK_UDP, line
        self.row["recv_ns"] = self.now_ns if recv_ns is None else recv_ns
        status = open_packet(self.feed.addr, self.packet)
        self.drain()
        return status

    def tick(self, now_ns: int) -> int:
        """Let time pass; take what it brings."""
        self.now_ns = now_ns
        before = int(self.live.record["unsent"])
        status = feed_timers(self.feed.addr, now_ns)
        self.drain()
        if int(self.live.record["unsent"]) > before:
            packet = bytes(self.live.record["request"][:20])
            assert packet[:10] == self.live.session
            first, count = int.from_bytes(packet[10:18], "big"), int.from_bytes(packet[18:20], "big")
            self.requests.append((int(self.live.record["server"]), first, count))
        return status

    def drain(self) -> None:
        """Take what the cursor stands on."""
        self.books += [None] * (self.feed.run - self.run)
        self.run = self.feed.run
        snapshot = loading(self.feed.addr)
        count = take(self.feed.addr, self._rows, TAKEN_MAX)
        assert count <= TAKEN_MAX
        for row in self._taken[:count]:
            message = bytes(row["bytes"][: row["size"]])
            self.books.append(message)
            if not snapshot:
                self.messages.append((int(row["seq"]), message))

    def push(self, kind: int, wanted: int, *, seq: int = 0, session: bytes = b"", data: bytes = b"") -> bool:
        """Put a row of a snapshot into the ring; False when it is full."""
        slot = claim_row(self.live.ring)
        if slot == 0:
            return False
        row = self.segment.words(slot, SNAPSHOT_ROW.size // 8).view(SNAPSHOT_ROW.dtype)[0]
        row["kind"], row["wanted"], row["seq"] = kind, wanted, seq
        session = session or self.live.session
        row["session_high"] = int.from_bytes(session[:8], "big", signed=True)
        row["session_low"] = int.from_bytes(session[8:], "big")
        count = at = 0
        while at < len(data):
            at, count = at + 2 + int.from_bytes(data[at : at + 2], "big"), count + 1
        row["size"], row["count"] = len(data), count
        row["bytes"][: len(data)] = list(data)
        publish_row(self.live.ring)
        return True

    def snapshot(self, seq: int, messages: list[bytes], wanted: int | None = None) -> None:
        """Load a whole snapshot: the books up to number seq."""
        number = self.live.wanted if wanted is None else wanted
        assert self.push(ROW_BEGIN, number)
        for at in range(0, len(messages), 10):
            part = b"".join(len(m).to_bytes(2, "big") + m for m in messages[at : at + 10])
            assert self.push(ROW_MESSAGES, number, data=part)
        assert self.push(ROW_END, number, seq=seq)
        for _ in range(len(messages) + 3):
            self.tick(self.now_ns)

    def abort(self) -> None:
        """Say that the snapshot that began will not end."""
        assert self.push(ROW_ABORT, int(self.live.record["wanted"]))

    def check(self) -> None:
        """Check what must hold at all times."""
        counts, live = self.feed.counters(), self.live.counters()
        done = counts["delivered"] + live["kept"] + counts["heartbeats"] + counts["session_ends"]
        assert counts["frames"] == done + sum(self.feed.refused().values())
        repaired = live["by_line"] + live["by_rerequest"] + live["by_snapshot"]
        assert live["missing"] == repaired + live["lost"] + self.live.missing_now()
        closed = sum(live[f"gaps_{how}"] for how in ("by_line", "by_rerequest", "by_snapshot", "lost"))
        assert live["gaps"] == closed + int(self.live.record["open"])
        assert (counts["gaps"], counts["missing"]) == (live["gaps"], live["missing"])
        assert self.live.missing_now() >= 0
        assert (int(self.live.record["open"]) == 0) <= (self.live.missing_now() == 0)
