"""Weights of an expert, and of the rungs of its ladder: pruned by magnitude, or fine-tuned by training.

A rung keeps a share of the second layer's weights, the largest ones.  The first layer stays whole: its
news half is shared by all rungs (so a cached half stays valid when the rung changes), and of the features'
half a pruned weight would save no time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bicep.plan.layout import GROUP, LADDER, RUNGS_MAX, TILE, padded

Floats = NDArray[np.float32]


class PlanError(Exception):
    """A plan that cannot be used; the message is one line that says which and why."""


@dataclass(slots=True, frozen=True)
class Weights:
    """One expert, in the shapes of torch.nn.Linear; label_scale is not folded in."""

    tech: Floats  # [H1, n_tech]
    news: Floats  # [H1, n_news]
    bias_one: Floats  # [H1]
    second: Floats  # [H2, H1]
    bias_two: Floats  # [H2]
    mean_head: Floats  # [H2]
    variance_head: Floats  # [H2], of the log variance
    biases: Floats  # [2], of the two heads


@dataclass(slots=True, frozen=True)
class Rung:
    """One rung of a ladder.

    density: share of the second layer's weights that it keeps, in (0, 1].
    experts: its weights by tag, as training fine-tuned them under their masks; None prunes the dense ones.
    Of the first layer they share `news` and `bias_one` with the dense experts.
    """

    density: float
    experts: Sequence[Weights] | None = None


def ladder(densities: Sequence[float] = LADDER) -> tuple[Rung, ...]:
    """Return rungs that are pruned from the dense weights."""
    return tuple(Rung(density) for density in densities)


def filled(weights: Weights) -> Weights:
    """Fill the layers up to whole tiles and groups with units of zero weight."""
    one = padded(len(weights.bias_one), TILE) - len(weights.bias_one)
    two = padded(len(weights.bias_two), GROUP) - len(weights.bias_two)

    def fill(array: Floats, *more: int) -> Floats:
        return np.pad(np.asarray(array, np.float32), [(0, n) for n in more])

    return Weights(
        fill(weights.tech, one, 0),
        fill(weights.news, one, 0),
        fill(weights.bias_one, one),
        fill(weights.second, two, one),
        fill(weights.bias_two, two),
        fill(weights.mean_head, two),
        fill(weights.variance_head, two),
        fill(weights.biases, 0),
    )


def check_weights(experts: Sequence[Weights]) -> None:
    """Raise PlanError for weights that are not finite or whose shapes differ."""
    shapes = [[np.shape(array) for array in astuple(expert)] for expert in experts]
    if not all(np.isfinite(array).all() for expert in experts for array in astuple(expert)):
        msg = "a weight is NaN or infinite"
        raise PlanError(msg)
    if any(shape != shapes[0] for shape in shapes):
        msg = f"experts of different shapes: {shapes}"
        raise PlanError(msg)


def _kept(density: float, size: int) -> int:
    if not (math.isfinite(density) and 0 < density <= 1):
        msg = f"density {density} is not in (0, 1]"
        raise PlanError(msg)
    return round(density * size)


def largest(matrix: Floats, density: float) -> NDArray[np.bool_]:
    """Return the mask of the largest weights: round(density * size) of them; ties keep the earlier one.

    Raises PlanError when the density is not in (0, 1].
    """
    order = np.argsort(-np.abs(matrix), axis=None, kind="stable")
    mask = np.zeros(matrix.size, bool)
    mask[order[: _kept(density, matrix.size)]] = True
    return mask.reshape(matrix.shape)


def pruned(weights: Weights, density: float) -> Weights:
    """Return the weights with the smallest of the second layer set to zero.

    Raises PlanError when a weight is not finite, the density is not in (0, 1] or nothing is left.
    """
    check_weights([weights])
    second = np.where(largest(weights.second, density), weights.second, np.float32(0))
    if not second.any():
        msg = f"density {density} leaves no weight of the second layer {second.shape}"
        raise PlanError(msg)
    return replace(weights, second=second)


def _check_tuned(rung: Rung, tuned: Weights, dense: Weights) -> None:
    """Refuse fine-tuned weights that do not fit their rung."""
    if not (np.array_equal(tuned.news, dense.news) and np.array_equal(tuned.bias_one, dense.bias_one)):
        msg = f"rung {rung.density} has a news half of its own: cached halves would not fit"
        raise PlanError(msg)
    count, allowed = int(np.count_nonzero(tuned.second)), _kept(rung.density, tuned.second.size)
    if count > allowed:
        msg = f"rung {rung.density} holds {count} weights of the second layer, its density allows {allowed}"
        raise PlanError(msg)
    if count == 0:
        msg = f"rung {rung.density} holds no weight of the second layer"
        raise PlanError(msg)


def weights_of_rungs(experts: Sequence[Weights], rungs: Sequence[Rung]) -> list[list[Weights]]:
    """Return the weights of each rung and expert.  Raises PlanError (one line) for a ladder that is none."""
    densities = [rung.density for rung in rungs]
    for density in densities:
        _kept(density, 1)
    if not 1 <= len(rungs) <= RUNGS_MAX or densities[0] != 1:
        msg = f"a ladder has 1 to {RUNGS_MAX} rungs, the first of density 1; got {densities}"
        raise PlanError(msg)
    if any(later >= earlier for earlier, later in itertools.pairwise(densities)):
        msg = f"densities must fall from rung to rung; got {densities}"
        raise PlanError(msg)
    if rungs[0].experts is not None:
        msg = "the first rung is the dense experts; it takes no weights of its own"
        raise PlanError(msg)
    table = [list(experts)]
    for rung in rungs[1:]:
        if rung.experts is None:
            table.append([pruned(expert, rung.density) for expert in experts])
            continue
        if len(rung.experts) != len(experts):
            msg = f"rung {rung.density} has {len(rung.experts)} experts of {len(experts)}"
            raise PlanError(msg)
        check_weights([*experts, *rung.experts])
        for tuned, dense in zip(rung.experts, experts, strict=True):
            _check_tuned(rung, tuned, dense)
        table.append(list(rung.experts))
    return table
