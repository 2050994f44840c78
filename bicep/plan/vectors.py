"""The plan's inner loops as instructions: a Monte-Carlo sample is a SIMD lane.

32 samples are two vectors of 16 floats.  A weight is broadcast, its unit's 32 values are two loads, and
both vectors take one fused multiply-add; eight units of the second layer run side by side, so sixteen
accumulators stay in registers.  Plain Numba loops keep them in memory, which is ten times slower.
The types are legal on any CPU (LLVM splits them for AVX2 or NEON) and every sum has one fixed order, so
the bits are the same wherever there is a fused multiply-add.

GELU is the tanh form, written as x / (1 + exp(-2u)) with u = sqrt(2/pi)*(x + 0.044715*x^3): the same
function as torch's gelu(approximate="tanh"), with one exp and no cancellation in the negative tail.
Nothing here checks anything: addresses and sizes come from a plan that was checked when it was loaded.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from bicep import simd
from bicep.masks import DROP_PROBABILITY
from bicep.plan.layout import GROUP, LOG_VARIANCE_MAX, LOG_VARIANCE_MIN
from ringbuf.memory import I64, lowered


def _keep(b: Any, word: Any, half: int, value: Any) -> Any:
    """Return value where the mask word's bit is set, else 0; half 0 = samples 0..15, 1 = 16..31."""
    bits = b.lshr(word, ir.Constant(simd.I32, simd.LANES)) if half else word
    flags = b.bitcast(b.trunc(bits, ir.IntType(simd.LANES)), ir.VectorType(ir.IntType(1), simd.LANES))
    return b.select(flags, value, simd.ZERO)


def _tile_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, start, tile, inputs, count = args
    sums = [simd.load(b, start, simd.LINE * v) for v in range(4)]

    def step(k: Any, sums: simd.Values) -> simd.Values:
        x = simd.broadcast(b, simd.scalar(b, simd.place(b, inputs, k, 4)))
        row = simd.place(b, tile, k, 4 * simd.LINE)
        return [simd.fma(b, simd.load(b, row, simd.LINE * v), x, total) for v, total in enumerate(sums)]

    for v, total in enumerate(simd.loop(b, count, sums, step)):
        simd.store(b, total, target, simd.LINE * v)


@lowered(_tile_codegen)
def tile_product(target: int, start: int, tile: int, inputs: int, count: int) -> None:
    """Write start + tile * inputs for 64 units: target, start float32[64]; tile float32[count][64]."""


def _spread_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, masks, count, target = args
    scale = simd.number(1 / (1 - DROP_PROBABILITY))

    def activate(i: Any, _: simd.Values) -> simd.Values:
        at = simd.place(b, hidden, i, simd.LINE)
        simd.store(b, b.fmul(simd.gelu(b, simd.load(b, at)), scale), at)
        return []

    def spread(unit: Any, _: simd.Values) -> simd.Values:
        value = simd.broadcast(b, simd.scalar(b, simd.place(b, hidden, unit, 4)))
        word = simd.scalar(b, simd.place(b, masks, unit, 4), kind=simd.I32)
        at = simd.place(b, target, unit, 2 * simd.LINE)
        for half in (0, 1):
            simd.store(b, _keep(b, word, half, value), at, simd.LINE * half)
        return []

    simd.loop(b, b.lshr(count, ir.Constant(I64, 4)), [], activate)
    simd.loop(b, count, [], spread)


@lowered(_spread_codegen)
def spread_samples(hidden: int, masks: int, count: int, target: int) -> None:
    """Activate `hidden` float32[count] in place, then drop out: target float32[count][32 samples]."""


def _group_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    spread, count, group, masks, samples = args
    tail = simd.place(b, group, count, 4 * GROUP)
    biases = [simd.broadcast(b, simd.scalar(b, tail, 4 * unit)) for unit in range(GROUP)]
    sums = [bias for bias in biases for _ in (0, 1)]

    def step(j: Any, sums: simd.Values) -> simd.Values:
        row, at = simd.place(b, group, j, 4 * GROUP), simd.place(b, spread, j, 2 * simd.LINE)
        inputs = [simd.load(b, at), simd.load(b, at, simd.LINE)]
        weights = [simd.broadcast(b, simd.scalar(b, row, 4 * unit)) for unit in range(GROUP)]
        return [simd.fma(b, weights[n // 2], inputs[n % 2], total) for n, total in enumerate(sums)]

    sums = simd.loop(b, count, sums, step)
    scale = simd.number(1 / (1 - DROP_PROBABILITY))
    heads = [
        simd.load(b, samples, simd.LINE * v) for v in range(4)
    ]  # mean 0..15, 16..31, log variance the same
    for unit in range(GROUP):
        word = simd.scalar(b, masks, 4 * unit, kind=simd.I32)
        weights = [simd.broadcast(b, simd.scalar(b, tail, 4 * (GROUP * head + unit))) for head in (1, 2)]
        for half in (0, 1):
            value = _keep(b, word, half, b.fmul(simd.gelu(b, sums[2 * unit + half]), scale))
            for head in (0, 1):
                heads[2 * head + half] = simd.fma(b, value, weights[head], heads[2 * head + half])
    for v, total in enumerate(heads):
        simd.store(b, total, samples, simd.LINE * v)


@lowered(_group_codegen)
def group_outputs(spread: int, count: int, group: int, masks: int, samples: int) -> None:
    """Add eight units of the second layer to the two heads of all samples.

    spread: float32[count][32]; group: weights float32[count][8] and their tail; masks: uint32[8];
    samples: float32[2][32], the heads' sums so far.
    """


def _finish_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    (samples,) = args
    for half in (2, 3):
        raw = simd.load(b, samples, simd.LINE * half)
        variance = simd.exp(b, simd.clamp(b, raw, LOG_VARIANCE_MIN, LOG_VARIANCE_MAX))
        numeric = b.fcmp_ordered("ord", raw, raw)
        simd.store(b, b.select(numeric, variance, raw), samples, simd.LINE * half)


@lowered(_finish_codegen)
def to_variances(samples: int) -> None:
    """Turn the log-variance half of samples float32[2][32] into variances; a NaN stays one."""
