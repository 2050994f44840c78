"""The ITCH 5.0 table against the lengths and offsets of the specification."""

from __future__ import annotations

import numpy as np
import pytest
from reference.feed import SIZES

from nimbus.feed import itch
from nimbus.feed.wire import layout


def test_every_message_of_the_specification_is_in_the_table_with_its_length() -> None:
    assert {m.letter: m.size for m in itch.MESSAGES} == SIZES
    assert all(m.dtype.itemsize == m.size for m in itch.MESSAGES)


def test_every_byte_has_a_size_or_none() -> None:
    assert [itch.size_of(code) for code in range(256)] == [SIZES.get(chr(code), 0) for code in range(256)]


def test_every_message_begins_with_the_common_header() -> None:
    for m in itch.MESSAGES:
        assert (m.at.code, m.at.locate, m.at.tracking, m.at.ts_ns) == (0, 1, 3, 5), m.name


OFFSETS = """
ADD order_ref 11, ADD side 19, ADD qty 20, ADD symbol 24, ADD px 32, ADD_MPID mpid 36, EXECUTED qty 19,
EXECUTED match 23, EXECUTED_PX printable 31, EXECUTED_PX px 32, CANCEL qty 19, DELETE order_ref 11,
REPLACE new_ref 19, REPLACE qty 27, REPLACE px 31, TRADE order_ref 11, TRADE px 32, TRADE match 36,
CROSS_TRADE qty 11, CROSS_TRADE symbol 19, CROSS_TRADE px 27, CROSS_TRADE kind 39, BROKEN_TRADE match 11,
SYSTEM_EVENT event 11, DIRECTORY category 19, DIRECTORY status 20, DIRECTORY lot 21, DIRECTORY inverse 38,
TRADING_ACTION state 19, TRADING_ACTION reason 21, REG_SHO action 19, MARKET_PARTICIPANT symbol 15,
MWCB_LEVEL level3 27, MWCB_STATUS breached 11, IPO_QUOTING px 24, LULD_COLLAR extension 31,
OPERATIONAL_HALT action 20, NOII far_px 36, NOII variation 49, RETAIL_INTEREST interest 19,
DIRECT_LISTING near_ns 32, DIRECT_LISTING upper_px 44
"""  # as printed in the specification's tables


@pytest.mark.parametrize("row", [row.strip() for row in OFFSETS.replace("\n", " ").split(",")])
def test_a_field_stands_where_the_specification_puts_it(row: str) -> None:
    name, field, at = row.split()
    assert getattr(getattr(itch, name).at, field) == int(at)


def test_fields_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 36 bytes, the specification says 35"):
        itch.message("A", "Add", 35, "order_ref:u8 side:a1 qty:u4 symbol:a8 px:p4")
    with pytest.raises(KeyError):
        layout("Odd", 3, "field:u3")


def test_the_size_table_cannot_be_written() -> None:
    assert itch.SIZE.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        itch.SIZE[0] = 1
