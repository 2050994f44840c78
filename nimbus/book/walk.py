"""Reading a book from the market loop: best to worse, first to last.  -1 stands for "none" everywhere."""

from __future__ import annotations

from nimbus.book import levels, order_map
from nimbus.book.layout import LADDER, LEVEL, LOW, RESTING, BookState
from ringbuf.jit import inlined
from ringbuf.memory import load_i64, load_u32

_LADDER, _LEVEL, _RESTING = LADDER.at, LEVEL.at, RESTING.at
_LEVEL_SIZE, _ORDER_SIZE = LEVEL.size, RESTING.size


@inlined
def none_as_minus_one(index: int) -> int:
    """Turn the 0 that stands for "none" in memory into -1."""
    return index if index != 0 else -1


@inlined
def order_or_none(books: BookState, record: int) -> int:
    """Turn the knot of a queue into -1 and leave orders as they are."""
    return record if record < levels.knot_of(books, 0) else -1


@inlined
def ladder_of(locate: int, side: int) -> int:
    """Return the ladder number of a side (B or S) of a locate."""
    return 2 * locate + (side & 1)  # 'B' is even, 'S' is odd


@inlined
def best_level(books: BookState, locate: int, side: int) -> int:
    """Return the best level of a side (B or S); the locate must be below symbols_max."""
    return none_as_minus_one(levels.best_of(levels.ladder_at(books, ladder_of(locate, side))))


@inlined
def worse_level(books: BookState, level: int) -> int:
    """Return the next worse level of the same side."""
    record = books.levels + level * _LEVEL_SIZE
    ladder = load_u32(record + _LEVEL.ladder)
    key = levels.key_of(ladder, load_u32(record + _LEVEL.px))
    place = levels.place_of(levels.ladder_at(books, ladder), key << 32 | level)
    return none_as_minus_one(load_i64(place - 2 * levels.WORD) & LOW)


@inlined
def find_level(books: BookState, locate: int, side: int, px: int) -> int:
    """Return the level of a price (1 to PX_MAX)."""
    ladder = ladder_of(locate, side)
    key = levels.key_of(ladder, px)
    word = load_i64(levels.place_of(levels.ladder_at(books, ladder), key << 32 | LOW) - levels.WORD)
    return word & LOW if word >> 32 == key else -1


@inlined
def nth_from(base: int, end: int, n: int) -> int:
    """Return the level n places worse than the best of the ladder from base to end, 0 when there is none.

    The words in front of a block are read as they are: they say level 0 too.
    """
    word_at = end - (n + 1) * levels.WORD
    return load_u32(word_at) if n < levels.WINDOW or word_at >= base else 0


@inlined
def nth_level(books: BookState, ladder: int, n: int) -> int:
    """Return the level n places worse than the best of a ladder, 0 when there are not so many."""
    at = levels.ladder_at(books, ladder)
    return nth_from(load_i64(at + _LADDER.base), load_i64(at + _LADDER.end), n)


@inlined
def level_px(books: BookState, level: int) -> int:
    """Return the price of a level."""
    return load_u32(books.levels + level * _LEVEL_SIZE + _LEVEL.px)


@inlined
def level_qty(books: BookState, level: int) -> int:
    """Return the shares of a level."""
    return load_i64(books.levels + level * _LEVEL_SIZE + _LEVEL.qty)


@inlined
def level_count(books: BookState, level: int) -> int:
    """Return the number of orders of a level."""
    return load_u32(books.levels + level * _LEVEL_SIZE + _LEVEL.count)


@inlined
def level_locate(books: BookState, level: int) -> int:
    """Return the locate of a level."""
    return load_u32(books.levels + level * _LEVEL_SIZE + _LEVEL.ladder) >> 1


@inlined
def level_first(books: BookState, level: int) -> int:
    """Return the slot of the oldest order of a level."""
    return order_or_none(books, load_u32(books.levels + level * _LEVEL_SIZE + _LEVEL.next))


@inlined
def find_order(books: BookState, ref: int) -> int:
    """Return the slot of a live order reference."""
    return none_as_minus_one(order_map.find(books, ref))


@inlined
def order_next(books: BookState, order: int) -> int:
    """Return the slot of the order behind this one in its queue."""
    return order_or_none(books, load_u32(books.orders + order * _ORDER_SIZE + _RESTING.next))


@inlined
def order_ref(books: BookState, order: int) -> int:
    """Return the reference of an order."""
    return load_i64(books.orders + order * _ORDER_SIZE + _RESTING.ref)


@inlined
def order_qty(books: BookState, order: int) -> int:
    """Return the shares of an order."""
    return load_u32(books.orders + order * _ORDER_SIZE + _RESTING.qty)


@inlined
def order_stamp(books: BookState, order: int) -> int:
    """Return the arrival stamp of an order; smaller = earlier."""
    return load_u32(books.orders + order * _ORDER_SIZE + _RESTING.stamp)


@inlined
def order_level(books: BookState, order: int) -> int:
    """Return the level an order rests on."""
    return load_u32(books.orders + order * _ORDER_SIZE + _RESTING.level)
