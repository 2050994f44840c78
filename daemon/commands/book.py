"""`contrafusion book`: a capture through feed and books alone; tops or depth as CSV, or counts."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import pathlib
import sys
from typing import Any

import orjson

from daemon.config import Config, read_config
from daemon.errors import CommandError, writing
from daemon.progress import bar, showing_compilation
from daemon.system import close_input, map_segment, open_capture
from daemon.wire_input import recorded_settings
from nimbus.book.export import LEVELS_MAX, Export, bbo_header, csv_field, csv_text, depth_header
from nimbus.book.owner import Books, table_sizes
from nimbus.books_only import NEED_INPUT, walk_books
from nimbus.feed.capture import CaptureError, CaptureSource
from nimbus.feed.decode import Feed
from nimbus.feed.live import table_sizes as live_sizes
from nimbus.market import Market

LEVELS_DEFAULT = 10
MESSAGES_A_CALL = 1 << 20
_SPARE = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "capture", metavar="CAPTURE", type=pathlib.Path, help="pcap, pcapng, gz, zst or raw ITCH"
    )
    parser.add_argument("--bbo", metavar="OUT.csv", type=pathlib.Path, help="a row per change of the best")
    parser.add_argument("--depth", metavar="OUT.csv", type=pathlib.Path, help="a row per change of N levels")
    parser.add_argument("--levels", metavar="N", type=int, default=LEVELS_DEFAULT, help="levels of --depth")
    parser.add_argument("--symbol", default="", help="only this symbol")
    parser.add_argument("--stats", action="store_true", help="print counts as JSON")
    parser.add_argument("--config", type=pathlib.Path, help="configuration file (default: the defaults)")


class CsvFile:
    """One output: rows as CSV; a symbol column from the moment a second symbol shows, for all rows."""

    def __init__(self, path: pathlib.Path, export: Export, *, is_bbo: bool, one: bool) -> None:
        self._path, self._export, self._is_bbo, self._one = path, export, is_bbo, one
        self._several = False
        self._written: list[
            tuple[str, int]
        ] = []  # while there is no column: labels, and rows with each in turn
        self.rows = 0
        self._file = path.open("w", encoding="ascii", newline="")
        self._file.write(self._header())

    def _header(self) -> str:
        if self._is_bbo:
            return bbo_header(with_symbol=self._several) + "\n"
        return depth_header(self._export.levels, with_symbol=self._several) + "\n"

    def drain(self) -> None:
        """Write the rows that wait."""
        rows, labels = self._export.drain()
        if not self._one and not self._several and self._export.several:
            self._several = True
            self._add_column()
        if not self._several:
            self._written += [(label, len(list(same))) for label, same in itertools.groupby(labels)]
        self.rows += len(rows)
        self._file.write(csv_text(rows, labels if self._several else None))

    def _add_column(self) -> None:
        """Begin anew with a symbol column: each row that was written has the label it was made with."""
        self._file.close()
        lines = self._path.read_text(encoding="ascii").splitlines(keepends=True)[1:]
        labels = itertools.chain.from_iterable(itertools.repeat(csv_field(n), c) for n, c in self._written)
        self._file = self._path.open("w", encoding="ascii", newline="")
        self._file.write(self._header())
        self._file.writelines(f"{label},{line}" for label, line in zip(labels, lines, strict=True))

    def close(self) -> None:
        """Close; what was not drained is lost."""
        self._file.close()


class Walk:
    """Own feed, books and outputs of one walk."""

    def __init__(self, arguments: argparse.Namespace, config: Config) -> None:
        sizes = table_sizes(config.book.symbols_max, config.book.live_orders_max, config.book.levels_max)
        ordered = sum(live_sizes(recorded_settings(config.feed)).values())
        size = sum(sizes.values()) + ordered + _SPARE + self._export_bytes(arguments, config)
        self.segment = map_segment(size)
        self.source: CaptureSource = open_capture(arguments.capture, config, self.segment)
        self.files: list[CsvFile] = []
        try:
            self._build(arguments, config)
        except BaseException:
            self.close()
            raise

    def _build(self, arguments: argparse.Namespace, config: Config) -> None:
        ordered = recorded_settings(config.feed) if self.source.is_recording else None
        self.feed = Feed(self.segment, strict=config.feed.checksums == "refuse", live=ordered)
        book = config.book
        self.books = Books(
            self.segment,
            symbols_max=book.symbols_max,
            live_orders_max=book.live_orders_max,
            levels_max=book.levels_max,
        )
        self.market = Market(self.segment, self.feed, self.books)
        self.exports = [
            self._open(arguments.bbo, "bbo", 1, arguments.symbol),
            self._open(arguments.depth, "depth", arguments.levels, arguments.symbol),
        ]

    @staticmethod
    def _export_bytes(arguments: argparse.Namespace, config: Config) -> int:
        levels: int = max(arguments.levels, 1)
        return (config.book.symbols_max + 16_384) * 32 * (levels + 4)

    def _open(self, path: pathlib.Path | None, name: str, levels: int, symbol: str) -> int:
        if path is None:
            return 0
        export = Export(self.segment, f"export.{name}", self.books, levels, symbol)
        with writing(path):
            file = CsvFile(path, export, is_bbo=name == "bbo", one=bool(symbol))
        self.files.append(file)
        return export.addr

    def run(self, progress: Any) -> None:
        """Walk to the end of the capture."""
        bbo, depth = self.exports
        done = 0
        while True:
            status = walk_books(self.source.state, self.market.state, bbo, depth, MESSAGES_A_CALL)
            for file in self.files:
                file.drain()
            progress.update(int(self.market.words["messages"]) - done)
            done = int(self.market.words["messages"])
            if status == NEED_INPUT and not self.source.refill():
                break
        while close_input(self.market):
            while walk_books(self.source.state, self.market.state, bbo, depth, MESSAGES_A_CALL) != NEED_INPUT:
                for file in self.files:
                    file.drain()
        for file in self.files:
            file.drain()

    def close(self) -> None:
        """Close the capture and the outputs."""
        self.source.close()
        for file in self.files:
            file.close()


def warnings_of(walk: Walk) -> list[str]:
    """Return one line for each odd thing seen."""
    odd = {name: n for name, n in walk.books.counters().items() if n and name in _BOOK_ODDITIES}
    books = [f"{n} messages: {_BOOK_ODDITIES[name]}" for name, n in odd.items()]
    return list(walk.source.warnings) + walk.feed.warnings() + books


_BOOK_ODDITIES = {
    "unknown_ref": "reference of an unknown order",
    "duplicate_ref": "reference that is live already",
    "full": "no room in the books",
    "bad_locate": "locate out of range",
    "bad_px": "price out of range",
    "bad_qty": "quantity of zero",
    "bad_side": "side neither B nor S",
    "bad_state": "unknown state code",
    "oversize": "execution or cancel beyond the rest",
}


def execute(arguments: argparse.Namespace) -> int:
    """Walk, write, print; exit code 0 with `warnings: N` on stderr when anything was odd."""
    if not (arguments.bbo or arguments.depth or arguments.stats):
        msg = "nothing to do: give --bbo OUT.csv, --depth OUT.csv or --stats"
        raise CommandError(msg)
    if not 1 <= arguments.levels <= LEVELS_MAX:
        msg = f"--levels {arguments.levels}: must be between 1 and {LEVELS_MAX}"
        raise CommandError(msg)
    walk = Walk(arguments, read_config(arguments.config))
    try:
        with (
            showing_compilation(),
            bar(None, "messages", "books") as progress,
            writing(arguments.bbo or arguments.depth),
            contextlib.closing(walk),
        ):
            walk.run(progress)
    except CaptureError as error:
        raise CommandError(str(error)) from None
    if arguments.symbol and walk.books.locate_of(arguments.symbol) < 0:
        msg = f"symbol {arguments.symbol!r} is not in {arguments.capture}"
        raise CommandError(msg)
    warnings = warnings_of(walk)
    if arguments.stats:
        _print_stats(walk, warnings)
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")
    if warnings:
        sys.stderr.write(f"warnings: {len(warnings)}\n")
    return 0


def _print_stats(walk: Walk, warnings: list[str]) -> None:
    stats: dict[str, Any] = {
        "messages": walk.feed.messages_by_type(),
        "packets": walk.feed.counters()["frames"],
        "refused": walk.feed.refused(),
        "counters": walk.feed.counters(),
        "books": walk.books.counters(),
        "symbols": len(walk.books.symbols()),
        "truncated": walk.source.truncated,
        "warnings": warnings,
    }
    sys.stdout.write(orjson.dumps(stats, option=orjson.OPT_INDENT_2).decode() + "\n")
