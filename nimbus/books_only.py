"""A capture through feed and books alone: the loop of `contrafusion book`."""

from __future__ import annotations

from typing import Final

from nimbus.book.export import record_row
from nimbus.feed.capture import next_packet
from nimbus.market import MarketState, apply_message, fetch, take_packet
from ringbuf.jit import kernel
from ringbuf.spsc import front, pop

NEED_INPUT, NEED_DRAIN = 0, 1
ROOM_MIN: Final = 1  # a message writes at most one row to each export


@kernel
def walk_books(source: int, market: MarketState, bbo: int, depth: int, messages_max: int) -> int:
    """Apply messages and record rows until NEED_INPUT (chunk used up) or NEED_DRAIN (an export is full).

    bbo, depth: addresses of exports, 0 = none.  Also NEED_DRAIN after messages_max messages and packets,
    so that the caller can show progress and be interrupted: a plain file is one chunk.
    """
    for _ in range(messages_max):
        message = fetch(market)
        if message == 0:
            if next_packet(source, market.packet) <= 0:
                return NEED_INPUT
            take_packet(market)
            continue
        if apply_message(market, message) < 0:
            continue
        if front(market.events) != 0:
            pop(market.events)  # nobody listens here
        full = bbo != 0 and record_row(bbo, market.books, market.change) < ROOM_MIN
        full = (depth != 0 and record_row(depth, market.books, market.change) < ROOM_MIN) or full
        if full:
            return NEED_DRAIN
    return NEED_DRAIN
