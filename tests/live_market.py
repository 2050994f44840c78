"""A live market in a simulated network: lossy lines, rerequest and snapshot servers, one clock."""

from __future__ import annotations

import ctypes
import heapq
import random
from dataclasses import dataclass, field
from typing import Any

import captures as c
import numpy as np
from book_image import BookImage
from live_rig import MS, US, LiveFed

from nimbus.book.owner import Books
from nimbus.book.snapshot import state_hash
from nimbus.feed.arbiter_state import ROW_ABORT, ROW_BEGIN, ROW_END, ROW_MESSAGES
from nimbus.feed.live import LiveSettings
from nimbus.feed.state import FEED
from nimbus.feed.timers import is_loading
from nimbus.market import MARKET, Market, apply_message, fetch, pass_time, take_packet
from nimbus.messages import BOOK_EVENT, LINK_UDP, PACKET
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, load_u8, store_i64
from ringbuf.segment import Segment
from ringbuf.spsc import front, pop

STREAM_STEP = 50 * US
NUMBERS_MAX = 200_000
TOP_FIELDS = ("bid_px", "bid_qty", "ask_px", "ask_qty", "state", "short_sale", "status")
_F, _E, _M = FEED.at, BOOK_EVENT.at, MARKET.at


@kernel
def take_all(market, numbers: int) -> int:
    """Apply all that the feed has; note the numbers; return the events that lack a mark."""
    wrong, marks = 0, load_i64(market.words + _M.marks)
    while True:
        message = fetch(market)
        if message == 0:
            return wrong
        if not is_loading(market.feed):
            count = load_i64(numbers) + 1
            store_i64(numbers, count)
            store_i64(numbers + 8 * count, load_i64(market.feed + _F.seq))
        apply_message(market, message)
        event = front(market.events)
        if event != 0:
            if is_loading(market.feed) or load_u8(event + _E.status) & marks != marks:
                wrong += 1
            pop(market.events)


@kernel
def packet_in(market, numbers: int) -> int:
    take_packet(market)
    return take_all(market, numbers)


@kernel
def time_in(market, now_ns: int, numbers: int) -> int:
    wrong = 0
    if pass_time(market, now_ns) > 0:
        wrong = take_all(market, numbers)
    pass_time(market, now_ns)
    return wrong + take_all(market, numbers)


@dataclass
class Network:
    """What happens to packets between the exchange and us; rates are probabilities."""

    loss: float = 0.0
    repeat: float = 0.0
    late_ns: tuple[int, int] = (0, 0)  # jitter of each packet, uniform
    b_behind_ns: int = 0
    dead_lines: tuple[int, ...] = ()
    burst: tuple[int, int] = (0, 0)  # numbers of datagrams that are lost on both lines
    reply_loss: float = 0.0
    servers: int = 1
    snapshot: bool = False
    snapshot_faults: int = 0  # snapshots that die half way
    snapshot_age: int = 0  # numbers by which a snapshot is older than the stream
    join_at: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


class LiveMarket(LiveFed):
    """A live feed with books; `numbers` are those delivered from lines and replies."""

    def __init__(self, settings: LiveSettings, **options: Any) -> None:
        super().__init__(settings, **options)
        self.space = Segment.anonymous(64 * 1024 * 1024)
        self.books = Books(self.space, symbols_max=16, live_orders_max=20_000, levels_max=20_000)
        self.market = Market(self.space, self.feed, self.books)
        self.row = self.space.array("market.packet", PACKET)[0]
        self._numbers = np.zeros(NUMBERS_MAX, np.int64)
        self.wrong_marks = 0

    @property
    def numbers(self) -> list[int]:
        return self._numbers[1 : self._numbers[0] + 1].tolist()

    def offer(self, data: bytes, line: int) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        self.row["frame_at"], self.row["size"], self.row["wire_size"] = (
            ctypes.addressof(buffer), len(data), len(data),
        )  # fmt: skip
        self.row["link"], self.row["line"], self.row["recv_ns"] = LINK_UDP, line, self.now_ns
        self.wrong_marks += packet_in(self.market.state, self._numbers.ctypes.data)

    def pass_to(self, now_ns: int) -> tuple[int, int, int] | None:
        """Let time pass; return the request that was due: server, first, count."""
        self.now_ns = now_ns
        before = int(self.live.record["unsent"])
        self.wrong_marks += time_in(self.market.state, now_ns, self._numbers.ctypes.data)
        if int(self.live.record["unsent"]) == before:
            return None
        packet = bytes(self.live.record["request"][:20])
        return (
            int(self.live.record["server"]), int.from_bytes(packet[10:18], "big"),
            int.from_bytes(packet[18:20], "big"),
        )  # fmt: skip

    def state(self) -> tuple:
        """Return all that must not depend on how the messages came."""
        tops = []
        for locate in range(1, 16):
            top = self.books.top(locate)
            tops.append([top[name] for name in TOP_FIELDS])
        notices = [
            self.books.notice(n, kind) for n in range(1, 16) for kind in ("luld", "noii", "retail", "listing")
        ]
        market = self.books.phase, self.books.breaker, self.books.symbols()
        return state_hash(self.books.state), tops, notices, market


