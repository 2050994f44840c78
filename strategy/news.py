"""News: items from a file, the score of each symbol, and the schedule a replay applies.

Two clocks: t_source is what the source claims, t_received when we had it.  Joins use *received* only.
The state of a symbol is a pure fold over the items known so far (`fold`), so that corrections and
deletions are simple and nothing can leak from the future.  Text is data only.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nimbus.messages import NEWS, NEWS_DIMENSIONS
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment
from ringbuf.seqlock import begin_write, cell_size, end_write
from strategy.news_file import NewsItem
from strategy.sentiment import Sentiment, SentimentProvider

MINUTE_NS: Final = 60_000_000_000
ITEMS_MAX: Final = 64  # newest items of a symbol that count
DUPLICATE_NS: Final = 24 * 60 * MINUTE_NS


@dataclass(slots=True, frozen=True)
class NewsConfig:
    """How items become a score.

    half_life_ns: an item weighs half after it; shrink: c of the score's denominator, draws thin news to
    0; material_relevance, material_score: an item at or above both is material; supersede: what is left
    of the weight of older items after a material one of the opposite sign; prior_deviation, prior_items:
    history assumed before a symbol has one of its own.
    """

    half_life_ns: int = 30 * MINUTE_NS
    shrink: float = 0.25
    material_relevance: float = 0.3
    material_score: float = 0.25
    supersede: float = 0.1
    prior_deviation: float = 0.3
    prior_items: int = 8


@dataclass(slots=True, frozen=True)
class Scored:
    """One item as one symbol sees it."""

    number: int
    id: str
    received_ns: int
    relevance: float
    sentiment: Sentiment


def is_material(item: Scored, config: NewsConfig) -> bool:
    """Say whether an item is relevant and decided enough to open a new chapter."""
    return item.relevance >= config.material_relevance and abs(item.sentiment.score) >= config.material_score


def fold(items: Iterable[Scored], config: NewsConfig) -> tuple[float, NDArray[np.float64]]:
    """Return score and embedding of items (by time of receipt) as of the receipt of the last one.

    score = sum(w rel score) / (sum(w rel) + shrink) with w = 2^(-age / half_life); the embedding is the
    mean with the same weights, without the shrinking.
    """
    judged, weight, last_ns = 0.0, 0.0, 0
    embedding = np.zeros(NEWS_DIMENSIONS)
    for item in items:
        kept = 2.0 ** (-(item.received_ns - last_ns) / config.half_life_ns) if weight > 0 else 0.0
        if is_material(item, config) and item.sentiment.score * judged < 0:
            kept *= config.supersede
        judged = judged * kept + item.relevance * item.sentiment.score
        weight = weight * kept + item.relevance
        embedding = embedding * kept + item.relevance * item.sentiment.embedding
        last_ns = item.received_ns
    return judged / (weight + config.shrink), embedding / weight if weight > 0 else embedding


class NewsState:
    """The news of one symbol.  Cold; written by the control loop (replay: while the schedule is built)."""

    def __init__(self, config: NewsConfig) -> None:
        self._config = config
        self._items: list[Scored] = []
        self._headlines: dict[str, tuple[int, str]] = {}  # normalised headline -> (received_ns, id)
        self._history_sum = self._history_squares = 0.0
        self._history_count = 0
        self._folded = 0
        self.duplicates = 0

    def _remove(self, *ids: str) -> None:
        self._items = [item for item in self._items if item.id not in ids]
        self._headlines = {k: v for k, v in self._headlines.items() if v[1] not in ids}

    def _is_duplicate(self, item: NewsItem) -> bool:
        seen = self._headlines.get(item.normalised)
        return seen is not None and item.received_ns - seen[0] < DUPLICATE_NS

    def apply(self, item: NewsItem, sentiment: Sentiment) -> NDArray[Any] | None:
        """Take an item in, replace or remove what it corrects; return the new NEWS record.

        Items come by time of receipt.  Returns None when nothing changes (a duplicate of a story, the
        deletion of an unknown item).
        """
        before = len(self._items)
        if item.action != "created":
            self._remove(item.id, item.revision_of)
        if item.action == "deleted":
            return self._record() if len(self._items) != before else None
        if self._is_duplicate(item) or any(known.id == item.id for known in self._items):
            self.duplicates += 1
            return self._record() if len(self._items) != before else None
        self._headlines[item.normalised] = (item.received_ns, item.id)
        relevance = 1.0 / max(1, len(item.symbols))
        self._items.append(Scored(item.number, item.id, item.received_ns, relevance, sentiment))
        del self._items[:-ITEMS_MAX]
        self._folded += 1
        made = self._record()
        score = float(made["score"])
        self._history_count += 1
        self._history_sum += score
        self._history_squares += score * score
        return made

    def _record(self) -> NDArray[Any]:
        """Return the NEWS record: score as of received_ns, mean and deviation of the history before it."""
        config, made = self._config, np.zeros((), NEWS.dtype)
        count = self._history_count + config.prior_items
        mean = self._history_sum / count
        squares = self._history_squares + config.prior_items * config.prior_deviation**2
        made["mean"] = mean
        made["deviation"] = math.sqrt(max(squares / count - mean * mean, 1e-4))
        made["half_life_ns"] = config.half_life_ns
        made["items"] = self._folded
        if self._items:
            score, embedding = fold(self._items, config)
            made["received_ns"] = self._items[-1].received_ns
            made["score"], made["embedding"] = score, embedding
        material = [item for item in self._items if is_material(item, config)]
        if material:
            made["material_ns"], made["item_id"] = material[-1].received_ns, material[-1].number
        return made


@kernel
def publish(cell: int, news: int) -> None:
    """Write the NEWS record at address news into a seqlock cell.  Only the cell's writer may call this."""
    copy(begin_write(cell), news, _NEWS_SIZE)
    end_write(cell)


