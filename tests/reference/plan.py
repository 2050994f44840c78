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


def derivatives(x: Any) -> tuple[Any, Any, Any]:
    """Return the first three derivatives of gelu; u is tanh's argument, t1..t3 are those of tanh(u(x))."""
    root = math.sqrt(2 / math.pi)
    u1, u2, u3 = root * (1 + 3 * 0.044715 * x**2), root * 6 * 0.044715 * x, root * 6 * 0.044715
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    rest = 1 - tanh**2
    t1 = rest * u1
    rest1 = -2 * tanh * t1
    t2 = rest1 * u1 + rest * u2
    rest2 = -2 * (t1**2 + tanh * t2)
    t3 = rest2 * u1 + 2 * rest1 * u2 + rest * u3
    return 0.5 * (1 + tanh + x * t1), t1 + 0.5 * x * t2, 1.5 * t2 + 0.5 * x * t3


def propagate(
    weights: Any, features: Any, embedding: Any, keep: tuple[float, float] = (KEEP, KEEP)
) -> tuple[float, ...]:
    """Return mean and variance of the mean head and of the log-variance head, by moments of the dropout.

    keep: probability of each layer; what is kept is divided by KEEP whatever it is.
    """
    odds, odds_two = ((1 - p) / p for p in keep)
    tech, news, second = (np.asarray(m, np.float64) for m in (weights.tech, weights.news, weights.second))
    hidden = gelu(tech @ features + news @ np.asarray(embedding, np.float64) + weights.bias_one)
    hidden = hidden * keep[0] / KEEP
    sums = second @ hidden + np.asarray(weights.bias_two, np.float64)
    spread = odds * ((second * hidden) ** 2).sum(1)
    value, (first, bent, third) = gelu(sums), derivatives(sums)
    expected = value + bent * spread / 2
    square = value**2 + (first**2 + value * bent) * spread
    slope = first + third * spread / 2
    found: list[float] = []
    for head, bias in ((weights.mean_head, weights.biases[0]), (weights.variance_head, weights.biases[1])):
        wide = np.asarray(head, np.float64) * keep[1] / KEEP
        through = hidden * (second.T @ (wide * slope))
        found += [
            wide @ expected + float(bias),
            float(odds_two * (wide**2 @ square) + odds * (through @ through)),
        ]
    return tuple(found)


def infer_analytic(
    weights: Any,
    features: Any,
    embedding: Any,
    label_scale: float,
    keep: tuple[float, float] = (KEEP, KEEP),
) -> Answer:
    mean, variance, log_mean, log_variance = propagate(weights, features, embedding, keep)
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
