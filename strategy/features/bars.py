"""One-second bars of the mid, and the indicators on them, one bar at a time.

A bar is the path of the mid in force over one second of exchange time: its range includes the mid that
it began with, its close is the mid in force at its end.  A second without events is a flat bar, so the
indicators are those of a forward-filled series.  A silence longer than RING seconds counts as RING flat
bars: by then every mean here has forgotten what was before, and the work of one event stays bounded.

Seeding and smoothing are TA-Lib's (Wilder for RSI and ATR; both means of MACD seeded on bar 26), with one
departure: RSI of a market that never moved is 50, not 0.
"""

from __future__ import annotations

import math
from typing import Final

from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_f64, load_i64, load_u32, store_f64, store_i64, store_u32
from strategy.features.arithmetic import log_ratio
from strategy.features.columns import BP, INDEX, VECTOR
from strategy.features.state import FEATURE_STATE, RING

SECOND_NS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * SECOND_NS
RSI_BARS: Final = 14
ATR_BARS: Final = 14
EMA_BARS: Final = 20
FAST_BARS: Final = 12
SLOW_BARS: Final = 26
SIGNAL_BARS: Final = 9
BOLLINGER_BARS: Final = 20
REALISED_BARS: Final = 60
CHANGE_MAX: Final = 300_000_000  # a change of the doubled mid beyond it is cut: 60 squares fit an int64
FLAT: Final = 1e-9  # of a doubled 1/10,000: means below it are zero

_AT, _COLUMN = FEATURE_STATE.at, VECTOR.at
_RING_MASK = RING - 1
_BAR_NAMES: Final = ("realised_60s", "rsi_14", "ema_20", "macd", "macd_signal", "atr_14", "bollinger_20")
BAR_BITS: Final = sum(1 << INDEX[name] for name in _BAR_NAMES)


@inlined
def put(state: int, column: int, value: float, ok: bool) -> int:
    """Store a column (its VECTOR offset), NaN unless ok; return its warm bit."""
    store_f64(state + _AT.vector + column, value if ok else math.nan)
    return 1 << (column >> 3) if ok else 0


@inlined
def _mean(addr: int, value: float, bar: int, first: int, bars: int, factor: float) -> float:
    """Fold a bar into the mean at addr: the plain mean of `bars` bars from `first` on, then exponential."""
    old = load_f64(addr)
    if bar < first:
        return old
    new = (value - old) * factor + old
    if bar < first + bars:
        new = old + value
        new = new / bars if bar == first + bars - 1 else new
    store_f64(addr, new)
    return new


@inlined
def _wilder(addr: int, value: float, bar: int, bars: int) -> None:
    """Fold a bar into Wilder's mean at addr, seeded with bars 1 .. `bars` (bar 0 has no predecessor)."""
    old = load_f64(addr)
    new = (old * (bars - 1) + value) / bars
    if bar <= bars:
        new = old + value
        new = new / bars if bar == bars else new
    store_f64(addr, new)


@inlined
def _change(after: int, before: int) -> int:
    """Return the change of the doubled mid, cut to +-CHANGE_MAX."""
    return min(max(after - before, -CHANGE_MAX), CHANGE_MAX)


@inlined
def _close(state: int, number: int, close_px2: int, high_px2: int, low_px2: int) -> None:
    """Close the bar of this number: fold it into every running mean."""
    bar, before = load_i64(state + _AT.bars), load_i64(state + _AT.close_px2)
    close = float(close_px2)
    if bar > 0:
        change = _change(close_px2, before)
        squares = load_i64(state + _AT.squares) + change * change
        if bar > REALISED_BARS:
            late = load_i64(state + _AT.seconds + ((number - REALISED_BARS) & _RING_MASK) * 8)
            early = load_i64(state + _AT.seconds + ((number - REALISED_BARS - 1) & _RING_MASK) * 8)
            gone = _change(late, early)
            squares -= gone * gone
        store_i64(state + _AT.squares, squares)
        _wilder(state + _AT.gain, float(max(close_px2 - before, 0)), bar, RSI_BARS)
        _wilder(state + _AT.loss, float(max(before - close_px2, 0)), bar, RSI_BARS)
        spread = max(high_px2, before) - min(low_px2, before)  # the true range: gaps count
        _wilder(state + _AT.true_range, float(spread), bar, ATR_BARS)
    _mean(state + _AT.ema_20, close, bar, 0, EMA_BARS, 2.0 / (EMA_BARS + 1))
    fast = _mean(state + _AT.ema_12, close, bar, SLOW_BARS - FAST_BARS, FAST_BARS, 2.0 / (FAST_BARS + 1))
    slow = _mean(state + _AT.ema_26, close, bar, 0, SLOW_BARS, 2.0 / (SLOW_BARS + 1))
    _mean(state + _AT.macd_signal, fast - slow, bar, SLOW_BARS - 1, SIGNAL_BARS, 2.0 / (SIGNAL_BARS + 1))
    store_i64(state + _AT.seconds + (number & _RING_MASK) * 8, close_px2)
    store_i64(state + _AT.close_px2, close_px2)
    store_i64(state + _AT.bars, bar + 1)


