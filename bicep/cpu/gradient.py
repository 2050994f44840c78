"""The gradients of the masked linear layer, for float32: what linear.py's forward goes back through.

The gradient of a pruned weight is exactly 0 unless `regrow` asks for it.
"""

from __future__ import annotations

from typing import Final

from bicep.cpu.linear import LINEAR, ROWS_BACK, SPARSE, lines, padded, transpose_rows, turn_back
from bicep.cpu.product import PRODUCT, multiply
from bicep.cpu.rows import (
    GELU,
    RELU,
    SILU,
    add_row,
    copy_row,
    copy_row_out,
    masked_row,
    masked_row_out,
    slope_gelu,
    slope_none,
    slope_relu,
    slope_silu,
)
from bicep.cpu.sparse import BLOCK, BLOCK_SIZE, add_dots, gather, pattern, scatter_totals, turned
from ringbuf.jit import kernel
from ringbuf.memory import clear, load_f64, load_i64, store_i64
from ringbuf.records import CACHE_LINE

_J, _P = LINEAR.at, PRODUCT.at
_PRODUCT_SIZE: Final = PRODUCT.size
_LINE: Final = CACHE_LINE


@kernel
def _slope_rows(job: int, first: int, rows: int, inner: int) -> None:
    """Write a block's gradient before the activation, whole vectors [rows][outputs]; add it to dstart."""
    outputs, activation = load_i64(job + _J.outputs), load_i64(job + _J.activation)
    row_size, scale = 4 * padded(outputs), load_f64(job + _J.scale)
    grads, saved = load_i64(job + _J.y), load_i64(job + _J.saved)
    words, words_row = load_i64(job + _J.words), load_i64(job + _J.words_row)
    dstart, state, start_row = (
        load_i64(job + _J.dstart),
        load_i64(job + _J.state),
        load_i64(job + _J.start_row),
    )
    for row in range(rows):
        n = first + row
        grad, sums = grads + 4 * n * outputs, saved + 4 * n * outputs
        target, keep = inner + row * row_size, words + n // 32 * words_row
        if activation == GELU:
            slope_gelu(grad, sums, target, keep, n % 32, outputs, scale)
        elif activation == RELU:
            slope_relu(grad, sums, target, keep, n % 32, outputs, scale)
        elif activation == SILU:
            slope_silu(grad, sums, target, keep, n % 32, outputs, scale)
        else:
            slope_none(grad, grad, target, keep, n % 32, outputs, scale)
        if dstart != 0:
            place = dstart
            if state != 0:
                place += load_i64(state + 8 * n) * start_row
            add_row(place, target, outputs)


@kernel
def _backward_dense(job: int) -> None:
    n, inputs, outputs = load_i64(job + _J.n), load_i64(job + _J.inputs), load_i64(job + _J.outputs)
    x, x_row, scratch = load_i64(job + _J.x), load_i64(job + _J.x_row), load_i64(job + _J.scratch)
    dx, wide, high = load_i64(job + _J.dx), padded(inputs), padded(outputs)
    packed = scratch + _PRODUCT_SIZE
    dw = packed + 4 * wide * high
    inner = dw + 4 * wide * high
    block = inner + 4 * ROWS_BACK * high
    if dx != 0:
        for output in range(outputs):
            base = output * inputs
            weights, mask = load_i64(job + _J.weights) + 4 * base, load_i64(job + _J.mask) + base
            masked_row(packed + 4 * output * wide, weights, mask, inputs)
    clear(dw, 4 * wide * outputs)
    for first in range(0, n, ROWS_BACK):
        rows = min(ROWS_BACK, n - first)
        _slope_rows(job, first, rows, inner)
        store_i64(scratch + _P.a, inner)
        store_i64(scratch + _P.c_row, 4 * wide)
        if dx != 0:
            clear(block, 4 * rows * wide)
            store_i64(scratch + _P.a_row, 4 * high)
            store_i64(scratch + _P.a_step, 4)
            store_i64(scratch + _P.b, packed)
            store_i64(scratch + _P.b_step, 4 * wide)
            store_i64(scratch + _P.c, block)
            multiply(scratch, rows, wide, outputs)
            for row in range(rows):
                copy_row_out(dx + 4 * (first + row) * inputs, block + 4 * row * wide, inputs)
        store_i64(scratch + _P.b, x + first * x_row)
        store_i64(scratch + _P.b_step, x_row)
        if wide != inputs:  # a row of x is not whole vectors
            for row in range(rows):
                copy_row(block + 4 * row * wide, x + (first + row) * x_row, inputs)
            store_i64(scratch + _P.b, block)
            store_i64(scratch + _P.b_step, 4 * wide)
        store_i64(scratch + _P.a_row, 4)
        store_i64(scratch + _P.a_step, 4 * high)
        store_i64(scratch + _P.c, dw)
        multiply(scratch, outputs, wide, rows)
    _write_dw(job, dw, wide)


