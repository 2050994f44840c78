"""BICEPFunction: the masked linear layer for eager training, and the seam to what steers a layer."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bicep.cpu.rows import NONE
from bicep.kernels import REGISTRY
from bicep.masks import KEEP_ALL

FUSED, LINEAR = torch.ops.bicep.fused_linear.default, torch.ops.bicep.masked_linear.default
_PLAIN: Final = (Tensor, torch.nn.Parameter)


def _call(name: str, x: Tensor, *arguments: Any) -> Any:
    """Run an operation: straight from the registry where nothing of torch wants to see the call.

    The way through torch's dispatcher costs more than a small layer does.
    """
    if type(x) in _PLAIN and not torch.compiler.is_compiling():
        return REGISTRY.run(REGISTRY.ops[name], (x, *arguments))
    return getattr(torch.ops.bicep, name)(x, *arguments)


class Controller(Protocol):
    """What steers a layer: it hears what calls cost, and says what density it wants."""

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Take note of one forward call outside a compiled graph: rows of the batch, its time."""

    def density(self, now: float) -> float:
        """Return the density wanted next; now: the one in use.  Asked between steps by `adjust`."""


class BICEPFunction(torch.autograd.Function):
    """The layer as an autograd function; both ways are one operation of bicep.ops.

    apply(input, nanopt, weight, mask, start, state, draw, activation, level, regrow): nanopt is a Controller
    or None, the rest as in bicep.ops.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        nanopt: Controller | None,
        weight: Tensor,
        mask: Tensor,
        start: Tensor | None = None,
        state: Tensor | None = None,
        draw: Tensor | None = None,
        activation: int = NONE,
        level: int = KEEP_ALL,
        regrow: bool = False,
    ) -> Tensor:
        """Return dropout(act(x (W.M)' + start[state]))."""
        if torch.is_autocast_enabled(x.device.type):  # what is saved has to be what was used
            x, weight = x.float(), weight.float()
            start = None if start is None else start.float()
        began = 0 if nanopt is None else time.perf_counter_ns()
        ctx.plain = activation == NONE and draw is None and state is None
        saved = None
        if ctx.plain:
            y = _call("masked_linear", x, weight, mask, start, regrow)
        else:
            saves = any(ctx.needs_input_grad)
            y, saved = _call(
                "fused_linear", x, weight, mask, start, state, draw, activation, level, saves, regrow
            )
        if nanopt is not None:
            nanopt.observe(x.numel() // max(x.shape[-1], 1), time.perf_counter_ns() - began)
        ctx.save_for_backward(x, weight, mask, saved, start, state, draw)
        ctx.activation, ctx.level, ctx.regrow = activation, level, regrow
        return cast("Tensor", y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and start; a pruned weight's is exactly 0 unless regrow."""
        x, weight, mask, saved, start, state, draw = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if ctx.plain:
            dx, dw, ds = _call("masked_linear_bwd", grad, x, weight, mask, ctx.regrow, needs[0])
        else:
            dx, dw, ds = _call(
                "fused_linear_bwd", grad, x, weight, mask, saved, start, state, draw, ctx.activation,
                ctx.level, ctx.regrow, needs[0],
            )  # fmt: skip
        return (dx if needs[0] else None, None, dw, None, ds if needs[4] else None, *(None,) * 5)
