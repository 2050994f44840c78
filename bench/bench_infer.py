"""One MC-32 inference: every rung of the ladder against ONNX Runtime and torch, warm and cold, one core.

Run: python -m pytest bench/bench_infer.py -s.  All have the same weights and, where they take masks, the
same masks; the answers are compared before anything is timed.  Ours is timed inside a kernel, as the
strategy calls it, and from Python, as the others are.  Cold: before each call a buffer of twice the second
level is read (l2_cold), or one of 32 MiB (dram_cold); ours is then flushed to memory besides, so the ratios
of dram_cold favour the others.
"""

from __future__ import annotations

import os
import time
import warnings

import numpy as np
import pytest
import torch
from reference import plan as reference
from reference.plans import SCALE, random_weights

from bench.results import append_row
from bench.rivals import KEEP, onnx_session, torch_functions
from bicep import probe
from bicep.masks import bank_key, mask_bank
from bicep.plan import INFERENCE, LADDER, Plan, encode, infer, ladder, refresh_news
from bicep.plan.store import _digest

BATCHES, CALLS, COLD_CALLS = 5, 400, 100
SEQUENCE = 7
BARS = {"onnx": {1.0: 2, 0.2: 5}, "naive": {0.2: 30}}  # times as fast, tight loop, cached news on both sides


@pytest.fixture(autouse=True)
def _one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    torch.set_num_threads(1)
    yield
    os.sched_setaffinity(0, before)


def _question(image, weights):
    """Return a plan that was told the news, features, its answer, and the same question for the rivals."""
    plan, out = Plan.from_image(image, symbols_max=4), np.zeros(1, INFERENCE.dtype)
    features = np.random.default_rng(1).standard_normal(32)
    embedding = (np.random.default_rng(2).standard_normal(768) / 28).astype(np.float32)
    refresh_news(plan.state, 1, embedding.ctypes.data)
    infer(plan.state, 0, features.ctypes.data, 1, SEQUENCE, out.ctypes.data)
    words = mask_bank(bank_key(0, _digest(image)), 192)[out["mask_index"][0]]
    bits = (reference.keep_bits(words).T / KEEP).astype(np.float32)
    inputs = {
        "tech": features[None].astype(np.float32), "news": embedding[None],
        "half": (weights.news @ embedding + weights.bias_one)[None].astype(np.float32),
        "mask_one": np.ascontiguousarray(bits[:, :128]), "mask_two": np.ascontiguousarray(bits[:, 128:]),
    }  # fmt: skip
    return plan, features, out[0].copy(), inputs


def _time(call, sweep="tight"):
    """Return p50 and p99 of a call in us, in the best of some batches; cold ones have one."""
    buffer = np.zeros(max(probe.SWEEPS.values()), np.uint8)
    swept, best = probe.SWEEPS[sweep], None
    for _ in range(BATCHES if sweep == "tight" else 1):
        spans = []
        for n in range((CALLS if sweep == "tight" else COLD_CALLS) + 10):
            probe.empty_caches(buffer.ctypes.data, swept, 0, 0)
            began = time.perf_counter_ns()
            call()
            if n >= 10:
                spans.append((time.perf_counter_ns() - began) / 1e3)
        if best is None or np.median(spans) < np.median(best):
            best = spans
    return np.percentile(best, [50, 99])


