"""AfPacketV2 on a veth pair: what is subscribed arrives, byte for byte, and what does not fit is counted."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import threading

import captures as c
import pytest
from net import netlink
from net.rig import CAP_NET_RAW, in_thread, without_capabilities
from net.traffic import (
    GROUP_A,
    GROUP_B,
    PORT_A,
    PORT_B,
    Datagrams,
    Packets,
    plain_frames,
    send,
    send_frames,
)

from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.decode import Feed, Subscription, open_packet
from nimbus.feed.source import SourceError, wait_readable
from nimbus.feed.udp_send import UdpSender, send_datagram, send_paced
from nimbus.messages import LINK_ETHERNET, STAMP_KERNEL
from ringbuf.agent import create_stop, request_stop
from ringbuf.segment import Segment

LINES = (Subscription(GROUP_A, PORT_A, 0), Subscription(GROUP_B, PORT_B, 1))
GROUP = socket.inet_aton(GROUP_A)


@pytest.fixture
def segment():
    return Segment.anonymous(1 << 20)


@pytest.fixture
def tap(rig, segment):
    """Return a maker of sources at the client's end; they are closed after the test."""
    made = []

    def make(subscriptions=LINES, **options) -> AfPacketV2:
        options = {"frames": 512} | options
        made.append(rig.client.run(AfPacketV2, segment, rig.client.interface, subscriptions, **options))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def ring(tap):
    return tap()


def udp_frame(payload: bytes, *, port: int = PORT_A, group: bytes = GROUP, tags=(), **options) -> bytes:
    datagram = c.udp(payload, c.ipv4_pseudo(group), port)
    return c.ethernet(c.ipv4(datagram, group=group, **options), tags=tags)


def test_a_frame_is_given_byte_for_byte_with_its_time_and_number(rig, ring, segment):
    hand, reference = Packets(segment, ring), plain_frames(rig)
    send(rig.exchange, Datagrams([b"first", b"second"]))
    assert hand.next() == reference.recv(2_048)
    assert hand.row["number"] == 1
    assert hand.row["link"] == LINK_ETHERNET
    assert hand.row["stamp"] == STAMP_KERNEL
    first_ns = int(hand.row["recv_ns"])
    data = hand.next()
    assert data == reference.recv(2_048)
    assert hand.row["wire_size"] == hand.row["size"] == len(data)
    assert hand.row["number"] == 2
    assert first_ns <= hand.row["recv_ns"] < first_ns + 60_000_000_000
    assert hand.next() is None
    assert ring._sock.getsockopt(socket.SOL_SOCKET, 35) == 1  # SO_TIMESTAMPNS: stamped at the arrival
    reference.close()


def test_only_what_is_subscribed_passes_the_filter(rig, ring, segment):
    hand = Packets(segment, ring)
    other = socket.inet_aton("239.192.7.3")
    taken = [
        udp_frame(b"plain"),
        udp_frame(b"options", options=b"\x01\x01\x01\x00"),
        udp_frame(b"line B", group=socket.inet_aton(GROUP_B), port=PORT_B),
        udp_frame(b"first fragment", fragment=0x2000),
    ]
    left = [
        udp_frame(b"other port", port=PORT_A + 9),
        udp_frame(b"other group", group=other),
        udp_frame(b"B's port in A's group", port=PORT_B),
        udp_frame(b"later fragment", fragment=0x0010),
        c.ethernet(c.ipv4(bytes(20), protocol=6, group=GROUP)),
        c.ethernet(c.ipv6(c.udp(b"ipv6")), 0x86DD),
        c.ethernet(bytes(28), 0x0806),
        udp_frame(b"cut")[:30],
        udp_frame(b"three tags", tags=[(0x88A8, 1), (0x8100, 2), (0x8100, 3), (0x8100, 4)]),
    ]
    mixed = [frame for pair in zip(left, [*taken, *taken, *taken], strict=False) for frame in pair]
    send_frames(rig.exchange, mixed)
    assert hand.all() == [frame for frame in mixed if frame in taken]
    assert ring.counters()["offered"] == len(left)


@pytest.mark.parametrize("tags", [[(0x8100, 7)], [(0x88A8, 5)], [(0x88A8, 5), (0x8100, 7)]])
def test_a_vlan_tag_stands_in_the_frame_although_linux_takes_it_out(rig, ring, segment, tags):
    hand, frame = Packets(segment, ring), udp_frame(b"tagged", tags=tags)
    send_frames(rig.exchange, [frame, udp_frame(b"plain"), frame])
    assert hand.all() == [frame, udp_frame(b"plain"), frame]
    assert ring.counters()["tagged"] == 2


