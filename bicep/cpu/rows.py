"""What is done to a row of floats: mask, activate, drop out, add; and transposes of 16 x 16.

Rows of others have any alignment and length and are never touched behind their end.  Rows of our own
working memory are whole vectors; what lies behind the end of the contents is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from bicep import simd
from ringbuf.memory import I64, lowered

NONE, GELU, RELU, SILU = 0, 1, 2, 3  # activations; GELU is the tanh form

_ONE: Final = ir.Constant(simd.WORDS, [ir.Constant(simd.I32, 1)] * simd.LANES)
_SLOPE: Final = 2 * math.sqrt(2 / math.pi)

Vectors = Callable[[Any, Any], Any]
Finish = Callable[[int, int, int, int, int, int, float], None]


def _each(b: Any, count: Any, body: Callable[[Any, Any], None]) -> None:
    """Emit body(byte offset, flags) for each vector of a row of `count` floats, the last one in part."""
    vectors = b.lshr(b.add(count, ir.Constant(I64, simd.LANES - 1)), ir.Constant(I64, 4))

    def step(n: Any, _: simd.Values) -> simd.Values:
        first = b.mul(n, ir.Constant(I64, simd.LANES))
        body(b.mul(n, ir.Constant(I64, simd.LINE)), simd.flags(b, b.sub(count, first)))
        return []

    simd.loop(b, vectors, [], step)


def _vectors_of(b: Any, words: Any, offset: Any, lanes: Any) -> Any:
    return simd.load_part(b, b.add(words, offset), lanes, simd.WORDS)


# ---- masks and packing


def _masked_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, source, mask, count = args

    def body(offset: Any, lanes: Any) -> None:
        place = b.add(mask, b.lshr(offset, ir.Constant(I64, 2)))
        kept = simd.kept(b, place, lanes)
        value = simd.load_part(b, b.add(source, offset), kept)
        simd.store(b, value, b.add(target, offset))

    _each(b, count, body)


@lowered(_masked_codegen)
def masked_row(target: int, source: int, mask: int, count: int) -> None:
    """Copy a row, 0 where the mask's byte is 0, to whole vectors."""


def _masked_out_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, source, mask, count = args

    def body(offset: Any, lanes: Any) -> None:
        kept = simd.kept(b, b.add(mask, b.lshr(offset, ir.Constant(I64, 2))), lanes)
        simd.store_part(b, simd.load_part(b, b.add(source, offset), kept), b.add(target, offset), lanes)

    _each(b, count, body)


@lowered(_masked_out_codegen)
def masked_row_out(target: int, source: int, mask: int, count: int) -> None:
    """Copy a row, 0 where the mask's byte is 0, to a row of others."""


def _copy_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, source, count = args
    _each(
        b,
        count,
        lambda offset, lanes: simd.store(
            b, simd.load_part(b, b.add(source, offset), lanes), b.add(target, offset)
        ),
    )


@lowered(_copy_codegen)
def copy_row(target: int, source: int, count: int) -> None:
    """Copy a row of others to whole vectors."""


def _copy_out_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, source, count = args

    def body(offset: Any, lanes: Any) -> None:
        simd.store_part(b, simd.load_part(b, b.add(source, offset), lanes), b.add(target, offset), lanes)

    _each(b, count, body)


@lowered(_copy_out_codegen)
def copy_row_out(target: int, source: int, count: int) -> None:
    """Copy a row to a row of others."""


def _add_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, source, count = args

    def body(offset: Any, lanes: Any) -> None:
        place = b.add(target, offset)
        value = b.fadd(simd.load_part(b, place, lanes), simd.load_part(b, b.add(source, offset), lanes))
        simd.store_part(b, value, place, lanes)

    _each(b, count, body)


@lowered(_add_codegen)
def add_row(target: int, source: int, count: int) -> None:
    """Add a row to a row of others."""


def _lines(b: Any, base: Any, step: Any) -> list[Any]:
    return [b.add(base, b.mul(step, ir.Constant(I64, n))) for n in range(simd.LANES)]


