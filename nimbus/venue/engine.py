"""The owner of the matching engine: a background flow of ITCH messages and our orders make one market.

engine_flow.py    what a message of the flow becomes      engine_match.py   who trades with whom
engine_orders.py  what happens to our orders              engine_layout.py  records, reasons, counters
"""

from __future__ import annotations

from typing import Any, Final

from nimbus.book.owner import Books
from nimbus.feed.itch import SIZE_MAX
from nimbus.messages import CHANGE
from nimbus.venue.engine_layout import (
    COUNTED,
    COUNTERS,
    ENGINE,
    EVENTS_MAX,
    LOCATES,
    ORDER_EVENT,
    OWN,
    REQUEST,
    EngineState,
)
from nimbus.venue.publisher import Publisher
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring

_E, _C = ENGINE.at, COUNTERS.at
_MESSAGE_ROOM: Final = 64
assert SIZE_MAX <= _MESSAGE_ROOM

ORDERS_MAX: Final = 1 << 20
REQUESTS_CAPACITY, EVENTS_CAPACITY = 1_024, 8_192


class Engine:
    """Own the engine's memory and its rings; `state` goes to the kernels.

    books, recorded: with room for at least as much each, the published one for our orders as well.
    orders_max: orders of ours in the life of the process.
    """

    def __init__(
        self, segment: Segment, books: Books, recorded: Books, publisher: Publisher, *,
        orders_max: int = ORDERS_MAX, requests_capacity: int = REQUESTS_CAPACITY,
        events_capacity: int = EVENTS_CAPACITY,
    ) -> None:  # fmt: skip
        if events_capacity < EVENTS_MAX:
            msg = f"the events ring holds {events_capacity} records, {EVENTS_MAX} are needed"
            raise ValueError(msg)
        self.orders_max = orders_max
        self.requests = create_ring(segment, "engine.requests", requests_capacity, REQUEST)
        self.events = create_ring(segment, "engine.events", events_capacity, ORDER_EVENT)
        words = segment.allocate("engine", ENGINE.size + COUNTERS.size)
        self._words = segment.words(words, (ENGINE.size + COUNTERS.size) // 8)
        self._own = segment.allocate("engine.own", (orders_max + 1) * OWN.size)
        self._orders: Any = segment.array("engine.own", OWN)
        state = {
            "requests": self.requests, "events": self.events, "own": self._own, "orders_max": orders_max,
            "touched": segment.allocate("engine.touched", LOCATES),
            "message": segment.allocate("engine.message", _MESSAGE_ROOM),
            "change": segment.allocate("engine.change", CHANGE.size),
            "flow": segment.allocate("engine.flow", CHANGE.size),
        }  # fmt: skip
        for field, value in state.items():
            self._words[getattr(_E, field) // 8] = value
        self.state = EngineState(
            books=books.state, recorded=recorded.state, publisher=publisher.addr, words=words
        )

    def set_now(self, now_ns: int) -> None:
        """Set the time, as the loop does in each cycle; while no loop runs."""
        self._words[_E.now_ns // 8] = now_ns

    def counters(self) -> dict[str, int]:
        """Return how often each thing happened (COUNTERS says what each means)."""
        first = ENGINE.size // 8
        return {name: int(self._words[first + getattr(_C, name) // 8]) for name in COUNTED}

    def resting(self) -> dict[int, int]:
        """Return the shares open of each order of ours in the book, by number."""
        used = min(self.counters()["orders"], self.orders_max)  # numbers are given in order
        numbers = self._orders["resting"][: used + 1].nonzero()[0]
        return {int(number): int(self._orders[number]["leaves_qty"]) for number in numbers}
