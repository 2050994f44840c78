"""Measure one inference on this machine: in a tight loop, and after the caches have been swept.

A tight loop flatters everyone: between two ticks a real agent touches books and features.  So the same
inference is also timed with a buffer swept before each: 1 MiB drives the weights out of the first two
cache levels here, 32 MiB out of all of them.  Weights are random, which changes no instruction; the
answers are compared, bit for bit, with single calls.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bicep.plan import EXPERTS, INFERENCE, OK, Plan, Weights, encode, infer, refresh_news
from ringbuf.atomics import cycles
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import CACHE_LINE

OUT_SIZE: Final = INFERENCE.size
SWEEPS: Final = {"tight": 0, "l2_cold": 1 << 20, "dram_cold": 32 << 20}  # bytes swept before each inference
_SYMBOL: Final = 1
_CALIBRATION_S: Final = 0.02
_CALIBRATIONS: Final = 9


class ProbeError(Exception):
    """The measured kernel gave a wrong answer."""


@dataclass(slots=True, frozen=True)
class Timing:
    """Microseconds of one inference under one sweep."""

    p50_us: float
    p99_us: float
    count: int


@kernel
def _timed(plan: int, features: int, out: int, spans: int, count: int, sweep: int, swept: int) -> int:
    """Infer `count` times; write each time in cycles to spans, the last answer per expert to out."""
    answered, touched = 0, 0
    for n in range(count):
        for at in range(0, swept, CACHE_LINE):
            touched += load_i64(sweep + at)
        before = cycles()
        answered += infer(plan, n % EXPERTS, features, _SYMBOL, n, out + n % EXPERTS * OUT_SIZE) == OK
        store_i64(spans + 8 * n, cycles() - before)
    return answered + (touched != 0)  # the buffer holds zeros


@kernel
def _cycles_now() -> int:
    return cycles()


def random_weights(
    seed: int, hidden: tuple[int, int] = (128, 64), n_tech: int = 32, n_news: int = 768
) -> Weights:
    """Return weights of a plausible size that mean nothing; for measuring only."""
    draw = np.random.default_rng(seed).standard_normal
    one, two = hidden
    shapes: list[tuple[int, ...]] = [
        (one, n_tech),
        (one, n_news),
        (one,),
        (two, one),
        (two,),
        (two,),
        (two,),
        (2,),
    ]
    return Weights(*((draw(shape) / np.sqrt(shape[-1])).astype(np.float32) for shape in shapes))


def _cycles_per_us() -> float:
    """Measure the counter's rate; the median, as a try that loses its core between two readings is wrong."""
    _cycles_now()  # compiled before the clock starts
    rates = []
    for _ in range(_CALIBRATIONS):
        start_ns, start = time.perf_counter_ns(), _cycles_now()
        time.sleep(_CALIBRATION_S / _CALIBRATIONS)
        rates.append((_cycles_now() - start) / (time.perf_counter_ns() - start_ns) * 1e3)
    return float(np.median(rates))


def _check(plan: Plan, features: Any, out: Any, count: int) -> None:
    single = np.zeros(1, INFERENCE.dtype)
    for n in range(count - EXPERTS, count):
        infer(plan.state, n % EXPERTS, features.ctypes.data, _SYMBOL, n, single.ctypes.data)
        if single[0].tobytes() != out[n % EXPERTS].tobytes() or single["status"][0] != OK:
            msg = f"inference {n} of the timed loop differs from a single call"
            raise ProbeError(msg)


def measure(count: int = 2_000, hidden: tuple[int, int] = (128, 64)) -> dict[str, Timing]:
    """Return the time of one MC-32 inference under each sweep of SWEEPS; about half a second.

    Raises ProbeError when an answer is wrong.
    """
    plan = Plan.from_image(
        encode([random_weights(n, hidden) for n in range(EXPERTS)], (0, 1, 2), 1e-3), symbols_max=4
    )
    draw = np.random.default_rng(0).standard_normal
    features, embedding = draw(32), (draw(768) / 28).astype(np.float32)
    refresh_news(plan.state, _SYMBOL, embedding.ctypes.data)
    out, spans = np.zeros(EXPERTS, INFERENCE.dtype), np.zeros(count, np.int64)
    sweep = np.zeros(max(SWEEPS.values()), np.uint8)
    _timed(
        plan.state, features.ctypes.data, out.ctypes.data, spans.ctypes.data, EXPERTS, sweep.ctypes.data, 64
    )
    scale, timings = _cycles_per_us(), {}
    for name, swept in SWEEPS.items():
        runs = count if swept <= 1 << 20 else max(count // 10, EXPERTS)
        answered = _timed(
            plan.state,
            features.ctypes.data,
            out.ctypes.data,
            spans.ctypes.data,
            runs,
            sweep.ctypes.data,
            swept,
        )
        if answered != runs:
            msg = f"{answered} of {runs} inferences were answered"
            raise ProbeError(msg)
        _check(plan, features, out, runs)
        p50, p99 = np.percentile(spans[:runs] / scale, [50, 99])
        timings[name] = Timing(float(p50), float(p99), runs)
    return timings


def rows(count: int = 2_000) -> dict[str, float]:
    """Return the rows of `contrafusion bench`: infer_mc32_us is the median in a tight loop."""
    timings = measure(count)
    result = {"infer_mc32_us": timings["tight"].p50_us, "infer_mc32_us_p99": timings["tight"].p99_us}
    for name in ("l2_cold", "dram_cold"):
        result[f"infer_mc32_{name}_us"] = timings[name].p50_us
    return result
