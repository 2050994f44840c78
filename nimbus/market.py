"""The market agent: packets in, books and BOOK_EVENTs out.

One call of `fetch` gives the next message, in order and once; `apply_message` applies it and publishes.  The
live loop calls both up to BATCH_MAX times a cycle; `inline` calls them once, so that the venue steps between.
A run that begins anew empties the books; missing messages mark every book: nobody knows whose they were.
In a live feed gaps come and go, so the marks stand once, at locate 0, and count for every book.  A snapshot
is applied without BOOK_EVENTs: it is no news.  Written by the market loop only.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, Final

from nimbus.book.book import apply
from nimbus.book.layout import BookState
from nimbus.book.levels import warm_best
from nimbus.book.order_map import warm_bucket, warm_order
from nimbus.book.owner import Books
from nimbus.book.publish import mark, mark_all, write_event
from nimbus.book.reset import reset
from nimbus.feed.decode import Feed, next_message, open_packet
from nimbus.feed.itch import DELETE, size_of
from nimbus.feed.moldudp64 import MOLD
from nimbus.feed.packet import USUAL_SIZE
from nimbus.feed.state import FEED
from nimbus.feed.timers import feed_timers, is_loading
from nimbus.messages import (
    BOOK_EVENT,
    BOOK_INCOMPLETE,
    BOOK_STALE,
    CHANGE,
    DEPTH_CHANGED,
    LINK_UDP,
    PACKET,
    STATE_CHANGED,
    TOP_CHANGED,
    TRADED,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u16, load_u32, prefetch_write, store_i64, u1, u2, u8
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment
from ringbuf.spsc import claim, create_ring, publish, warm_slot

BATCH_MAX: Final = 256
EVENTS_CAPACITY: Final = 4_096
_CHANGE_LINES: Final = CHANGE.size // CACHE_LINE
_WORTH_TELLING: Final = TOP_CHANGED | TRADED | STATE_CHANGED

MARKET = record(
    "MARKET",
    """
    i8  run         run of the feed that the books hold
    i8  marks       BOOK_STALE, BOOK_INCOMPLETE: what all books are marked with
    i8  messages    messages applied
    i8  events      BOOK_EVENTs published
    i8  lost        BOOK_EVENTs not published: the ring was full
    i8  now_ns      time of the packet in hand; never falls
    i8  bad         messages that the books refused
    i8  foreseen    address of the message whose symbol's lines were asked for last
    """,
)
_F, _M, _P = FEED.at, MARKET.at, PACKET.at
_LOCATE_AT, _REF_AT = DELETE.at.locate, DELETE.at.order_ref
MESSAGE_MIN: Final = DELETE.size  # bytes up to the end of the first order reference
_IN_UDP: Final = MOLD.size + 2  # behind the length of the message
_IN_FRAME: Final = USUAL_SIZE + _IN_UDP

MarketState = namedtuple("MarketState", ["feed", "books", "change", "packet", "events", "words"])


@kernel
def renew(market: MarketState) -> None:
    """Follow the feed into a new run, or mark the books because messages are missing."""
    run = load_i64(market.feed + _F.run)
    marks = BOOK_STALE * load_i64(market.feed + _F.stale)
    marks += BOOK_INCOMPLETE * load_i64(market.feed + _F.incomplete)
    if run != load_i64(market.words + _M.run):
        if load_i64(market.words + _M.run) != 0:
            reset(market.books)
        store_i64(market.words + _M.run, run)
        store_i64(market.words + _M.marks, 0)
    before = load_i64(market.words + _M.marks)
    if marks != before:
        if load_i64(market.feed + _F.arbiter) != 0:
            mark(market.books, 0, marks, before & ~marks, 0)
        else:
            mark_all(market.books, marks, before & ~marks)
        store_i64(market.words + _M.marks, marks)


@inlined
def foresee(events: int, change: int) -> None:
    """Fetch what the next message is written to: CHANGE and the slot of its event."""
    warm_slot(events)
    for line in range(_CHANGE_LINES):
        prefetch_write(change + line * CACHE_LINE)


@inlined
def usual_message(market: MarketState) -> int:
    """Return where the first message stands if the packet in hand is a usual one; 0 = it is too short.

    A guess, for those who fetch: the packet has not been opened.  MESSAGE_MIN bytes are there.
    """
    at = _IN_UDP if load_u16(market.packet + _P.link) == LINK_UDP else _IN_FRAME
    if load_u32(market.packet + _P.size) < at + MESSAGE_MIN:
        return 0
    return load_i64(market.packet + _P.frame_at) + at


@inlined
def has_reference(message: int) -> bool:
    """Say whether a message in hand has the MESSAGE_MIN bytes that are read to foresee it."""
    return size_of(u1(message)) >= MESSAGE_MIN


@inlined
def is_foreseen(market: MarketState, message: int) -> bool:
    """Say whether the last call of foresee_message was for the message at this address."""
    return load_i64(market.words + _M.foreseen) == message


@inlined
def foresee_message(market: MarketState, message: int) -> int:
    """Fetch what a message's book and order are found by; return its locate.  MESSAGE_MIN bytes are read."""
    store_i64(market.words + _M.foreseen, message)
    books, locate = market.books, u2(message + _LOCATE_AT)
    if locate < books.symbols_max:
        warm_best(books, locate)
    warm_bucket(books, u8(message + _REF_AT))
    return locate


