"""y = keep * scale * act(x (W.M)' + start) for float32, as one kernel.

`start` is what a sum begins with: nothing, the bias, or a row of a table that the batch row points at (the
news half of a first layer: its product is then made once per news state).  Three ways to make the product,
chosen by the number of rows and by the density: dot products (few rows), packed blocks, kept weights alone.
"""

from __future__ import annotations

from typing import Final

from bicep.cpu.product import PRODUCT, multiply
from bicep.cpu.rows import (
    GELU,
    RELU,
    SILU,
    add_transpose,
    copy_row,
    finish_gelu,
    finish_none,
    finish_relu,
    finish_silu,
    masked_dot,
    masked_transpose,
    transpose,
)
from bicep.cpu.sparse import BLOCK, BLOCK_SIZE, gather, pattern
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_f32, load_f64, load_i64, store_f32, store_i64
from ringbuf.records import CACHE_LINE, record

DOT, DENSE, SPARSE = 1, 2, 3  # LINEAR.way

LINEAR = record(
    "LINEAR",
    """
    i8  n           rows of the batch
    i8  inputs      of the layer
    i8  outputs     of the layer
    i8  x           float32 rows
    i8  x_row       bytes from one to the next
    i8  weights     float32[outputs][inputs]
    i8  mask        bytes [outputs][inputs], 0 = pruned
    i8  start       float32 rows, 0 = none
    i8  start_row   bytes from one to the next
    i8  state       int64[n]: the row of start, 0 = always the first
    i8  words       uint32 rows of keep words, one per 32 rows of the batch
    i8  words_row   bytes from one to the next
    i8  activation  NONE, GELU, RELU, SILU
    f8  scale       of what is kept
    i8  y           float32[n][outputs]: the result; backward: its gradient
    i8  saved       float32[n][outputs]: before the activation; 0 = not wanted
    i8  scratch     working memory, a whole cache line
    i8  dx          float32[n][inputs], 0 = not wanted
    i8  dw          float32[outputs][inputs]
    i8  dstart      float32 rows like start, zeros at first; 0 = not wanted
    i8  regrow      1 = the gradient of pruned weights too
    i8  way         DOT, DENSE, SPARSE
    i8  kept        weights that are not pruned; for SPARSE
    i8  pad         zero
    """,
)
_J, _P = LINEAR.at, PRODUCT.at
_PRODUCT_SIZE: Final = PRODUCT.size
_LINE: Final = CACHE_LINE

ROWS: Final = 48  # of a block going forward: its sums stay in the first cache
ROWS_BACK: Final = 96
DOT_ROWS_MAX: Final = 2
SPARSE_ROWS_MIN: Final = 64


