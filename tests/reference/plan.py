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


def infer(weights: Any, features: Any, embedding: Any, words: Any, label_scale: float) -> Answer:
    mean, log_variance = sample_heads(weights, features, embedding, words)
    centre = mean.mean()
    return Answer(
        centre * label_scale,
        mean.var(ddof=1) * label_scale**2,
        np.exp(log_variance).mean() * label_scale**2,
        int((np.sign(mean) == np.sign(centre)).sum()),
    )
