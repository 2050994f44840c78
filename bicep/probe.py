"""Measure inferences on this machine, rung by rung: in a tight loop, and after the caches were emptied.

A tight loop flatters everyone: between two ticks a real agent touches books and features.  So the same
inference is also timed after sweeping a buffer of twice the second-level cache, and after flushing every
line of the plan down to memory.  Weights are random, which changes no instruction; the answers are
compared, bit for bit, with single calls.
"""

from __future__ import annotations

import itertools
import pathlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from bicep.plan import (
    EXPERTS,
    INFERENCE,
    LADDER,
    MC_32,
    MODE_SAMPLES,
    OK,
    Plan,
    Weights,
    encode,
    infer,
    ladder,
    refresh_expert,
    refresh_news,
)
from bicep.plan.layout import PLAN
from bicep.plan.pack import check_image
from ringbuf.atomics import cycles
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, lowered, store_i64
from ringbuf.records import CACHE_LINE
from ringbuf.segment import Segment

OUT_SIZE: Final = INFERENCE.size
_SYMBOL: Final = 1
_SYMBOLS: Final = 4
_CALIBRATION_S: Final = 0.02
_CALIBRATIONS: Final = 9
_BATCHES: Final = 5  # of a tight loop: the best median counts, a neighbour cannot make code faster
_COLD_COUNT: Final = 200
_IS_X86: Final = platform.machine() in {"x86_64", "AMD64"}


class ProbeError(Exception):
    """The measured kernel gave a wrong answer."""


@dataclass(slots=True, frozen=True)
class Timing:
    """Microseconds of one inference under one sweep."""

    p50_us: float
    p99_us: float
    count: int


@dataclass(slots=True, frozen=True)
class Row:
    """One line of the table of `measure_ladder`."""

    density: float
    samples: int  # 0 = analytic
    sweep: str
    cached: bool  # the news half of the first layer was cached, or computed with each inference
    timing: Timing


def _second_level_cache() -> int:
    """Return the bytes of this machine's second-level cache; 1 MiB where it cannot be read."""
    for folder in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
        except OSError:
            continue
        if level == "2" and size.endswith("K"):
            return int(size[:-1]) << 10
    return 1 << 20


# Bytes swept before each inference.  `dram_cold` also flushes the plan: the last level may hold any sweep.
SWEEPS: Final = {"tight": 0, "l2_cold": 2 * _second_level_cache(), "dram_cold": 32 << 20}


def _flush(_ctx: Any, builder: Any, args: list[Any]) -> None:
    if not _IS_X86:
        return
    pointer = ir.IntType(8).as_pointer()
    known = builder.module.globals.get("llvm.x86.sse2.clflush")
    kind = ir.FunctionType(ir.VoidType(), [pointer])
    flush = known if known is not None else ir.Function(builder.module, kind, "llvm.x86.sse2.clflush")
    builder.call(flush, [builder.inttoptr(args[0], pointer)])


@lowered(_flush)
def flush_line(addr: int) -> None:
    """Drop a line from all caches, where the processor can."""


@kernel
def empty_caches(sweep: int, swept: int, flushed: int, size: int) -> int:
    """Read `swept` bytes at sweep and flush `size` bytes at flushed; return the sum of what was read."""
    total = 0
    for at in range(0, swept, CACHE_LINE):
        total += load_i64(sweep + at)
    for at in range(0, size, CACHE_LINE):
        flush_line(flushed + at)
    return total


@kernel
def _timed(plan: int, inputs: int, out: int, spans: int, count: int, caches: int) -> int:
    """Infer `count` times; write each time in cycles to spans, the last answer per expert to out.

    inputs: addresses of the features and of an embedding, 0 = its half is cached; caches: arguments of
    empty_caches.  Returns how many were answered.
    """
    answered, touched = 0, 0
    features, embedding = load_i64(inputs), load_i64(inputs + 8)
    for n in range(count):
        touched += empty_caches(
            load_i64(caches), load_i64(caches + 8), load_i64(caches + 16), load_i64(caches + 24)
        )
        before = cycles()
        if embedding != 0:
            refresh_expert(plan, n % EXPERTS, _SYMBOL, embedding)
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
        (one, n_tech), (one, n_news), (one,), (two, one), (two,), (two,), (two,), (2,),
    ]  # fmt: skip
    return Weights(*((draw(shape) / np.sqrt(shape[-1])).astype(np.float32) for shape in shapes))


def cycles_per_us() -> float:
    """Measure the counter's rate; the median, as a try that loses its core between two readings is wrong."""
    _cycles_now()  # compiled before the clock starts
    rates = []
    for _ in range(_CALIBRATIONS):
        start_ns, start = time.perf_counter_ns(), _cycles_now()
        time.sleep(_CALIBRATION_S / _CALIBRATIONS)
        rates.append((_cycles_now() - start) / (time.perf_counter_ns() - start_ns) * 1e3)
    return float(np.median(rates))


