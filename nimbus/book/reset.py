"""Emptying all books for a new run of the feed."""

from __future__ import annotations

from nimbus.book.layout import (
    BOOK,
    BOOKS,
    COUNTERS,
    EMPTY_WORD,
    LADDER,
    LADDER_CLASSES,
    NOTICES,
    BookState,
    count,
)
from nimbus.book.levels import WINDOW, WORD
from nimbus.book.publish import DEPTH_CELL, top_cell
from nimbus.messages import BOOK_ONE_SIDED, DEPTH, TOP_OF_BOOK
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, store_i64, store_u8, store_u16
from ringbuf.seqlock import begin_write, end_write

_BOOK, _BOOKS, _COUNTERS, _LADDER, _TOP = BOOK.at, BOOKS.at, COUNTERS.at, LADDER.at, TOP_OF_BOOK.at
_DEPTH = DEPTH.at
_BOOK_SIZE, _NOTICES_SIZE, _DEPTH_SIZE, _TOP_SIZE = BOOK.size, NOTICES.size, DEPTH.size, TOP_OF_BOOK.size


@inlined
def _empty_ladder(at: int, nothing: int) -> None:
    """Point a ladder at the block without room that all empty ladders share."""
    store_i64(at + _LADDER.end, nothing)
    store_i64(at + _LADDER.base, nothing)
    store_i64(at + _LADDER.limit, nothing)


@inlined
def _empty_cells(books: BookState, locate: int) -> None:
    """Publish that a locate has no book; the numbering of its updates goes on."""
    cell, depth_cell = top_cell(books, locate), books.depths + locate * DEPTH_CELL
    top = begin_write(cell)
    update = load_i64(top + _TOP.update)
    clear(top, _TOP_SIZE)
    store_i64(top + _TOP.update, update + 1 if update else 0)
    store_u16(top + _TOP.locate, locate)
    store_u8(top + _TOP.status, BOOK_ONE_SIDED)
    end_write(cell)
    if load_i64(depth_cell) != 0:  # published before
        depth = begin_write(depth_cell)
        clear(depth, _DEPTH_SIZE)
        store_u16(depth + _DEPTH.locate, locate)
        store_u8(depth + _DEPTH.status, BOOK_ONE_SIDED)
        end_write(depth_cell)


@kernel
def reset(books: BookState) -> None:
    """Empty every book, the directory, marks and states; counters and update numbers go on.

    On memory that is all zero (a new one) it touches the rows and top cells only.
    """
    words = books.words
    used = load_i64(words + _BOOKS.ladder_next) != 0
    start = load_i64(words + _BOOKS.ladder_start)
    nothing = start + WINDOW * WORD
    for i in range(WINDOW):
        store_i64(start + i * WORD, EMPTY_WORD)
    store_i64(words + _BOOKS.ladder_next, nothing)
    for size_class in range(LADDER_CLASSES):
        store_i64(words + _BOOKS.free_ladders + size_class * WORD, 0)
    if used:
        clear(books.heads, (books.mask + 1) * 4)
        clear(load_i64(words + _BOOKS.symbols), (load_i64(words + _BOOKS.symbols_mask) + 1) * 4)
        clear(load_i64(words + _BOOKS.notices), books.symbols_max * _NOTICES_SIZE)
    for locate in range(books.symbols_max):
        book = books.books + locate * _BOOK_SIZE
        clear(book, _BOOK_SIZE)
        _empty_ladder(book + _BOOK.bids, nothing)
        _empty_ladder(book + _BOOK.asks, nothing)
        _empty_cells(books, locate)
    for word in (
        _BOOKS.free_order, _BOOKS.orders_used, _BOOKS.free_level, _BOOKS.levels_used, _BOOKS.stamp,
        _BOOKS.exch_ns, _BOOKS.recv_ns, _BOOKS.phase, _BOOKS.breaker,
    ):  # fmt: skip
        store_i64(words + word, 0)
    count(books, _COUNTERS.resets)
