"""Frames of every kind: what is delivered, what is refused, and under which name."""

from __future__ import annotations

from collections import Counter

import captures as c
import pytest
from feeding import Fed
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.feed import SlowFeed

from nimbus.feed.decode import Subscription

MESSAGES = [c.itch("A", 36), c.itch("D", 19)]
DATAGRAM = c.mold(b"SESSION001", 1, MESSAGES)
WANTED = [(1, MESSAGES[0]), (2, MESSAGES[1])]
V4, V6 = c.ipv4(c.udp(DATAGRAM)), c.ipv6(c.udp(DATAGRAM, c.IPV6_SOURCE + c.IPV6_GROUP))
EXTENDED = bytes([17, 0, 0, 0, 0, 0, 0, 0]) + c.udp(DATAGRAM)

GOOD = {
    "plain": ("ethernet", c.ethernet(V4)),
    "padded": ("ethernet", c.ethernet(V4) + bytes(7)),
    "vlan": ("ethernet", c.ethernet(V4, tags=[(0x8100, 141)])),
    "qinq": ("ethernet", c.ethernet(V4, tags=[(0x88A8, 5), (0x8100, 141)])),
    "options": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM), options=bytes([1] * 40)))),
    "do not fragment": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM), fragment=0x4000))),
    "udp checksum": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM, c.ipv4_pseudo())))),
    "ipv6": ("ethernet", c.ethernet(V6, 0x86DD)),
    "ipv6 in vlan": ("ethernet", c.ethernet(V6, 0x86DD, [(0x8100, 9)])),
    "cooked 1": ("cooked1", c.cooked1(V4)),
    "cooked 1, ipv6": ("cooked1", c.cooked1(V6, 0x86DD)),
    "cooked 2": ("cooked2", c.cooked2(V4)),
    "raw ipv4": ("raw", V4),
    "raw ipv6": ("raw", V6),
    "bytes behind udp": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM) + b"xyz"))),
}
SHORT_TOTAL = c.ethernet(c.ipv4(c.udp(DATAGRAM), options=bytes([1] * 40), total=30))
BAD = {
    "arp": ("ethernet", c.ethernet(bytes(28), 0x0806)),
    "other_ethertype": ("ethernet", c.ethernet(bytes(50), 0x88CC)),
    "vlan_depth": ("ethernet", c.ethernet(V4, tags=[(0x88A8, 1), (0x8100, 2), (0x8100, 3)])),
    "tcp": ("ethernet", c.ethernet(c.ipv4(bytes(20), protocol=6))),
    "other_ip_protocol": ("ethernet", c.ethernet(c.ipv4(bytes(20), protocol=1))),
    "fragment": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM), fragment=0x2000))),  # the first one
    "ip_length": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM), total=200))),
    "ip_header": ("ethernet", c.ethernet(bytes([0x44]) + V4[1:])),
    "ip_version": ("ethernet", c.ethernet(bytes([0x65]) + V4[1:])),
    "udp_length": ("ethernet", c.ethernet(c.ipv4(c.udp(DATAGRAM, size=300)))),
    "short_frame": ("ethernet", c.ethernet(V4)[:30]),
    "ipv6_extension": ("ethernet", c.ethernet(c.ipv6(EXTENDED, following=60), 0x86DD)),
    "short_datagram": ("ethernet", c.frame(DATAGRAM[:19])),
    "foreign": ("ethernet", c.frame(DATAGRAM[:-1])),  # the last block does not fit, no session is known
}


@pytest.mark.parametrize("name", GOOD)
def test_a_datagram_is_found_in_every_framing(name: str) -> None:
    link, data = GOOD[name]
    fed = Fed()
    assert fed.frame(data, link) == 1
    assert fed.messages == WANTED
    assert fed.feed.refused() == {}
    assert fed.feed.counters()["ip_checksum_bad"] == fed.feed.counters()["udp_checksum_bad"] == 0


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_datagram_is_refused_by_name(name: str) -> None:
    link, data = BAD[name]
    fed = Fed()
    assert fed.frame(data, link) < 0
    assert fed.feed.refused() == {name: 1}
    assert fed.messages == []
    assert fed.is_balanced()


def test_a_later_fragment_and_an_ipv6_fragment_are_refused() -> None:
    fed = Fed()
    fed.frame(c.ethernet(c.ipv4(c.udp(DATAGRAM), fragment=3)))
    fed.frame(c.ethernet(c.ipv6(bytes([17, 0, 0, 1]) + bytes(4) + c.udp(DATAGRAM), following=44), 0x86DD))
    assert fed.feed.refused() == {"fragment": 2}


