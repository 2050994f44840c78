"""The full consistency check of the books: slow, for tests and `paranoid = true`."""

from __future__ import annotations

from typing import Final

from nimbus.book import order_map
from nimbus.book.layout import BOOK, BOOKS, LADDER, LEVEL, LOW, RESTING, BookState
from nimbus.book.levels import WINDOW, WORD, best_of, key_of, knot_of, ladder_at
from nimbus.book.publish import status_of, top_at
from nimbus.book.walk import level_px, level_qty
from nimbus.messages import TOP_OF_BOOK
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u32

_BOOK, _BOOKS, _LADDER, _LEVEL = BOOK.at, BOOKS.at, LADDER.at, LEVEL.at
_RESTING, _TOP = RESTING.at, TOP_OF_BOOK.at
_BOOK_SIZE, _LEVEL_SIZE, _ORDER_SIZE = BOOK.size, LEVEL.size, RESTING.size

# What check_book() and check_books() answer; 0 = all is well.
FAULTS: Final = (
    "",
    "ladder lies outside its block",
    "ladder is not sorted, or a price stands twice",
    "level does not belong to its ladder, or its price differs",
    "queue is not linked in both directions",
    "queue is not in order of arrival",
    "order is not found by its reference",
    "order is empty",
    "level's sums differ from its orders",
    "published top differs from the book",
    "published status differs from the book",
    "orders standing and free do not add up to those used",
    "levels standing and free do not add up to those used",
)
(
    OUTSIDE, UNSORTED, FOREIGN, UNLINKED, UNORDERED, UNMAPPED, EMPTY, SUMS, TOP, STATUS, LOST_ORDERS,
    LOST_LEVELS,
) = range(1, 13)  # fmt: skip


@inlined
def _check_queue(books: BookState, level: int) -> int:
    """Walk the queue of a level; return a fault or 0."""
    record = books.levels + level * _LEVEL_SIZE
    left, qty, stamp = load_u32(record + _LEVEL.count), 0, 0
    knot = knot_of(books, level)
    slot, before = load_u32(record + _LEVEL.next), knot
    if left == 0:
        return EMPTY
    while left > 0:
        order = books.orders + slot * _ORDER_SIZE
        if (
            slot == 0
            or slot >= knot_of(books, 0)
            or load_u32(order + _RESTING.prev) != before
            or load_u32(order + _RESTING.level) != level
        ):
            return UNLINKED
        if load_u32(order + _RESTING.stamp) <= stamp:
            return UNORDERED
        if order_map.find(books, load_i64(order + _RESTING.ref)) != slot:
            return UNMAPPED
        if load_u32(order + _RESTING.qty) == 0:
            return EMPTY
        stamp = load_u32(order + _RESTING.stamp)
        qty += load_u32(order + _RESTING.qty)
        before, slot, left = slot, load_u32(order + _RESTING.next), left - 1
    if slot != knot or load_u32(record + _LEVEL.prev) != before:
        return UNLINKED
    return SUMS if qty != load_i64(record + _LEVEL.qty) else 0


@inlined
def _check_ladder(books: BookState, ladder: int) -> int:
    """Walk the words of a ladder; return a fault or 0."""
    at = ladder_at(books, ladder)
    base, end, limit = load_i64(at + _LADDER.base), load_i64(at + _LADDER.end), load_i64(at + _LADDER.limit)
    start, stop = load_i64(books.words + _BOOKS.ladder_start), load_i64(books.words + _BOOKS.ladder_next)
    if base < start + WINDOW * WORD or limit > stop or end < base or end > limit or (end - base) % WORD:
        return OUTSIDE
    key_before = -(2**40)
    for word_at in range(base, end, WORD):
        word = load_i64(word_at)
        key, level = word >> 32, word & LOW
        if key <= key_before:
            return UNSORTED
        record = books.levels + level * _LEVEL_SIZE
        if level < 1 or level > load_i64(books.words + _BOOKS.levels_used):
            return FOREIGN
        if load_u32(record + _LEVEL.ladder) != ladder or key_of(ladder, load_u32(record + _LEVEL.px)) != key:
            return FOREIGN
        fault = _check_queue(books, level)
        if fault != 0:
            return fault
        key_before = key
    return 0


@kernel
def check_book(books: BookState, locate: int) -> int:
    """Check both sides of a locate and its published top; return 0 or the number of the fault (FAULTS)."""
    for ladder in range(2 * locate, 2 * locate + 2):
        fault = _check_ladder(books, ladder)
        if fault != 0:
            return fault
    top = top_at(books, locate)
    bid, ask = best_of(ladder_at(books, 2 * locate)), best_of(ladder_at(books, 2 * locate + 1))
    bid_px, ask_px = level_px(books, bid), level_px(books, ask)
    if load_i64(top + _TOP.bid_px) != bid_px or load_i64(top + _TOP.bid_qty) != level_qty(books, bid):
        return TOP
    if load_i64(top + _TOP.ask_px) != ask_px or load_i64(top + _TOP.ask_qty) != level_qty(books, ask):
        return TOP
    status = status_of(books, locate, bid_px, ask_px, load_u8(top + _TOP.state))
    return STATUS if status != load_u8(top + _TOP.status) else 0


@inlined
def _standing(books: BookState, at: int) -> int:
    """Return how many orders stand on a ladder."""
    orders = 0
    for word_at in range(load_i64(at + _LADDER.base), load_i64(at + _LADDER.end), WORD):
        orders += load_u32(books.levels + (load_i64(word_at) & LOW) * _LEVEL_SIZE + _LEVEL.count)
    return orders


@kernel
def check_books(books: BookState) -> int:
    """Check every book, and that no order or level is lost; return 0 or the number of the fault."""
    orders, levels = 0, 0
    for locate in range(books.symbols_max):
        fault = check_book(books, locate)
        if fault != 0:
            return fault
        for side in range(2):
            at = ladder_at(books, 2 * locate + side)
            levels += (load_i64(at + _LADDER.end) - load_i64(at + _LADDER.base)) // WORD
            orders += _standing(books, at)
    used, slot = load_i64(books.words + _BOOKS.orders_used), load_i64(books.words + _BOOKS.free_order)
    while slot != 0 and orders <= used:
        orders, slot = orders + 1, load_u32(books.orders + slot * _ORDER_SIZE + _RESTING.next)
    if orders != used:
        return LOST_ORDERS
    used, level = load_i64(books.words + _BOOKS.levels_used), load_i64(books.words + _BOOKS.free_level)
    while level != 0 and levels <= used:
        levels, level = levels + 1, load_u32(books.levels + level * _LEVEL_SIZE + _LEVEL.next)
    return LOST_LEVELS if levels != used else 0