def test_nothing_unfiltered_gets_in_while_the_ring_is_opened(rig, tap, segment):
    stop, foreign = create_stop(segment), Datagrams.numbered(1_000_000, 32)
    table = (foreign.rows.ctypes.data, foreign.count, 0, stop)
    sender = rig.exchange.run(UdpSender, segment, GROUP_A, PORT_A + 1, interface="10.77.0.1")
    thread = threading.Thread(target=send_paced, args=(sender.state, *table))
    thread.start()
    try:
        rings = [tap(name=f"ring{k}") for k in range(20)]
        assert [ring.counters()["offered"] for ring in rings] == [0] * 20
    finally:
        request_stop(stop)
        thread.join()
        sender.close()
    assert sender.counters()["sent"] > 0


def test_our_own_frames_are_not_given(rig, ring, segment):
    send(rig.client, Datagrams([b"ours"]))
    assert Packets(segment, ring).next() is None
    assert ring.counters()["offered"] == 0


def test_a_tap_on_the_loopback_sees_what_this_machine_sends_there_once(rig, segment):
    source = rig.client.run(AfPacketV2, segment, "lo", LINES, frames=512)
    sender = rig.client.run(UdpSender, segment, GROUP_A, PORT_A, interface="127.0.0.1", loop=True)
    hand = Packets(segment, source)
    with contextlib.closing(source), contextlib.closing(sender):
        for text in (b"first", b"second"):
            send_datagram(sender.state, *Datagrams([text]).rows[0].tolist())
            assert wait_readable(hand.sources.state, 30_000) == 1
            assert [frame[42:] for frame in hand.all()] == [text]


def test_without_subscriptions_every_udp_datagram_passes(rig, tap, segment):
    source = tap(())
    send_frames(
        rig.exchange, [udp_frame(b"a", port=1), c.ethernet(bytes(28), 0x0806), udp_frame(b"b", port=9)]
    )
    assert len(Packets(segment, source).all()) == 2


def test_a_subscription_may_leave_group_or_port_open(rig, tap, segment):
    source = tap([Subscription(None, 7), Subscription(GROUP_B, 0)])
    b = socket.inet_aton(GROUP_B)
    send_frames(
        rig.exchange, [udp_frame(b"1", port=7), udp_frame(b"2", port=8), udp_frame(b"3", group=b, port=8)]
    )
    assert [frame[-1:] for frame in Packets(segment, source).all()] == [b"1", b"3"]


def test_a_full_ring_drops_and_counts_exactly(rig, tap, segment):
    source = tap(frames=512)
    hand, datagrams = Packets(segment, source), Datagrams.numbered(1_300)
    assert send(rig.exchange, datagrams) == 1_300
    first = hand.all()
    assert [frame[42:] for frame in first] == datagrams.payloads[:512]
    assert source.counters() | {"offered": 1_300, "dropped": 788, "received": 512} == source.counters()
    send(rig.exchange, Datagrams([b"room again"]))
    assert [frame[42:] for frame in hand.all()] == [b"room again"]
    assert source.counters()["dropped"] == 788


def test_a_packet_stays_until_the_next_call(rig, tap, segment):
    source = tap(frames=512)
    hand = Packets(segment, source)
    send(rig.exchange, Datagrams([b"held"]))
    held = hand.next()
    send(rig.exchange, Datagrams.numbered(1_000))
    assert ctypes.string_at(int(hand.row["frame_at"]), len(held)) == held
    assert held[42:] == b"held"
    assert len(hand.all()) == 511


def test_a_frame_longer_than_a_slot_is_cut_and_refused_as_snapped(rig, tap, segment):
    source = tap(frames=4_096, frame_size=256)
    hand, feed = Packets(segment, source), Feed(Segment.anonymous(4 << 20))
    send(rig.exchange, Datagrams([b"x" * 144, b"x" * 145]))
    assert len(hand.next()) == hand.row["wire_size"] == 186
    assert open_packet(feed.addr, hand.packet) < 0
    assert "snapped" not in feed.refused()
    assert len(hand.next()) == 186
    assert hand.row["wire_size"] == 187
    open_packet(feed.addr, hand.packet)
    assert feed.refused()["snapped"] == 1


def test_jumbo_frames_fit_larger_slots(rig, tap, segment):
    for side in (rig.exchange, rig.client):
        side.run(netlink.set_mtu, side.interface, 9_000)
    source = tap(frames=64, frame_size=16_384)
    send(rig.exchange, Datagrams([b"j" * 8_972]))
    assert [len(frame) for frame in Packets(segment, source).all()] == [9_014]


