"""The masked linear layer as torch operations, with shapes, autograd, autocast and vmap rules.

    bicep::masked_linear(x, weight, mask, bias)   x (W.M)' + b
    bicep::fused_linear(x, weight, mask, start, state, draw, ...)   dropout(act(x (W.M)' + start[state]))
    bicep::masked_linear_bwd, bicep::fused_linear_bwd               their gradients

mask: bool, as large as the weight; an input like any other, so a change of density compiles nothing anew.
start, state: what the sums begin with: the bias [outputs], or a table [states][outputs] and the row of it
that each batch row takes.  draw, level: dropout keeps an element with probability level/65536; the element
of batch row n and unit o is bit n % 32 of word [n/32][o] of bicep.masks.keep_words((draw[0], draw[1]), ...,
number=draw[2]): the same on every device.  regrow: pruned weights get a gradient too, else exactly 0.
"""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as fn

from bicep.cpu import bodies
from bicep.cpu.rows import GELU, NONE, RELU, SILU
from bicep.kernels import LIBRARY, compiled, op
from bicep.masks import KEEP_BITS, keep_words

KEEP_ALL: Final = 1 << KEEP_BITS
ACTIVATIONS: Final = {"none": NONE, "gelu": GELU, "relu": RELU, "silu": SILU}  # gelu: the tanh form
_WORD: Final = 32

