"""Products over the kept weights alone; a lane is a row of the batch, so any pattern of weights is fast.

A block of 64 rows is transposed: 64 numbers of one input lie side by side.  A kept weight is then one
broadcast and four multiply-adds; a pruned one costs nothing.  Its gradient is the sum over the rows of
input times output gradient, again four multiply-adds, kept as 16 partial sums until the last block.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from bicep import simd
from bicep.cpu.product import WIDE
from ringbuf.jit import kernel
from ringbuf.memory import (
    I64,
    clear,
    load_i64,
    load_u8,
    load_u32,
    lowered,
    store_i32,
    store_i64,
    wrapping_multiply,
)

BLOCK: Final = 64  # rows of the batch that are worked on at a time
BLOCK_SIZE: Final = 4 * BLOCK
_VECTORS: Final = BLOCK // simd.LANES
_CHAINS: Final = 2 if WIDE else 1  # independent sums per output, as far as registers go

_ONES: Final = 0x0101010101010101


def _block(b: Any, inputs: Any, places: Any, n: Any) -> Any:
    """Return the address of the block that kept weight n multiplies."""
    return b.add(inputs, b.zext(simd.scalar(b, simd.place(b, places, n, 4), kind=simd.I32), I64))


def _gather_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, inputs, places, weights, count = args

    def add(n: Any, sums: simd.Values) -> simd.Values:
        block = _block(b, inputs, places, n)
        weight = simd.broadcast(b, simd.scalar(b, simd.place(b, weights, n, 4)))
        return [simd.fma(b, simd.load(b, block, simd.LINE * v), weight, s) for v, s in enumerate(sums)]

    def step(n: Any, sums: simd.Values) -> simd.Values:
        made = []
        for chain in range(_CHAINS):
            part = sums[_VECTORS * chain : _VECTORS * (chain + 1)]
            made += add(simd.place(b, ir.Constant(I64, chain), n, _CHAINS), part)
        return made

    rounds = b.sdiv(count, ir.Constant(I64, _CHAINS))
    sums = simd.loop(b, rounds, [simd.ZERO] * (_VECTORS * _CHAINS), step)
    done = b.mul(rounds, ir.Constant(I64, _CHAINS))
    rest = b.sub(count, done)
    first = simd.loop(b, rest, sums[:_VECTORS], lambda n, part: add(b.add(done, n), part))
    for v, value in enumerate(first):
        for chain in range(1, _CHAINS):
            value = b.fadd(value, sums[_VECTORS * chain + v])  # noqa: PLW2901
        simd.store(b, value, target, simd.LINE * v)


@lowered(_gather_codegen)
def gather(target: int, inputs: int, places: int, weights: int, count: int) -> None:
    """Write the sum of weight * block over `count` kept weights: float32[64]; inputs: float32[...][64].

    places: uint32, where the block of each begins.
    """


def _dots_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    sums, grads, inputs, places, count = args
    lefts = [simd.load(b, grads, simd.LINE * v) for v in range(_VECTORS)]

    def step(n: Any, _: simd.Values) -> simd.Values:
        block, line = _block(b, inputs, places, n), simd.place(b, sums, n, simd.LINE)
        value = simd.load(b, line)
        for v, left in enumerate(lefts):
            value = simd.fma(b, simd.load(b, block, simd.LINE * v), left, value)
        simd.store(b, value, line)
        return []

    simd.loop(b, count, [], step)


@lowered(_dots_codegen)
def add_dots(sums: int, grads: int, inputs: int, places: int, count: int) -> None:
    """Add grads * block of each of `count` kept weights to its 16 partial sums; grads: float32[64]."""


def _totals_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    target, places, sums, count = args

    def step(n: Any, _: simd.Values) -> simd.Values:
        value = simd.total(b, simd.load(b, simd.place(b, sums, n, simd.LINE)))
        column = b.zext(simd.scalar(b, simd.place(b, places, n, 4), kind=simd.I32), I64)
        place = b.add(target, b.lshr(column, ir.Constant(I64, (BLOCK_SIZE // 4).bit_length() - 1)))
        b.store(value, b.inttoptr(place, simd.F32.as_pointer()), align=4)
        return []

    simd.loop(b, count, [], step)


@lowered(_totals_codegen)
def scatter_totals(target: int, places: int, sums: int, count: int) -> None:
    """Write the sum of 16 partial sums of each of `count` kept weights to its column of a row."""


def _kept_codegen(_ctx: Any, b: Any, args: list[Any]) -> Any:
    places, weights, source, mask, columns = args
    numbers = ir.Constant(simd.WORDS, [ir.Constant(simd.I32, BLOCK_SIZE * n) for n in range(simd.LANES)])

    def step(n: Any, values: simd.Values) -> simd.Values:
        first = b.mul(n, ir.Constant(I64, simd.LANES))
        lanes = simd.kept(b, b.add(mask, first), simd.flags(b, b.sub(columns, first)))
        value = simd.load_part(b, simd.place(b, source, n, simd.LINE), lanes)
        base = simd.every(b, b.trunc(b.mul(first, ir.Constant(I64, BLOCK_SIZE)), simd.I32))
        offset = b.mul(values[0], ir.Constant(I64, 4))
        simd.compress(b, value, b.add(weights, offset), lanes)
        simd.compress(b, b.add(base, numbers), b.add(places, offset), lanes)
        return [b.add(values[0], simd.flag_count(b, lanes))]

    rounds = b.lshr(b.add(columns, ir.Constant(I64, simd.LANES - 1)), ir.Constant(I64, 4))
    return simd.loop(b, rounds, [ir.Constant(I64, 0)], step)[0]


@lowered(_kept_codegen)
def keep_row(  # type: ignore[empty-body]
    places: int, weights: int, source: int, mask: int, columns: int
) -> int:
    """Write the kept weights of a row side by side, and where the block of each begins; return how many."""


@kernel
def count_kept(mask: int, count: int) -> int:
    """Return how many of `count` bytes, each 0 or 1, are 1."""
    total = 0
    for n in range(count // 8):
        total += wrapping_multiply(load_i64(mask + 8 * n), _ONES) >> 56  # their sum is the top byte
    for n in range(count // 8 * 8, count):
        total += load_u8(mask + n)
    return total


@kernel
def pattern(source: int, mask: int, rows: int, columns: int, starts: int, places: int, weights: int) -> None:
    """Write the kept weights row by row; starts: int64[rows + 1], the number of the first of each row."""
    count = 0
    for row in range(rows):
        store_i64(starts + 8 * row, count)
        base = row * columns
        count += keep_row(places + 4 * count, weights + 4 * count, source + 4 * base, mask + base, columns)
    store_i64(starts + 8 * rows, count)


@kernel
def turned(rows: int, columns: int, lists: int, turned_lists: int) -> None:
    """Write a pattern column by column.  Addresses of starts, places and weights stand in both lists.

    The starts of the result have one word more in front: int64[columns + 2].
    """
    starts, places, weights = load_i64(lists), load_i64(lists + 8), load_i64(lists + 16)
    by_column, new_places = load_i64(turned_lists), load_i64(turned_lists + 8)
    new_weights = load_i64(turned_lists + 16)
    clear(by_column, 8 * (columns + 2))
    for n in range(load_i64(starts + 8 * rows)):
        at = by_column + 8 * (load_u32(places + 4 * n) // BLOCK_SIZE + 2)
        store_i64(at, load_i64(at) + 1)
    for column in range(2, columns + 2):
        at = by_column + 8 * column
        store_i64(at, load_i64(at) + load_i64(at - 8))
    for row in range(rows):
        for n in range(load_i64(starts + 8 * row), load_i64(starts + 8 * row + 8)):
            at = by_column + 8 * (load_u32(places + 4 * n) // BLOCK_SIZE + 1)
            place = load_i64(at)
            store_i64(at, place + 1)
            store_i32(new_places + 4 * place, BLOCK_SIZE * row)
            store_i32(new_weights + 4 * place, load_u32(weights + 4 * n))