@inlined
def foresee_order(market: MarketState, message: int) -> None:
    """Fetch the order that a foreseen message names; its bucket should be near by now."""
    warm_order(market.books, u8(message + _REF_AT))


@inlined
def take_packet(market: MarketState) -> int:
    """Open the PACKET in hand and move the clock; return its time."""
    open_packet(market.feed, market.packet)
    now_ns = max(load_i64(market.words + _M.now_ns), load_i64(market.feed + _F.recv_ns))
    store_i64(market.words + _M.now_ns, now_ns)
    renew(market)
    return now_ns


@inlined
def pass_time(market: MarketState, now_ns: int) -> int:
    """Let a live feed's deadlines pass, once per duty cycle, when fetch has given 0.

    now_ns: the loop's clock.  Returns above 0 when fetch has something to give again: repaired messages or
    those of a snapshot.
    """
    status = feed_timers(market.feed, now_ns)
    renew(market)
    return status


@inlined
def fetch(market: MarketState) -> int:
    """Return the address of the next message of the packet in hand, 0 when it is used up."""
    return next_message(market.feed)


@inlined
def apply_message(market: MarketState, message: int) -> int:
    """Apply a message to its book and tell the strategy when top, trade or state changed.

    Returns the flags of BOOK_EVENT, or the negative status of a message that was refused (and counted).
    """
    words = market.words
    seq, recv_ns = load_i64(market.feed + _F.seq), load_i64(market.feed + _F.recv_ns)
    flags = apply(market.books, message, seq, recv_ns, market.change)
    store_i64(words + _M.messages, load_i64(words + _M.messages) + 1)
    if flags < 0:
        store_i64(words + _M.bad, load_i64(words + _M.bad) + 1)
    elif flags & _WORTH_TELLING and not is_loading(market.feed):
        event = claim(market.events)
        if event == 0:
            store_i64(words + _M.lost, load_i64(words + _M.lost) + 1)
        else:
            write_event(market.books, market.change, event)
            publish(market.events)
            store_i64(words + _M.events, load_i64(words + _M.events) + 1)
    return flags


class Market:
    """Own the market agent's memory: its PACKET, its CHANGE, its words and the BOOK_EVENT ring."""

    def __init__(
        self, segment: Segment, feed: Feed, books: Books, *, events_capacity: int = EVENTS_CAPACITY
    ) -> None:
        self.feed, self.books = feed, books
        self.events = create_ring(segment, "market.events", events_capacity, BOOK_EVENT)
        self.state = MarketState(
            feed=feed.addr,
            books=books.state,
            change=segment.allocate("market.change", CHANGE.size),
            packet=segment.allocate("market.packet", PACKET.size),
            events=self.events,
            words=segment.allocate("market", MARKET.size),
        )
        self.words: Any = segment.array("market", MARKET)[0]

    @property
    def now_ns(self) -> int:
        """Time of the packet in hand."""
        return int(self.words["now_ns"])


__all__ = ["BATCH_MAX", "DEPTH_CHANGED", "BookState", "Market", "MarketState", "apply_message", "fetch"]
