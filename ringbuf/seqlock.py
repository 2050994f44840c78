"""Seqlock cell: the latest value of a record; one writer, many readers; a cell is its address.

word 0  version: odd while the writer is inside          line 1..  the record
"""

from __future__ import annotations

from typing import Final

from ringbuf.atomics import (
    fence_acquire,
    fence_release,
    load_acquire,
    load_relaxed,
    store_relaxed,
    store_release,
)
from ringbuf.jit import inlined
from ringbuf.memory import copy
from ringbuf.records import CACHE_LINE, Record
from ringbuf.segment import Segment

VALUE_AT: Final = CACHE_LINE
RETRIES_MAX: Final = 1_000


def cell_size(record: Record) -> int:
    """Return the bytes of one cell."""
    return CACHE_LINE + record.size


def create_cells(segment: Segment, name: str, count: int, record: Record) -> int:
    """Allocate `count` cells side by side; return the address of the first (stride: cell_size)."""
    return segment.allocate(name, count * cell_size(record))


@inlined
def begin_write(cell: int) -> int:
    """Enter the cell; return the address to write the record to.  Only its one writer may call this."""
    store_relaxed(cell, load_relaxed(cell) + 1)  # odd: pairs with the version checks in read()
    fence_release()
    return cell + VALUE_AT


@inlined
def end_write(cell: int) -> None:
    """Leave the cell: readers see the whole new record."""
    store_release(cell, load_relaxed(cell) + 1)  # even: pairs with load_acquire in read()


@inlined
def read(cell: int, target: int, size: int) -> int:
    """Copy the latest record (size bytes) to target; return its version (even), or -1 after RETRIES_MAX."""
    for _ in range(RETRIES_MAX):
        before = load_acquire(cell)  # pairs with store_release in end_write(): the record is visible
        if before & 1:
            continue
        copy(target, cell + VALUE_AT, size)
        fence_acquire()
        if load_relaxed(cell) == before:
            return before
    return -1
