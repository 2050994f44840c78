"""Seqlock cell: the latest value of a record; one writer, many readers; a cell is its address.

The writer makes the version odd, writes the record, makes it even; a reader that sees an odd version, or
another one after its copy, tries again.  Writers never wait.  Readers give up after RETRIES_MAX tries, more
than a whole write takes: the writer was stopped or died inside.  Version 0: never written, record all zero.

word 0  version: odd while the writer is inside          line 1..  the record
"""

from __future__ import annotations

from typing import Final

from ringbuf.atomics import (
    fence_acquire,
    fence_release,
    load_acquire,
    load_relaxed,
    pause,
    store_relaxed,
    store_release,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, copy
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
    """Enter the cell; return the address to write the record to.  Only its one writer may call this.

    Also heals a cell whose last writer died inside: an odd version stays odd.
    """
    store_relaxed(cell, load_relaxed(cell) | 1)  # odd: pairs with the version checks in read()
    fence_release()  # no store to the record may be seen before the odd version (ARM would reorder them)
    return cell + VALUE_AT


@inlined
def end_write(cell: int) -> None:
    """Leave the cell: readers see the whole new record."""
    store_release(cell, load_relaxed(cell) + 1)  # even: pairs with load_acquire in read()


@inlined
def write(cell: int, source: int, size: int) -> None:
    """Replace the record (size bytes) by the one at source."""
    copy(begin_write(cell), source, size)
    end_write(cell)


@inlined
def version(cell: int) -> int:
    """Return the version now; a poller compares it with the one it has read.  Odd: being written."""
    return load_relaxed(cell)


@inlined
def begin_read(cell: int) -> int:
    """Start reading fields in place at cell + VALUE_AT; return the version for end_read()."""
    return load_acquire(cell)  # pairs with store_release in end_write(): the record is visible


@inlined
def end_read(cell: int, began: int) -> bool:
    """Say whether what was read since begin_read() is one whole record; if not, forget it and try again."""
    fence_acquire()  # the fields are loaded before the version is loaded again
    return began & 1 == 0 and load_relaxed(cell) == began


@inlined
def read(cell: int, target: int, size: int) -> int:
    """Copy the latest record (size bytes) to target; return its version (even), or -1 after RETRIES_MAX.

    After -1 the target holds rubbish.
    """
    for _ in range(RETRIES_MAX):
        before = load_acquire(cell)  # pairs with store_release in end_write(): the record is visible
        if before & 1 == 0:
            copy(target, cell + VALUE_AT, size)
            fence_acquire()  # the copy is complete before the version is read again
            if load_relaxed(cell) == before:
                return before
        pause()
    return -1


@kernel
def recover_writer(cell: int, size: int) -> int:
    """Take over as the writer; return 1 when the last one died inside the cell, else 0.

    The half-written record is cleared, so that readers find "nothing known" (zero) and not a mixture.
    """
    if load_relaxed(cell) & 1 == 0:
        return 0
    clear(begin_write(cell), size)
    end_write(cell)
    return 1


@kernel
def recover_cells(first: int, count: int, size: int) -> int:
    """Take over `count` cells of records of `size` bytes side by side; return how many were half-written."""
    torn = 0
    for index in range(count):
        torn += recover_writer(first + index * (VALUE_AT + size), size)
    return torn
