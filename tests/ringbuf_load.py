"""Producers and consumers that run in threads and in processes of their own, for the ring's stress tests.

As a program: `ringbuf_load.py produce|consume|hold SEGMENT FIRST LAST`; prints "ready", works, prints the
result.
"""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # as a program: this tree, not an installed one

from ringbuf import agent, segment, seqlock, spsc  # noqa: E402
from ringbuf.jit import kernel  # noqa: E402
from ringbuf.memory import copy, load_i64, store_i64, wrapping_multiply  # noqa: E402
from ringbuf.records import record  # noqa: E402

LOAD = record("LOAD", "i8 number from 1\n8i8 seal number times a constant, eight times", line=8)
SIZE = LOAD.size
SEAL = 0x1E3779B97F4A7C15
WAITS_MAX = 200_000_000


@kernel
def fill(addr: int, number: int) -> None:
    """Write record `number`."""
    store_i64(addr, number)
    for at in range(8, SIZE, 8):
        store_i64(addr + at, wrapping_multiply(number, SEAL))


@kernel
def is_whole(addr: int) -> bool:
    """Say whether the record is one that fill() wrote, whatever its number."""
    number = load_i64(addr)
    whole = True
    for at in range(8, SIZE, 8):
        whole = whole and load_i64(addr + at) == wrapping_multiply(number, SEAL)
    return whole


@kernel
def produce(ring: int, first: int, last: int, idler: int) -> int:
    """Push records first..last, one, two, ... seven at a time; return the last one that went in."""
    number = first
    for turn in range(WAITS_MAX):
        count = spsc.room(ring, min(1 + turn % 7, last + 1 - number))
        for index in range(count):
            fill(spsc.slot_at(ring, index), number + index)
        spsc.publish_many(ring, count)
        number += count
        if number > last:
            break
        agent.idle(idler, count)
    return number - 1


@kernel
def consume(ring: int, first: int, last: int, idler: int) -> int:
    """Pop records first..last, up to 5 at a time; return how many were wrong, -1 when they never came."""
    wrong = 0
    number = first
    for _ in range(WAITS_MAX):
        count = spsc.ready(ring, min(5, last + 1 - number))
        for index in range(count):
            slot = spsc.front_at(ring, index)
            wrong += load_i64(slot) != number + index or not is_whole(slot)
        spsc.pop_many(ring, count)
        number += count
        if number > last:
            return wrong
        agent.idle(idler, count)
    return -1


@kernel
def write_cell(cell: int, scratch: int, last: int) -> int:
    """Write records 1..last to the cell."""
    for number in range(1, last + 1):
        fill(scratch, number)
        seqlock.write(cell, scratch, SIZE)
    return last


@kernel
def half_write(cell: int, number: int) -> None:
    """Enter the cell and write only the first half of the record."""
    addr = seqlock.begin_write(cell)
    store_i64(addr, number)
    store_i64(addr + 8, wrapping_multiply(number, SEAL))


@kernel
def read_cell(cell: int, scratch: int, last: int, *, careful: bool) -> int:
    """Read until record `last` is seen; return how many reads were torn or went back in time.

    careful: by the protocol; otherwise a plain copy, which must be caught tearing.
    """
    bad = 0
    seen = 0
    for _ in range(WAITS_MAX):
        if careful:
            if seqlock.read(cell, scratch, SIZE) < 0:
                continue
        else:
            copy(scratch, cell + seqlock.VALUE_AT, SIZE)
        number = load_i64(scratch)
        bad += number < seen or not is_whole(scratch)
        seen = number
        if number >= last:
            break
    return bad


def start(role: str, path: pathlib.Path, first: int, last: int) -> subprocess.Popen[str]:
    """Run this file as a program; return when it is about to work."""
    command = [sys.executable, __file__, role, str(path), str(first), str(last)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    """Kill the child by SIGKILL and wait for its end."""
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def idler(kind: int = agent.YIELD) -> tuple[segment.Segment, int]:
    """Return an idle strategy in a segment of its own (keep both)."""
    memory = segment.Segment.anonymous(64)
    return memory, agent.create_idler(memory, "idler", kind)


def main(role: str, path: str, first: int, last: int) -> None:
    """Play one side of the ring "ring" of a segment, or write its cell "cell" for ever and stay inside."""
    attached = segment.Segment.attach(path, writable=True)
    memory, waiting = idler()
    work: Any = {"produce": produce, "consume": consume}.get(role)
    if work is None:
        half_write(attached.areas["cell"][0], first)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.pause()
    ring = spsc.attach_ring(attached, "ring", LOAD)
    recover = spsc.recover_producer if role == "produce" else spsc.recover_consumer
    recover(ring)
    work(ring, 1, 0, waiting)  # compiled or loaded before "ready"
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdout.write(f"{work(ring, first, last, waiting)}\n")
    memory.close()
    attached.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
