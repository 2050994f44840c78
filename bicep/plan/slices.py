"""The inner loops of the sparser rungs, and of 16 samples: the sample is the SIMD lane here too.

A step of a slice holds one kept weight of each of its eight rows.  A weight is broadcast, its column says
where the 32 samples of its input lie (two loads), and two fused multiply-adds follow: three full-width
loads a weight, where the dense loop needs one and a half.  With 16 samples everything is one vector.
Nothing here checks anything: columns and steps were checked when the plan was loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from bicep import simd
from bicep.masks import DROP_PROBABILITY
from bicep.plan.layout import COLUMN_SIZE, GROUP, GROUP_TAIL, LINE
from bicep.plan.vectors import keep
from ringbuf.memory import I64, lowered

Builder = Callable[[Any, Any, list[Any]], None]
_I16, _I32 = ir.IntType(16), ir.IntType(32)
_UNITS_AT: Final = 3 * GROUP * 4  # in a tail: whose biases, heads and masks these are
_SCALE: Final = 1 / (1 - DROP_PROBABILITY)


def values_at(b: Any, group: Any) -> Any:
    """Return the address of a slice's values."""
    return simd.plus(b, group, 4 * GROUP_TAIL)


def columns_at(b: Any, group: Any, steps: Any) -> Any:
    """Return the address of a slice's columns."""
    return simd.place(b, values_at(b, group), steps, 4 * GROUP)


def entry(b: Any, values: Any, columns: Any, step: Any, row: int) -> tuple[Any, Any]:
    """Return the weight and the column (int64) of a row in a step."""
    at = b.inttoptr(simd.place(b, columns, step, COLUMN_SIZE * GROUP), ir.ArrayType(_I16, GROUP).as_pointer())
    column = b.load(b.gep(at, [ir.Constant(_I32, 0), ir.Constant(_I32, row)]), align=COLUMN_SIZE)
    at = b.inttoptr(simd.place(b, values, step, 4 * GROUP), ir.ArrayType(ir.FloatType(), GROUP).as_pointer())
    weight = b.load(b.gep(at, [ir.Constant(_I32, 0), ir.Constant(_I32, row)]), align=4)
    return weight, b.zext(column, I64)


def _add_to_heads(b: Any, sums: simd.Values, tail: Any, words: list[Any], samples: Any) -> None:
    """Activate and drop out eight units, and add them to both heads of the samples."""
    vectors = len(sums) // GROUP
    places = [LINE * (2 * head + v) for head in (0, 1) for v in range(vectors)]
    heads = [simd.load(b, samples, place) for place in places]
    for unit in range(GROUP):
        weights = [simd.broadcast(b, simd.scalar(b, tail, 4 * (GROUP * head + unit))) for head in (1, 2)]
        for v in range(vectors):
            active = b.fmul(simd.gelu(b, sums[vectors * unit + v]), simd.number(_SCALE))
            value = keep(b, words[unit], v, active)
            for head in (0, 1):
                n = vectors * head + v
                heads[n] = simd.fma(b, value, weights[head], heads[n])
    for place, total in zip(places, heads, strict=True):
        simd.store(b, total, samples, place)


def _biases(b: Any, tail: Any, vectors: int) -> simd.Values:
    biases = [simd.broadcast(b, simd.scalar(b, tail, 4 * unit)) for unit in range(GROUP)]
    return [bias for bias in biases for _ in range(vectors)]


def _slice_codegen(vectors: int) -> Builder:
    def codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
        spread, steps, group, masks, samples = args
        values, columns = values_at(b, group), columns_at(b, group, steps)

        def step(k: Any, sums: simd.Values) -> simd.Values:
            added = []
            for row in range(GROUP):
                weight, column = entry(b, values, columns, k, row)
                vector, at = simd.broadcast(b, weight), simd.place(b, spread, column, LINE * vectors)
                added += [
                    simd.fma(b, vector, simd.load(b, at, LINE * v), sums[vectors * row + v])
                    for v in range(vectors)
                ]
            return added

        sums = simd.loop(b, steps, _biases(b, group, vectors), step)
        units = [b.zext(simd.scalar(b, group, _UNITS_AT + 4 * row, kind=_I32), I64) for row in range(GROUP)]
        words = [simd.scalar(b, simd.place(b, masks, unit, 4), kind=_I32) for unit in units]
        _add_to_heads(b, sums, group, words, samples)

    return codegen


@lowered(_slice_codegen(2))
def slice_outputs(spread: int, steps: int, group: int, masks: int, samples: int) -> None:
    """Add the eight units of a slice to the two heads of 32 samples.

    spread: float32[inputs][32]; group: a slice of a CSR pack; masks: uint32 by unit of the second layer;
    samples: float32[2][32], the heads' sums so far.
    """


@lowered(_slice_codegen(1))
def slice_outputs_16(spread: int, steps: int, group: int, masks: int, samples: int) -> None:
    """Do the same for 16 samples: spread float32[inputs][16], samples the first half of each [32]."""


def _group_16_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    spread, count, group, masks, samples = args
    tail = simd.place(b, group, count, 4 * GROUP)

    def step(j: Any, sums: simd.Values) -> simd.Values:
        row, inputs = simd.place(b, group, j, 4 * GROUP), simd.load(b, simd.place(b, spread, j, LINE))
        return [
            simd.fma(b, simd.broadcast(b, simd.scalar(b, row, 4 * unit)), inputs, total)
            for unit, total in enumerate(sums)
        ]

    sums = simd.loop(b, count, _biases(b, tail, 1), step)
    words = [simd.scalar(b, masks, 4 * unit, kind=_I32) for unit in range(GROUP)]
    _add_to_heads(b, sums, tail, words, samples)


@lowered(_group_16_codegen)
def group_outputs_16(spread: int, count: int, group: int, masks: int, samples: int) -> None:
    """Do what group_outputs does, for 16 samples: spread float32[count][16]."""


def _spread_16_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, masks, count, target = args

    def activate(i: Any, _: simd.Values) -> simd.Values:
        at = simd.place(b, hidden, i, LINE)
        simd.store(b, b.fmul(simd.gelu(b, simd.load(b, at)), simd.number(_SCALE)), at)
        return []

    def spread(unit: Any, _: simd.Values) -> simd.Values:
        value = simd.broadcast(b, simd.scalar(b, simd.place(b, hidden, unit, 4)))
        word = simd.scalar(b, simd.place(b, masks, unit, 4), kind=_I32)
        simd.store(b, keep(b, word, 0, value), simd.place(b, target, unit, LINE))
        return []

    simd.loop(b, b.lshr(count, ir.Constant(I64, 4)), [], activate)
    simd.loop(b, count, [], spread)


@lowered(_spread_16_codegen)
def spread_samples_16(hidden: int, masks: int, count: int, target: int) -> None:
    """Do what spread_samples does, for the first 16 samples: target float32[count][16]."""
