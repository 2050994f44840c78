"""Mutated FIX streams against a guard page: no byte is read beyond what there is."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "fuzz" / "fix_fuzz.py"
EVENTS = {
    "LOGON", "LOGON_HIGH", "LOGON_LOW", "HEARTBEAT", "TEST_REQUEST", "RESEND_REQUEST", "RESEND_REQUEST_HIGH",
    "LOGOUT", "GAP_FILL", "RESET", "APPLICATION", "TOO_HIGH", "TOO_LOW", "SEEN", "BAD_BEGIN_STRING",
    "BAD_COMP_ID", "BAD_TIME", "BAD_MSG_TYPE", "NO_NUMBER", "NO_ORIG_TIME", "LATE_ORIG_TIME", "RESET_LOW",
}  # fmt: skip


def fuzz(steps: int, seed: int) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPT.parents[2]}{os.pathsep}{SCRIPT.parents[1]}"}
    command = [sys.executable, str(SCRIPT), str(steps), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, (done.returncode, done.stderr[-2_000:])
    counts = json.loads(done.stdout)
    assert counts["messages"] > steps // 8
    assert set(counts["events"]) - {"BAD_TIME_TAKEN"} == EVENTS  # every judgement was reached


def test_mutated_streams_stay_inside_their_bytes() -> None:
    fuzz(200_000, 1)


@pytest.mark.slow
def test_a_million_mutated_streams_stay_inside_their_bytes() -> None:
    for seed in range(2, 7):
        fuzz(1_000_000, seed)
