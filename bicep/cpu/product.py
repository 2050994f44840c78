"""Matrix products for small nets: C += A*B on blocks that fit the first cache, and their packing.

The innermost instruction holds a block of C in registers, `rows` x `vectors` of 16 floats: for each k it
loads a row of B once and broadcasts one number of A per row.  A is addressed by two steps, so the same
instruction makes x*W' (rows of x), g*W (rows of g) and g'*x (columns of g).  B is packed, masked on the
way, into rows that are whole vectors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir

from bicep import simd
from ringbuf.jit import kernel
from ringbuf.memory import I64, load_i64, lowered
from ringbuf.records import record

LANES: Final = simd.LANES
VECTOR_SIZE: Final = simd.LINE
# 32 registers of 16 floats hold 6 x 4 sums; 16 registers of 8 hold 6 x 1 (a vector takes two).
WIDE: Final = "NUMBA_CPU_NAME" not in os.environ and bool(
    llvmlite.binding.get_host_cpu_features().get("avx512f", False)
)

# What multiply() works on; addresses and steps in bytes.
PRODUCT = record(
    "PRODUCT",
    """
    i8  a         A
    i8  a_row     from a row of A to the next
    i8  a_step    from one k to the next
    i8  b         B, rows of whole vectors
    i8  b_step    from one k to the next
    i8  c         C, rows of whole vectors
    i8  c_row     from a row of C to the next
    i8  pad       zero
    """,
)
_P = PRODUCT.at

Product = Callable[[int, int, int, int, int, int, int, int], None]


def _product(rows: int, vectors: int) -> Product:
    def codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
        a, a_row, a_step, right, right_step, c, c_row, count = args
        targets = [b.add(c, b.mul(c_row, ir.Constant(I64, r))) for r in range(rows)]
        lefts = [b.add(a, b.mul(a_row, ir.Constant(I64, r))) for r in range(rows)]
        sums = [simd.load(b, at, VECTOR_SIZE * v) for at in targets for v in range(vectors)]

        def step(k: Any, sums: simd.Values) -> simd.Values:
            row, offset = b.add(right, b.mul(k, right_step)), b.mul(k, a_step)
            inputs = [simd.load(b, row, VECTOR_SIZE * v, align=4) for v in range(vectors)]
            numbers = [simd.broadcast(b, simd.scalar(b, b.add(left, offset))) for left in lefts]
            return [
                simd.fma(b, inputs[n % vectors], numbers[n // vectors], value) for n, value in enumerate(sums)
            ]

        for n, value in enumerate(simd.loop(b, count, sums, step)):
            simd.store(b, value, targets[n // vectors], VECTOR_SIZE * (n % vectors))

    @lowered(codegen)
    def block(a: int, a_row: int, a_step: int, b: int, b_step: int, c: int, c_row: int, k: int) -> None: ...

    return block


_block_6x4, _block_4x4, _block_1x4 = _product(6, 4), _product(4, 4), _product(1, 4)
_block_6x2, _block_4x2, _block_1x2 = _product(6, 2), _product(4, 2), _product(1, 2)
_block_6x1, _block_4x1, _block_1x1 = _product(6, 1), _product(4, 1), _product(1, 1)


@kernel
def multiply(product: int, rows: int, columns: int, count: int) -> None:
    """Add A*B to C: rows of A and C, columns (a multiple of 16) of B and C, count of the sum."""
    a, a_row, a_step = load_i64(product + _P.a), load_i64(product + _P.a_row), load_i64(product + _P.a_step)
    b_step, c_row = load_i64(product + _P.b_step), load_i64(product + _P.c_row)
    column = 0
    while column < columns:
        width = columns - column
        width = 64 if WIDE and width >= 64 else 32 if WIDE and width >= 32 else 16
        b, c = load_i64(product + _P.b) + 4 * column, load_i64(product + _P.c) + 4 * column
        row = 0
        while row < rows:
            left, top, target = rows - row, a + row * a_row, c + row * c_row
            height = 6 if left >= 6 else 4 if left >= 4 else 1
            if width == 64:
                if height == 6:
                    _block_6x4(top, a_row, a_step, b, b_step, target, c_row, count)
                elif height == 4:
                    _block_4x4(top, a_row, a_step, b, b_step, target, c_row, count)
                else:
                    _block_1x4(top, a_row, a_step, b, b_step, target, c_row, count)
            elif width == 32:
                if height == 6:
                    _block_6x2(top, a_row, a_step, b, b_step, target, c_row, count)
                elif height == 4:
                    _block_4x2(top, a_row, a_step, b, b_step, target, c_row, count)
                else:
                    _block_1x2(top, a_row, a_step, b, b_step, target, c_row, count)
            elif height == 6:
                _block_6x1(top, a_row, a_step, b, b_step, target, c_row, count)
            elif height == 4:
                _block_4x1(top, a_row, a_step, b, b_step, target, c_row, count)
            else:
                _block_1x1(top, a_row, a_step, b, b_step, target, c_row, count)
            row += height
        column += width
