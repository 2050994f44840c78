"""Many instruments in one call: indicators, rolling correlations and price paths, on whatever holds the data.

    indicators(close, high, low)              RSI 14, EMA 20, MACD 12/26, its signal 9, ATR 14
    rolling_correlation(values, window)       Pearson's, of all pairs or of those asked for
    price_paths(spot, drift, volatility, ...) ends of geometric Brownian paths

Series are [time][instrument]; NumPy arrays are answered with NumPy arrays, tensors with tensors on their
device.  Each is one registration (bicep.kernels): a definition in torch, a compiled body for the CPU, a CUDA
kernel.  Spectra and cross-correlations are in bicep.spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bicep.cpu import paths as path_kernels
from bicep.cpu import series as series_kernels
from bicep.cpu.series import (
    ATR_BARS,
    EMA_BARS,
    FAST_BARS,
    FLAT,
    INDICATORS,
    RSI_BARS,
    SIGNAL_BARS,
    SLOW_BARS,
)
from bicep.cuda.bodies import Launcher, launch_entry
from bicep.kernels import compiled, on_device, op
from bicep.masks import philox

_WARM: Final = SLOW_BARS + SIGNAL_BARS - 2  # the first bar with a MACD and its signal
_WORD: Final = 0xFFFFFFFF
_INT32_MAX: Final = (1 << 31) - 1


class Indicators(NamedTuple):
    """Each [time][instrument] (or [time]), float64, NaN until warm."""

    rsi: Any  # 0 .. 100; 50 for a market that never moved
    ema: Any
    macd: Any
    signal: Any
    atr: Any


class Paths(NamedTuple):
    """Each [asset][path], float32."""

    last: Any
    lowest: Any
    highest: Any


# ---- indicators


def _fold(old: Tensor, value: Tensor, bar: int, first: int, bars: int) -> Tensor:
    """Fold a bar into a mean: the plain mean of `bars` bars from `first` on, then exponential."""
    if bar < first:
        return old
    if bar < first + bars:
        return (old + value) / (bars if bar == first + bars - 1 else 1)
    return (value - old) * (2 / (bars + 1)) + old


def _wilder(old: Tensor, value: Tensor, bar: int, bars: int) -> Tensor:
    """Fold a bar into Wilder's mean, seeded with bars 1 .. `bars`."""
    if bar <= bars:
        return (old + value) / (bars if bar == bars else 1)
    return (old * (bars - 1) + value) / bars


def _of_prices(close: Tensor, *_rest: Any) -> Tensor:
    return close.new_empty((INDICATORS, *close.shape), dtype=torch.float64)


