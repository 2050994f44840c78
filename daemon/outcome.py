"""What a replay leaves behind: summary.json, orders.csv, fills.csv and the report.

Fills are read back from the journal, which is the truth; positions come from the running system, and a test
holds the one against the other.
"""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Final

import orjson

from daemon import report
from daemon.config import config_hash
from daemon.errors import CommandError, writing
from daemon.run_journal import RunJournal
from daemon.rungs import served
from daemon.system import System
from nimbus.book.snapshot import state_hash
from nimbus.journal.segments import JournalError
from nimbus.journal.show import show
from nimbus.journal.types import RecordType
from nimbus.messages import FILL_TRADE, TAG_NAMES

PX_SCALE: Final = 10_000
CENT_DIGITS: Final = 4
PERCENTILES: Final = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
FILL_FIELDS: Final = ("ts_ns", "symbol", "side", "qty", "px_1e4", "order", "decision", "position_qty")
ORDER_FIELDS: Final = (
    "order", "cl_ord_id", "symbol", "side", "qty", "px", "status", "cum_qty", "leaves_qty", "cost", "tif",
    "tag", "decision", "cause_seq", "created_ns", "sent_ns", "updated_ns",
)  # fmt: skip
LIMITS: Final = (
    "Paper trading: our orders join the real queues and take displayed liquidity once, but the recorded "
    "market does not react to them. Profit is before fees. Stage latencies are of this machine and this run."
)


def fills_of(run: RunJournal) -> Iterator[dict[str, Any]]:
    """Yield the trades of a finished replay from its journal, oldest first."""
    symbols = run.system.books.symbols()
    for row in show(run.folder, types=[RecordType.FILL]):
        if row["kind"] == FILL_TRADE:
            yield {
                "ts_ns": row["now_ns"],
                "symbol": symbols.get(row["locate"], ""),
                "side": chr(row["side"]),
                "qty": row["last_qty"],
                "px_1e4": row["last_px"],
                "order": row["order"],
                "decision": row["decision"],
                "position_qty": row["position_qty"],
            }


def positions_of(system: System) -> dict[str, dict[str, Any]]:
    """Return the positions of summary.json: dollars by average cost, before fees."""
    rows = system.orders.positions(system.books.symbol_text)
    return {
        symbol: {
            "qty": row["qty"],
            "avg_px": round(row["average_px"], CENT_DIGITS),
            "mark_px": row["mark_px"],
            "realized_pnl": row["realized_pnl_px4"] / PX_SCALE,
            "unrealized_pnl": row["unrealized_pnl_px4x2"] / (2 * PX_SCALE),
            "bought_qty": row["bought_qty"],
            "sold_qty": row["sold_qty"],
            "fills": row["fills"],
        }
        for symbol, row in sorted(rows.items())
    }


def latency_of(system: System) -> dict[str, dict[str, int]]:
    """Return count, percentiles and maximum of every stage, in nanoseconds."""
    found = {}
    for stage, histogram in system.histograms.items():
        values = histogram.percentiles(list(PERCENTILES.values())) if histogram.count else [0] * 3
        found[stage] = {
            "count": histogram.count,
            **dict(zip(PERCENTILES, map(int, values), strict=True)),
            "max": int(histogram.largest) if histogram.count else 0,
        }
    return found


def rejects_of(system: System) -> dict[str, int]:
    """Return why orders did not stand: risk denials by reason, and the venue's rejects."""
    if system.venue is None:
        rejected = system.orders.counters()["rejected"]
        return system.orders.denials() | ({"venue": rejected} if rejected else {})
    venue = {f"venue {n}": c for n, c in system.venue.counters().items() if n.startswith("rejected") and c}
    return system.orders.denials() | venue


def refused_of(system: System) -> dict[str, int]:
    """Return what came in and was not used, by reason: frames, messages, book updates, news lines."""
    books = {f"book {name}": n for name, n in system.books.counters().items() if name in _BOOK_REFUSALS and n}
    unknown, wrong = system.feed.unknown_types(), system.feed.wrong_lengths()
    messages = {f"unknown type {t}": n for t, n in unknown.items()}
    messages |= {f"wrong length of {t}": n for t, n in wrong.items()}
    malformed = system.news.counts.get("malformed", 0)
    return system.feed.refused() | messages | books | ({"news lines": malformed} if malformed else {})


