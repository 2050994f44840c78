"""Agents: stop words, heartbeats, idle strategies, the cold loop; hot threads and the cores they run on."""

from __future__ import annotations

import asyncio
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import pytest

from ringbuf import affinity, agent
from ringbuf.clock import Clock, now_ns, set_now
from ringbuf.hot_thread import HotThread
from ringbuf.jit import kernel
from ringbuf.segment import Segment

CYCLES_MAX = 1 << 34


@pytest.fixture
def segment() -> Segment:
    return Segment.anonymous(1 << 14)


@kernel
def loop(stop: int, clock: int, heartbeat: int, idler: int) -> int:
    """Run a duty cycle that finds work every fourth time, until told to stop; return the cycles."""
    for turn in range(CYCLES_MAX):
        if agent.should_stop(stop):
            return turn
        done = 3 if turn % 4 == 0 else 0
        agent.beat(heartbeat, now_ns(clock), done)
        agent.idle(idler, done)
    return -1


@kernel
def idle_times(idler: int, times: int, done: int) -> None:
    for _ in range(times):
        agent.idle(idler, done)


def _state(segment: Segment, addr: int) -> dict[str, int]:
    row = segment.words(addr, 8).view(agent.IDLER.dtype)[0]
    return {name: int(row[name]) for name in agent.IDLER.dtype.names}


def test_the_layouts_are_pinned() -> None:
    assert (agent.IDLER.size, agent.HEARTBEAT.size) == (64, 64)
    beat = agent.HEARTBEAT.at
    assert (beat.beats, beat.beat_ns, beat.done, beat.idle) == (0, 8, 16, 24)


@pytest.mark.parametrize("kind", [agent.BUSY, agent.YIELD, agent.BACKOFF])
def test_work_resets_and_idleness_waits_as_the_strategy_says(segment: Segment, kind: int) -> None:
    idler = agent.create_idler(segment, "idler", kind, sleep_ns_max=4_000)
    idle_times(idler, agent.SPINS, 0)
    idle_times(idler, 5, 0)
    expected_yields = {agent.BUSY: 0, agent.YIELD: agent.SPINS + 5, agent.BACKOFF: 5}[kind]
    assert _state(segment, idler)["yields"] == expected_yields
    idle_times(idler, agent.YIELDS, 0)
    state = _state(segment, idler)
    assert (state["sleeps"], state["seconds"]) == (5 if kind == agent.BACKOFF else 0, 0)
    assert state["sleep_ns"] == (4_000 if kind == agent.BACKOFF else agent.SLEEP_NS_MIN)  # 1, 2, 4, 4 us
    idle_times(idler, 1, 7)
    after = _state(segment, idler)
    assert (after["streak"], after["sleep_ns"]) == (0, agent.SLEEP_NS_MIN)
    idle_times(idler, agent.SPINS, 0)
    assert _state(segment, idler)["sleeps"] == state["sleeps"]


@pytest.mark.parametrize(
    ("kind", "sleep_ns"), [(3, 1_000), (-1, 1_000), (agent.BACKOFF, 1_000_000_000), (1, 1)]
)
def test_unknown_strategies_are_refused(segment: Segment, kind: int, sleep_ns: int) -> None:
    with pytest.raises(ValueError, match="idle strategy"):
        agent.create_idler(segment, "idler", kind, sleep_ns_max=sleep_ns)


def _loop_arguments(segment: Segment, kind: int = agent.BACKOFF) -> tuple[int, int, int, int]:
    stop, heartbeat = agent.create_stop(segment), agent.create_heartbeat(segment, "heartbeat")
    clock = Clock.logical(segment, "clock", 99).addr
    agent.request_stop(stop)
    arguments = (stop, clock, heartbeat, agent.create_idler(segment, "idler", kind))
    assert loop(*arguments) == 0  # compiled
    agent.clear_stop(stop)
    return arguments


