"""The understudy: a small desk that plays a whole tick while the loop idles, so that real ones find all warm.

An order is made a few hundred times a second, and in between the code that makes it leaves the caches: other
work of the core, and of its neighbours, takes the room.  So a made-up packet is carried through the very same
kernels, in memory of its own, to an order that nobody is sent.  Each play begins as the first one did: the
lines that a play changes are found at the start, and put back after each.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.plan import Plan
from bicep.plan.layout import PLAN
from daemon.config import Config
from daemon.loops import REHEARSAL, no_rehearsal, play
from daemon.model import Model
from daemon.pipeline import TIMED_MASK
from daemon.settings import adjusted
from daemon.system import System
from daemon.wire_input import NoInput
from nimbus.feed.itch import ADD, DELETE, DIRECTORY, Message
from nimbus.messages import JOURNAL, LINK_ETHERNET, PACKET
from nimbus.orders.state import ORDERS
from ringbuf.records import CACHE_LINE
from ringbuf.segment import Segment

_SIZE: Final = 32 << 20  # bytes mapped; what is not touched costs nothing
LINES_MAX: Final = 1_024  # lines that a play may change
PLAYS_MAX: Final = 8  # plays whose changes are collected
FRAME_MAX: Final = 256
UNTIMED_INTENT: Final = 1  # intents taken before the play: one in four is timed, and this one is not
assert UNTIMED_INTENT & TIMED_MASK
_GROUP, _PORT, _SENDER = "239.192.0.1", 26_400, bytes([10, 64, 0, 1])
_SESSION: Final = b"UNDERSTUDY"
_SYMBOL, _LOCATE = b"STANDIN ", 1
_OPEN_NS, _STEP_NS = 34_200_000_000_000, 2_000_000_000
_BID_PX, _ASK_PX, _TICK_PX = 1_000_000, 1_000_200, 100
_DEPTH, _QUOTES = 6, 48  # levels of a side; changes of the best bid before the play: 96 s
_CHANGES: Final = {
    "model.kind": "linear", "model.folder": "", "venue.kind": "paper", "news.file": "", "epoch": 1,
    "feed.source": "udp", "feed.line_a": f"{_GROUP}:{_PORT}", "feed.line_b": "", "feed.rerequest": "",
    "feed.snapshot": "", "feed.gap_messages": 1_024, "book.symbols_max": 2, "book.live_orders_max": 1_024,
    "book.levels_max": 1_024, "orders.day_orders_max": 64, "journal.ring_records": 256,
    "risk.sigma_max": 1.0,
}  # fmt: skip
# Trading parameters: while the book is built nothing is worth its cost, in the play every finite answer is.
_IDLE: Final = {"fee": 1e9}
_EAGER: Final = {"fee": -1.0, "agreement_min": 0.0, "sigma_max": 1e9}


def _itch(kind: Message, ts_ns: int, **fields: Any) -> bytes:
    row = np.zeros(1, kind.dtype)
    row["code"], row["locate"] = kind.letter, _LOCATE
    row["ts_ns"] = np.frombuffer(ts_ns.to_bytes(6, "big"), "V6")
    for name, value in fields.items():
        row[name] = value
    return row.tobytes()


def _add(ts_ns: int, ref: int, side: str, qty: int, px: int) -> bytes:
    return _itch(ADD, ts_ns, order_ref=ref, side=side, qty=qty, symbol=_SYMBOL, px=px)


def _story() -> Iterator[bytes]:
    """Yield messages: a book, whose best bid then changes for a minute and a half; the last is the play's."""
    now_ns, ref = _OPEN_NS, 1
    yield _itch(DIRECTORY, now_ns, symbol=_SYMBOL)
    for level in range(_DEPTH):
        for side, px in (("B", _BID_PX - level * _TICK_PX), ("S", _ASK_PX + level * _TICK_PX)):
            yield _add(now_ns, ref, side, 200, px)
            ref += 1
    for quote in range(_QUOTES):
        now_ns += _STEP_NS
        yield _itch(DELETE, now_ns, order_ref=ref) if quote % 2 else _add(now_ns, ref, "B", 100, _BID_PX)
        ref += quote % 2
    yield _add(now_ns + _STEP_NS // 4, ref, "B", 300, _BID_PX)


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    check: int = ~(total + (total >> 16)) & 0xFFFF
    return check


def _frame(seq: int, message: bytes) -> bytes:
    """Return an Ethernet frame with one message of the feed."""
    group = bytes(map(int, _GROUP.split(".")))
    body = struct.pack(">10sQHH", _SESSION, seq, 1, len(message)) + message
    size = 8 + len(body)
    udp = struct.pack(">HHHH", _PORT, _PORT, size, 0)
    pseudo = _SENDER + group + struct.pack(">HH", 17, size)
    check = _checksum(pseudo + udp + body + bytes(len(body) % 2)) or 0xFFFF
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, seq, 0x4000, 16, 17, 0) + _SENDER + group
    ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
    return bytes.fromhex("01005e400001 020000000001 0800") + ip + udp[:6] + struct.pack(">H", check) + body


