"""The inner loops of analytic uncertainty: matrix times vector, expected activations, and back.

There is one forward pass here instead of 32, so the lane is the output unit: eight of a group, or of a
slice, side by side.  Two numbers travel back through the second layer together, one for each head.
Nothing here checks anything: addresses and sizes come from a plan that was checked when it was loaded.
"""

from __future__ import annotations

import math
from typing import Any, Final

from llvmlite import ir

from bicep import simd
from bicep.plan.layout import GROUP, GROUP_TAIL, LINE
from bicep.plan.slices import columns_at, entry, values_at
from ringbuf.memory import I64, lowered

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_CHAINS: Final = 4  # sums of one group that run at once; a multiply-add takes four cycles
_ROOT: Final = math.sqrt(2 / math.pi)
_FLAT: Final = 10.0


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
    return b.call(simd.function(b, f"llvm.fma.v{kind.count}f32", kind, kind, kind, kind), [x, y, z])


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

    def step(i: Any, _: simd.Values) -> simd.Values:
        at = simd.place(b, values, i, LINE)
        simd.store(b, simd.gelu(b, simd.load(b, at)), at)
        return []

    simd.loop(b, b.lshr(count, ir.Constant(I64, 4)), [], step)


@lowered(_activate_codegen)
def activate(values: int, count: int) -> None:
    """Replace values float32[count] by GELU of them; count: a multiple of 16."""


def _derivatives(b: Any, x: Any) -> list[Any]:
    """Return GELU's first three derivatives.

    With GELU = x*s, s the logistic function of v: q = s*(1-s), t = 1 - 2s, r = t*v'^2 + v''.  Beyond +-10 all
    of them are 0 or 1 to single precision, and the cut keeps powers of x finite.
    """
    x = simd.clamp(b, x, -_FLAT, _FLAT)
    square = b.fmul(x, x)
    v = b.fmul(
        b.fmul(x, simd.fma(b, square, simd.number(0.044715), simd.number(1.0))), simd.number(2 * _ROOT)
    )
    share = b.fdiv(simd.number(1.0), b.fadd(simd.number(1.0), simd.exp(b, b.fsub(simd.number(0.0), v))))
    v1 = simd.fma(b, square, simd.number(6 * 0.044715 * _ROOT), simd.number(2 * _ROOT))
    v2, v3 = b.fmul(x, simd.number(12 * 0.044715 * _ROOT)), simd.number(12 * 0.044715 * _ROOT)
    q, t = (
        b.fmul(share, b.fsub(simd.number(1.0), share)),
        simd.fma(b, share, simd.number(-2.0), simd.number(1.0)),
    )
    tv = b.fmul(t, v1)
    r = simd.fma(b, tv, v1, v2)
    q_rise = b.fmul(q, tv)
    cubed = b.fmul(b.fmul(q, v1), b.fmul(v1, v1))
    r_rise = simd.fma(b, cubed, simd.number(-2.0), simd.fma(b, b.fmul(tv, v2), simd.number(2.0), v3))
    first = simd.fma(b, b.fmul(x, q), v1, share)
    second = b.fmul(q, simd.fma(b, x, r, b.fmul(simd.number(2.0), v1)))
    bend = simd.fma(b, q_rise, v1, b.fmul(q, v2))
    tilt = simd.fma(b, q_rise, r, b.fmul(q, r_rise))
    return [first, second, simd.fma(b, bend, simd.number(2.0), simd.fma(b, x, tilt, b.fmul(q, r)))]


def _expect_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    sums, spreads, count, slopes, odds = args
    half = simd.number(0.5)
    scale = simd.broadcast(b, b.fptrunc(odds, simd.F32))

    def step(i: Any, _: simd.Values) -> simd.Values:
        at, spread_at = simd.place(b, sums, i, LINE), simd.place(b, spreads, i, LINE)
        x, spread = simd.load(b, at), b.fmul(scale, simd.load(b, spread_at))
        value = simd.gelu(b, x)
        first, second, third = _derivatives(b, x)
        halved = b.fmul(half, spread)
        simd.store(b, simd.fma(b, second, halved, value), at)
        simd.store(b, simd.fma(b, third, halved, first), simd.place(b, slopes, i, LINE))
        growth = simd.fma(b, first, first, b.fmul(value, second))
        simd.store(b, simd.fma(b, growth, spread, b.fmul(value, value)), spread_at)
        return []

    simd.loop(b, b.lshr(count, ir.Constant(I64, 4)), [], step)


@lowered(_expect_codegen)
def expect_outputs(sums: int, spreads: int, count: int, slopes: int, odds: float) -> None:
    """Turn means and variances of the second layer's sums into what its activations are expected to be.

    float32[count] each, count a multiple of 16.  sums: becomes E[g]; spreads: variances in units of odds,
    becomes E[g^2]; slopes: E[g']; all to second order in the spread of the sums.
    """