@pytest.mark.alone
@pytest.mark.parametrize("core", [None, affinity.usable_cores()[-1]])
def test_a_hot_thread_runs_its_kernel_on_its_core_until_the_stop_word(
    segment: Segment, core: int | None
) -> None:
    arguments = _loop_arguments(segment)
    hot = HotThread("hot-market-loop-x", loop, arguments, arguments[0], core=core)
    hot.start()
    assert hot.is_running
    task = pathlib.Path(f"/proc/self/task/{hot.native_id}")
    assert (task / "comm").read_text() == "hot-market-loop\n"
    if core is not None:
        assert os.sched_getaffinity(hot.native_id) == {core}
    set_now(arguments[1], 100)
    assert not hot.join(0.02)
    hot.request_stop()
    assert hot.join(30)
    assert (hot.error, hot.remarks, hot.is_running) == (None, [], False)
    beats, beat_ns, done, idle = segment.words(arguments[2], 4).tolist()
    assert beats == hot.result > 0
    assert beat_ns == 100
    assert (done, idle) == (3 * ((beats + 3) // 4), beats - (beats + 3) // 4)


def test_pinning_a_hot_thread_leaves_the_others_alone(segment: Segment) -> None:
    before = affinity.usable_cores()
    stop = agent.create_stop(segment)
    hot = HotThread("pinned", affinity.usable_cores, (), stop, core=before[0])
    hot.start()
    assert hot.join(30)
    assert affinity.usable_cores() == before


def test_a_hot_thread_owns_an_event_loop_of_uvloop(segment: Segment) -> None:
    hot = HotThread(
        "loop", lambda: type(asyncio.get_running_loop()).__module__, (), agent.create_stop(segment)
    )
    hot.start()
    assert hot.join(30)
    assert hot.result == "uvloop"


def test_an_error_in_a_hot_thread_is_kept_and_reported(segment: Segment) -> None:
    reported: list[tuple[str, str]] = []

    def broken(number: int) -> None:
        msg = f"broken {number}"
        raise RuntimeError(msg)

    hot = HotThread(
        "broken", broken, (4,), agent.create_stop(segment), on_error=lambda n, e: reported.append((n, str(e)))
    )
    hot.start()
    assert hot.join(30)
    assert str(hot.error) == "broken 4"
    assert reported == [("broken", "broken 4")]


def test_a_core_that_is_not_there_is_refused_before_the_kernel_runs(segment: Segment) -> None:
    ran: list[int] = []
    hot = HotThread("nowhere", ran.append, (1,), agent.create_stop(segment), core=4_000)
    with pytest.raises(ValueError, match="core 4000 cannot be used, this process has"):
        hot.start()
    assert hot.join(30)
    assert ran == []


@pytest.mark.parametrize("core", [-1, 10**6, 2**70])
def test_pinning_to_an_impossible_core_is_refused(core: int) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        affinity.pin_thread(core)


class Countdown:
    """An agent that follows a plan."""

    def __init__(self, plan: list[Any]) -> None:
        self.name, self.plan, self.closed = "countdown", plan, 0

    def work(self) -> int:
        step = self.plan.pop(0)
        if isinstance(step, str):
            raise ValueError(step)  # noqa: TRY004 (the plan asks for it)
        return int(step)

    def close(self) -> None:
        self.closed += 1


def test_the_cold_loop_reports_errors_sleeps_when_idle_and_closes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    errors: list[tuple[str, str]] = []
    cold = Countdown([3, "boom", 0, 2])
    agent.run(cold, lambda: bool(cold.plan), lambda a, e: errors.append((a.name, str(e))), poll_s=0.25)
    assert errors == [("countdown", "boom")]
    assert slept == [0.25, 0.25]
    assert cold.closed == 1


def test_an_error_of_the_error_handler_still_closes_the_agent() -> None:
    def fatal(_agent: agent.Agent, error: Exception) -> None:
        raise error

    cold = Countdown(["boom", 1])
    with pytest.raises(ValueError, match="boom"):
        agent.run(cold, lambda: True, fatal)
    assert cold.closed == 1


def test_privileged_attempts_return_a_reason_or_nothing() -> None:
    code = f"""
import sys; sys.path.insert(0, {str(pathlib.Path(__file__).resolve().parents[1])!r})
import os, resource
from ringbuf import affinity
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.getuid() == 0: os.setuid(65534)
print(affinity.try_fifo())
print(affinity.try_lock_memory())
affinity.set_switch_interval()
print(sys.getswitchinterval())
"""
    command = [sys.executable, "-c", code]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "SCHED_FIFO" in lines[0]
    assert lines[1].startswith("mlockall refused: ")
    assert float(lines[2]) == pytest.approx(1e-4)


def test_names_are_cut_to_what_linux_keeps() -> None:
    names: list[str] = []

    def body() -> None:
        affinity.name_thread("höt-loop-with-a-long-name")
        names.append(pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert names == ["h?t-loop-with-a\n"]
