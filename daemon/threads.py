"""The hot threads of a live session: which loops, on which cores, idling how; by placement."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Final

from daemon.config import RunConfig
from daemon.errors import CommandError
from daemon.loops import Loop, Rehearsal, no_rehearsal, run_compact, run_market, run_orders, run_strategy
from daemon.pipeline import Pipeline
from ringbuf.affinity import usable_cores
from ringbuf.agent import BUSY, HEARTBEAT, IDLE_NAMES, YIELD, create_heartbeat, create_idler
from ringbuf.clock import TSC, WALL, Clock
from ringbuf.hot_thread import HotThread
from ringbuf.segment import Segment

LOOPS: Final[dict[str, tuple[tuple[str, Callable[..., int]], ...]]] = {
    "compact": (("compact", run_compact),),
    "dedicated": (("market", run_market), ("strategy", run_strategy), ("orders", run_orders)),
}


@dataclasses.dataclass(slots=True)
class HotLoop:
    """One loop: its placement, its thread, its clock.

    beats: what it has done, in duty cycles (inline: messages); pulse: a number that moves while it lives.
    """

    name: str
    placement: str
    thread: HotThread
    beats: Callable[[], int]
    pulse: Callable[[], int]
    clock: Clock

    @property
    def core(self) -> int | None:
        """The core it is pinned to."""
        return self.thread.core


def cores_of(config: RunConfig, count: int) -> list[int]:
    """Return a core for each loop: as configured, else the last usable ones, from the right to the left.

    With fewer cores than loops they are shared.  Raises CommandError for a core that cannot be used.
    """
    usable, chosen = usable_cores(), []
    asked = [
        ("core", config.core),
        ("strategy_core", config.strategy_core),
        ("orders_core", config.orders_core),
    ]
    for index, (key, core) in enumerate(asked[:count]):
        if core >= 0 and core not in usable:
            msg = f"run.{key} {core}: this process may use {', '.join(map(str, usable))}"
            raise CommandError(msg)
        chosen.append(core if core >= 0 else usable[-1 - index % len(usable)])
    return chosen


def idle_of(config: RunConfig, cores: list[int]) -> int:
    """Return how the loops idle: as configured, else busy, or yielding when no core is left for the rest."""
    if config.idle != "auto":
        return IDLE_NAMES.index(config.idle)
    return BUSY if len(set(cores)) == len(cores) < len(usable_cores()) else YIELD


def keep_off(cores: set[int | None]) -> None:
    """Take the calling thread, and the threads that it will make, off the cores of the hot loops.

    Where no other core is left it stays where it is.
    """
    if rest := [core for core in usable_cores() if core not in cores]:
        os.sched_setaffinity(0, rest)


def create_loops(
    segment: Segment, pipeline: Pipeline, config: RunConfig, placement: str,
    on_error: Callable[[str, BaseException], None], *, rehearsal: Rehearsal | None = None,
) -> list[HotLoop]:  # fmt: skip
    """Compile the loops of a placement (they return at once: the stop word is set) and make their threads.

    The stop word is pipeline.control; it is left set, for the caller to clear before the start.
    rehearsal: what the loop of `compact` plays while it is idle; None = nothing.
    """
    named = LOOPS[placement]
    cores = cores_of(config, len(named))
    kind = idle_of(config, cores)
    loops = []
    for (name, kernel), core in zip(named, cores, strict=True):
        clock = Clock(segment, f"loop.{name}.clock", TSC, origin=WALL)
        heartbeat = create_heartbeat(segment, f"loop.{name}.heartbeat")
        words = Loop(heartbeat, create_idler(segment, f"loop.{name}.idler", kind), clock.addr)
        arguments: tuple[Any, ...] = (pipeline, words)
        if placement == "compact":
            arguments += (rehearsal or no_rehearsal(segment, pipeline),)
        kernel(*arguments)
        thread = HotThread(
            name, kernel, arguments, pipeline.control, core=core, fifo=config.fifo, on_error=on_error
        )
        row = segment.array(f"loop.{name}.heartbeat", HEARTBEAT)[0]
        beats = functools.partial(_beats, row)
        loops.append(HotLoop(name, placement, thread, beats, beats, clock))
    return loops


def _beats(row: Any) -> int:
    return int(row["beats"])
