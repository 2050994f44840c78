"""The fixed-width writers against Python's own formatting: the text, and the sum of its bytes."""

from __future__ import annotations

import ctypes

from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import fix as twin

from nimbus.fix.digits import (
    SECOND_NEVER,
    STAMP,
    byte_sum,
    copy_id,
    digits4,
    digits8,
    put_char,
    put_check_sum,
    put_id,
    put_pair,
    put_px,
    put_qty,
    put_seq,
    put_stamp,
    set_stamp,
)
from nimbus.fix.tags import MSG_SEQ_NUM_MAX, PX_MAX, QTY_MAX
from ringbuf.segment import Segment

TEXT = ctypes.create_string_buffer(1024)
AT = ctypes.addressof(TEXT)
SEGMENT = Segment.anonymous(1 << 16)
STAMP_AT = SEGMENT.allocate("stamp", STAMP.size)
STAMP_ROW = SEGMENT.array("stamp", STAMP)[0]
STAMP_ROW["second_ns"] = SECOND_NEVER
IDS = st.integers(0, 2**60 - 1)


def near(step, end):
    """Return numbers below end: any, and those around the multiples of step, where a quotient changes."""
    multiples = st.tuples(st.integers(0, (end - 1) // step), st.sampled_from([-1, 0, 1]))
    return st.one_of(
        st.integers(0, end - 1), multiples.map(lambda pair: min(max(pair[0] * step + pair[1], 0), end - 1))
    )


def agrees(total, text):
    """Say whether the text stands at AT and has the sum of bytes that its writer returned."""
    return TEXT.raw[: len(text)].decode("latin-1") == text and total == sum(text.encode("latin-1"))


def test_every_number_of_four_digits():
    assert all(digits4(n).to_bytes(4, "little") == b"%04d" % n for n in range(10_000))


@settings(max_examples=1000, deadline=None)
@given(near(10_000, 10**8))
@example(10**8 - 1)
def test_a_number_of_eight_digits(number):
    assert digits8(number).to_bytes(8, "little") == b"%08d" % number


@settings(max_examples=500, deadline=None)
@given(qty=near(10_000, QTY_MAX + 1), px=near(10_000, PX_MAX + 1), seq=near(10**8, MSG_SEQ_NUM_MAX + 1))
@example(qty=QTY_MAX, px=PX_MAX, seq=MSG_SEQ_NUM_MAX)
def test_numbers_of_fixed_width(qty, px, seq):
    assert agrees(put_qty(AT, qty), f"{qty:07d}")
    assert TEXT.raw[7] == 1  # and the SOH behind it
    assert agrees(put_px(AT, px), twin.px(px))
    assert agrees(put_seq(AT, seq), f"{seq:09d}")


def test_pairs_and_characters():
    assert all(agrees(put_pair(AT, n), f"{n:02d}") for n in range(100))
    assert all(agrees(put_char(AT, n), chr(n)) for n in range(256))


@settings(max_examples=300, deadline=None)
@given(epoch=st.integers(0, 2**20 - 1), number=IDS, raw=st.binary(min_size=16, max_size=16))
def test_identifiers_written_and_copied(epoch, number, raw):
    assert agrees(put_id(AT, epoch, number), twin.identifier(epoch, number))
    source = ctypes.create_string_buffer(raw, 16)
    assert agrees(copy_id(AT, ctypes.addressof(source)), raw.decode("latin-1"))


@settings(max_examples=500, deadline=None)
@given(
    times=st.lists(
        st.one_of(near(86_400 * 10**9, 2**62), near(10**9, 2**62), near(1000, 10**12)), min_size=1
    ),
    digits=st.sampled_from([0, 3, 6, 9]),
    is_new=st.booleans(),
)
def test_a_time_after_any_other(times, digits, is_new):
    if is_new:
        STAMP_ROW["second_ns"] = SECOND_NEVER
    for now_ns in times:
        total, text = set_stamp(STAMP_AT, now_ns, digits), twin.stamp(now_ns, digits)
        TEXT[len(text)] = b"|"
        put_stamp(AT, STAMP_AT, digits)
        assert agrees(total, text)
        assert TEXT[len(text)] == b"|"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(min_size=8, max_size=1000), st.integers(8, 1000).map(lambda n: b"\xff" * n)))
def test_the_sum_of_any_bytes(raw):
    ctypes.memmove(AT, raw, len(raw))
    assert byte_sum(AT, len(raw)) == sum(raw) % 65536


def test_every_check_sum():
    for total in range(512):
        put_check_sum(AT, total)
        assert TEXT.raw[:4] == b"%03d\x01" % (total % 256)
