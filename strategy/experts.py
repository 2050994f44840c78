"""The three experts: one shared trunk trained on every row, then one copy per tag fine-tuned on its rows.

Contradictions are rare, so an expert with fewer than `min_rows` rows would only learn noise: its tag is
starved and the `none` expert answers for it (the manifest says so).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bicep.training import Pruner, Schedule
from nimbus.messages import TAG_NAMES, TAG_NONE, TAG_OVERHYPE, TAG_UNDERHYPE
from strategy.fusionnet import FusionNet, direction_loss, gaussian_loss

TAGS = (TAG_NONE, TAG_OVERHYPE, TAG_UNDERHYPE)
Report = Callable[[str, float, float], None]  # (phase and epoch, loss, share of right signs) of each step


@dataclass(slots=True, frozen=True)
class Training:
    """How the nets are fitted."""

    hidden: tuple[int, int] = (128, 64)
    epochs: int = 6  # of the shared trunk
    tune_epochs: int = 3  # of each expert
    batch: int = 2_048
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    news_decay: float = 0.3  # few distinct news states and many weights: keep the news half small
    beta: float = 0.5
    direction_weight: float = 0.1
    label_max: float = 6.0  # labels are cut here, in label scales
    density: float = 1.0  # share kept of news half and second layer at the end of the trunk's training
    prune_span: tuple[float, float] = (0.2, 0.7)  # of the trunk's steps: where pruning begins and ends
    regrow_every: int = 0  # steps between two exchanges of pruned weights; 0 = none
    min_rows: int = 500
    rung_steps: int = 120  # of each expert on each rung of a ladder
    rung_rate: float = 1.0  # of the learning rate, times the fourth power of what the rung has lost


@dataclass(slots=True, frozen=True)
class Tensors:
    """Normalised samples as float32 tensors; label in label scales."""

    tech: Tensor
    news: Tensor
    state: Tensor
    label: Tensor
    tag: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.label)

    def take(self, chosen: NDArray[np.int64]) -> Tensors:
        """Return the chosen rows."""
        rows = torch.from_numpy(chosen)
        return self.picked(rows, self.tag[chosen])

    def picked(self, rows: Tensor, tag: NDArray[np.int64]) -> Tensors:
        """Return the rows; tag: theirs."""
        columns = (column.index_select(0, rows) for column in (self.tech, self.state, self.label))
        tech, state, label = columns
        return Tensors(tech, self.news, state, label, tag)


def steps_of(rows: int, epochs: int, training: Training) -> int:
    """Return how many optimiser steps a fit takes."""
    return epochs * max(rows // training.batch, 1)


def _optimiser(net: FusionNet, rate: float, training: Training) -> torch.optim.AdamW:
    news = list(net.news.parameters())
    others = [p for name, p in net.named_parameters() if not name.startswith("news.")]
    groups = [
        {"params": others, "weight_decay": training.weight_decay},
        {"params": news, "weight_decay": training.news_decay},
    ]
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def fit(
    net: FusionNet,
    samples: Tensors,
    epochs: int,
    rate: float,
    training: Training,
    generator: torch.Generator,
    report: Callable[[int, float, float], None],
    pruner: Pruner | None = None,
) -> None:
    """Fit the net to the samples in place; report gets each step's epoch, loss and share of right signs.

    pruner: prunes the net along the way.
    """
    optimiser, rows = _optimiser(net, rate, training), len(samples)
    steps = steps_of(rows, epochs, training)
    per_epoch = steps // epochs
    net.train()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(rows, generator=generator)
        at = step % per_epoch * training.batch
        loss, right = _loss(net, samples, order[at : at + training.batch], training)
        for group in optimiser.param_groups:  # a short rise, then half a cosine down
            rise = min(1.0, (step + 1) / (0.05 * steps + 1))
            group["lr"] = rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if pruner is not None:
            pruner.before_step()
        optimiser.step()
        if pruner is not None:
            pruner.after_step()
        report(step // per_epoch + 1, float(loss.detach()), right)
    net.eval()


def pruner_of(net: FusionNet, steps: int, training: Training) -> Pruner | None:
    """Return what prunes the trunk as the settings say, None for a dense one.

    The feature half and the heads stay dense: 4 % of the weights, and the loss shows it when they go.
    """
    if training.density >= 1:
        return None
    layers = [net.news, net.second]
    begin, end = (int(share * steps) for share in training.prune_span)
    schedule = Schedule(training.density, begin, max(end, begin + 1), regrow_every=training.regrow_every)
    return Pruner(layers, schedule)


def _loss(net: FusionNet, samples: Tensors, rows: Tensor, training: Training) -> tuple[Tensor, float]:
    batch = samples.picked(rows, samples.tag)
    states, inverse = torch.unique(batch.state, return_inverse=True)  # W_s*s once per news state
    label = batch.label
    mean, log_variance = net(batch.tech, samples.news.index_select(0, states), inverse)
    likelihood = gaussian_loss(mean, log_variance, label, training.beta)
    right = float((mean.detach().sign() == label.sign()).float().mean())
    return likelihood + training.direction_weight * direction_loss(mean, log_variance, label), right


def starved_tags(tag: NDArray[np.int64], min_rows: int) -> list[int]:
    """Return the contradiction tags that have too few rows for an expert of their own."""
    return [t for t in TAGS if t != TAG_NONE and int((tag == t).sum()) < min_rows]


def fit_experts(samples: Tensors, training: Training, seed: int, report: Report) -> list[FusionNet]:
    """Return one fitted net per tag; a starved tag's is the `none` expert itself.

    The caller seeds torch and fixes its threads; the same samples and seed give the same bits.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    n_tech, n_news = samples.tech.shape[1], samples.news.shape[1]
    trunk = FusionNet(n_tech, n_news, training.hidden)
    rate = training.learning_rate

    def told(name: str, epochs: int) -> Callable[[int, float, float], None]:
        return lambda epoch, loss, right: report(f"{name} {epoch}/{epochs}", loss, right)

    pruner = pruner_of(trunk, steps_of(len(samples), training.epochs, training), training)
    fit(trunk, samples, training.epochs, rate, training, generator, told("trunk", training.epochs), pruner)
    starved = starved_tags(samples.tag, training.min_rows)
    experts: list[FusionNet] = []
    for tag in TAGS:
        rows = np.flatnonzero(samples.tag == tag)
        if tag in starved:
            experts.append(experts[TAG_NONE])
            continue
        expert = copy.deepcopy(trunk)
        if len(rows):
            part, name = samples.take(rows), TAG_NAMES[tag]
            fit(
                expert,
                part,
                training.tune_epochs,
                0.25 * rate,
                training,
                generator,
                told(name, training.tune_epochs),
            )
        experts.append(expert)
    return experts
