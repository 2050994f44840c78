"""Price levels: the ladder of a side, and the queue of orders at each price.

Idea.  A side is a sorted array of words (key << 32 | level), best price last, because nearly everything
happens within a few prices of the best.  A price is sought by counting how many of the last eight words
are better, without a branch; only a price deeper than that takes a binary search.  A new or emptied level
moves the words above it by one.
Memory.  A ladder lives in a block of 16, 32, 64, ... words; a full one moves to a block twice as large and
its old block goes to the free list of that class.  Ladders do not shrink before the next reset.  In front
of each block stand eight words that are worse than any price, so the count needs no lower bound; behind it
eight words of slack, so words near the best are moved as one line, whatever their number.
Worst case: a change n prices away from the best moves n words (8 n bytes, about n / 4 ns).
Limits: levels_max levels and the ladder memory; at either an order that needs a new level is refused.
"""

from __future__ import annotations

from typing import Final

from nimbus.book.layout import BOOK, BOOKS, EMPTY_WORD, LADDER, LEVEL, LOW, RECORD_BITS, RESTING, BookState
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy_line, count_above, load_i64, load_u32, prefetch, store_i64, store_u32

_BOOK, _BOOKS, _LADDER, _LEVEL, _RESTING = BOOK.at, BOOKS.at, LADDER.at, LEVEL.at, RESTING.at
_BOOK_SIZE, _LADDER_SIZE, _LEVEL_SIZE, _ORDER_SIZE = BOOK.size, LADDER.size, LEVEL.size, RESTING.size
WORD: Final = 8
WINDOW: Final = 8  # words searched by counting, and words that stand in front of each block
LINE: Final = WINDOW * WORD  # what copy_line() moves: it loads all before it stores
FIRST_ROOM: Final = 16  # words in the smallest block; class c has room for FIRST_ROOM << c


@inlined
def ladder_at(books: BookState, ladder: int) -> int:
    """Return the address of ladder 2 x locate + side index."""
    at: int = books.books + (ladder >> 1) * _BOOK_SIZE + (ladder & 1) * _LADDER_SIZE
    return at


@inlined
def key_of(ladder: int, px: int) -> int:
    """Return the key of a price: larger is better."""
    return px if ladder & 1 == 0 else -px


@inlined
def knot_of(books: BookState, level: int) -> int:
    """Return the record number of a level: what the links of its first and last order say."""
    knot: int = ((books.levels - books.orders) >> RECORD_BITS) + level
    return knot


@inlined
def place_of(at: int, word: int) -> int:
    """Return the address past the last word of the ladder at `at` that is not better than `word`."""
    end = load_i64(at + _LADDER.end)
    better = count_above(end - LINE, word)
    if better < WINDOW:
        return end - better * WORD
    low, high = load_i64(at + _LADDER.base), end - LINE
    while low < high:  # words before low are not better, words from high on are
        middle = low + (((high - low) >> 4) << 3)
        if load_i64(middle) > word:
            high = middle
        else:
            low = middle + WORD
    return low


@inlined
def best_of(at: int) -> int:
    """Return the best level of the ladder at `at`, 0 when the side is empty."""
    return load_i64(load_i64(at + _LADDER.end) - WORD) & LOW


