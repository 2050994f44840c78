"""The memory of the features: one row per symbol, and what stands in it.

A row is 1,728 bytes (14 MiB for 8,192 symbols); untouched symbols cost no memory.  Written by the
strategy loop alone.  Times are `exch_ns`; mids are kept twice (`_px2`), so they stay integers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ringbuf.crc32c import digest as digest_of_words
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_f64, load_i64, load_u32, prefetch
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment
from strategy.features.columns import COLUMNS, VECTOR
from strategy.features.lanes import FADING, normalise_columns

RING: Final = 64  # sampled mids kept per scale; a power of two, more than the longest horizon + 1

FEATURES_STATE = record(
    "FEATURES_STATE",
    """
    i8  symbols_max   rows that follow
    i8  events        events taken in
    i8  vectors       vectors written
    i8  bad_locate    events refused: locate outside the table
    i8  back_in_time  events whose exch_ns was before the symbol's last (taken at the last)
    i8  capped_bars   silences longer than 64 s, counted as 64 flat bars
    2i8 pad           zero
    """,
)

FEATURE_STATE = record(
    "FEATURE_STATE",
    f"""
    i8  last_ns       exchange time of the last event
    i8  first_ns      exchange time of the first
    i8  events        events so far
    i8  bid_px        last best bid, 0 = empty
    i8  ask_px        last best ask
    i8  bid_qty       shares there
    i8  ask_qty       shares there
    i8  mid_px2       last bid + ask of a two-sided, uncrossed book, 0 = none yet
    f8  young_1       exp(-(time since first_ns)/1 s); 1 - it is the weight a rate has gathered
    f8  young_10      the same, 10 s
    f8  young_60      the same, 60 s
    f8  young_300     the same, 300 s
    f8  ofi_1         decayed sums from here on
    f8  ofi_10        order-flow imbalance
    f8  ofi_60        order-flow imbalance
    f8  events_1      events
    f8  events_10     events
    f8  cancels_10    cancels and deletes
    f8  trades_10     prints
    f8  signed_10     shares bought less sold by aggressors
    f8  signed_60     the same
    f8  volume_10     shares traded
    f8  volume_60     shares traded
    f8  variance_10   squared returns of the mid, event by event
    f8  variance_60   the same
    f8  variance_300  squared returns of 1-s bars
    f8  vwap_cost     price x shares of prints, 300 s
    f8  vwap_qty      shares of prints, 300 s
    f8  depth_sum     mean shares of a best level over time, 300 s
    f8  depth_weight  its weight
    i8  last_trade_ns time of the last print, -1 = none
    i8  second        number of the running 1-s bar; the first bar begins with the first mid
    i8  first_second  number of the first bar
    i8  bars          closed bars so far
    i8  high_px2      of the running bar
    i8  low_px2       of the running bar
    i8  close_px2     close of the last closed bar, before the first: the first mid
    i8  squares       sum of squared mid changes of the last 60 bars
    i8  minute        number of the running minute
    i8  first_minute  number of the first
    f8  ema_20        running sum until seeded, then the mean; so are all below
    f8  ema_12        seeded over bars 15-26, as TA-Lib does for MACD
    f8  ema_26        seeded over bars 1-26
    f8  macd_signal   seeded over the MACD of bars 26-34
    f8  gain          Wilder mean of rises
    f8  loss          Wilder mean of falls
    f8  true_range    Wilder mean of true ranges
    {RING}i8 seconds  mid in force at the end of each bar, by bar number
    {RING}i8 minutes  mid in force at the end of each minute, by minute number
    {COLUMNS}f8 vector  the feature vector (columns.py)
    u4  warm          bit = column is warm
    u4  pad           zero
    i8  run           run of the feed that all this was seen in (BOOK_EVENT.run)
    7i8 pad2          zero
    """,
)

NORMALISATION = record(
    "NORMALISATION",
    f"""
    {COLUMNS}f8 mean       of each column over the training range
    {COLUMNS}f8 deviation  standard deviation; a column whose deviation is not > 0 is switched off
    """,
)

_AT = FEATURE_STATE.at
_ROW_SIZE, _HEAD_SIZE = FEATURE_STATE.size, FEATURES_STATE.size
_ROW_LINES = FEATURE_STATE.size // CACHE_LINE
_VOLATILITY = FEATURE_STATE.at.vector + VECTOR.at.volatility_300s
assert [getattr(_AT, name) for name in FADING] == list(range(_AT.young_1, _AT.vwap_qty + 8, 8))
_MEAN, _DEVIATION = NORMALISATION.at.mean, NORMALISATION.at.deviation


@inlined
def row(features: int, locate: int) -> int:
    """Return the address of a symbol's FEATURE_STATE; 0 <= locate < symbols_max is assumed."""
    return features + _HEAD_SIZE + locate * _ROW_SIZE


