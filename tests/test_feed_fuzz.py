"""Mutated frames and captures against guard pages: no byte is read beyond what there is."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest

from nimbus.feed.state import REASONS

SCRIPT = pathlib.Path(__file__).parent / "fuzz" / "feed_fuzz.py"


def fuzz(*arguments: int | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *(str(a) for a in arguments)]
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPT.parents[2]}{os.pathsep}{SCRIPT.parents[1]}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def result(frames: int, captures: int, seed: int) -> dict[str, Any]:
    done = fuzz(frames, captures, seed)
    assert done.returncode == 0, (done.returncode, done.stderr[-2_000:])
    counts: dict[str, Any] = json.loads(done.stdout)
    assert counts["frames"] == frames
    assert counts["balance"] == 0
    assert counts["messages"] > frames // 4
    assert counts["packets"] > captures // 2
    return counts


def test_the_guard_page_catches_one_byte_too_far() -> None:
    assert fuzz("overrun").returncode == -signal.SIGSEGV


def test_mutated_frames_and_captures_stay_inside_their_bytes() -> None:
    counts = result(50_000, 20_000, 1)
    unreachable = {"none", "snapped", "link_type", "checksum", "not_subscribed", "far_ahead"}
    assert set(counts["refused"]) == set(REASONS) - unreachable  # every path was walked
    assert counts["runs"] > 10


@pytest.mark.slow
def test_a_million_mutated_frames_stay_inside_their_bytes() -> None:
    for seed in range(2, 6):
        result(250_000, 100_000, seed)
