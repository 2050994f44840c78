"""Spectra of price series: cuFFT for arrays on a GPU, NumPy's FFT for arrays on the host, same numbers.

The library is taken from the array: CuPy has cuFFT behind it.  Series are [time][instrument].
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

BANDS: Final = ((0.0, 0.05), (0.05, 0.15), (0.15, 0.5))  # cycles per bar: slow, medium, fast


def library_of(array: Any) -> Any:
    """Return the module whose functions work on this array: cupy for CuPy's, else numpy."""
    if type(array).__module__.split(".", 1)[0] == "cupy":
        import cupy  # noqa: PLC0415  (only where its arrays are)

        return cupy
    return np


def power(series: Any) -> Any:
    """Return the one-sided power spectrum [frequency][instrument] of each series.

    The mean is taken off and a Hann window laid over it, so a trend does not leak into every frequency; the
    sum over frequencies is the windowed series' sum of squares (Parseval).
    """
    xp = library_of(series)
    bars = series.shape[0]
    window = 0.5 - 0.5 * xp.cos(2 * np.pi * xp.arange(bars) / bars)
    values = (series - series.mean(0)) * window[:, None]
    squares = xp.abs(xp.fft.rfft(values, axis=0)) ** 2 / bars
    squares[1 : (bars + 1) // 2] *= 2  # all but the mean and the highest frequency stand for two
    return squares


def spectral_features(prices: Any) -> dict[str, Any]:
    """Return features of log returns, one number per instrument.

    share_0 .. share_2: share of the power in BANDS; period: bars of the strongest cycle; flatness: geometric
    over arithmetic mean of the power (1 = noise, 0 = one cycle).  A flat series has zeros.  prices
    [time][instrument], above 0.
    """
    xp = library_of(prices)
    spectrum = power(xp.diff(xp.log(prices), axis=0))[1:]
    bars = prices.shape[0] - 1
    frequency = xp.arange(1, len(spectrum) + 1) / bars
    total = spectrum.sum(0)
    live = total > 0
    safe = xp.where(live, total, 1.0)
    found = {
        f"share_{n}": spectrum[(frequency > low) & (frequency <= high)].sum(0) / safe
        for n, (low, high) in enumerate(BANDS)
    }
    found["period"] = xp.where(live, 1 / frequency[spectrum.argmax(0)], 0.0)
    floor = xp.maximum(spectrum, 1e-12 * safe / len(spectrum))
    found["flatness"] = xp.where(live, xp.exp(xp.log(floor).mean(0)) / safe * len(spectrum), 0.0)
    return found


def cross_correlation(one: Any, two: Any) -> Any:
    """Return the circular cross-correlation of two series [time]: entry k compares one[t + k] with two[t]."""
    xp = library_of(one)
    first, second = one - one.mean(), two - two.mean()
    scale = xp.sqrt((first**2).sum() * (second**2).sum())
    product = xp.fft.irfft(xp.fft.rfft(first) * xp.conj(xp.fft.rfft(second)), n=len(one))
    return product / xp.where(scale > 0, scale, 1.0)