def _transpose(*, is_masked: bool) -> Callable[[Any, Any, list[Any]], None]:
    def codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
        target, target_step, source, source_step, rows, columns, *mask = args
        lanes, rows_kept = simd.flags(b, columns), []
        quarter = b.lshr(source_step, ir.Constant(I64, 2))
        for n, place in enumerate(_lines(b, source, source_step)):
            inside = b.icmp_signed("<", ir.Constant(I64, n), rows)
            here = b.select(inside, lanes, ir.Constant(lanes.type, None))
            if is_masked:
                here = simd.kept(b, b.add(mask[0], b.mul(quarter, ir.Constant(I64, n))), here)
            rows_kept.append(simd.load_part(b, place, here))
        for value, place in zip(simd.transposed(b, rows_kept), _lines(b, target, target_step), strict=True):
            simd.store(b, value, place)

    return codegen


@lowered(_transpose(is_masked=False))
def transpose(target: int, target_step: int, source: int, source_step: int, rows: int, columns: int) -> None:
    """Write the transpose of up to 16 x 16 floats of others as 16 rows of whole vectors, filled up with 0."""


@lowered(_transpose(is_masked=True))
def masked_transpose(
    target: int, target_step: int, source: int, source_step: int, rows: int, columns: int, mask: int
) -> None:
    """Write the transpose as above, 0 where the mask is 0; its rows are as long as those of source."""


def _add_transpose_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, target_step, source, source_step = args
    rows = [simd.load(b, place) for place in _lines(b, source, source_step)]
    for value, place in zip(simd.transposed(b, rows), _lines(b, target, target_step), strict=True):
        simd.store(b, b.fadd(simd.load(b, place), value), place)


@lowered(_add_transpose_codegen)
def add_transpose(target: int, target_step: int, source: int, source_step: int) -> None:
    """Add the transpose of 16 x 16 floats of whole vectors to others of whole vectors."""


# ---- activation and dropout


def _gate(b: Any, power: Any) -> Any:
    """Return 1 / (1 + exp(power))."""
    bounded = simd.clamp(b, power, -simd.EXP_MAX, simd.EXP_MAX)
    return b.fdiv(simd.number(1.0), b.fadd(simd.number(1.0), simd.exp(b, bounded)))


def _gelu_gate(b: Any, x: Any) -> tuple[Any, Any]:
    square = b.fmul(x, x)
    cubic = simd.fma(b, square, simd.number(0.044715), simd.number(1.0))
    return square, _gate(b, b.fmul(b.fmul(x, cubic), simd.number(-_SLOPE)))


def _gelu_slope(b: Any, x: Any) -> Any:
    square, gate = _gelu_gate(b, x)
    slope = b.fmul(simd.fma(b, square, simd.number(3 * 0.044715), simd.number(1.0)), simd.number(_SLOPE))
    rest = b.fmul(b.fmul(x, gate), b.fsub(simd.number(1.0), gate))
    return simd.fma(b, rest, slope, gate)


def _silu(b: Any, x: Any) -> Any:
    return b.fmul(x, _gate(b, b.fneg(x)))


def _silu_slope(b: Any, x: Any) -> Any:
    gate = _gate(b, b.fneg(x))
    return simd.fma(b, b.fmul(x, gate), b.fsub(simd.number(1.0), gate), gate)


def _relu(b: Any, x: Any) -> Any:
    return b.select(b.fcmp_ordered("<", x, simd.ZERO), simd.ZERO, x)  # a NaN stays one


def _relu_slope(b: Any, x: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, simd.ZERO), simd.number(1.0), simd.ZERO)


