"""generate(): a whole synthetic ITCH 5.0 day as a pcap, and its news beside it."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import numpy as np

from nimbus.venue.generator import flow, script, story, wire
from nimbus.venue.generator.script import BOOKS_END_NS, BOOKS_NS, OPEN_NS, SECOND, Scheduled
from nimbus.venue.generator.state import (
    CODES,
    DAY,
    LIVE,
    ORDERS_MAX,
    STEP,
    SYMBOL,
    TICK_PX,
    exponential_quantiles,
    normal_quantiles,
)
from ringbuf.segment import Segment

DATE: Final = dt.date(2026, 1, 5)
MIDNIGHT_NS: Final = int(dt.datetime(2026, 1, 5, 5, tzinfo=dt.UTC).timestamp()) * SECOND  # EST
SPAN_S_MIN, SPAN_S_MAX = 600, 23_400  # ten minutes to a full session
MESSAGE_NS: Final = 900_000  # a million messages take a quarter of an hour
SYMBOLS_MAX: Final = 8_192
OUT_BYTES: Final = 8 << 20
MESSAGES_A_CALL: Final = 50_000  # between two calls of progress
DEPTH_MIN, DEPTH_MAX = 4, 48  # orders a symbol should have
_FOREVER: Final = 1 << 60
_STATUSES_MAX: Final = 1 << 40

Progress = Callable[[int], object]


class _Writer:
    """Owner of the memory of one generated day, and of the file it is written to."""

    def __init__(self, file: BinaryIO, seed: int, symbols: int, steps: int) -> None:
        sizes = {
            "day": DAY.size,
            "symbols": symbols * SYMBOL.size,
            "orders": symbols * (ORDERS_MAX + 1) * LIVE.size,
            "steps": max(1, steps) * STEP.size,
            "shares": symbols * 8,
            "exponentials": 4_096 * 8,
            "normals": 4_096 * 8,
            "template": 64,
            "message": 64,
            "out": OUT_BYTES,
        }
        self._segment = Segment.anonymous(sum(size + 64 for size in sizes.values()) + 4_096)
        at = {name: self._segment.allocate(name, size) for name, size in sizes.items()}
        self._file, self.at = file, at
        self.bytes = file.write(wire.PCAP_HEADER)
        self.addr = at["day"]
        self.day = self._segment.array("day", DAY)[0]
        self.rows = self._segment.array("symbols", SYMBOL)
        for name in ("symbols", "steps", "shares", "exponentials", "normals", "template", "out"):
            self.day[name] = at[name]
        self.day["out_at"], self.day["out_end"] = at["out"], at["out"] + OUT_BYTES
        self.day["symbol_count"], self.day["seq"] = symbols, 1
        self.day["midnight_ns"], self.day["now_ns"] = MIDNIGHT_NS, script.MESSAGES_NS
        self.words("exponentials", 4_096)[:] = exponential_quantiles()
        self.words("normals", 4_096).view(np.float64)[:] = normal_quantiles()
        self.put("template", wire.frame_template(f"{seed % 10**10:010d}"))

    def words(self, name: str, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return an area as int64 words."""
        return self._segment.words(self.at[name], count)

    def put(self, name: str, text: bytes) -> None:
        """Write bytes, at most 64, to the start of an area."""
        self.words(name, 8)[:] = np.frombuffer(text.ljust(64, b"\0"), np.int64)

    def empty(self) -> None:
        """Move the finished packets from the buffer to the file."""
        wire.close_packet(self.addr)
        used = int(self.day["out_at"]) - self.at["out"]
        self.bytes += self._file.write(self.words("out", OUT_BYTES // 8).view(np.uint8)[:used].data)
        self.day["out_at"] = self.at["out"]

    def push(self, entry: Scheduled) -> None:
        """Write a scheduled message now, or at its time if that is later."""
        if int(self.day["out_at"]) > int(self.day["out_end"]) - flow.EVENT_BYTES_MAX:
            self.empty()
        now_ns = max(entry.at_ns, int(self.day["now_ns"]) + 1)
        match = int(self.day["last_match"])
        if script.MATCH in entry.fields.values():
            self.day["last_match"] = match + 1
        price = int(self.rows["fair"][max(0, entry.symbol)]) * TICK_PX
        self.put("message", script.encode(entry, now_ns, price, (match + 1, match)))
        wire.push(self.addr, self.at["message"], entry.message.size, now_ns)
        if entry.halt >= 0:
            self.rows["halted"][entry.symbol] = entry.halt


def _set_symbols(writer: _Writer, seed: int) -> None:
    """Draw the constants of each symbol: price, volatility, spread; its share falls with its number."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    rows, count = writer.rows, len(writer.rows)
    orders = writer.at["orders"]
    for symbol in range(count):
        row = rows[symbol]
        row["fair"] = 2_000 + int(chance.random() * 10_000) + 0.5
        row["variance"] = 1.0
        row["sigma"] = (0.8 + 0.8 * chance.random()) * 1e-4
        row["width"] = int(chance.random() * 4)
        row["last_ns"] = OPEN_NS
        row["text"] = int.from_bytes(script.symbol_text(symbol), "little")
        row["orders"] = orders + symbol * (ORDERS_MAX + 1) * LIVE.size
        row["locate"] = symbol + 1
    total = sum(1 / (k + 1) for k in range(count))
    share = 0.0
    for symbol in range(count):
        share += 1 / (symbol + 1) / total
        writer.words("shares", count)[symbol] = min(1 << 32, round(share * (1 << 32)))


def _random_state(seed: int) -> int:
    """Spread a seed over 63 bits, never 0 (splitmix64)."""
    word = (seed + 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return ((word ^ (word >> 31)) >> 1) or 1


def _run(writer: _Writer, entries: list[Scheduled], end_ns: int, progress: Progress | None) -> None:
    """Weave flow and scheduled messages together in order of time."""
    told = 0

    def tell() -> None:
        nonlocal told
        messages = int(writer.day["messages"])
        if progress is not None and messages > told:
            progress(messages - told)
        told = messages

    def flow_until(until_ns: int) -> None:
        for _ in range(_STATUSES_MAX):
            pause = int(writer.day["flow_messages"]) + MESSAGES_A_CALL
            status = flow.flow(writer.addr, until_ns, pause)
            if status == flow.FULL:
                writer.empty()
            tell()
            if status == flow.WAITING or writer.day["flow_messages"] >= writer.day["budget"]:
                return

    opening = int(writer.day["depth_target"]) * len(writer.rows)
    opening = min(opening, int(writer.day["budget"]) // 2)
    filled = False
    for entry in entries:
        if not filled and entry.at_ns > BOOKS_NS:
            filled = True
            writer.day["now_ns"] = max(BOOKS_NS, int(writer.day["now_ns"]))
            while flow.fill_books(writer.addr, BOOKS_END_NS - SECOND, opening) < opening:
                writer.empty()
                tell()
            writer.day["next_ns"] = OPEN_NS + SECOND
        if entry.at_ns > OPEN_NS + SECOND // 2:
            flow_until(_FOREVER if entry.at_ns >= end_ns else entry.at_ns)
        writer.push(entry)
    wire.end_session(writer.addr)
    writer.empty()
    tell()


def _write_news(path: pathlib.Path, items: list[story.Item]) -> None:
    def iso(ns: int) -> str:
        moment = dt.datetime.fromtimestamp((MIDNIGHT_NS + ns) // SECOND, dt.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % SECOND // 1000:06d}Z"

    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, item in enumerate(items, 1):
            line = {
                "source": "generated",
                "id": f"g{number}",
                "action": "created",
                "revision_of": None,
                "t_source": iso(item.source_ns),
                "t_received": iso(item.received_ns),
                "symbols": [script.symbol_text(item.symbol).decode().strip()],
                "headline": item.headline,
                "body": item.body,
                "url": "",
                "lang": "en",
            }
            file.write(json.dumps(line) + "\n")


def messages_min(symbols: int) -> int:
    """Return the smallest number of messages that makes a day of so many symbols."""
    return 8 * symbols + 100


def generate(
    path: str | pathlib.Path, seed: int, messages: int, symbols: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Write a synthetic, valid ITCH 5.0 day to a pcap and its news to OUT.news.jsonl; return a summary.

    messages: ITCH messages in all, exactly; symbols: 1 .. 8,192.  The same arguments give the same bytes.
    progress is called with the number of messages written since the last call.
    Raises ValueError when the numbers do not make a day, OSError when a file cannot be written.
    All parameters of the simulated market are invented; see the modules of this package.
    """
    path = pathlib.Path(path)
    if not 1 <= symbols <= SYMBOLS_MAX:
        msg = f"{symbols} symbols: from 1 to {SYMBOLS_MAX} can be generated"
        raise ValueError(msg)
    if messages < messages_min(symbols):
        msg = f"{messages} messages are too few for {symbols} symbols: at least {messages_min(symbols)}"
        raise ValueError(msg)
    span_ns = min(max(SPAN_S_MIN * SECOND, messages * MESSAGE_NS), SPAN_S_MAX * SECOND)
    end_ns = OPEN_NS + span_ns
    entries = script.write_script(symbols, min(symbols, max(1, messages // 32)), end_ns)
    items, effects = story.write_story(seed, symbols, OPEN_NS, end_ns)
    steps = story.steps(effects)
    news_path = path.with_suffix(".news.jsonl")
    with path.open("wb") as file:
        writer = _Writer(file, seed, symbols, len(steps))
        budget = messages - len(entries)
        writer.day["random"] = _random_state(seed)
        writer.day["budget"], writer.day["end_ns"] = budget, end_ns
        writer.day["depth_target"] = min(DEPTH_MAX, max(DEPTH_MIN, budget // (12 * symbols)))
        writer.day["step_count"] = len(steps)
        _set_symbols(writer, seed)
        rows = np.frombuffer(writer.words("steps", max(1, len(steps)) * STEP.size // 8), STEP.dtype)
        for row, values in zip(rows, steps, strict=False):
            row["at_ns"], row["symbol"], row["drift"], row["tilt"], row["hot_ns"] = values
        _run(writer, entries, end_ns, progress)
        _write_news(news_path, items)
        by_code = {chr(code): int(writer.day["by_code"][code]) for code in range(CODES)}
        return {
            "capture": str(path),
            "news": str(news_path),
            "seed": seed,
            "date": DATE.isoformat(),
            "symbols": symbols,
            "messages": {letter: count for letter, count in by_code.items() if count},
            "packets": int(writer.day["packets"]),
            "bytes": writer.bytes,
            "news_items": len(items),
            "span_s": (int(writer.day["now_ns"]) - script.MESSAGES_NS) / SECOND,
        }
