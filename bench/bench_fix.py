"""FIX encode and parse against simplefix, in the same run, with the answers checked.

Bars: encode >= 130x, parse >= 250x simplefix; aim about 130 and 250 ns.
Run: python -m pytest bench/bench_fix.py -s
"""

from __future__ import annotations

import time

import simplefix
from fix_rig import (
    FIELDS_AT,
    NOW,
    ORDER_CODECS,
    REPORT_AT,
    REPORT_ROW,
    TARGET,
    TARGET_AT,
    VENUE_CODECS,
    an_order,
    set_row,
)

from bench.results import append_row
from nimbus.fix.parse import parse
from nimbus.fix.probe import encode_many, parse_many
from nimbus.fix.template import encode_report
from nimbus.messages import BUY, WIRE
from ringbuf.segment import Segment

ROUNDS, PLAIN, MANY, DISTINCT = 30, 300, 20_000, 64
ENCODE_BAR, PARSE_BAR = 130, 250


def nanoseconds(call, count):
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / count


def rounds(ours, theirs):
    """Measure both in turn; return p50 and p99 of our rounds, p50 of theirs, and the ratio of the p50s."""
    pairs = [(nanoseconds(ours, MANY), nanoseconds(theirs, PLAIN)) for _ in range(ROUNDS)]
    mine, other = (sorted(column) for column in zip(*pairs, strict=True))
    middle = ROUNDS // 2
    return mine[middle], mine[-1], other[middle], other[middle] / mine[middle]


def plain_order(seq):
    message = simplefix.FixMessage()
    stamp = "20251125-22:51:51.123456"
    for tag, text in (
        (8, "FIX.4.4"), (35, "D"), (34, f"{seq:09d}"), (49, "CONTRAFUSION"), (52, stamp), (56, "VENUE"),
        (11, "0007000010000ABC"), (54, "1"), (60, stamp), (38, f"{100 + seq % 900:07d}"), (40, "2"),
        (44, f"{1_015_000 + seq % 5000:010d}"), (59, "0"), (55, "AAPL"),
    ):  # fmt: skip
        message.append_pair(tag, text)
    return message.encode()


def test_encode_a_new_order_against_simplefix():
    order, codec = an_order(), ORDER_CODECS[6].addr
    assert encode_many(codec, TARGET_AT, order, NOW, 10) > 0
    message = TARGET.raw[: TARGET.raw.index(b"\x0110=") + 8]
    assert parse(TARGET_AT, len(message), FIELDS_AT) == 1
    assert message == simplefix_copy(message)
    p50, p99, other, ratio = rounds(
        lambda: encode_many(codec, TARGET_AT, order, NOW, MANY),
        lambda: [plain_order(n) for n in range(1, PLAIN + 1)],
    )
    print(f"\nFIX encode {len(message)} bytes: {p50:.0f} ns, simplefix {other:.0f} ns, {ratio:.0f}x")
    append_row("fix_encode_ns", MANY * ROUNDS, p50, p99, ratio)
    assert ratio >= ENCODE_BAR


def simplefix_copy(message):
    """Decode a message with simplefix and encode it again."""
    parser = simplefix.FixParser()
    parser.append_buffer(message)
    pairs = parser.get_message().pairs
    again = simplefix.FixMessage()
    for tag, text in pairs:
        if tag not in (b"9", b"10"):
            again.append_pair(tag, text)
    return again.encode().replace(b"\x019=", b"\x019=0", 1)[:-7] + message[-7:]


def reports(segment):
    """Fill DISTINCT WIRE records with trades; return their address, their bytes and what they add up to."""
    at, expected = segment.allocate("wires", DISTINCT * WIRE.size), 0
    rows = segment.array("wires", WIRE)
    for n in range(DISTINCT):
        qty, px = 1 + 37 * n % 900, 1_000_000 + 12_345 * n % 100_000
        set_row(
            REPORT_ROW, order_id=n + 1, exec_id=n + 1, px=px, qty=1000, last_px=px, last_qty=qty,
            cum_qty=qty, cost=qty * px,
            leaves_qty=1000 - qty, locate=1, side=BUY, exec_type=ord("F"), ord_status=ord("1"),
            cl_ord_id=list(b"0007000010000ABC"),
        )  # fmt: skip
        size = encode_report(
            VENUE_CODECS[3].addr, at + n * WIRE.size + WIRE.at.bytes, REPORT_AT, n + 1, NOW + n * 10**9
        )
        rows[n]["size"] = size
        expected += qty + px + ord("1") + ord("0") + 23
    return at, [bytes(row["bytes"][: row["size"]]) for row in rows], expected


def test_parse_an_execution_report_against_simplefix():
    segment = Segment.anonymous(1 << 20)
    at, messages, expected = reports(segment)
    assert parse_many(at, DISTINCT, FIELDS_AT, DISTINCT) == expected
    parser = simplefix.FixParser()

    def plain():
        total = 0
        for n in range(PLAIN):
            parser.append_buffer(messages[n % DISTINCT])
            message = parser.get_message()
            total += int(message.get(32)) + len(message.get(11)) + len(message.get(31)) + ord(message.get(39))
        return total

    p50, p99, other, ratio = rounds(lambda: parse_many(at, DISTINCT, FIELDS_AT, MANY), plain)
    print(f"\nFIX parse {len(messages[0])} bytes: {p50:.0f} ns, simplefix {other:.0f} ns, {ratio:.0f}x")
    append_row("fix_parse_ns", MANY * ROUNDS, p50, p99, ratio)
    assert ratio >= PARSE_BAR
