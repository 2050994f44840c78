"""What others see of a book: the seqlock cells (top, ten levels) and BOOK_EVENT records.

A top cell is written when the best price or size, the trading state, the short-sale state or the status
has changed, and at no other time.  `update` counts these writes.  A cell is written by the market loop
only, which may read it without the lock.

Locate 0 has no book: the status of its cell holds the marks of the market as a whole (BOOK_STALE and
BOOK_INCOMPLETE of a live feed), which whoever reads another cell adds to that one's.
"""

from __future__ import annotations

from typing import Final

from nimbus.book.layout import BOOK, BOOKS, COUNTERS, LADDER, BookState, count, runs_ended
from nimbus.book.levels import ladder_at
from nimbus.book.walk import level_count, level_px, level_qty, nth_from
from nimbus.messages import (
    BOOK_CROSSED,
    BOOK_EVENT,
    BOOK_HALTED,
    BOOK_ONE_SIDED,
    CHANGE,
    DEPTH,
    DEPTH_LEVEL,
    DEPTH_LEVELS,
    STATE_CHANGED,
    TOP_CHANGED,
    TOP_OF_BOOK,
    TRADED,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u16, store_i64, store_u8, store_u16
from ringbuf.seqlock import VALUE_AT, begin_write, cell_size, end_write

_BOOK, _BOOKS, _COUNTERS, _CHANGE, _LADDER = BOOK.at, BOOKS.at, COUNTERS.at, CHANGE.at, LADDER.at
_TOP, _DEPTH, _DEPTH_LEVEL, _EVENT = TOP_OF_BOOK.at, DEPTH.at, DEPTH_LEVEL.at, BOOK_EVENT.at
_BOOK_SIZE, _DEPTH_LEVEL_SIZE = BOOK.size, DEPTH_LEVEL.size
TOP_CELL: Final = cell_size(TOP_OF_BOOK)
DEPTH_CELL: Final = cell_size(DEPTH)
EVENT_LEVELS: Final = 5  # levels in the depth sums of BOOK_EVENT
TRADING: Final = ord("T")
assert _TOP.ask_px == _TOP.bid_px + 8
assert _TOP.ask_qty == _TOP.bid_qty + 8  # the side index picks the word


@inlined
def top_cell(books: BookState, locate: int) -> int:
    """Return the seqlock cell of the top of a locate (below symbols_max)."""
    cell: int = books.tops + locate * TOP_CELL
    return cell


@inlined
def top_at(books: BookState, locate: int) -> int:
    """Return the address of the TOP_OF_BOOK of a locate; only the market loop may read it there."""
    return top_cell(books, locate) + VALUE_AT


@inlined
def status_of(books: BookState, locate: int, bid_px: int, ask_px: int, state: int) -> int:
    """Return the BOOK_* bits of a book with this top and trading state."""
    book = books.books + locate * _BOOK_SIZE
    status = load_u8(book + _BOOK.marks)
    if bid_px == 0 or ask_px == 0:
        status |= BOOK_ONE_SIDED
    elif bid_px >= ask_px:  # locked counts as crossed
        status |= BOOK_CROSSED
    if state not in (0, TRADING) or load_u8(book + _BOOK.closed) != 0:
        status |= BOOK_HALTED
    return status


@inlined
def stamp_top(books: BookState, top: int, cause: int) -> None:
    """Give a top that is being written its number and times."""
    store_i64(top + _TOP.update, load_i64(top + _TOP.update) + 1)
    store_i64(top + _TOP.exch_ns, load_i64(books.words + _BOOKS.exch_ns))
    store_i64(top + _TOP.recv_ns, load_i64(books.words + _BOOKS.recv_ns))
    store_u8(top + _TOP.cause, cause)


@inlined
def publish_side(books: BookState, ladder: int, level: int, cause: int) -> int:
    """Publish a book of which `level` is the best of a ladder now, if that shows; return the flags."""
    locate, side_at = ladder >> 1, (ladder & 1) * 8
    px, qty = level_px(books, level), level_qty(books, level)
    cell = top_cell(books, locate)
    px_at, qty_at = cell + VALUE_AT + _TOP.bid_px + side_at, cell + VALUE_AT + _TOP.bid_qty + side_at
    if load_i64(px_at) == px and load_i64(qty_at) == qty:
        return 0
    other_px = load_i64(cell + VALUE_AT + _TOP.ask_px - side_at)
    low, high = (px, other_px) if side_at == 0 else (other_px, px)
    before, state = load_u8(cell + VALUE_AT + _TOP.status), load_u8(cell + VALUE_AT + _TOP.state)
    status = status_of(books, locate, low, high, state)
    top = begin_write(cell)
    stamp_top(books, top, cause)
    store_i64(px_at, px)
    store_i64(qty_at, qty)
    store_u8(top + _TOP.status, status)
    end_write(cell)
    count(books, _COUNTERS.tops)
    return TOP_CHANGED if before == status else TOP_CHANGED | STATE_CHANGED


@kernel
def publish_state(books: BookState, locate: int, state: int, short_sale: int, cause: int) -> int:
    """Publish a trading state, a short-sale state and the status they give, if any differs.

    Returns STATE_CHANGED or 0.
    """
    cell = top_cell(books, locate)
    top = cell + VALUE_AT
    bid_px, ask_px = load_i64(top + _TOP.bid_px), load_i64(top + _TOP.ask_px)
    status = status_of(books, locate, bid_px, ask_px, state)
    if (
        state == load_u8(top + _TOP.state)
        and short_sale == load_u8(top + _TOP.short_sale)
        and status == load_u8(top + _TOP.status)
    ):
        return 0
    begin_write(cell)
    stamp_top(books, top, cause)
    store_u8(top + _TOP.state, state)
    store_u8(top + _TOP.short_sale, short_sale)
    store_u8(top + _TOP.status, status)
    end_write(cell)
    return STATE_CHANGED


@kernel
def mark(books: BookState, locate: int, marks_set: int, marks_cleared: int, cause: int) -> int:
    """Set and clear marks (BOOK_STALE, BOOK_INCOMPLETE, BOOK_FAULTY) of a locate; publish; return flags.

    Marks of locate 0 count for every book, at the cost of one.
    """
    marks_at = books.books + locate * _BOOK_SIZE + _BOOK.marks
    store_u8(marks_at, (load_u8(marks_at) & ~marks_cleared) | marks_set)
    top = top_at(books, locate)
    return publish_state(books, locate, load_u8(top + _TOP.state), load_u8(top + _TOP.short_sale), cause)


@kernel
def mark_all(books: BookState, marks_set: int, marks_cleared: int) -> None:
    """Set and clear marks of all locates: a gap, a start in mid-session, a snapshot."""
    for locate in range(1, books.symbols_max):
        mark(books, locate, marks_set, marks_cleared, 0)


@inlined
def market_marks(books: BookState) -> int:
    """Return the marks that count for every book."""
    return load_u8(books.books + _BOOK.marks)


@inlined
def depth_sum(books: BookState, ladder: int) -> int:
    """Return the shares on the EVENT_LEVELS best levels of a ladder."""
    at, qty = ladder_at(books, ladder), 0
    base, end = load_i64(at + _LADDER.base), load_i64(at + _LADDER.end)
    for n in range(EVENT_LEVELS):
        qty += level_qty(books, nth_from(base, end, n))
    return qty


@kernel
def write_event(books: BookState, change: int, event: int) -> None:
    """Fill the BOOK_EVENT at event from the CHANGE that apply() has just written, and from its book."""
    locate = load_u16(change + _CHANGE.locate)
    if locate >= books.symbols_max:  # a refused message may name any locate; row 0 is always there
        locate = 0
    top = top_at(books, locate)
    store_i64(event + _EVENT.seq, load_i64(change + _CHANGE.seq))
    store_i64(event + _EVENT.exch_ns, load_i64(change + _CHANGE.exch_ns))
    store_i64(event + _EVENT.recv_ns, load_i64(books.words + _BOOKS.recv_ns))
    store_i64(event + _EVENT.update, load_i64(top + _TOP.update))
    store_i64(event + _EVENT.bid_px, load_i64(top + _TOP.bid_px))
    store_i64(event + _EVENT.ask_px, load_i64(top + _TOP.ask_px))
    store_i64(event + _EVENT.bid_qty, load_i64(top + _TOP.bid_qty))
    store_i64(event + _EVENT.ask_qty, load_i64(top + _TOP.ask_qty))
    store_i64(event + _EVENT.bid_depth_qty, depth_sum(books, 2 * locate))
    store_i64(event + _EVENT.ask_depth_qty, depth_sum(books, 2 * locate + 1))
    store_i64(event + _EVENT.trade_px, load_i64(change + _CHANGE.trade_px))
    store_i64(event + _EVENT.trade_qty, load_i64(change + _CHANGE.trade_qty))
    store_i64(event + _EVENT.order_ref, load_i64(change + _CHANGE.order_ref))
    store_i64(event + _EVENT.run, runs_ended(books))
    store_u16(event + _EVENT.locate, locate)
    store_u8(event + _EVENT.cause, load_u8(change + _CHANGE.cause))
    flags = load_u8(change + _CHANGE.flags)
    store_u8(event + _EVENT.flags, flags)
    store_u8(event + _EVENT.state, load_u8(top + _TOP.state))
    store_u8(event + _EVENT.status, load_u8(top + _TOP.status) | market_marks(books))
    store_u8(event + _EVENT.short_sale, load_u8(top + _TOP.short_sale))
    store_u8(event + _EVENT.resting_side, load_u8(change + _CHANGE.side) if flags & TRADED else 0)
    store_i64(event + _EVENT.pad, 0)


@inlined
def copy_levels(books: BookState, ladder: int, target: int) -> None:
    """Write the DEPTH_LEVELS best levels of a ladder as DEPTH_LEVEL records; missing ones are zero."""
    at = ladder_at(books, ladder)
    base, end = load_i64(at + _LADDER.base), load_i64(at + _LADDER.end)
    for n in range(DEPTH_LEVELS):
        level, row = nth_from(base, end, n), target + n * _DEPTH_LEVEL_SIZE
        store_i64(row + _DEPTH_LEVEL.px, level_px(books, level))
        store_i64(row + _DEPTH_LEVEL.qty, level_qty(books, level))
        store_i64(row + _DEPTH_LEVEL.count, level_count(books, level))


@kernel
def publish_depth(books: BookState, locate: int) -> None:
    """Write the DEPTH cell of a locate from its book as it stands."""
    cell, top = books.depths + locate * DEPTH_CELL, top_at(books, locate)
    depth = begin_write(cell)
    store_i64(depth + _DEPTH.update, load_i64(top + _TOP.update))
    store_i64(depth + _DEPTH.exch_ns, load_i64(books.words + _BOOKS.exch_ns))
    store_i64(depth + _DEPTH.recv_ns, load_i64(books.words + _BOOKS.recv_ns))
    store_u16(depth + _DEPTH.locate, locate)
    store_u8(depth + _DEPTH.state, load_u8(top + _TOP.state))
    store_u8(depth + _DEPTH.status, load_u8(top + _TOP.status) | market_marks(books))
    copy_levels(books, 2 * locate, depth + _DEPTH.bids)
    copy_levels(books, 2 * locate + 1, depth + _DEPTH.asks)
    end_write(cell)
