"""The file connector: news items from JSON lines, checked, cleaned and in order of receipt.

One object a line: source, id, action (created, updated, deleted), revision_of, t_source, t_received (ISO
8601 or integer ns, Unix UTC), symbols, headline, body, url, lang; optional score (-1 .. 1) and embedding
(768 numbers).  A malformed line is reported with its number and left out; it never stops the file.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Final, Self

import numpy as np

from nimbus.messages import NEWS_DIMENSIONS
from strategy.sentiment import Sentiment, words

HEADLINE_BYTES_MAX: Final = 1_000
BODY_BYTES_MAX: Final = 1_000_000
LINE_BYTES_MAX: Final = 4_000_000
ID_CHARACTERS_MAX: Final = 256
SYMBOLS_MAX: Final = 64  # of one item
PROBLEMS_MAX: Final = 100  # messages kept; all are counted
ACTIONS: Final = ("created", "updated", "deleted")
FUTURE_NS: Final = 1_000_000_000  # a source this far ahead of our clock is flagged
ASSUMED_DELAY_NS: Final = 5_000_000_000  # of items without t_received

_NS: Final = 1_000_000_000
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
_SYMBOL: Final = re.compile(r"[A-Z0-9.+=*^#$/-]{1,8}$")
# Controls, surrogates, zero-width and bidirectional marks; white space becomes a space.
_SPACE: Final = re.compile(r"[\t\n\r\v\f\x85\u2028\u2029 ]+")
_UNWANTED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffe\uffff"
    "\ud800-\udfff]"
)


@dataclass(slots=True, frozen=True)
class NewsItem:
    """One checked item; t_*_ns are Unix UTC, number is dense from 1 in order of receipt."""

    source: str
    id: str
    action: str
    revision_of: str
    source_ns: int
    received_ns: int
    symbols: tuple[str, ...]
    headline: str
    body: str = ""
    url: str = ""
    lang: str = ""
    given: Sentiment | None = None
    number: int = 0

    @property
    def text(self) -> str:
        """Return what a provider judges: the headline, or the start of the body."""
        return self.headline or self.body[:HEADLINE_BYTES_MAX]

    @property
    def normalised(self) -> str:
        """Return the headline as its words: equal for copies of one story."""
        return " ".join(words(self.text))

    @property
    def future_dated(self) -> bool:
        """Say whether the source claims a time that had not come when the item was received."""
        return self.source_ns > self.received_ns + FUTURE_NS

    def filed_under(self, symbol: str) -> Self:
        """Return the item as a symbol sees it: one that is no longer named loses the story."""
        return self if symbol in self.symbols else replace(self, action="deleted")


@dataclass(slots=True)
class NewsFile:
    """What a file held: items by time of receipt, problems as "line N: reason", and counts."""

    items: list[NewsItem] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("lines", "malformed", "cut", "stripped", "out_of_order", "future_dated", "assumed_received"), 0
        )
    )


class _MalformedError(ValueError):
    """The reason why a line is left out."""


def clean(text: str) -> str:
    """Return text without control, bidirectional and invisible characters, white space made single."""
    return _UNWANTED.sub("", _SPACE.sub(" ", text)).strip()


def to_ns(value: object, name: str) -> int:
    """Return a time (ISO 8601 with zone, or integer ns) as Unix ns; raises ValueError with the reason."""
    if isinstance(value, int) and not isinstance(value, bool):
        ns = value
    elif isinstance(value, str) and (match := _TIME.match(value)):
        moment, fraction, zone = match.groups()
        try:
            stamp = dt.datetime.fromisoformat(moment + ("+00:00" if zone == "Z" else zone))
        except ValueError as error:
            msg = f"{name} is no time: {error}"
            raise _MalformedError(msg) from None
        seconds = (stamp - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(seconds=1)
        ns = seconds * _NS + int((fraction or "").ljust(9, "0"))
    else:
        msg = f"{name} must be ISO 8601 with a zone, or integer ns"
        raise _MalformedError(msg)
    if not 0 < ns < 1 << 62:
        msg = f"{name} is out of range"
        raise _MalformedError(msg)
    return ns


def _text(entry: dict[str, Any], name: str, counts: dict[str, int], bytes_max: int) -> str:
    value = entry.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and name in {"id", "revision_of"}:
        value = str(value)
    if not isinstance(value, str):
        msg = f"{name} must be text"
        raise _MalformedError(msg)
    cleaned = clean(value)
    counts["stripped"] += bool(_UNWANTED.search(_SPACE.sub(" ", value)))
    raw = cleaned.encode()
    if len(raw) > bytes_max:
        counts["cut"] += 1
        cleaned = raw[:bytes_max].decode(errors="ignore")
    return cleaned


def _symbols(entry: dict[str, Any]) -> tuple[str, ...]:
    value = entry.get("symbols", [])
    if not isinstance(value, list) or len(value) > SYMBOLS_MAX:
        msg = f"symbols must be a list of at most {SYMBOLS_MAX}"
        raise _MalformedError(msg)
    if not all(isinstance(symbol, str) and _SYMBOL.match(symbol.strip()) for symbol in value):
        msg = "symbols must be tickers of 1 to 8 capitals, digits or marks"
        raise _MalformedError(msg)
    return tuple(dict.fromkeys(symbol.strip() for symbol in value))


def _is_number(value: object) -> bool:
    if isinstance(value, int):  # of any length: isfinite() would want it as a float first
        return not isinstance(value, bool) and abs(value) < 1 << 62
    return isinstance(value, float) and math.isfinite(value)


def _given(entry: dict[str, Any]) -> Sentiment | None:
    score, embedding = entry.get("score"), entry.get("embedding")
    if score is None and embedding is None:
        return None
    if not _is_number(score) or not -1 <= score <= 1:  # type: ignore[operator]
        msg = "score must be a number from -1 to 1"
        raise _MalformedError(msg)
    values = embedding if embedding is not None else [0.0] * NEWS_DIMENSIONS
    if not isinstance(values, list) or len(values) != NEWS_DIMENSIONS:
        msg = f"embedding must be a list of {NEWS_DIMENSIONS} numbers"
        raise _MalformedError(msg)
    if not all(_is_number(value) and abs(value) < 1e6 for value in values):
        msg = "embedding holds something that is no number"
        raise _MalformedError(msg)
    return Sentiment(float(score), np.array(values, np.float32))  # type: ignore[arg-type]


def parse_item(raw: bytes, counts: dict[str, int], assumed_delay_ns: int = ASSUMED_DELAY_NS) -> NewsItem:
    """Return the item of one line; raises ValueError with the reason when it is malformed."""
    text = raw.decode("utf-8", "ignore")
    counts["stripped"] += len(text.encode()) != len(raw)
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        msg = "not JSON"
        raise _MalformedError(msg) from None
    if not isinstance(entry, dict):
        msg = "not an object"
        raise _MalformedError(msg)
    action = entry.get("action", "created")
    if action not in ACTIONS:
        msg = f"action must be one of {', '.join(ACTIONS)}"
        raise _MalformedError(msg)
    item_id = _text(entry, "id", counts, ID_CHARACTERS_MAX)
    if not item_id:
        msg = "id is missing"
        raise _MalformedError(msg)
    source_ns = 0 if entry.get("t_source") is None else to_ns(entry["t_source"], "t_source")
    if entry.get("t_received") is not None:
        received_ns = to_ns(entry["t_received"], "t_received")
    elif source_ns:
        received_ns = source_ns + assumed_delay_ns
        counts["assumed_received"] += 1
    else:
        msg = "t_received and t_source are both missing"
        raise _MalformedError(msg)
    headline = _text(entry, "headline", counts, HEADLINE_BYTES_MAX)
    body = _text(entry, "body", counts, BODY_BYTES_MAX)
    if action != "deleted" and not headline and not body:
        msg = "neither headline nor body"
        raise _MalformedError(msg)
    return NewsItem(
        source=_text(entry, "source", counts, ID_CHARACTERS_MAX),
        id=item_id,
        action=action,
        revision_of=_text(entry, "revision_of", counts, ID_CHARACTERS_MAX),
        source_ns=source_ns or received_ns,
        received_ns=received_ns,
        symbols=_symbols(entry),
        headline=headline,
        body=body,
        url=_text(entry, "url", counts, HEADLINE_BYTES_MAX),
        lang=_text(entry, "lang", counts, ID_CHARACTERS_MAX),
        given=_given(entry),
    )


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, bytes) of non-blank lines; an over-long line comes as its first part."""
    number = 0
    while raw := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        rest = raw
        while len(rest) > LINE_BYTES_MAX and not rest.endswith(b"\n"):
            rest = file.readline(LINE_BYTES_MAX + 1)
        if raw.strip():
            yield number, raw


