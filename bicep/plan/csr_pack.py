"""The second layer of a rung as compressed rows in slices of eight, and back; the layout is in layout.py."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.plan.layout import (
    COLUMN_SIZE,
    GROUP,
    GROUP_TAIL,
    HEADS,
    LINE,
    TILE,
    csr_slices_at,
    padded,
    slice_size,
)
from bicep.plan.weights import Floats, PlanError, Weights

_COLUMNS_MAX: Final = 1 << 15  # a column is an int16


def tiles(matrix: Floats) -> bytes:
    """Return a matrix of the first layer in tiles of 64 units."""
    units, inputs = matrix.shape
    return matrix.reshape(units // TILE, TILE, inputs).transpose(0, 2, 1).tobytes()


def untile(values: Floats, units: int, inputs: int) -> Floats:
    """Return the matrix of tiles."""
    return values.reshape(units // TILE, inputs, TILE).transpose(0, 2, 1).reshape(units, inputs)


def _slice(weights: Weights, rows: NDArray[np.int64]) -> tuple[int, bytes]:
    """Return the steps and the bytes of a slice of eight rows."""
    kept = [np.flatnonzero(weights.second[row]) for row in rows]
    steps = max(len(columns) for columns in kept)
    values, places = np.zeros((steps, GROUP), np.float32), np.zeros((steps, GROUP), np.int16)
    for lane, (row, columns) in enumerate(zip(rows, kept, strict=True)):
        values[: len(columns), lane] = weights.second[row, columns]
        places[: len(columns), lane] = columns
    tail = [array[rows] for array in (weights.bias_two, weights.mean_head, weights.variance_head)]
    block = b"".join(part.astype(np.float32).tobytes() for part in tail) + rows.astype(np.int32).tobytes()
    block += values.tobytes() + places.tobytes()
    return steps, block + bytes(slice_size(steps) - len(block))


def csr_pack(weights: Weights) -> bytes:
    """Return the CSR pack of weights that are filled up; what is zero in the second layer is left out."""
    outputs, units = weights.second.shape
    if units > _COLUMNS_MAX:
        msg = f"{units} units of the first layer, a column goes up to {_COLUMNS_MAX}"
        raise PlanError(msg)
    order = np.argsort(np.count_nonzero(weights.second, axis=1), kind="stable")
    slices = [_slice(weights, order[n : n + GROUP]) for n in range(0, outputs, GROUP)]
    steps = np.array([count for count, _ in slices], np.int32).tobytes()
    heads = np.zeros(HEADS, np.float32)
    heads[:2] = weights.biases
    front = tiles(weights.tech) + heads.tobytes() + steps + bytes(padded(len(steps), LINE) - len(steps))
    return front + b"".join(block for _, block in slices)


def _slices(pack: bytes, n_tech: int, units: int, outputs: int) -> list[tuple[Floats, Any, Floats, Any]]:
    """Return tail, units, values and columns of each slice; raises PlanError when they do not fit."""
    at = csr_slices_at(n_tech, units, outputs)
    if len(pack) < at:
        msg = "is too short for its widths"
        raise PlanError(msg)
    steps = np.frombuffer(pack, np.int32, outputs // GROUP, 4 * (units * n_tech + HEADS))
    if ((steps < 0) | (steps > units)).any() or at + sum(slice_size(int(n)) for n in steps) != len(pack):
        msg = "has slices that do not fit it"
        raise PlanError(msg)
    found = []
    for count in steps.tolist():
        tail = np.frombuffer(pack, np.float32, 3 * GROUP, at).reshape(3, GROUP)
        rows = np.frombuffer(pack, np.int32, GROUP, at + 4 * 3 * GROUP)
        inside = at + 4 * GROUP_TAIL
        values = np.frombuffer(pack, np.float32, count * GROUP, inside).reshape(count, GROUP)
        columns = np.frombuffer(pack, np.int16, count * GROUP, inside + 4 * count * GROUP)
        found.append((tail, rows, values, columns.reshape(count, GROUP)))
        at += slice_size(count)
    assert columns.itemsize == COLUMN_SIZE
    return found


def check_csr_pack(pack: bytes, n_tech: int, units: int, outputs: int) -> None:
    """Raise PlanError unless every index is in range and every weight finite; its words follow "its pack"."""
    slices = _slices(pack, n_tech, units, outputs)
    numbers = [np.frombuffer(pack, np.float32, units * n_tech + HEADS)]
    numbers += [part for tail, _, values, _ in slices for part in (tail, values)]
    if not all(np.isfinite(part).all() for part in numbers):
        msg = "holds a weight that is NaN or infinite"
        raise PlanError(msg)
    rows = np.concatenate([rows for _, rows, _, _ in slices])
    if (np.sort(rows) != np.arange(outputs)).any():
        msg = "does not hold each unit of the second layer once"
        raise PlanError(msg)
    if any(((columns < 0) | (columns >= units)).any() for _, _, _, columns in slices):
        msg = "has a column outside the first layer"
        raise PlanError(msg)


def unpack_csr(pack: bytes, n_tech: int, units: int, outputs: int) -> dict[str, Floats]:
    """Return the fields of Weights that a checked CSR pack holds."""
    first = np.frombuffer(pack, np.float32, units * n_tech + HEADS)
    second, vectors = np.zeros((outputs, units), np.float32), np.zeros((3, outputs), np.float32)
    for tail, rows, values, columns in _slices(pack, n_tech, units, outputs):
        vectors[:, rows] = tail
        for lane, row in enumerate(rows):
            np.add.at(second[row], columns[:, lane], values[:, lane])
    return {
        "tech": untile(first[: units * n_tech], units, n_tech),
        "second": second,
        "bias_two": vectors[0],
        "mean_head": vectors[1],
        "variance_head": vectors[2],
        "biases": first[units * n_tech :][:2],
    }
