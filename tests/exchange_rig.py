"""A matching engine with a hand to put background messages and orders in."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from market import apply_one

from nimbus.book.owner import Books, symbol_word
from nimbus.book.snapshot import state_hash
from nimbus.messages import CHANGE, TIF_DAY, TIF_IOC
from nimbus.venue.engine import Engine
from nimbus.venue.engine_flow import step_flow
from nimbus.venue.engine_layout import CANCEL_ORDER, NEW_ORDER, ORDER_EVENT, PRIVATE_REF, REQUEST
from nimbus.venue.engine_orders import step_requests
from nimbus.venue.publisher import Publisher
from nimbus.venue.store import Store
from ringbuf.jit import kernel
from ringbuf.segment import Segment
from ringbuf.spsc import pop_into, try_push

NOW = 1_764_111_111_123_456_789
KINDS = {1: "accepted", 2: "traded", 3: "canceled", 4: "rejected", 5: "cancel rejected"}


@kernel
def push(ring: int, source: int) -> int:
    return 1 if try_push(ring, source) else 0


class Rig:
    """Books of a few symbols and an engine; `published` returns every message sent out so far."""

    def __init__(
        self, *, symbols_max: int = 16, orders_max: int = 4_096, live_orders_max: int = 20_000,
        levels_max: int = 20_000, slots: int = 1 << 16, events: int = 8_192,
    ) -> None:  # fmt: skip
        capacity = {"symbols_max": symbols_max, "levels_max": levels_max}
        self.books = Books(Segment.anonymous(1 << 26), live_orders_max=live_orders_max, **capacity)
        self.recorded = Books(Segment.anonymous(1 << 26), live_orders_max=live_orders_max, **capacity)
        self.segment = Segment.anonymous(1 << 26)
        self.store = Store(self.segment, slots)
        self.publisher = Publisher(self.segment, self.store, None, session="TEST")
        self.engine = Engine(
            self.segment, self.books, self.recorded, self.publisher, orders_max=orders_max,
            events_capacity=events,
        )  # fmt: skip
        self.engine.set_now(NOW)
        self._buffer = ctypes.create_string_buffer(64)
        self._request = np.zeros(1, REQUEST.dtype)
        self._events = np.zeros(events, ORDER_EVENT.dtype)
        self._change = np.zeros(1, CHANGE.dtype)
        self.numbers = self.requests = 0

    def flow(self, *messages: bytes) -> None:
        """Let background messages happen."""
        for message in messages:
            ctypes.memmove(self._buffer, message, len(message))
            step_flow(self.engine.state, ctypes.addressof(self._buffer))

    def books_only(self, message: bytes) -> None:
        """Apply a message to the published books, as a subscriber does."""
        ctypes.memmove(self._buffer, message, len(message))
        apply_one(self.books.state, ctypes.addressof(self._buffer), 1, 0, self._change.ctypes.data)

    def request(self, number: int, kind: int, **fields: Any) -> None:
        """Put a request into the ring and let the engine handle it."""
        self.requests += 1
        row = self._request[0]
        self._request.view(np.uint8)[:] = 0
        for name, value in {"number": number, "kind": kind, "request": self.requests, **fields}.items():
            row[name] = value
        assert push(self.engine.requests, self._request.ctypes.data) == 1
        self.handle()

    def handle(self) -> int:
        return step_requests(self.engine.state, self.store.addr)

    def new(self, side: str, px: int, qty: int, *, symbol: bytes = b"SYM00001", ioc: bool = False) -> int:
        """Send a new order; return its number."""
        self.numbers += 1
        word = symbol_word(symbol.decode())
        tif = TIF_IOC if ioc else TIF_DAY
        self.request(self.numbers, NEW_ORDER, side=ord(side), px=px, qty=qty, tif=tif, symbol=word)
        return self.numbers

    def cancel(self, number: int) -> None:
        self.request(number, CANCEL_ORDER)

    def events(self) -> list[dict[str, int]]:
        """Take the events that the engine has written since."""
        count = pop_into(self.engine.events, self._events.ctypes.data, len(self._events))
        names = [name for name in ORDER_EVENT.at._fields if not name.startswith("pad")]
        return [{name: int(row[name]) for name in names} for row in self._events[:count]]

    def said(self) -> list[tuple]:
        """Take the events in short: (kind, number, px, qty, leaves)."""
        return [
            (KINDS[v["kind"]], v["number"], v["last_px"], v["last_qty"], v["leaves_qty"])
            for v in self.events()
        ]

    def published(self, since: int = 0) -> list[bytes]:
        """Return the messages published after number `since`."""
        return [self.store.message(seq) or b"" for seq in range(since + 1, self.store.last + 1)]

    def hashes(self) -> tuple[int, int]:
        """Return the hashes of the published and of the recorded books."""
        return state_hash(self.books.state), state_hash(self.recorded.state)


def ref(number: int) -> int:
    """Return the reference of an order of ours in the published book."""
    return PRIVATE_REF + number
