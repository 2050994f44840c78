"""One switch for every source, and several behind one address: in turn, one at a time, whatever one does."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import captures as c
import numpy as np
import pytest
from net.traffic import Packets

from nimbus.feed.capture import CaptureSource
from nimbus.feed.kinds import SOURCE_NAMES, UNKNOWN_SOURCE
from nimbus.feed.source import (
    PATIENCE,
    SOURCE_AF_PACKET,
    SOURCE_AF_XDP,
    SOURCE_CAPTURE,
    SOURCE_DPDK,
    SOURCE_UDP,
    SOURCES,
    SOURCES_MAX,
    SourceError,
    Sources,
    next_frame,
    next_of,
    wait_readable,
    warm_sources,
)
from nimbus.feed.udp import UdpSocket
from nimbus.feed.udp_send import UDP_SENDER, send_datagram, warm_sender
from nimbus.messages import LINK_ETHERNET, LINK_UDP
from ringbuf.jit import signature_count
from ringbuf.segment import Segment

HERE = "127.0.0.1"


@pytest.fixture
def segment():
    return Segment.anonymous(4 << 20)


@pytest.fixture
def sockets(segment):
    """Return a maker of sources on this machine; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(count: int) -> list[UdpSocket]:
            names = [f"udp{k}" for k in range(count)]
            made = [UdpSocket(segment, HERE, 0, line=k, datagram_size=2_048, name=name, receive_buffer=65_536)
                    for k, name in enumerate(names)]  # fmt: skip
            return [stack.enter_context(contextlib.closing(source)) for source in made]

        yield make


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "capture.pcap"
    path.write_bytes(c.pcap([(k, bytes([k]) * 60) for k in range(1, 4)]))
    with CaptureSource.open(path) as source:
        yield source


def tell(source: UdpSocket, *texts: bytes) -> None:
    """Send datagrams to a source, one by one, each when the one before lies in its buffer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for text in texts:
            before, until = queued(source), time.monotonic() + 30
            sock.sendto(text, (HERE, source.port))
            while queued(source) <= before:
                assert time.monotonic() < until
                time.sleep(0.001)


def queued(source: UdpSocket) -> int:
    """Return the bytes in the socket's buffer (SO_MEMINFO, SK_MEMINFO_RMEM_ALLOC)."""
    return struct.unpack_from("I", source._sock.getsockopt(socket.SOL_SOCKET, 55, 36))[0]


def test_the_kinds_are_numbered_as_they_are_named():
    kinds = (SOURCE_CAPTURE, SOURCE_AF_PACKET, SOURCE_AF_XDP, SOURCE_UDP, SOURCE_DPDK)
    assert kinds == (0, 1, 2, 3, 4)
    assert SOURCE_NAMES == ("capture", "af_packet", "af_xdp", "udp", "dpdk")
    assert SOURCES.at.source + SOURCES_MAX * 8 == SOURCES.at.pollfd


def test_a_capture_stands_in_the_switch_like_any_other(segment, capture):
    hand = Packets(segment, capture)
    assert hand.all() == [bytes([k]) * 60 for k in range(1, 4)]
    assert hand.row["link"] == LINK_ETHERNET
    assert not capture.refill()
    assert hand.sources.counters()["0.received"] == 3


def test_sources_are_asked_in_turn_so_that_a_busy_one_starves_nobody(segment, sockets):
    busy, quiet, third = sockets(3)
    hand = Packets(segment, busy, quiet, third)
    tell(busy, *[b"busy%d" % k for k in range(4)])
    tell(quiet, b"quiet0", b"quiet1")
    tell(third, b"third")
    order = hand.all()
    assert order == [b"busy0", b"quiet0", b"third", b"busy1", b"quiet1", b"busy2", b"busy3"]


def test_a_socket_that_had_nothing_is_asked_again_after_sixteen_frames_of_others(segment, sockets):
    quiet, busy = sockets(2)
    hand = Packets(segment, quiet, busy)
    tell(busy, *[b"%d" % k for k in range(40)])
    assert hand.next() == b"0"  # quiet was asked before, and had nothing
    tell(quiet, b"quiet")
    order = hand.all()
    assert order.index(b"quiet") == PATIENCE
    assert [text for text in order if text != b"quiet"] == [b"%d" % k for k in range(1, 40)]


