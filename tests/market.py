"""A market of a few symbols fed by hand, and kernels that walk its books as the venue does."""

from __future__ import annotations

import ctypes

import numpy as np
from days import ADD, OPEN_NS, directory, symbol

from nimbus.book import order_map, walk
from nimbus.book.book import apply
from nimbus.book.owner import Books
from nimbus.messages import CHANGE
from ringbuf.jit import kernel
from ringbuf.memory import store_i64
from ringbuf.segment import Segment
from ringbuf.seqlock import read

NS = OPEN_NS.to_bytes(6, "big")
AT = (1, 0, NS)


@kernel
def apply_one(books, msg: int, seq: int, recv_ns: int, change: int) -> int:
    return apply(books, msg, seq, recv_ns, change)


@kernel
def find_ref(books, ref: int) -> int:
    return walk.find_order(books, ref)


@kernel
def queue(books, locate: int, side: int, px: int, refs: int) -> int:
    level, n = walk.find_level(books, locate, side, px), 0
    order = walk.level_first(books, level) if level >= 0 else -1
    while order >= 0:
        store_i64(refs + n * 8, walk.order_ref(books, order))
        order, n = walk.order_next(books, order), n + 1
    return n


@kernel
def prices(books, locate: int, side: int, pxs: int) -> int:
    level, n = walk.best_level(books, locate, side), 0
    while level >= 0:
        store_i64(pxs + n * 8, walk.level_px(books, level))
        level, n = walk.worse_level(books, level), n + 1
    return n


@kernel
def bucket_of(books, ref: int) -> int:
    return order_map.head_of(books, ref)


@kernel
def read_cell(cell: int, target: int, size: int) -> int:
    return read(cell, target, size)


class Market:
    """Books of a few symbols, fed by hand."""

    def __init__(self, *, segment_size: int = 1 << 26, **capacity) -> None:
        capacity = {"symbols_max": 16, "live_orders_max": 20_000, "levels_max": 20_000} | capacity
        self.books = Books(Segment.anonymous(segment_size), **capacity)
        self.state = self.books.state
        self.change = np.zeros(1, CHANGE.dtype)
        self.buffer, self.seq = ctypes.create_string_buffer(64), 0
        self.send(directory(1, NS), directory(2, NS))

    def send(self, *messages: bytes) -> int:
        """Apply messages; return what apply() answered to the last."""
        status = 0
        for message in messages:
            self.seq += 1
            ctypes.memmove(self.buffer, message, len(message))
            addresses = (ctypes.addressof(self.buffer), self.seq, 77, self.change.ctypes.data)
            status = apply_one(self.state, *addresses)
        return status

    def add(self, ref: int, side: bytes, px: int, qty: int = 100, locate: int = 1) -> int:
        """Add an order; return what apply() answered."""
        return self.send(ADD(b"A", locate, 0, NS, ref, side, qty, symbol(locate), px))

    def refs(self, side: int, px: int) -> list[int]:
        """Return the references at a price of locate 1, first to last."""
        out = np.zeros(64, np.int64)
        return out[: queue(self.state, 1, side, px, out.ctypes.data)].tolist()

    def pxs(self, side: int) -> list[int]:
        """Return the prices of a side of locate 1, best first."""
        out = np.zeros(20_000, np.int64)
        return out[: prices(self.state, 1, side, out.ctypes.data)].tolist()

    def top(self) -> tuple[int, ...]:
        """Return bid price and size, ask price and size of locate 1."""
        top = self.books.top(1)
        return top["bid_px"], top["bid_qty"], top["ask_px"], top["ask_qty"]

    def changed(self, *names: str) -> tuple[int, ...]:
        """Return fields of the last CHANGE."""
        return tuple(int(self.change[name][0]) for name in names)
