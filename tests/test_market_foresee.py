"""What a packet is about is guessed before it is opened: right for usual ones, harmless for all others."""

from __future__ import annotations

import ctypes
import random

import pytest
from captures import ethernet, frame, ipv4, mold, udp
from feeding import guarded_page

from nimbus.book.owner import Books
from nimbus.feed.decode import Feed
from nimbus.feed.itch import ADD, MESSAGES
from nimbus.market import (
    MESSAGE_MIN,
    Market,
    MarketState,
    fetch,
    foresee_message,
    foresee_order,
    has_reference,
    is_foreseen,
    take_packet,
    usual_message,
)
from nimbus.messages import LINK_ETHERNET, LINK_UDP, PACKET
from ringbuf.jit import kernel
from ringbuf.segment import Segment

LONG = [kind for kind in MESSAGES if kind.size >= MESSAGE_MIN]
SHORT = [kind for kind in MESSAGES if kind.size < MESSAGE_MIN]
SESSION, PAGE_END = b"SESSION  1", guarded_page()


@kernel
def guess(market: MarketState) -> int:
    return usual_message(market)


@kernel
def first_of(market: MarketState) -> int:
    take_packet(market)
    return fetch(market)


@kernel
def foresee(market: MarketState, message: int) -> int:
    """Ask for what a message needs; return its locate, -1 when the market does not know of it."""
    locate = foresee_message(market, message)
    if has_reference(message):
        foresee_order(market, message)
    return locate if is_foreseen(market, message) else -1


class Desk:
    """A market with a packet in hand that ends where memory does."""

    def __init__(self) -> None:
        segment = Segment.anonymous(1 << 22)
        books = Books(segment, symbols_max=4, live_orders_max=64, levels_max=64)
        self.market = Market(segment, Feed(segment), books)
        self.row = segment.array("market.packet", PACKET)[0]

    def hold(self, data: bytes, link: int = LINK_ETHERNET) -> int:
        at = PAGE_END - len(data)
        ctypes.memmove(at, data, len(data))
        self.row["frame_at"], self.row["link"] = at, link
        self.row["size"] = self.row["wire_size"] = len(data)
        return at


def message_of(kind, rand: random.Random) -> bytes:
    """Return a message with anything in its fields."""
    return kind.letter.encode() + rand.randbytes(kind.size - 1)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("link", [LINK_ETHERNET, LINK_UDP])
@pytest.mark.parametrize("kind", LONG, ids=[kind.letter for kind in LONG])
def test_the_guess_is_the_message_that_an_opened_packet_begins_with(desk, kind, link):
    message = message_of(kind, random.Random(kind.size))
    datagram = mold(SESSION, 1, [message])
    desk.hold(frame(datagram) if link == LINK_ETHERNET else datagram, link)
    guessed = guess(desk.market.state)
    assert guessed == PAGE_END - kind.size
    assert foresee(desk.market.state, guessed) == int.from_bytes(message[1:3], "big")
    assert first_of(desk.market.state) == guessed


@pytest.mark.parametrize("kind", SHORT, ids=[kind.letter for kind in SHORT])
def test_a_packet_that_is_too_short_for_an_order_reference_is_not_guessed(desk, kind):
    desk.hold(frame(mold(SESSION, 1, [message_of(kind, random.Random(1))])))
    assert guess(desk.market.state) == 0


@pytest.mark.parametrize("unusual", [{"tags": [(0x8100, 5)]}, {"options": bytes(8)}], ids=["VLAN", "options"])
def test_what_is_not_usual_is_known_to_be_another_message(desk, unusual):
    add = message_of(ADD, random.Random(2))
    packet = ipv4(udp(mold(SESSION, 1, [add])), options=unusual.get("options", b""))
    desk.hold(ethernet(packet, tags=unusual.get("tags", ())))
    guessed = guess(desk.market.state)
    assert foresee(desk.market.state, guessed) >= 0
    assert first_of(desk.market.state) == PAGE_END - len(add) != guessed


def test_nothing_behind_a_packet_is_read_and_nothing_but_the_note_changes(desk):
    rand = random.Random(3)
    words = desk.market.words
    before = words.tobytes()
    for size in range(128):
        for link in (LINK_ETHERNET, LINK_UDP):
            at = desk.hold(rand.randbytes(size), link)
            guessed = guess(desk.market.state)
            if guessed:
                assert at < guessed <= PAGE_END - MESSAGE_MIN
                assert foresee(desk.market.state, guessed) >= 0
                words["foreseen"] = 0
    assert words.tobytes() == before