# A replay computes all records beforehand.  Locates are known only when R messages come: the kernel
# `announce` notes the locate of each symbol, and `apply_due` looks it up when a row is due.
# Written by the loop that applies (inline: the one loop there is).
SCHEDULE = record(
    "SCHEDULE",
    """
    i8  rows         address of the SCHEDULE_ROW table, by time of receipt
    i8  count        rows
    i8  next         next row to apply
    i8  records      address of the NEWS records, one a row
    i8  symbols      address of the SCHEDULE_SYMBOL table, by text as a signed integer
    i8  symbol_count rows of it
    i8  cells_max    locates 0 .. cells_max - 1 have a cell
    i8  unresolved   rows that came due for a symbol without a locate
    """,
)
SCHEDULE_ROW = record(
    "SCHEDULE_ROW",
    """
    i8  received_ns  when it is applied, Unix UTC
    i8  symbol       row of the SCHEDULE_SYMBOL table
    """,
    line=16,
)
SCHEDULE_SYMBOL = record(
    "SCHEDULE_SYMBOL",
    """
    i8  text    the eight ASCII characters, space padded, as a little-endian integer
    i8  locate  stock locate, 0 = not announced
    """,
    line=16,
)
_P, _R, _Y = SCHEDULE.at, SCHEDULE_ROW.at, SCHEDULE_SYMBOL.at
_ROW_SIZE, _SYMBOL_SIZE, _NEWS_SIZE, _CELL_SIZE = (
    SCHEDULE_ROW.size,
    SCHEDULE_SYMBOL.size,
    NEWS.size,
    cell_size(NEWS),
)


@inlined
def announce(schedule: int, text: int, locate: int) -> None:
    """Note the locate of a symbol (text: its eight characters as loaded by load_i64); call it at each R."""
    low, high = 0, load_i64(schedule + _P.symbol_count) - 1
    for _ in range(64):
        if low > high:
            return
        middle = (low + high) >> 1
        row = load_i64(schedule + _P.symbols) + middle * _SYMBOL_SIZE
        known = load_i64(row + _Y.text)
        if known == text:
            store_i64(row + _Y.locate, locate)
            return
        if known < text:
            low = middle + 1
        else:
            high = middle - 1


@kernel
def apply_due(schedule: int, cells: int, now_ns: int) -> int:
    """Publish the next row received by now_ns to the cell of its symbol; return the locate, -1 = none due.

    cells: address of the NEWS cells, by locate.  Call it until it returns -1.  Rows of symbols that the
    feed has not announced are counted as unresolved and passed over.
    """
    for index in range(load_i64(schedule + _P.next), load_i64(schedule + _P.count)):
        row = load_i64(schedule + _P.rows) + index * _ROW_SIZE
        if load_i64(row + _R.received_ns) > now_ns:
            break
        store_i64(schedule + _P.next, index + 1)
        symbol = load_i64(schedule + _P.symbols) + load_i64(row + _R.symbol) * _SYMBOL_SIZE
        locate = load_i64(symbol + _Y.locate)
        if locate <= 0 or locate >= load_i64(schedule + _P.cells_max):
            store_i64(schedule + _P.unresolved, load_i64(schedule + _P.unresolved) + 1)
            continue
        publish(cells + locate * _CELL_SIZE, load_i64(schedule + _P.records) + index * _NEWS_SIZE)
        return locate
    return -1


