"""The seqlock cell: a model test, tearing on purpose, recovery after a writer's death."""

from __future__ import annotations

import pathlib
import threading

import numpy as np
import pytest
import ringbuf_load as load
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ringbuf import seqlock
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, store_i64
from ringbuf.segment import Segment


@kernel
def write(cell: int, source: int, size: int) -> None:
    seqlock.write(cell, source, size)


@kernel
def begin(cell: int) -> int:
    return seqlock.begin_write(cell)


@kernel
def end(cell: int) -> None:
    seqlock.end_write(cell)


@kernel
def read(cell: int, target: int, size: int) -> int:
    return seqlock.read(cell, target, size)


@kernel
def version(cell: int) -> int:
    return seqlock.version(cell)


@kernel
def read_in_place_while_written(cell: int, *, disturbed: bool) -> int:
    """Read a field in place; a write comes between when disturbed.  Return the field, or -1."""
    began = seqlock.begin_read(cell)
    number = load_i64(cell + seqlock.VALUE_AT)
    if disturbed:
        store_i64(seqlock.begin_write(cell), number + 1)
        seqlock.end_write(cell)
    return number if seqlock.end_read(cell, began) else -1


class Cell:
    """One cell of LOAD records in a segment, and a buffer on either side."""

    def __init__(self, count: int = 1) -> None:
        self.segment = Segment.anonymous(1 << 14)
        self.addr = seqlock.create_cells(self.segment, "cell", count, load.LOAD)
        self.source, self.target = np.zeros(9, np.int64), np.zeros(9, np.int64)

    def fill(self, number: int) -> int:
        load.fill(self.source.ctypes.data, number)
        return self.source.ctypes.data

    def read(self) -> tuple[int, int]:
        """Return (version, number) and check that the record is whole."""
        got = read(self.addr, self.target.ctypes.data, load.SIZE)
        if got >= 0:
            assert load.is_whole(self.target.ctypes.data)
        return got, int(self.target[0])


def test_the_layout_is_pinned() -> None:
    assert (seqlock.VALUE_AT, seqlock.cell_size(load.LOAD)) == (64, 64 + 72)


def test_a_new_cell_has_version_zero_and_a_zero_record() -> None:
    assert Cell().read() == (0, 0)


def test_a_reader_of_a_half_written_cell_gives_up_and_a_plain_copy_is_torn() -> None:
    cell = Cell()
    write(cell.addr, cell.fill(1), load.SIZE)
    load.half_write(cell.addr, 2)
    assert cell.read()[0] == -1
    assert not load.is_whole(cell.addr + seqlock.VALUE_AT)  # so the version is what protects the reader
    load.fill(cell.addr + seqlock.VALUE_AT, 2)
    end(cell.addr)
    assert cell.read() == (4, 2)


def test_reading_in_place_notices_a_write_between() -> None:
    cell = Cell()
    write(cell.addr, cell.fill(7), load.SIZE)
    assert read_in_place_while_written(cell.addr, disturbed=False) == 7
    assert read_in_place_while_written(cell.addr, disturbed=True) == -1
    assert read_in_place_while_written(cell.addr, disturbed=False) == 8
    begin(cell.addr)
    assert read_in_place_while_written(cell.addr, disturbed=False) == -1


def test_the_next_write_heals_a_cell_whose_writer_died_inside() -> None:
    cell = Cell()
    load.half_write(cell.addr, 5)
    write(cell.addr, cell.fill(6), load.SIZE)
    assert cell.read() == (2, 6)


def test_recovery_clears_half_written_cells_only() -> None:
    cell = Cell(count=4)
    stride = seqlock.cell_size(load.LOAD)
    for index in range(4):
        write(cell.addr + index * stride, cell.fill(index + 1), load.SIZE)
    load.half_write(cell.addr + stride, 9)
    load.half_write(cell.addr + 3 * stride, 9)
    assert seqlock.recover_cells(cell.addr, 4, load.SIZE) == 2
    assert seqlock.recover_cells(cell.addr, 4, load.SIZE) == 0
    found = []
    for index in range(4):
        assert read(cell.addr + index * stride, cell.target.ctypes.data, load.SIZE) >= 2
        found.append(int(cell.target[0]))
        assert load.is_whole(cell.target.ctypes.data)
    assert found == [1, 0, 3, 0]


@settings(max_examples=60, stateful_step_count=30, deadline=None)
class CellModel(RuleBasedStateMachine):
    """A cell holds the latest whole value, or nothing readable while its writer is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.number, self.version, self.is_inside = Cell(), 0, 0, False

    @rule(number=st.integers(-(2**63), 2**63 - 1))
    def write(self, number: int) -> None:
        write(self.cell.addr, self.cell.fill(number), load.SIZE)
        self.number, self.is_inside = number, False
        self.version += 2

    @rule(number=st.integers(0, 1_000))
    def die_inside(self, number: int) -> None:
        load.half_write(self.cell.addr, number)
        self.is_inside = True

    @rule()
    def take_over(self) -> None:
        assert seqlock.recover_writer(self.cell.addr, load.SIZE) == self.is_inside
        if self.is_inside:
            self.number, self.is_inside = 0, False
            self.version += 2

    @precondition(lambda self: self.is_inside)
    @rule()
    def finish(self) -> None:
        self.number = load_number = 17
        load.fill(begin(self.cell.addr), load_number)
        end(self.cell.addr)
        self.is_inside = False
        self.version += 2

    @invariant()
    def a_reader_sees_the_latest_value(self) -> None:
        expected = -1 if self.is_inside else self.version
        got, number = self.cell.read()
        assert got == expected
        assert version(self.cell.addr) == self.version + self.is_inside
        if got >= 0:
            assert number == self.number


TestCellModel = CellModel.TestCase


def _race(last: int, *, careful: bool) -> int:
    """Return how many reads were torn while another thread wrote records 1..last."""
    cell = Cell()
    scratch = np.zeros(9, np.int64)
    load.write_cell(cell.addr, scratch.ctypes.data, 0)
    load.read_cell(cell.addr, cell.target.ctypes.data, 0, careful=careful)
    writer = threading.Thread(target=load.write_cell, args=(cell.addr, scratch.ctypes.data, last))
    writer.start()
    torn = load.read_cell(cell.addr, cell.target.ctypes.data, last, careful=careful)
    writer.join()
    return torn


@pytest.mark.alone
def test_a_careful_reader_never_sees_a_torn_record_and_a_careless_one_does() -> None:
    assert _race(3_000_000, careful=True) == 0
    assert any(_race(3_000_000, careful=False) for _ in range(20))


@pytest.mark.alone
def test_a_cell_whose_writing_process_was_killed_inside_is_taken_over(tmp_path: pathlib.Path) -> None:
    owner = Segment.create(tmp_path / "s", 4_096, epoch=1)
    cell = seqlock.create_cells(owner, "cell", 1, load.LOAD)
    target = np.zeros(9, np.int64)
    child = load.start("hold", tmp_path / "s", 3, 0)
    load.kill(child)
    assert read(cell, target.ctypes.data, load.SIZE) == -1
    assert seqlock.recover_cells(cell, 1, load.SIZE) == 1
    assert read(cell, target.ctypes.data, load.SIZE) == 2
    assert not target.any()
