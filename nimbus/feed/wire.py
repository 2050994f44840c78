"""Wire layouts as text: big-endian fields in order, checked against the length their specification gives."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, Final, NamedTuple

import numpy as np

# wire code -> (width in bytes, numpy type used by tests, tools and encoders)
WIRE: Final = {
    "u1": (1, "u1"),
    "u2": (2, ">u2"),
    "u4": (4, ">u4"),
    "u6": (6, "V6"),
    "u8": (8, ">u8"),
    "p4": (4, ">u4"),  # price in 1/10,000
    "p8": (8, ">u8"),  # level of the market-wide breakers in 1e-8
    "a1": (1, "S1"),
    "a2": (2, "S2"),
    "a4": (4, "S4"),
    "a8": (8, "S8"),
    "a10": (10, "S10"),
    "a16": (16, "S16"),
}


class Layout(NamedTuple):
    """A wire layout: size in bytes, at: a namedtuple field -> offset, dtype: the same for numpy."""

    size: int
    at: Any
    dtype: np.dtype[Any]


def layout(name: str, size: int, fields: str) -> Layout:
    """Build a Layout from "field:wire ..." text; raises ValueError unless the widths add up to `size`."""
    pairs = [text.split(":") for text in fields.split()]
    offsets: dict[str, int] = {}
    total = 0
    for field, wire in pairs:
        offsets[field] = total
        total += WIRE[wire][0]
    if total != size:
        msg = f"{name}: fields add up to {total} bytes, the specification says {size}"
        raise ValueError(msg)
    at = namedtuple(name, list(offsets))(**offsets)
    return Layout(size, at, np.dtype([(field, WIRE[wire][1]) for field, wire in pairs]))
