"""CUDA bodies of the registry's operations on torch tensors, and what launches them on a real device.

A body returns NotImplemented for a call that its kernels do not take (another dtype or activation, a mask
that regrows); the caller then has torch do it.  Dropout draws the words that the CPU draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from bicep.cuda import ENTRIES, Launch
from bicep.device import CupyDevice

NONE, GELU = 0, 1  # activations that the kernels have
KEEP_ALL: Final = 1 << 16  # level of dropout that keeps everything
_LOW: Final = 0xFFFFFFFF


class Launcher(Protocol):
    """What launches a kernel of bicep/cuda/SOURCE.cu for tensors, None (a null pointer) and numpy scalars."""

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int],
        block: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Launch on the stream that torch uses."""


class CupyLauncher:
    """Kernels on the streams of torch, on data that lies on the GPU.

    least_work: multiply-adds from which a call on data that lies on the CPU is worth two copies; by default
    never.  Tensors are taken by their address, without a copy; torch's allocator keeps their memory until the
    stream has passed.
    """

    def __init__(self, device: CupyDevice, least_work: float = math.inf) -> None:
        self._device, self._least_work = device, least_work

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int],
        block: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Launch a kernel.  Raises DeviceLostError."""
        import cupy  # noqa: PLC0415  (the device has imported it)

        assert ENTRIES[kernel].source == f"{source}.cu", kernel
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        packed = [address_of(value) for value in arguments]
        self._device.launch(ENTRIES[kernel], Launch(grid, block, shared), packed, stream)

    def holds(self, tensor: Tensor) -> bool:
        """Say whether the tensor's memory is the GPU's."""
        return tensor.is_cuda

    def wants(self, name: str, work: int) -> bool:  # noqa: ARG002  (one threshold for all)
        """Say whether a call on data that lies on the CPU is worth the two copies."""
        return work >= self._least_work

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the GPU."""
        return tensor.cuda(non_blocking=True)

    def give(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the CPU."""
        return tensor.cpu()


def address_of(value: Any) -> Any:
    """Return an argument as the device takes it: the address of a tensor, a scalar as it is."""
    if value is None:
        return np.uint64(0)
    return np.uint64(value.data_ptr()) if isinstance(value, Tensor) else value


def launch_entry(launcher: Launcher, kernel: str, **values: Any) -> None:
    """Launch a kernel of the table; values: its arguments by name (tensors, None, ints)."""
    entry = ENTRIES[kernel]
    shape = entry.launch(values)
    arguments = [values[a.name] if a.is_pointer else a.dtype(values[a.name]) for a in entry.arguments]
    source = entry.source.removesuffix(".cu")
    launcher.launch(source, kernel, shape.grid, shape.threads, arguments, shape.shared)


def _takes(mask: Tensor, *tensors: Tensor | None) -> bool:
    floats = all(t is None or t.dtype == torch.float32 for t in tensors)
    return floats and mask.dtype in {torch.bool, torch.uint8} and all(t is None or t.numel() for t in tensors)


def _sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    outputs, inputs = weight.shape
    return {"n": x.numel() // inputs, "inputs": inputs, "outputs": outputs}


def _bytes(mask: Tensor) -> Tensor:
    return mask.contiguous().view(torch.uint8)


def _key(draw: Tensor | None, level: int) -> dict[str, int]:
    """Return the kernel's words for a draw (left, right, number), or those of no dropout."""
    if draw is None:
        return {"level": KEEP_ALL, "number": 0, "left": 0, "right": 0}
    left, right, number = (int(value) & _LOW for value in draw.tolist())
    return {"level": level, "number": number, "left": left, "right": right}


def _forward(
    launcher: Launcher,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    pre: Tensor | None,
    **how: int,
) -> Tensor:
    sizes = _sizes(x, weight)
    y = x.new_empty((sizes["n"], sizes["outputs"]))
    given = {"x": x.contiguous(), "weights": weight.contiguous(), "mask": _bytes(mask), "pre": pre, "y": y}
    launch_entry(
        launcher, "masked_linear", **given, bias=None if bias is None else bias.contiguous(), **sizes, **how
    )
    return y.reshape(*x.shape[:-1], sizes["outputs"])


def masked_linear(
    launcher: Launcher,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    _regrow: bool = False,
) -> Any:
    """Return x (W.M)' + b."""
    if not _takes(mask, x, weight, bias):
        return NotImplemented
    return _forward(launcher, x, weight, mask, bias, None, activate=0, **_key(None, KEEP_ALL))


def masked_linear_bwd(
    launcher: Launcher,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    regrow: bool = False,
    needs_x: bool = True,
) -> Any:
    """Return the gradients of x (empty if it is not needed), weight (0 where pruned) and bias."""
    if regrow or not _takes(mask, grad, x, weight):
        return NotImplemented
    sizes, kept = _sizes(x, weight), mask != 0
    inner, flat = grad.contiguous(), x.contiguous()
    dx = x.new_empty(x.shape if needs_x else (0,))
    if needs_x:
        given = {"inner": inner, "weights": weight.contiguous(), "mask": _bytes(mask)}
        launch_entry(launcher, "masked_linear_dx", **given, **sizes, dx=dx)
    rows = torch.zeros(sizes["outputs"] + 1, dtype=torch.int32, device=x.device)
    rows[1:] = kept.sum(1).cumsum(0)
    columns = kept.nonzero()[:, 1].to(torch.int32)
    dw, db = x.new_empty(max(len(columns), 1)), x.new_empty(sizes["outputs"])
    pattern = {"rows": rows, "columns": columns if len(columns) else rows}
    launch_entry(launcher, "masked_linear_dw", inner=inner, x=flat, **pattern, **sizes, dw=dw, db=db)
    whole = torch.zeros_like(weight)
    whole[kept] = dw[: len(columns)]
    return dx, whole, db


def fused_linear(
    launcher: Launcher,
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
    """Return dropout(act(x (W.M)' + start)), and if `saves` what stood before the activation."""
    if state is not None or activation not in {NONE, GELU} or not _takes(mask, x, weight, start):
        return NotImplemented
    shape = (*x.shape[:-1], weight.shape[0])
    pre = x.new_empty(shape if saves else (0,))
    how = {"activate": int(activation == GELU), **_key(draw, level)}
    return _forward(launcher, x, weight, mask, start, pre if saves else None, **how), pre


def fused_linear_bwd(
    launcher: Launcher,
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
    """Return the gradients of x (empty if it is not needed), weight and start (empty if there is none)."""
    takes = state is None and activation in {NONE, GELU} and not regrow
    if not (takes and _takes(mask, grad, x, weight, start)):
        return NotImplemented
    sizes, inner, flat = _sizes(x, weight), torch.empty_like(grad.contiguous()), grad.contiguous()
    given = {"grad": flat, "pre": saved.contiguous() if activation == GELU else flat, "inner": inner}
    size = {"n": sizes["n"], "outputs": sizes["outputs"]}
    how = {"activate": int(activation == GELU), **_key(draw, level)}
    launch_entry(launcher, "masked_linear_inner", **given, **size, **how)
    dx, dw, db = masked_linear_bwd(launcher, inner, x, weight, mask, regrow, needs_x)
    return dx, dw, x.new_empty((0,)) if start is None else db


BODIES: Final[dict[str, Callable[..., Any]]] = {
    "masked_linear": masked_linear,
    "masked_linear_bwd": masked_linear_bwd,
    "fused_linear": fused_linear,
    "fused_linear_bwd": fused_linear_bwd,
}