@op(
    "indicators",
    schema="(Tensor close, Tensor high, Tensor low) -> Tensor",
    fake=_of_prices,
    work=lambda close, *_rest: 50 * close.numel(),
    source="series",
)
def _indicators(close: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Return the planes [indicator][time][instrument] of float64 prices."""
    out = torch.full_like(_of_prices(close), math.nan)
    gain, loss, spread, mean, fast, slow, signal = close.new_zeros((7, close.shape[1]))
    before = close[0]
    for bar, now in enumerate(close):
        if bar:
            gain = _wilder(gain, (now - before).clamp(min=0), bar, RSI_BARS)
            loss = _wilder(loss, (before - now).clamp(min=0), bar, RSI_BARS)
            true_range = torch.maximum(high[bar], before) - torch.minimum(low[bar], before)
            spread = _wilder(spread, true_range, bar, ATR_BARS)
        mean, fast = (
            _fold(mean, now, bar, 0, EMA_BARS),
            _fold(fast, now, bar, SLOW_BARS - FAST_BARS, FAST_BARS),
        )
        slow = _fold(slow, now, bar, 0, SLOW_BARS)
        signal = _fold(signal, fast - slow, bar, SLOW_BARS - 1, SIGNAL_BARS)
        both, before = gain + loss, now
        if bar >= RSI_BARS:
            out[0, bar] = torch.where(both > FLAT, 100 * gain / both, 50.0)
            out[4, bar] = spread
        if bar >= EMA_BARS - 1:
            out[1, bar] = mean
        if bar >= _WARM:
            out[2, bar], out[3, bar] = fast - slow, signal
    return out


def _dense(dtype: torch.dtype, *tensors: Tensor) -> bool:
    return all(t.dtype is dtype and t.is_contiguous() for t in tensors)


@compiled("indicators")
def _indicators_compiled(close: Tensor, high: Tensor, low: Tensor) -> Any:
    if not _dense(torch.float64, close, high, low):
        return NotImplemented
    out = _of_prices(close)
    addresses = close.data_ptr(), high.data_ptr(), low.data_ptr()
    bars, instruments = close.shape
    series_kernels.indicators(*addresses, bars, instruments, out.data_ptr())
    return out


@on_device("indicators")
def _indicators_on_device(launcher: Launcher, close: Tensor, high: Tensor, low: Tensor) -> Any:
    if not _dense(torch.float64, close, high, low):
        return NotImplemented
    out, (bars, instruments) = _of_prices(close), close.shape
    prices = {"close": close, "high": high, "low": low}
    launch_entry(launcher, "indicators", **prices, bars=bars, instruments=instruments, out=out)
    return out


# ---- rolling correlation


def _of_pairs(values: Tensor, pairs: Tensor, _window: int) -> Tensor:
    return values.new_empty((pairs.shape[0], values.shape[0]))


@op(
    "rolling_correlation",
    schema="(Tensor values, Tensor pairs, int window) -> Tensor",
    fake=_of_pairs,
    work=lambda values, pairs, window: 5 * values.shape[0] * pairs.shape[0] * window,
    source="series",
)
def _correlation(values: Tensor, pairs: Tensor, window: int) -> Tensor:
    """Return [pair][time] of float64 [time][instrument] and int32 [pair][2]."""
    out = torch.full_like(_of_pairs(values, pairs, window), math.nan)
    if values.shape[0] < window:
        return out
    views = values.unfold(0, window, 1)
    views = views - views.mean(-1, keepdim=True)
    one, two = (views[:, pairs[:, n].long()] for n in (0, 1))
    scale = one.square().sum(-1).sqrt() * two.square().sum(-1).sqrt()
    ratio = torch.where(scale > 0, (one * two).sum(-1) / scale, 0.0)
    out[:, window - 1 :] = ratio.T
    return out


@compiled("rolling_correlation")
def _correlation_compiled(values: Tensor, pairs: Tensor, window: int) -> Any:
    if not (_dense(torch.float64, values) and _dense(torch.int32, pairs)):
        return NotImplemented
    out, rows = _of_pairs(values, pairs, window), values.T.contiguous()
    series_kernels.rolling_correlation(
        rows.data_ptr(), values.shape[0], pairs.data_ptr(), len(pairs), window, out.data_ptr()
    )
    return out


@on_device("rolling_correlation")
def _correlation_on_device(launcher: Launcher, values: Tensor, pairs: Tensor, window: int) -> Any:
    if not (_dense(torch.float64, values) and _dense(torch.int32, pairs)):
        return NotImplemented
    out, (times, instruments) = _of_pairs(values, pairs, window), values.shape
    sizes = {"times": times, "instruments": instruments, "window": window, "pair_count": len(pairs)}
    launch_entry(launcher, "rolling_correlation", values=values, pairs=pairs, **sizes, out=out)
    return out


# ---- price paths


def _of_assets(
    spot: Tensor, _d: Tensor, _v: Tensor, paths: int, *_rest: int
) -> tuple[Tensor, Tensor, Tensor]:
    shape = spot.shape[0], paths
    return spot.new_empty(shape), spot.new_empty(shape), spot.new_empty(shape)


@op(
    "price_paths",
    schema="(Tensor spot, Tensor drift, Tensor volatility, int paths, int steps, int number, int left, "
    "int right) -> (Tensor, Tensor, Tensor)",
    fake=_of_assets,
    work=lambda spot, _d, _v, paths, steps, *_rest: 50 * spot.numel() * paths * steps,
    source="paths",
)
def _paths(
    spot: Tensor,
    drift: Tensor,
    volatility: Tensor,
    paths: int,
    steps: int,
    number: int,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return last, lowest and highest price [asset][path]."""
    assets, turns = len(spot), -(-steps // path_kernels.STEPS)
    counters = np.zeros((assets, paths, turns, 4), np.uint32)
    counters[..., 0], counters[..., 1] = np.arange(paths)[None, :, None], np.arange(turns)
    counters[..., 2], counters[..., 3] = np.arange(assets)[:, None, None], number
    words = philox(counters.reshape(-1, 4), (left, right)).reshape(assets, paths, turns, 2, 2)
    uniform = torch.from_numpy((words + 0.5) / 2.0**32).to(spot.device)
    radius, angle = (-2 * uniform[..., 0].log()).sqrt(), 2 * math.pi * uniform[..., 1]
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).reshape(assets, paths, -1)
    noise = volatility.double()[:, None, None]
    steps_of = drift.double()[:, None, None] - noise.square() / 2 + noise * normal[..., :steps]
    price = steps_of.cumsum(-1)
    ends = price[..., -1], price.amin(-1).clamp(max=0), price.amax(-1).clamp(min=0)
    last, lowest, highest = ((spot.double()[:, None] * end.exp()).to(spot.dtype) for end in ends)
    return last, lowest, highest


@compiled("price_paths")
def _paths_compiled(
    spot: Tensor,
    drift: Tensor,
    volatility: Tensor,
    paths: int,
    steps: int,
    number: int,
    left: int,
    right: int,
) -> Any:
    if not _dense(torch.float32, spot, drift, volatility):
        return NotImplemented
    floats, words = torch.stack([spot, drift, volatility], 1), np.empty((len(spot), 4), np.uint32)
    words[:], words[:, 0] = (0, number, left, right), np.arange(len(spot))
    ends = _of_assets(spot, drift, volatility, paths)
    targets = [end.data_ptr() for end in ends]
    path_kernels.price_paths(floats.data_ptr(), words.ctypes.data, len(spot), paths, steps, *targets)
    return ends


@on_device("price_paths")
def _paths_on_device(
    launcher: Launcher,
    spot: Tensor,
    drift: Tensor,
    volatility: Tensor,
    paths: int,
    steps: int,
    number: int,
    left: int,
    right: int,
) -> Any:
    if not _dense(torch.float32, spot, drift, volatility):
        return NotImplemented
    last, lowest, highest = ends = _of_assets(spot, drift, volatility, paths)
    start = {"spot": spot, "drift": drift, "volatility": volatility}
    sizes = {"assets": len(spot), "paths": paths, "steps": steps}
    key = {"number": number, "left": left, "right": right}
    launch_entry(launcher, "price_paths", **start, **sizes, **key, last=last, lowest=lowest, highest=highest)
    return ends


# ---- what users call


def _taken(name: str, values: Any, dtype: torch.dtype, dim: int) -> Tensor:
    """Return values as a dense tensor of finite numbers where they lie; raises ValueError for others."""
    tensor = torch.as_tensor(values).detach().to(dtype).contiguous()
    if tensor.dim() != dim or not tensor.numel():
        wanted = {1: "[asset]", 2: "[time][instrument]"}[dim]
        msg = f"{name} of shape {tuple(tensor.shape)}, wanted is {wanted}, not empty"
        raise ValueError(msg)
    if not bool(torch.isfinite(tensor).all()):
        place = tuple(int(n) for n in (~torch.isfinite(tensor)).nonzero()[0])
        msg = f"{name} is NaN or infinite at {list(place)}"
        raise ValueError(msg)
    return tensor


def _given_back(like: Any, tensor: Tensor) -> Any:
    """Return a result as its caller's kind of array."""
    return tensor if isinstance(like, Tensor) else tensor.numpy()


def indicators(close: Any, high: Any = None, low: Any = None) -> Indicators:
    """Return RSI 14, EMA 20, MACD 12/26 with its signal 9, and ATR 14 of all instruments in one pass.

    close, high, low: prices [time][instrument], or [time] of one instrument; high and low are the close where
    they are left out.  Seeded as TA-Lib does; a result is NaN until its bars are there (14, 19, 33, 33, 14).
    Raises ValueError for shapes that differ and for prices that are NaN or infinite.
    """
    is_single = np.ndim(close) == 1
    given = [close if series is None else series for series in (close, high, low)]
    shaped = [torch.as_tensor(series).reshape(-1, 1) if is_single else series for series in given]
    prices = [
        _taken(name, series, torch.float64, 2)
        for name, series in zip(("close", "high", "low"), shaped, strict=True)
    ]
    if len({series.shape for series in prices}) > 1:
        msg = f"close, high and low of shapes {[tuple(series.shape) for series in prices]}"
        raise ValueError(msg)
    planes = torch.ops.bicep.indicators(*prices)
    return Indicators(*(_given_back(close, plane[:, 0] if is_single else plane) for plane in planes))


def rolling_correlation(
    values: Any, window: int, pairs: Sequence[tuple[int, int]] | None = None
) -> tuple[Any, list[tuple[int, int]]]:
    """Return Pearson's correlation [pair][time] over the last `window` values, and the pairs.

    values: [time][instrument], float64; pairs: columns, by default all pairs i < j.  NaN before a window is
    full, 0 where either series is flat.  Raises ValueError for a window below 2, a pair outside the columns,
    and values that are NaN or infinite.
    """
    series = _taken("values", values, torch.float64, 2)
    count = series.shape[1]
    chosen = [(i, j) for i in range(count) for j in range(i + 1, count)] if pairs is None else list(pairs)
    if not 2 <= window <= _INT32_MAX or not chosen:
        msg = f"a window of {window} values, {len(chosen)} pairs of {count} instruments"
        raise ValueError(msg)
    if wrong := [pair for pair in chosen if len(pair) != 2 or not all(0 <= n < count for n in pair)]:
        msg = f"pair {wrong[0]} of {count} instruments"
        raise ValueError(msg)
    index = torch.tensor(chosen, dtype=torch.int32, device=series.device)
    return _given_back(values, torch.ops.bicep.rolling_correlation(series, index, window)), chosen


def price_paths(
    spot: Any, drift: Any, volatility: Any, *, steps: int, paths: int, seed: int = 0, number: int = 0
) -> Paths:
    """Draw geometric Brownian paths; return their last, lowest and highest prices (the start included).

    spot, drift, volatility: one number per asset, per step: log price += drift - volatility^2 / 2 +
    volatility * normal.  Words are Philox4x32-10 of (path, step / 4, asset, number) under `seed`: the same
    bits on CPU and GPU, and any path can be drawn again alone.  Raises ValueError for other numbers.
    """
    given = (("spot", spot), ("drift", drift), ("volatility", volatility))
    start, trend, noise = (_taken(name, values, torch.float32, 1) for name, values in given)
    if not start.shape == trend.shape == noise.shape or bool((start <= 0).any() | (noise < 0).any()):
        msg = "spot (above 0), drift and volatility (not below 0) need one number per asset"
        raise ValueError(msg)
    if not 0 < steps <= _INT32_MAX or not 0 < paths <= _INT32_MAX or not 0 <= number <= _WORD:
        msg = f"{paths} paths of {steps} steps, number {number}"
        raise ValueError(msg)
    key = seed & _WORD, seed >> 32 & _WORD
    ends = torch.ops.bicep.price_paths(start, trend, noise, paths, steps, number, *key)
    return Paths(*(_given_back(spot, end) for end in ends))