Start = tuple[Tensor | None, Tensor | None]


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def kept_elements(draw: Tensor, level: int, rows: int, units: int) -> Tensor:
    """Return which elements [rows, units] dropout keeps, as bool on the CPU."""
    left, right, number = (int(value) & 0xFFFFFFFF for value in draw.tolist())
    words = keep_words((left, right), -(-rows // _WORD), units, level, number=number)
    bits = np.unpackbits(words.view(np.uint8).reshape(len(words), units, 4), axis=2, bitorder="little")
    return torch.from_numpy(bits.transpose(0, 2, 1).reshape(-1, units)[:rows].astype(np.bool_))


def _activated(x: Tensor, activation: int) -> Tensor:
    if activation == GELU:
        return fn.gelu(x, approximate="tanh")
    if activation == RELU:
        return fn.relu(x)
    return fn.silu(x) if activation == SILU else x


def _slope_applied(grad: Tensor, saved: Tensor, activation: int) -> Tensor:
    """Return grad times the activation's slope at saved."""
    if activation == GELU:
        return cast("Tensor", torch.ops.aten.gelu_backward(grad, saved, approximate="tanh"))
    if activation == RELU:
        return torch.where(saved > 0, grad, torch.zeros((), dtype=grad.dtype, device=grad.device))
    return cast("Tensor", torch.ops.aten.silu_backward(grad, saved)) if activation == SILU else grad


def _dropped(x: Tensor, draw: Tensor | None, level: int) -> Tensor:
    if draw is None:
        return x
    kept = kept_elements(draw, level, x.numel() // max(x.shape[-1], 1), x.shape[-1])
    return x * (kept.to(x.device, x.dtype) * (KEEP_ALL / level)).reshape(x.shape)


def _work(x: Tensor, weight: Tensor, *_rest: Any) -> int:
    return x.numel() * int(weight.shape[0])


def _work_back(_grad: Tensor, x: Tensor, weight: Tensor, *_rest: Any) -> int:
    return 2 * x.numel() * int(weight.shape[0])


def _fake_linear(x: Tensor, weight: Tensor, *_rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_back(
    grad: Tensor, x: Tensor, weight: Tensor, _mask: Tensor, _regrow: bool = False, needs_x: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape) if needs_x else x.new_empty((0,)),
        weight.new_empty(weight.shape),
        grad.new_empty((weight.shape[0],)),
    )


@op(
    "masked_linear",
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None, bool regrow=False) -> Tensor",
    fake=_fake_linear,
    work=_work,
    source="linear",
)
def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, _regrow: bool = False
) -> Tensor:
    """Return x (W.M)' + b, x of any shape [..., inputs]."""
    return fn.linear(x, _masked(weight, mask), bias)


@op(
    "masked_linear_bwd",
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor mask, bool regrow=False, bool needs_x=True)"
    " -> (Tensor, Tensor, Tensor)",
    fake=_fake_back,
    work=_work_back,
    source="linear",
)
def masked_linear_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, regrow: bool = False, needs_x: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (an empty tensor if it is not needed), weight and bias."""
    outputs, inputs = weight.shape
    rows = grad.reshape(-1, outputs)
    dw = rows.transpose(0, 1) @ x.reshape(-1, inputs)
    dx = (rows @ _masked(weight, mask)).reshape(x.shape) if needs_x else x.new_empty((0,))
    return dx, dw if regrow else _masked(dw, mask), rows.sum(0)


def _fake_fused(
    x: Tensor,
    weight: Tensor,
    _mask: Tensor,
    _start: Tensor | None = None,
    _state: Tensor | None = None,
    _draw: Tensor | None = None,
    _activation: int = NONE,
    _level: int = KEEP_ALL,
    saves: bool = False,
    _regrow: bool = False,
) -> tuple[Tensor, Tensor]:
    y = _fake_linear(x, weight)
    return y, x.new_empty(y.shape if saves else (0,))


@op(
    "fused_linear",
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? start=None, Tensor? state=None, "
    f"Tensor? draw=None, int activation=0, int level={KEEP_ALL}, bool saves=False, bool regrow=False) "
    "-> (Tensor, Tensor)",
    fake=_fake_fused,
    work=_work,
    source="linear",
)
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
) -> tuple[Tensor, Tensor]:
    """Return dropout(act(x (W.M)' + start[state])), and if `saves` what stood before the activation."""
    sums = fn.linear(x, _masked(weight, mask), start if state is None else None)
    if state is not None:
        assert start is not None
        sums = sums + start.index_select(0, state.reshape(-1)).reshape(sums.shape)
    y = _dropped(_activated(sums, activation), draw, level)
    saved = sums if saves else x.new_empty((0,))
    return (y.clone() if y is saved else y), saved


def _fake_fused_back(
    _grad: Tensor,
    x: Tensor,
    weight: Tensor,
    _mask: Tensor,
    _saved: Tensor,
    start: Tensor | None = None,
    _state: Tensor | None = None,
    _draw: Tensor | None = None,
    _activation: int = NONE,
    _level: int = KEEP_ALL,
    _regrow: bool = False,
    needs_x: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if needs_x else (0,))
    dstart = x.new_empty((0,)) if start is None else start.new_empty(start.shape)
    return dx, weight.new_empty(weight.shape), dstart


@op(
    "fused_linear_bwd",
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor mask, Tensor saved, Tensor? start=None, "
    f"Tensor? state=None, Tensor? draw=None, int activation=0, int level={KEEP_ALL}, bool regrow=False, "
    "bool needs_x=True) -> (Tensor, Tensor, Tensor)",
    fake=_fake_fused_back,
    work=_work_back,
    source="linear",
)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (empty if it is not needed), weight and start (empty if there is none)."""
    inner = _slope_applied(_dropped(grad, draw, level), saved, activation)
    dx, dw, dbias = masked_linear_bwd(inner, x, weight, mask, regrow, needs_x)
    if start is None:
        return dx, dw, x.new_empty((0,))
    if state is None:
        return dx, dw, dbias
    rows = inner.reshape(-1, weight.shape[0])
    return dx, dw, torch.zeros_like(start).index_add(0, state.reshape(-1), rows)


# ---- autograd, autocast, vmap


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, weight, mask, _, ctx.regrow = inputs
    ctx.save_for_backward(x, weight, mask)


def _linear_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx, dw, db = torch.ops.bicep.masked_linear_bwd(grad, x, weight, mask, ctx.regrow, needs[0])
    return dx if needs[0] else None, dw, None, db if needs[3] else None, None


def _fused_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, mask, start, state, draw, ctx.activation, ctx.level, saves, ctx.regrow = inputs
    if not saves and any(ctx.needs_input_grad):
        msg = "bicep::fused_linear needs saves=True where a gradient is asked for"
        raise ValueError(msg)
    ctx.save_for_backward(x, weight, mask, output[1], start, state, draw)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _fused_back(ctx: Any, grad: Tensor | None, _saved_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    x, weight, mask, saved, start, state, draw = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx, dw, ds = torch.ops.bicep.fused_linear_bwd(
        grad, x, weight, mask, saved, start, state, draw, ctx.activation, ctx.level, ctx.regrow, needs[0]
    )
    return (dx if needs[0] else None, dw, None, ds if needs[3] else None, *(None,) * 6)


def _one_by_one(target: Any, size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """Call the operation for each element of the batch and stack the results."""
    made = []
    for n in range(size):
        chosen = [v if d is None else v.select(d, n) for v, d in zip(args, in_dims, strict=True)]
        made.append(target(*chosen))
    if isinstance(made[0], Tensor):
        return torch.stack(made), 0
    return tuple(torch.stack(part) for part in zip(*made, strict=True)), (0,) * len(made[0])


def _vmap_rule(name: str) -> Any:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        target = getattr(torch.ops.bicep, name)
        alone = in_dims[0] is not None and all(dim is None for dim in in_dims[1:])
        if name == "masked_linear" and alone:  # one call: a batch of x is a larger x
            return target(args[0].movedim(in_dims[0], 0), *args[1:]), 0
        return _one_by_one(target, info.batch_size, in_dims, args)

    return rule


for _name in ("masked_linear", "masked_linear_bwd", "fused_linear", "fused_linear_bwd"):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"bicep::{_name}", _device, torch.float32, lib=LIBRARY)
    torch.library.register_vmap(f"bicep::{_name}", _vmap_rule(_name), lib=LIBRARY)
torch.library.register_autograd(
    "bicep::masked_linear", _linear_back, setup_context=_linear_setup, lib=LIBRARY
)
torch.library.register_autograd("bicep::fused_linear", _fused_back, setup_context=_fused_setup, lib=LIBRARY)
for _name in ("masked_linear", "masked_linear_bwd", "fused_linear", "fused_linear_bwd"):
    compiled(_name)(getattr(bodies, _name))
