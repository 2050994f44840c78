"""Any packets at all through the whole pipeline: nothing crashes, nothing is touched outside its table."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from captures import pcap
from fuzz import pipeline_fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replays import ROOT, environment


def fuzz(
    day: pathlib.Path, packets: int, seed: str, folder: pathlib.Path
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    words = [str(ROOT / "tests/fuzz/pipeline_fuzz.py"), str(day), str(packets), seed, str(folder)]
    return subprocess.run(
        [sys.executable, *words], env={**environment(), "PYTHONPATH": path}, capture_output=True, text=True,
        check=False, timeout=3_500,
    )  # fmt: skip


def expect_survival(done: subprocess.CompletedProcess[str], packets: int) -> dict[str, int]:
    assert done.returncode == 0, (done.returncode, done.stderr)
    counts = json.loads(done.stdout)
    assert counts["packets"] >= packets * 0.9
    for name in ("orders", "fills", "bad", "refused", "full"):
        assert counts.get(name, 0) > 0, name  # the fuzz reached this part
    assert counts["runs"] > packets // pipeline_fuzz.PACKETS_A_ROUND  # and sessions began anew
    return counts


def test_mutated_packets_break_nothing(day, tmp_path):
    expect_survival(fuzz(day, 30_000, "1", tmp_path), 30_000)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_million_mutated_packets_break_nothing(day, tmp_path):
    expect_survival(fuzz(day, 1_000_000, "2", tmp_path), 1_000_000)


def test_the_guard_pages_are_there(day, tmp_path):
    done = fuzz(day, 0, "plant", tmp_path)
    assert done.stdout == "inside\n"
    assert done.returncode == -signal.SIGSEGV


@pytest.fixture(scope="module")
def frames(day) -> list[tuple[int, bytes]]:
    """Return the first packets of the day."""
    return pipeline_fuzz.split(day.read_bytes())[:400]


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 399), st.integers(0, 120), st.binary(min_size=1, max_size=8)), max_size=40
    ),
    odd=st.lists(st.tuples(st.integers(0, 399), st.binary(max_size=120)), max_size=5),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_anywhere_leave_books_orders_and_journal_whole(frames, tmp_path, changes, odd):
    """What must hold afterwards is in pipeline_fuzz.check."""
    packets = [bytearray(frame) for _, frame in frames]
    for index, at, new in changes:
        packets[index][at : at + len(new)] = new
    for index, other in odd:
        packets[index] = bytearray(other)
    capture = pcap([(ns, bytes(p)) for (ns, _), p in zip(frames, packets, strict=True)])
    pipeline_fuzz.one_round(capture, tmp_path, pipeline_fuzz.small_config())