_BOOK_REFUSALS: Final = (
    "unknown_ref", "duplicate_ref", "full", "bad_locate", "bad_px", "bad_qty", "bad_side", "bad_state",
    "oversize",
)  # fmt: skip


def rungs_of(run: RunJournal) -> list[dict[str, Any]]:
    """Return the settings of the plan that served, with their decisions; none where no plan answered."""
    system = run.system
    if system.model.plan is None:
        return []
    rows = list(show(run.folder, types=[RecordType.RUNG])) if system.rungs.taken else []
    return served(rows, system.strategy.counters()["decision"])


def summarise(run: RunJournal) -> dict[str, Any]:
    """Return summary.json."""
    system = run.system
    counters, strategy = system.orders.counters(), system.strategy.counters()
    positions, messages = positions_of(system), system.feed.messages_by_type()
    handled = int(system.control["heartbeat"])
    return {
        "capture": os.fsencode(system.capture).decode("utf-8", "replace") if system.capture else "",
        "truncated": system.source.truncated,
        "warnings": system.source.warnings + system.feed.warnings() + system.rungs.warnings,
        "packets": system.feed.counters()["frames"],
        "source": system.input_counters(),
        "messages": messages,
        "symbols": len(system.books.symbols()),
        "gaps": system.feed.gaps(),
        "refused": refused_of(system),
        "book_state_hash": f"{state_hash(system.books.state) & 0xFFFFFFFFFFFFFFFF:016x}",
        "position_hash": f"{system.orders.position_hash() & 0xFFFFFFFFFFFFFFFF:016x}",
        "decisions": {name: strategy[f"tag_{name}"] for name in TAG_NAMES},
        "decision_reasons": system.strategy.model.counts(),
        "news_items": int(system.control["news_taken"]),
        "orders": counters["sent"],
        "fills": counters["trades"],
        "rejects": rejects_of(system),
        "alarms": system.orders.alarms(),
        "positions": positions,
        "pnl": {
            "realized": sum(row["realized_pnl"] for row in positions.values()),
            "unrealized": sum(row["unrealized_pnl"] for row in positions.values()),
            "total": sum(row["realized_pnl"] + row["unrealized_pnl"] for row in positions.values()),
        },
        "journal_hash": run.journal_hash,
        "journal_records": run.writer.records,
        "model": system.model.summary(),
        "rungs": rungs_of(run),
        "latency_ns": latency_of(system),
        "elapsed_s": round(run.elapsed_s, 3),
        "throughput_msgs_per_s": round(handled / run.elapsed_s) if run.elapsed_s else 0,
        "seed": system.config.seed,
        "config_hash": config_hash(system.config),
    }


def equity_of(fills: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return (share of the time between first and last fill, profit in dollars) after each fill.

    Each symbol is valued at the price of its last fill.
    """
    points: list[tuple[float, float]] = []
    held: dict[str, int] = {}
    last: dict[str, int] = {}
    cash = 0
    if not fills:
        return points
    first_ns, span_ns = fills[0]["ts_ns"], max(1, fills[-1]["ts_ns"] - fills[0]["ts_ns"])
    for fill in fills:
        signed = fill["qty"] if fill["side"] == "B" else -fill["qty"]
        cash -= signed * fill["px_1e4"]
        held[fill["symbol"]] = held.get(fill["symbol"], 0) + signed
        last[fill["symbol"]] = fill["px_1e4"]
        value = cash + sum(qty * last[symbol] for symbol, qty in held.items())
        points.append(((fill["ts_ns"] - first_ns) / span_ns, value / PX_SCALE))
    return points


def _write_csv(path: pathlib.Path, fields: tuple[str, ...], rows: Iterator[Any] | list[Any]) -> None:
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write(run: RunJournal, folder: pathlib.Path) -> dict[str, Any]:
    """Write the four files into folder; return the summary."""
    try:
        summary = summarise(run)
        fills = list(fills_of(run))
    except JournalError as error:
        raise CommandError(str(error)) from None
    text_of = run.system.books.symbol_text
    with writing(folder):
        _write_csv(folder / "fills.csv", FILL_FIELDS, fills)
        _write_csv(folder / "orders.csv", ORDER_FIELDS, run.system.orders.orders(text_of))
        (folder / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
        page = report.render(summary, equity_of(fills), LIMITS)
        (folder / "report.html").write_text(page, encoding="utf-8")
    return summary
