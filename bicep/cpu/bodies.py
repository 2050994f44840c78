"""The compiled bodies as torch operations call them: which calls they take, and the working memory.

A call is taken when everything is float32, dense in memory, not empty and of a size that these kernels are
made for; any other is answered by the definition in plain torch.
"""

from __future__ import annotations

import struct
import threading
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bicep.cpu.gradient import backward
from bicep.cpu.linear import (
    DENSE,
    DOT,
    DOT_ROWS_MAX,
    LINEAR,
    SPARSE,
    SPARSE_ROWS_MIN,
    forward,
    scratch_size,
)
from bicep.cpu.rows import NONE
from bicep.cpu.sparse import count_kept
from bicep.cpu.words import keep_rows
from bicep.masks import KEEP_BITS
from ringbuf.jit import kernel
from ringbuf.memory import load_i64
from ringbuf.records import CACHE_LINE

WIDTH_MAX: Final = 4_096  # of a layer
WEIGHTS_MAX: Final = 1 << 20  # beyond, the blocks leave the caches and the library is as good
THREADS_WORK_MAX: Final = 1 << 24  # multiply-adds; more of them are torch's when it has several threads
# Share of weights kept below which skipping the others pays (measured: bench/bench_layers.py).
SPARSE_SHARE: Final = 0.3
SPARSE_SHARE_BACK, SPARSE_SHARE_BACK_FEW = 0.3, 0.15  # with many rows, with less than ROWS_MANY
ROWS_MANY: Final = 1_024
KEEP_ALL: Final = 1 << KEEP_BITS
_WORD: Final = 32

_JOB: Final = struct.Struct("=13qd10q")
assert _JOB.size == LINEAR.size


