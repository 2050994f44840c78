"""AfXdp on a veth pair: subscribed frames are ours, everything else still reaches the stack."""

from __future__ import annotations

import contextlib
import ctypes
import json
import pathlib
import socket
import subprocess
import sys

import captures as c
import pytest
from net import netlink
from net.rig import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_NET_RAW,
    CAP_SYS_ADMIN,
    in_thread,
    own_user_namespace,
    without_capabilities,
)
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

from nimbus.feed.af_xdp import AfXdp
from nimbus.feed.decode import Subscription
from nimbus.feed.source import SourceError, wait_readable
from nimbus.messages import LINK_ETHERNET, STAMP_USER
from ringbuf.segment import Segment

LINES = (Subscription(GROUP_A, PORT_A, 0), Subscription(GROUP_B, PORT_B, 1))
GROUP = socket.inet_aton(GROUP_A)
TESTS = pathlib.Path(__file__).parent
HOLDER = """
import sys; sys.path[:0] = {path!r}
from nimbus.feed.af_xdp import AfXdp
from nimbus.feed.decode import Subscription
from ringbuf.segment import Segment
source = AfXdp(Segment.anonymous(1 << 20), "mdc0", [Subscription("239.192.7.1", 26477)], frames=64)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def segment():
    return Segment.anonymous(1 << 20)


@pytest.fixture
def take(rig, segment):
    """Return a maker of sources at the client's end; the test is skipped where bpf(2) is refused."""
    with contextlib.ExitStack() as stack:

        def make(subscriptions=LINES, **options) -> AfXdp:
            options = {"frames": 512} | options
            try:
                source = rig.client.run(AfXdp, segment, rig.client.interface, subscriptions, **options)
            except SourceError as error:
                if "needs" in str(error) or "no AF_XDP" in str(error):
                    pytest.skip(str(error))
                raise
            return stack.enter_context(contextlib.closing(source))

        yield make


@pytest.fixture(params=["generic", "native"])
def xdp(take, request):
    return take(mode=request.param)


def udp_frame(payload: bytes, *, port: int = PORT_A, group: bytes = GROUP, tags=(), **options) -> bytes:
    return c.ethernet(c.ipv4(c.udp(payload, c.ipv4_pseudo(group), port), group=group, **options), tags=tags)


def test_a_frame_is_given_byte_for_byte_with_our_time(rig, xdp, segment):
    hand, frames = Packets(segment, xdp), [udp_frame(b"first"), udp_frame(b"second" * 100)]
    send_frames(rig.exchange, frames)
    assert hand.next() == frames[0]
    assert hand.row["number"] == 1
    assert hand.row["link"] == LINK_ETHERNET
    assert hand.row["stamp"] == STAMP_USER
    first_ns = int(hand.row["recv_ns"])
    assert hand.next() == frames[1]
    assert hand.row["size"] == hand.row["wire_size"] == len(frames[1])
    assert first_ns <= hand.row["recv_ns"] < first_ns + 60_000_000_000
    assert hand.next() is None


def test_what_is_subscribed_is_ours_and_the_rest_reaches_the_stack(rig, xdp, segment):
    hand, stack = Packets(segment, xdp), plain_frames(rig)
    taken = [
        udp_frame(b"plain"),
        udp_frame(b"options", options=b"\x01\x01\x01\x00"),
        udp_frame(b"line B", group=socket.inet_aton(GROUP_B), port=PORT_B),
        udp_frame(b"first fragment", fragment=0x2000),
        udp_frame(b"one tag", tags=[(0x8100, 7)]),
        udp_frame(b"two tags", tags=[(0x88A8, 7), (0x8100, 8)]),
    ]
    left = [
        udp_frame(b"other port", port=PORT_A + 9),
        udp_frame(b"other group", group=socket.inet_aton("239.192.7.3")),
        udp_frame(b"B's port in A's group", port=PORT_B),
        udp_frame(b"later fragment", fragment=0x0010),
        c.ethernet(c.ipv4(bytes(20), protocol=6, group=GROUP)),
        c.ethernet(c.ipv6(c.udp(b"ipv6")), 0x86DD),
        c.ethernet(bytes(28), 0x0806),
        udp_frame(b"cut")[:30],
        udp_frame(b"long header, short frame", options=bytes(40))[:60],
    ]
    send_frames(rig.exchange, [frame for pair in zip(left, taken + taken, strict=False) for frame in pair])
    assert hand.all() == (taken + taken)[: len(left)]
    assert [stack.recv(2_048) for _ in left] == left
    stack.close()