def _added(b: Any, weights: Any, inputs: Any, chains: simd.Values) -> simd.Values:
    """Add products to a sum, and their squares to the sum's variance over the first dropout over its odds."""
    product = b.fmul(weights, inputs)
    return [b.fadd(chains[0], product), _fused(b, product, product, chains[1])]


def _group_sums_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, count, group, sums, spreads = args
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)
    start = _take(b, simd.place(b, group, count, 4 * GROUP), GROUP)

    def step(i: Any, chains: simd.Values) -> simd.Values:
        rows, inputs = simd.place(b, group, i, 4 * GROUP * _CHAINS), simd.place(b, hidden, i, 4 * _CHAINS)
        added: simd.Values = []
        for n in range(_CHAINS):
            weights = _take(b, simd.place(b, rows, ir.Constant(I64, n), 4 * GROUP), GROUP)
            value = _spread(b, simd.scalar(b, inputs, 4 * n), GROUP)
            added += _added(b, weights, value, chains[2 * n : 2 * n + 2])
        return added

    count = b.lshr(count, ir.Constant(I64, _CHAINS.bit_length() - 1))
    chains = simd.loop(b, count, [start] + [zero] * (2 * _CHAINS - 1), step)
    totals = [b.fadd(b.fadd(chains[n], chains[n + 2]), b.fadd(chains[n + 4], chains[n + 6])) for n in (0, 1)]
    for total, place in zip(totals, (sums, spreads), strict=True):
        _put(b, total, place)


@lowered(_group_sums_codegen)
def group_sums(hidden: int, count: int, group: int, sums: int, spreads: int) -> None:
    """Write bias + weights * hidden of eight units of a dense group to sums, its variance to spreads.

    hidden: float32[count]; sums, spreads: float32[8].  The variance is that of the first layer's dropout,
    in units of the odds of dropping.
    """


def _slice_sums_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    hidden, steps, group, sums, spreads = args
    values, columns = values_at(b, group), columns_at(b, group, steps)
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)

    def step(k: Any, chains: simd.Values) -> simd.Values:
        inputs = [
            simd.scalar(b, simd.place(b, hidden, entry(b, values, columns, k, row)[1], 4))
            for row in range(GROUP)
        ]
        return _added(b, _take(b, simd.place(b, values, k, 4 * GROUP), GROUP), _lanes(b, inputs), chains)

    totals = simd.loop(b, steps, [_take(b, group, GROUP), zero], step)
    for total, place in zip(totals, (sums, spreads), strict=True):
        _put(b, total, place)


@lowered(_slice_sums_codegen)
def slice_sums(hidden: int, steps: int, group: int, sums: int, spreads: int) -> None:
    """Do what group_sums does for the eight rows of a slice."""


def _pull_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    groups, units, outputs, pulls, back = args
    group_size = b.add(b.mul(units, ir.Constant(I64, 4 * GROUP)), ir.Constant(I64, 4 * GROUP_TAIL))
    count = b.lshr(outputs, ir.Constant(I64, GROUP.bit_length() - 1))
    zero = ir.Constant(_kind(GROUP), [0.0] * GROUP)

    def column(j: Any, _: simd.Values) -> simd.Values:
        def group(n: Any, sums: simd.Values) -> simd.Values:
            row = _take(b, simd.place(b, b.add(groups, b.mul(n, group_size)), j, 4 * GROUP), GROUP)
            line = simd.place(b, pulls, n, 2 * 4 * GROUP)
            return [
                _fused(b, row, _take(b, simd.place(b, line, ir.Constant(I64, head), 4 * GROUP), GROUP), total)
                for head, total in enumerate(sums)
            ]

        sums = simd.loop(b, count, [zero, zero], group)
        _put(b, _lanes(b, [_total(b, total) for total in sums]), simd.place(b, back, j, 8))
        return []

    simd.loop(b, units, [], column)


@lowered(_pull_codegen)
def pull_groups(groups: int, units: int, outputs: int, pulls: int, back: int) -> None:
    """Write the transposed dense layer times both heads' pulls: back float32[units][2].

    pulls: float32[outputs/8][2][8], what a unit's sum is worth to the mean and to the log variance.
    """


def _pull_slice_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    group, steps, pulls, back = args
    values, columns = values_at(b, group), columns_at(b, group, steps)
    pairs = [
        _lanes(b, [simd.scalar(b, pulls, 4 * (GROUP * head + row)) for head in (0, 1)])
        for row in range(GROUP)
    ]

    def step(k: Any, _: simd.Values) -> simd.Values:
        for row, pair in enumerate(pairs):
            weight, column = entry(b, values, columns, k, row)
            at = simd.place(b, back, column, 8)
            _put(b, _fused(b, _spread(b, weight, 2), pair, _take(b, at, 2)), at)
        return []

    simd.loop(b, steps, [], step)


@lowered(_pull_slice_codegen)
def pull_slice(group: int, steps: int, pulls: int, back: int) -> None:
    """Add the transposed slice times both heads' pulls float32[2][8] to back float32[units][2]."""
