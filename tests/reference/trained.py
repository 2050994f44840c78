"""Experts trained on generated data, small enough for a test: a bent signal, and noise that varies.

The label is drift * (1 + regime) plus noise whose size is a feature; what the news says shifts the drift.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from bicep.calibration import Calibration
from bicep.plan import Weights
from strategy.experts import Tensors, Training, fit_experts
from strategy.fusionnet import FusionNet, gaussian_loss


class Trained(NamedTuple):
    """Nets of the three tags, and later data of the same kind."""

    nets: list[FusionNet]
    train: Tensors
    later: Tensors

    def weights(self) -> list[Weights]:
        return [net.weights() for net in self.nets]

    def calibration(self, count: int = 256) -> Calibration:
        """Return the first `count` later rows as a plan takes them."""
        part = self.later
        return Calibration(
            part.tech[:count].numpy().astype(np.float64),
            part.news.numpy(),
            part.state[:count].numpy(),
            part.tag[:count],
        )


def generated(count: int, seed: int, n_tech: int = 32, n_news: int = 768, states: int = 40) -> Tensors:
    """Return labelled rows."""
    draw = np.random.default_rng(seed)
    tech = draw.standard_normal((count, n_tech)).astype(np.float32)
    news = (np.random.default_rng(5).standard_normal((states, n_news)) / np.sqrt(n_news)).astype(np.float32)
    state, tag = draw.integers(0, states, count), draw.choice(3, count, p=[0.6, 0.2, 0.2])
    lean = news @ np.random.default_rng(6).standard_normal(n_news).astype(np.float32)
    drift = tech[:, 0] + 0.5 * tech[:, 1] * tech[:, 2] + 0.5 * lean[state] + 0.3 * np.maximum(tech[:, 3], 0)
    drift = np.where(tag == 1, -drift, drift) * (1 + 0.5 * np.tanh(tech[:, 4]))
    label = 0.5 * drift + np.exp(0.3 * tech[:, 5]) * draw.standard_normal(count)
    label = (label / np.sqrt(np.mean(label**2))).astype(np.float32)
    return Tensors(
        torch.from_numpy(tech), torch.from_numpy(news), torch.from_numpy(state), torch.from_numpy(label), tag
    )


def trained(rows: int = 6_000, hidden: tuple[int, int] = (64, 32), seed: int = 1, **options: Any) -> Trained:
    """Fit the three experts; a few seconds."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    train, later = generated(rows, seed), generated(rows // 2, seed + 100)
    settings = {"epochs": 8, "tune_epochs": 3, "batch": 256, "min_rows": 100, **options}
    nets = fit_experts(train, Training(hidden=hidden, **settings), seed, lambda *_: None)
    return Trained(nets, train, later)


def tuned(net: FusionNet, density: float, rows: Tensors, epochs: int, batch: int = 256) -> Weights:
    """Prune a copy of the net and train on under the mask; the news half and its bias stay as they are."""
    import copy

    from bicep.plan.weights import largest

    net = copy.deepcopy(net)
    mask = torch.from_numpy(largest(net.weights().second, density))
    fixed = {"news.weight", "tech.bias"}
    moving = [value for name, value in net.named_parameters() if name not in fixed]
    optimiser = torch.optim.AdamW(moving, lr=1e-3)
    generator = torch.Generator().manual_seed(3)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows), generator=generator).split(batch):
            with torch.no_grad():
                net.second.weight.mul_(mask)
            mean, log_variance = net(rows.tech[chosen], rows.news, rows.state[chosen])
            optimiser.zero_grad()
            gaussian_loss(mean, log_variance, rows.label[chosen], 0.5).backward()
            optimiser.step()
    with torch.no_grad():
        net.second.weight.mul_(mask)
    return net.weights()
