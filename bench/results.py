"""Append benchmark rows to bench/results.csv: what was measured, of which commit, on which machine."""

from __future__ import annotations

import csv
import os
import pathlib
import platform
import subprocess

COLUMNS = ("name", "commit", "machine", "n", "p50", "p99", "ratio")
RESULTS = pathlib.Path(__file__).with_name("results.csv")


def machine() -> str:
    """Return processor, cores, kernel and Python in one line."""
    model = platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = " ".join(names[0].split()) if names else model
    kernel = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{model} x{os.cpu_count()}; {kernel}; Python {platform.python_version()}"


def commit() -> str:
    """Return the short commit id, with "+" when files differ from it, or "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=RESULTS.parent, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def append_row(
    name: str,
    n: int,
    p50: float,
    p99: float | None = None,
    ratio: float | None = None,
    *,
    path: pathlib.Path = RESULTS,
) -> None:
    """Append one row (style rule 26), with the header when the file is new.

    p50, p99: in the unit that the name ends with (ring_rtt_ns); ratio: to the reference of the same run.
    """
    figures = ["" if value is None else f"{value:.6g}" for value in (p50, p99, ratio)]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow([name, commit(), machine(), n, *figures])