class Probe:
    """A plan of its own, with inputs and buffers: times it on any rung, mode and cache state."""

    def __init__(self, image: bytes) -> None:
        segment = Segment.anonymous(len(image) + (4 << 20))
        self.plan = Plan.from_image(image, segment, _SYMBOLS)
        areas = segment.areas.values()
        self._whole = min(at for at, _ in areas), max(at + size for at, size in areas)
        draw = np.random.default_rng(0).standard_normal
        record = segment.array("plan", PLAN)[0]
        self.features = draw(int(record["n_tech"]))
        self.embedding = (draw(int(record["n_news"])) / 28).astype(np.float32)
        refresh_news(self.plan.state, _SYMBOL, self.embedding.ctypes.data)
        self._out = np.zeros(EXPERTS, INFERENCE.dtype)
        self._sweep = np.zeros(max(SWEEPS.values()), np.uint8)
        self._rate = cycles_per_us()

    def time(self, count: int, sweep: str = "tight", *, cached: bool = True) -> Timing:
        """Time `count` inferences on the plan's rung and mode.  Raises ProbeError for a wrong answer."""
        inputs = np.array([self.features.ctypes.data, 0 if cached else self.embedding.ctypes.data])
        begin, end = self._whole
        flushed = end - begin if sweep == "dram_cold" else 0
        caches = np.array([self._sweep.ctypes.data, SWEEPS[sweep], begin, flushed])
        spans = np.zeros(count, np.int64)
        arguments = inputs.ctypes.data, self._out.ctypes.data, spans.ctypes.data, count, caches.ctypes.data
        best: NDArray[np.int64] | None = None
        for _ in range(_BATCHES if sweep == "tight" else 1):
            answered = _timed(self.plan.state, *arguments)
            if answered != count:
                msg = f"{answered} of {count} inferences were answered"
                raise ProbeError(msg)
            if best is None or np.median(spans) < np.median(best):
                best = spans.copy()
        self._check(count)
        p50, p99 = np.percentile(cast("Any", best) / self._rate, [50, 99])
        return Timing(float(p50), float(p99), count)

    def _check(self, count: int) -> None:
        single = np.zeros(1, INFERENCE.dtype)
        for n in range(count - EXPERTS, count):
            infer(self.plan.state, n % EXPERTS, self.features.ctypes.data, _SYMBOL, n, single.ctypes.data)
            mine, theirs = single[0], self._out[n % EXPERTS]
            same = all(mine[field] == theirs[field] for field in ("mean", "epistemic", "aleatoric", "rung"))
            if not same or mine["status"] != OK:
                msg = f"inference {n} of the timed loop differs from a single call"
                raise ProbeError(msg)


def random_image(hidden: tuple[int, int] = (128, 64), densities: Sequence[float] = LADDER) -> bytes:
    """Return a plan of three experts of random weights."""
    experts = [random_weights(n, hidden) for n in range(EXPERTS)]
    return encode(experts, range(EXPERTS), 1e-3, ladder(densities))


def measure(count: int = 2_000, hidden: tuple[int, int] = (128, 64)) -> dict[str, Timing]:
    """Return the time of one dense MC-32 inference under each sweep of SWEEPS; about half a second.

    Raises ProbeError when an answer is wrong.
    """
    probe = Probe(random_image(hidden, (1.0,)))
    return {name: probe.time(count if not size else _COLD_COUNT, name) for name, size in SWEEPS.items()}


def measure_ladder(image: bytes, count: int = 2_000, sweeps: Sequence[str] = tuple(SWEEPS)) -> Iterator[Row]:
    """Time every rung: each mode in a tight loop; 32 samples also cold, and without cached news."""
    probe = Probe(image)
    densities = check_image(image)[1]["density"][: probe.plan.rungs].tolist()
    for mode, cached, (rung, density) in itertools.product(
        range(len(MODE_SAMPLES)), (True, False), enumerate(densities)
    ):
        if not cached and mode != MC_32:
            continue
        probe.plan.set_rung(rung, mode)
        for sweep in sweeps if mode == MC_32 else ("tight",):
            timing = probe.time(count if sweep == "tight" else _COLD_COUNT, sweep, cached=cached)
            yield Row(density, MODE_SAMPLES[mode], sweep, cached, timing)


def ladder_costs(image: bytes, count: int = 500) -> NDArray[np.float64]:
    """Return the microseconds of an inference [rung, mode] of a plan on this machine, in a tight loop."""
    probe = Probe(image)
    costs = np.zeros((probe.plan.rungs, len(MODE_SAMPLES)))
    for rung, mode in np.ndindex(costs.shape):
        probe.plan.set_rung(rung, mode)
        costs[rung, mode] = probe.time(count).p50_us
    return costs


def affine(densities: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """Return a, b and the largest residual of the fit cost = a + b * density."""
    slope, start = np.polyfit(densities, costs, 1)
    residual = np.abs(np.asarray(costs) - start - slope * np.asarray(densities)).max()
    return float(start), float(slope), float(residual)


def rows(count: int = 2_000) -> dict[str, float]:
    """Return the rows of `contrafusion bench`: infer_mc32_us is the dense median in a tight loop."""
    timings = measure(count)
    result = {"infer_mc32_us": timings["tight"].p50_us, "infer_mc32_us_p99": timings["tight"].p99_us}
    for name in ("l2_cold", "dram_cold"):
        result[f"infer_mc32_{name}_us"] = timings[name].p50_us
    sparse = Probe(random_image(densities=(1.0, 0.2)))
    sparse.plan.set_rung(1)
    result["infer_mc32_pruned80_us"] = sparse.time(count).p50_us
    return result