def _finish(activate: Vectors) -> Finish:
    def codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
        source, target, saved, words, bit, count, scale = args
        scales = simd.broadcast(b, b.fptrunc(scale, simd.F32))
        bits = b.shl(_ONE, simd.every(b, b.trunc(bit, simd.I32)))

        def body(offset: Any, lanes: Any) -> None:
            x = simd.load(b, b.add(source, offset))
            drawn = b.and_(_vectors_of(b, words, offset, lanes), bits)
            kept = b.icmp_unsigned("!=", drawn, ir.Constant(simd.WORDS, None))
            y = b.select(kept, b.fmul(activate(b, x), scales), simd.ZERO)
            simd.store_part(b, y, b.add(target, offset), lanes)
            saves = b.icmp_signed("!=", saved, ir.Constant(I64, 0))
            with b.if_then(saves):
                simd.store_part(b, x, b.add(saved, offset), lanes)

        _each(b, count, body)

    @lowered(codegen)
    def finish(
        source: int, target: int, saved: int, words: int, bit: int, count: int, scale: float
    ) -> None: ...

    return finish


def _slope(slope: Vectors) -> Callable[[int, int, int, int, int, int, float], None]:
    def codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
        grad, saved, target, words, bit, count, scale = args
        scales = simd.broadcast(b, b.fptrunc(scale, simd.F32))
        bits = b.shl(_ONE, simd.every(b, b.trunc(bit, simd.I32)))

        def body(offset: Any, lanes: Any) -> None:
            x = simd.load_part(b, b.add(saved, offset), lanes)
            g = b.fmul(simd.load_part(b, b.add(grad, offset), lanes), scales)
            drawn = b.and_(_vectors_of(b, words, offset, lanes), bits)
            kept = b.icmp_unsigned("!=", drawn, ir.Constant(simd.WORDS, None))
            value = b.select(kept, b.fmul(g, slope(b, x)), simd.ZERO)
            simd.store(b, value, b.add(target, offset))

        _each(b, count, body)

    @lowered(codegen)
    def front(grad: int, saved: int, target: int, words: int, bit: int, count: int, scale: float) -> None: ...

    return front


# Write keep * scale * act(source) to target and, unless saved is 0, source itself to saved: rows of others.
# words: uint32 per unit, its bit `bit` keeps the unit; source: whole vectors.
finish_none = _finish(lambda _b, x: x)
finish_gelu = _finish(lambda b, x: b.fmul(x, _gelu_gate(b, x)[1]))
finish_relu = _finish(_relu)
finish_silu = _finish(_silu)

# Write grad * keep * scale * act'(saved), the gradient in front of the activation, to whole vectors.
slope_none = _slope(lambda _b, _x: simd.number(1.0))
slope_gelu = _slope(_gelu_slope)
slope_relu = _slope(_relu_slope)
slope_silu = _slope(_silu_slope)


# ---- few rows: dot products straight from weights and mask


def _dot_codegen(_ctx: Any, b: Any, args: list[Any]) -> Any:
    x, weights, mask, count = args
    lines = 4

    def products(offset: Any, lanes: Any, value: Any) -> Any:
        kept = simd.kept(b, b.add(mask, b.lshr(offset, ir.Constant(I64, 2))), lanes)
        left = simd.load_part(b, b.add(weights, offset), kept)
        return simd.fma(b, left, simd.load_part(b, b.add(x, offset), kept), value)

    def step(n: Any, sums: simd.Values) -> simd.Values:
        made = []
        for line, value in enumerate(sums):
            offset = simd.place(b, ir.Constant(I64, simd.LINE * line), n, simd.LINE * lines)
            first = b.lshr(offset, ir.Constant(I64, 2))
            made.append(products(offset, simd.flags(b, b.sub(count, first)), value))
        return made

    width = simd.LANES * lines
    rounds = b.sdiv(b.add(count, ir.Constant(I64, width - 1)), ir.Constant(I64, width))
    sums = simd.loop(b, rounds, [simd.ZERO] * lines, step)
    value = simd.total(b, b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3])))
    return b.fpext(value, ir.DoubleType())


@lowered(_dot_codegen)
def masked_dot(x: int, weights: int, mask: int, count: int) -> float:  # type: ignore[empty-body]
    """Return the sum of x * weights where the mask's byte is not 0; three rows of others."""
