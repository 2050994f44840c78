"""BICEPLayer: a linear layer with mask, activation and dropout in one operation; takes nn.Linear's place.

    layer = BICEPLayer(128, 64, activation="gelu", dropout=1 / 8)
    layer.density = 0.2                      prune by magnitude; the parameters stay, hidden, and can return
    nn.Linear(128, 64).load_state_dict(layer.state_dict())      and the other way round

A state dict holds what nn.Linear's holds.  A pruned weight is written as -0.0, which is a zero to everyone
else, and read back as pruned.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from bicep import ops, pruning
from bicep.cpu.rows import NONE
from bicep.function import FUSED, LINEAR, BICEPFunction, Controller
from bicep.kernels import REGISTRY
from bicep.masks import keep_level


def _is_traced() -> bool:
    return bool(cast("Any", torch.jit).is_tracing())


class BICEPLayer(nn.Module):
    """Linear layer + mask (+ activation, + dropout): arguments, parameters and first values of nn.Linear.

    activation: "none", "gelu" (the tanh form), "relu" or "silu".  regrow: pruned weights get gradients too.
    nanopt: a Controller; every forward call outside a compiled graph is reported to it, `adjust` asks it.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor
    asset_masks: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        dropout: float = 0.0,
        density: float = 1.0,
        regrow: bool = False,
        nanopt: Controller | None = None,
    ) -> None:
        super().__init__()
        if in_features < 0 or out_features < 0:
            msg = f"a layer of {in_features} inputs and {out_features} outputs"
            raise ValueError(msg)
        self.in_features, self.out_features = in_features, out_features
        self.nanopt, self.regrow = nanopt, regrow
        self.weight = nn.Parameter(torch.empty((out_features, in_features), device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool), persistent=False)
        self.register_buffer("asset_masks", None, persistent=False)
        self.is_pruned = False
        self.keep: Tensor | None = None  # 0/1 per element instead of drawn dropout: see bicep.export
        self.activation, self.dropout = activation, dropout
        self.reset_parameters()
        if pruning.check_density(density) < 1:
            self.density = density

    def reset_parameters(self) -> None:
        """Draw first values as nn.Linear does."""
        if self.weight.numel():
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def activation(self) -> str:
        """Name of the activation."""
        return self._activation

    @activation.setter
    def activation(self, name: str) -> None:
        if name not in ops.ACTIVATIONS:
            msg = f"activation {name!r} is not one of {', '.join(ops.ACTIVATIONS)}"
            raise ValueError(msg)
        self._activation, self._activation_code = name, ops.ACTIVATIONS[name]

    @property
    def dropout(self) -> float:
        """Probability of dropping an element in training; drawn in steps of 2^-16."""
        return self._dropout

    @dropout.setter
    def dropout(self, probability: float) -> None:
        self._level = keep_level(probability)
        self._dropout = float(probability)

    # ---- forward

    def forward(self, x: Tensor, start: Tensor | None = None, state: Tensor | None = None) -> Tensor:
        """Return the layer's output for x [..., in_features].

        start: what the sums begin with instead of the bias: [out_features], or with state (int64, one per
        row of x) a table of which each row takes the row that state says.
        With masks per asset, x[n] belongs to asset n.
        """
        if not _is_traced():
            self._check(x, start, state)
        begins = self.bias if start is None else start
        if self.asset_masks is None:
            y = self._applied(x, self.mask, begins, state)
        else:
            y = torch.stack(
                [
                    self._applied(part, mask, begins, None)
                    for part, mask in zip(x, self.asset_masks, strict=True)
                ]
            )
        return y if self.keep is None else y * self.keep / (1 - self._dropout)

    def _applied(self, x: Tensor, mask: Tensor, start: Tensor | None, state: Tensor | None) -> Tensor:
        draw, level = None, ops.KEEP_ALL
        if self.training and self._dropout > 0 and self.keep is None:
            draw, level = torch.randint(0, 1 << 32, (3,), device="cpu"), self._level  # by torch.manual_seed
        code, weight = self._activation_code, self.weight
        learns = torch.is_grad_enabled() and (
            x.requires_grad or weight.requires_grad or (start is not None and start.requires_grad)
        )
        if torch.compiler.is_compiling() or _is_traced():
            learns = learns or torch.compiler.is_exporting() or _is_traced()  # a graph outlives grad mode
            if code == NONE and draw is None and state is None:
                return cast("Tensor", LINEAR(x, weight, mask, start, self.regrow))
            made = FUSED(x, weight, mask, start, state, draw, code, level, learns, self.regrow)
            return cast("Tensor", made[0])
        if torch._C._are_functorch_transforms_active():  # noqa: SLF001  # as torch itself asks
            return cast("Tensor", ops.fused_linear(x, weight, mask, start, state, draw, code, level)[0])
        arguments = (x, weight, mask, start, state, draw, code, level)
        is_watched = self.nanopt is not None or type(x) is not Tensor
        if learns or is_watched or torch.is_autocast_enabled(x.device.type):
            apply = cast("Any", BICEPFunction).apply
            return cast("Tensor", apply(x, self.nanopt, *arguments[1:], self.regrow))
        return cast("Tensor", REGISTRY.run(REGISTRY.ops["fused_linear"], (*arguments, False, False))[0])

    def _check(self, x: Tensor, start: Tensor | None, state: Tensor | None) -> None:
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            msg = f"input of shape {tuple(x.shape)}: its last size is not {self.in_features}"
            raise ValueError(msg)
        if start is not None and start.shape[-1] != self.out_features:
            msg = f"start of shape {tuple(start.shape)}: its last size is not {self.out_features}"
            raise ValueError(msg)
        if state is not None and start is None:
            msg = "a state without the table that it points into"
            raise ValueError(msg)
        masks = self.asset_masks
        if masks is not None and (x.dim() == 1 or len(x) != len(masks) or state is not None):
            msg = f"input of shape {tuple(x.shape)} for the masks of {len(masks)} assets"
            raise ValueError(msg)

    # ---- which weights are kept

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return float(self.mask.double().mean()) if self.is_pruned else 1.0

    @density.setter
    def density(self, density: float) -> None:
        self.prune(density)

    def prune(
        self,
        density: float,
        criterion: str = "magnitude",
        inputs: Tensor | None = None,
        *,
        each_output: bool = False,
    ) -> None:
        """Keep the share `density` of the weights, hidden ones included: a higher density brings some back.

        criterion: "magnitude", or "wanda" with the inputs of a batch.  Raises ValueError for a density
        outside (0, 1], NaN or infinite weights, inputs of another size.
        """
        pruning.check_density(density)
        score = pruning.scores(self.weight, criterion, inputs)
        self.set_mask(pruning.best(score, density, each_output=each_output))

    def prune_2_4(self) -> None:
        """Keep the two largest of four neighbours."""
        self.set_mask(pruning.two_of_four(self.weight))

    def prune_assets(self, densities: list[float]) -> None:
        """Give each asset a mask of its own, by magnitude; the first size of inputs is then the asset."""
        score = pruning.scores(self.weight)
        self.asset_masks = torch.stack([pruning.best(score, density) for density in densities])

    def set_mask(self, mask: Tensor) -> None:
        """Keep exactly the weights where mask [out_features, in_features] is true, for all assets."""
        if mask.shape != self.weight.shape or mask.dtype is not torch.bool:
            wanted = tuple(self.weight.shape)
            msg = f"mask of {tuple(mask.shape)} {mask.dtype}, wanted is {wanted} torch.bool"
            raise ValueError(msg)
        self.mask.copy_(mask)  # in place: a compiled graph holds this tensor
        self.asset_masks = None
        self.is_pruned = not bool(self.mask.all())

    def adjust(self) -> float:
        """Ask the controller for a density and prune to it; return it.  Call it between steps."""
        wanted = self.density if self.nanopt is None else self.nanopt.density(self.density)
        if wanted != self.density:
            self.density = wanted
        return wanted

    def masked_weight(self) -> Tensor:
        """Return the weight as it acts: pruned ones are 0."""
        return torch.where(self.mask, self.weight, torch.zeros_like(self.weight))

    def to_linear(self) -> nn.Linear:
        """Return an nn.Linear that computes the same sums; activation and dropout are left to the caller."""
        has_bias = self.bias is not None
        linear = nn.Linear(
            self.in_features, self.out_features, has_bias, device="meta", dtype=self.weight.dtype
        )
        linear.weight = nn.Parameter(self.masked_weight().detach().clone())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)

    # ---- state dicts, as nn.Linear writes and reads them

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_pruned:
            kept = self.weight.detach() + 0.0  # a kept -0.0 becomes 0.0
            destination[prefix + "weight"] = torch.where(self.mask, kept, torch.full_like(kept, -0.0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.shape == self.weight.shape and not weight.is_meta:
            pruned = (weight == 0) & torch.signbit(weight)
            self.set_mask(~pruned.to(self.mask.device))

    def extra_repr(self) -> str:
        """Say the sizes and what differs from nn.Linear."""
        words = f"in_features={self.in_features}, out_features={self.out_features}"
        words += f", bias={self.bias is not None}"
        words += f", activation={self.activation}" if self.activation != "none" else ""
        words += f", dropout={self.dropout:g}" if self.dropout else ""
        return words + (f", density={self.density:.3g}" if self.is_pruned else "")
