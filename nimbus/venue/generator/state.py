"""Layouts of the generated day, and its random draws.

Draws use integers and tables rounded to integers, and floats see + - * / and square root only, so that
a seed gives the same bytes on every machine.
"""

from __future__ import annotations

import math
import statistics
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ringbuf.jit import inlined
from ringbuf.memory import load_f64, load_i64, store_i64
from ringbuf.records import record

TICK_PX: Final = 100  # one cent
ORDERS_MAX: Final = 192  # live orders of one symbol
CODES: Final = 128

# Flow messages that are drawn by share; F is part of the adds.  Order = index into the shares.
ADDS, DELETES, REPLACES, EXECUTES, EXECUTES_PX, CANCELS, TRADES = 0, 1, 2, 3, 4, 5, 6
SHARES_PER_MILLE: Final = (430, 410, 70, 60, 5, 15, 10)
MPID_SHARE_PER_MILLE: Final = 70  # of the adds: 3 % of all messages

# Written by the kernels of flow.py and wire.py; day.py writes it between two calls of them.
DAY = record(
    "DAY",
    f"""
    i8  random         state of the generator of draws, never 0
    i8  now_ns         exchange time of the last message, since midnight
    i8  next_ns        exchange time of the next event
    i8  end_ns         when the flow should have used its budget
    i8  budget         flow messages of the whole day
    i8  flow_messages  flow messages written so far
    i8  messages       messages written so far
    i8  gaps           long gaps between events so far
    i8  last_ref       last order reference given
    i8  last_match     last match number given
    i8  symbols        address of the SYMBOL rows
    i8  symbol_count   rows
    i8  shares         address of the cumulative symbol shares, 2^32 = 1
    i8  depth_target   orders a symbol should have
    i8  steps          address of the STEP rows
    i8  step_count     rows
    i8  step           next row
    i8  exponentials   address of the quantiles of the exponential distribution, 1024 = 1
    i8  normals        address of the quantiles of the normal distribution, float64
    i8  burst_left     events left of the burst
    i8  burst_symbol   its symbol
    i8  hot_symbol     symbol with the latest price-moving news
    i8  hot_until_ns   until when it draws a quarter of the events
    i8  out            address of the output buffer
    i8  out_end        first address behind it
    i8  out_at         end of the finished packets
    i8  packet_size    bytes of MoldUDP64 in the open packet, 0 = none is open
    i8  packet_count   messages in it
    i8  packet_first_ns  exchange time of its first message
    i8  packet_last_ns  exchange time of its last message
    i8  packets        packets written so far
    i8  seq            sequence number of the next message
    i8  stamp_ns       time stamp of the last packet, Unix UTC
    i8  midnight_ns    Unix time of the exchange's midnight
    i8  template       address of the 62 header bytes of each frame
    5i8 pad            zero
    {len(SHARES_PER_MILLE)}i8 drawn  flow messages by kind (ADDS ..)
    i8  pad2           zero
    {CODES}i8 by_code  messages by ITCH type
    """,
)

SYMBOL = record(
    "SYMBOL",
    """
    f8  fair       fair value in ticks; bids stay at or below its floor, asks above
    f8  variance   volatility clustering: multiple of sigma squared
    f8  pressure   order-flow pressure, mean 0, variance 1
    f8  lagged     smoothed pressure; the price follows this one
    f8  drift      drift by news, per second
    f8  tilt       order-flow tilt by news, -0.4 .. 0.4
    f8  sigma      volatility of a square root of a second
    i8  last_ns    when fair was last brought forward
    i8  text       the eight ASCII characters
    i8  width      ticks kept free when placing, bids and asks together
    i8  orders     address of its LIVE rows
    i8  bids       live bids
    i8  asks       live asks
    i8  halted     1 = nothing trades
    i8  locate     stock locate
    i8  pad        zero
    """,
)

LIVE = record(
    "LIVE",
    """
    i8  ref    order reference; rises with arrival
    i8  tick   price in ticks
    i8  qty    shares left
    i8  side   B or S
    """,
    line=32,
)

STEP = record(
    "STEP",
    """
    i8  at_ns   exchange time from which it holds
    i8  symbol  row of the symbol
    f8  drift   drift from then on, per second
    f8  tilt    order-flow tilt from then on
    i8  hot_ns  the symbol draws more events until then, 0 = no
    3i8 pad     zero
    """,
)

_D = DAY.at
_MASK_57: Final = (1 << 57) - 1
_MASK_32: Final = (1 << 32) - 1
_QUANTILES: Final = 4096


def exponential_quantiles() -> NDArray[np.int64]:
    """Return 4,096 quantiles of the exponential distribution with mean 1, in units of 1/1024."""
    values = [-math.log1p(-(i + 0.5) / _QUANTILES) for i in range(_QUANTILES)]
    return np.array([round(1024 * v) for v in values], np.int64)


def normal_quantiles() -> NDArray[np.float64]:
    """Return 4,096 quantiles of the standard normal distribution, rounded to 1/65536."""
    normal = statistics.NormalDist()
    values = [round(65536 * normal.inv_cdf((i + 0.5) / _QUANTILES)) / 65536 for i in range(_QUANTILES)]
    return np.array(values, np.float64)


@inlined
def draw(day: int) -> int:
    """Return 32 random bits (xorshift, 13-7-17)."""
    word = load_i64(day + _D.random)
    word ^= word << 13
    word ^= (word >> 7) & _MASK_57
    word ^= word << 17
    store_i64(day + _D.random, word)
    return (word >> 32) & _MASK_32


@inlined
def pick(day: int, count: int) -> int:
    """Return a whole number from 0 to count - 1."""
    return (draw(day) * count) >> 32


@inlined
def chance(day: int, per_mille: int) -> bool:
    """Say yes so many times in a thousand."""
    return draw(day) * 1000 < per_mille << 32


@inlined
def exponential(day: int, mean: int) -> int:
    """Return an exponentially distributed whole number."""
    return (load_i64(load_i64(day + _D.exponentials) + ((draw(day) >> 20) << 3)) * mean) >> 10


@inlined
def normal(day: int) -> float:
    """Return a normally distributed number, within +-3.7."""
    return load_f64(load_i64(day + _D.normals) + ((draw(day) >> 20) << 3))
