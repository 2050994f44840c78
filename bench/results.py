"""Append one row of a benchmark to bench/results.csv: name, commit, machine, n, p50, p99, ratio."""

from __future__ import annotations

import csv
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.csv"
COLUMNS = ("name", "commit", "machine", "n", "p50", "p99", "ratio")


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def append_row(name: str, n: int, p50: float, p99: float, ratio: float) -> None:
    """Append a row; the file begins with its columns."""
    machine = f"{platform.processor() or platform.machine()} {platform.system()} {platform.release()}"
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow((name, _commit(), machine, n, f"{p50:.1f}", f"{p99:.1f}", f"{ratio:.2f}"))
