"""Indicators of many instruments, and rolling correlations: eight instruments, or eight times, in a vector.

Series are float64, [time][instrument].  Seeding and smoothing are those of strategy/features/bars.py and of
bicep/cuda/series.cu, operation by operation; after bar 33 every mean is seeded and no bar is asked about.
A vector's lanes never meet: what an instrument holds changes nothing for its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from bicep import simd
from ringbuf.jit import kernel
from ringbuf.memory import I64, load_i32, lowered, store_f64

LANES: Final = 8
INDICATORS: Final = 5  # planes of the result: RSI 14, EMA 20, MACD 12/26, its signal 9, ATR 14
RSI_BARS, ATR_BARS, EMA_BARS, FAST_BARS, SLOW_BARS, SIGNAL_BARS = 14, 14, 20, 12, 26, 9
FLAT: Final = 1e-9  # mean moves below it are none
_WARM: Final = SLOW_BARS + SIGNAL_BARS - 1  # bars until everything is seeded
_NUMBER: Final = ir.DoubleType()
_VECTOR: Final = ir.VectorType(_NUMBER, LANES)
_FLAGS: Final = ir.VectorType(ir.IntType(1), LANES)
_SIZE: Final = 8


def _splat(value: float) -> Any:
    return ir.Constant(_VECTOR, [ir.Constant(_NUMBER, value)] * LANES)


_ZERO, _COLD = _splat(0.0), _splat(math.nan)


def _int(value: int) -> Any:
    return ir.Constant(I64, value)


def _flags(b: Any, count: Any) -> Any:
    """Return which lanes lie below count."""
    numbers = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
    vector = b.insert_element(ir.Constant(numbers.type, ir.Undefined), count, ir.Constant(simd.I32, 0))
    zeros = ir.Constant(ir.VectorType(simd.I32, LANES), [0] * LANES)
    return b.icmp_signed("<", numbers, b.shuffle_vector(vector, vector, zeros))


def _load(b: Any, addr: Any, lanes: Any) -> Any:
    pointer = _VECTOR.as_pointer()
    name = f"llvm.masked.load.v{LANES}f64.p0"
    fetch = simd.function(b, name, _VECTOR, pointer, simd.I32, _FLAGS, _VECTOR)
    return b.call(fetch, [b.inttoptr(addr, pointer), ir.Constant(simd.I32, _SIZE), lanes, _ZERO])


def _store(b: Any, value: Any, addr: Any, lanes: Any) -> None:
    pointer = _VECTOR.as_pointer()
    name = f"llvm.masked.store.v{LANES}f64.p0"
    put = simd.function(b, name, ir.VoidType(), _VECTOR, pointer, simd.I32, _FLAGS)
    b.call(put, [value, b.inttoptr(addr, pointer), ir.Constant(simd.I32, _SIZE), lanes])


def _larger(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _smaller(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


class _Means:
    """How a bar goes into a mean; `bar` is None once every mean is seeded."""

    def __init__(self, b: Any, bar: Any | None) -> None:
        self.b, self.bar = b, bar

    def at(self, relation: str, bar: int) -> Any:
        """Return the comparison of the bar's number."""
        return self.b.icmp_signed(relation, self.bar, _int(bar))

    def wilder(self, old: Any, value: Any, bars: int) -> Any:
        """Fold into Wilder's mean, seeded with bars 1 .. `bars` (bar 0 has no predecessor)."""
        b, size = self.b, _splat(bars)
        new = b.fdiv(b.fadd(b.fmul(old, _splat(bars - 1)), value), size)
        if self.bar is None:
            return new
        total = b.fadd(old, value)
        seeding = b.select(self.at("==", bars), b.fdiv(total, size), total)
        new = b.select(self.at("<=", bars), seeding, new)
        return b.select(self.at(">", 0), new, old)

    def fold(self, old: Any, value: Any, first: int, bars: int) -> Any:
        """Fold into a mean: the plain mean of `bars` bars from `first` on, then exponential."""
        b = self.b
        new = b.fadd(b.fmul(b.fsub(value, old), _splat(2.0 / (bars + 1))), old)
        if self.bar is None:
            return new
        total = b.fadd(old, value)
        seeding = b.select(self.at("==", first + bars - 1), b.fdiv(total, _splat(bars)), total)
        new = b.select(self.at("<", first + bars), seeding, new)
        return b.select(self.at("<", first), old, new)

    def shown(self, value: Any, first: int) -> Any:
        """Return the value from bar `first` on, NaN before."""
        return value if self.bar is None else self.b.select(self.at("<", first), _COLD, value)


def _bar(b: Any, means: _Means, prices: simd.Values, carried: simd.Values) -> tuple[simd.Values, simd.Values]:
    """Return what is carried on, and the five indicators, after a bar of close, high and low."""
    (now, high, low), (gain, loss, spread, mean, fast, slow, signal, before) = prices, carried
    gain = means.wilder(gain, _larger(b, b.fsub(now, before), _ZERO), RSI_BARS)
    loss = means.wilder(loss, _larger(b, b.fsub(before, now), _ZERO), RSI_BARS)
    true_range = b.fsub(_larger(b, high, before), _smaller(b, low, before))
    spread = means.wilder(spread, true_range, ATR_BARS)
    mean = means.fold(mean, now, 0, EMA_BARS)
    fast = means.fold(fast, now, SLOW_BARS - FAST_BARS, FAST_BARS)
    slow = means.fold(slow, now, 0, SLOW_BARS)
    difference = b.fsub(fast, slow)
    signal = means.fold(signal, difference, SLOW_BARS - 1, SIGNAL_BARS)
    both = b.fadd(gain, loss)
    strength = b.fdiv(b.fmul(_splat(100.0), gain), both)
    strength = b.select(b.fcmp_ordered(">", both, _splat(FLAT)), strength, _splat(50.0))
    shown = [
        means.shown(strength, RSI_BARS),
        means.shown(mean, EMA_BARS - 1),
        means.shown(difference, _WARM - 1),
        means.shown(signal, _WARM - 1),
        means.shown(spread, ATR_BARS),
    ]
    return [gain, loss, spread, mean, fast, slow, signal, now], shown


