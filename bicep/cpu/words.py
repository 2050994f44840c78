"""Dropout masks as words, drawn sixteen units at a time: the compiled twin of bicep.masks.keep_words."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from bicep import simd
from bicep.masks import KEEP_BITS, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, PHILOX_ROUNDS
from ringbuf.jit import kernel
from ringbuf.memory import I64, lowered

_WIDE: Final = ir.VectorType(I64, simd.LANES)
_WORD_BITS: Final = ir.Constant(_WIDE, [ir.Constant(I64, 32)] * simd.LANES)
_LANES: Final = ir.Constant(simd.WORDS, [ir.Constant(simd.I32, n) for n in range(simd.LANES)])


def _products(b: Any, multiplier: int, words: Any) -> tuple[Any, Any]:
    """Return the high and the low word of multiplier * words."""
    factor = ir.Constant(_WIDE, [ir.Constant(I64, multiplier)] * simd.LANES)
    product = b.mul(b.zext(words, _WIDE), factor)
    return b.trunc(b.lshr(product, _WORD_BITS), simd.WORDS), b.trunc(product, simd.WORDS)


def philox_rounds(b: Any, counters: list[Any], left: Any, right: Any) -> list[Any]:
    """Emit Philox4x32-10 of four vectors of counter words; left, right: i32 key words."""
    first, second, third, fourth = counters
    for _ in range(PHILOX_ROUNDS):
        high_one, low_one = _products(b, int(PHILOX_MULTIPLIERS[0]), first)
        high_two, low_two = _products(b, int(PHILOX_MULTIPLIERS[1]), third)
        first = b.xor(b.xor(high_two, second), simd.every(b, left))
        third = b.xor(b.xor(high_one, fourth), simd.every(b, right))
        second, fourth = low_two, low_one
        left = b.add(left, ir.Constant(simd.I32, PHILOX_KEY_STEPS[0]))
        right = b.add(right, ir.Constant(simd.I32, PHILOX_KEY_STEPS[1]))
    return [first, second, third, fourth]


def _keep_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, units, row, number, left, right, level = args
    keys = [b.trunc(key, simd.I32) for key in (left, right)]
    zero = ir.Constant(I64, 0)

    def draw(first: Any, call: Any, words: Any) -> Any:
        unit = b.add(simd.every(b, b.trunc(first, simd.I32)), _LANES)
        rest = [simd.every(b, b.trunc(value, simd.I32)) for value in (row, number, call)]
        fair = philox_rounds(b, [unit, *rest], *keys)
        for n in (3, 2, 1, 0):  # the least bit of the probability first
            place = b.sub(ir.Constant(I64, KEEP_BITS - 1 - n), b.mul(call, ir.Constant(I64, 4)))
            bit = b.and_(b.lshr(level, place), ir.Constant(I64, 1))
            either = simd.every(b, b.trunc(b.sub(zero, bit), simd.I32))
            words = b.or_(b.and_(fair[n], words), b.and_(b.or_(fair[n], words), either))
        return words

    def step(n: Any, _: simd.Values) -> simd.Values:
        first = b.mul(n, ir.Constant(I64, simd.LANES))
        used = b.and_(level, b.neg(level))  # its lowest bit: words below it change nothing
        last = b.select(
            b.icmp_signed("<", used, ir.Constant(I64, 1 << (KEEP_BITS - 12))),
            ir.Constant(I64, 3),
            b.select(
                b.icmp_signed("<", used, ir.Constant(I64, 1 << (KEEP_BITS - 8))),
                ir.Constant(I64, 2),
                b.zext(b.icmp_signed("<", used, ir.Constant(I64, 1 << (KEEP_BITS - 4))), I64),
            ),
        )
        nothing = ir.Constant(simd.WORDS, None)
        calls = b.add(last, ir.Constant(I64, 1))
        words = simd.loop(b, calls, [nothing], lambda k, w: [draw(first, b.sub(last, k), w[0])])[0]
        lanes = simd.flags(b, b.sub(units, first))
        simd.store_part(b, words, b.add(target, b.mul(n, ir.Constant(I64, simd.LINE))), lanes)
        return []

    vectors = b.lshr(b.add(units, ir.Constant(I64, simd.LANES - 1)), ir.Constant(I64, 4))
    simd.loop(b, vectors, [], step)


@lowered(_keep_codegen)
def keep_row(target: int, units: int, row: int, number: int, left: int, right: int, level: int) -> None:
    """Write uint32[units], the keep words of one row."""


@kernel
def keep_rows(target: int, rows: int, units: int, number: int, left: int, right: int, level: int) -> None:
    """Write uint32[rows][units] as bicep.masks.keep_words draws them; level: see there."""
    for row in range(rows):
        keep_row(target + 4 * row * units, units, row, number, left, right, level)