def _compiled(functions):
    """Return the shared form through torch.compile, or None where no compiler works."""
    function, arguments = functions["function"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own parts
            compiled = torch.compile(function)
            compiled(*arguments)
    except Exception as error:  # noqa: BLE001 - inductor raises whatever its compiler did
        print(f"torch.compile does not work here: {type(error).__name__}")
        return None
    return lambda: compiled(*arguments)


def _rivals(weights, answer, inputs):
    """Return the times of the others by (name, sweep, cached), after comparing their answers."""
    times = {}
    for cached in (True, False):
        calls = torch_functions(weights, inputs, cached=cached)
        onnx = onnx_session(weights, inputs, cached=cached)
        onnx()
        named = {
            "onnx": onnx,
            "naive": calls["naive"],
            "shared": calls["shared"],
            "compile": _compiled(calls),
        }
        heads = {"onnx": onnx.heads(), "shared": calls["shared"]().numpy()}
        if named["compile"] is not None:
            heads["compile"] = named["compile"]().numpy()
        for theirs in heads.values():
            assert theirs[:, 0].mean() * SCALE == pytest.approx(answer["mean"], rel=1e-4)
            assert theirs[:, 0].var(ddof=1) * SCALE**2 == pytest.approx(answer["epistemic"], rel=1e-4)
            assert np.exp(theirs[:, 1]).mean() * SCALE**2 == pytest.approx(answer["aleatoric"], rel=1e-4)
        drawn = np.concatenate([calls["naive"]().numpy()[:, 0] for _ in range(200)])
        assert drawn.var() * SCALE**2 == pytest.approx(answer["epistemic"], rel=1.0)  # 32 samples: sd 26 %
        for name, call in named.items():
            for sweep in probe.SWEEPS if call is not None else ():
                times[name, sweep, cached] = _time(call, sweep)
    return times


def _from_python(plan, features, rung):
    out = np.zeros(1, INFERENCE.dtype)
    arguments = plan.state, 0, features.ctypes.data, 1, SEQUENCE, out.ctypes.data
    plan.set_rung(rung)
    return _time(lambda: infer(*arguments))[0]


def test_every_rung_against_the_others(capsys):
    weights = random_weights(10)
    image = encode([weights] * 3, (0, 0, 0), SCALE, ladder())  # one net, as the others have
    plan, features, answer, inputs = _question(image, weights)
    with torch.no_grad():
        times = _rivals(weights, answer, inputs)
        rows = list(probe.measure_ladder(image))
        again = _rivals(weights, answer, inputs)
    times = {key: min(pair, again[key], key=lambda spans: spans[0]) for key, pair in times.items()}
    with capsys.disabled():
        print()
        for (name, sweep, cached), (p50, p99) in times.items():
            state = "cached" if cached else "whole"
            print(f"{name:8} {sweep:9} {state:6} p50 {p50:7.1f} us, p99 {p99:7.1f}")
            append_row(f"infer_{name}_{sweep}_{state}_us", CALLS, p50, p99)
        _print_rungs(rows, times)
        for rung, density in enumerate(LADDER):
            print(f"plan {density:4} called from Python: p50 {_from_python(plan, features, rung):.2f} us")


def _print_rungs(rows, times):
    for row in rows:
        state, timing = "cached" if row.cached else "whole", row.timing
        name = f"{row.samples} samples" if row.samples else "analytic"
        others = {n: times[n, row.sweep, row.cached][0] / timing.p50_us for n in ("onnx", "naive")}
        print(
            f"plan {row.density:4} {name:10} {row.sweep:9} {state:6} p50 {timing.p50_us:6.2f} us, "
            f"p99 {timing.p99_us:6.2f}: {others['onnx']:.1f}x onnx, {others['naive']:.0f}x naive torch"
        )
        form = f"{row.samples or 'analytic'}_{row.density}_{row.sweep}_{state}"
        append_row(f"infer_mc{form}_us", timing.count, timing.p50_us, timing.p99_us, others["onnx"])
        if (row.samples, row.sweep, row.cached) == (32, "tight", True):
            for rival, bars in BARS.items():
                if row.density in bars and others[rival] < bars[row.density]:
                    print(f"     misses its bar of {bars[row.density]}x {rival}")
    for samples in (32, 16, 0):
        chosen = [r for r in rows if (r.samples, r.sweep, r.cached) == (samples, "tight", True)]
        sparse = [(r.density, r.timing.p50_us) for r in chosen if r.density < 1]
        start, slope, residual = probe.affine(*zip(*sparse, strict=True))
        print(
            f"{samples or 'analytic'}: {start:.2f} + {slope:.2f} * density us, residual {residual:.2f};"
            f" dense {chosen[0].timing.p50_us:.2f}"
        )