class Understudy:
    """Own the desk: its system and memory, the packet that it plays, the lines that it puts back.

    `rehearsal` goes to run_compact.  digits: of its FIX times, as the daemon's, since they shape the path.
    model: the daemon's, None = the linear rule; its plan is asked by a twin, at the rung that serves.
    """

    def __init__(self, digits: int, model: Model | None = None) -> None:
        config = adjusted(Config(), _CHANGES | {"orders.timestamp_digits": digits})
        segment = Segment.anonymous(_SIZE)
        self.system = System(config, None, segment=segment, source=NoInput())
        self.system.control["depths"] = 1
        self.system.arm("understudy", "nobody is sent its orders")
        self._frame = segment.allocate("understudy.frame", FRAME_MAX)
        self._packet: Any = segment.array("market.packet", PACKET)[0]
        self._lines = segment.allocate("understudy.lines", LINES_MAX * CACHE_LINE)
        self._places = segment.allocate("understudy.places", LINES_MAX * 8)
        self.rehearsal = no_rehearsal(segment, self.system.pipeline._replace(venue=0))
        self._words: Any = segment.array("rehearsal", REHEARSAL)[0]
        if model is not None and model.plan is not None:
            self._ask(model, model.plan)
        self._trade(_IDLE)
        *told, last = _story()
        for seq, message in enumerate(told, 1):
            self._take(seq, message)
            play(self.rehearsal)
        for stream in self.system.streams:
            stream.release(sum(map(len, stream.waiting())) // JOURNAL.size)
        self._take(len(told) + 1, last)
        self._trade(_EAGER)
        segment.words(self.system.orders.addr + ORDERS.at.intents, 1)[0] = UNTIMED_INTENT
        self._note()

    def _ask(self, model: Model, plan: Plan) -> None:
        """Let the daemon's model answer, through a twin of its plan."""
        strategy, twin = self.system.strategy, plan.twin("understudy.plan")
        model.apply(strategy.normalisation)
        strategy.head["plan"], strategy.head["rule"] = twin.state, 0
        self._words["rung"], self._words["rung_played"] = plan.state + PLAN.at.rung, twin.state + PLAN.at.rung

    def _trade(self, parameters: Mapping[str, float]) -> None:
        for name, value in parameters.items():
            self.system.strategy.model.head[name] = value

    def _take(self, seq: int, message: bytes) -> None:
        """Make a message the packet in hand."""
        frame, now_ns = _frame(seq, message), int.from_bytes(message[5:11], "big")
        ctypes.memmove(self._frame, frame, len(frame))
        for name, value in {
            "frame_at": self._frame, "recv_ns": now_ns, "number": seq, "size": len(frame),
            "wire_size": len(frame), "link": LINK_ETHERNET,
        }.items():  # fmt: skip
            self._packet[name] = value
        self._words["now_ns"] = now_ns

    def _note(self) -> None:
        """Play until no play changes more lines, and note how those were before the first.

        Where there are more than LINES_MAX nothing will be played: what is not put back would add up.
        """
        memory = self._memory()
        before = memory.copy()
        changed = np.zeros(len(memory), bool)
        for _ in range(PLAYS_MAX):
            play(self.rehearsal)
            now_changed = (memory != before).any(axis=1)
            memory[:] = before
            if not (now_changed & ~changed).any():
                break
            changed |= now_changed
        lines = np.flatnonzero(changed)
        if len(lines) > LINES_MAX:
            return
        base = int(memory.ctypes.data)
        places = self.system.segment.words(self._places, LINES_MAX)
        kept = self.system.segment.words(self._lines, LINES_MAX * 8).reshape(-1, 8)
        places[: len(lines)] = base + lines * CACHE_LINE
        kept[: len(lines)] = before[lines]
        self._words["places"], self._words["lines"] = self._places, self._lines
        self._words["count"] = len(lines)

    def _memory(self) -> NDArray[np.int64]:
        """Return all areas but those of the notes, as lines of eight words."""
        segment = self.system.segment
        first = min(addr for addr, _ in segment.areas.values())
        return segment.words(first, (self._lines - first) // 8).reshape(-1, 8)