def symbol_word(symbol: str) -> int:
    """Return a ticker as the int64 that load_i64 gives at its eight bytes in a message."""
    return int.from_bytes(symbol.encode("ascii").ljust(8), "little", signed=True)


class NewsSchedule:
    """Owner of the precomputed records of a replay, in a segment of its own.

    addr: what the kernels take; received_ns, symbols, records: the rows (live views).
    """

    def __init__(self, rows: list[tuple[int, str, NDArray[Any]]], cells_max: int) -> None:
        words = sorted({symbol_word(symbol) for _, symbol, _ in rows})
        sizes = {
            "schedule": SCHEDULE.size,
            "rows": len(rows) * SCHEDULE_ROW.size,
            "symbols": len(words) * SCHEDULE_SYMBOL.size,
            "records": len(rows) * NEWS.size,
        }
        self._segment = Segment.anonymous(sum(size + 128 for size in sizes.values()))
        at = {name: self._segment.allocate(name, max(64, size)) for name, size in sizes.items()}
        self.addr = at["schedule"]
        self._state = self._segment.array("schedule", SCHEDULE)[0]
        self._rows = self._segment.array("rows", SCHEDULE_ROW)[: len(rows)]
        self.records = self._segment.array("records", NEWS)[: len(rows)]
        names = self._segment.array("symbols", SCHEDULE_SYMBOL)[: len(words)]
        names["text"] = words
        index_of = {word: index for index, word in enumerate(words)}
        for index, (received_ns, symbol, made) in enumerate(rows):
            self._rows[index] = (received_ns, index_of[symbol_word(symbol)])
            self.records[index] = made
        self.symbols = [symbol for _, symbol, _ in rows]
        self._state["rows"], self._state["records"], self._state["symbols"] = (
            at["rows"],
            at["records"],
            at["symbols"],
        )
        self._state["count"], self._state["symbol_count"] = len(rows), len(words)
        self._state["cells_max"] = cells_max

    @property
    def received_ns(self) -> NDArray[np.int64]:
        """Return the times of receipt, rising."""
        times: NDArray[np.int64] = self._rows["received_ns"]
        return times

    @property
    def applied(self) -> int:
        """Return how many rows have come due so far."""
        return int(self._state["next"])

    @property
    def unresolved(self) -> int:
        """Return how many of them were for symbols the feed had not announced."""
        return int(self._state["unresolved"])

    def rewind(self) -> None:
        """Start again from the first row, with no symbol announced."""
        self._state["next"] = self._state["unresolved"] = 0
        self._segment.array("symbols", SCHEDULE_SYMBOL)["locate"] = 0


def build_schedule(
    items: Iterable[NewsItem], provider: SentimentProvider, config: NewsConfig, cells_max: int
) -> tuple[NewsSchedule, dict[str, int]]:
    """Score items (by time of receipt) and fold them into one NEWS record a change.

    Returns the schedule and counts: rows, duplicates, symbols.  Each record uses only items received
    before or with its own.
    """
    states: dict[str, NewsState] = collections.defaultdict(lambda: NewsState(config))
    owners: dict[str, tuple[str, ...]] = {}  # item id -> the symbols it was filed under
    rows: list[tuple[int, str, NDArray[Any]]] = []
    for item in items:
        sentiment = provider.assess(item.text, item.given)
        targets = dict.fromkeys(item.symbols)
        if item.action != "created":  # a correction may name fewer symbols than the story did, or none
            targets |= dict.fromkeys(owners.get(item.id, ()) + owners.get(item.revision_of, ()))
        owners[item.id] = tuple(targets)
        for symbol in targets:
            made = states[symbol].apply(item.filed_under(symbol), sentiment)
            if made is not None:
                rows.append((item.received_ns, symbol, made))
    counts = {
        "rows": len(rows),
        "duplicates": sum(state.duplicates for state in states.values()),
        "symbols": len(states),
    }
    return NewsSchedule(rows, cells_max), counts
