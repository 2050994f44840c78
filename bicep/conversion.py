"""From a PyTorch module to the hot plan, for any MLP whose arithmetic the plan's kernel can do.

The kernel computes: linear, tanh-GELU, dropout, linear, tanh-GELU, dropout, two heads (mean and log
variance).  What else fits into that, exactly:

    fewer layers        x = gelu(x) - gelu(-x) in the tanh form too, so two units carry a number through
    one output          the log variance is a constant
    any dropout         other probabilities are another draw of the mask bank and a factor in the weights
    one input tensor    its first n_tech columns are the features, the rest is the news half

Anything else (another activation, more layers, a residual) is refused in one line that says what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional as fn

from bicep.layers import BICEPLayer
from bicep.masks import DROP_PROBABILITY, KEEP_ALL, keep_level
from bicep.plan import EXPERTS, Plan, PlanError, Weights, encode
from bicep.plan.layout import WIDTH_MAX

_LINEARS: Final = 3
_FOLDED: Final = 1 - DROP_PROBABILITY  # the kernel divides what it keeps by this

Matrix = NDArray[np.float64]


@dataclass(slots=True)
class _Linear:
    """One linear layer and what follows it."""

    weight: Matrix
    bias: Matrix
    activated: bool = False
    drop: float = 0.0


class _Tracer(fx.Tracer):
    """Follows a module down to layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep BICEPLayers whole."""
        return isinstance(m, BICEPLayer) or super().is_leaf_module(m, module_qualified_name)


def _refuse(words: str, cause: Exception | None = None) -> NoReturn:
    msg = f"no plan for this module: {words}"
    raise PlanError(msg) from cause


def _linear_of(layer: nn.Linear | BICEPLayer) -> _Linear:
    weight = layer.masked_weight() if isinstance(layer, BICEPLayer) else layer.weight
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias
    made = _Linear(weight.detach().cpu().double().numpy(), bias.detach().cpu().double().numpy())
    if isinstance(layer, BICEPLayer):
        if layer.activation not in ("none", "gelu"):
            _refuse(f"activation {layer.activation}, the plan's kernel has tanh-GELU")
        made.activated, made.drop = layer.activation == "gelu", layer.dropout
        if made.drop and not made.activated:
            _refuse("dropout straight behind a linear layer, the plan drops behind the activation")
    return made


def _activate(chain: list[_Linear], approximate: str) -> None:
    if approximate != "tanh":
        _refuse("GELU in the erf form, the plan's kernel has the tanh form (they differ by up to 5e-4)")
    if not chain or chain[-1].activated or chain[-1].drop:
        _refuse("an activation that does not follow a linear layer")
    chain[-1].activated = True


def _drop(chain: list[_Linear], probability: float) -> None:
    if probability and (not chain or not chain[-1].activated or chain[-1].drop):
        _refuse("dropout that does not follow an activation, the plan drops nowhere else")
    if chain and probability:
        chain[-1].drop = probability


def _take_module(module: nn.Module, chain: list[_Linear]) -> None:
    if type(module) is nn.Linear or isinstance(module, BICEPLayer):
        chain.append(_linear_of(module))
    elif isinstance(module, nn.GELU):
        _activate(chain, module.approximate)
    elif isinstance(module, nn.Dropout):
        _drop(chain, module.p)
    elif not isinstance(module, nn.Identity | nn.Flatten):
        _refuse(f"{type(module).__name__} is not part of the plan's arithmetic")


def _take_function(node: fx.Node, chain: list[_Linear]) -> None:
    name = getattr(node.target, "__name__", str(node.target))
    if node.target is fn.gelu:
        _activate(chain, node.kwargs.get("approximate", "none"))  # type: ignore[arg-type]
    elif node.target is fn.dropout:
        given = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        _drop(chain, float(cast("Any", given)))
    else:
        _refuse(f"{name}() is not part of the plan's arithmetic")


def _chain_of(module: nn.Module) -> list[_Linear]:
    """Follow the module from its input to its output; raises PlanError where it leaves a single path."""
    if isinstance(module, nn.Linear | BICEPLayer):
        return [_linear_of(module)]
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # noqa: BLE001  # the forward() of somebody else can raise anything
        reason = str(error).split("\n", 1)[0]
        _refuse(f"its forward() depends on its data or cannot be traced ({reason})", error)
    chain: list[_Linear] = []
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        _refuse(f"it takes {len(inputs)} inputs; one tensor [rows, features and news] is wanted")
    last = inputs[0]
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            if node.args != (last,):
                _refuse("its output is not one tensor that comes out of its last layer")
        else:
            if node.all_input_nodes != [last]:
                _refuse(f"{node.name} does not take the step before it alone (a residual or a branch)")
            if node.op == "call_module":
                _take_module(module.get_submodule(str(node.target)), chain)
            else:
                _take_function(node, chain)
            last = node
    return chain


def _carried(weight: Matrix, bias: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return a layer of twice the units, weight and bias, and the matrix that undoes its GELU."""
    back = np.kron(np.eye(len(weight)), np.array([[1.0, -1.0]]))
    return np.repeat(weight, 2, axis=0) * back.sum(0)[:, None], np.repeat(bias, 2) * back.sum(0), back


