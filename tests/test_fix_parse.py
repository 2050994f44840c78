"""The parser: whole messages against simplefix, broken ones refused, no byte read beyond the end."""

import random

import pytest
import simplefix
from conftest import SHARED
from fix_rig import FIELDS_AT, FIELDS_ROW, guarded, parsed
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fix as twin

from nimbus.fix import tags
from nimbus.fix.parse import find, parse, to_char, to_int, to_ns, to_px, to_qty

BODY = [(34, "12"), (49, "VENUE"), (52, "20251125-22:51:51.123"), (56, "CF"), (37, "O1"),
(11, "0007000010000ABC"),
        (17, "E1"), (150, "F"), (39, "1"), (55, "AAPL"), (54, "1"), (38, "100"), (32, "40"), (31, "101.5"),
        (151, "60"),
        (14, "40"), (6, "101.50"), (60, "20251125-22:51:51")]  # fmt: skip
REPORT = twin.join("8", BODY)

VALUES = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), min_size=1, max_size=30
)
RAW_DATA = {int(t) for t in simplefix.FixParser().raw_len_tags + simplefix.FixParser().raw_data_tags}
KNOWN = [t for t in tags.KNOWN if t not in (8, 9, 10, 35)]
UNKNOWN = st.one_of(
    st.sampled_from([1, 2, 12, 447, 448, 1023, 1024, 5000, 99_999]), st.integers(1, 99_999)
).filter(lambda t: t not in tags.KNOWN and t not in RAW_DATA)
BODIES = st.lists(
    st.tuples(st.one_of(st.sampled_from(KNOWN), UNKNOWN), VALUES), max_size=25, unique_by=lambda pair: pair[0]
)


def value(tag):
    found = find(FIELDS_AT, tag)
    return None if found < 0 else (found >> 16, found & 0xFFFF)


@settings(max_examples=300, deadline=None)
@given(
    fields=BODIES,
    kind=st.sampled_from(["8", "9", "D", "AE"]),
    begin=st.sampled_from(["FIX.4.4", "FIX.4.2", "FIXT.1.1"]),
    zeros=st.integers(0, 6),
)
def test_a_message_reads_as_simplefix_reads_it(fields, kind, begin, zeros):
    message = twin.join(kind, fields, begin=begin, length_digits=zeros)
    parser = simplefix.FixParser()
    parser.append_buffer(message)
    expected = {int(t): v for t, v in parser.get_message().pairs}
    assert parsed(message) == tags.OK
    for tag in tags.KNOWN:
        at = value(tag)
        assert (message[at[0] : at[0] + at[1]] if at else None) == expected.get(tag), tag
    assert FIELDS_ROW[0]["count"] == len(expected)
    assert FIELDS_ROW[0]["unknown"] == len(set(expected) - set(tags.KNOWN))
    assert int(FIELDS_ROW[0]["msg_type"]) == int.from_bytes(kind.encode(), "little")


@settings(max_examples=100, deadline=None)
@given(fields=BODIES)
def test_a_message_that_simplefix_encodes_is_accepted(fields):
    message = simplefix.FixMessage()
    message.append_pair(8, "FIX.4.4")
    message.append_pair(35, "8")
    for tag, text in fields:
        message.append_pair(tag, text.encode("latin-1"))
    assert parsed(message.encode()) == tags.OK


def test_a_message_cut_at_any_length_is_refused_without_reading_on():
    for size in range(len(REPORT)):
        assert parsed(REPORT[:size]) < 0, size
    assert parsed(REPORT) == tags.OK
    assert parsed(REPORT + b"8") < 0


def test_a_message_with_any_one_byte_changed_is_refused_or_is_that_message():
    for at in range(len(REPORT)):
        for new in (0, 1, ord("="), ord("0"), ord("9"), REPORT[at] ^ 0x80):
            changed = REPORT[:at] + bytes([new]) + REPORT[at + 1 :]
            if changed != REPORT:
                assert parsed(changed) < 0, (at, new)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_calmly(noise):
    assert parsed(noise) < 0


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=120).filter(lambda b: not b.endswith(b"\x01")), st.booleans())
def test_any_bytes_with_right_framing_read_within_the_message(noise, ended):
    body = b"35=8\x01" + noise + (b"\x01" if ended else b"")
    head = b"8=FIX.4.4\x019=%d\x01" % len(body) + body
    message = head + b"10=%03d\x01" % (sum(head) % 256)
    status = parse(guarded(message), len(message), FIELDS_AT)
    if status == tags.OK:
        for tag in tags.KNOWN:
            at = value(tag)
            assert at is None or b"\x01" not in message[at[0] : at[0] + at[1]]


