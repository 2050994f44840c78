"""Mutated datagrams and snapshot rows in live feeds: no byte is read too far, all is accounted for."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "fuzz" / "live_fuzz.py"


def fuzz(*arguments: int | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *(str(a) for a in arguments)]
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPT.parents[2]}{os.pathsep}{SCRIPT.parents[1]}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def results(steps: int, seed: int) -> list[dict]:
    done = fuzz(steps, seed)
    assert done.returncode == 0, (done.returncode, done.stderr[-2_000:])
    found = json.loads(done.stdout)
    for counts in found:
        assert counts["messages"] > 100
        assert counts["balance"] == [0, 0, 0]
    assert sum(counts["messages"] for counts in found) > steps // 5
    return found


def test_the_guard_page_catches_one_byte_too_far() -> None:
    assert fuzz("overrun").returncode == -signal.SIGSEGV


def test_mutated_datagrams_and_rows_stay_inside_their_bytes() -> None:
    found = results(30_000, 1)
    seen = {name for counts in found for name, count in counts.items() if count}
    ways = {
        "by_line", "by_rerequest", "by_snapshot", "lost", "gaps_by_line", "gaps_by_rerequest",
        "gaps_by_snapshot", "gaps_lost", "unsent", "retried", "snapshots", "snapshots_failed",
        "snapshot_messages", "stale_rows", "conflicts", "kept", "cancelled", "overflow", "superseded",
    }  # fmt: skip
    assert ways - seen == set()  # every path was walked
    reasons = set().union(*(counts["refused"] for counts in found))
    assert {"short_datagram", "framing", "foreign", "duplicate", "far_ahead"} <= reasons
    assert max(counts["runs"] for counts in found) > 10


@pytest.mark.slow
def test_a_million_mutated_datagrams_stay_inside_their_bytes() -> None:
    for seed in range(10, 18):
        results(30_000, seed)
