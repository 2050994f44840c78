"""The shadow book: the published market as the cold side sees it, for snapshots.

It reads the store in order (`follow`), applies each message to books of its own, and keeps the last state
message of each kind and symbol as it was sent.  Between two calls it stands still at a known sequence
number, so an image of it is consistent while the feed goes on in another thread.  The image is written as
SoupBinTCP packets, in the order of nimbus/feed/soupbin.py: S V W; then of each symbol R H Y h K J I N O, and
its orders, bids before asks, best price first, in the order of their queues, all as A with the shares left.

Departures: L is not kept (it changes no book), and the attribution of F is lost.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from nimbus.book import walk
from nimbus.book.book import apply
from nimbus.book.layout import BOOK, BOOKS, BookState
from nimbus.book.owner import Books
from nimbus.book.snapshot import live_orders, state_hash
from nimbus.feed.itch import (
    ADD,
    DIRECT_LISTING,
    DIRECTORY,
    IPO_QUOTING,
    LULD_COLLAR,
    MWCB_LEVEL,
    MWCB_STATUS,
    NOII,
    OPERATIONAL_HALT,
    REG_SHO,
    RETAIL_INTEREST,
    SYSTEM_EVENT,
    TRADING_ACTION,
    size_of,
)
from nimbus.messages import BUY, CHANGE, SELL
from nimbus.venue.store import LENGTH_SIZE, SLOT_SIZE, Store, block_at, follow_to, newest
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    copy,
    load_i64,
    load_u8,
    put_u1,
    put_u2,
    put_u4,
    put_u6,
    put_u8,
    store_i64,
    store_u8,
    u1,
    u2,
)
from ringbuf.records import record
from ringbuf.segment import Segment

FOLLOW_MAX: Final = 65_536  # messages in one call
PACKET_OVERHEAD: Final = 3  # length and type of a SoupBinTCP packet
_SEQUENCED: Final = ord("S")
# Places of the kept messages: by kind; the operational halt has one for each market.
_MARKET_KINDS: Final = (SYSTEM_EVENT.code, MWCB_LEVEL.code, MWCB_STATUS.code)
_R, _HALT = DIRECTORY.code, OPERATIONAL_HALT.code
_KINDS: Final = (
    DIRECTORY.code, TRADING_ACTION.code, REG_SHO.code, IPO_QUOTING.code, LULD_COLLAR.code, NOII.code,
    RETAIL_INTEREST.code, DIRECT_LISTING.code,
)  # fmt: skip
_HALT_MARKETS: Final = (ord("Q"), ord("B"), ord("X"))
PLACES: Final = len(_KINDS) + len(_HALT_MARKETS)

SHADOW = record(
    "SHADOW",
    f"""
    i8  store      STORE that is followed (fixed)
    i8  change     CHANGE, scratch (fixed)
    i8  kept       address of {PLACES} slots for each locate: length and message, length 0 = none (fixed)
    i8  market     address of {len(_MARKET_KINDS)} such slots for the market (fixed)
    i8  seq        message applied last
    3i8 pad        zero
    """,
)
_S, _ADD, _BOOK, _BOOKS = SHADOW.at, ADD.at, BOOK.at, BOOKS.at
_A, _ADD_SIZE, _BOOK_SIZE = ADD.code, ADD.size, BOOK.size
_LOCATE_AT, _MARKET_AT = DIRECTORY.at.locate, OPERATIONAL_HALT.at.market
IMAGE_ORDER_SIZE: Final = PACKET_OVERHEAD + ADD.size


@inlined
def _place_of(message: int, code: int) -> int:
    """Return the place of a kind among those of its symbol, -1 = it is not kept."""
    for place in range(len(_KINDS)):
        if code == _KINDS[place]:
            return place
    if code == _HALT:
        for market in range(len(_HALT_MARKETS)):
            if u1(message + _MARKET_AT) == _HALT_MARKETS[market]:
                return len(_KINDS) + market
    return -1


@inlined
def _remember(shadow: int, symbols_max: int, message: int, code: int) -> None:
    size, target = size_of(code), 0
    for place in range(len(_MARKET_KINDS)):
        if code == _MARKET_KINDS[place]:
            target = load_i64(shadow + _S.market) + place * SLOT_SIZE
    if target == 0:
        place, locate = _place_of(message, code), u2(message + _LOCATE_AT)
        if place < 0 or locate >= symbols_max:
            return
        target = load_i64(shadow + _S.kept) + (locate * PLACES + place) * SLOT_SIZE
    put_u2(target, size)
    copy(target + LENGTH_SIZE, message, size)


@kernel
def follow(shadow: int, books: BookState, limit: int) -> int:
    """Apply up to `limit` messages that were published since; return how many."""
    store, seq = load_i64(shadow + _S.store), load_i64(shadow + _S.seq)
    count = min(newest(store) - seq, limit)
    for number in range(seq + 1, seq + 1 + count):
        message = block_at(store, number) + LENGTH_SIZE
        if apply(books, message, number, 0, load_i64(shadow + _S.change)) >= 0:
            _remember(shadow, books.symbols_max, message, u1(message))
    if count > 0:
        store_i64(shadow + _S.seq, seq + count)
        follow_to(store, seq + count)  # from here on the slots may be written anew
    return count


@inlined
def _put_packet(target: int, slot: int) -> int:
    """Write the packet of a kept message, if there is one; return the address behind it."""
    size = u2(slot)
    if size == 0:
        return target
    put_u2(target, size + 1)
    put_u1(target + LENGTH_SIZE, _SEQUENCED)
    copy(target + PACKET_OVERHEAD, slot + LENGTH_SIZE, size)
    return target + PACKET_OVERHEAD + size


@inlined
def _put_order(books: BookState, target: int, locate: int, side: int, px: int, slot: int) -> int:
    put_u2(target, _ADD_SIZE + 1)
    put_u1(target + LENGTH_SIZE, _SEQUENCED)
    message = target + PACKET_OVERHEAD
    put_u1(message, _A)
    put_u2(message + _ADD.locate, locate)
    put_u2(message + _ADD.tracking, 0)
    put_u6(message + _ADD.ts_ns, load_i64(books.words + _BOOKS.exch_ns))
    put_u8(message + _ADD.order_ref, walk.order_ref(books, slot))
    put_u1(message + _ADD.side, side)
    put_u4(message + _ADD.qty, walk.order_qty(books, slot))
    symbol = books.books + locate * _BOOK_SIZE + _BOOK.symbol
    for index in range(8):
        letter = load_u8(symbol + index)
        store_u8(message + _ADD.symbol + index, letter if letter != 0 else ord(" "))
    put_u4(message + _ADD.px, px)
    return message + _ADD_SIZE


@kernel
def _put_side(books: BookState, target: int, locate: int, side: int) -> int:
    level = walk.best_level(books, locate, side)
    while level >= 0:
        slot, px = walk.level_first(books, level), walk.level_px(books, level)
        for _ in range(walk.level_count(books, level)):
            target = _put_order(books, target, locate, side, px, slot)
            slot = walk.order_next(books, slot)
        level = walk.worse_level(books, level)
    return target


@kernel
def write_image(shadow: int, books: BookState, target: int) -> int:
    """Write the image as packets (there is room: image_bytes); return its bytes."""
    at = target
    for place in range(len(_MARKET_KINDS)):
        at = _put_packet(at, load_i64(shadow + _S.market) + place * SLOT_SIZE)
    for locate in range(books.symbols_max):
        slot = load_i64(shadow + _S.kept) + locate * PLACES * SLOT_SIZE
        for _ in range(PLACES):
            at = _put_packet(at, slot)
            slot += SLOT_SIZE
        if locate > 0:
            at = _put_side(books, at, locate, BUY)
            at = _put_side(books, at, locate, SELL)
    return at - target


class Shadow:
    """Own the shadow book; for one cold thread.  books: as large as the published ones, and its own."""

    def __init__(self, segment: Segment, store: Store, books: Books) -> None:
        self._books = books
        self.addr = segment.allocate("shadow", SHADOW.size)
        self._record: Any = segment.array("shadow", SHADOW)[0]
        state = {
            "store": store.addr, "change": segment.allocate("shadow.change", CHANGE.size),
            "kept": segment.allocate("shadow.kept", books.symbols_max * PLACES * SLOT_SIZE),
            "market": segment.allocate("shadow.market", len(_MARKET_KINDS) * SLOT_SIZE),
        }  # fmt: skip
        for field, value in state.items():
            self._record[field] = value

    def warm(self) -> None:
        """Compile what the shadow calls, or load it from the cache, without a message."""
        self.follow(0)
        self.image()
        self.state_hash()

    @property
    def seq(self) -> int:
        """Sequence number of the message applied last."""
        return int(self._record["seq"])

    def follow(self, limit: int = FOLLOW_MAX) -> int:
        """Catch up by at most `limit` messages; return how many were applied."""
        return follow(self.addr, self._books.state, limit)

    def state_hash(self) -> int:
        """Return the hash over all orders of the shadow book."""
        return state_hash(self._books.state)

    def image(self) -> tuple[int, bytes]:
        """Return (sequence number it stands for, the packets of the image without its end)."""
        state = self._books.state
        bound = live_orders(state) * IMAGE_ORDER_SIZE
        bound += (len(_MARKET_KINDS) + PLACES * state.symbols_max) * (PACKET_OVERHEAD + SLOT_SIZE)
        target = np.empty(bound, np.uint8)
        size = write_image(self.addr, state, target.ctypes.data)
        return self.seq, target[:size].tobytes()
