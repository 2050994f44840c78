"""Distribution of one MC-32 inference, by pytest-benchmark: 128-64, two heads, news half cached, one core.

Run: python -m pytest bench/bench_latency.py --benchmark-histogram=out/infer     (writes out/infer.svg)
Called from Python, as pytest-benchmark calls: about 0.6 us of each time is the call.  Rows of
bench/bench_infer.py are timed inside a kernel.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from reference.plans import SCALE, random_weights

from bicep.plan import ANALYTIC, INFERENCE, LADDER, OK, Plan, encode, infer, ladder, refresh_news

SETTINGS = [(1.0, 0), (0.5, 0), (0.2, 0), (0.1, 0), (0.2, 1), (1.0, ANALYTIC)]  # density, mode
NAMES = ("32 samples", "16 samples", "8 samples", "analytic")
ROUNDS = 5_000


@pytest.fixture(scope="module")
def plan():
    made = Plan.from_image(
        encode([random_weights(n) for n in range(3)], (0, 1, 2), SCALE, ladder()), symbols_max=4
    )
    embedding = (np.random.default_rng(2).standard_normal(768) / 28).astype(np.float32)
    refresh_news(made.state, 1, embedding.ctypes.data)
    return made


@pytest.fixture(autouse=True)
def _one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("density", "mode"), SETTINGS, ids=lambda value: f"{value:g}")
def test_one_inference(benchmark, plan, density, mode):
    features, out = np.random.default_rng(1).standard_normal(32), np.zeros(1, INFERENCE.dtype)
    arguments = plan.state, 0, features.ctypes.data, 1, 7, out.ctypes.data
    plan.set_rung(LADDER.index(density), mode)
    benchmark.group = NAMES[mode]
    benchmark.extra_info["density"] = density
    assert benchmark.pedantic(infer, arguments, rounds=ROUNDS, warmup_rounds=200) == OK
    assert np.isfinite(out["mean"][0])
    assert out["epistemic"][0] > 0
