"""Clocks for kernels: one CLOCK record a thread, one kernel `now_ns`, and the kind is a word in it.

LOGICAL    what the last `set_now` said: replay, backtest, tests
MONOTONIC  clock_gettime(CLOCK_MONOTONIC), about 25 ns
WALL       clock_gettime(CLOCK_REALTIME): Unix UTC; can step
TSC        the time-stamp counter times a calibrated factor, about 10 ns: never goes back; counts from Unix
           UTC or from the monotonic origin as read when it was made; does not follow later steps of UTC

The counter is used only where the kernel says that it is invariant (constant and nonstop) and trusts it as a
clock source; elsewhere TSC becomes MONOTONIC or WALL, and `Clock.kind` says so.  The factor comes from a
calibration of 20 ms (error about 1e-5); `recalibrate`, called now and then by the cold plane, measures it
over the whole time since, against CLOCK_MONOTONIC, and passes it to the hot thread through a seqlock.  Read
the clock once per duty cycle.
"""

from __future__ import annotations

import platform
import time
from typing import Final, Self

import numpy as np

from ringbuf import seqlock
from ringbuf.atomics import cycles, load_relaxed, store_relaxed
from ringbuf.jit import external, kernel
from ringbuf.memory import load_f64, load_i64, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment

LOGICAL, MONOTONIC, WALL, TSC = 0, 1, 2, 3
KIND_NAMES: Final = ("logical", "monotonic", "wall", "tsc")

NS_PER_S: Final = 1_000_000_000
CALIBRATION_NS: Final = 20_000_000
CPU_INFO: Final = "/proc/cpuinfo"
CLOCK_SOURCES: Final = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
_CLOCK_REALTIME, _CLOCK_MONOTONIC = 0, 1  # Linux clock ids
_PAIR_TRIES: Final = 16

CLOCK: Final = record(
    "CLOCK",
    """
    i8  kind          LOGICAL, MONOTONIC, WALL or TSC (fixed)
    i8  origin        MONOTONIC or WALL: what TSC counts from (fixed)
    6i8 pad0          zero
    i8  now_ns        LOGICAL: the time; TSC: the last time given out (clock's thread)
    i8  seconds       struct timespec of clock_gettime (clock's thread)
    i8  nanoseconds   its second word
    5i8 pad1          zero
    """,
)
CALIBRATION: Final = record(
    "CALIBRATION",
    """
    i8  cycles        counter at the origin
    i8  origin_ns     time at the origin
    f8  ns_per_cycle  length of one count
    i8  measured_ns   over how long it was measured
    4i8 pad           zero
    """,
)
_AT, _CAL = CLOCK.at, CALIBRATION.at
_CALIBRATION_SIZE: Final = CALIBRATION.size
_CELL: Final = CLOCK.size  # the calibration's seqlock cell follows the record
CLOCK_SIZE: Final = CLOCK.size + seqlock.cell_size(CALIBRATION)

_clock_gettime = external("clock_gettime", "intc", "intc", "intp")


@kernel
def system_ns(clock: int, clock_id: int) -> int:
    """Read a Linux clock (0 = real time, 1 = monotonic) in ns through the clock record's timespec."""
    _clock_gettime(clock_id, clock + _AT.seconds)
    return load_i64(clock + _AT.seconds) * NS_PER_S + load_i64(clock + _AT.nanoseconds)


@kernel
def _tsc_ns(clock: int) -> int:
    cell = clock + _CELL
    now = load_relaxed(clock + _AT.now_ns)
    for _ in range(seqlock.RETRIES_MAX):
        began = seqlock.begin_read(cell)
        factor = load_f64(cell + seqlock.VALUE_AT + _CAL.ns_per_cycle)
        origin_ns = load_i64(cell + seqlock.VALUE_AT + _CAL.origin_ns)
        origin = load_i64(cell + seqlock.VALUE_AT + _CAL.cycles)
        if seqlock.end_read(cell, began):
            now = max(now, origin_ns + int((cycles() - origin) * factor))
            break
    store_relaxed(clock + _AT.now_ns, now)
    return now


@kernel
def now_ns(clock: int) -> int:
    """Return the time in ns.  Only the thread that owns the clock may call this."""
    kind = load_i64(clock + _AT.kind)
    if kind == LOGICAL:
        return load_relaxed(clock + _AT.now_ns)
    if kind == TSC:
        return _tsc_ns(clock)
    return system_ns(clock, _CLOCK_REALTIME if kind == WALL else _CLOCK_MONOTONIC)


@kernel
def set_now(clock: int, now: int) -> None:
    """Set a logical clock; the other kinds ignore it."""
    if load_i64(clock + _AT.kind) == LOGICAL:
        store_relaxed(clock + _AT.now_ns, now)


