"""Clocks: the four kinds, the calibration, and what stands still or never goes back."""

from __future__ import annotations

import builtins
import io
import time
from typing import Any

import pytest

from ringbuf import clock as clocks
from ringbuf.clock import Clock
from ringbuf.jit import kernel
from ringbuf.segment import Segment

SLACK_NS = 1_000_000  # a rate calibrated in 20 ms is off by a few 1e-5


@pytest.fixture
def segment() -> Segment:
    return Segment.anonymous(1 << 14)


@kernel
def steps_back(clock: int, readings: int) -> int:
    """Read the clock many times; return how often it went back."""
    back = 0
    last = clocks.now_ns(clock)
    for _ in range(readings):
        now = clocks.now_ns(clock)
        back += now < last
        last = now
    return back


def test_the_layout_is_pinned() -> None:
    assert (clocks.CLOCK.size, clocks.CALIBRATION.size, clocks.CLOCK_SIZE) == (128, 64, 256)
    at = clocks.CLOCK.at
    assert (at.kind, at.origin, at.now_ns, at.seconds, at.nanoseconds) == (0, 8, 64, 72, 80)


def test_a_logical_clock_stands_where_it_is_set(segment: Segment) -> None:
    clock = Clock.logical(segment, "clock", 1_000)
    assert (clock.now_ns(), clock.now_ns(), clock.kind_name) == (1_000, 1_000, "logical")
    for now in (5_000, 4_000, -1, 2**62):  # a replay may go back to its start
        clock.set(now)
        assert clock.now_ns() == now


@pytest.mark.parametrize(
    ("kind", "origin", "reference"),
    [
        (clocks.MONOTONIC, clocks.WALL, time.monotonic_ns),
        (clocks.WALL, clocks.WALL, time.time_ns),
        (clocks.TSC, clocks.WALL, time.time_ns),
        (clocks.TSC, clocks.MONOTONIC, time.monotonic_ns),
    ],
)
def test_a_real_clock_lies_between_two_readings_of_its_reference(
    segment: Segment, kind: int, origin: int, reference: Any
) -> None:
    clock = Clock(segment, "clock", kind, origin=origin)
    for _ in range(3):
        before = reference()
        now = clock.now_ns()
        after = reference()
        assert before - SLACK_NS <= now <= after + SLACK_NS
    clock.set(7)
    assert clock.now_ns() != 7


@pytest.mark.parametrize("kind", [clocks.MONOTONIC, clocks.TSC])
def test_a_clock_never_goes_back(segment: Segment, kind: int) -> None:
    clock = Clock(segment, "clock", kind)
    assert steps_back(clock.addr, 100_000) == 0


def test_the_check_that_a_clock_never_goes_back_can_fail(segment: Segment) -> None:
    clock = Clock.logical(segment, "clock", 5)
    assert steps_back(clock.addr, 10) == 0
    assert clocks.now_ns(clock.addr) == 5


def _needs_tsc(clock: Clock) -> None:
    if clock.kind != clocks.TSC:
        pytest.skip("no invariant time-stamp counter here")


def test_recalibration_keeps_the_clock_near_and_moving_forward(segment: Segment) -> None:
    clock = Clock(segment, "clock", clocks.TSC, origin=clocks.MONOTONIC)
    _needs_tsc(clock)
    assert 0.05 < clock.ns_per_cycle < 100
    last = clock.now_ns()
    for _ in range(5):
        clock.recalibrate()
        before, now, after = time.monotonic_ns(), clock.now_ns(), time.monotonic_ns()
        assert now >= last
        assert before - SLACK_NS <= now <= after + SLACK_NS
        last = now


def test_a_tsc_clock_holds_still_rather_than_going_back(segment: Segment) -> None:
    clock = Clock(segment, "clock", clocks.TSC)
    _needs_tsc(clock)
    ahead = clock.now_ns() + 3_600_000_000_000
    segment.words(clock.addr + clocks.CLOCK.at.now_ns, 1)[0] = ahead  # as after a rate that was too fast
    assert (clock.now_ns(), clock.now_ns()) == (ahead, ahead)


def test_a_counter_that_is_not_invariant_is_not_used(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "tsc_is_invariant", lambda: False)
    for origin, name in ((clocks.WALL, "wall"), (clocks.MONOTONIC, "monotonic")):
        clock = Clock(segment, name, clocks.TSC, origin=origin)
        assert (clock.kind_name, clock.ns_per_cycle) == (name, 0.0)
        clock.recalibrate()
        assert clock.now_ns() > 0


@pytest.mark.parametrize(
    ("flags", "sources", "expected"),
    [
        ("constant_tsc nonstop_tsc", "tsc kvm-clock", True),
        ("constant_tsc", "tsc", False),
        ("nonstop_tsc", "tsc", False),
        ("constant_tsc nonstop_tsc", "kvm-clock acpi_pm", False),  # the kernel found it unstable
        (None, "tsc", False),
    ],
)
def test_invariance_is_what_the_kernel_says(
    monkeypatch: pytest.MonkeyPatch, flags: str | None, sources: str, expected: bool
) -> None:
    def fake_open(path: str, *_rest: Any) -> io.StringIO:
        if path == clocks.CPU_INFO:
            if flags is None:
                raise FileNotFoundError(path)
            return io.StringIO(f"processor : 0\nflags\t: fpu {flags} tsc\n")
        return io.StringIO(f"{sources}\n")

    monkeypatch.setattr(clocks.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(builtins, "open", fake_open)
    assert clocks.tsc_is_invariant() is expected


def test_cycles_become_nanoseconds(segment: Segment) -> None:
    clock = Clock(segment, "clock", clocks.TSC)
    _needs_tsc(clock)
    assert clocks.cycles_to_ns(clock.addr, 1_000_000) == int(1_000_000 * clock.ns_per_cycle)
    assert clocks.cycles_to_ns(Clock.logical(segment, "logical").addr, 1_000_000) == 0


@pytest.mark.parametrize(
    ("kind", "origin"), [(4, clocks.WALL), (-1, clocks.WALL), (clocks.TSC, clocks.LOGICAL)]
)
def test_an_unknown_kind_is_refused(segment: Segment, kind: int, origin: int) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        Clock(segment, "clock", kind, origin=origin)
