"""The inner loops of analytic uncertainty: activations with their slopes, matrix times vector, and back.

There is one forward pass here instead of 32, so the lane is the output unit: eight of a group, or of a
slice, side by side.  Two numbers travel back through the second layer together, one for each head.
Nothing here checks anything: addresses and sizes come from a plan that was checked when it was loaded.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

from llvmlite import ir
from numba.core import cgutils

from bicep.plan.layout import GROUP, GROUP_TAIL, LINE
from bicep.plan.slices import columns_at, entry, values_at
from bicep.plan.vectors import (
    _EXP_MAX,
    Values,
    _at,
    _clamp,
    _exp,
    _fma,
    _load,
    _loop,
    _number,
    _scalar,
    _store,
)
from ringbuf.memory import I64, lowered

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_CHAINS: Final = 4  # sums of one group that run at once; a multiply-add takes four cycles
_ROOT: Final = math.sqrt(2 / math.pi)


def _kind(lanes: int) -> Any:
    return ir.VectorType(_F32, lanes)


def _lanes(b: Any, values: list[Any]) -> Any:
    vector = ir.Constant(_kind(len(values)), ir.Undefined)
    for n, value in enumerate(values):
        vector = b.insert_element(vector, value, ir.Constant(_I32, n))
    return vector


def _spread(b: Any, value: Any, lanes: int) -> Any:
    undefined = ir.Constant(_kind(lanes), ir.Undefined)
    vector = b.insert_element(undefined, value, ir.Constant(_I32, 0))
    return b.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _fused(b: Any, x: Any, y: Any, z: Any) -> Any:
    kind = x.type
    signature = ir.FunctionType(kind, [kind] * 3)
    fma = cast("Any", cgutils).get_or_insert_function(b.module, signature, f"llvm.fma.v{kind.count}f32")
    return b.call(fma, [x, y, z])


def _take(b: Any, addr: Any, lanes: int) -> Any:
    return b.load(b.inttoptr(addr, _kind(lanes).as_pointer()), align=4)


def _put(b: Any, value: Any, addr: Any) -> None:
    b.store(value, b.inttoptr(addr, value.type.as_pointer()), align=4)


def _total(b: Any, vector: Any) -> Any:
    """Add the lanes in halves; the order is fixed."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        parts = [
            b.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(_I32, half), list(lanes)))
            for lanes in (range(half), range(half, 2 * half))
        ]
        vector = b.fadd(*parts)
    return b.extract_element(vector, ir.Constant(_I32, 0))


def _slopes_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    values, count, slopes = args

    def step(i: Any, _: Values) -> Values:
        at = _at(b, values, i, LINE)
        x = _load(b, at)
        square = b.fmul(x, x)
        cubic = _fma(b, square, _number(0.044715), _number(1.0))
        twice = b.fmul(b.fmul(x, cubic), _number(-2 * _ROOT))
        share = b.fdiv(_number(1.0), b.fadd(_number(1.0), _exp(b, _clamp(b, twice, -_EXP_MAX, _EXP_MAX))))
        rise = _fma(b, square, _number(2 * _ROOT * 3 * 0.044715), _number(2 * _ROOT))
        bend = b.fmul(b.fmul(x, share), b.fsub(_number(1.0), share))
        _store(b, b.fmul(x, share), at)
        _store(b, _fma(b, bend, rise, share), _at(b, slopes, i, LINE))
        return []

    _loop(b, b.lshr(count, ir.Constant(I64, 4)), [], step)


@lowered(_slopes_codegen)
def activate_with_slopes(values: int, count: int, slopes: int) -> None:
    """Replace values float32[count] by GELU of them, and write GELU's slope there; count: multiple of 16."""


def _group_sums_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, count, group, sums = args
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)
    start = _take(b, _at(b, group, count, 4 * GROUP), GROUP)

    def step(i: Any, chains: Values) -> Values:
        rows, inputs = _at(b, group, i, 4 * GROUP * _CHAINS), _at(b, hidden, i, 4 * _CHAINS)
        return [
            _fused(
                b,
                _take(b, _at(b, rows, ir.Constant(I64, n), 4 * GROUP), GROUP),
                _spread(b, _scalar(b, inputs, 4 * n), GROUP),
                chain,
            )
            for n, chain in enumerate(chains)
        ]

    count = b.lshr(count, ir.Constant(I64, _CHAINS.bit_length() - 1))
    one, two, three, four = _loop(b, count, [start] + [zero] * (_CHAINS - 1), step)
    _put(b, b.fadd(b.fadd(one, two), b.fadd(three, four)), sums)


@lowered(_group_sums_codegen)
def group_sums(hidden: int, count: int, group: int, sums: int) -> None:
    """Write bias + weights * hidden of the eight units of a dense group to sums float32[8]."""


def _slice_sums_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, steps, group, sums = args
    values, columns = values_at(b, group), columns_at(b, group, steps)

    def step(k: Any, chains: Values) -> Values:
        inputs = [_scalar(b, _at(b, hidden, entry(b, values, columns, k, row)[1], 4)) for row in range(GROUP)]
        return [_fused(b, _take(b, _at(b, values, k, 4 * GROUP), GROUP), _lanes(b, inputs), chains[0])]

    _put(b, _loop(b, steps, [_take(b, group, GROUP)], step)[0], sums)


@lowered(_slice_sums_codegen)
def slice_sums(hidden: int, steps: int, group: int, sums: int) -> None:
    """Write bias + weights * hidden of the eight rows of a slice to sums float32[8]."""


def _pull_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    groups, units, outputs, pulls, back = args
    group_size = b.add(b.mul(units, ir.Constant(I64, 4 * GROUP)), ir.Constant(I64, 4 * GROUP_TAIL))
    count = b.lshr(outputs, ir.Constant(I64, GROUP.bit_length() - 1))
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)

    def column(j: Any, _: Values) -> Values:
        def group(n: Any, sums: Values) -> Values:
            row = _take(b, _at(b, b.add(groups, b.mul(n, group_size)), j, 4 * GROUP), GROUP)
            line = _at(b, pulls, n, 2 * 4 * GROUP)
            return [
                _fused(b, row, _take(b, _at(b, line, ir.Constant(I64, head), 4 * GROUP), GROUP), total)
                for head, total in enumerate(sums)
            ]

        sums = _loop(b, count, [zero, zero], group)
        _put(b, _lanes(b, [_total(b, total) for total in sums]), _at(b, back, j, 8))
        return []

    _loop(b, units, [], column)


@lowered(_pull_codegen)
def pull_groups(groups: int, units: int, outputs: int, pulls: int, back: int) -> None:
    """Write the transposed dense layer times both heads' pulls: back float32[units][2].

    pulls: float32[outputs/8][2][8], what a unit's sum is worth to the mean and to the log variance.
    """


def _pull_slice_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    group, steps, pulls, back = args
    values, columns = values_at(b, group), columns_at(b, group, steps)
    pairs = [
        _lanes(b, [_scalar(b, pulls, 4 * (GROUP * head + row)) for head in (0, 1)]) for row in range(GROUP)
    ]

    def step(k: Any, _: Values) -> Values:
        for row, pair in enumerate(pairs):
            weight, column = entry(b, values, columns, k, row)
            at = _at(b, back, column, 8)
            _put(b, _fused(b, _spread(b, weight, 2), pair, _take(b, at, 2)), at)
        return []

    _loop(b, steps, [], step)


@lowered(_pull_slice_codegen)
def pull_slice(group: int, steps: int, pulls: int, back: int) -> None:
    """Add the transposed slice times both heads' pulls float32[2][8] to back float32[units][2]."""