class _Memory(threading.local):
    """Working memory of a thread: grows to the largest call, then stays."""

    def __init__(self) -> None:
        self.words = np.full(WIDTH_MAX, 0xFFFFFFFF, np.uint32)  # keep words of a layer without dropout
        self.drawn = np.zeros(1, np.uint32)
        self.job = np.zeros(LINEAR.size // 8, np.int64)
        self.job_at: int = self.job.ctypes.data
        self.words_at: int = self.words.ctypes.data
        self.view = memoryview(self.job.data).cast("B")
        self.room = np.empty(0, np.uint8)
        self.room_at = 0

    def scratch(self, size: int) -> int:
        """Return the address of at least `size` bytes on a cache line."""
        if size + CACHE_LINE > self.room.nbytes:
            self.room = np.empty(size + CACHE_LINE, np.uint8)
            self.room_at = -(-self.room.ctypes.data // CACHE_LINE) * CACHE_LINE
        return self.room_at

    def keep_words(self, draw: Tensor | None, level: int, rows: int, units: int) -> tuple[int, int]:
        """Return the address of the first row of keep words, and the bytes from one row to the next."""
        if draw is None or level >= KEEP_ALL:
            return self.words_at, 0
        groups = -(-rows // _WORD)
        if groups * units > self.drawn.size:
            self.drawn = np.zeros(groups * units, np.uint32)
        left, right, number = (int(value) & 0xFFFFFFFF for value in draw.tolist())
        at: int = self.drawn.ctypes.data
        keep_rows(at, groups, units, number, left, right, level)
        return at, 4 * units


_MEMORY: Final = _Memory()


@kernel
def _states_are_below(state: int, count: int, limit: int) -> int:
    """Say whether int64[count] are all in 0..limit-1."""
    for n in range(count):
        row = load_i64(state + 8 * n)
        if row < 0 or row >= limit:
            return 0
    return 1


def _rows_of(x: Tensor, inputs: int) -> Tensor:
    """Return x as [rows, inputs] whose rows are dense."""
    flat = x if x.dim() == 2 else x.reshape(-1, inputs)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _takes(x: Tensor, weight: Tensor, mask: Tensor, outputs: int, inputs: int) -> bool:
    size, shape = x.numel(), x.shape
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and mask.dtype is torch.bool
        and mask.shape == weight.shape
        and len(shape) > 0
        and shape[-1] == inputs
        and weight.is_contiguous()
        and mask.is_contiguous()
        and size > 0
        and 0 < outputs <= WIDTH_MAX
        and inputs <= WIDTH_MAX
        and outputs * inputs <= WEIGHTS_MAX
        and (size * outputs <= THREADS_WORK_MAX or torch.get_num_threads() == 1)
    )


def _start_of(start: Tensor | None, state: Tensor | None, rows: int, outputs: int) -> Any:
    """Return address and row step of start and the address of state; NotImplemented for odd ones."""
    if start is None:
        return (0, 0, 0) if state is None else NotImplemented
    if start.dtype is not torch.float32 or not start.is_contiguous() or start.shape[-1] != outputs:
        return NotImplemented
    if state is None:
        return (start.data_ptr(), 0, 0) if start.dim() == 1 else NotImplemented
    if state.dtype is not torch.int64 or not state.is_contiguous() or state.numel() != rows:
        return NotImplemented
    if start.dim() != 2:
        return NotImplemented
    if not _states_are_below(state.data_ptr(), rows, start.shape[0]):
        msg = f"a state is not a row of the {start.shape[0]} rows of start"
        raise IndexError(msg)
    return start.data_ptr(), 4 * outputs, state.data_ptr()


def _kept(weight: Tensor, mask: Tensor, rows: int) -> int:
    """Return how many weights are kept, or all when nobody will ask."""
    return weight.numel() if rows < SPARSE_ROWS_MIN else count_kept(mask.data_ptr(), weight.numel())


def fused_linear(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    start: Tensor | None = None,
    state: Tensor | None = None,
    draw: Tensor | None = None,
    activation: int = NONE,
    level: int = KEEP_ALL,
    saves: bool = False,
    _regrow: bool = False,
) -> Any:
    """Compute bicep::fused_linear in one kernel, or return NotImplemented."""
    outputs, inputs = weight.shape
    if not _takes(x, weight, mask, outputs, inputs):
        return NotImplemented
    flat = _rows_of(x, inputs)
    rows = flat.shape[0]
    begins = _start_of(start, state, rows, outputs)
    if begins is NotImplemented:
        return NotImplemented
    kept = _kept(weight, mask, rows)
    way = SPARSE if kept <= SPARSE_SHARE * weight.numel() else DOT if rows <= DOT_ROWS_MAX else DENSE
    y = x.new_empty((rows, outputs) if flat is x else (*x.shape[:-1], outputs))
    saved = x.new_empty(y.shape if saves else (0,))
    memory = _MEMORY
    words, words_row = memory.keep_words(draw, level, rows, outputs)
    scratch = memory.scratch(scratch_size(inputs, outputs, kept if way == SPARSE else 0))
    _JOB.pack_into(
        memory.view, 0,
        rows, inputs, outputs, flat.data_ptr(), 4 * flat.stride(0), weight.data_ptr(), mask.data_ptr(),
        *begins, words, words_row, activation, KEEP_ALL / level, y.data_ptr(),
        saved.data_ptr() if saves else 0, scratch, 0, 0, 0, 0, way, kept, 0,
    )  # fmt: skip
    forward(memory.job_at)
    return y, saved


def fused_linear_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    saved: Tensor,
    start: Tensor | None = None,
    state: Tensor | None = None,
    draw: Tensor | None = None,
    activation: int = NONE,
    level: int = KEEP_ALL,
    regrow: bool = False,
    needs_x: bool = True,
) -> Any:
    """Compute bicep::fused_linear_bwd in one kernel, or return NotImplemented."""
    outputs, inputs = weight.shape
    if not _takes(x, weight, mask, outputs, inputs) or grad.dtype is not torch.float32:
        return NotImplemented
    flat, grads = _rows_of(x, inputs), grad.contiguous()
    rows = flat.shape[0]
    begins = _start_of(start, state, rows, outputs)
    if begins is NotImplemented or grads.numel() != rows * outputs or not saved.is_contiguous():
        return NotImplemented
    kept = _kept(weight, mask, rows)
    share = SPARSE_SHARE_BACK if rows >= ROWS_MANY else SPARSE_SHARE_BACK_FEW
    way = SPARSE if not regrow and kept <= share * weight.numel() else DENSE
    dx = x.new_empty(x.shape if needs_x else (0,))
    dw = torch.empty_like(weight)
    dstart = x.new_empty((0,)) if start is None else torch.zeros_like(start)
    memory = _MEMORY
    words, words_row = memory.keep_words(draw, level, rows, outputs)
    scratch = memory.scratch(scratch_size(inputs, outputs, kept if way == SPARSE else 0))
    _JOB.pack_into(
        memory.view, 0,
        rows, inputs, outputs, flat.data_ptr(), 4 * flat.stride(0), weight.data_ptr(), mask.data_ptr(),
        *begins, words, words_row, activation, KEEP_ALL / level, grads.data_ptr(),
        saved.data_ptr(), scratch, dx.data_ptr() if needs_x else 0, dw.data_ptr(),
        0 if start is None else dstart.data_ptr(), int(regrow), way, kept, 0,
    )  # fmt: skip
    backward(memory.job_at)
    return dx, dw, dstart


def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, _regrow: bool = False
) -> Any:
    """Compute bicep::masked_linear in one kernel, or return NotImplemented."""
    result = fused_linear(x, weight, mask, bias)
    return result if result is NotImplemented else result[0]


def masked_linear_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, regrow: bool = False, needs_x: bool = True
) -> Any:
    """Compute bicep::masked_linear_bwd in one kernel, or return NotImplemented."""
    bias = weight.new_zeros(weight.shape[0])
    return fused_linear_bwd(grad, x, weight, mask, grad, bias, None, None, NONE, KEEP_ALL, regrow, needs_x)