def test_tcp_on_the_same_interface_goes_on_working(rig, xdp, segment):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(rig.client.run(socket.create_server, ("10.77.0.2", 26_481)))
        dialled = rig.exchange.run(socket.create_connection, ("10.77.0.2", 26_481), 10)
        ours = stack.enter_context(dialled)
        theirs = stack.enter_context(server.accept()[0])
        ours.sendall(b"8=FIX.4.4")
        send(rig.exchange, Datagrams([b"feed"]))
        assert theirs.recv(100) == b"8=FIX.4.4"
        theirs.sendall(b"reply" * 10_000)
        received = 0
        while received < 50_000:
            received += len(ours.recv(65_536))
    assert [frame[42:] for frame in Packets(segment, xdp).all()] == [b"feed"]


def test_a_full_ring_drops_and_counts_exactly(rig, xdp, segment):
    hand, datagrams = Packets(segment, xdp), Datagrams.numbered(1_300)
    assert send(rig.exchange, datagrams) == 1_300
    assert [frame[42:] for frame in hand.all()] == datagrams.payloads[:512]
    counts = xdp.counters()
    assert (counts["received"], counts["dropped"]) == (512, 788)
    for _ in range(4):  # the rings go round
        send(rig.exchange, Datagrams.numbered(500))
        assert [frame[42:] for frame in hand.all()] == datagrams.payloads[:500]
    assert xdp.counters()["dropped"] == 788


def test_a_packet_stays_until_the_next_call(rig, xdp, segment):
    hand = Packets(segment, xdp)
    send(rig.exchange, Datagrams([b"held"]))
    held = hand.next()
    send(rig.exchange, Datagrams.numbered(1_000))
    assert ctypes.string_at(int(hand.row["frame_at"]), len(held)) == held
    assert len(hand.all()) == 511


def test_a_frame_longer_than_a_chunk_is_dropped_and_counted(rig, take, segment):
    small, large = take(), 3_000
    for side in (rig.exchange, rig.client):
        side.run(netlink.set_mtu, side.interface, 9_000)
    send(rig.exchange, Datagrams([b"s" * large, b"ok"]))
    assert [len(frame) for frame in Packets(segment, small).all()] == [44]
    assert small.counters()["dropped"] == 1
    small.close()
    wide = take(chunk_size=4_096, name="wide")
    send(rig.exchange, Datagrams([b"s" * large]))
    assert [len(frame) for frame in Packets(segment, wide, name="other").all()] == [42 + large]


def test_an_interface_that_goes_down_and_up_is_survived_and_counted(rig, xdp, segment):
    hand = Packets(segment, xdp)
    send(rig.exchange, Datagrams([b"before"]))
    rig.client.set_link(up=False)
    assert [frame[42:] for frame in hand.all()] == [b"before"]
    assert xdp.counters()["link_downs"] == 1
    rig.client.set_link(up=True)
    assert xdp.counters()["link_downs"] == 1
    send(rig.exchange, Datagrams([b"after"]))
    assert [frame[42:] for frame in hand.all()] == [b"after"]
    rig.unplug()
    assert hand.next() is None
    assert xdp.counters()["removed"] == 1


def test_the_wait_wakes_for_a_packet(rig, xdp, segment):
    hand = Packets(segment, xdp)
    assert hand.next() is None
    assert wait_readable(hand.sources.state, 1) == 0
    send(rig.exchange, Datagrams([b"wake"]))
    assert wait_readable(hand.sources.state, 10_000) == 1
    assert len(hand.all()) == 1
    assert wait_readable(hand.sources.state, 1) == 0


def test_without_subscriptions_every_udp_datagram_is_taken(rig, take, segment):
    source = take(())
    send_frames(
        rig.exchange, [udp_frame(b"a", port=1), c.ethernet(bytes(28), 0x0806), udp_frame(b"b", port=9)]
    )
    assert [frame[-1:] for frame in Packets(segment, source).all()] == [b"a", b"b"]


def test_a_subscription_may_leave_group_or_port_open(rig, take, segment):
    source = take([Subscription(None, 7), Subscription(GROUP_B, 0)])
    b = socket.inet_aton(GROUP_B)
    frames = [udp_frame(b"1", port=7), udp_frame(b"2", port=8), udp_frame(b"3", group=b, port=8)]
    send_frames(rig.exchange, frames)
    assert [frame[-1:] for frame in Packets(segment, source).all()] == [b"1", b"3"]