@inlined
def warm_row(features: int, locate: int) -> None:
    """Fetch a symbol's FEATURE_STATE."""
    state = row(features, locate)
    for line in range(_ROW_LINES):
        prefetch(state + line * CACHE_LINE)


@inlined
def vector_at(features: int, locate: int) -> int:
    """Return the address of a symbol's float64[32]; locate is assumed to be in range."""
    address: int = row(features, locate) + _AT.vector
    return address


@inlined
def warm_mask(features: int, locate: int) -> int:
    """Return the warm bits of a symbol's vector."""
    return load_u32(row(features, locate) + _AT.warm)


@inlined
def mid_px2(features: int, locate: int) -> int:
    """Return the last mid, doubled; 0 = none yet."""
    return load_i64(row(features, locate) + _AT.mid_px2)


@inlined
def volatility(features: int, locate: int) -> float:
    """Return the slow volatility as a plain return per square root of a second; NaN until warm."""
    return load_f64(row(features, locate) + _VOLATILITY) * 1e-4


@kernel
def normalise(vector: int, constants: int, out: int) -> int:
    """Write clip((x - mean)/deviation, +-6) of each column to out; what is not a number becomes 0.

    vector, out: addresses of float64[32] (may be the same); constants: address of NORMALISATION.
    Returns the mask of columns that hold a number; the others are the caller's to know by their bits.
    """
    return normalise_columns(vector, constants + _MEAN, constants + _DEVIATION, out)


@kernel
def digest(vector: int) -> int:
    """Return a 64-bit digest of the 32 float64 at vector, NaN included."""
    return digest_of_words(vector, COLUMNS // 2)


class Features:
    """Own the rows; `addr` goes to the kernels."""

    def __init__(self, segment: Segment, symbols_max: int, name: str = "features") -> None:
        self.symbols_max = symbols_max
        self.addr = segment.allocate(name, _HEAD_SIZE + symbols_max * _ROW_SIZE)
        words = segment.words(self.addr, (_HEAD_SIZE + symbols_max * _ROW_SIZE) // 8)
        self.head: Any = words[: _HEAD_SIZE // 8].view(FEATURES_STATE.dtype)[0]
        self.rows: NDArray[Any] = words[_HEAD_SIZE // 8 :].view(FEATURE_STATE.dtype)
        self.head["symbols_max"] = symbols_max

    def vector(self, locate: int) -> NDArray[np.float64]:
        """Return a live view of a symbol's vector."""
        view: NDArray[np.float64] = self.rows[locate]["vector"]
        return view

    def counters(self) -> dict[str, int]:
        """Return the counters by name."""
        return {name: int(self.head[name]) for name in FEATURES_STATE.at._fields if name != "pad"}


class Normalisation:
    """Own one set of constants; `addr` goes to the kernels.  The default leaves every column as it is."""

    def __init__(self, segment: Segment, name: str = "normalisation") -> None:
        self.addr = segment.allocate(name, NORMALISATION.size)
        self._values = segment.array(name, NORMALISATION)[0]
        self.set(np.zeros(COLUMNS), np.ones(COLUMNS))

    def set(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
        """Take the constants of an artefact; only while no kernel runs.  Raises ValueError on NaN."""
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
            msg = "normalisation constants must be finite"
            raise ValueError(msg)
        self._values["mean"], self._values["deviation"] = mean, deviation