def read_news(path: str | pathlib.Path, assumed_delay_ns: int = ASSUMED_DELAY_NS) -> NewsFile:
    """Read a news file; raises OSError when it cannot be opened."""
    made, last_ns = NewsFile(), 0
    with pathlib.Path(path).open("rb") as file:
        for number, raw in _lines(file):
            made.counts["lines"] += 1
            try:
                if len(raw) > LINE_BYTES_MAX:
                    msg = f"longer than {LINE_BYTES_MAX} bytes"
                    raise _MalformedError(msg)  # noqa: TRY301 - reported like every other reason
                item = parse_item(raw, made.counts, assumed_delay_ns)
            except _MalformedError as error:
                made.counts["malformed"] += 1
                if len(made.problems) < PROBLEMS_MAX:
                    made.problems.append(f"line {number}: {error}")
                continue
            made.counts["out_of_order"] += item.received_ns < last_ns
            made.counts["future_dated"] += item.future_dated
            last_ns = max(last_ns, item.received_ns)
            made.items.append(item)
    made.items.sort(key=lambda item: item.received_ns)
    made.items = [replace(item, number=number) for number, item in enumerate(made.items, 1)]
    return made


def news_path(capture: str | pathlib.Path) -> pathlib.Path:
    """Return where the news of a capture lies: the file that exists, else the first choice.

    day.pcap, day.pcap.gz and day.pcapng.zst all have day.news.jsonl; day.pcap.news.jsonl is found too.
    """
    capture = pathlib.Path(capture)
    stem = capture.name
    for ending in (".gz", ".zst", ".bin", ".pcap", ".pcapng", ".itch", ".itch50"):
        stem = stem.removesuffix(ending)
    choices = [capture.with_name(f"{name}.news.jsonl") for name in (stem, capture.name, capture.stem)]
    return next((choice for choice in choices if choice.is_file()), choices[0])
