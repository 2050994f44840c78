"""Which weights are kept: by magnitude, by Wanda, two of four; schedules; regrowth.

Every function returns a new bool mask, True = kept, and chooses the same on every device: of equal scores
the first is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CRITERIA = ("magnitude", "wanda")


def check_density(density: float) -> float:
    """Return the density as a float; raises ValueError unless 0 < density <= 1."""
    value = float(density)
    if not 0 < value <= 1:  # NaN too
        msg = f"density {density} is not in (0, 1]"
        raise ValueError(msg)
    return value


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError when a number is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        msg = f"{name} holds NaN or infinite values"
        raise ValueError(msg)


def scores(weight: Tensor, criterion: str = "magnitude", inputs: Tensor | None = None) -> Tensor:
    """Return the score of each weight: |w|, or for "wanda" |w| times the norm of its input over `inputs`.

    inputs: rows [..., in] that the layer sees (Sun et al. 2023).
    """
    if criterion not in CRITERIA:
        msg = f"criterion {criterion!r} is not one of {', '.join(CRITERIA)}"
        raise ValueError(msg)
    check_finite("weight", weight)
    score = weight.detach().abs().double()
    if criterion == "magnitude":
        return score
    if inputs is None or inputs.shape[-1:] != weight.shape[1:]:
        msg = f"wanda needs inputs [..., {weight.shape[1]}]"
        raise ValueError(msg)
    check_finite("inputs", inputs)
    norm: Tensor = inputs.detach().reshape(-1, weight.shape[1]).double().norm(dim=0)
    return score * norm


def best(score: Tensor, density: float, *, each_output: bool = False) -> Tensor:
    """Keep the share `density` of highest scores, of all or of each row; at least one, rounded."""
    check_density(density)
    rows = score if each_output else score.reshape(1, -1)
    kept = max(1, math.floor(density * rows.shape[1] + 0.5))
    order = torch.sort(rows, dim=1, descending=True, stable=True).indices[:, :kept]
    mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, value=True)
    return mask.reshape(score.shape)


def two_of_four(weight: Tensor) -> Tensor:
    """Keep the two largest of four neighbours in a row (the format of sparse tensor cores)."""
    check_finite("weight", weight)
    if weight.dim() != 2 or weight.shape[1] % 4:
        msg = f"2:4 needs rows of a multiple of four weights, these are {tuple(weight.shape)}"
        raise ValueError(msg)
    groups = weight.detach().abs().reshape(-1, 4)
    return best(groups.double(), 0.5, each_output=True).reshape(weight.shape)


def is_two_of_four(mask: Tensor) -> bool:
    """Say whether no group of four neighbours keeps more than two."""
    return mask.shape[-1] % 4 == 0 and bool((mask.reshape(-1, 4).sum(1) <= 2).all())


def regrown(mask: Tensor, weight: Tensor, grad: Tensor, share: float) -> Tensor:
    """Exchange a share of the kept weights: drop the smallest, wake as many with the largest gradients.

    The number kept stays (RigL, Evci et al. 2020); what was dropped does not come back at once.
    """
    check_finite("gradient", grad)
    kept = int(mask.sum())
    moved = min(int(share * kept), mask.numel() - kept)
    if moved <= 0:
        return mask.clone()
    lost = torch.full_like(weight, math.inf, dtype=torch.float64)
    size = torch.where(mask, weight.detach().abs().double(), lost).reshape(-1)
    dropped = torch.sort(size, stable=True).indices[:moved]
    pull = torch.where(mask, -1.0, grad.detach().abs().double()).reshape(-1)
    woken = torch.sort(pull, descending=True, stable=True).indices[:moved]
    result = mask.clone().reshape(-1)
    result[dropped] = False
    result[woken] = True
    return result.reshape(mask.shape)


def cubic(step: int, begin: int, end: int, final: float, initial: float = 1.0) -> float:
    """Return the density at a step: from initial at begin to final at end, fast first (Zhu & Gupta 2017)."""
    check_density(final)
    check_density(initial)
    if end <= begin:
        msg = f"the schedule ends at step {end}, where it begins ({begin}) or before"
        raise ValueError(msg)
    rest = 1 - min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * rest**3
