"""Snapshots: an image of the published books at a known number, while the feed goes on, over SoupBinTCP."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from days import hostile, make_day
from exchange_rig import Rig

from nimbus.book.owner import Books
from nimbus.feed import soupbin
from nimbus.venue.shadow import Shadow
from nimbus.venue.snapshot_server import CLIENTS_MAX, SnapshotServer
from ringbuf.segment import Segment

SESSION = "0001ABCDEF"


class Shadowed(Rig):
    """An engine whose feed is followed by a shadow book."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        capacity = {"symbols_max": 16, "live_orders_max": 20_000, "levels_max": 20_000}
        books = Books(Segment.anonymous(1 << 26), **capacity)
        self.shadow = Shadow(Segment.anonymous(1 << 22), self.store, books)


def messages_of(image: bytes) -> list[bytes]:
    """Return the messages of an image, each checked to be one that a snapshot may hold."""
    packets = soupbin.Framer(soupbin.FROM_SERVER).feed(image)
    assert {packet.kind for packet in packets} <= {soupbin.SEQUENCED}
    for packet in packets:
        soupbin.check_snapshot_message(packet.payload)
    return [packet.payload for packet in packets]


def rebuilt(image: bytes, later: list[bytes] = ()) -> Rig:
    """Return books made of an image and the messages published after it."""
    fresh = Rig()
    for message in [*messages_of(image), *later]:
        fresh.books_only(message)
    return fresh


def test_the_shadow_follows_what_was_published():
    rig = Shadowed()
    rig.flow(*make_day(2, 2_000, 8))
    rig.new("B", 100_000_000, 500)
    assert rig.shadow.follow(100) == 100
    assert rig.shadow.seq == 100
    while rig.shadow.follow(777):
        pass
    assert rig.shadow.seq == rig.store.last
    assert rig.shadow.state_hash() == rig.hashes()[0]


@pytest.mark.parametrize("upto", [0, 1, 60, 1_000])
def test_an_image_and_the_messages_after_it_are_the_books(upto):
    rig = Shadowed()
    for number, message in enumerate(make_day(7, 2_000, 8)):
        rig.flow(message)
        if number % 100 == 50:
            top = rig.books.top(1)
            rig.new("B", top["ask_px"] or 1_000_000, 70)
            rig.new("S", top["ask_px"] + 300, 30)
    rig.shadow.follow(upto)
    seq, image = rig.shadow.image()
    assert seq == upto
    fresh = rebuilt(image, rig.published(seq))
    assert fresh.hashes()[0] == rig.hashes()[0]
    assert [fresh.books.top(n)["state"] for n in range(1, 9)] == [
        rig.books.top(n)["state"] for n in range(1, 9)
    ]
    assert fresh.books.symbols() == rig.books.symbols()


def test_states_and_notices_are_in_the_image():
    rig = Shadowed()
    rig.flow(*hostile(4, 6_000, 12, 800))
    while rig.shadow.follow():
        pass
    fresh = rebuilt(rig.shadow.image()[1])
    assert fresh.hashes()[0] == rig.hashes()[0]
    for locate in range(1, 13):
        mine, theirs = fresh.books.top(locate), rig.books.top(locate)
        names = ("bid_px", "bid_qty", "ask_px", "ask_qty", "state", "short_sale")
        assert [mine[name] for name in names] == [theirs[name] for name in names]
        for kind in ("luld", "noii", "retail", "listing"):
            assert fresh.books.notice(locate, kind) == rig.books.notice(locate, kind)
    assert (fresh.books.phase, fresh.books.breaker) == (rig.books.phase, rig.books.breaker)
    assert fresh.books.symbols() == rig.books.symbols()


# ---------------------------------------------------------------- over TCP


@contextlib.asynccontextmanager
async def serving(rig: Shadowed, **options):
    server = SnapshotServer(rig.shadow, SESSION, **options)
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close()


async def fetch(port: int, request: bytes) -> tuple[list[soupbin.Packet], bytes]:
    """Send bytes; return the packets that came until the server closed, and what was left over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    framer = soupbin.Framer(soupbin.FROM_SERVER)
    packets = framer.feed(await asyncio.wait_for(reader.read(), 20))
    writer.close()
    return packets, framer.pending


async def test_a_client_gets_the_image_its_number_and_the_end():
    rig = Shadowed()
    rig.flow(*make_day(2, 1_500, 8))
    async with serving(rig) as server:
        packets, pending = await fetch(server.port, soupbin.login_request("", "", SESSION))
        assert pending == 0
        assert soupbin.parse_login_accepted(packets[0].payload) == (SESSION, 1)
        assert packets[-1].kind == soupbin.END_OF_SESSION
        assert soupbin.parse_snapshot_end(packets[-2].payload) == rig.store.last + 1
        rig.flow(*make_day(3, 200, 8)[20:])
        again, _ = await fetch(server.port, soupbin.login_request("", ""))
        assert soupbin.parse_snapshot_end(again[-2].payload) == rig.store.last + 1
        assert server.counts["snapshots"] == 2
    body = b"".join(soupbin.encode(p.kind, p.payload) for p in again[1:-2])
    assert rebuilt(body).hashes()[0] == rig.hashes()[0]


@pytest.mark.parametrize(
    ("login", "reason"),
    [
        (("user", "wrong", SESSION, 1), soupbin.NOT_AUTHORIZED),
        (("other", "secret", SESSION, 1), soupbin.NOT_AUTHORIZED),
        (("", "", "", 1), soupbin.NOT_AUTHORIZED),
        (("user", "secret", "ANOTHER", 1), soupbin.NO_SESSION),
        (("user", "secret", SESSION, 2), soupbin.NO_SESSION),
    ],
)
async def test_a_login_that_does_not_fit_is_rejected(login, reason):
    rig = Shadowed()
    async with serving(rig, user="user", password="secret") as server:
        packets, _ = await fetch(server.port, soupbin.login_request(*login))
        assert [(p.kind, p.payload) for p in packets] == [(soupbin.LOGIN_REJECTED, reason.encode())]
        assert server.counts["refused"] == 1
        packets, _ = await fetch(server.port, soupbin.login_request("user", "secret"))
        assert packets[-1].kind == soupbin.END_OF_SESSION


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0", b"\0\x05Lxxxx", b"\0\x01S"])
async def test_a_client_that_speaks_something_else_is_closed(garbage):
    rig = Shadowed()
    async with serving(rig) as server:
        packets, _ = await fetch(server.port, garbage)
        assert packets == []
        assert server.counts["faults"] == 1


async def test_a_client_that_goes_is_forgotten():
    rig = Shadowed()
    async with serving(rig) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()
        await writer.wait_closed()
        for _ in range(200):
            if server.counts["faults"]:
                break
            await asyncio.sleep(0.01)
        assert (server.counts["clients"], server.counts["faults"]) == (1, 1)


async def test_too_many_clients_are_closed_at_once():
    rig = Shadowed()
    async with serving(rig) as server:
        waiting = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(CLIENTS_MAX)]
        for _ in range(200):
            if server.counts["clients"] == CLIENTS_MAX:
                break
            await asyncio.sleep(0.01)
        packets, _ = await fetch(server.port, b"")
        assert packets == []
        assert server.counts["refused"] == 1
        for _, writer in waiting:
            writer.close()
