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

import math
from collections.abc import Callable
from typing import Any, Final, cast

from llvmlite import ir
from numba.core import cgutils

from bicep.masks import DROP_PROBABILITY
from bicep.plan.layout import GROUP, LOG_VARIANCE_MAX, LOG_VARIANCE_MIN
from ringbuf.memory import I64, lowered

LANES: Final = 16
_F32: Final = ir.FloatType()
_I32: Final = ir.IntType(32)
_VECTOR: Final = ir.VectorType(_F32, LANES)
_WORDS: Final = ir.VectorType(_I32, LANES)
_LINE: Final = 4 * LANES  # bytes of one vector

# exp(r) for |r| <= ln(2)/2: Chebyshev interpolation of degree 6, relative error 2.6e-9.
_EXP: Final = (
    0.0013941118959337473,
    0.008375134319067001,
    0.04166635125875473,
    0.16666415333747864,
    0.5,
    1.0,
    1.0,
)
_LN2_HIGH, _LN2_LOW = 0.693359375, -0.00021219444005471377
_EXP_MAX: Final = 87.0  # exp(87) = 6e37 is finite in float32

Values = list[Any]


def _splat(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * LANES)


def _number(value: float) -> Any:
    return _splat(_VECTOR, value)


_ZERO: Final = _number(0.0)


def _broadcast(b: Any, value: Any) -> Any:
    vector = b.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_I32, 0))
    return b.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), _splat(_WORDS, 0))


def _call(b: Any, name: str, *args: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(args))
    return b.call(cast("Any", cgutils).get_or_insert_function(b.module, kind, f"llvm.{name}.v16f32"), args)


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(b, "fma", x, y, z)


def _at(b: Any, base: Any, index: Any, scale: int, offset: int = 0) -> Any:
    step = b.mul(index, ir.Constant(I64, scale)) if scale != 1 else index
    return b.add(base, b.add(step, ir.Constant(I64, offset)) if offset else step)


def _plus(b: Any, base: Any, offset: int) -> Any:
    return b.add(base, ir.Constant(I64, offset)) if offset else base


def _load(b: Any, addr: Any, offset: int = 0) -> Any:
    return b.load(b.inttoptr(_plus(b, addr, offset), _VECTOR.as_pointer()), align=_LINE)


def _store(b: Any, value: Any, addr: Any, offset: int = 0) -> None:
    b.store(value, b.inttoptr(_plus(b, addr, offset), _VECTOR.as_pointer()), align=_LINE)


def _scalar(b: Any, addr: Any, offset: int = 0, kind: Any = _F32) -> Any:
    return b.load(b.inttoptr(_plus(b, addr, offset), kind.as_pointer()), align=4)


def _keep(b: Any, word: Any, half: int, value: Any) -> Any:
    """Return value where the mask word's bit is set, else 0; half 0 = samples 0..15, 1 = 16..31."""
    bits = b.lshr(word, ir.Constant(_I32, LANES)) if half else word
    flags = b.bitcast(b.trunc(bits, ir.IntType(LANES)), ir.VectorType(ir.IntType(1), LANES))
    return b.select(flags, value, _ZERO)


def _clamp(b: Any, x: Any, low: float, high: float) -> Any:
    """Clamp x; a NaN becomes a number here, so callers let NaN through by another path."""
    x = b.select(b.fcmp_ordered(">", x, _number(low)), x, _number(low))
    return b.select(b.fcmp_ordered("<", x, _number(high)), x, _number(high))


def _exp(b: Any, x: Any) -> Any:
    """Return exp of a vector within +-_EXP_MAX: 2^k times a polynomial of the rest."""
    k = _call(b, "rint", b.fmul(x, _number(math.log2(math.e))))
    rest = _fma(b, k, _number(-_LN2_LOW), _fma(b, k, _number(-_LN2_HIGH), x))
    power = _number(_EXP[0])
    for coefficient in _EXP[1:]:
        power = _fma(b, power, rest, _number(coefficient))
    shift = b.shl(b.fptosi(k, _WORDS), _splat(_WORDS, 23))
    return b.bitcast(b.add(b.bitcast(power, _WORDS), shift), _VECTOR)


def _gelu(b: Any, x: Any) -> Any:
    cubic = _fma(b, b.fmul(x, x), _number(0.044715), _number(1.0))
    twice = b.fmul(b.fmul(x, cubic), _number(-2 * math.sqrt(2 / math.pi)))
    return b.fdiv(x, b.fadd(_number(1.0), _exp(b, _clamp(b, twice, -_EXP_MAX, _EXP_MAX))))


