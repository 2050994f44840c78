"""Agents: moving parts that are polled, and the words and idle kernels that their loops share.

An agent is an owner in Python (cold: allocates, names, closes) and a duty-cycle kernel `work(state) -> int`
(hot: handles at most one batch, returns how much it did, never blocks).  Functions are never passed into
kernels, so the hot loops are written out by name in daemon/pipeline.py:

    while not should_stop(stop):
        now = now_ns(clock)
        done = market_work(market, now) + books_work(books, now)
        beat(heartbeat, now, done)
        idle(idler, done)

The three placements differ only in which works stand in which loop: one loop each (`dedicated`), all in one
(`compact`), or one pass per call with a logical clock (`inline`).  A cold agent has its `work` in Python;
`run` polls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from ringbuf.atomics import load_acquire, load_relaxed, pause, store_relaxed, store_release
from ringbuf.jit import external, inlined, kernel
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment

BUSY, YIELD, BACKOFF = 0, 1, 2
IDLE_NAMES: Final = ("busy", "yield", "backoff")
PAUSES: Final = 8  # processor pauses of one busy idle
SPINS, YIELDS = 1_000, 100  # backoff: so many idle cycles spin, so many yield the core, then it sleeps
SLEEP_NS_MIN, SLEEP_NS_MAX = 1_000, 1_000_000

IDLER: Final = record(
    "IDLER",
    """
    i8  kind         BUSY, YIELD or BACKOFF (fixed)
    i8  streak       idle duty cycles since the last work
    i8  sleep_ns     length of the next sleep
    i8  sleep_ns_max longest sleep (fixed)
    i8  seconds      struct timespec of nanosleep: always 0
    i8  nanoseconds  its second word
    i8  sleeps       sleeps so far
    i8  yields       yields of the core so far
    """,
)
HEARTBEAT: Final = record(
    "HEARTBEAT",
    """
    i8  beats     duty cycles so far: a watchdog wants it to move
    i8  beat_ns   time of the last one, by the loop's clock
    i8  done      messages handled so far
    i8  idle      duty cycles that found nothing
    4i8 pad       zero
    """,
)
_IDLE, _BEAT = IDLER.at, HEARTBEAT.at
_sched_yield = external("sched_yield", "intc")
_nanosleep = external("nanosleep", "intc", "intp", "intp")


class Agent(Protocol):
    """A moving part.  Only the thread inside its loop touches its state; others see rings and cells."""

    name: str

    def work(self) -> int:
        """Handle at most one batch and return how many messages that was (0 = idle); never block.

        Of a hot agent this is a thin call of its kernel, used by `inline` and by tests.
        """
        ...

    def close(self) -> None:
        """Release sockets and memory; called once, after the loop has ended."""
        ...


# ---------------------------------------------------------------- stop word


def create_stop(segment: Segment, name: str = "stop") -> int:
    """Allocate a stop word on a line of its own; return its address."""
    return segment.allocate(name, CACHE_LINE)


@inlined
def should_stop(stop: int) -> bool:
    """Say whether the loop must leave its kernel."""
    return load_acquire(stop) != 0  # pairs with store_release in request_stop()


@kernel
def request_stop(stop: int) -> None:
    """Ask the loops that watch this word to end."""
    store_release(stop, 1)  # pairs with load_acquire in should_stop()


@kernel
def clear_stop(stop: int) -> None:
    """Let loops start again; before they start, not while they run."""
    store_release(stop, 0)


# ---------------------------------------------------------------- heartbeat


def create_heartbeat(segment: Segment, name: str) -> int:
    """Allocate a HEARTBEAT; return its address.  Written by its loop, read by the watchdog."""
    return segment.allocate(name, HEARTBEAT.size)


@inlined
def beat(heartbeat: int, now: int, done: int) -> None:
    """Count one duty cycle that handled `done` messages."""
    store_relaxed(heartbeat + _BEAT.beats, load_relaxed(heartbeat + _BEAT.beats) + 1)
    store_relaxed(heartbeat + _BEAT.beat_ns, now)
    if done > 0:
        store_relaxed(heartbeat + _BEAT.done, load_relaxed(heartbeat + _BEAT.done) + done)
    else:
        store_relaxed(heartbeat + _BEAT.idle, load_relaxed(heartbeat + _BEAT.idle) + 1)


# ---------------------------------------------------------------- idle strategies


def create_idler(segment: Segment, name: str, kind: int = BUSY, *, sleep_ns_max: int = SLEEP_NS_MAX) -> int:
    """Allocate the idle strategy of one loop; return its address.

    kind: BUSY keeps the core (lowest latency), YIELD lets another thread of the core run after each idle
    cycle, BACKOFF spins, then yields, then sleeps 1 us doubling up to sleep_ns_max (below one second).
    """
    if kind not in {BUSY, YIELD, BACKOFF} or not SLEEP_NS_MIN <= sleep_ns_max < 1_000_000_000:
        msg = f"idle strategy {name!r}: unknown kind {kind} or sleep {sleep_ns_max} ns"
        raise ValueError(msg)
    addr = segment.allocate(name, IDLER.size)
    idler = segment.words(addr, IDLER.size // 8).view(IDLER.dtype)
    idler["kind"], idler["sleep_ns"], idler["sleep_ns_max"] = kind, SLEEP_NS_MIN, sleep_ns_max
    return addr


@inlined
def _yield_core(idler: int) -> None:
    _sched_yield()
    store_relaxed(idler + _IDLE.yields, load_relaxed(idler + _IDLE.yields) + 1)


@kernel
def _back_off(idler: int) -> None:
    streak = load_i64(idler + _IDLE.streak) + 1
    store_i64(idler + _IDLE.streak, streak)
    if streak <= SPINS:
        pause()
    elif streak <= SPINS + YIELDS:
        _yield_core(idler)
    else:
        sleep_ns = load_i64(idler + _IDLE.sleep_ns)
        store_i64(idler + _IDLE.nanoseconds, sleep_ns)
        store_i64(idler + _IDLE.sleep_ns, min(sleep_ns * 2, load_i64(idler + _IDLE.sleep_ns_max)))
        _nanosleep(idler + _IDLE.seconds, 0)  # a signal ends it early: just another duty cycle
        store_relaxed(idler + _IDLE.sleeps, load_relaxed(idler + _IDLE.sleeps) + 1)


@inlined
def is_busy(idler: int) -> bool:
    """Say whether the strategy keeps the core."""
    return load_i64(idler + _IDLE.kind) == BUSY


@inlined
def idle(idler: int, done: int) -> None:
    """Wait as the strategy says after a duty cycle that handled `done` messages; work resets the wait."""
    kind = load_i64(idler + _IDLE.kind)
    if done > 0:
        if kind == BACKOFF:
            store_i64(idler + _IDLE.streak, 0)
            store_i64(idler + _IDLE.sleep_ns, SLEEP_NS_MIN)
    elif kind == BUSY:
        for _ in range(PAUSES):
            pause()
    elif kind == YIELD:
        _yield_core(idler)
    else:
        _back_off(idler)


# ---------------------------------------------------------------- cold loop


def run(
    agent: Agent,
    is_running: Callable[[], bool],
    on_error: Callable[[Agent, Exception], None],
    *,
    poll_s: float = 0.001,
) -> None:
    """Poll a cold agent until `is_running()` is false, then close it; sleep poll_s after an idle cycle.

    An exception from `work` goes to `on_error` (which counts it, and trips the kill switch where orders are
    concerned); the loop continues unless `is_running` says stop.
    """
    try:
        while is_running():
            try:
                done = agent.work()
            except Exception as error:  # noqa: BLE001  (the one place that catches everything)
                on_error(agent, error)
                done = 0
            if done <= 0:
                time.sleep(poll_s)
    finally:
        agent.close()