class Exchange:
    """Publishes datagrams on two lines of a Network, answers requests and snapshots, drives a LiveMarket."""

    def __init__(self, stream: list[tuple[int, int, bytes]], network: Network, seed: int) -> None:
        self.stream, self.network, self.random = stream, network, random.Random(seed)
        settings = {"window_messages": 1_024, "gap_timeout_ms": 50, "snapshot_hold_ms": 5} | network.settings
        servers = [("127.0.0.1", 1_000 + n) for n in range(network.servers)]
        self.us = LiveMarket(LiveSettings(servers=servers, snapshot=network.snapshot, **settings))
        self.events: list[tuple[int, int, str, Any]] = []
        self.count = self.served = self.published = 0
        self.session, self.messages = b"", dict[int, bytes]()
        self.requests = 0

    def at(self, when_ns: int, kind: str, what: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (when_ns, self.count, kind, what))

    def run(self) -> LiveMarket:
        for index, datagram in enumerate(self.stream):
            self.at(MS + index * STREAM_STEP, "publish", (index, datagram))
        end_ns = MS + len(self.stream) * STREAM_STEP
        last = self.stream[-1]
        for n in range(20):  # the session goes on saying where it ended
            self.at(end_ns + n * MS, "publish", (-1, last))
        now_ns = MS
        for _cycle in range(400_000):
            while self.events and self.events[0][0] <= now_ns:
                self.handle(*heapq.heappop(self.events))
            request = self.us.pass_to(now_ns)
            if request is not None:
                self.asked(now_ns, *request)
            self.serve_snapshot(now_ns)
            if not self.events and self.us.live.phase == "live" and now_ns > end_ns + 30 * MS:
                break
            now_ns += 100 * US
        self.us.check()
        return self.us

    def handle(self, when_ns: int, _order: int, kind: str, what: Any) -> None:
        self.us.now_ns = when_ns
        if kind == "arrive":
            self.us.offer(*what)
            return
        index, (first, count, data) = what
        if count not in {0, 0xFFFF}:
            self.session = data[:10]
            at = 20
            for n in range(first, first + count):
                size = int.from_bytes(data[at : at + 2], "big")
                self.messages[n] = data[at + 2 : at + 2 + size]
                at += 2 + size
            self.published = first + count - 1
        if index >= 0 and first < self.network.join_at:
            return
        for line in {0, 1} - set(self.network.dead_lines):
            burst = self.network.burst[0] <= index < self.network.burst[1]
            for _copy in range(1 + (self.random.random() < self.network.repeat)):
                if burst or (index >= 0 and self.random.random() < self.network.loss):
                    continue
                delay = self.random.randint(*self.network.late_ns) + line * self.network.b_behind_ns
                self.at(when_ns + delay, "arrive", (data, line))

    def asked(self, now_ns: int, _server: int, first: int, count: int) -> None:
        """Answer as a rerequest server: with as many messages as fit one datagram."""
        self.requests += 1
        if self.random.random() < self.network.reply_loss:
            return
        found: list[bytes] = []
        for n in range(first, min(first + count, self.published + 1)):
            if n not in self.messages or sum(map(len, found)) > 1_200:
                break
            found.append(self.messages[n])
        if found:
            self.at(now_ns + 200 * US, "arrive", (c.mold(self.session, first, found), 2))

    def serve_snapshot(self, now_ns: int) -> None:
        wanted = self.us.live.wanted
        if wanted == 0 or wanted == self.served or now_ns % MS:
            return
        self.served = wanted
        seq = max(self.published - self.network.snapshot_age, 0) + 1
        image = BookImage()
        for n in range(1, seq):
            image.apply(self.messages[n])
        messages = image.messages()
        assert self.us.push(ROW_BEGIN, wanted)
        dies = self.network.snapshot_faults > 0
        self.network.snapshot_faults -= dies
        if dies:
            messages = messages[: len(messages) // 2]
        for at in range(0, len(messages), 12):
            assert self.us.push(ROW_MESSAGES, wanted, data=c.blocks(messages[at : at + 12]))
        assert self.us.push(ROW_ABORT if dies else ROW_END, wanted, seq=seq)


def lossless(stream: list[tuple[int, int, bytes]]) -> LiveMarket:
    """Return the market after a stream of which nothing was lost."""
    us = LiveMarket(LiveSettings())
    for _first, _count, data in stream:
        us.offer(data, 0)
    return us
