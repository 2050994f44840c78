"""SoupBinTCP, the snapshot over it, the request packet: any cut gives the same packets, bad bytes a line."""

from __future__ import annotations

import itertools
import struct

import captures as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.feed import soupbin as soup

TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6)
PACKET = st.one_of(
    st.binary(max_size=300).map(lambda p: soup.encode(soup.SEQUENCED, p)),
    st.just(soup.encode(soup.SERVER_HEARTBEAT)),
    st.binary(max_size=20).map(lambda p: soup.encode(soup.DEBUG, p)),
    st.just(soup.login_accepted("S1", 7)),
    st.just(soup.login_rejected("A")),
    st.just(soup.encode(soup.END_OF_SESSION)),
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(stream) + 1) for p in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(PACKET, max_size=12), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_the_same_packets_come_out_wherever_the_stream_is_cut(
    packets: list[bytes], places: list[int]
) -> None:
    framer, out = soup.Framer(soup.FROM_SERVER), []
    for piece in cut(b"".join(packets), places):
        out += framer.feed(piece)
    assert [soup.encode(*packet) for packet in out] == packets
    assert framer.pending == 0


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_give_packets_or_one_line(pieces: list[bytes]) -> None:
    for kinds in (soup.FROM_SERVER, soup.FROM_CLIENT):
        framer = soup.Framer(kinds)
        try:
            for piece in pieces:
                assert all(packet.kind in kinds for packet in framer.feed(piece))
                assert framer.pending <= 0x10001
        except soup.SoupError as error:
            lines = str(error).splitlines()
            assert len(lines) == 1


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"\0\0x", "length 0"),
        (b"\0\1L", "not for this side"),
        (b"\0\1\xff", "not for this side"),
        (b"\0\2HX", "has 1 bytes"),
        (b"\xff\xffA", "has 65534 bytes"),  # before they have arrived
        (b"\0\1J", "not 1"),
    ],
)
def test_a_bad_packet_is_refused_at_its_first_three_bytes(stream: bytes, complaint: str) -> None:
    with pytest.raises(soup.SoupError, match=complaint):
        soup.Framer(soup.FROM_SERVER).feed(stream)


@given(TEXT, TEXT, TEXT, st.integers(0, 10**20 - 1))
def test_a_login_comes_back_as_it_was_sent(user: str, password: str, session: str, number: int) -> None:
    data = soup.login_request(user, password, session, number)
    assert len(data) == 49
    (packet,) = soup.Framer(soup.FROM_CLIENT).feed(data)
    assert soup.parse_login_request(packet.payload) == (user, password, session, number)
    (packet,) = soup.Framer(soup.FROM_SERVER).feed(soup.login_accepted(session, number))
    assert soup.parse_login_accepted(packet.payload) == (session, number)


def test_a_login_has_the_bytes_of_the_specification() -> None:
    wanted = b"\0\x2fL" + b"user  " + b"secret    " + b"        S1" + b"                  42"
    assert soup.login_request("user", "secret", "S1", 42) == wanted
    assert soup.login_accepted("S1", 1) == b"\0\x1fA        S1                   1"
    assert soup.encode(soup.LOGOUT_REQUEST) == b"\0\1O"


@pytest.mark.parametrize(
    "call",
    [
        lambda: soup.login_request("toolong", "x"),
        lambda: soup.login_request("user", "pässword"),
        lambda: soup.login_request("user", "p\n"),
        lambda: soup.login_request("user", "p", number=-1),
        lambda: soup.login_accepted("S1", 10**20),
        lambda: soup.login_rejected("X"),
        lambda: soup.encode("S", b"x" * 65_535),
        lambda: soup.snapshot_end(0),
        lambda: soup.snapshot_message(b""),
        lambda: soup.snapshot_message(c.itch("E", 31)),
        lambda: soup.snapshot_message(c.itch("A", 35)),
        lambda: soup.parse_snapshot_end(b"G" + b"1" * 19),
        lambda: soup.parse_snapshot_end(b"G" + b"%20d" % 0),
        lambda: soup.parse_snapshot_end(b"G" + b"9" * 20),
        lambda: soup.parse_snapshot_end(b"G" + b"         1 2        "),
        lambda: soup.parse_login_accepted(b" " * 30),
        lambda: soup.parse_login_request(b" " * 45),
        lambda: soup.mold_request(b"short", 1, 1),
        lambda: soup.mold_request(b"S" * 10, 1, 0xFFFF),
        lambda: soup.parse_mold_request(b"S" * 10 + struct.pack(">QH", 0, 1)),
        lambda: soup.parse_mold_request(b"S" * 10 + struct.pack(">QH", 1 << 63, 1)),
        lambda: soup.parse_mold_request(b"S" * 21),
    ],
)
def test_what_cannot_be_encoded_or_read_is_one_line_without_secrets(call) -> None:
    with pytest.raises(soup.SoupError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "pässword" not in str(caught.value)


@given(st.integers(1, soup.NUMBER_MAX))
def test_the_end_of_a_snapshot_carries_the_next_number(number: int) -> None:
    (packet,) = soup.Framer(soup.FROM_SERVER).feed(soup.snapshot_end(number))
    assert soup.is_snapshot_end(packet.payload)
    assert soup.parse_snapshot_end(packet.payload) == number
    assert soup.parse_snapshot_end(b"G" + b"%020d" % number) == number


def test_every_message_of_a_snapshot_is_one_packet() -> None:
    add = c.itch("A", 36)
    assert soup.Framer(soup.FROM_SERVER).feed(soup.snapshot_message(add)) == [("S", add)]


@given(st.binary(min_size=10, max_size=10), st.integers(1, soup.NUMBER_MAX), st.integers(1, 0xFFFE))
def test_a_request_packet_comes_back_as_it_was_sent(session: bytes, first: int, count: int) -> None:
    packet = soup.mold_request(session, first, count)
    assert packet == c.mold(session, first, [], count=count)
    assert soup.parse_mold_request(packet) == (session, first, count)


def test_sessions_of_both_protocols_compare_without_their_padding() -> None:
    assert soup.session_name(b"S1\0\0      ") == soup.session_name("        S1") == "S1"
