"""A pasted function that adds 0 to an address leaves its caller whole (see set_option in ringbuf/jit.py)."""

from __future__ import annotations

import numpy as np

from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, store_i64


@inlined
def row_at(base: int, row: int) -> int:
    """Return the address of a row: two rows of 24 bytes in each 64."""
    return base + (row >> 1) * 64 + (row & 1) * 24


@inlined
def nth_from_end(base: int, row: int, n: int) -> int:
    """Read a word n places before the end of the list that the row names."""
    at = row_at(base, row)
    word_at = load_i64(at) - (n + 1) * 8
    return load_i64(word_at) if word_at >= load_i64(at + 8) else 0


@inlined
def copy_list(base: int, row: int, target: int) -> None:
    """Copy the ten last words of the list, the last one first."""
    for n in range(10):
        store_i64(target + 8 * n, nth_from_end(base, row, n))


@kernel
def copy_even_row(base: int, row: int, target: int) -> None:
    copy_list(base, 2 * row, target)


def test_an_offset_that_is_zero_in_the_caller_is_no_null_pointer():
    words, rows, target = np.arange(100, 112), np.zeros(16, np.int64), np.zeros(10, np.int64)
    first = words.ctypes.data
    rows[8], rows[9] = first + 12 * 8, first
    copy_even_row(rows.ctypes.data, 1, target.ctypes.data)
    assert target.tolist() == list(range(111, 101, -1))