def reframed(body, head=b"8=FIX.4.4", longer=0):
    text = head + b"\x019=%d\x01" % (len(body) + longer) + body
    return text + b"10=%03d\x01" % (sum(text) % 256)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (reframed(b"35=8\x0111=A\x0111=B\x01"), tags.DUPLICATE_TAG),
        (reframed(b"35=8\x018=FIX.4.4\x01"), tags.DUPLICATE_TAG),
        (reframed(b"35=8\x0110=000\x01"), tags.DUPLICATE_TAG),
        (reframed(b"35=8\x01035=8\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x010=8\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x01=8\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x011a=8\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x01123456=8\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x01\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x0158\x01"), tags.BAD_TAG),
        (reframed(b"35=8\x01-5=8\x01"), tags.BAD_TAG),
        (reframed(b"34=8\x0135=8\x01"), tags.BAD_MSG_TYPE),
        (reframed(b"35=\x0134=8\x01"), tags.BAD_MSG_TYPE),
        (reframed(b"35=ABC\x01"), tags.BAD_MSG_TYPE),
        (reframed(b"35=8\x0134=1"), tags.BAD_BODY_LENGTH),
        (reframed(b"35=8\x0134=1\x01", longer=1), tags.BAD_BODY_LENGTH),
        (reframed(b"35=8\x0134=1\x01", longer=-1), tags.BAD_BODY_LENGTH),
        (reframed(b"35=8\x0134=12\x01", b"9=FIX.4.4"), tags.BAD_BEGIN_STRING),
        (reframed(b"35=8\x0134=12\x01", b"8=FIX.4.4.4.4"), tags.BAD_BEGIN_STRING),
        (REPORT.replace(b"\x019=", b"\x019=-"), tags.BAD_BODY_LENGTH),
        (REPORT.replace(b"\x019=", b"\x019=0000000000"), tags.BAD_BODY_LENGTH),
        (REPORT[:-4] + b"1.5\x01", tags.BAD_TRAILER),
        (REPORT[:-4] + b"%03d\x01" % ((int(REPORT[-4:-1]) + 1) % 256), tags.BAD_CHECK_SUM),
        (REPORT[:-4] + b"%03d\x01" % (int(REPORT[-4:-1]) + 256), tags.BAD_CHECK_SUM),
        (b"", tags.BAD_SIZE),
        (b"8=FIX" * 1000, tags.BAD_SIZE),
    ],
)
def test_bad_framing_is_refused_by_name(message, status):
    assert parsed(message) == status


def test_an_unknown_tag_that_repeats_is_counted_and_no_reason_to_refuse():
    assert parsed(reframed(b"35=8\x01447=D\x01447=D\x015000=x\x0158=\x01")) == tags.OK
    assert FIELDS_ROW[0]["unknown"] == 3
    assert value(58) == (42, 0)


def test_a_tag_of_the_message_before_is_missing():
    assert parsed(REPORT) == tags.OK
    assert parsed(reframed(b"35=8\x0134=1\x01")) == tags.OK
    assert to_int(FIELDS_AT, 11) == to_px(FIELDS_AT, 31) == to_char(FIELDS_AT, 39) == tags.MISSING
    assert to_ns(FIELDS_AT, 52) == tags.MISSING


def test_after_two_thousand_million_messages_no_old_tag_comes_to_life():
    assert parsed(REPORT) == tags.OK
    FIELDS_ROW[0]["generation"] = 2**31 - 2
    FIELDS_ROW[0]["entries"][31] = (1 << 32) | (5 << 16) | 1  # of generation 1, long ago
    assert parsed(reframed(b"35=8\x0134=1\x01")) == tags.OK
    assert FIELDS_ROW[0]["generation"] == 2**31 - 1
    assert parsed(reframed(b"35=8\x0134=1\x01")) == tags.OK
    assert FIELDS_ROW[0]["generation"] == 1
    assert value(31) is None
    assert FIELDS_ROW[0]["entries"][1] == -1


def read(kernel, text, tag=44):
    message = reframed(b"35=8\x01%d=%b\x01" % (tag, text))
    assert parsed(message) == tags.OK
    return kernel(FIELDS_AT, tag)


