"""Nasdaq TotalView-ITCH 5.0: the one place where message layouts are written down.

Source: NQTVITCHSpecification.pdf, sections 1.1 to 1.9.  All integers are big-endian and unsigned; prices
(p4) are 1/10,000 dollars, the breaker levels of V (p8) 1e-8; timestamps (u6) are nanoseconds since
midnight of the exchange's day.  The size written at each message is the specification's; that the fields
add up to it is checked when this module is imported.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from nimbus.feed.wire import layout
from ringbuf.jit import inlined

HEADER: Final = "code:a1 locate:u2 tracking:u2 ts_ns:u6 "
HEADER_SIZE: Final = 11


class Message(NamedTuple):
    """One message type: its letter, code byte and name, byte length, field offsets, big-endian dtype."""

    letter: str
    code: int
    name: str
    size: int
    at: Any
    dtype: np.dtype[Any]


def message(letter: str, name: str, size: int, fields: str) -> Message:
    """Build a Message: the common header and `fields` must add up to the specification's `size`."""
    made = layout(name, size, HEADER + fields)
    return Message(letter, ord(letter), name, size, made.at, made.dtype)


SYSTEM_EVENT = message("S", "SystemEvent", 12, "event:a1")
DIRECTORY = message(
    "R", "Directory", 39,
    "symbol:a8 category:a1 status:a1 lot:u4 round_lots_only:a1 classification:a1 subtype:a2 authenticity:a1"
    " short_sale_threshold:a1 ipo:a1 luld_tier:a1 etp:a1 etp_leverage:u4 inverse:a1",
)  # fmt: skip
TRADING_ACTION = message("H", "TradingAction", 25, "symbol:a8 state:a1 reserved:a1 reason:a4")
REG_SHO = message("Y", "RegSho", 20, "symbol:a8 action:a1")
MARKET_PARTICIPANT = message("L", "MarketParticipant", 26, "mpid:a4 symbol:a8 primary:a1 mode:a1 state:a1")
MWCB_LEVEL = message("V", "MwcbLevel", 35, "level1:p8 level2:p8 level3:p8")
MWCB_STATUS = message("W", "MwcbStatus", 12, "breached:a1")
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
    "paired_qty:u8 imbalance_qty:u8 direction:a1 symbol:a8 far_px:p4 near_px:p4 reference_px:p4 kind:a1"
    " variation:a1",
)  # fmt: skip
RETAIL_INTEREST = message("N", "RetailInterest", 20, "symbol:a8 interest:a1")
DIRECT_LISTING = message(
    "O", "DirectListing", 48,
    "symbol:a8 open_eligible:a1 px_min:p4 px_max:p4 near_px:p4 near_ns:u8 lower_px:p4 upper_px:p4",
)  # fmt: skip

MESSAGES: Final = (
    SYSTEM_EVENT, DIRECTORY, TRADING_ACTION, REG_SHO, MARKET_PARTICIPANT, MWCB_LEVEL, MWCB_STATUS,
    IPO_QUOTING, LULD_COLLAR, OPERATIONAL_HALT, ADD, ADD_MPID, EXECUTED, EXECUTED_PX, CANCEL, DELETE,
    REPLACE, TRADE, CROSS_TRADE, BROKEN_TRADE, NOII, RETAIL_INTEREST, DIRECT_LISTING,
)  # fmt: skip
SIZE_MAX: Final = max(m.size for m in MESSAGES)

SIZE: Final = np.zeros(256, np.int64)  # code byte -> exact length; 0 = unknown
for _message in MESSAGES:
    if SIZE[_message.code]:
        _twice = f"type {_message.letter!r} is declared twice"
        raise ValueError(_twice)
    SIZE[_message.code] = _message.size
SIZE.setflags(write=False)


@inlined
def size_of(code: int) -> int:
    """Return the exact length of messages whose first byte is code (0..255); 0 = unknown type."""
    return SIZE[code & 255]  # type: ignore[no-any-return]