@inlined
def _bollinger(state: int, last: int, close_px2: int) -> float:
    """Return the z-score of the last close within the last 20."""
    total = squares = 0.0
    for back in range(BOLLINGER_BARS):
        px2 = load_i64(state + _AT.seconds + ((last - back) & _RING_MASK) * 8)
        step = float(px2 - close_px2)  # relative to the close, so small numbers are squared
        total += step
        squares += step * step
    mean = total / BOLLINGER_BARS
    variance = squares / BOLLINGER_BARS - mean * mean
    return -mean / math.sqrt(variance) if variance > FLAT else 0.0


@inlined
def _indicators(state: int, last: int) -> None:
    """Write the columns that change only when a bar closes."""
    bars, close_px2 = load_i64(state + _AT.bars), load_i64(state + _AT.close_px2)
    close = float(close_px2)
    unit = BP / close
    gain, loss = load_f64(state + _AT.gain), load_f64(state + _AT.loss)
    rsi = 100.0 * gain / (gain + loss) if gain + loss > FLAT else 50.0
    macd = (load_f64(state + _AT.ema_12) - load_f64(state + _AT.ema_26)) * unit
    is_macd = bars >= SLOW_BARS + SIGNAL_BARS - 1
    warm = load_u32(state + _AT.warm) & ~BAR_BITS
    realised = math.sqrt(float(load_i64(state + _AT.squares))) * unit
    warm |= put(state, _COLUMN.realised_60s, realised, bars > REALISED_BARS)
    warm |= put(state, _COLUMN.rsi_14, rsi, bars > RSI_BARS)
    warm |= put(state, _COLUMN.ema_20, (close - load_f64(state + _AT.ema_20)) * unit, bars >= EMA_BARS)
    warm |= put(state, _COLUMN.macd, macd, is_macd)
    warm |= put(state, _COLUMN.macd_signal, load_f64(state + _AT.macd_signal) * unit, is_macd)
    warm |= put(state, _COLUMN.atr_14, load_f64(state + _AT.true_range) * unit, bars > ATR_BARS)
    score = _bollinger(state, last, close_px2) if bars >= BOLLINGER_BARS else 0.0
    warm |= put(state, _COLUMN.bollinger_20, score, bars >= BOLLINGER_BARS)
    store_u32(state + _AT.warm, warm)


@inlined
def start(state: int, now_ns: int, px2: int) -> None:
    """Open the first bar with the first mid."""
    second, minute = now_ns // SECOND_NS, now_ns // MINUTE_NS
    store_i64(state + _AT.second, second)
    store_i64(state + _AT.first_second, second)
    store_i64(state + _AT.minute, minute)
    store_i64(state + _AT.first_minute, minute)
    store_i64(state + _AT.high_px2, px2)
    store_i64(state + _AT.low_px2, px2)
    store_i64(state + _AT.close_px2, px2)


@kernel
def roll(state: int, now_ns: int) -> int:
    """Close the bars that ended before now_ns, at the mid in force; return 1 when RING bars stood for more.

    state: address of a FEATURE_STATE that has a mid and whose running bar is over.
    """
    px2, running = load_i64(state + _AT.mid_px2), load_i64(state + _AT.second)
    second, minute = now_ns // SECOND_NS, now_ns // MINUTE_NS
    move = log_ratio(float(px2), float(load_i64(state + _AT.close_px2)))
    store_f64(state + _AT.variance_300, load_f64(state + _AT.variance_300) + move * move)
    bars = min(second - running, RING)
    high, low = load_i64(state + _AT.high_px2), load_i64(state + _AT.low_px2)
    for step in range(bars):
        _close(state, second - bars + step, px2, high, low)
        high = low = px2
    capped = 1 if second - running > RING else 0
    if capped:
        store_i64(state + _AT.squares, 0)  # the window of realised volatility holds flat bars only
    store_i64(state + _AT.high_px2, px2)
    store_i64(state + _AT.low_px2, px2)
    store_i64(state + _AT.second, second)
    minutes = min(minute - load_i64(state + _AT.minute), RING)
    for step in range(minutes):
        store_i64(state + _AT.minutes + ((minute - minutes + step) & _RING_MASK) * 8, px2)
    store_i64(state + _AT.minute, minute)
    _indicators(state, second - 1)
    return capped