def test_an_ip_length_inside_its_own_header_is_refused() -> None:
    fed = Fed()
    fed.frame(SHORT_TOTAL)
    assert fed.feed.refused() == {"ip_length": 1}


def test_a_frame_that_the_capture_cut_is_refused() -> None:
    fed = Fed()
    fed.frame(GOOD["plain"][1], wire_size=1_000)
    assert fed.feed.refused() == {"snapped": 1}


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (c.ethernet(c.ipv4(c.udp(DATAGRAM), checksum=0)), "ip_checksum_zero"),
        (c.ethernet(c.ipv4(c.udp(DATAGRAM), checksum=0x1234)), "ip_checksum_bad"),
        (c.ethernet(c.ipv4(c.udp(DATAGRAM)[:6] + b"\x12\x34" + DATAGRAM)), "udp_checksum_bad"),
        (c.ethernet(c.ipv6(c.udp(DATAGRAM)[:6] + b"\x12\x34" + DATAGRAM), 0x86DD), "udp_checksum_bad"),
    ],
)
def test_a_wrong_checksum_is_counted_and_refused_only_when_strict(data: bytes, counter: str) -> None:
    lax, strict = Fed(), Fed(strict=True)
    lax.frame(data)
    strict.frame(data)
    assert lax.feed.counters()[counter] == strict.feed.counters()[counter] == 1
    assert (lax.messages, lax.feed.refused()) == (WANTED, {})
    assert (strict.messages, strict.feed.refused()) == ([], {"checksum": 1})


def test_an_absent_udp_checksum_is_fine_when_strict() -> None:
    fed = Fed(strict=True)
    fed.frame(GOOD["plain"][1])
    assert fed.messages == WANTED


def test_a_subscription_takes_its_group_and_port_and_tells_the_line() -> None:
    wanted = [
        Subscription("233.54.12.111", c.PORT, 1),
        Subscription("ff0e::42", c.PORT),
        Subscription(None, 7, 3),
    ]
    fed = Fed(subscriptions=wanted)
    fed.frame(GOOD["plain"][1])
    assert fed.feed.record["line"] == 1
    fed.frame(c.ethernet(c.ipv4(c.udp(DATAGRAM, port=9))))
    fed.frame(c.ethernet(c.ipv4(c.udp(DATAGRAM), group=bytes([233, 0, 0, 1]))))
    assert fed.feed.refused() == {"not_subscribed": 2}
    fed.frame(c.ethernet(V6, 0x86DD))
    assert fed.feed.record["line"] == 0
    fed.frame(c.ethernet(c.ipv4(c.udp(DATAGRAM, port=7))))
    assert fed.feed.record["line"] == 3


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="agree is 0"):
        Fed(agree=0)
    with pytest.raises(ValueError, match="17 subscriptions"):
        Fed(subscriptions=[Subscription(None, 0)] * 17)


ALL_FRAMES = [*GOOD.values(), *BAD.values(), ("ethernet", SHORT_TOTAL)]


def same_as_slow_twin(link: str, data: bytes) -> None:
    fed, slow = Fed(), SlowFeed()
    fed.frame(data, link)
    slow.frame(link, data)
    assert fed.messages == slow.delivered
    assert fed.feed.refused() == dict(+slow.refused)
    assert fed.feed.messages_by_type() == dict(slow.types)
    counts = {k: v for k, v in fed.feed.counters().items() if v and k not in {"blocks", "empty_blocks"}}
    assert counts == dict(+slow.counts)
    assert fed.is_balanced()


def test_every_length_of_every_frame_is_judged_as_by_the_slow_twin() -> None:
    for link, data in ALL_FRAMES:
        for size in range(len(data) + 1):
            same_as_slow_twin(link, data[:size])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALL_FRAMES), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4))
def test_changed_bytes_are_judged_as_by_the_slow_twin(
    frame: tuple[str, bytes], changes: list[tuple[int, int]]
) -> None:
    link, data = frame[0], bytearray(frame[1])
    for at, value in changes:
        data[at % len(data)] = value
    same_as_slow_twin(link, bytes(data))


def test_the_counter_of_types_is_by_letter() -> None:
    fed = Fed()
    messages = [c.itch("A", 36), c.itch("Z", 30), c.itch("E", 30), b"", c.itch("h", 21), c.itch("A", 36)]
    fed.frame(c.frame(c.mold(b"SESSION001", 1, messages)))
    assert fed.feed.messages_by_type() == {"h": 1, "A": 2}
    assert fed.feed.unknown_types() == {"Z": 1}
    assert fed.feed.wrong_lengths() == {"E": 1}
    assert fed.feed.counters()["empty_blocks"] == 1
    assert Counter(seq for seq, _ in fed.messages) == Counter([1, 5, 6])
