"""Many instruments in one call against one call for each, and against the same in NumPy; one thread.

Run: python -m pytest bench/bench_series.py -s.  The answers are compared before anything is timed.  The bar:
one call for 128 instruments is at least 5 times as fast as 128 calls.
"""

import time

import numpy as np
import torch

from bench.results import append_row
from bicep import series
from bicep.cuda.twins import TWINS
from bicep.kernels import REGISTRY

BARS, INSTRUMENTS, ROUNDS, BAR = 390, 128, 15, 5  # a day of minutes


def _best(call, rounds=ROUNDS):
    call()
    spans = []
    for _ in range(rounds):
        began = time.perf_counter_ns()
        call()
        spans.append((time.perf_counter_ns() - began) / 1e3)
    return np.min(spans), np.percentile(spans, 99)


def _row(name, fast, slow, what):
    ratio = slow[0] / fast[0]
    print(f"{name:28s} {fast[0]:9.0f} us, {what} {slow[0]:9.0f} us, {ratio:6.1f}x")
    append_row(f"series_{name}_us", ROUNDS, *fast, ratio)
    return ratio


def _prices():
    draw = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(1e-3 * draw.standard_normal((BARS, INSTRUMENTS)), axis=0))
    return close, close + draw.random(close.shape), close - draw.random(close.shape)


def _twin(close, high, low):
    out = np.zeros((5, *close.shape))
    bars, instruments = close.shape
    TWINS["indicators"](close=close, high=high, low=low, bars=bars, instruments=instruments, out=out)
    return out


def test_many_instruments_in_one_call(capsys):
    torch.set_num_threads(1)
    prices = _prices()
    columns = [[np.ascontiguousarray(part[:, n]) for part in prices] for n in range(INSTRUMENTS)]
    together, apart = series.indicators(*prices), [series.indicators(*column) for column in columns]
    for plane, ours in enumerate(together):
        np.testing.assert_array_equal(ours, np.stack([one[plane] for one in apart], axis=1))
    np.testing.assert_allclose(np.stack(together), _twin(*prices), rtol=1e-12, atol=1e-12)
    pairs = [(0, n) for n in range(1, INSTRUMENTS)]
    halves = [list(pair) for pair in pairs]
    start = np.full(INSTRUMENTS, 100.0), np.zeros(INSTRUMENTS), np.full(INSTRUMENTS, 0.01)
    paths = {"steps": 64, "paths": 256}
    with capsys.disabled():
        print()
        one = _best(lambda: series.indicators(*prices))
        each = _best(lambda: [series.indicators(*column) for column in columns], 5)
        ratio = _row(f"indicators_{INSTRUMENTS}", one, each, f"{INSTRUMENTS} calls")
        if ratio < BAR:
            print(f"     misses its bar of {BAR}x")
        _row("indicators_numpy", one, _best(lambda: _twin(*prices), 3), "NumPy, one call")
        one = _best(lambda: series.rolling_correlation(prices[0], 20, pairs))
        each = _best(lambda: [series.rolling_correlation(prices[0][:, half], 20) for half in halves], 3)
        _row(f"correlation_{len(pairs)}_pairs", one, each, f"{len(pairs)} calls")
        one = _best(lambda: series.price_paths(*start, **paths), 5)
        given = [torch.tensor(part, dtype=torch.float32) for part in start]
        plain_paths = REGISTRY.ops["price_paths"].body
        plain = _best(lambda: plain_paths(*given, paths["paths"], paths["steps"], 0, 0, 0), 1)
        _row(f"paths_{INSTRUMENTS}x256x64", one, plain, "NumPy and torch")
