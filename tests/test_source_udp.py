"""UdpSocket and UdpSender: groups, unicast, stamps, losses counted by Linux, what the machine refuses."""

from __future__ import annotations

import contextlib
import select
import socket
import time

import numpy as np
import pytest
from net import netlink
from net.rig import CAP_NET_ADMIN, in_thread, without_capabilities
from net.traffic import GROUP_A, GROUP_B, PORT_A, PORT_B, Datagrams, Packets, send

from nimbus.feed.decode import Feed, open_packet
from nimbus.feed.source import SourceError, next_frame, wait_readable
from nimbus.feed.udp import UdpSocket
from nimbus.feed.udp_send import UdpSender, send_datagram, send_paced
from nimbus.messages import LINE_RECOVERY, LINK_UDP, STAMP_KERNEL
from ringbuf.agent import create_stop, request_stop
from ringbuf.segment import Segment

CLIENT, EXCHANGE = "10.77.0.2", "10.77.0.1"


@pytest.fixture
def segment():
    return Segment.anonymous(4 << 20)


@pytest.fixture
def keep():
    """Return a function that keeps owners, to be closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda owner: stack.enter_context(contextlib.closing(owner))


@pytest.fixture
def listen(rig, segment, keep):
    def make(address=GROUP_A, port=PORT_A, **options) -> UdpSocket:
        options = {"interface": CLIENT} | options
        return keep(rig.client.run(UdpSocket, segment, address, port, **options))

    return make


def test_a_datagram_of_a_group_is_given_with_its_line_and_time(rig, listen, segment):
    hand = Packets(segment, listen(line=1))
    before_ns = time.time_ns()
    send(rig.exchange, Datagrams([b"one", b"", b"three"]))
    assert hand.next() == b"one"
    assert hand.row["link"] == LINK_UDP
    assert hand.row["line"] == 1
    assert hand.row["stamp"] == STAMP_KERNEL
    assert hand.row["size"] == hand.row["wire_size"] == 3
    assert before_ns <= hand.row["recv_ns"] <= time.time_ns()
    assert [hand.next(), hand.next(), hand.next()] == [b"", b"three", None]
    assert hand.row["number"] == 3


def test_the_payload_goes_into_the_feed_without_headers(rig, listen, segment):
    import captures as c

    hand, feed = Packets(segment, listen(line=1)), Feed(Segment.anonymous(4 << 20))
    message = c.itch("S", 12)
    send(rig.exchange, Datagrams([c.mold(b"DAY0000001", 1, [message, message]), b"short"]))
    assert hand.next() is not None
    assert open_packet(feed.addr, hand.packet) == 1
    assert feed.record["line"] == 1
    assert feed.record["left"] == 2
    assert hand.next() == b"short"
    assert open_packet(feed.addr, hand.packet) < 0
    assert feed.refused() == {"short_datagram": 1}


def test_other_groups_on_the_port_are_not_ours(rig, listen, segment):
    ours, other = (
        listen(),
        rig.client.run(UdpSocket, segment, GROUP_B, PORT_A, interface=CLIENT, name="other"),
    )
    with contextlib.closing(other):
        send(rig.exchange, Datagrams([b"A"]), group=GROUP_A)
        send(rig.exchange, Datagrams([b"B"]), group=GROUP_B)
        assert Packets(segment, ours).all() == [b"A"]
        assert Packets(segment, other, name="second").all() == [b"B"]


def test_what_another_socket_joined_on_another_interface_is_not_ours(rig, listen, segment, keep):
    ours, other = listen(), listen(name="other", interface="127.0.0.1")
    sender = keep(rig.client.run(UdpSender, segment, GROUP_A, PORT_A, interface="127.0.0.1", loop=True))
    send_datagram(sender.state, *Datagrams([b"lo"]).rows[0].tolist())
    theirs = Packets(segment, other)
    assert wait_readable(theirs.sources.state, 30_000) == 1
    assert theirs.all() == [b"lo"]
    assert Packets(segment, ours, name="second").all() == []


def test_two_readers_of_one_group_both_get_it(rig, listen, segment):
    first, second = listen(), listen(name="second")
    send(rig.exchange, Datagrams([b"both"]))
    assert Packets(segment, first).all() == Packets(segment, second, name="hand2").all() == [b"both"]


def test_requests_go_out_and_replies_come_in_on_one_unicast_socket(rig, listen, segment):
    replies = listen(CLIENT, 0, line=LINE_RECOVERY, interface="")
    assert replies.port > 0
    with contextlib.closing(rig.exchange.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind((EXCHANGE, 26_479))
        server.settimeout(30)
        with contextlib.closing(socket.socket(fileno=socket.dup(replies.fd))) as ours:
            ours.sendto(b"request", (EXCHANGE, 26_479))
        request, client = server.recvfrom(100)
        assert (request, client) == (b"request", (CLIENT, replies.port))
        server.sendto(b"reply", client)
        hand = Packets(segment, replies)
        assert wait_readable(hand.sources.state, 30_000) == 1
        assert hand.all() == [b"reply"]
        assert hand.row["line"] == LINE_RECOVERY


def test_a_full_socket_buffer_drops_and_counts_exactly(rig, listen, segment):
    source = listen(receive_buffer=200_000)
    hand, datagrams = Packets(segment, source), Datagrams.numbered(2_000)
    assert send(rig.exchange, datagrams) == 2_000
    taken = hand.all()
    counts = source.counters()
    assert taken == datagrams.payloads[: len(taken)]
    assert 0 < len(taken) < 2_000
    assert counts["received"] == len(taken)
    assert counts["received"] + counts["dropped"] == 2_000
    send(rig.exchange, Datagrams([b"last"]))
    assert hand.all() == [b"last"]
    assert hand.sources.owners[0]._record["dropped"] == counts["dropped"]  # what the last one carried


def test_a_datagram_longer_than_the_buffer_is_refused_and_counted(rig, listen, segment):
    source = listen(datagram_size=64)
    send(rig.exchange, Datagrams([b"x" * 64, b"y" * 65, b"z" * 64, *[b"long" * 30] * 40, b"end"]))
    found = Packets(segment, source)
    taken = []
    for _ in range(10):  # a call passes over a bounded number of them
        taken += found.all()
    assert taken == [b"x" * 64, b"z" * 64, b"end"]
    assert source.counters()["truncated"] == 41
    assert source.counters()["received"] == 3


def test_a_refused_request_is_an_error_that_is_counted_and_survived(listen, segment):
    replies = listen(CLIENT, 0, interface="")
    with contextlib.closing(socket.socket(fileno=socket.dup(replies.fd))) as ours:
        ours.connect((EXCHANGE, 9))
        ours.send(b"nobody listens")  # answered by ICMP: port unreachable
        assert select.select([ours], [], [], 30)[0]
    hand = Packets(segment, replies)
    assert hand.next() is None
    assert replies.counters()["socket_errors"] == 1
    assert hand.next() is None
    assert replies.counters()["socket_errors"] == 1


def test_the_wait_clears_an_error_that_nobody_read(listen, segment):
    replies = listen(CLIENT, 0, interface="")
    hand = Packets(segment, replies)
    with contextlib.closing(socket.socket(fileno=socket.dup(replies.fd))) as ours:
        ours.connect((EXCHANGE, 9))
        ours.send(b"nobody listens")
    assert wait_readable(hand.sources.state, 30_000) == 1
    assert wait_readable(hand.sources.state, 1) == 0
    assert replies.counters()["socket_errors"] == 1


def test_an_interface_that_goes_down_and_up_is_survived(rig, listen, segment):
    source = listen()
    hand = Packets(segment, source)
    send(rig.exchange, Datagrams([b"before"]))
    rig.client.set_link(up=False)
    assert hand.all() == [b"before"]
    rig.client.set_link(up=True)
    send(rig.exchange, Datagrams([b"after"]))
    assert hand.all() == [b"after"]
    rig.unplug()
    source.refresh()
    rig.plug()
    source.refresh()
    send(rig.exchange, Datagrams([b"new cable"]))
    assert hand.all() == [b"new cable"]
    assert source.counters()["rejoins"] == 1


def test_a_small_receive_buffer_is_a_remark_that_says_what_to_do(rig, segment, keep):
    def attempt():
        rig.client.enter()
        work = lambda: UdpSocket(segment, GROUP_A, PORT_A, interface=CLIENT, receive_buffer=1 << 30)  # noqa: E731
        return without_capabilities(work, CAP_NET_ADMIN)

    source = keep(in_thread(attempt))
    assert len(source.remarks) == 1
    assert "sysctl -w net.core.rmem_max=536870912" in source.remarks[0]


def test_no_remark_when_the_buffer_was_given(listen):
    assert listen().remarks == []


@pytest.mark.parametrize(
    ("address", "interface", "words"),
    [
        (
            GROUP_A,
            "10.77.9.9",
            r"^no interface has the address 10.77.9.9 \(`ip -4 address show` lists them\)$",
        ),
        ("10.77.9.9", "", r"^no interface has the address 10.77.9.9 "),
        (GROUP_A, "", r"^'' is no IPv4 address$"),
        ("lo", "", r"^'lo' is no IPv4 address$"),
    ],
)
def test_an_address_that_is_not_ours(listen, address, interface, words):
    with pytest.raises(SourceError, match=words):
        listen(address, PORT_A, interface=interface)


def test_an_interface_that_is_down(rig, listen):
    rig.client.set_link(up=False)
    with pytest.raises(SourceError, match=r"^interface mdc0 is down: `ip link set mdc0 up`$"):
        listen()


def test_a_port_that_is_taken(listen):
    first = listen(CLIENT, 0, interface="")
    with pytest.raises(SourceError, match=rf"^udp {CLIENT}:{first.port}: Address already in use$"):
        listen(CLIENT, first.port, interface="", name="second")


def test_a_socket_that_is_gone_is_a_fault_with_its_number(listen, segment):
    source = listen()
    hand = Packets(segment, source)
    source._record["fd"] = 1 << 20
    assert next_frame(source.state, hand.packet) == -9  # EBADF
    source._record["fd"] = source._sock.fileno()
    assert hand.next() is None


# ---------------------------------------------------------------- sender


def test_the_sender_reaches_readers_on_its_own_machine_when_told_to(rig, listen, segment, keep):
    hand, rows = Packets(segment, listen()), Datagrams([b"looped"]).rows
    with contextlib.closing(rig.client.run(UdpSender, segment, GROUP_A, PORT_A, interface=CLIENT)) as deaf:
        assert send_datagram(deaf.state, *rows[0].tolist()) == 6
        assert hand.next() is None
    loud = keep(rig.client.run(UdpSender, segment, GROUP_A, PORT_A, interface=CLIENT, loop=True, name="loud"))
    assert send_datagram(loud.state, *rows[0].tolist()) == 6
    assert wait_readable(hand.sources.state, 30_000) == 1
    assert hand.next() == b"looped"


def test_a_group_may_be_fed_and_read_over_loopback(rig, listen, segment, keep):
    source = listen(interface="127.0.0.1")
    sender = keep(rig.client.run(UdpSender, segment, GROUP_A, PORT_A, interface="127.0.0.1", loop=True))
    rows = Datagrams([b"lo"]).rows
    assert send_datagram(sender.state, *rows[0].tolist()) == 2
    hand = Packets(segment, source)
    assert wait_readable(hand.sources.state, 30_000) == 1
    assert hand.all() == [b"lo"]


def test_a_paced_table_goes_out_in_order_at_its_rate(rig, listen, segment, keep):
    source, datagrams = listen(), Datagrams.numbered(200)
    sender = keep(rig.exchange.run(UdpSender, segment, GROUP_A, PORT_A, interface=EXCHANGE))
    table = (sender.state, datagrams.rows.ctypes.data, datagrams.count)
    began_ns = time.monotonic_ns()
    assert rig.exchange.transmit(lambda: send_paced(*table, 10_000, 0)) == 200
    assert time.monotonic_ns() - began_ns >= 19_900_000  # never early
    hand, times = Packets(segment, source), []
    for payload in datagrams.payloads:
        assert hand.next() == payload
        times.append(int(hand.row["recv_ns"]))
    assert hand.next() is None
    assert (np.diff(times) >= 0).all()
    assert sender.counters()["sent"] == 200
    assert sender.counters()["failed"] == 0


def test_a_paced_table_ends_at_the_stop_word(rig, segment, keep):
    sender = keep(rig.exchange.run(UdpSender, segment, GROUP_A, PORT_A, interface=EXCHANGE))
    datagrams, stop = Datagrams.numbered(100), create_stop(segment)
    request_stop(stop)
    assert send_paced(sender.state, datagrams.rows.ctypes.data, datagrams.count, 1, stop) == 0


def test_what_linux_does_not_take_is_counted(rig, segment, keep):
    sender = keep(rig.exchange.run(UdpSender, segment, GROUP_A, PORT_A, interface=EXCHANGE))
    large = Datagrams([bytes(65_508)])
    assert send_datagram(sender.state, *large.rows[0].tolist()) == -90  # EMSGSIZE
    assert send_paced(sender.state, large.rows.ctypes.data, 1, 0, 0) == 0
    assert sender.counters() == {"sent": 0, "failed": 2, "full": 0, "error": 90, "late_ns": 0}


def test_a_sender_names_the_interface_that_is_missing_or_down(rig, segment):
    with pytest.raises(SourceError, match=r"^no interface has the address 10.77.9.9 "):
        rig.exchange.run(UdpSender, segment, GROUP_B, PORT_B, interface="10.77.9.9")
    rig.exchange.set_link(up=False)
    with pytest.raises(SourceError, match=r"^interface mdx0 is down: `ip link set mdx0 up`$"):
        rig.exchange.run(UdpSender, segment, GROUP_B, PORT_B, interface=EXCHANGE)
    with pytest.raises(SourceError, match=r"^udp to 192.0.2.1:9: Network is unreachable$"):
        rig.exchange.run(UdpSender, segment, "192.0.2.1", 9)


def test_groups_are_left_at_the_close(rig, segment):
    source = rig.client.run(UdpSocket, segment, GROUP_A, PORT_A, interface=CLIENT)
    assert GROUP_A in rig.client.run(netlink.memberships)["mdc0"]
    source.close()
    assert GROUP_A not in rig.client.run(netlink.memberships)["mdc0"]
