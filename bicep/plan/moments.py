"""The inner loops of analytic uncertainty: matrix times vector, expected activations, and back.

There is one forward pass here instead of 32, so the lane is the output unit: eight of a group, or of a
slice, side by side.  Two numbers travel back through the second layer together, one for each head.
Nothing here checks anything: addresses and sizes come from a plan that was checked when it was loaded.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

from llvmlite import ir
from numba.core import cgutils

from bicep.masks import DROP_PROBABILITY
from bicep.plan.layout import GROUP, GROUP_TAIL, LINE
from bicep.plan.slices import columns_at, entry, values_at
from bicep.plan.vectors import (
    Values,
    _at,
    _clamp,
    _exp,
    _fma,
    _gelu,
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
_FLAT: Final = 10.0
_ODDS: Final = DROP_PROBABILITY / (1 - DROP_PROBABILITY)


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


def _activate_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    values, count = args

    def step(i: Any, _: Values) -> Values:
        at = _at(b, values, i, LINE)
        _store(b, _gelu(b, _load(b, at)), at)
        return []

    _loop(b, b.lshr(count, ir.Constant(I64, 4)), [], step)


@lowered(_activate_codegen)
def activate(values: int, count: int) -> None:
    """Replace values float32[count] by GELU of them; count: a multiple of 16."""


def _derivatives(b: Any, x: Any) -> list[Any]:
    """Return GELU's first three derivatives.

    With GELU = x*s, s the logistic function of v: q = s*(1-s), t = 1 - 2s, r = t*v'^2 + v''.  Beyond +-10 all
    of them are 0 or 1 to single precision, and the cut keeps powers of x finite.
    """
    x = _clamp(b, x, -_FLAT, _FLAT)
    square = b.fmul(x, x)
    v = b.fmul(b.fmul(x, _fma(b, square, _number(0.044715), _number(1.0))), _number(2 * _ROOT))
    share = b.fdiv(_number(1.0), b.fadd(_number(1.0), _exp(b, b.fsub(_number(0.0), v))))
    v1 = _fma(b, square, _number(6 * 0.044715 * _ROOT), _number(2 * _ROOT))
    v2, v3 = b.fmul(x, _number(12 * 0.044715 * _ROOT)), _number(12 * 0.044715 * _ROOT)
    q, t = b.fmul(share, b.fsub(_number(1.0), share)), _fma(b, share, _number(-2.0), _number(1.0))
    tv = b.fmul(t, v1)
    r = _fma(b, tv, v1, v2)
    q_rise = b.fmul(q, tv)
    cubed = b.fmul(b.fmul(q, v1), b.fmul(v1, v1))
    r_rise = _fma(b, cubed, _number(-2.0), _fma(b, b.fmul(tv, v2), _number(2.0), v3))
    first = _fma(b, b.fmul(x, q), v1, share)
    second = b.fmul(q, _fma(b, x, r, b.fmul(_number(2.0), v1)))
    bend = _fma(b, q_rise, v1, b.fmul(q, v2))
    tilt = _fma(b, q_rise, r, b.fmul(q, r_rise))
    return [first, second, _fma(b, bend, _number(2.0), _fma(b, x, tilt, b.fmul(q, r)))]


def _expect_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    sums, spreads, count, slopes = args
    half = _number(0.5)

    def step(i: Any, _: Values) -> Values:
        at, spread_at = _at(b, sums, i, LINE), _at(b, spreads, i, LINE)
        x, spread = _load(b, at), _load(b, spread_at)
        value = _gelu(b, x)
        first, second, third = _derivatives(b, x)
        halved = b.fmul(half, spread)
        _store(b, _fma(b, second, halved, value), at)
        _store(b, _fma(b, third, halved, first), _at(b, slopes, i, LINE))
        growth = _fma(b, first, first, b.fmul(value, second))
        _store(b, _fma(b, growth, spread, b.fmul(value, value)), spread_at)
        return []

    _loop(b, b.lshr(count, ir.Constant(I64, 4)), [], step)


@lowered(_expect_codegen)
def expect_outputs(sums: int, spreads: int, count: int, slopes: int) -> None:
    """Turn means and variances of the second layer's sums into what its activations are expected to be.

    float32[count] each, count a multiple of 16.  sums: becomes E[g]; spreads: becomes E[g^2];
    slopes: E[g']; all to second order in the spread of the sums.
    """


def _added(b: Any, weights: Any, inputs: Any, chains: Values) -> Values:
    """Add products to a sum, and their squares to the sum's variance over the first dropout, in 1/odds."""
    product = b.fmul(weights, inputs)
    return [b.fadd(chains[0], product), _fused(b, product, product, chains[1])]


def _close(b: Any, totals: Values, sums: Any, spreads: Any) -> None:
    _put(b, totals[0], sums)
    _put(b, b.fmul(totals[1], ir.Constant(_kind(GROUP), [_ODDS] * GROUP)), spreads)


def _group_sums_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, count, group, sums, spreads = args
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)
    start = _take(b, _at(b, group, count, 4 * GROUP), GROUP)

    def step(i: Any, chains: Values) -> Values:
        rows, inputs = _at(b, group, i, 4 * GROUP * _CHAINS), _at(b, hidden, i, 4 * _CHAINS)
        added: Values = []
        for n in range(_CHAINS):
            weights = _take(b, _at(b, rows, ir.Constant(I64, n), 4 * GROUP), GROUP)
            value = _spread(b, _scalar(b, inputs, 4 * n), GROUP)
            added += _added(b, weights, value, chains[2 * n : 2 * n + 2])
        return added

    count = b.lshr(count, ir.Constant(I64, _CHAINS.bit_length() - 1))
    chains = _loop(b, count, [start] + [zero] * (2 * _CHAINS - 1), step)
    totals = [b.fadd(b.fadd(chains[n], chains[n + 2]), b.fadd(chains[n + 4], chains[n + 6])) for n in (0, 1)]
    _close(b, totals, sums, spreads)


@lowered(_group_sums_codegen)
def group_sums(hidden: int, count: int, group: int, sums: int, spreads: int) -> None:
    """Write bias + weights * hidden of eight units of a dense group to sums, its variance to spreads.

    hidden: float32[count]; sums, spreads: float32[8].  The variance is that of the first layer's dropout.
    """


def _slice_sums_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, steps, group, sums, spreads = args
    values, columns = values_at(b, group), columns_at(b, group, steps)
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)

    def step(k: Any, chains: Values) -> Values:
        inputs = [_scalar(b, _at(b, hidden, entry(b, values, columns, k, row)[1], 4)) for row in range(GROUP)]
        return _added(b, _take(b, _at(b, values, k, 4 * GROUP), GROUP), _lanes(b, inputs), chains)

    _close(b, _loop(b, steps, [_take(b, group, GROUP), zero], step), sums, spreads)


@lowered(_slice_sums_codegen)
def slice_sums(hidden: int, steps: int, group: int, sums: int, spreads: int) -> None:
    """Do what group_sums does for the eight rows of a slice."""


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