@kernel
def _write_dw(job: int, sums: int, wide: int) -> None:
    """Write whole vectors [outputs][wide] to dw, 0 where a weight is pruned."""
    inputs, outputs = load_i64(job + _J.inputs), load_i64(job + _J.outputs)
    regrow, mask = load_i64(job + _J.regrow), load_i64(job + _J.mask)
    for output in range(outputs):
        target, source = load_i64(job + _J.dw) + 4 * output * inputs, sums + 4 * output * wide
        if regrow != 0:
            copy_row_out(target, source, inputs)
        else:
            masked_row_out(target, source, mask + output * inputs, inputs)


@kernel
def _lists(job: int, at: int) -> int:
    """Lay out and fill the lists of kept weights, by row and by column; return the address behind them.

    at: eight words, the addresses of starts, places and weights by row, then (from the fourth) by column.
    """
    inputs, outputs, kept = load_i64(job + _J.inputs), load_i64(job + _J.outputs), load_i64(job + _J.kept)
    end = at + _LINE
    for n in range(6):
        store_i64(at + 8 * n, end)
        size = 4 * kept
        if n == 0:
            size = 8 * (outputs + 1)
        elif n == 3:
            size = 8 * (inputs + 2)
        end += lines(size)
    starts, places, values = load_i64(at), load_i64(at + 8), load_i64(at + 16)
    pattern(load_i64(job + _J.weights), load_i64(job + _J.mask), outputs, inputs, starts, places, values)
    if load_i64(job + _J.dx) != 0:
        turned(outputs, inputs, at, at + 24)
    return end


@kernel
def _sparse_dx(job: int, lists: int, first: int, rows: int, grads: int, products: int) -> None:
    """Fill a block of rows of dx; behind products there is room for the block itself."""
    inputs, dx = load_i64(job + _J.inputs), load_i64(job + _J.dx)
    starts, places, values = load_i64(lists + 24), load_i64(lists + 32), load_i64(lists + 40)
    wide = padded(inputs)
    sums = products + BLOCK_SIZE * wide
    for k in range(inputs):
        begin, end = load_i64(starts + 8 * k), load_i64(starts + 8 * k + 8)
        gather(products + BLOCK_SIZE * k, grads, places + 4 * begin, values + 4 * begin, end - begin)
    clear(sums, 4 * BLOCK * wide)
    turn_back(products, padded(rows), wide, sums)
    for row in range(rows):
        copy_row_out(dx + 4 * (first + row) * inputs, sums + 4 * row * wide, inputs)


@kernel
def _backward_sparse(job: int) -> None:
    n, inputs, outputs = load_i64(job + _J.n), load_i64(job + _J.inputs), load_i64(job + _J.outputs)
    x, x_row, lists = load_i64(job + _J.x), load_i64(job + _J.x_row), load_i64(job + _J.scratch)
    wide, high, kept = padded(inputs), padded(outputs), load_i64(job + _J.kept)
    partial = _lists(job, lists)
    starts, places = load_i64(lists), load_i64(lists + 8)
    inner = partial + _LINE * kept
    blocks = inner + 4 * BLOCK * high
    grads = blocks + BLOCK_SIZE * wide
    products = grads + BLOCK_SIZE * high
    clear(products, BLOCK_SIZE * wide)
    clear(partial, _LINE * kept)
    for first in range(0, n, BLOCK):
        rows = min(BLOCK, n - first)
        _slope_rows(job, first, rows, inner)
        transpose_rows(inner, 4 * high, rows, outputs, grads)
        transpose_rows(x + first * x_row, x_row, rows, inputs, blocks)
        for output in range(outputs):
            begin, end = load_i64(starts + 8 * output), load_i64(starts + 8 * output + 8)
            left = grads + BLOCK_SIZE * output
            add_dots(partial + _LINE * begin, left, blocks, places + 4 * begin, end - begin)
        if load_i64(job + _J.dx) != 0:
            _sparse_dx(job, lists, first, rows, grads, products)
    dw = load_i64(job + _J.dw)
    clear(dw, 4 * inputs * outputs)
    for output in range(outputs):
        begin, end = load_i64(starts + 8 * output), load_i64(starts + 8 * output + 8)
        scatter_totals(dw + 4 * output * inputs, places + 4 * begin, partial + _LINE * begin, end - begin)


@kernel
def backward(job: int) -> None:
    """Fill dw, and dx and dstart if they are wanted; y holds the gradient, saved what forward saved."""
    if load_i64(job + _J.way) == SPARSE:
        _backward_sparse(job)
    else:
        _backward_dense(job)