def _indicators_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    close, high, low, bars, instruments, out, first = args
    lanes = _flags(b, b.sub(instruments, first))
    plane = b.mul(b.mul(bars, instruments), _int(_SIZE))

    def body(begin: Any, *, seeding: bool) -> Callable[[Any, simd.Values], simd.Values]:
        def step(n: Any, carried: simd.Values) -> simd.Values:
            bar = b.add(n, begin)
            at = b.mul(b.add(b.mul(bar, instruments), first), _int(_SIZE))
            prices = [_load(b, b.add(series, at), lanes) for series in (close, high, low)]
            carried, shown = _bar(b, _Means(b, bar if seeding else None), prices, carried)
            for n_plane, value in enumerate(shown):
                _store(b, value, b.add(b.add(out, at), b.mul(plane, _int(n_plane))), lanes)
            return carried

        return step

    few = b.select(b.icmp_signed("<", bars, _int(_WARM)), bars, _int(_WARM))
    state = simd.loop(b, few, [_ZERO] * 8, body(_int(0), seeding=True))
    simd.loop(b, b.sub(bars, few), state, body(few, seeding=False))


@lowered(_indicators_codegen)
def _eight_instruments(
    close: int, high: int, low: int, bars: int, instruments: int, out: int, first: int
) -> None:
    """Write the indicators of instruments first .. first + 7."""


@kernel
def indicators(close: int, high: int, low: int, bars: int, instruments: int, out: int) -> None:
    """Write the indicators of all instruments.

    close, high, low: float64[bars][instruments]; out: float64[5][bars][instruments], NaN until warm.
    """
    for first in range(0, instruments, LANES):
        _eight_instruments(close, high, low, bars, instruments, out, first)


# ---- rolling correlation


def _correlation_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    one, two, count, window, out = args
    size = b.sitofp(window, _NUMBER)
    vector = b.insert_element(ir.Constant(_VECTOR, ir.Undefined), size, ir.Constant(simd.I32, 0))
    zeros = ir.Constant(ir.VectorType(simd.I32, LANES), [0] * LANES)
    length = b.shuffle_vector(vector, vector, zeros)

    def math_of(name: str, *values: Any) -> Any:
        whole = f"llvm.{name}.v{LANES}f64"
        return b.call(simd.function(b, whole, _VECTOR, *[_VECTOR] * len(values)), list(values))

    def step(n: Any, _: simd.Values) -> simd.Values:
        first = b.mul(n, _int(LANES))
        lanes = _flags(b, b.sub(count, first))
        at = b.mul(first, _int(_SIZE))

        def both(k: Any) -> list[Any]:
            place = b.add(at, b.mul(k, _int(_SIZE)))
            return [_load(b, b.add(series, place), lanes) for series in (one, two)]

        def add(k: Any, sums: simd.Values) -> simd.Values:
            return [b.fadd(total, value) for total, value in zip(sums, both(k), strict=True)]

        means = [b.fdiv(total, length) for total in simd.loop(b, window, [_ZERO] * 2, add)]

        def multiply(k: Any, sums: simd.Values) -> simd.Values:
            x, y = (b.fsub(value, mean) for value, mean in zip(both(k), means, strict=True))
            return [math_of("fma", *pair, s) for pair, s in zip(((x, x), (y, y), (x, y)), sums, strict=True)]

        square_one, square_two, product = simd.loop(b, window, [_ZERO] * 3, multiply)
        scale = b.fmul(math_of("sqrt", square_one), math_of("sqrt", square_two))
        ratio = b.select(b.fcmp_ordered(">", scale, _ZERO), b.fdiv(product, scale), _ZERO)
        _store(b, ratio, b.add(out, at), lanes)
        return []

    simd.loop(b, b.lshr(b.add(count, _int(LANES - 1)), _int(3)), [], step)


@lowered(_correlation_codegen)
def _correlation(one: int, two: int, count: int, window: int, out: int) -> None:
    """Write the correlations of `count` windows, each beginning one value later; 0 where either is flat."""


@kernel
def rolling_correlation(values: int, times: int, pairs: int, pair_count: int, window: int, out: int) -> None:
    """Write Pearson's correlation of pairs of instruments over the last `window` values.

    values: float64[instrument][times]; pairs: int32[pair_count][2], instruments; out: float64[pair][times],
    NaN before a window is full, 0 when either series is flat.  Two passes over a window: no running sum
    loses its digits.
    """
    for n in range(pair_count):
        one = values + _SIZE * times * load_i32(pairs + 8 * n)
        two = values + _SIZE * times * load_i32(pairs + 8 * n + 4)
        row = out + _SIZE * times * n
        for t in range(min(window - 1, times)):
            store_f64(row + _SIZE * t, math.nan)
        if times >= window:
            _correlation(one, two, times - window + 1, window, row + _SIZE * (window - 1))
