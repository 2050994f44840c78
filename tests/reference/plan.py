"""FusionNet with Monte-Carlo dropout in plain float64 numpy: the specification of the plan's kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

SAMPLES = 32
KEEP = 7 / 8


class Answer(NamedTuple):
    """What an INFERENCE record must hold."""

    mean: float
    epistemic: float
    aleatoric: float
    agree: int


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def keep_bits(words: Any) -> Any:
    """Mask words [units] -> 0/1 [units, samples]: bit s of a word belongs to sample s."""
    return np.array([[(int(word) >> s) & 1 for s in range(SAMPLES)] for word in words], np.float64)


def sample_heads(weights: Any, features: Any, embedding: Any, words: Any) -> tuple[Any, Any]:
    """Return mean and log variance of each sample; words: the mask row, first layer's units first."""
    tech, news, second = (np.asarray(m, np.float64) for m in (weights.tech, weights.news, weights.second))
    units = len(weights.bias_one)
    bits = keep_bits(words)
    hidden = gelu(tech @ features + news @ np.asarray(embedding, np.float64) + weights.bias_one)
    dropped = hidden[:, None] * bits[:units] / KEEP
    outputs = gelu(second @ dropped + np.asarray(weights.bias_two)[:, None]) * bits[units:] / KEEP
    return (
        weights.mean_head @ outputs + weights.biases[0],
        np.clip(weights.variance_head @ outputs + weights.biases[1], -12, 12),
    )


def slope(x: Any) -> Any:
    """Return the derivative of gelu."""
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    rise = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * rise


def propagate(weights: Any, features: Any, embedding: Any) -> tuple[float, float, float, float]:
    """Return mean and variance of both heads, to first order in the dropout."""
    odds = (1 - KEEP) / KEEP
    tech, news, second = (np.asarray(m, np.float64) for m in (weights.tech, weights.news, weights.second))
    hidden = gelu(tech @ features + news @ np.asarray(embedding, np.float64) + weights.bias_one)
    sums = second @ hidden + np.asarray(weights.bias_two, np.float64)
    found = []
    for head, bias in ((weights.mean_head, weights.biases[0]), (weights.variance_head, weights.biases[1])):
        own = np.asarray(head, np.float64) * gelu(sums)
        through = hidden * (second.T @ (np.asarray(head, np.float64) * slope(sums)))
        found += [own.sum() + float(bias), odds * float(own @ own + through @ through)]
    return tuple(found)


def infer_analytic(weights: Any, features: Any, embedding: Any, label_scale: float) -> Answer:
    mean, variance, log_mean, log_variance = propagate(weights, features, embedding)
    share = 0.5 * (1 + math.erf(abs(mean) / math.sqrt(2 * variance))) if variance > 0 else 1.0
    return Answer(
        mean * label_scale,
        variance * label_scale**2,
        math.exp(min(max(log_mean + log_variance / 2, -12), 12)) * label_scale**2,
        math.floor(SAMPLES * share + 0.5) if mean != 0 else 0,
    )


def infer(
    weights: Any, features: Any, embedding: Any, words: Any, label_scale: float, samples: int = SAMPLES
) -> Answer:
    mean, log_variance = (head[:samples] for head in sample_heads(weights, features, embedding, words))
    centre = mean.mean()
    return Answer(
        centre * label_scale,
        mean.var(ddof=1) * label_scale**2,
        np.exp(log_variance).mean() * label_scale**2,
        int((np.sign(mean) == np.sign(centre)).sum()) * (SAMPLES // samples),
    )