def test_every_receive_queue_needs_its_source(rig, take, segment):
    rig.unplug()
    rig.plug(queues=2)
    first = take()
    assert "has 2 receive queues" in first.remarks[0]
    second = take(queue=1, program=first.program, name="second")
    assert second.remarks == []
    hand = Packets(segment, first, second)
    for port in range(40):  # the flow decides on the queue
        send(rig.exchange, Datagrams([b"%d" % port]))
    assert sorted(int(frame[42:]) for frame in hand.all()) == list(range(40))
    with pytest.raises(SourceError, match="receive queue 1: another AF_XDP socket reads it"):
        take(queue=1, program=first.program, name="third")
    with pytest.raises(SourceError, match="receive queue 2: there is none of that number"):
        take(queue=2, program=first.program, name="fourth")


def test_the_program_is_detached_at_the_close(rig, take):
    for mode, number in (("generic", 2), ("native", 1)):
        source = take(mode=mode, name=mode)
        assert rig.client.run(netlink.xdp_mode, "mdc0") == number
        source.close()
        assert rig.client.run(netlink.xdp_mode, "mdc0") == 0


def test_the_program_is_detached_when_its_process_is_killed(rig, take):
    take().close()  # or skip
    code = HOLDER.format(path=[str(TESTS.parent)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with rig.client.start([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == b"ready\n"
        assert rig.client.run(netlink.xdp_mode, "mdc0") == 2
        holder.kill()
        holder.wait(30)
    assert rig.client.run(netlink.xdp_mode, "mdc0") == 0


def test_an_interface_with_a_program_is_named(take):
    take()
    words = r"^interface mdc0 has an XDP program already: `ip link set mdc0 xdp off`$"
    with pytest.raises(SourceError, match=words):
        take(name="second")


def test_an_interface_that_is_missing_or_down(rig, segment, take):
    take().close()
    with pytest.raises(SourceError, match=r"^interface mdc7: no such interface "):
        rig.client.run(AfXdp, segment, "mdc7", name="a")
    rig.client.set_link(up=False)
    with pytest.raises(SourceError, match=r"^interface mdc0 is down: `ip link set mdc0 up`$"):
        take(name="b")


@pytest.mark.parametrize(
    "dropped", [(CAP_NET_RAW,), (CAP_BPF, CAP_SYS_ADMIN), (CAP_NET_ADMIN, CAP_SYS_ADMIN)]
)
def test_missing_capabilities_are_named_in_one_line(rig, segment, take, dropped):
    take(name="probe").close()

    def attempt():
        rig.client.enter()
        return without_capabilities(lambda: AfXdp(segment, "mdc0", LINES, frames=64), *dropped)

    words = r"^source af_xdp needs CAP_BPF and CAP_NET_ADMIN and CAP_NET_RAW: `setcap cap_bpf,cap_net_admin,"
    with pytest.raises(SourceError, match=words) as error:
        in_thread(attempt)
    assert "\n" not in str(error.value)
    assert rig.client.run(netlink.xdp_mode, "mdc0") == 0


@pytest.mark.parametrize("options", [{"mode": "fast"}, {"frames": 100}, {"frames": 0}, {"chunk_size": 1_024}])
def test_options_that_cannot_be(take, options):
    with pytest.raises(SourceError, match="modes are generic, native, chunks a power of two"):
        take(**options)


def test_an_ipv6_group_is_refused(rig, take):
    with pytest.raises(SourceError, match="live sources take IPv4 groups only"):
        take([Subscription("ff0e::42", 1)])
    assert rig.client.run(netlink.xdp_mode, "mdc0") == 0


def test_in_a_user_namespace_the_packet_ring_works_and_af_xdp_is_refused_in_one_line():
    command = [sys.executable, str(TESTS / "net" / "rootless.py")]
    try:
        done = subprocess.run(
            command, preexec_fn=own_user_namespace, capture_output=True, text=True, check=False, timeout=300
        )
    except subprocess.SubprocessError as error:
        pytest.skip(f"no user namespaces here: {error}")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["frames"] == ["one", "two"]
    assert answer["refusal"] == (
        "source af_xdp needs root: bpf(2) is refused in a user namespace, use the source af_packet"
    )