def _filled(chain: list[_Linear]) -> list[_Linear]:
    """Return three layers that compute the same as one, two or three."""
    while len(chain) < _LINEARS:
        last = chain[-1]
        weight, bias, back = _carried(last.weight, last.bias)
        chain = [*chain[:-1], _Linear(weight, bias, activated=True), _Linear(back, np.zeros(len(back)))]
    return chain


def weights_of(module: nn.Module, n_tech: int, log_variance: float = 0.0) -> tuple[Weights, tuple[int, int]]:
    """Return the plan's weights of an MLP and what it keeps of both layers; see build_plan."""
    chain = _chain_of(module)
    if not 1 <= len(chain) <= _LINEARS:
        _refuse(f"it has {len(chain)} linear layers, the plan's kernel has up to {_LINEARS}")
    if chain[-1].activated or not all(layer.activated for layer in chain[:-1]):
        _refuse("tanh-GELU has to stand behind every linear layer but the last")
    outputs, inputs = len(chain[-1].weight), chain[0].weight.shape[1]
    if outputs not in (1, 2):
        _refuse(f"it has {outputs} outputs, the plan has a mean and a log variance")
    if not 1 <= n_tech <= inputs:
        _refuse(f"n_tech is {n_tech}, it has {inputs} inputs")
    if outputs == 1:
        last = chain[-1]
        last.weight = np.concatenate([last.weight, np.zeros_like(last.weight)])
        last.bias = np.append(last.bias, log_variance)
    one, two, heads = _filled(chain)
    widths = [inputs, len(one.weight), len(two.weight)]
    if max(widths) > WIDTH_MAX:
        _refuse(f"a layer of {max(widths)} units, the plan's limit is {WIDTH_MAX}")
    keep = (keep_level(one.drop), keep_level(two.drop))
    factors = [_FOLDED * KEEP_ALL / level for level in keep]
    news = one.weight[:, n_tech:] if n_tech < inputs else np.zeros((len(one.weight), 1))
    arrays = (
        one.weight[:, :n_tech], news, one.bias, two.weight * factors[0], two.bias,
        heads.weight[0] * factors[1], heads.weight[1] * factors[1], heads.bias,
    )  # fmt: skip
    return Weights(*(np.ascontiguousarray(array, np.float32) for array in arrays)), keep


def build_plan(
    module: nn.Module | Sequence[nn.Module],
    *,
    n_tech: int | None = None,
    log_variance: float = 0.0,
    label_scale: float = 1.0,
    seed: int = 0,
    symbols_max: int = 8_192,
) -> Plan:
    """Turn an MLP (or one per tag) into a Plan: `infer(plan.state, ...)` computes what the module computes.

    A module with a method `weights()` (FusionNet) is asked for them.  Of any other, the first n_tech inputs
    are features (all by default) and the rest is the news embedding; log_variance is that of a module with
    one output.  Mean and variance are of as many samples as the plan has; a module without dropout has no
    spread.  Raises PlanError with one line that says what the plan's kernel cannot do.
    """
    modules = [module] if isinstance(module, nn.Module) else list(module)
    if len(modules) not in (1, EXPERTS):
        _refuse(f"{len(modules)} modules, wanted is one, or {EXPERTS} (one per tag)")
    experts, keeps = [], []
    for part in modules:
        if callable(getattr(part, "weights", None)):
            try:
                experts.append(cast("Any", part).weights())
            except ValueError as error:
                _refuse(str(error), error)
            keeps.append((0, 0))
            continue
        inputs = next((p.shape[1] for p in part.parameters() if p.dim() > 1), 0)
        made, keep = weights_of(part, inputs if n_tech is None else n_tech, log_variance)
        experts.append(made)
        keeps.append(keep)
    if any(keep != keeps[0] for keep in keeps):
        _refuse(f"the modules drop with different probabilities: {keeps}")
    served = list(range(EXPERTS)) if len(experts) == EXPERTS else [0] * EXPERTS
    experts = experts if len(experts) == EXPERTS else experts * EXPERTS
    image = encode(experts, served, label_scale, keep=keeps[0])
    return Plan.from_image(image, symbols_max=symbols_max, seed=seed)
