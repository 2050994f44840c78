"""Encoding against a join of strings, and read back by simplefix, a decoder that we did not write."""

import pytest
import simplefix
from fix_rig import (
    NOW,
    ORDER_CODECS,
    REPORT_AT,
    REPORT_ROW,
    SYMBOL_WORDS,
    SYMBOLS,
    SYMBOLS_MAX,
    TARGET,
    TARGET_AT,
    VENUE_CODECS,
    an_order,
    parsed,
    set_row,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fix as twin

from nimbus.fix.codec import Codec
from nimbus.fix.tags import BAD_FORM, DOES_NOT_FIT, MSG_SEQ_NUM_MAX, NO_SYMBOL, OK, PX_MAX, QTY_MAX
from nimbus.fix.template import encode_cancel, encode_cancel_reject, encode_new_order, encode_report
from nimbus.messages import BUY, SELL
from ringbuf.segment import Segment

SEQS = st.one_of(st.integers(1, 1000), st.integers(1, MSG_SEQ_NUM_MAX))
QTYS, PXS = st.integers(0, QTY_MAX), st.integers(0, PX_MAX)
TIMES = st.one_of(st.integers(NOW - 10**10, NOW + 10**10), st.integers(0, 2**62))
IDS = st.text(twin.ALPHABET, min_size=16, max_size=16)
LOCATES = st.sampled_from(sorted(SYMBOLS))
DIGITS = st.sampled_from([0, 3, 6, 9])
FOREIGN = simplefix.FixParser()


def written(size):
    assert size > 0, size
    message = TARGET.raw[:size]
    assert parsed(message) == OK
    return message


def foreign(message):
    """Return the fields as simplefix reads them."""
    FOREIGN.reset()
    FOREIGN.append_buffer(message)
    found = FOREIGN.get_message()
    return {int(tag): value.decode() for tag, value in found.pairs}


def head(seq, now_ns, digits, sender="CONTRAFUSION", target="VENUE"):
    return [(34, f"{seq:09d}"), (49, sender), (52, twin.stamp(now_ns, digits)), (56, target)]


@settings(max_examples=300, deadline=None)
@given(
    seq=SEQS,
    qty=QTYS,
    px=PXS,
    now_ns=TIMES,
    cl=IDS,
    locate=LOCATES,
    digits=DIGITS,
    side=st.sampled_from([BUY, SELL]),
    tif=st.sampled_from([0, 3]),
)
def test_a_new_order_is_the_join_of_its_fields(seq, qty, px, now_ns, cl, locate, digits, side, tif):
    order = an_order(qty=qty, px=px, cl_ord_id=list(cl.encode()), locate=locate, side=side, tif=tif)
    message = written(encode_new_order(ORDER_CODECS[digits].addr, TARGET_AT, order, seq, now_ns))
    stamp, code = twin.stamp(now_ns, digits), "1" if side == BUY else "2"
    body = [
        (11, cl),
        (54, code),
        (60, stamp),
        (38, f"{qty:07d}"),
        (40, "2"),
        (44, twin.px(px)),
        (59, str(tif)),
    ]
    fields = [*head(seq, now_ns, digits), *body, (55, SYMBOLS[locate])]
    assert message == twin.join("D", fields, length_digits=4)
    assert foreign(message) == {
        8: "FIX.4.4",
        9: message[12:16].decode(),
        35: "D",
        10: message[-4:-1].decode(),
        **dict(fields),
    }


@settings(max_examples=150, deadline=None)
@given(
    seq=SEQS,
    qty=QTYS,
    now_ns=TIMES,
    cl=IDS,
    orig=IDS,
    locate=LOCATES,
    digits=DIGITS,
    side=st.sampled_from([BUY, SELL]),
)
def test_a_cancel_request_is_the_join_of_its_fields(seq, qty, now_ns, cl, orig, locate, digits, side):
    order = an_order(
        qty=qty, cl_ord_id=list(orig.encode()), cancel_id=list(cl.encode()), locate=locate, side=side
    )
    message = written(encode_cancel(ORDER_CODECS[digits].addr, TARGET_AT, order, seq, now_ns))
    body = [
        (11, cl),
        (41, orig),
        (54, "1" if side == BUY else "2"),
        (60, twin.stamp(now_ns, digits)),
        (38, f"{qty:07d}"),
    ]
    assert message == twin.join(
        "F", [*head(seq, now_ns, digits), *body, (55, SYMBOLS[locate])], length_digits=4
    )


@settings(max_examples=200, deadline=None)
@given(
    seq=SEQS, now_ns=TIMES, digits=DIGITS, exec_type=st.sampled_from("0AF48C6"),
    status=st.sampled_from("0126A48C"),
    cl=IDS, orig=st.one_of(st.none(), IDS), locate=LOCATES, side=st.sampled_from([BUY, SELL]),
    reason=st.integers(0, 99),
    numbers=st.tuples(QTYS, QTYS, QTYS, QTYS), prices=st.tuples(PXS, PXS, PXS),
    ids=st.tuples(*[st.integers(1, 2**60 - 1)] * 2),
)  # fmt: skip
def test_an_execution_report_is_the_join_of_its_fields(
    seq, now_ns, digits, exec_type, status, cl, orig, locate, side, reason, numbers, prices, ids
):
    (qty, last_qty, leaves, cum), (px, last_px, average) = numbers, prices
    set_row(
        REPORT_ROW, order_id=ids[0], exec_id=ids[1], px=px, qty=qty, last_px=last_px, last_qty=last_qty,
        leaves_qty=leaves,
        cum_qty=cum, cost=cum * average, locate=locate, side=side, exec_type=ord(exec_type),
        ord_status=ord(status),
        reason=reason, cl_ord_id=list(cl.encode()), orig_cl_ord_id=list((orig or "\0" * 16).encode()),
    )  # fmt: skip
    message = written(encode_report(VENUE_CODECS[digits].addr, TARGET_AT, REPORT_AT, seq, now_ns))
    more = []
    if exec_type == "F":
        more = [(32, f"{last_qty:07d}"), (31, twin.px(last_px))]
    elif exec_type == "8":
        more = [(103, f"{reason:02d}")]
    elif orig:
        more = [(41, orig)]
    stamp = twin.stamp(now_ns, digits)
    fields = [
        *head(seq, now_ns, digits, "VENUE", "CONTRAFUSION"), (37, twin.identifier(7, ids[0])), (11, cl),
        *more,
        (17, twin.identifier(7, ids[1])), (150, exec_type), (39, status), (54, "1" if side == BUY else "2"),
        (38, f"{qty:07d}"), (44, twin.px(px)), (151, f"{leaves:07d}"), (14, f"{cum:07d}"),
        (6, twin.px(average if cum else 0)), (60, stamp), (55, SYMBOLS[locate]),
    ]  # fmt: skip
    assert message == twin.join("8", fields, length_digits=4)
    assert foreign(message)[17] == twin.identifier(7, ids[1])


@settings(max_examples=100, deadline=None)
@given(
    seq=SEQS,
    now_ns=TIMES,
    digits=DIGITS,
    status=st.sampled_from("0128"),
    cl=IDS,
    orig=IDS,
    reason=st.integers(0, 99),
    order_id=st.integers(0, 3),
)
def test_a_cancel_reject_is_the_join_of_its_fields(seq, now_ns, digits, status, cl, orig, reason, order_id):
    set_row(
        REPORT_ROW,
        order_id=order_id,
        ord_status=ord(status),
        reason=reason,
        cl_ord_id=list(cl.encode()),
        orig_cl_ord_id=list(orig.encode()),
    )
    message = written(encode_cancel_reject(VENUE_CODECS[digits].addr, TARGET_AT, REPORT_AT, seq, now_ns))
    fields = [
        *head(seq, now_ns, digits, "VENUE", "CONTRAFUSION"),
        (37, twin.identifier(7, order_id) if order_id else "NONE"),
        (11, cl), (41, orig), (39, status), (434, "1"), (102, f"{reason:02d}"),
        (60, twin.stamp(now_ns, digits)),
    ]  # fmt: skip
    assert message == twin.join("9", fields, length_digits=4)


@pytest.mark.parametrize(
    ("values", "seq", "status"),
    [
        ({"qty": QTY_MAX + 1}, 1, DOES_NOT_FIT),
        ({"qty": -1}, 1, DOES_NOT_FIT),
        ({"px": PX_MAX + 1}, 1, DOES_NOT_FIT),
        ({"px": -1}, 1, DOES_NOT_FIT),
        ({}, MSG_SEQ_NUM_MAX + 1, DOES_NOT_FIT),
        ({}, 0, DOES_NOT_FIT),
        ({"side": 0}, 1, BAD_FORM),
        ({"tif": 1}, 1, BAD_FORM),
        ({"locate": 0}, 1, BAD_FORM),
        ({"locate": SYMBOLS_MAX}, 1, NO_SYMBOL),
        ({"locate": SYMBOLS_MAX - 1}, 1, NO_SYMBOL),
    ],
)
def test_a_value_that_does_not_fit_is_refused_never_cut(values, seq, status):
    assert encode_new_order(ORDER_CODECS[3].addr, TARGET_AT, an_order(**values), seq, NOW) == status


def test_the_largest_values_fit():
    assert (
        encode_new_order(
            ORDER_CODECS[9].addr, TARGET_AT, an_order(qty=QTY_MAX, px=PX_MAX), MSG_SEQ_NUM_MAX, 2**63 - 1
        )
        > 0
    )
    assert encode_new_order(ORDER_CODECS[9].addr, TARGET_AT, an_order(), 1, -1) == DOES_NOT_FIT


@pytest.mark.parametrize(
    "values",
    [
        {"qty": QTY_MAX + 1},
        {"last_qty": -1},
        {"last_px": PX_MAX + 1},
        {"cum_qty": QTY_MAX + 1},
        {"leaves_qty": -1},
        {"reason": 100},
    ],
)
def test_a_report_that_does_not_fit_is_refused(values):
    set_row(
        REPORT_ROW, **({"locate": 1, "side": BUY, "exec_type": ord("F"), "ord_status": ord("1")} | values)
    )
    assert encode_report(VENUE_CODECS[3].addr, TARGET_AT, REPORT_AT, 1, NOW) == DOES_NOT_FIT


def test_a_template_follows_the_directory_when_a_locate_gets_another_symbol():
    SYMBOL_WORDS[9] = int.from_bytes(b"OLD     ", "little")
    first = written(encode_new_order(ORDER_CODECS[3].addr, TARGET_AT, an_order(locate=9), 1, NOW))
    SYMBOL_WORDS[9] = int.from_bytes(b"NEWER   ", "little")
    second = written(encode_new_order(ORDER_CODECS[3].addr, TARGET_AT, an_order(locate=9), 2, NOW))
    assert (foreign(first)[55], foreign(second)[55]) == ("OLD", "NEWER")
    SYMBOL_WORDS[9] = int.from_bytes(b"A\x01B     ", "little")
    assert encode_new_order(ORDER_CODECS[3].addr, TARGET_AT, an_order(locate=9), 3, NOW) == NO_SYMBOL
    SYMBOL_WORDS[9] = 0


def test_a_time_that_jumps_back_or_over_midnight_is_rendered_anew():
    for now_ns in (
        NOW,
        NOW + 86_400 * 10**9,
        NOW - 1,
        NOW + 10**9,
        951_868_799_999_999_999,
        951_868_800_000_000_000,
        0,
    ):
        message = written(encode_new_order(ORDER_CODECS[9].addr, TARGET_AT, an_order(), 1, now_ns))
        assert foreign(message)[52] == foreign(message)[60] == twin.stamp(now_ns, 9)


def test_comp_ids_that_outgrow_the_slot_are_refused():
    with pytest.raises(ValueError, match="CompIDs"):
        Codec.for_venue(
            Segment.anonymous(1 << 20), "x", comp_ids=("V" * 100, "C" * 100), symbols=0, symbols_max=2
        )


def test_a_symbol_that_cannot_be_rendered_leaves_no_half_of_itself_in_the_next_message():
    order, digits = an_order(locate=6), 3
    good = int.from_bytes(b"XYZW    ", "little")
    try:
        SYMBOL_WORDS[6] = good
        before = written(encode_new_order(ORDER_CODECS[digits].addr, TARGET_AT, order, 1, NOW))
        SYMBOL_WORDS[6] = int.from_bytes(b"AB\x80     ", "little")
        assert encode_new_order(ORDER_CODECS[digits].addr, TARGET_AT, order, 1, NOW) == NO_SYMBOL
        SYMBOL_WORDS[6] = good
        assert written(encode_new_order(ORDER_CODECS[digits].addr, TARGET_AT, order, 1, NOW)) == before
    finally:
        SYMBOL_WORDS[6] = 0
