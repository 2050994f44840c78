"""The tap: pairs by the cause in the ClOrdID, each order once, what has no partner counted."""

from __future__ import annotations

import struct

from daemon.wire.tap import Tap

MARKET, ORDERS = 26_477, 26_481


def frame(protocol: int, target: int, payload: bytes, *, options: int = 0) -> bytes:
    """Build an Ethernet frame; options: words of IPv4 options, and the same again of TCP options."""
    if protocol == 17:
        inner = struct.pack(">HHHH", 1, target, 8 + len(payload), 0) + payload
    else:
        inner = struct.pack(">HHIIBBHHH", 1, target, 0, 0, (5 + options) << 4, 24, 0, 0, 0)
        inner += bytes(4 * options) + payload
    size = 20 + 4 * options + len(inner)
    header = struct.pack(">BBHHHBBH4s4s", 0x45 + options, 0, size, 0, 0, 64, protocol, 0, bytes(4), bytes(4))
    return bytes(12) + b"\x08\x00" + header + bytes(4 * options) + inner + bytes(max(0, 46 - size))


def market(first: int, count: int) -> bytes:
    return frame(17, MARKET, b"SESSION001" + struct.pack(">QH", first, count) + bytes(4))


def order(cause: int, *, number: int = 1, kind: bytes = b"D", options: int = 3) -> bytes:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
    text = "".join(digits[(cause >> 5 * (6 - i)) & 31] for i in range(7))
    message = b"8=FIX.4.4\x019=1\x0135=" + kind + b"\x0111=" + f"0001{number:05d}{text}".encode() + b"\x01"
    return frame(6, ORDERS, message, options=options)


def test_an_order_is_paired_with_the_packet_of_its_cause() -> None:
    tap = Tap(MARKET, ORDERS)
    tap.take(market(1_000, 3), 10_000)
    tap.take(market(1_003, 1), 20_000)
    tap.take(order(1_002), 17_500)
    tap.take(order(1_003, number=2, options=0), 26_000)
    assert tap.ticks_ns == [7_500, 6_000]
    assert (tap.packets, tap.orders, tap.unmatched) == (2, 2, 0)


def test_the_first_line_to_bring_a_message_counts() -> None:
    tap = Tap(MARKET, ORDERS)
    tap.take(market(5, 1), 100)
    tap.take(market(5, 1), 900)
    tap.take(order(5), 1_100)
    assert tap.ticks_ns == [1_000]


def test_what_has_no_partner_or_comes_twice_is_counted() -> None:
    tap = Tap(MARKET, ORDERS)
    tap.take(market(1, 1), 100)
    tap.take(order(77), 200)
    tap.take(order(1, number=2), 300)
    tap.take(order(1, number=2), 400)  # the segment was sent again
    assert (tap.orders, tap.unmatched, tap.repeats, tap.ticks_ns) == (2, 1, 1, [200])


def test_other_traffic_is_passed_over() -> None:
    tap = Tap(MARKET, ORDERS)
    tap.take(market(1, 0xFFFF), 100)  # end of session
    tap.take(order(1, kind=b"F"), 200)
    tap.take(frame(17, 53, b"x" * 40), 300)
    tap.take(b"\x00" * 13, 400)
    for size in range(80):
        tap.take(order(1)[:size], 500)
        tap.take(market(1, 1)[:size], 500) if size < 42 else None
    assert (tap.orders, tap.packets) == (0, 0)


def test_two_orders_of_one_segment_are_both_seen() -> None:
    tap = Tap(MARKET, ORDERS)
    tap.take(market(9, 1), 0)
    first, second = order(9, number=1, options=0), order(9, number=2, options=0)
    tap.take(frame(6, ORDERS, first[54:] + second[54:]), 5)
    assert tap.ticks_ns == [5, 5]