@kernel
def cycles_to_ns(clock: int, count: int) -> int:
    """Convert a difference of counter readings to ns (0 when this clock is not calibrated)."""
    return int(count * load_f64(clock + _CELL + seqlock.VALUE_AT + _CAL.ns_per_cycle))


@kernel
def _read_pair(clock: int, pair: int) -> None:
    """Store (counter, monotonic ns) of one moment: the tightest of a few tries (interrupts come between)."""
    tightest = 1 << 62
    for _ in range(_PAIR_TRIES):
        before = cycles()
        ns = system_ns(clock, _CLOCK_MONOTONIC)
        width = cycles() - before
        if width < tightest:
            tightest = width
            store_i64(pair, before + width // 2)
            store_i64(pair + 8, ns)


@kernel
def _calibrate(cell: int, source: int) -> None:
    seqlock.write(cell, source, _CALIBRATION_SIZE)


def tsc_is_invariant() -> bool:
    """Say whether the counter ticks at one rate on all cores, in all power states (Linux must say so)."""
    if platform.machine() in {"aarch64", "arm64"}:
        return True  # the generic timer is so by architecture
    try:
        with open(CPU_INFO) as text:  # noqa: PTH123 (one line of it is enough)
            flags = next((line.split() for line in text if line.startswith("flags")), [])
        with open(CLOCK_SOURCES) as text:  # noqa: PTH123 (as above)
            sources = text.read().split()
    except OSError:
        return False
    return {"constant_tsc", "nonstop_tsc"} <= set(flags) and "tsc" in sources


class Clock:
    """A clock for one thread.  `addr` goes to kernels; `now_ns()` here is for the same thread's cold code."""

    def __init__(self, segment: Segment, name: str, kind: int, *, origin: int = WALL) -> None:
        """Allocate a clock of `kind`; a TSC clock is calibrated now (20 ms).  origin: WALL or MONOTONIC."""
        if kind not in {LOGICAL, MONOTONIC, WALL, TSC} or origin not in {MONOTONIC, WALL}:
            msg = f"clock {name!r}: unknown kind {kind} or origin {origin}"
            raise ValueError(msg)
        self.addr = segment.allocate(name, CLOCK_SIZE)
        self._segment = segment
        calibrated = kind == TSC and tsc_is_invariant()
        self.kind = origin if kind == TSC and not calibrated else kind
        clock = segment.words(self.addr, CLOCK.size // 8).view(CLOCK.dtype)
        clock["kind"], clock["origin"] = self.kind, origin
        if calibrated:
            self._utc_offset = _utc_offset() if origin == WALL else 0
            self._first = _pair()
            time.sleep(CALIBRATION_NS / NS_PER_S)
            self.recalibrate()

    @classmethod
    def logical(cls, segment: Segment, name: str, now: int = 0) -> Self:
        """Make a clock that stands at `now` until it is set."""
        clock = cls(segment, name, LOGICAL)
        clock.set(now)
        return clock

    @property
    def kind_name(self) -> str:
        """What now_ns reads in fact: "logical", "monotonic", "wall" or "tsc"."""
        return KIND_NAMES[self.kind]

    @property
    def ns_per_cycle(self) -> float:
        """Length of one count of the time-stamp counter; 0 when the clock is not a TSC clock."""
        at = self.addr + _CELL + seqlock.VALUE_AT + _CAL.ns_per_cycle
        return float(self._segment.words(at, 1).view(np.float64)[0])

    def now_ns(self) -> int:
        """Return the time in ns; for the thread that owns the clock."""
        return now_ns(self.addr)

    def set(self, now: int) -> None:
        """Set a logical clock (ns)."""
        set_now(self.addr, now)

    def recalibrate(self) -> None:
        """Measure the counter's rate over the whole time since creation; any one cold thread may call this.

        The hot thread goes on from the present reading, never backwards.
        """
        if self.kind != TSC:
            return
        (first_cycles, first_ns), (count, ns) = self._first, _pair()
        measured = np.zeros(1, CALIBRATION.dtype)
        measured["cycles"], measured["origin_ns"] = count, ns + self._utc_offset
        measured["measured_ns"] = ns - first_ns
        measured["ns_per_cycle"] = (ns - first_ns) / (count - first_cycles)
        _calibrate(self.addr + _CELL, measured.ctypes.data)


def _utc_offset() -> int:
    """Return Unix UTC minus the monotonic time in ns: the tightest of a few tries."""
    tries = []
    for _ in range(_PAIR_TRIES):
        before, utc, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        tries.append((after - before, utc - (before + after) // 2))
    return min(tries)[1]


def _pair() -> tuple[int, int]:
    scratch, pair = np.zeros(1, CLOCK.dtype), np.zeros(2, np.int64)
    _read_pair(scratch.ctypes.data, pair.ctypes.data)
    return int(pair[0]), int(pair[1])