def _loop(b: Any, count: Any, values: Values, body: Callable[[Any, Values], Values]) -> Values:
    """Emit `for i in range(count): values = body(i, values)`; return the values after it."""
    before = b.block
    head, inside, after = (b.append_basic_block(name) for name in ("head", "inside", "after"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    carried = [b.phi(value.type) for value in values]
    b.cbranch(b.icmp_signed("<", index, count), inside, after)
    b.position_at_end(inside)
    produced = body(index, carried)
    following = b.add(index, ir.Constant(I64, 1))
    for phi, first, later in zip(
        [index, *carried], [ir.Constant(I64, 0), *values], [following, *produced], strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, b.block)
    b.branch(head)
    b.position_at_end(after)
    return carried


def _tile_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, start, tile, inputs, count = args
    sums = [_load(b, start, _LINE * v) for v in range(4)]

    def step(k: Any, sums: Values) -> Values:
        x = _broadcast(b, _scalar(b, _at(b, inputs, k, 4)))
        row = _at(b, tile, k, 4 * _LINE)
        return [_fma(b, _load(b, row, _LINE * v), x, total) for v, total in enumerate(sums)]

    for v, total in enumerate(_loop(b, count, sums, step)):
        _store(b, total, target, _LINE * v)


@lowered(_tile_codegen)
def tile_product(target: int, start: int, tile: int, inputs: int, count: int) -> None:
    """Write start + tile * inputs for 64 units: target, start float32[64]; tile float32[count][64]."""


def _spread_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, masks, count, target = args
    scale = _number(1 / (1 - DROP_PROBABILITY))

    def activate(i: Any, _: Values) -> Values:
        at = _at(b, hidden, i, _LINE)
        _store(b, b.fmul(_gelu(b, _load(b, at)), scale), at)
        return []

    def spread(unit: Any, _: Values) -> Values:
        value = _broadcast(b, _scalar(b, _at(b, hidden, unit, 4)))
        word = _scalar(b, _at(b, masks, unit, 4), kind=_I32)
        at = _at(b, target, unit, 2 * _LINE)
        for half in (0, 1):
            _store(b, _keep(b, word, half, value), at, _LINE * half)
        return []

    _loop(b, b.lshr(count, ir.Constant(I64, 4)), [], activate)
    _loop(b, count, [], spread)


@lowered(_spread_codegen)
def spread_samples(hidden: int, masks: int, count: int, target: int) -> None:
    """Activate `hidden` float32[count] in place, then drop out: target float32[count][32 samples]."""


def _group_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    spread, count, group, masks, samples = args
    tail = _at(b, group, count, 4 * GROUP)
    biases = [_broadcast(b, _scalar(b, tail, 4 * unit)) for unit in range(GROUP)]
    sums = [bias for bias in biases for _ in (0, 1)]

    def step(j: Any, sums: Values) -> Values:
        row, at = _at(b, group, j, 4 * GROUP), _at(b, spread, j, 2 * _LINE)
        inputs = [_load(b, at), _load(b, at, _LINE)]
        weights = [_broadcast(b, _scalar(b, row, 4 * unit)) for unit in range(GROUP)]
        return [_fma(b, weights[n // 2], inputs[n % 2], total) for n, total in enumerate(sums)]

    sums = _loop(b, count, sums, step)
    scale = _number(1 / (1 - DROP_PROBABILITY))
    heads = [_load(b, samples, _LINE * v) for v in range(4)]  # mean 0..15, 16..31, log variance the same
    for unit in range(GROUP):
        word = _scalar(b, masks, 4 * unit, kind=_I32)
        weights = [_broadcast(b, _scalar(b, tail, 4 * (GROUP * head + unit))) for head in (1, 2)]
        for half in (0, 1):
            value = _keep(b, word, half, b.fmul(_gelu(b, sums[2 * unit + half]), scale))
            for head in (0, 1):
                heads[2 * head + half] = _fma(b, value, weights[head], heads[2 * head + half])
    for v, total in enumerate(heads):
        _store(b, total, samples, _LINE * v)


@lowered(_group_codegen)
def group_outputs(spread: int, count: int, group: int, masks: int, samples: int) -> None:
    """Add eight units of the second layer to the two heads of all samples.

    spread: float32[count][32]; group: weights float32[count][8] and their tail; masks: uint32[8];
    samples: float32[2][32], the heads' sums so far.
    """


def _finish_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    (samples,) = args
    for half in (2, 3):
        raw = _load(b, samples, _LINE * half)
        variance = _exp(b, _clamp(b, raw, LOG_VARIANCE_MIN, LOG_VARIANCE_MAX))
        numeric = b.fcmp_ordered("ord", raw, raw)
        _store(b, b.select(numeric, variance, raw), samples, _LINE * half)


@lowered(_finish_codegen)
def to_variances(samples: int) -> None:
    """Turn the log-variance half of samples float32[2][32] into variances; a NaN stays one."""