def _whole(count: int) -> int:
    return -(-count // 16) * 16


def scratch_size(inputs: int, outputs: int, kept: int) -> int:
    """Return the bytes of working memory that any way, forward or backward, needs; kept: for SPARSE."""
    wide, high = _whole(inputs), _whole(outputs)
    packed = _PRODUCT_SIZE + 8 * wide * high
    lists = 8 * (wide + high + 8) + (16 + _LINE) * kept
    blocks = 4 * (ROWS_BACK + BLOCK) * 2 * (wide + high)
    return packed + lists + blocks + 8 * _LINE


@inlined
def padded(count: int) -> int:
    """Return a number of floats rounded up to whole vectors."""
    return (count + 15) // 16 * 16


@inlined
def lines(size: int) -> int:
    """Return a number of bytes rounded up to whole cache lines."""
    return (size + _LINE - 1) // _LINE * _LINE


@kernel
def _start_rows(job: int, first: int, rows: int, target: int) -> None:
    """Write what the sums of a block of rows begin with: whole vectors [rows][outputs]."""
    outputs, start, state = load_i64(job + _J.outputs), load_i64(job + _J.start), load_i64(job + _J.state)
    row_size, start_row = 4 * padded(outputs), load_i64(job + _J.start_row)
    if start == 0:
        clear(target, rows * row_size)
        return
    for row in range(rows):
        place = start
        if state != 0:
            place += load_i64(state + 8 * (first + row)) * start_row
        copy_row(target + row * row_size, place, outputs)


@kernel
def _finish_rows(job: int, first: int, rows: int, sums: int) -> None:
    """Activate and drop out a block of rows; write it to y, and the sums to saved."""
    outputs, activation = load_i64(job + _J.outputs), load_i64(job + _J.activation)
    row_size, scale = 4 * padded(outputs), load_f64(job + _J.scale)
    y, saved = load_i64(job + _J.y), load_i64(job + _J.saved)
    words, words_row = load_i64(job + _J.words), load_i64(job + _J.words_row)
    for row in range(rows):
        n = first + row
        source, target, keep = sums + row * row_size, y + 4 * n * outputs, words + n // 32 * words_row
        place = saved
        if place != 0:
            place += 4 * n * outputs
        if activation == GELU:
            finish_gelu(source, target, place, keep, n % 32, outputs, scale)
        elif activation == RELU:
            finish_relu(source, target, place, keep, n % 32, outputs, scale)
        elif activation == SILU:
            finish_silu(source, target, place, keep, n % 32, outputs, scale)
        else:
            finish_none(source, target, place, keep, n % 32, outputs, scale)


@kernel
def transpose_rows(source: int, source_row: int, rows: int, columns: int, target: int) -> None:
    """Write up to 64 rows turned: float32[whole vectors of columns][64], filled up with 0."""
    for column in range(0, columns, 16):
        for row in range(0, BLOCK, 16):
            transpose(
                target + column * BLOCK_SIZE + 4 * row,
                BLOCK_SIZE,
                source + row * source_row + 4 * column,
                source_row,
                rows - row,
                columns - column,
            )


@kernel
def turn_back(turned_rows: int, rows: int, columns: int, sums: int) -> None:
    """Add float32[columns][64] to whole vectors [rows][columns]; rows, columns: multiples of 16."""
    for column in range(0, columns, 16):
        for row in range(0, rows, 16):
            add_transpose(
                sums + 4 * (row * columns + column),
                4 * columns,
                turned_rows + column * BLOCK_SIZE + 4 * row,
                BLOCK_SIZE,
            )


@kernel
def _forward_dots(job: int) -> None:
    n, inputs, outputs = load_i64(job + _J.n), load_i64(job + _J.inputs), load_i64(job + _J.outputs)
    x, x_row, sums = load_i64(job + _J.x), load_i64(job + _J.x_row), load_i64(job + _J.scratch)
    weights, mask = load_i64(job + _J.weights), load_i64(job + _J.mask)
    row_size = 4 * padded(outputs)
    _start_rows(job, 0, n, sums)
    for output in range(outputs):
        base = output * inputs
        for row in range(n):
            place = sums + row * row_size + 4 * output
            value = masked_dot(x + row * x_row, weights + 4 * base, mask + base, inputs)
            store_f32(place, load_f32(place) + value)
    _finish_rows(job, 0, n, sums)


@kernel
def _forward_dense(job: int) -> None:
    n, inputs, outputs = load_i64(job + _J.n), load_i64(job + _J.inputs), load_i64(job + _J.outputs)
    x, x_row, scratch = load_i64(job + _J.x), load_i64(job + _J.x_row), load_i64(job + _J.scratch)
    weights, mask = load_i64(job + _J.weights), load_i64(job + _J.mask)
    wide, source_row = padded(outputs), 4 * inputs
    packed = scratch + _PRODUCT_SIZE
    sums = packed + 4 * wide * padded(inputs)
    for output in range(0, outputs, 16):
        for k in range(0, inputs, 16):
            base = output * inputs + k
            masked_transpose(
                packed + 4 * (k * wide + output),
                4 * wide,
                weights + 4 * base,
                source_row,
                outputs - output,
                inputs - k,
                mask + base,
            )
    store_i64(scratch + _P.a_row, x_row)
    store_i64(scratch + _P.a_step, 4)
    store_i64(scratch + _P.b, packed)
    store_i64(scratch + _P.b_step, 4 * wide)
    store_i64(scratch + _P.c, sums)
    store_i64(scratch + _P.c_row, 4 * wide)
    for first in range(0, n, ROWS):
        rows = min(ROWS, n - first)
        _start_rows(job, first, rows, sums)
        store_i64(scratch + _P.a, x + first * x_row)
        multiply(scratch, rows, wide, inputs)
        _finish_rows(job, first, rows, sums)


@kernel
def _forward_sparse(job: int) -> None:
    n, inputs, outputs = load_i64(job + _J.n), load_i64(job + _J.inputs), load_i64(job + _J.outputs)
    x, x_row, starts = load_i64(job + _J.x), load_i64(job + _J.x_row), load_i64(job + _J.scratch)
    wide = padded(outputs)
    weights, mask, kept = load_i64(job + _J.weights), load_i64(job + _J.mask), load_i64(job + _J.kept)
    places = starts + lines(8 * (outputs + 1))
    values = places + lines(4 * kept)
    blocks = values + lines(4 * kept)
    pattern(weights, mask, outputs, inputs, starts, places, values)
    products = blocks + BLOCK_SIZE * padded(inputs)
    sums = products + BLOCK_SIZE * wide
    clear(products, BLOCK_SIZE * wide)
    for first in range(0, n, BLOCK):
        rows = min(BLOCK, n - first)
        _start_rows(job, first, rows, sums)
        transpose_rows(x + first * x_row, x_row, rows, inputs, blocks)
        for output in range(outputs):
            begin, end = load_i64(starts + 8 * output), load_i64(starts + 8 * output + 8)
            target = products + BLOCK_SIZE * output
            gather(target, blocks, places + 4 * begin, values + 4 * begin, end - begin)
        turn_back(products, padded(rows), wide, sums)
        _finish_rows(job, first, rows, sums)


@kernel
def forward(job: int) -> None:
    """Fill y, and saved if it is wanted; job: address of a LINEAR."""
    way = load_i64(job + _J.way)
    if way == DOT:
        _forward_dots(job)
    elif way == SPARSE:
        _forward_sparse(job)
    else:
        _forward_dense(job)