@inlined
def warm_best(books: BookState, locate: int) -> None:
    """Fetch both ladders of a symbol where they are best, and the levels there."""
    for ladder in (2 * locate, 2 * locate + 1):
        end = load_i64(ladder_at(books, ladder) + _LADDER.end)
        for word in range(1, WINDOW // 2 + 1):
            prefetch(books.levels + (load_i64(end - word * WORD) & LOW) * _LEVEL_SIZE)


@kernel
def grow(books: BookState, at: int) -> int:
    """Move a full ladder to a block twice as large; return 1, or 0 when no memory is left for one."""
    base, end = load_i64(at + _LADDER.base), load_i64(at + _LADDER.end)
    room = (load_i64(at + _LADDER.limit) - base) // WORD
    wanted, size_class, old_class = FIRST_ROOM, 0, -1
    while wanted <= room:
        old_class = size_class
        wanted, size_class = wanted * 2, size_class + 1
    lists = books.words + _BOOKS.free_ladders
    block = load_i64(lists + size_class * WORD)
    if block != 0:
        store_i64(lists + size_class * WORD, load_i64(block))
    else:
        block = load_i64(books.words + _BOOKS.ladder_next) + LINE
        if wanted * WORD + LINE > load_i64(books.words + _BOOKS.ladder_stop) - block:
            return 0
        store_i64(books.words + _BOOKS.ladder_next, block + wanted * WORD + LINE)
    for i in range(1, WINDOW + 1):
        store_i64(block - i * WORD, EMPTY_WORD)
    size = end - base
    for i in range(0, size, WORD):
        store_i64(block + i, load_i64(base + i))
    store_i64(at + _LADDER.base, block)
    store_i64(at + _LADDER.end, block + size)
    store_i64(at + _LADDER.limit, block + wanted * WORD)
    if old_class >= 0:
        store_i64(base, load_i64(lists + old_class * WORD))
        store_i64(lists + old_class * WORD, base)
    return 1


@inlined
def spare_level(books: BookState) -> int:
    """Return the level that would be given next, or 0 when all are in use."""
    level = load_i64(books.words + _BOOKS.free_level)
    if level != 0:
        return level
    used = load_i64(books.words + _BOOKS.levels_used)
    return used + 1 if used < load_i64(books.words + _BOOKS.levels_max) else 0


@inlined
def level_for(books: BookState, ladder: int, px: int) -> tuple[int, bool]:
    """Return the level of a price on a ladder, made when there is none, and whether it is the best.

    Level 0: there is no room for a new one, and nothing has changed.
    """
    at, key = ladder_at(books, ladder), key_of(ladder, px)
    end = load_i64(at + _LADDER.end)
    at_best = key >= load_i64(end - WORD) >> 32
    place = end if at_best else place_of(at, key << 32 | LOW)
    word = load_i64(place - WORD)
    if word >> 32 == key:
        return word & LOW, at_best
    level = spare_level(books)
    if level == 0:
        return 0, at_best
    if end == load_i64(at + _LADDER.limit):
        if grow(books, at) == 0:
            return 0, at_best
        place += load_i64(at + _LADDER.end) - end
        end = load_i64(at + _LADDER.end)
    record = books.levels + level * _LEVEL_SIZE
    if level == load_i64(books.words + _BOOKS.free_level):
        store_i64(books.words + _BOOKS.free_level, load_u32(record + _LEVEL.next))
    else:
        store_i64(books.words + _BOOKS.levels_used, level)
    if not at_best:
        insert_room(place, end)
    store_i64(place, key << 32 | level)
    store_i64(at + _LADDER.end, end + WORD)
    store_i64(record + _LEVEL.qty, 0)
    store_u32(record + _LEVEL.px, px)
    store_u32(record + _LEVEL.ladder, ladder)
    store_u32(record + _LEVEL.count, 0)
    store_u32(record + _LEVEL.next, knot_of(books, level))
    store_u32(record + _LEVEL.prev, knot_of(books, level))
    return level, at_best


@inlined
def insert_room(place: int, end: int) -> None:
    """Move the words from place to end up by one."""
    while end - place > LINE:
        store_i64(end, load_i64(end - WORD))
        end -= WORD
    copy_line(place + WORD, place)


@inlined
def drop_level(books: BookState, level: int, is_best: bool) -> None:
    """Take a level without orders out of its ladder and free it; is_best: it is the best of its ladder."""
    record = books.levels + level * _LEVEL_SIZE
    ladder = load_u32(record + _LEVEL.ladder)
    at = ladder_at(books, ladder)
    end = load_i64(at + _LADDER.end)
    if not is_best:
        move = place_of(at, key_of(ladder, load_u32(record + _LEVEL.px)) << 32 | level)
        while move < end:
            copy_line(move - WORD, move)
            move += LINE
    store_i64(at + _LADDER.end, end - WORD)
    store_u32(record + _LEVEL.next, load_i64(books.words + _BOOKS.free_level))
    store_i64(books.words + _BOOKS.free_level, level)


@inlined
def append(books: BookState, level: int, slot: int, qty: int) -> None:
    """Put an order at the end of the queue of a level."""
    order, record = books.orders + slot * _ORDER_SIZE, books.levels + level * _LEVEL_SIZE
    last = load_u32(record + _LEVEL.prev)
    store_u32(order + _RESTING.qty, qty)
    store_u32(order + _RESTING.level, level)
    store_u32(order + _RESTING.prev, last)
    store_u32(order + _RESTING.next, knot_of(books, level))
    store_u32(books.orders + last * _ORDER_SIZE + _RESTING.next, slot)
    store_u32(record + _LEVEL.prev, slot)
    store_i64(record + _LEVEL.qty, load_i64(record + _LEVEL.qty) + qty)
    store_u32(record + _LEVEL.count, load_u32(record + _LEVEL.count) + 1)


@inlined
def leave(books: BookState, slot: int) -> int:
    """Take an order out of the queue of its level; return how many orders are left there."""
    order = books.orders + slot * _ORDER_SIZE
    record = books.levels + load_u32(order + _RESTING.level) * _LEVEL_SIZE
    before, behind = load_u32(order + _RESTING.prev), load_u32(order + _RESTING.next)
    store_u32(books.orders + before * _ORDER_SIZE + _RESTING.next, behind)
    store_u32(books.orders + behind * _ORDER_SIZE + _RESTING.prev, before)
    store_i64(record + _LEVEL.qty, load_i64(record + _LEVEL.qty) - load_u32(order + _RESTING.qty))
    left = load_u32(record + _LEVEL.count) - 1
    store_u32(record + _LEVEL.count, left)
    return left
