"""Put BICEPLayers into a model that somebody else wrote, and say what was done and what was not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from bicep.layers import BICEPLayer

# These read the weights of the linear layers inside them on their fast paths, past any forward().
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(slots=True, frozen=True)
class Decision:
    """What became of one module, or why it stayed."""

    name: str
    kind: str
    swapped: bool
    words: str


@dataclass(slots=True, frozen=True)
class Report:
    """Every module with parameters of its own, in the model's order."""

    decisions: tuple[Decision, ...]

    @property
    def swapped(self) -> dict[str, str]:
        """Name -> what it is now."""
        return {d.name: d.words for d in self.decisions if d.swapped}

    @property
    def kept(self) -> dict[str, str]:
        """Name -> why it stayed."""
        return {d.name: d.words for d in self.decisions if not d.swapped}

    def __str__(self) -> str:
        """Return one line per module."""
        lines = [
            f"{'swapped' if d.swapped else 'kept':8s}{d.name or '(the module itself)'} ({d.kind}): {d.words}"
            for d in self.decisions
        ]
        return "\n".join(lines) or "no module has parameters"


def _hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


def _why_not(linear: nn.Module, parents: list[nn.Module], uses: dict[int, int]) -> str:
    """Return why a module stays as it is, or nothing."""
    if parametrize.is_parametrized(linear):
        return "its weight is parametrized"
    if type(linear) is not nn.Linear:
        if isinstance(linear, nn.Linear):
            return f"a subclass of nn.Linear ({type(linear).__name__}) may compute something else"
        return "not a linear layer"
    reader = next((type(p).__name__ for p in parents if isinstance(p, _READ_WEIGHTS)), "")
    if reader:
        return f"{reader} reads the weight itself, past forward()"
    reasons = {
        "it has hooks": _hooks(linear),
        "its weight stands in another place too": uses[id(linear.weight)] > 1,
        f"its weight is {linear.weight.dtype}": not linear.weight.dtype.is_floating_point,
        "its weight holds NaN or infinite values": not bool(torch.isfinite(linear.weight).all()),
    }
    return next((words for words, holds in reasons.items() if holds), "")


def _activation(module: nn.Module | None) -> str:
    """Return the name under which a BICEPLayer does what this module does, or nothing."""
    if module is None or _hooks(module):
        return ""
    if type(module) is nn.GELU and module.approximate == "tanh":
        return "gelu"
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module), "")


def _followers(parent: nn.Module, name: str) -> tuple[str, str, str, float]:
    """Return activation and dropout that follow a layer in a Sequential: their places, name, probability."""
    if type(parent) is not nn.Sequential:
        return "", "", "none", 0.0
    names = list(parent._modules)  # noqa: SLF001
    rest = [*names[names.index(name) + 1 :], "", ""]
    modules = parent._modules  # noqa: SLF001
    activation = _activation(modules.get(rest[0]))
    at = rest[1] if activation else rest[0]
    dropout = modules.get(at)
    is_drop = type(dropout) is nn.Dropout and not _hooks(dropout) and 0 <= dropout.p < 1
    probability = float(dropout.p) if is_drop and isinstance(dropout, nn.Dropout) else 0.0
    return rest[0] if activation else "", at if is_drop else "", activation or "none", probability


def _made_from(linear: nn.Linear, activation: str, dropout: float, density: float) -> BICEPLayer:
    """Return a BICEPLayer with the same Parameter objects, so that optimisers keep working."""
    layer = BICEPLayer(
        linear.in_features, linear.out_features, bias=False, device="meta", dtype=linear.weight.dtype,
        activation=activation, dropout=dropout,
    )  # fmt: skip
    layer.weight, layer.bias = cast("nn.Parameter", linear.weight), cast("nn.Parameter | None", linear.bias)
    layer.mask = torch.ones_like(linear.weight, dtype=torch.bool)
    if density < 1:
        layer.density = density
    return layer.train(linear.training)


def _walk(module: nn.Module, name: str, parents: list[nn.Module]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield name and parents (outermost first) of every module below, in the model's order."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        yield full, [*parents, module]
        yield from _walk(child, full, [*parents, module])


def accelerate(module: nn.Module, *, density: float = 1.0) -> Report:
    """Swap every eligible nn.Linear inside `module` for a BICEPLayer in place; return what was done and why.

    In an nn.Sequential the activation (ReLU, SiLU, tanh-GELU) and the nn.Dropout that follow go into the
    layer; nn.Identity takes their places, so names in state dicts stay.  Parameters are the same objects.
    density: prune each swapped layer by magnitude.  Raises ValueError when it is outside (0, 1].
    """
    if isinstance(module, nn.Linear):
        return Report(
            (
                Decision(
                    "", type(module).__name__, swapped=False, words="it is itself the layer: use BICEPLayer"
                ),
            )
        )
    uses: dict[int, int] = {}  # places at which each parameter stands
    for _, part in module.named_modules(remove_duplicate=False):
        for parameter in part.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    decisions = []
    for name, parents in list(_walk(module, "", [])):
        parent, own = parents[-1], name.rsplit(".", 1)[-1]
        linear = parent.get_submodule(own)
        if isinstance(linear, BICEPLayer) or not list(linear.parameters(recurse=False)):
            continue
        why = _why_not(linear, parents, uses)
        kind = type(linear).__name__
        if why or not isinstance(linear, nn.Linear):
            decisions.append(Decision(name, kind, swapped=False, words=why))
            continue
        activation_at, dropout_at, activation, dropout = _followers(parent, own)
        layer = _made_from(linear, activation, dropout, density)
        parent.register_module(own, layer)
        for place in filter(None, (activation_at, dropout_at)):
            parent.register_module(place, nn.Identity().train(linear.training))
        taken = [activation] if activation != "none" else []
        taken += [f"dropout {dropout:g}"] if dropout_at else []
        words = "BICEPLayer" + (f" with {' and '.join(taken)}" if taken else "")
        decisions.append(Decision(name, kind, swapped=True, words=words))
    return Report(tuple(decisions))
