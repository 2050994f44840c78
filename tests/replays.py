"""Run the command line in this process, and read what a replay left behind: for the tests of the whole."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections import defaultdict
from fractions import Fraction
from typing import Any

from daemon.main import main
from daemon.registry import PAYLOADS
from nimbus.journal.show import show
from nimbus.journal.types import RecordType

ROOT = pathlib.Path(__file__).resolve().parents[1]
RULE = '[model]\nkind = "rule"\n'  # the same model, whatever folder the tests run in
SMALL = "[book]\nlive_orders_max = 65536\nlevels_max = 16384\nsymbols_max = 1024\n"


@dataclasses.dataclass
class Outcome:
    """What a replay wrote into its folder."""

    folder: pathlib.Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def fills(self) -> list[dict[str, str]]:
        return self._table("fills.csv")

    @property
    def orders(self) -> list[dict[str, str]]:
        return self._table("orders.csv")

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return the journal's records of a type."""
        return list(show(self.folder / "journal", PAYLOADS, types=[RecordType[kind]]))

    def _table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="ascii") as file:
            return list(csv.DictReader(file))


def write_config(path: pathlib.Path, text: str = "") -> pathlib.Path:
    """Write a configuration that names a model; later tables are appended."""
    path.write_text(RULE + SMALL + text, encoding="utf-8")
    return path


def replay(capture: pathlib.Path, folder: pathlib.Path, text: str = "", *options: str) -> Outcome:
    """Replay a capture through the command line with more settings, and expect it to succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder / "replay.toml", text)
    code = main(["replay", str(capture), "--config", str(config), "--out", str(folder), "--json", *options])
    assert code == 0
    return Outcome(folder)


def command(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "daemon.main", *words], env=environment(), text=True, capture_output=True,
        check=False, timeout=250, **more,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Return the environment of a child: it finds the five packages from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def signed(fill: dict[str, str]) -> int:
    return int(fill["qty"]) * {"B": 1, "S": -1}[fill["side"]]


def positions_of(fills: list[dict[str, str]]) -> dict[str, int]:
    """Return the signed sum of the fills of each symbol."""
    held: dict[str, int] = defaultdict(int)
    for fill in fills:
        held[fill["symbol"]] += signed(fill)
    return dict(held)


def realized_by_average_cost(fills: list[dict[str, str]]) -> dict[str, Fraction]:
    """Return the realized dollars of each symbol, in exact fractions, from the textbook definition."""
    held: dict[str, int] = defaultdict(int)
    average: dict[str, Fraction] = defaultdict(Fraction)
    profit: dict[str, Fraction] = defaultdict(Fraction)
    for fill in fills:
        name, qty, px = fill["symbol"], signed(fill), Fraction(int(fill["px_1e4"]), 10_000)
        now = held[name]
        if now * qty < 0:
            closed = min(abs(now), abs(qty)) * (1 if now > 0 else -1)
            profit[name] += closed * (px - average[name])
            if abs(qty) > abs(now):
                average[name] = px
        else:
            average[name] = (average[name] * now + px * qty) / (now + qty)
        held[name] = now + qty
    return {name: profit[name] for name in held}