@pytest.mark.parametrize(
    ("text", "px"),
    [
        (b"10", 100_000), (b"10.", 100_000), (b"10.5", 105_000), (b"000101.5025", 1_015_025), (b".5", 5000),
        (b"0.0001", 1), (b"0.00010", 1), (b"0.000100000000", 1), (b"0.00001", tags.TOO_FINE), (b"0", 0),
        (b"999999.9999", 9_999_999_999), (b"1000000", tags.OUT_OF_RANGE), (b"9" * 18, tags.OUT_OF_RANGE),
        (b"-1", tags.BAD_NUMBER), (b"+1", tags.BAD_NUMBER), (b"1e3", tags.BAD_NUMBER),
        (b"1.2.3", tags.BAD_NUMBER),
        (b".", tags.BAD_NUMBER), (b"", tags.BAD_NUMBER), (b"1" * 40, tags.BAD_NUMBER),
        (b" 1", tags.BAD_NUMBER),
    ],
)  # fmt: skip
def test_a_price_is_exact_or_refused(text, px):
    assert read(to_px, text) == px


@pytest.mark.parametrize(
    ("text", "qty"),
    [
        (b"100", 100), (b"0000100", 100), (b"002000.00", 2000), (b"1.5", tags.TOO_FINE),
        (b"9999999", 9_999_999),
        (b"10000000", tags.OUT_OF_RANGE), (b"-5", tags.BAD_NUMBER), (b"x", tags.BAD_NUMBER), (b"0", 0),
    ],
)  # fmt: skip
def test_a_quantity_is_whole_or_refused(text, qty):
    assert read(to_qty, text) == qty


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"0", 0), (b"007", 7), (b"9" * 18, 10**18 - 1), (b"1" * 19, tags.BAD_NUMBER), (b"", tags.BAD_NUMBER),
        (b"1.0", tags.BAD_NUMBER), (b"-1", tags.BAD_NUMBER),
    ],
)  # fmt: skip
def test_an_integer_is_digits_or_refused(text, number):
    assert read(to_int, text) == number


@settings(max_examples=200, deadline=None)
@given(px=st.integers(0, tags.PX_MAX), zeros=st.integers(0, 5))
def test_every_price_reads_back(px, zeros):
    assert read(to_px, twin.px(px).encode() + b"0" * zeros) == px


@settings(max_examples=200, deadline=None)
@given(now_ns=st.integers(0, 7_000_000_000 * 10**9), digits=st.sampled_from([0, 3, 6, 9]))
def test_every_timestamp_reads_back_to_its_fraction(now_ns, digits):
    cut = 10 ** (9 - digits)
    assert read(to_ns, twin.stamp(now_ns, digits).encode()) == now_ns // cut * cut


@pytest.mark.parametrize(
    "text",
    [b"20250229-00:00:00", b"20250431-00:00:00", b"20251301-00:00:00", b"20250100-00:00:00",
     b"20250101-24:00:00",
     b"20250101-00:60:00", b"20250101-00:00:61", b"20250101 00:00:00", b"20250101-00:00:00.1",
     b"20250101-00:00:00.12x",
     b"20250101-00:00:00,123", b"19691231-00:00:00", b"22000101-00:00:00", b"2025010x-00:00:00", b""],
)  # fmt: skip
def test_a_time_that_is_none_is_refused(text):
    assert read(to_ns, text) == tags.BAD_TIME


def test_a_leap_second_and_a_leap_day_are_accepted():
    assert read(to_ns, b"20161231-23:59:60") == read(to_ns, b"20170101-00:00:00")
    assert read(to_ns, b"20240229-00:00:00") == 1_709_164_800 * 10**9


def test_the_sample_session_parses_but_for_its_garbled_line():
    path = SHARED / "conformance" / "session44.log"
    if not path.is_file():
        pytest.skip(f"sample session is absent: {path}")
    statuses = []
    for line in path.read_text().splitlines():
        if "8=FIX" in line:
            message = line[line.index("8=FIX") :].replace("|", "\x01").encode()
            statuses.append(parsed(message))
            if b"\x0135=8\x01" in message and b"\x0131=" in message:
                assert to_px(FIELDS_AT, 31) == 105_000
                assert to_ns(FIELDS_AT, 60) > 0
    assert len(statuses) > 60
    assert [s for s in statuses if s != tags.OK] == [tags.BAD_CHECK_SUM]


@pytest.mark.slow
def test_a_million_mutated_messages_never_crash():
    dice = random.Random(5)
    for _ in range(1_000_000):
        message = bytearray(REPORT)
        for _ in range(dice.randrange(1, 4)):
            message[dice.randrange(len(message))] = dice.choice(b"\x01=019|\xff\x00")
        assert parsed(bytes(message[: dice.randrange(len(message) + 1)])) <= tags.OK
