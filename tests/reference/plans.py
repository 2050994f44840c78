"""Random plans for tests: weights of a net's size, and a plan with its pieces at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from bicep.plan import INFERENCE, Plan, Rung, Weights, decode, encode, infer, refresh_news

SCALE = 1e-3
DENSE_ALONE = (Rung(1.0),)


def random_weights(
    seed: int, hidden: tuple[int, int] = (128, 64), n_tech: int = 32, n_news: int = 768
) -> Weights:
    draw = np.random.default_rng(seed).standard_normal
    one, two = hidden

    def matrix(*shape: int) -> Any:
        return (draw(shape) / np.sqrt(shape[-1])).astype(np.float32)

    return Weights(
        tech=matrix(one, n_tech),
        news=matrix(one, n_news),
        bias_one=matrix(one),
        second=matrix(two, one),
        bias_two=matrix(two),
        mean_head=matrix(two),
        variance_head=matrix(two),
        biases=matrix(2),
    )


class Bench:
    """A plan of three random experts and room for one call."""

    def __init__(
        self,
        draw: int = 1,
        hidden: tuple[int, int] = (128, 64),
        served=(0, 1, 2),
        rungs=DENSE_ALONE,
        **options: Any,
    ) -> None:
        experts = [random_weights(draw * 10 + n, hidden) for n in range(3)]
        self.image = encode(experts, served, SCALE, rungs)
        self.weights = decode(self.image)
        self.plan = Plan.from_image(self.image, symbols_max=16, **options)
        self.units = sum(self.weights[0].second.shape)
        self.out = np.zeros(1, INFERENCE.dtype)

    def refresh(self, symbol: int, embedding: Any) -> int:
        """Give the symbol a news state."""
        vector = np.ascontiguousarray(embedding, np.float32)
        return refresh_news(self.plan.state, symbol, vector.ctypes.data)

    def infer(self, features: Any, *, expert: int = 0, symbol: int = 3, sequence: int = 7) -> Any:
        """Return the INFERENCE record of one question."""
        vector = np.ascontiguousarray(features, np.float64)
        status = infer(self.plan.state, expert, vector.ctypes.data, symbol, sequence, self.out.ctypes.data)
        assert status == self.out["status"][0]
        return self.out[0].copy()