def test_a_socket_is_asked_at_once_when_nobody_else_has_a_packet(segment, sockets):
    quiet, busy = sockets(2)
    hand = Packets(segment, quiet, busy)
    tell(busy, b"0", b"1")
    assert hand.next() == b"0"
    tell(quiet, b"quiet")
    assert [hand.next(), hand.next(), hand.next()] == [b"1", b"quiet", None]


def test_each_source_marks_its_packets(segment, sockets, capture):
    first, second = sockets(2)
    hand = Packets(segment, capture, first, second)
    tell(first, b"1")
    tell(second, b"2")
    found = []
    while hand.next() is not None:
        found.append((int(hand.row["link"]), int(hand.row["line"]), int(hand.row["number"])))
    assert found == [
        (LINK_ETHERNET, 0, 1), (LINK_UDP, 0, 1), (LINK_UDP, 1, 1), (LINK_ETHERNET, 0, 2),
        (LINK_ETHERNET, 0, 3),
    ]  # fmt: skip


def test_a_source_at_fault_is_counted_and_the_others_go_on(segment, sockets):
    broken, sound = sockets(2)
    hand = Packets(segment, broken, sound)
    broken._record["fd"] = 1 << 20
    tell(sound, b"one", b"two")
    assert next_of(hand.sources.state, hand.packet) == 1
    assert next_of(hand.sources.state, hand.packet) == 1
    assert next_of(hand.sources.state, hand.packet) == -9  # EBADF, and nothing from the other
    assert hand.sources.status == -9
    assert hand.sources.counters()["faults"] == 3
    assert sound.counters()["received"] == 2


def test_a_record_of_no_kind_is_a_fault(segment):
    blank = np.full(64, 77, np.int64)
    assert next_frame(blank.ctypes.data, segment.allocate("packet", 64)) == UNKNOWN_SOURCE


def test_a_closed_source_is_a_fault_and_not_a_crash(segment, sockets):
    (source,) = sockets(1)
    hand = Packets(segment, source)
    source.close()
    assert next_of(hand.sources.state, hand.packet) == UNKNOWN_SOURCE


@pytest.mark.parametrize("count", [0, SOURCES_MAX + 1])
def test_there_are_one_to_eight_sources(segment, capture, count):
    with pytest.raises(SourceError, match=f"^{count} packet sources, 1 to 8 are possible$"):
        Sources(segment, [capture] * count)


def test_eight_sources_are_all_asked(segment, sockets):
    sources = sockets(SOURCES_MAX)
    hand = Packets(segment, *sources)
    for k, source in enumerate(sources):
        tell(source, b"%d" % k)
    assert hand.all() == [b"%d" % k for k in range(SOURCES_MAX)]


def test_the_wait_wakes_for_any_source(segment, sockets):
    first, second = sockets(2)
    hand = Packets(segment, first, second)
    assert wait_readable(hand.sources.state, 1) == 0
    tell(second, b"x")
    assert wait_readable(hand.sources.state, 30_000) == 1
    tell(first, b"x")
    assert wait_readable(hand.sources.state, 30_000) == 2
    hand.all()
    assert wait_readable(hand.sources.state, 1) == 0
    assert hand.sources.counters()["waits"] == 4


def test_the_wait_is_short_when_a_source_has_no_descriptor(segment, sockets, capture):
    hand = Packets(segment, capture, *sockets(1))
    assert wait_readable(hand.sources.state, 86_400_000) == 0  # comes back within the day


def test_closing_closes_the_owners(segment, sockets):
    sources = sockets(2)
    Sources(segment, sources).close()
    for source in sources:
        with pytest.raises(OSError, match="Bad file descriptor"):
            source.refresh()


def test_warming_compiles_all_there_is(segment, sockets):
    warm_sources()
    warm_sender()
    before = signature_count(next_of, next_frame, wait_readable, send_datagram)
    hand = Packets(segment, *sockets(1))
    hand.all()
    wait_readable(hand.sources.state, 0)
    blank = np.zeros(1, UDP_SENDER.dtype)
    blank["fd"] = -1
    assert send_datagram(blank.ctypes.data, 0, 0) == -9
    assert signature_count(next_of, next_frame, wait_readable, send_datagram) == before
