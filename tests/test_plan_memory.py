"""A million ticks leave the memory of the process as it was."""

from __future__ import annotations

import mmap
import pathlib
import tracemalloc

import pytest
from numba.core.runtime import _nrt_python
from numba.core.runtime.nrt import rtsys

from bicep.plan import ANALYTIC, MC_32
from bicep.probe import _BATCHES, Probe, random_image

TICKS = -(-1_000_000 // _BATCHES)  # of each batch of a timing
SPARE = 1 << 20  # bytes that the rest of the process may take meanwhile


def resident() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("mode", [MC_32, ANALYTIC])
def test_a_million_ticks_take_no_memory(mode):
    probe = Probe(random_image((64, 16), (1.0, 0.2)))
    probe.plan.set_rung(1, mode)
    probe.time(TICKS)  # compiled; its own row of time stamps has been touched
    _nrt_python.memsys_enable_stats()
    tracemalloc.start()
    try:
        before, counts = resident(), rtsys.get_allocation_stats()
        probe.time(TICKS)
        grown, held = resident() - before, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        after = rtsys.get_allocation_stats()
        _nrt_python.memsys_disable_stats()
    assert (after.alloc, after.mi_alloc) == (counts.alloc, counts.mi_alloc)
    assert grown < SPARE
    assert held < SPARE
