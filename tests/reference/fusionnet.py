"""FusionNet as plain PyTorch writes it: nn.Linear on the concatenation, nn.GELU, nn.Dropout; and its loop.

The specification of strategy/fusionnet.py in training, and what bench/bench_training.py measures against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from strategy.fusionnet import direction_loss, gaussian_loss


class PlainNet(nn.Module):
    """concat -> linear -> GELU -> dropout -> linear -> GELU -> dropout -> two heads."""

    def __init__(self, net: Any, p: float | None = None) -> None:
        super().__init__()
        p = net.p if p is None else p
        one, two = net.second.weight.shape[1], net.second.weight.shape[0]
        inputs = net.tech.weight.shape[1] + net.news.weight.shape[1]
        self.layers = nn.Sequential(
            nn.Linear(inputs, one), nn.GELU(approximate="tanh"), nn.Dropout(p),
            nn.Linear(one, two), nn.GELU(approximate="tanh"), nn.Dropout(p), nn.Linear(two, 2),
        )  # fmt: skip
        first, second, heads = (self.layers[n] for n in (0, 3, 6))
        with torch.no_grad():
            first.weight.copy_(torch.cat([net.tech.weight, net.news.weight], dim=1))
            first.bias.copy_(net.tech.bias)
            for mine, theirs in ((second, net.second), (heads, net.heads)):
                mine.weight.copy_(theirs.weight)
                mine.bias.copy_(theirs.bias)

    def forward(self, tech: Any, news: Any) -> Any:
        mean, log_variance = self.layers(torch.cat([tech, news], dim=1)).unbind(1)
        return mean, log_variance.clamp(-12, 12)


def fit(net: PlainNet, samples: Any, training: Any, order: Any, told: Callable[[int], None]) -> None:
    """Fit the net; order: the rows of each step; told(step) is called after each."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=training.learning_rate)
    net.train()
    for step, rows in enumerate(order):
        mean, log_variance = net(samples.tech[rows], samples.news[samples.state[rows]])
        label = samples.label[rows]
        loss = gaussian_loss(mean, log_variance, label, training.beta)
        loss = loss + training.direction_weight * direction_loss(mean, log_variance, label)
        for group in optimiser.param_groups:
            rise = min(1.0, (step + 1) / (0.05 * len(order) + 1))
            group["lr"] = training.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / len(order)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        told(step)
