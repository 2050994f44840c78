"""Nasdaq TotalView-ITCH 5.0: the one place where message layouts are written down.

Source: NQTVITCHSpecification.pdf, section 1.  Integers are big-endian and unsigned; prices (p4) are in
1/10,000 dollars; times (u6) are nanoseconds since midnight.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, Final, NamedTuple

import numpy as np

WIRE: Final = {
    "u1": (1, "u1"), "u2": (2, ">u2"), "u4": (4, ">u4"), "u6": (6, "V6"), "u8": (8, ">u8"), "p4": (4, ">u4"),
    "p8": (8, ">u8"), "a1": (1, "S1"), "a2": (2, "S2"), "a4": (4, "S4"), "a8": (8, "S8"), "a20": (20, "S20"),
}  # fmt: skip


class Message(NamedTuple):
    """One message type: code byte, name, length, field offsets (frozen into kernels), big-endian dtype."""

    code: int
    name: str
    size: int
    at: Any
    dtype: np.dtype[Any]


def message(code: str, name: str, size: int, fields: str) -> Message:
    """Build a Message from "field:wire ..." text copied from the spec; `size` is the spec's length."""
    pairs = [f.split(":") for f in ("code:a1 locate:u2 tracking:u2 ts_ns:u6 " + fields).split()]
    offsets, total = {}, 0
    for field, wire in pairs:
        offsets[field] = total
        total += WIRE[wire][0]
    if total != size:
        text = f"{name}: fields add up to {total} bytes, the spec says {size}"
        raise ValueError(text)
    at = namedtuple(name, list(offsets))(**offsets)
    return Message(ord(code), name, size, at, np.dtype([(f, WIRE[w][1]) for f, w in pairs]))


SYSTEM_EVENT = message("S", "SystemEvent", 12, "event:a1")
DIRECTORY = message(
    "R", "Directory", 39,
    "symbol:a8 category:a1 status:a1 lot:u4 lots_only:a1 classification:a1 subtype:a2 authenticity:a1 "
    "short_sale:a1 ipo:a1 luld_tier:a1 etp:a1 etp_leverage:u4 inverse:a1",
)  # fmt: skip
TRADING_ACTION = message("H", "TradingAction", 25, "symbol:a8 state:a1 reserved:a1 reason:a4")
REG_SHO = message("Y", "RegSho", 20, "symbol:a8 action:a1")
MARKET_PARTICIPANT = message(
    "L", "MarketParticipant", 26, "mpid:a4 symbol:a8 primary:a1 mode:a1 state:a1"
)
MWCB_LEVEL = message("V", "MwcbLevel", 35, "level1:p8 level2:p8 level3:p8")
MWCB_STATUS = message("W", "MwcbStatus", 12, "level:a1")
IPO_QUOTING = message("K", "IpoQuoting", 28, "symbol:a8 release_s:u4 qualifier:a1 px:p4")
LULD_COLLAR = message("J", "LuldCollar", 35, "symbol:a8 reference_px:p4 upper_px:p4 lower_px:p4 extension:u4")
OPERATIONAL_HALT = message("h", "OperationalHalt", 21, "symbol:a8 market:a1 action:a1")
ADD = message("A", "Add", 36, "order_ref:u8 side:a1 qty:u4 symbol:a8 px:p4")
ADD_MPID = message("F", "AddMpid", 40, "order_ref:u8 side:a1 qty:u4 symbol:a8 px:p4 mpid:a4")
EXECUTED = message("E", "Executed", 31, "order_ref:u8 qty:u4 match:u8")
EXECUTED_PX = message("C", "ExecutedPx", 36, "order_ref:u8 qty:u4 match:u8 printable:a1 px:p4")
CANCEL = message("X", "Cancel", 23, "order_ref:u8 qty:u4")
DELETE = message("D", "Delete", 19, "order_ref:u8")
REPLACE = message("U", "Replace", 35, "order_ref:u8 new_ref:u8 qty:u4 px:p4")
TRADE = message("P", "Trade", 44, "order_ref:u8 side:a1 qty:u4 symbol:a8 px:p4 match:u8")
CROSS_TRADE = message("Q", "CrossTrade", 40, "qty:u8 symbol:a8 px:p4 match:u8 kind:a1")
BROKEN_TRADE = message("B", "BrokenTrade", 19, "match:u8")
NOII = message(
    "I", "Noii", 50,
    "paired_qty:u8 imbalance_qty:u8 direction:a1 symbol:a8 far_px:p4 near_px:p4 reference_px:p4 kind:a1 "
    "variation:a1",
)  # fmt: skip
RETAIL_INTEREST = message("N", "RetailInterest", 20, "symbol:a8 interest:a1")
DIRECT_LISTING = message(
    "O", "DirectListing", 48,
    "symbol:a8 eligible:a1 min_px:p4 max_px:p4 near_px:p4 near_ns:u8 lower_px:p4 upper_px:p4",
)  # fmt: skip

MESSAGES: Final = (
    SYSTEM_EVENT, DIRECTORY, TRADING_ACTION, REG_SHO, MARKET_PARTICIPANT, MWCB_LEVEL, MWCB_STATUS, IPO_QUOTING,
    LULD_COLLAR, OPERATIONAL_HALT, ADD, ADD_MPID, EXECUTED, EXECUTED_PX, CANCEL, DELETE, REPLACE, TRADE,
    CROSS_TRADE, BROKEN_TRADE, NOII, RETAIL_INTEREST, DIRECT_LISTING,
)  # fmt: skip
