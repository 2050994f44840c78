"""The scheduled messages of a generated day: everything that is not an order, in order of time.

A day of few messages gives the optional ones (market makers, imbalances, crosses) to its first symbols only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nimbus.feed import itch

SECOND: Final = 1_000_000_000
MESSAGES_NS: Final = (9 * 60 + 29) * 60 * SECOND  # start of messages, exchange time
SYSTEM_NS: Final = MESSAGES_NS + 10 * SECOND
BOOKS_NS: Final = MESSAGES_NS + 12 * SECOND  # the opening books are filled from here ..
BOOKS_END_NS: Final = MESSAGES_NS + 45 * SECOND  # .. to here
OPEN_NS: Final = MESSAGES_NS + 60 * SECOND  # 09:30:00
NOII_SYMBOLS: Final = 64  # symbols that show imbalances before a cross
HALT_S: Final = 30
COLLAR: Final = 0.05

# What the message needs to know when it is written: filled in by day.py from the live symbol row.
PRICE, MATCH, LAST_MATCH = "price", "match", "last_match"


@dataclass(slots=True)
class Scheduled:
    """One scheduled message.

    at_ns: earliest exchange time; symbol: its row, -1 = none; fields: by name of the message table, a
    value of PRICE * (1 + share) is given as (PRICE, share); halt: 1 / 0 sets the symbol's halt, -1 keeps.
    """

    at_ns: int
    message: itch.Message
    symbol: int
    fields: dict[str, Any]
    halt: int = -1


def symbol_text(symbol: int) -> bytes:
    """Return the ticker of a row: Z, a vowel and consonants; eight bytes."""
    consonants, vowels = b"BCDFGHJKLMNPQRSTVWXZ", b"AEIOU"
    third, rest = consonants[symbol % 20], symbol // 20
    fourth, rest = consonants[rest % 20], rest // 20
    vowel, rest = vowels[rest % 5], rest // 5
    letters = bytes([ord("Z"), vowel, third, fourth])
    return (letters + (bytes([consonants[rest - 1]]) if rest else b"")).ljust(8)


def encode(entry: Scheduled, now_ns: int, price: int, matches: tuple[int, int]) -> bytes:
    """Return the bytes of a scheduled message.

    price: the symbol's price in 1/10,000; matches: (a new match number, the last one of the flow).
    """
    row = np.zeros(1, entry.message.dtype)
    for name, value in entry.fields.items():
        if isinstance(value, tuple):
            number = round(price * (1 + value[1]) / 100) * 100
        elif value in {MATCH, LAST_MATCH}:
            number = matches[value == LAST_MATCH]
        elif isinstance(value, str):
            number = value.ljust(row.dtype[name].itemsize)  # alpha fields are padded with spaces
        else:
            number = value
        row[name] = number
    if entry.symbol >= 0 and "symbol" in entry.message.at._fields:
        row["symbol"] = symbol_text(entry.symbol)
    raw = bytearray(row.tobytes())
    raw[0] = entry.message.code
    raw[1:3] = (entry.symbol + 1).to_bytes(2, "big")
    raw[5:11] = now_ns.to_bytes(6, "big")
    return bytes(raw)


def _system(at_ns: int, event: str) -> Scheduled:
    return Scheduled(at_ns, itch.SYSTEM_EVENT, -1, {"event": event})


def _listing(symbol: int) -> list[Scheduled]:
    directory = {
        "category": "Q", "status": "N", "lot": 100, "round_lots_only": "N", "classification": "C",
        "subtype": "Z", "authenticity": "P", "short_sale_threshold": "N", "ipo": "N",
        "luld_tier": "1", "etp": "N", "inverse": "N",
    }  # fmt: skip
    at_ns = MESSAGES_NS + SECOND + symbol * 1_000
    return [
        Scheduled(at_ns, itch.DIRECTORY, symbol, directory),
        Scheduled(at_ns, itch.TRADING_ACTION, symbol, {"state": "T", "reserved": " ", "reason": ""}),
    ]


def _before_open(symbols: int, detailed: int) -> list[Scheduled]:
    levels = {"level1": 930_00000000, "level2": 870_00000000, "level3": 800_00000000}
    day = [Scheduled(MESSAGES_NS + 5 * SECOND, itch.MWCB_LEVEL, -1, levels)]
    first, last = 0, symbols - 1
    for symbol in range(symbols):
        at_ns = MESSAGES_NS + 2 * SECOND + symbol * 1_000
        day.append(Scheduled(at_ns, itch.REG_SHO, symbol, {"action": "0"}))
    maker = {"mpid": "GENR", "primary": "Y", "mode": "N", "state": "A"}
    day += [Scheduled(at_ns + 1_000, itch.MARKET_PARTICIPANT, symbol, maker) for symbol in range(detailed)]
    release = {"release_s": OPEN_NS // SECOND, "qualifier": "A", "px": (PRICE, 0.0)}
    day.append(Scheduled(BOOKS_END_NS, itch.IPO_QUOTING, last, release))
    listing = {
        "open_eligible": "Y", "px_min": (PRICE, -0.2), "px_max": (PRICE, 0.2), "near_px": (PRICE, 0.0),
        "near_ns": BOOKS_END_NS, "lower_px": (PRICE, -0.1), "upper_px": (PRICE, 0.1),
    }  # fmt: skip
    day.append(Scheduled(BOOKS_END_NS + 1, itch.DIRECT_LISTING, last, listing))
    day.append(Scheduled(BOOKS_END_NS + 2, itch.RETAIL_INTEREST, first, {"interest": "B"}))
    return day


def _imbalance(at_ns: int, symbol: int, kind: str) -> Scheduled:
    fields = {
        "paired_qty": 2_000 + 100 * (symbol % 7), "imbalance_qty": 300 + 100 * (symbol % 5),
        "direction": "BS"[symbol & 1], "far_px": (PRICE, 0.0), "near_px": (PRICE, 0.0),
        "reference_px": (PRICE, 0.0), "kind": kind, "variation": "L",
    }  # fmt: skip
    return Scheduled(at_ns, itch.NOII, symbol, fields)


def _cross(at_ns: int, symbol: int, kind: str) -> Scheduled:
    fields = {"qty": 2_000 + 100 * (symbol % 7), "px": (PRICE, 0.0), "match": MATCH, "kind": kind}
    return Scheduled(at_ns, itch.CROSS_TRADE, symbol, fields)


def _halt(at_ns: int, symbol: int) -> list[Scheduled]:
    """Return a pause, its auction collar and imbalance, the quotation period, the cross, the resumption."""
    action, resume_ns = itch.TRADING_ACTION, at_ns + HALT_S * SECOND
    collar = {"reference_px": (PRICE, 0.0), "upper_px": (PRICE, COLLAR), "lower_px": (PRICE, -COLLAR)}
    return [
        Scheduled(at_ns, action, symbol, {"state": "P", "reserved": " ", "reason": "LUDP"}, 1),
        Scheduled(at_ns + SECOND, itch.LULD_COLLAR, symbol, collar | {"extension": 0}),
        Scheduled(resume_ns - 10 * SECOND, action, symbol, {"state": "Q", "reserved": " ", "reason": "R4"}),
        _imbalance(resume_ns - 5 * SECOND, symbol, "H"),
        _cross(resume_ns, symbol, "H"),
        Scheduled(resume_ns + 1, action, symbol, {"state": "T", "reserved": " ", "reason": ""}, 0),
    ]


def _session(symbols: int, end_ns: int) -> list[Scheduled]:
    first, last, span_ns = 0, symbols - 1, end_ns - OPEN_NS
    halted = min(2, symbols - 1)
    return [
        *_halt(OPEN_NS + span_ns * 45 // 100, halted),
        Scheduled(OPEN_NS + span_ns * 30 // 100, itch.REG_SHO, last, {"action": "1"}),
        Scheduled(OPEN_NS + span_ns * 60 // 100, itch.BROKEN_TRADE, first, {"match": LAST_MATCH}),
        Scheduled(OPEN_NS + span_ns * 70 // 100, itch.RETAIL_INTEREST, first, {"interest": "N"}),
        Scheduled(OPEN_NS + span_ns * 75 // 100, itch.OPERATIONAL_HALT, last, {"market": "B", "action": "H"}),
        Scheduled(OPEN_NS + span_ns * 80 // 100, itch.OPERATIONAL_HALT, last, {"market": "B", "action": "T"}),
    ]


def write_script(symbols: int, detailed: int, end_ns: int) -> list[Scheduled]:
    """Return the scheduled messages of a day whose flow ends at end_ns, by time.

    detailed: how many symbols, from the first, have the optional messages.
    The market closes when the flow ends: a generated day is a short one.  The breaker message (W) comes
    after the close, so that its level 1 halts nothing, and the operational halt (h) is of another
    market of the group (BX).
    """
    day = [_system(MESSAGES_NS, "O"), _system(SYSTEM_NS, "S"), _system(OPEN_NS, "Q")]
    day += _before_open(symbols, detailed)
    day += _session(symbols, end_ns)
    close_ns = end_ns + SECOND
    for symbol in range(symbols):
        day += _listing(symbol)
    for symbol in range(detailed):
        day.append(_cross(OPEN_NS + 1_000 + symbol * 1_000, symbol, "O"))
        day.append(_cross(close_ns + 1_000 + symbol * 1_000, symbol, "C"))
        if symbol < NOII_SYMBOLS:
            day.append(_imbalance(OPEN_NS - 10 * SECOND + symbol * 1_000, symbol, "O"))
            day.append(_imbalance(end_ns - 5 * SECOND + symbol * 1_000, symbol, "C"))
    day.append(_system(close_ns, "M"))
    day.append(Scheduled(close_ns + SECOND, itch.MWCB_STATUS, -1, {"breached": "1"}))
    day += [_system(close_ns + 2 * SECOND, "E"), _system(close_ns + 3 * SECOND, "C")]
    day.sort(key=lambda entry: entry.at_ns)
    return day
