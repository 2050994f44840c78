"""The owner of the books: allocates their memory, resets them, and gives names to what is inside.

Sizes: 32 bytes an order and 8 to 16 of hash heads; 32 bytes a level and 64 of ladder words; a symbol takes
64 + 128 + 768 + 192 bytes (book, top cell, depth cell, notices) and its first two ladder blocks 512.
Pages that are never touched cost nothing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nimbus.book.directory import find_symbol
from nimbus.book.layout import (
    BOOK,
    BOOKS,
    COUNTED,
    COUNTERS,
    LEVEL,
    NOTICES,
    RESTING,
    BookState,
)
from nimbus.book.levels import FIRST_ROOM, WINDOW, WORD
from nimbus.book.publish import DEPTH_CELL, TOP_CELL
from nimbus.book.reset import reset
from nimbus.feed.itch import DIRECT_LISTING, LULD_COLLAR, NOII, RETAIL_INTEREST
from nimbus.messages import DEPTH, DEPTH_LEVEL, DEPTH_LEVELS, TOP_OF_BOOK
from ringbuf.segment import Segment
from ringbuf.seqlock import VALUE_AT, create_cells

SYMBOLS_MAX: Final = 8_192
LIVE_ORDERS_MAX: Final = 2_097_152
LEVELS_MAX: Final = 1_048_576
SYMBOLS_LIMIT: Final = 65_536  # a locate has 16 bits
SLOTS_LIMIT: Final = 1 << 31  # a slot or level has 32 bits, and its address must not overflow
NOTICE_MESSAGES: Final = {
    "luld": LULD_COLLAR, "noii": NOII, "retail": RETAIL_INTEREST, "listing": DIRECT_LISTING,
}  # fmt: skip


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


def table_sizes(symbols_max: int, live_orders_max: int, levels_max: int) -> dict[str, int]:
    """Return the bytes of each table of the books."""
    first_ladders = 2 * symbols_max * (FIRST_ROOM + 2 * WINDOW) * WORD
    return {
        "orders": (live_orders_max + 1) * RESTING.size,
        "levels": (levels_max + 1) * LEVEL.size,
        "heads": _power_of_two(2 * live_orders_max) * 4,
        "ladders": (WINDOW + 1) * WORD + first_ladders + 8 * levels_max * WORD,
        "rows": symbols_max * BOOK.size,
        "symbols": _power_of_two(2 * symbols_max) * 4,
        "tops": symbols_max * TOP_CELL,
        "depths": symbols_max * DEPTH_CELL,
        "notices": symbols_max * NOTICES.size,
        "words": BOOKS.size,
        "counters": COUNTERS.size,
    }


class Books:
    """All order books of a feed, in one segment; `state` goes to the kernels.

    symbols_max: locates 1 to symbols_max - 1 are accepted (at most 65,536).
    live_orders_max, levels_max: orders and price levels that may stand at one time, all symbols together.
    ladder_bytes: memory for ladders, in place of the default of table_sizes().
    """

    def __init__(
        self,
        segment: Segment,
        *,
        symbols_max: int = SYMBOLS_MAX,
        live_orders_max: int = LIVE_ORDERS_MAX,
        levels_max: int = LEVELS_MAX,
        ladder_bytes: int | None = None,
    ) -> None:
        if not 2 <= symbols_max <= SYMBOLS_LIMIT:
            msg = f"symbols_max must be between 2 and {SYMBOLS_LIMIT}, got {symbols_max}"
            raise ValueError(msg)
        for name, value in (("live_orders_max", live_orders_max), ("levels_max", levels_max)):
            if not 1 <= value < SLOTS_LIMIT:
                msg = f"{name} must be between 1 and {SLOTS_LIMIT - 1}, got {value}"
                raise ValueError(msg)
        sizes = table_sizes(symbols_max, live_orders_max, levels_max)
        if ladder_bytes is not None:
            sizes["ladders"] = ladder_bytes
        cells = {"tops": TOP_OF_BOOK, "depths": DEPTH}
        at = {
            name: create_cells(segment, f"book.{name}", symbols_max, cells[name])
            if name in cells
            else segment.allocate(f"book.{name}", size)
            for name, size in sizes.items()
        }
        assert at["orders"] < at["levels"]  # one space of record numbers, orders first
        self.segment, self.symbols_max = segment, symbols_max
        self.state = BookState(
            orders=at["orders"], levels=at["levels"], books=at["rows"], heads=at["heads"],
            mask=sizes["heads"] // 4 - 1, tops=at["tops"], depths=at["depths"], words=at["words"],
            counts=at["counters"], symbols_max=symbols_max,
        )  # fmt: skip
        self._words = segment.array("book.words", BOOKS)
        self._counters = segment.array("book.counters", COUNTERS)
        self._rows = segment.array("book.rows", BOOK)
        for name, value in {
            "orders_max": live_orders_max, "levels_max": levels_max, "symbols": at["symbols"],
            "symbols_mask": sizes["symbols"] // 4 - 1, "notices": at["notices"],
            "ladder_start": at["ladders"], "ladder_stop": at["ladders"] + sizes["ladders"],
        }.items():  # fmt: skip
            self._words[name][0] = value
        reset(self.state)
        self._counters["resets"][0] = 0

    def reset(self) -> None:
        """Empty all books and the directory for a new run; counters go on."""
        reset(self.state)

    def counters(self) -> dict[str, int]:
        """Return how often each thing happened (COUNTERS says what each means)."""
        return {name: int(self._counters[name][0]) for name in COUNTED}

    @property
    def phase(self) -> str:
        """The event code of the last system event (O S Q M E C), or "" before the first."""
        return chr(self._words["phase"][0]) if self._words["phase"][0] else ""

    @property
    def breaker(self) -> str:
        """The market-wide circuit breaker level reached ("1" to "3"), or ""."""
        return chr(self._words["breaker"][0]) if self._words["breaker"][0] else ""

    def symbol_text(self, locate: int) -> str:
        """Return the symbol of a locate, "" when none was announced; what is not printable ASCII is "?"."""
        return _printable(bytes(self._rows["symbol"][locate]))

    def symbols(self) -> dict[int, str]:
        """Return locate -> symbol for all that were announced."""
        return {n: self.symbol_text(n) for n in np.flatnonzero(self._rows["known"]).tolist()}

    def locate_of(self, symbol: str) -> int:
        """Return the locate of a symbol, or -1."""
        return find_symbol(self.state, symbol_word(symbol))

    def top(self, locate: int) -> dict[str, int]:
        """Return the TOP_OF_BOOK of a locate as name -> value (not for other threads: they use the cell)."""
        row = self._record(self.state.tops + locate * TOP_CELL + VALUE_AT, TOP_OF_BOOK.dtype)
        return {name: int(row[name]) for name in TOP_OF_BOOK.at._fields if name != "pad"}

    def published_depth(self, locate: int) -> dict[str, list[tuple[int, int, int]]]:
        """Return the DEPTH cell of a locate: "bids" and "asks", each a list of (px, qty, count)."""
        row = self._record(self.state.depths + locate * DEPTH_CELL + VALUE_AT, DEPTH.dtype)
        width = DEPTH_LEVEL.size // 8
        sides = {side: row[side].reshape(DEPTH_LEVELS, width) for side in ("bids", "asks")}
        return {
            side: [(int(px), int(qty), int(n)) for px, qty, n, _ in levels if px]
            for side, levels in sides.items()
        }

    def notice(self, locate: int, kind: str) -> dict[str, Any] | None:
        """Return the last message of a kind (luld, noii, retail, listing) as field -> value, or None."""
        declared = NOTICE_MESSAGES[kind]
        at = int(self._words["notices"][0]) + locate * NOTICES.size + getattr(NOTICES.at, kind)
        row = self._record(at, declared.dtype)
        return {n: row[n].item() for n in declared.at._fields} if row["code"] else None

    def _record(self, addr: int, dtype: np.dtype[Any]) -> Any:
        start, skip = addr & -8, addr & 7
        words: NDArray[np.int64] = self.segment.words(start, (skip + dtype.itemsize + 7) // 8)
        return words.view(np.uint8)[skip : skip + dtype.itemsize].copy().view(dtype)[0]


def _printable(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in raw.rstrip(b" \0"))


def word_text(symbol8: int) -> str:
    """Return the text of a symbol as kernels handle it, as Books.symbol_text() does."""
    return _printable((symbol8 & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))


def symbol_word(symbol: str) -> int:
    """Return a symbol as kernels handle it: eight bytes, padded with spaces, as one native int64."""
    return int.from_bytes(symbol.encode("latin-1", "replace").ljust(8)[:8], "little", signed=True)
