"""The rungs of a ladder: the trained experts with less and less of their second layer, each fine-tuned.

A rung begins as the rung before it, loses the smallest weights of its second layer and is fitted a little
more under that mask.  The news half and its bias stay those of the dense expert, so that the halves which
the plan has cached fit every rung; fixed, they are computed once for all steps.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bicep.plan import PlanError, Rung, Weights
from strategy.experts import TAGS, Tensors, Training
from strategy.fusionnet import FusionNet, direction_loss, gaussian_loss

Told = Callable[[float], None]  # a density, at each step


def check_densities(densities: Sequence[float]) -> tuple[float, ...]:
    """Return the densities of a ladder, the dense rung first; raises PlanError (one line) for none such."""
    found = tuple(float(density) for density in densities)
    falling = all(0 < later < earlier for earlier, later in itertools.pairwise(found))
    if not found or found[0] != 1 or not falling:
        msg = f"a ladder begins with density 1 and falls, all above 0; got {list(densities)}"
        raise PlanError(msg)
    return found


def tuned_steps(tags: NDArray[np.int64], starved: Sequence[int], rungs: int, training: Training) -> int:
    """Return how many steps `tuned_rungs` takes for a ladder of so many rungs, the dense one included."""
    own = [tag for tag in TAGS if tag not in starved and (tags == tag).any()]
    return len(own) * (rungs - 1) * training.rung_steps


def tuned_rungs(
    nets: Sequence[FusionNet],
    samples: Tensors,
    densities: Sequence[float],
    starved: Sequence[int],
    training: Training,
    seed: int,
    told: Told,
) -> list[Rung]:
    """Return the ladder of trained experts (one per tag), the dense rung first.

    A starved tag's weights are those of the `none` expert.  The caller fixes torch's threads; the same nets,
    samples and seed give the same bits.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    by_tag: list[list[Weights]] = []
    for tag in TAGS:
        if tag in starved:
            by_tag.append(by_tag[0])
            continue
        rows = np.flatnonzero(samples.tag == tag)
        part = samples.take(rows) if len(rows) else None
        by_tag.append(_tuned(nets[tag], part, densities[1:], training, generator, told))
    rest = [Rung(density, [by_tag[tag][n] for tag in TAGS]) for n, density in enumerate(densities[1:])]
    return [Rung(1.0), *rest]


def _tuned(
    dense: FusionNet,
    samples: Tensors | None,
    densities: Sequence[float],
    training: Training,
    generator: torch.Generator,
    told: Told,
) -> list[Weights]:
    """Return one expert's weights at each density; without rows of its own they are pruned and not tuned."""
    net, found = copy.deepcopy(dense), []
    for density in densities:
        net.second.density = density
        if samples is not None:
            _fit(net, samples, training, generator, functools.partial(told, density))
        found.append(net.weights())
    return found


def _fit(
    net: FusionNet, samples: Tensors, training: Training, generator: torch.Generator, told: Callable[[], None]
) -> None:
    """Fit everything but the news half and its bias, which stay as they are."""
    with torch.no_grad():
        half = net.news(samples.news, start=net.tech.bias)
    moved = [p for name, p in net.named_parameters() if name != "tech.bias" and not name.startswith("news.")]
    rate, steps = training.rung_rate * training.learning_rate, training.rung_steps
    optimiser = torch.optim.AdamW(moved, lr=rate, weight_decay=training.weight_decay, fused=True)
    order, at = torch.randperm(len(samples), generator=generator), 0
    net.train()
    for step in range(steps):
        if at >= len(samples):
            order, at = torch.randperm(len(samples), generator=generator), 0
        batch = samples.picked(order[at : at + training.batch], samples.tag)
        at += training.batch
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad(set_to_none=True)
        _loss(net, batch, half, training).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        optimiser.step()
        told()
    net.eval()


def _loss(net: FusionNet, batch: Tensors, half: Tensor, training: Training) -> Tensor:
    """Return the loss of the trunk's training, on news halves that are known."""
    mean, log_variance = net.read(net.tech(batch.tech, start=half, state=batch.state))
    loss = gaussian_loss(mean, log_variance, batch.label, training.beta)
    return loss + training.direction_weight * direction_loss(mean, log_variance, batch.label)
