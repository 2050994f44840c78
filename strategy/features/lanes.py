"""Eight float64 at a time: the vector instructions behind a row of features.

The types are legal on any CPU (LLVM splits them for AVX2 or NEON), every sum has one fixed order and nothing
is contracted, so the bits are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from llvmlite import ir

from ringbuf.memory import I64, lowered
from strategy.features.arithmetic import NEAR
from strategy.features.columns import BP, COLUMNS

LANES: Final = 8
NORMAL_MAX: Final = 6.0
_F64: Final = ir.DoubleType()
_VECTOR: Final = ir.VectorType(_F64, LANES)
RETURNS: Final = 6  # columns that near_returns writes
# The sums of a row that fade, as they stand there, and the scale of each: 1, 10, 60 and 300 s.
FADING: Final = {
    "young_1": 0, "young_10": 1, "young_60": 2, "young_300": 3, "ofi_1": 0, "ofi_10": 1, "ofi_60": 2,
    "events_1": 0, "events_10": 1, "cancels_10": 1, "trades_10": 1, "signed_10": 1, "signed_60": 2,
    "volume_10": 1, "volume_60": 2, "variance_10": 1, "variance_60": 2, "variance_300": 3,
    "vwap_cost": 3, "vwap_qty": 3,
}  # fmt: skip
_SCALES: Final = tuple(FADING.values())
_WORD: Final = 8
_I32: Final = ir.IntType(32)
_OFFSETS: Final = range(0, COLUMNS * _WORD, LANES * _WORD)


def _at(b: Any, addr: Any, offset: int, count: int = LANES) -> Any:
    place = b.add(addr, ir.Constant(I64, offset))
    return b.inttoptr(place, ir.VectorType(_F64, count).as_pointer())


def _load(b: Any, addr: Any, offset: int, count: int = LANES) -> Any:
    return b.load(_at(b, addr, offset, count), align=_WORD)


def _all(value: float) -> Any:
    return ir.Constant(_VECTOR, [ir.Constant(_F64, value)] * LANES)


def _pick(b: Any, vector: Any, lanes: Iterable[int]) -> Any:
    """Return a vector of these lanes."""
    numbers = [ir.Constant(_I32, lane) for lane in lanes]
    mask = ir.Constant(ir.VectorType(_I32, len(numbers)), numbers)
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _gather(b: Any, values: Sequence[Any], lanes: int) -> Any:
    """Return a vector that begins with these values; the rest is zero."""
    vector = ir.Constant(ir.VectorType(values[0].type, lanes), None)
    for lane, value in enumerate(values):
        vector = b.insert_element(vector, value, ir.Constant(_I32, lane))
    return vector


def _bits(b: Any, flags: Any) -> Any:
    """Return a word with a bit for each lane's flag."""
    return b.zext(b.bitcast(flags, ir.IntType(LANES)), I64)


def _normalise(_ctx: Any, b: Any, args: list[Any]) -> Any:
    vector, means, deviations, out = args
    known = ir.Constant(I64, 0)
    for line, offset in enumerate(_OFFSETS):
        deviation = _load(b, deviations, offset)
        z = b.fdiv(b.fsub(_load(b, vector, offset), _load(b, means, offset)), deviation)
        is_known = b.and_(b.fcmp_ordered(">", deviation, _all(0.0)), b.fcmp_ordered("ord", z, z))
        z = b.select(b.fcmp_ordered(">", z, _all(-NORMAL_MAX)), z, _all(-NORMAL_MAX))
        z = b.select(b.fcmp_ordered("<", z, _all(NORMAL_MAX)), z, _all(NORMAL_MAX))
        b.store(b.select(is_known, z, _all(0.0)), _at(b, out, offset), align=_WORD)
        known = b.or_(known, b.shl(_bits(b, is_known), ir.Constant(I64, line * LANES)))
    return known


@lowered(_normalise)
def normalise_columns(vector: int, means: int, deviations: int, out: int) -> int:  # type: ignore[empty-body]
    """Write clip((x - mean)/deviation, +-NORMAL_MAX) of each column to out; what is not a number becomes 0.

    Addresses of float64[32]; vector and out may be the same.  Returns the mask of columns that hold a number.
    """


def _dot(_ctx: Any, b: Any, args: list[Any]) -> Any:
    total, *more = (b.fmul(_load(b, args[0], offset), _load(b, args[1], offset)) for offset in _OFFSETS)
    for product in more:
        total = b.fadd(total, product)
    count = LANES
    while count > 1:
        count //= 2
        total = b.fadd(_pick(b, total, range(count)), _pick(b, total, range(count, 2 * count)))
    return b.extract_element(total, ir.Constant(_I32, 0))


@lowered(_dot)
def dot(left: int, right: int) -> float:  # type: ignore[empty-body]
    """Return the sum of the products of two float64[32]; eight partial sums, folded in halves."""


def _near_returns(_ctx: Any, b: Any, args: list[Any]) -> Any:
    after, *samples, out = args
    before = _gather(b, samples, LANES)
    is_known = b.icmp_signed(">", before, ir.Constant(before.type, None))
    then = b.sitofp(before, _VECTOR)
    now = _pick(b, _gather(b, [after], LANES), [0] * LANES)
    z = b.fdiv(b.fsub(now, then), b.fadd(now, then))
    y = b.fmul(z, z)
    series = _all(1.0 / 9.0)
    for term in (1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0):
        series = b.fadd(_all(term), b.fmul(y, series))
    value = b.fmul(b.fmul(b.fmul(_all(2.0), z), series), _all(BP))
    value = b.select(is_known, value, _all(math.nan))
    for first, count in ((0, 4), (4, 2)):
        lanes = range(first, first + count)
        b.store(_pick(b, value, lanes), _at(b, out, first * _WORD, count), align=_WORD)
    is_near = b.and_(b.fcmp_ordered("<", z, _all(NEAR)), b.fcmp_ordered(">", z, _all(-NEAR)))
    is_far = b.and_(is_known, b.not_(is_near))
    return b.or_(_bits(b, is_known), b.shl(_bits(b, is_far), ir.Constant(I64, LANES)))


@lowered(_near_returns)
def near_returns(  # type: ignore[empty-body]
    px2: float, a: int, b: int, c: int, d: int, e: int, f: int, out: int
) -> int:
    """Write log_ratio(px2, sample) in bp for RETURNS samples to out, NaN for a sample of 0 or less.

    Returns a bit for each that is no NaN, and from bit LANES on a bit for each that is wrong: the prices lie
    further apart than the series reaches (NEAR).
    """


def _fade(_ctx: Any, b: Any, args: list[Any]) -> None:
    sums, factors = args[0], _gather(b, args[1:], 4)
    for first in range(0, len(_SCALES), LANES):
        scales = _SCALES[first : first + LANES]
        count, fading = len(scales), _pick(b, factors, scales)
        faded = b.fmul(_load(b, sums, first * _WORD, count), fading)
        b.store(faded, _at(b, sums, first * _WORD, count), align=_WORD)


@lowered(_fade)
def fade(sums: int, fast: float, middle: float, slow: float, long: float) -> None:
    """Multiply the float64 at sums, one for each of FADING, by the factors of their scales."""