def test_an_interface_that_goes_down_and_up_is_survived_and_counted(rig, ring, segment):
    hand = Packets(segment, ring)
    send(rig.exchange, Datagrams([b"before"]))
    rig.client.set_link(up=False)
    assert len(hand.all()) == 1
    rig.client.set_link(up=True)
    send(rig.exchange, Datagrams([b"after"]))
    assert [frame[42:] for frame in hand.all()] == [b"after"]
    assert ring.counters()["link_downs"] == 1
    rig.client.set_link(up=False)
    assert ring.counters()["link_downs"] == 2


def test_the_wait_wakes_for_a_packet_and_sleeps_again_after_the_interface_went_down(rig, ring, segment):
    hand = Packets(segment, ring)
    assert hand.next() is None
    assert wait_readable(hand.sources.state, 1) == 0
    send(rig.exchange, Datagrams([b"wake"]))
    assert wait_readable(hand.sources.state, 10_000) == 1
    assert len(hand.all()) == 1
    rig.client.set_link(up=False)
    assert wait_readable(hand.sources.state, 10_000) == 1  # the error, which is counted
    assert wait_readable(hand.sources.state, 1) == 0
    assert ring.counters()["link_downs"] == 1
    assert hand.sources.counters()["waits"] == 4


def test_another_interface_of_the_name_is_bound_to(rig, ring, segment):
    hand = Packets(segment, ring)
    rig.unplug()
    ring.refresh()
    assert hand.next() is None
    rig.plug()
    ring.refresh()
    send(rig.exchange, Datagrams([b"new cable"]))
    assert [frame[42:] for frame in hand.all()] == [b"new cable"]
    assert ring.counters()["rebinds"] == 1
    memberships = rig.client.run(netlink.memberships)
    assert {GROUP_A, GROUP_B} <= memberships["mdc0"]


def test_the_groups_are_joined_and_left(rig, tap):
    source = tap()
    assert {GROUP_A, GROUP_B} <= rig.client.run(netlink.memberships)["mdc0"]
    source.close()
    assert not {GROUP_A, GROUP_B} & rig.client.run(netlink.memberships)["mdc0"]


def test_a_closed_source_gives_its_socket_and_memory_back(rig, tap, segment):
    def sockets() -> int:
        return rig.client.run(netlink.packet_sockets)

    before, source = sockets(), tap()
    assert sockets() == before + 1
    hand = Packets(segment, source)
    source.close()
    source.close()
    assert sockets() == before
    with pytest.raises(AssertionError):
        hand.next()


def test_no_such_interface(rig, segment):
    with pytest.raises(
        SourceError, match=r"^interface mdc7: no such interface \(`ip link show` lists them\)$"
    ):
        rig.client.run(AfPacketV2, segment, "mdc7")
    with pytest.raises(SourceError, match="a name has 1 to 15 bytes"):
        rig.client.run(AfPacketV2, segment, "m" * 16)


def test_an_interface_that_is_down(rig, tap):
    rig.client.set_link(up=False)
    with pytest.raises(SourceError, match=r"^interface mdc0 is down: `ip link set mdc0 up`$"):
        tap()


def test_a_missing_capability_is_named(rig, segment):
    def attempt():
        rig.client.enter()
        return without_capabilities(lambda: AfPacketV2(segment, "mdc0"), CAP_NET_RAW)

    words = r"^a packet socket \(AF_PACKET\) needs CAP_NET_RAW: `setcap cap_net_raw\+ep /.*=CAP_NET_RAW of"
    with pytest.raises(SourceError, match=words) as e:
        in_thread(attempt)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("frames", "frame_size"), [(0, 2_048), (64, 100), (64, 3_000), (64, 1 << 21)])
def test_a_ring_that_cannot_be(tap, frames, frame_size):
    with pytest.raises(SourceError, match="powers of two"):
        tap(frames=frames, frame_size=frame_size)


def test_an_ipv6_group_is_refused(tap):
    with pytest.raises(SourceError, match="live sources take IPv4 groups only"):
        tap([Subscription("ff0e::42", 1)])


@pytest.mark.usefixtures("ring")
def test_a_name_that_is_taken_leaves_no_socket_behind(rig, tap):
    before = rig.client.run(netlink.packet_sockets)
    with pytest.raises(ValueError, match="exists already"):
        tap()
    assert rig.client.run(netlink.packet_sockets) == before
