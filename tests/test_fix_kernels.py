"""The FIX session kernels against their readable twins: cut, read_header and judge, encode_session."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from fix_rig import guarded
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.fix import framing
from nimbus.fix.classify import Expected, classify
from nimbus.fix.frames import cut
from nimbus.fix.header import HEADER, judge, read_header
from nimbus.fix.message import NS_PER_S, Address, Message, encode, fields, stamp
from nimbus.fix.session_text import TEXT_MAX, encode_session
from nimbus.fix.settings import Role, SessionSettings
from nimbus.fix.table import Event
from nimbus.fix.transport_owner import Transport
from nimbus.messages import SESSION_OUT, WIRE
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring

NOW = 1_764_111_111_123_456_789
THEIRS = Address("FIX.4.4", "VENUE", "US")
SEGMENT = Segment.anonymous(1 << 24)
WORDS = SEGMENT.allocate("words", 64)
TRANSPORT = Transport(
    SEGMENT, "t", SessionSettings(Role.INITIATOR, "US", "VENUE"), next_seq=WORDS, link=WORDS + 8,
    buffer_used=WORDS + 16,
    out=create_ring(SEGMENT, "out", 64, WIRE),
    inbound=create_ring(SEGMENT, "inbound", 64, WIRE),
)  # fmt: skip
PEER_AT, HEADER_AT = SEGMENT.areas["t.peer"][0], SEGMENT.areas["t.header"][0]
HEADER_ROW = SEGMENT.array("t.header", HEADER)


def text(*pairs, begin=b"8=FIX.4.4", length=None, checksum=None):
    """Return a message of "tag=value" texts, with a right BodyLength and CheckSum unless they are given."""
    body = b"".join(pair + b"\x01" for pair in pairs)
    size = b"%d" % len(body) if length is None else length
    head = b"%s\x019=%s\x01%s" % (begin, size, body)
    return b"%s10=%s\x01" % (head, b"%03d" % (sum(head) & 0xFF) if checksum is None else checksum)


GOOD = text(b"35=0", b"34=2")
PIECES_PLAIN = [
    GOOD, GOOD[:-1], GOOD[:9], b"8=FIX", b"8=F", b"8", b"\x01", b"10=000\x01",
    text(b"35=0", length=b"40"), text(b"35=0", length=b"2"), text(b"35=0", length=b"0"),
    text(b"35=0", length=b"16384"), text(b"35=0", length=b"0000000005"), text(b"35=0", length=b""),
    text(b"34=1", b"35=0"), text(b"35="), text(b"35=0", checksum=b"999"), text(b"35=0", checksum=b"0a1"),
    text(b"35=0", begin=b"8=FIXT.1.1"), text(b"35=0", begin=b"8=FIXT.1.12"),
    text(b"35=0", begin=b"8=FIX"),
    text(b"35=0", begin=b"8=FIX.4.4\x0158=x"), text(b"35=0", b"58=8=FIX.4.4"), text(),
]  # fmt: skip
PIECES = st.one_of(st.sampled_from(PIECES_PLAIN), st.binary(max_size=12))


def kernel_cut(data: bytes) -> int:
    """Cut bytes that end at an unmapped page."""
    at = guarded(data)
    return cut(at, at + len(data))


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=5).map(b"".join).filter(lambda data: len(data) < 4_000))
def test_the_kernel_cuts_as_the_readable_form_does(data):
    for end in {len(data), len(data) // 2, max(len(data) - 1, 0)}:
        assert kernel_cut(data[:end]) == (framing.cut(data[:end]) if end else 0)


@pytest.mark.parametrize("end", range(len(GOOD) + 1))
def test_a_message_is_whole_with_its_last_byte(end):
    assert kernel_cut(GOOD[:end]) == framing.cut(GOOD[:end]) == (len(GOOD) if end == len(GOOD) else 0)


TIMES = [NOW, NOW - 119 * NS_PER_S, NOW - 121 * NS_PER_S, NOW + 121 * NS_PER_S]
VALUES = {
    34: st.sampled_from([b"7", b"6", b"8", b"007", b"", b"x", b"1234567890", b"-1"]),
    49: st.sampled_from([b"VENUE", b"VENUE", b"VENUES", b"", b"US"]),
    52: st.sampled_from([*(stamp(t) for t in TIMES), stamp(NOW)[:17], b"20251125-22:51:60", b"x", b""]),
    56: st.sampled_from([b"US", b"US", b"U"]),
    43: st.sampled_from([b"Y", b"N", b"YY"]),
    122: st.sampled_from([stamp(NOW), stamp(NOW - NS_PER_S), stamp(NOW + NS_PER_S), b"?"]),
    123: st.sampled_from([b"Y", b"N"]),
    36: st.sampled_from([b"6", b"7", b"20", b"", b"z"]),
    58: st.binary(max_size=20).filter(lambda value: 1 not in value),
}
KINDS = st.sampled_from(
    [b"8", b"9", b"A", b"0", b"1", b"2", b"3", b"4", b"5", b"D", b"AE", b"*", b"ABC", b"j"]
)


@st.composite
def messages(draw):
    tags = draw(
        st.permutations([34, 49, 52, 56, *draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=6))])
    )
    some = tags if draw(st.integers(0, 3)) else tags[:-1]
    forms = [b"%d=%s", b"%d=%s", b"%d=%s", b"0%d=%s", b"%d%s", b"1%d=%s"]
    pairs = [draw(st.sampled_from(forms)) % (tag, draw(VALUES[tag])) for tag in some]
    begin = draw(st.sampled_from([b"8=FIX.4.4"] * 6 + [b"8=FIX.4.2", b"8=FIX"]))
    return text(b"35=" + draw(KINDS), *pairs, begin=begin)


@settings(max_examples=1_500)
@given(messages())
def test_the_kernel_judges_as_the_readable_form_does(raw):
    read_header(guarded(raw), len(raw), HEADER_AT, PEER_AT)
    found = Event(judge(HEADER_AT, PEER_AT, 7, NOW))
    assert found is classify(
        Message.parse(raw), Expected(THEIRS, 7, 120 * NS_PER_S, is_order_sender=True), NOW
    )


SCRATCH = ctypes.create_string_buffer(TEXT_MAX)
OUT = np.zeros(1, SESSION_OUT.dtype)
LABELS_AT = SEGMENT.areas["t.labels"][0]


@given(
    st.sampled_from(["0", "A", "2", "5", "AE"]), st.integers(1, 10**9 - 1), st.integers(0, 900),
    st.integers(0, 10**18),
)  # fmt: skip
def test_a_session_message_is_the_text_it_should_be(kind, seq, size, now_ns):
    body = b"58=" + b"x" * size + b"\x01" if size else b""
    OUT[0]["msg_type"], OUT[0]["size"] = int.from_bytes(kind.encode(), "little"), len(body)
    OUT[0]["body"][: len(body)] = list(body)
    made = encode_session(ctypes.addressof(SCRATCH), LABELS_AT, OUT.ctypes.data, seq, 0, now_ns)
    found = SCRATCH.raw[made >> 32 :][: made & 0xFFFFFFFF]
    assert found == encode(Address("FIX.4.4", "US", "VENUE"), kind, seq, stamp(now_ns), body)


@given(st.integers(1, 10**9), st.integers(1, 10**9 - 1))
def test_a_gap_fill_carries_43_and_122(new_seq, seq):
    OUT[0]["msg_type"], OUT[0]["size"] = ord("4"), 6
    OUT[0]["body"][:6] = list(b"123=Y\x01")
    made = encode_session(ctypes.addressof(SCRATCH), LABELS_AT, OUT.ctypes.data, seq, new_seq, NOW)
    found = SCRATCH.raw[made >> 32 :][: made & 0xFFFFFFFF]
    body = fields([(36, new_seq), (123, "Y")])
    assert found == encode(Address("FIX.4.4", "US", "VENUE"), "4", seq, stamp(NOW), body, stamp(NOW))
