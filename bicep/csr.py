"""Compressed rows: dense to CSR and back, and the libraries that multiply them.

The arrays are int32 row starts, columns and values.  Columns are int16 where the plan and the caches want
them small, which limits a matrix to 32,767 columns.  Libraries (torch.sparse on the CPU, cupyx on a GPU) are
for large matrices; a layer of a small net is faster in bicep.ops.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bicep.pruning import check_finite

COLUMNS_MAX: Final = 32_767  # what an int16 column can name
_INDEX: Final = (torch.int16, torch.int32, torch.int64)


@dataclass(slots=True, frozen=True)
class Csr:
    """A sparse matrix [rows, columns]; what is stored may be zero."""

    starts: Tensor  # int32 [rows + 1]: where the entries of a row begin
    columns: Tensor  # [entries], rising within a row
    values: Tensor  # [entries]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Raise ValueError when the arrays do not describe such a matrix."""
        rows, columns = self.shape
        count = len(self.values)
        starts = self.starts.long()
        entry_rows = (
            torch.repeat_interleave(
                torch.arange(max(rows, 0), device=starts.device), (starts[1:] - starts[:-1]).clamp(min=0)
            )
            if len(starts) == rows + 1
            else starts[:0]
        )
        faults = {
            f"shape {self.shape}": rows < 0 or columns < 0,
            f"{len(starts)} row starts for {rows} rows": len(starts) != rows + 1,
            f"columns of {self.columns.dtype}": self.columns.dtype not in _INDEX,
            f"{columns} columns do not fit into int16": self.columns.dtype is torch.int16
            and columns > COLUMNS_MAX + 1,
            f"{len(self.columns)} columns for {count} values": len(self.columns) != count,
        }
        if not any(faults.values()):
            at = self.columns.long()
            rises = (
                (at[1:] > at[:-1]) | (entry_rows[1:] != entry_rows[:-1]) if len(entry_rows) == count else at
            )
            faults = {
                "row starts do not begin with 0": int(starts[0]) != 0,
                f"row starts end with {int(starts[-1])}, there are {count} entries": int(starts[-1]) != count,
                "row starts fall": bool((starts[1:] < starts[:-1]).any()),
                f"a column is outside 0..{columns - 1}": bool(((at < 0) | (at >= columns)).any()),
                "columns do not rise within a row": not bool(rises.bool().all()),
            }
        for words, holds in faults.items():
            if holds:
                msg = f"no CSR matrix: {words}"
                raise ValueError(msg)

    @property
    def density(self) -> float:
        """Entries over places; 0 for a matrix without places."""
        return len(self.values) / max(self.shape[0] * self.shape[1], 1)


def from_dense(matrix: Tensor, mask: Tensor | None = None, *, small: bool = False) -> Csr:
    """Return the entries where the mask is true (by default: that are not 0) as CSR.

    small: int16 columns.  Raises ValueError for NaN or infinite entries, a mask of another shape, or more
    columns than int16 can name.
    """
    if matrix.dim() != 2 or (mask is not None and mask.shape != matrix.shape):
        msg = f"matrix {tuple(matrix.shape)}, mask {None if mask is None else tuple(mask.shape)}"
        raise ValueError(msg)
    matrix = matrix.detach()
    kept = matrix != 0 if mask is None else mask.bool()
    if small and matrix.shape[1] > COLUMNS_MAX:
        msg = f"{matrix.shape[1]} columns, int16 can name {COLUMNS_MAX}"
        raise ValueError(msg)
    places = kept.nonzero()
    values = matrix[kept]
    check_finite("matrix", values)
    starts = torch.zeros(matrix.shape[0] + 1, dtype=torch.int32, device=matrix.device)
    starts[1:] = kept.sum(1).cumsum(0)
    columns = places[:, 1].to(torch.int16 if small else torch.int32)
    return Csr(starts, columns, values, (matrix.shape[0], matrix.shape[1]))


def to_dense(csr: Csr) -> Tensor:
    """Return the matrix with zeros where nothing is stored."""
    result = torch.zeros(csr.shape, dtype=csr.values.dtype, device=csr.values.device)
    counts = (csr.starts[1:] - csr.starts[:-1]).long()
    rows = torch.repeat_interleave(torch.arange(csr.shape[0], device=counts.device), counts)
    result[rows, csr.columns.long()] = csr.values
    return result


def to_torch(csr: Csr) -> Tensor:
    """Return the matrix as torch's sparse CSR tensor.  It shares the values."""
    index = torch.int64 if csr.columns.dtype is torch.int64 else torch.int32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "in beta state"
        return torch.sparse_csr_tensor(
            csr.starts.to(index), csr.columns.to(index), csr.values, csr.shape, check_invariants=True
        )


def from_torch(sparse: Tensor, *, small: bool = False) -> Csr:
    """Return torch's sparse CSR tensor as ours."""
    columns = sparse.col_indices().to(torch.int16 if small else torch.int32)
    return Csr(
        sparse.crow_indices().to(torch.int32), columns, sparse.values(), (sparse.shape[0], sparse.shape[1])
    )


def cupyx_absent() -> str:
    """Return why cupyx cannot be used, or nothing."""
    try:
        importlib.import_module("cupyx.scipy.sparse")
    except ImportError as error:
        return f"cupyx is absent: {error}"
    return ""


def to_cupyx(csr: Csr) -> Any:
    """Return the matrix as cupyx.scipy.sparse.csr_matrix, without a copy of the values.

    For tensors on a GPU.  Raises ValueError for others and RuntimeError when cupyx is absent.
    """
    if reason := cupyx_absent():
        raise RuntimeError(reason)
    if not csr.values.is_cuda:
        msg = f"the values lie on {csr.values.device}, cupyx wants a GPU"
        raise ValueError(msg)
    cupy, sparse = importlib.import_module("cupy"), importlib.import_module("cupyx.scipy.sparse")
    parts = (csr.values, csr.columns.int(), csr.starts.int())
    return sparse.csr_matrix(tuple(cupy.from_dlpack(part) for part in parts), shape=csr.shape)


def multiply(csr: Csr, x: Tensor) -> Tensor:
    """Return matrix * x, x [columns, n], with torch.sparse; a matrix without rows or entries gives zeros."""
    if x.dim() != 2 or x.shape[0] != csr.shape[1]:
        msg = f"matrix of {csr.shape} times {tuple(x.shape)}"
        raise ValueError(msg)
    if not len(csr.values) or not x.numel():
        return x.new_zeros((csr.shape[0], x.shape[1]))
    return to_torch(csr) @ x
