"""The rungs of a ladder: the trained experts with less and less of their second layer, each fine-tuned.

A rung begins as the rung before it, loses the smallest weights of its second layer and learns, under that
mask, to answer as the dense expert does: what is spent is what its error measures, and what NANopt bounds.
The news half and its bias stay those of the dense expert, so that the halves which the plan has cached fit
every rung; fixed, they are computed once for all steps.  The less a rung has lost, the less it may move: one
that hardly misses anything, fitted freely, drifts away from the dense expert on rows that it did not see.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bicep.plan import PlanError, Rung, Weights
from strategy.experts import TAGS, Tensors, Training
from strategy.fusionnet import FusionNet

_CARE: Final = 4  # power of what was lost, in the rate: 1 and 2 lost more at 0.5 and above, none below 0.2
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


@dataclass(slots=True, frozen=True)
class _Lesson:
    """What a rung learns from, and with: rows, and for each what the dense expert answers."""

    samples: Tensors
    half: Tensor  # news half by state
    mean: Tensor
    log_variance: Tensor
    size: float  # mean square of `mean`


def _lesson(dense: FusionNet, samples: Tensors) -> _Lesson:
    dense.eval()
    with torch.no_grad():
        half = dense.news(samples.news, start=dense.tech.bias)
        mean, log_variance = dense.read(dense.tech(samples.tech, start=half, state=samples.state))
    return _Lesson(samples, half, mean, log_variance, max(float(mean.square().mean()), 1e-12))


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
    lesson = _lesson(dense, samples) if samples is not None else None
    for density in densities:
        net.second.density = density
        if lesson is not None:
            rate = training.rung_rate * (1 - density) ** _CARE
            _fit(net, lesson, rate, training, generator, functools.partial(told, density))
        found.append(net.weights())
    return found


def _fit(
    net: FusionNet,
    lesson: _Lesson,
    share: float,
    training: Training,
    generator: torch.Generator,
    told: Callable[[], None],
) -> None:
    """Fit everything but the news half and its bias, which stay as they are; share: of the learning rate."""
    moved = [p for name, p in net.named_parameters() if name != "tech.bias" and not name.startswith("news.")]
    rate, steps, count = share * training.learning_rate, training.rung_steps, len(lesson.samples)
    optimiser = torch.optim.AdamW(moved, lr=rate, weight_decay=0.0, fused=True)
    order, at = torch.randperm(count, generator=generator), 0
    net.train()
    for step in range(steps):
        if at >= count:
            order, at = torch.randperm(count, generator=generator), 0
        rows = order[at : at + training.batch]
        at += training.batch
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad(set_to_none=True)
        _loss(net, lesson, rows).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        optimiser.step()
        told()
    net.eval()


def _loss(net: FusionNet, lesson: _Lesson, rows: Tensor) -> Tensor:
    """Return the squared distance to the dense answers: of the mean in its own size, of the log variance."""
    batch = lesson.samples.picked(rows, lesson.samples.tag)
    mean, log_variance = net.read(net.tech(batch.tech, start=lesson.half, state=batch.state))
    off = (mean - lesson.mean.index_select(0, rows)).square().mean() / lesson.size
    return off + (log_variance - lesson.log_variance.index_select(0, rows)).square().mean()
