"""A book as a value: the hash of all orders, and the best levels as a list."""

from __future__ import annotations

from typing import Final

import numpy as np

from nimbus.book.layout import LADDER, LEVEL, LOW, RESTING, BookState
from nimbus.book.levels import WORD, ladder_at
from nimbus.book.walk import level_count, level_px, level_qty, nth_level
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u32, store_i64, wrapping_multiply

_LADDER, _LEVEL, _RESTING = LADDER.at, LEVEL.at, RESTING.at
_LEVEL_SIZE, _ORDER_SIZE = LEVEL.size, RESTING.size
HASH_START: Final = -3750763034362895579  # 0xCBF29CE484222325: the FNV-1a start ...
HASH_FACTOR: Final = 1099511628211  # ... and prime
LEVEL_ROW: Final = 24  # bytes of one level in read_levels
FOLD_BITS: Final = 32
FOLD_MASK: Final = 0xFFFF_FFFF


@inlined
def fold(state: int, value: int) -> int:
    """Take one 64-bit value into a hash; the order of the values counts."""
    mixed = wrapping_multiply(state ^ value, HASH_FACTOR)
    return mixed ^ ((mixed >> FOLD_BITS) & FOLD_MASK)


@kernel
def state_hash(books: BookState) -> int:
    """Return a hash over all orders: locate, side, price from best to worst, then reference and quantity.

    Two books with the same orders in the same queues have the same hash, whatever slots they use.
    """
    result = HASH_START
    for ladder in range(2, 2 * books.symbols_max):
        at = ladder_at(books, ladder)
        word_at, base = load_i64(at + _LADDER.end) - WORD, load_i64(at + _LADDER.base)
        while word_at >= base:
            level = books.levels + (load_i64(word_at) & LOW) * _LEVEL_SIZE
            result = fold(fold(result, ladder), load_u32(level + _LEVEL.px))
            slot, left = load_u32(level + _LEVEL.next), load_u32(level + _LEVEL.count)
            while left > 0:
                order = books.orders + slot * _ORDER_SIZE
                result = fold(fold(result, load_i64(order + _RESTING.ref)), load_u32(order + _RESTING.qty))
                slot, left = load_u32(order + _RESTING.next), left - 1
            word_at -= WORD
    return result


@kernel
def live_orders(books: BookState) -> int:
    """Return the number of orders standing in all books."""
    total = 0
    for ladder in range(2, 2 * books.symbols_max):
        at = ladder_at(books, ladder)
        word_at = load_i64(at + _LADDER.base)
        while word_at < load_i64(at + _LADDER.end):
            total += level_count(books, load_i64(word_at) & LOW)
            word_at += WORD
    return total


@kernel
def read_levels(books: BookState, ladder: int, levels: int, target: int) -> int:
    """Write px, qty, count (i8 each) of the best `levels` levels of a ladder to target; return how many."""
    for n in range(levels):
        level = nth_level(books, ladder, n)
        if level == 0:
            return n
        row = target + n * LEVEL_ROW
        store_i64(row, level_px(books, level))
        store_i64(row + 8, level_qty(books, level))
        store_i64(row + 16, level_count(books, level))
    return levels


def depth(books: BookState, locate: int, side: int, levels: int) -> list[tuple[int, int, int]]:
    """Return the best levels of a side (B or S) as (px, qty, count), best first; cold."""
    rows = np.zeros((levels, 3), np.int64)
    found = read_levels(books, 2 * locate + (side & 1), levels, rows.ctypes.data)
    return [(int(px), int(qty), int(orders)) for px, qty, orders in rows[:found]]
