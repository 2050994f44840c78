"""Rows for `contrafusion book`: the best levels of a book each time they have changed.

record_row() is called after each message (a message is one MoldUDP64 sequence number).  It compares the
levels with those last written for the symbol and fills one row of a buffer when they differ; cold code
drains the buffer and formats it.  --bbo is the same with one level.

A row is int64: locate, sequence number, exchange ns since midnight, then for each level ask price, ask
shares, bid price, bid shares; a missing level is zeros.  The symbol that the locate stood for when the row
was made travels with it: a later run of the feed may give the locate to another, and a directory message
may come late.  A new run begins with empty books, so its first row is compared with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nimbus.book.layout import BOOK, BookState, runs_ended
from nimbus.book.owner import Books, symbol_word, word_text
from nimbus.book.walk import level_px, level_qty, nth_level
from nimbus.feed.itch import DIRECTORY
from nimbus.messages import CHANGE, DEPTH_CHANGED
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, load_u8, load_u16, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment

EXPORT = record(
    "EXPORT",
    """
    i8  rows      address of the row buffer
    i8  rows_max  rows it holds
    i8  used      rows in it
    i8  levels    levels of a row
    i8  last      for each locate what was last written, 4 x levels words, and runs_ended() of the books then
    i8  symbol    the only symbol to export (8 bytes), 0 = all
    i8  refused   rows that found the buffer full
    i8  several   1 = rows may be of more than one symbol: a second was announced, or a second locate had rows
    i8  first     the first symbol announced, 0 = none yet
    i8  first_locate  the locate it was last announced for
    i8  stray     first locate that had a row before its symbol was announced, 0 = none
    5i8 pad       zero
    """,
)
_EXPORT, _CHANGE, _BOOK, _BOOK_SIZE = EXPORT.at, CHANGE.at, BOOK.at, BOOK.size
HEAD_WORDS: Final = 3  # locate, sequence number, time
LEVEL_WORDS: Final = 4
LEVELS_MAX: Final = 1_000
ROWS_MAX: Final = 16_384
_R: Final = DIRECTORY.code


@inlined
def _announced(export: int, symbol: int, locate: int) -> None:
    """Take note of a directory message."""
    first, stray = load_i64(export + _EXPORT.first), load_i64(export + _EXPORT.stray)
    if first in (0, symbol):
        store_i64(export + _EXPORT.first, symbol)
        store_i64(export + _EXPORT.first_locate, locate)
    if first not in (0, symbol) or stray not in (0, locate):
        store_i64(export + _EXPORT.several, 1)


@inlined
def _strayed(export: int, locate: int) -> None:
    """Take note of a row of a locate whose symbol is not announced."""
    first, stray = load_i64(export + _EXPORT.first), load_i64(export + _EXPORT.stray)
    if stray == 0:
        store_i64(export + _EXPORT.stray, locate)
    is_other = first != 0 and load_i64(export + _EXPORT.first_locate) != locate
    if stray not in (0, locate) or is_other:
        store_i64(export + _EXPORT.several, 1)


@kernel
def record_row(export: int, books: BookState, change: int) -> int:
    """Add a row if the levels of the book of the CHANGE at change differ from the last row written.

    Returns how many more rows there is room for; at 0 the caller drains the buffer before it goes on (a
    row that finds no room is refused and counted).
    """
    room = load_i64(export + _EXPORT.rows_max) - load_i64(export + _EXPORT.used)
    locate, wanted = load_u16(change + _CHANGE.locate), load_i64(export + _EXPORT.symbol)
    if locate >= books.symbols_max:  # a message without a book may name any locate
        return room
    symbol = load_i64(books.books + locate * _BOOK_SIZE + _BOOK.symbol)
    if load_u8(change + _CHANGE.cause) == _R and symbol != 0:
        _announced(export, symbol, locate)
    if load_u8(change + _CHANGE.flags) & DEPTH_CHANGED == 0 or wanted not in (0, symbol):
        return room
    if room < 1:
        store_i64(export + _EXPORT.refused, load_i64(export + _EXPORT.refused) + 1)
        return 0
    levels = load_i64(export + _EXPORT.levels)
    words = LEVEL_WORDS * levels
    row = load_i64(export + _EXPORT.rows) + load_i64(export + _EXPORT.used) * (HEAD_WORDS + words + 1) * 8
    last, differs = load_i64(export + _EXPORT.last) + locate * (words + 1) * 8, 0
    if load_i64(last + words * 8) != runs_ended(books):
        clear(last, words * 8)
        store_i64(last + words * 8, runs_ended(books))
    for n in range(levels):
        for side in range(2):
            level = nth_level(books, 2 * locate + 1 - side, n)
            at = (LEVEL_WORDS * n + 2 * side) * 8
            px, qty = level_px(books, level), level_qty(books, level)
            differs |= (px ^ load_i64(last + at)) | (qty ^ load_i64(last + at + 8))
            store_i64(last + at, px)
            store_i64(last + at + 8, qty)
            store_i64(row + HEAD_WORDS * 8 + at, px)
            store_i64(row + HEAD_WORDS * 8 + at + 8, qty)
    if differs == 0:
        return room
    store_i64(row, locate)
    store_i64(row + 8, load_i64(change + _CHANGE.seq))
    store_i64(row + 16, load_i64(change + _CHANGE.exch_ns))
    store_i64(row + (HEAD_WORDS + words) * 8, symbol)
    if symbol == 0:
        _strayed(export, locate)
    store_i64(export + _EXPORT.used, load_i64(export + _EXPORT.used) + 1)
    return room - 1


class Export:
    """The row buffer of one output; `addr` goes to record_row().

    name: of its areas in the segment; levels: per side; symbol: the only one to write, "" = all.
    """

    def __init__(
        self,
        segment: Segment,
        name: str,
        books: Books,
        levels: int,
        symbol: str = "",
        rows_max: int = ROWS_MAX,
    ) -> None:
        if not 1 <= levels <= LEVELS_MAX:
            msg = f"levels must be between 1 and {LEVELS_MAX}, got {levels}"
            raise ValueError(msg)
        self.levels, self.width = levels, HEAD_WORDS + LEVEL_WORDS * levels + 1
        self.addr = segment.allocate(name, EXPORT.size)
        rows = segment.allocate(f"{name}.rows", rows_max * self.width * 8)
        last = segment.allocate(f"{name}.last", books.symbols_max * (LEVEL_WORDS * levels + 1) * 8)
        self._rows = segment.words(rows, rows_max * self.width).reshape(rows_max, self.width)
        self._words = segment.array(name, EXPORT)
        self._words["rows"], self._words["rows_max"], self._words["last"] = rows, rows_max, last
        self._words["levels"], self._words["symbol"] = levels, symbol_word(symbol) if symbol else 0

    @property
    def refused(self) -> int:
        """Rows lost because the buffer was not drained in time."""
        return int(self._words["refused"][0])

    @property
    def several(self) -> bool:
        """Whether the capture has shown more than one symbol so far."""
        return bool(self._words["several"][0])

    def drain(self) -> tuple[NDArray[np.int64], list[str]]:
        """Return the rows written since the last call (a copy) and the label of each; empty the buffer."""
        used = int(self._words["used"][0])
        self._words["used"][0] = 0
        rows = self._rows[:used].copy()
        names: dict[tuple[int, int], str] = {}
        labels = [
            names.get(key) or names.setdefault(key, label_of(*key))
            for key in map(tuple, rows[:, [-1, 0]].tolist())
        ]
        return rows[:, :-1], labels


def label_of(symbol8: int, locate: int) -> str:
    """Return the symbol that a row bears; @LOCATE when none was announced for its locate."""
    return word_text(symbol8) if symbol8 else f"@{locate}"


def csv_field(text: str) -> str:
    """Return a text as a field of CSV (RFC 4180)."""
    return '"' + text.replace('"', '""') + '"' if {",", '"'} & set(text) else text


def bbo_header(*, with_symbol: bool) -> str:
    """Return the first line of --bbo."""
    return (
        "symbol," if with_symbol else ""
    ) + "mold_seq,ts_ns_since_midnight,ask_px_1e4,ask_sz,bid_px_1e4,bid_sz"


def depth_header(levels: int, *, with_symbol: bool) -> str:
    """Return the first line of --depth."""
    columns = [f"a{n}p,a{n}q,b{n}p,b{n}q" for n in range(1, levels + 1)]
    return ("symbol," if with_symbol else "") + ",".join(["mold_seq,ts_ns", *columns])


def csv_text(rows: NDArray[np.int64], labels: Sequence[str] | None = None) -> str:
    """Return rows as CSV lines; labels: the leading symbol column, None = no such column."""
    lines = [",".join(map(str, row[1:])) + "\n" for row in rows.tolist()]
    if labels is None:
        return "".join(lines)
    return "".join(f"{csv_field(label)},{line}" for label, line in zip(labels, lines, strict=True))
