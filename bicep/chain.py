"""Follow a PyTorch module from its input to its output: which linear layers it is, and what stands between.

What is a factor and an offset (BatchNorm1d in evaluation) goes into the linear layer beside it, two linear
layers with nothing in between are one.  Everything else that is no linear layer, activation or dropout in a
single path is refused in one line that says what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional as fn

from bicep.layers import BICEPLayer
from bicep.plan import PlanError

_GELU: Final = None  # slope of what is no ReLU
_SAME: Final = {"flatten": (1,), "squeeze": (-1, 1)}  # methods and functions that change no number, their dim

Matrix = NDArray[np.float64]


@dataclass(slots=True)
class Layer:
    """One linear layer and what follows it."""

    weight: Matrix
    bias: Matrix
    activated: bool = False
    drop: float = 0.0
    slope: float | None = _GELU  # below 0, of ReLU and LeakyReLU; None = tanh-GELU


class _Tracer(fx.Tracer):
    """Follows a module down to layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep BICEPLayers whole."""
        return isinstance(m, BICEPLayer) or super().is_leaf_module(m, module_qualified_name)


def refuse(words: str, cause: Exception | None = None) -> NoReturn:
    """Raise PlanError with one line."""
    msg = f"no plan for this module: {words}"
    raise PlanError(msg) from cause


def _array(tensor: torch.Tensor) -> Matrix:
    return tensor.detach().cpu().double().numpy()


class _Chain:
    """The layers so far; `pending` is a factor and an offset that the next linear layer takes in."""

    def __init__(self, erf_as_tanh: bool) -> None:
        self.layers: list[Layer] = []
        self.pending: tuple[Matrix, Matrix] | None = None
        self._erf_as_tanh = erf_as_tanh

    def _open(self) -> Layer | None:
        """Return the last layer while nothing stands behind it."""
        last = self.layers[-1] if self.layers else None
        return None if last is None or last.activated or last.drop or self.pending else last

    def linear(self, layer: nn.Linear | BICEPLayer) -> None:
        """Append a layer, or take it into the one before."""
        kept = layer.masked_weight() if isinstance(layer, BICEPLayer) else layer.weight
        weight = _array(kept)
        bias = np.zeros(len(weight)) if layer.bias is None else _array(layer.bias)
        if self.pending is not None:
            factor, offset = self.pending
            weight, bias, self.pending = weight * factor, bias + weight @ offset, None
        if (before := self._open()) is not None:
            before.weight, before.bias = weight @ before.weight, weight @ before.bias + bias
        else:
            self.layers.append(Layer(weight, bias))
        if isinstance(layer, BICEPLayer):
            if layer.activation not in ("none", "gelu", "relu"):
                refuse(f"activation {layer.activation}, the plan's kernel has tanh-GELU and ReLU")
            if layer.activation != "none":
                self.activation(0.0 if layer.activation == "relu" else _GELU)
            self.dropout(layer.dropout)

    def activation(self, slope: float | None) -> None:
        """Take an activation."""
        if (last := self._open()) is None:
            refuse("an activation that does not follow a linear layer")
        last.activated, last.slope = True, slope

    def gelu(self, approximate: str) -> None:
        """Take a GELU."""
        if approximate != "tanh" and not self._erf_as_tanh:
            refuse(
                "GELU in the erf form, the plan's kernel has the tanh form; they differ by up to 5e-4, "
                "erf_as_tanh=True accepts that"
            )
        self.activation(_GELU)

    def dropout(self, probability: float) -> None:
        """Take a dropout."""
        if not probability:
            return
        last = self.layers[-1] if self.layers else None
        if last is None or not last.activated or last.drop or self.pending:
            refuse("dropout that does not follow an activation, the plan drops nowhere else")
        last.drop = probability

    def norm(self, module: nn.BatchNorm1d) -> None:
        """Take a batch norm as it is in evaluation."""
        if module.running_mean is None or module.running_var is None:
            refuse("a BatchNorm1d without running statistics")
        factor = 1 / np.sqrt(_array(module.running_var) + module.eps)
        offset = -_array(module.running_mean) * factor
        if module.affine:
            gain = _array(module.weight)
            factor, offset = factor * gain, offset * gain + _array(module.bias)
        if (last := self._open()) is not None:
            last.weight, last.bias = last.weight * factor[:, None], last.bias * factor + offset
            return
        before = (np.ones_like(factor), np.zeros_like(factor)) if self.pending is None else self.pending
        self.pending = before[0] * factor, before[1] * factor + offset

    def module(self, module: nn.Module) -> None:
        """Take a module."""
        if type(module) is nn.Linear or isinstance(module, BICEPLayer):
            self.linear(module)
        elif isinstance(module, nn.GELU):
            self.gelu(module.approximate)
        elif isinstance(module, nn.ReLU):
            self.activation(0.0)
        elif isinstance(module, nn.LeakyReLU):
            self.activation(float(module.negative_slope))
        elif isinstance(module, nn.Dropout):
            self.dropout(module.p)
        elif isinstance(module, nn.BatchNorm1d):
            self.norm(module)
        elif not isinstance(module, nn.Identity | nn.Flatten):
            refuse(f"{type(module).__name__} is not part of the plan's arithmetic")

    def function(self, node: fx.Node) -> None:
        """Take a call of a function or a method."""
        name = getattr(node.target, "__name__", str(node.target))
        given = dict(node.kwargs)
        first = node.args[1] if len(node.args) > 1 else None
        if node.target is fn.gelu:
            self.gelu(str(given.get("approximate", "none")))
        elif name in ("relu", "relu_"):
            self.activation(0.0)
        elif name == "leaky_relu":
            self.activation(float(cast("Any", given.get("negative_slope", 0.01 if first is None else first))))
        elif node.target is fn.dropout:
            self.dropout(float(cast("Any", given.get("p", 0.5 if first is None else first))))
        elif given.get("dim", given.get("start_dim", first)) not in _SAME.get(name, ()):
            refuse(f"{name}() is not part of the plan's arithmetic")


def chain_of(module: nn.Module, *, erf_as_tanh: bool = False) -> list[Layer]:
    """Return the linear layers of a module, float64; raises PlanError where it leaves a single path."""
    chain = _Chain(erf_as_tanh)
    if isinstance(module, nn.Linear | BICEPLayer):
        chain.linear(module)
        return chain.layers
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # noqa: BLE001  # the forward() of somebody else can raise anything
        reason = str(error).split("\n", 1)[0]
        refuse(f"its forward() depends on its data or cannot be traced ({reason})", error)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        refuse(f"it takes {len(inputs)} inputs; one tensor [rows, features and news] is wanted")
    last = inputs[0]
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            if node.args != (last,):
                refuse("its output is not one tensor that comes out of its last layer")
            continue
        if node.all_input_nodes != [last]:
            refuse(f"{node.name} does not take the step before it alone (a residual or a branch)")
        if node.op == "call_module":
            chain.module(module.get_submodule(str(node.target)))
        else:
            chain.function(node)
        last = node
    if chain.pending is not None:
        refuse("a BatchNorm1d behind the last activation")
    return chain.layers
