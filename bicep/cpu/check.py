"""The CPU's bodies in the cases of the kernels' table, for `python -m bicep.selfcheck`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from bicep import ops, pruning, series
from bicep.cpu.words import keep_rows
from bicep.cuda.cases import Case
from bicep.masks import DROP_PROBABILITY, KEEP_ALL, keep_level

Array = NDArray[Any]
_PATHS: Final = ("paths", "steps", "number", "left", "right")


def _tensors(*arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def _mask_words(
    *, rows: int, units: int, number: int, group: int, left: int, right: int, words: Array
) -> None:
    assert group == 0
    level = keep_level(DROP_PROBABILITY)
    keep_rows(words.ctypes.data, rows, units, number, left, right, level)


def _mask_2_4(*, weights: Array, mask: Array, **_: Any) -> None:
    kept = pruning.two_of_four(torch.from_numpy(weights.reshape(-1, 4)))
    mask[:] = kept.numpy().reshape(mask.shape)


def _masked_linear(
    *, x: Array, weights: Array, mask: Array, bias: Array | None, activate: int, level: int, number: int,
    left: int, right: int, pre: Array | None, y: Array, **_: Any,
) -> None:  # fmt: skip
    draw = None if level >= KEEP_ALL else torch.tensor([left, right, number])
    code = ops.ACTIVATIONS["gelu" if activate else "none"]
    start = None if bias is None else torch.from_numpy(bias)
    layer = (*_tensors(x, weights, mask.astype(bool)), start, None, draw, code, level, True)
    out, saved = torch.ops.bicep.fused_linear(*layer)
    y[:] = out.numpy()
    if pre is not None:
        pre[:] = saved.numpy()


def _masked_linear_dx(*, inner: Array, weights: Array, mask: Array, dx: Array, **_: Any) -> None:
    grad, weight, kept = _tensors(inner, weights, mask.astype(bool))
    dx[:] = torch.ops.bicep.masked_linear_bwd(grad, torch.zeros(dx.shape), weight, kept)[0].numpy()


def _masked_linear_dw(
    *, inner: Array, x: Array, rows: Array, columns: Array, outputs: int, dw: Array, db: Array, **_: Any
) -> None:
    mask = torch.zeros((outputs, x.shape[1]), dtype=torch.bool)
    at = np.repeat(np.arange(outputs), np.diff(rows)), columns.astype(np.int64)
    mask[at] = True
    grad, values = _tensors(inner, x)
    _, whole, bias = torch.ops.bicep.masked_linear_bwd(grad, values, torch.ones(mask.shape), mask)
    dw[:], db[:] = whole.numpy()[at], bias.numpy()


def _indicators(*, close: Array, high: Array, low: Array, out: Array, **_: Any) -> None:
    out[:] = np.stack(series.indicators(close, high, low))


def _rolling_correlation(*, values: Array, pairs: Array, window: int, out: Array, **_: Any) -> None:
    out[:] = series.rolling_correlation(values, window, [(int(i), int(j)) for i, j in pairs])[0]


def _price_paths(*, last: Array, lowest: Array, highest: Array, **call: Any) -> None:
    starts = _tensors(call["spot"], call["drift"], call["volatility"])
    ends = torch.ops.bicep.price_paths(*starts, *(call[name] for name in _PATHS))
    last[:], lowest[:], highest[:] = (end.numpy() for end in ends)


BODIES: Final[dict[str, Callable[..., None]]] = {
    "mask_words": _mask_words,
    "mask_2_4": _mask_2_4,
    "masked_linear": _masked_linear,
    "masked_linear_dx": _masked_linear_dx,
    "masked_linear_dw": _masked_linear_dw,
    "indicators": _indicators,
    "rolling_correlation": _rolling_correlation,
    "price_paths": _price_paths,
}


def on_cpu(all_cases: Iterable[Case]) -> list[Case]:
    """Return the cases that the CPU has a body for, with 32 samples: the first group of mask words."""
    found = []
    for case in all_cases:
        if case.entry.name in BODIES:
            changes = {"group": 0} if "group" in case.arguments else {}
            found.append(replace(case, arguments={**case.arguments, **changes}))
    return found


def run(case: Case) -> float:
    """Run a case on the CPU; return the largest difference from its twin.  Raises CheckError."""
    arguments = case.copy()
    BODIES[case.entry.name](**arguments)
    return case.check(arguments)


def call(case: Case) -> Callable[[], None]:
    """Return a call of the body alone, to be timed."""
    arguments = case.copy()
    return lambda: BODIES[case.entry.name](**arguments)
