"""A generated day over the wire gives the books that its file gives, through every source."""

from __future__ import annotations

import contextlib
import struct

import pytest
from net.traffic import GROUP_A, GROUP_B, PORT_A, PORT_B, Datagrams, send

from nimbus.book.owner import Books
from nimbus.book.snapshot import state_hash
from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.af_xdp import AfXdp
from nimbus.feed.capture import CaptureSource
from nimbus.feed.decode import Feed, Subscription
from nimbus.feed.source import SourceError, Sources, next_of
from nimbus.feed.udp import UdpSocket
from nimbus.market import Market, MarketState, apply_message, fetch, take_packet
from nimbus.messages import LINK_UDP
from nimbus.venue.generator import generate
from ringbuf.jit import kernel
from ringbuf.segment import Segment
from ringbuf.spsc import front, pop

LINE_A, LINE_B = Subscription(GROUP_A, PORT_A, 0), Subscription(GROUP_B, PORT_B, 1)
SYMBOLS, MESSAGES = 6, 30_000


@kernel
def walk(sources: int, market: MarketState) -> int:
    """Apply what the sources have; return how many messages were applied."""
    count = 0
    while True:
        message = fetch(market)
        if message == 0:
            if next_of(sources, market.packet) <= 0:
                return count
            take_packet(market)
            continue
        apply_message(market, message)
        count += 1
        if front(market.events) != 0:
            pop(market.events)


class Reader:
    """Feed and books behind some sources."""

    def __init__(self, **options) -> None:
        self.segment = Segment.anonymous(256 << 20)
        self.feed = Feed(self.segment, **options)
        self.books = Books(self.segment, symbols_max=SYMBOLS + 2, live_orders_max=50_000, levels_max=20_000)
        self.market = Market(self.segment, self.feed, self.books)

    def read(self, *owners) -> int:
        return walk(Sources(self.segment, owners).state, self.market.state)

    @property
    def hash(self) -> int:
        return state_hash(self.books.state)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("day") / "day.pcap"
    generate(path, 5, MESSAGES, SYMBOLS)
    return path


@pytest.fixture(scope="module")
def datagrams(file) -> Datagrams:
    """Return the UDP payloads of the file's packets, cut out by hand."""
    capture, at, payloads = file.read_bytes(), 24, []
    while at < len(capture):
        size = struct.unpack_from("<I", capture, at + 8)[0]
        payloads.append(capture[at + 16 + 42 : at + 16 + size])
        at += 16 + size
    return Datagrams(payloads)


@pytest.fixture(scope="module")
def expected(file) -> Reader:
    """Return what reading the file gives; the capture stands in the same switch as every other source."""
    reader = Reader()
    with CaptureSource.open(file, segment=reader.segment) as source:
        assert reader.read(source) == MESSAGES
        assert not source.refill()
        assert source.counters() == {"received": source.packets, "backwards": 0}
    return reader


def open_source(kind: str, segment: Segment, frames: int):
    if kind == "af_packet":
        return AfPacketV2(segment, "mdc0", [LINE_A, LINE_B], frames=frames)
    if kind == "udp":
        return UdpSocket(segment, GROUP_A, PORT_A, interface="10.77.0.2", receive_buffer=frames * 4_096)
    try:
        return AfXdp(segment, "mdc0", [LINE_A, LINE_B], frames=1 << frames.bit_length(), mode=kind)
    except SourceError as error:
        if "needs" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("kind", ["af_packet", "generic", "native", "udp"])
def test_the_wire_gives_the_same_books_as_the_file(rig, datagrams, expected, kind):
    reader = Reader(subscriptions=[LINE_A, LINE_B])
    source = rig.client.run(open_source, kind, reader.segment, datagrams.count)  # room for all: no loss
    with contextlib.closing(source):
        assert send(rig.exchange, datagrams) == datagrams.count
        assert reader.read(source) == MESSAGES
        assert source.counters()["dropped"] == 0
    assert reader.hash == expected.hash
    assert reader.feed.messages_by_type() == expected.feed.messages_by_type()
    assert reader.feed.refused() == {}
    assert reader.feed.counters()["frames"] == datagrams.count


def test_line_and_link_reach_the_feed_of_a_second_line(rig, datagrams):
    reader = Reader(subscriptions=[LINE_A, LINE_B])
    options = {"interface": "10.77.0.2", "line": 1}
    with contextlib.closing(rig.client.run(UdpSocket, reader.segment, GROUP_B, PORT_B, **options)) as source:
        send(rig.exchange, Datagrams(datagrams.payloads[:1]), group=GROUP_B, port=PORT_B)
        assert reader.read(source) > 0
        assert reader.feed.record["line"] == 1
        packet = reader.segment.words(reader.market.state.packet, 8)
        assert packet.view("<u2")[16] == LINK_UDP
