"""Memory for the FIX tests: codecs of both sides, an order, a report, a tag table, and a guard page."""

from __future__ import annotations

import ctypes
import mmap

from nimbus.fix.codec import REPORT, Codec
from nimbus.fix.parse import FIELDS, create_fields, parse
from nimbus.messages import BUY, ORDER
from ringbuf.segment import Segment

SYMBOLS = {1: "AAPL", 2: "A", 3: "BRK.A", 4: "ABCDEFGH", 5: "=*^~"}
SYMBOLS_MAX = 16
NOW = 1_764_111_111_123_456_789  # 2025-11-25 22:51:51 UTC

SEGMENT = Segment.anonymous(1 << 24)
_SYMBOLS = SEGMENT.allocate("symbols", 8 * SYMBOLS_MAX)
SYMBOL_WORDS = SEGMENT.words(_SYMBOLS, SYMBOLS_MAX)
for _locate, _text in SYMBOLS.items():
    SYMBOL_WORDS[_locate] = int.from_bytes(_text.ljust(8).encode(), "little")


def _codec(build, name, sender, target, digits):
    return build(
        SEGMENT, name, comp_ids=(sender, target), symbols=_SYMBOLS, symbols_max=SYMBOLS_MAX, epoch=7,
        timestamp_digits=digits,
    )  # fmt: skip


ORDER_CODECS = {d: _codec(Codec.for_orders, f"o{d}", "CONTRAFUSION", "VENUE", d) for d in (0, 3, 6, 9)}
VENUE_CODECS = {d: _codec(Codec.for_venue, f"v{d}", "VENUE", "CONTRAFUSION", d) for d in (0, 3, 6, 9)}
ORDER_AT = SEGMENT.allocate("order", ORDER.size)
ORDER_ROW = SEGMENT.array("order", ORDER)[0:1]
REPORT_AT = SEGMENT.allocate("report", REPORT.size)
REPORT_ROW = SEGMENT.array("report", REPORT)[0:1]
FIELDS_AT = create_fields(SEGMENT, "fields")
FIELDS_ROW = SEGMENT.array("fields", FIELDS)
TARGET = ctypes.create_string_buffer(480)
TARGET_AT = ctypes.addressof(TARGET)

PAGE = mmap.PAGESIZE
_GUARDED = mmap.mmap(-1, 3 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_GUARDED_AT = ctypes.addressof(ctypes.c_char.from_buffer(_GUARDED))
_LIBC = ctypes.CDLL(None, use_errno=True)
assert _LIBC.mprotect(ctypes.c_void_p(_GUARDED_AT + 2 * PAGE), ctypes.c_size_t(PAGE), 0) == 0


def guarded(message: bytes) -> int:
    """Copy a message so that its last byte is the last before an unmapped page; return its address."""
    at = _GUARDED_AT + 2 * PAGE - len(message)
    ctypes.memmove(at, message, len(message))
    return at


def parsed(message: bytes) -> int:
    """Parse a message that ends at the guard page; return the status."""
    return parse(guarded(message), len(message), FIELDS_AT)


def set_row(row, **values):
    row.view("u1")[:] = 0
    for field, value in values.items():
        row[field] = value


def an_order(**values):
    base = {
        "px": 1_015_025, "qty": 250, "locate": 1, "side": BUY, "tif": 0,
        "cl_ord_id": list(b"0007000010000ABC"),
        "cancel_id": list(b"000700002000CCCC"),
    }  # fmt: skip
    set_row(ORDER_ROW, **(base | values))
    return ORDER_AT
