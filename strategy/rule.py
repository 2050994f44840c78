"""The fixed rule: an answer without training, written as the weights of a FusionNet.

It leans with the pressure in the book: the expected return is a sum of a few order-flow features.  Being a
plan like any other it runs through the same kernel, with the same dropout; but nothing in it was learned, and
every report says so.  GELU(x) - GELU(-x) = x, so pairs of units carry the sum through both layers exactly.

`LinearRule` is the same rule without the plan: the sum itself, in nanoseconds and without dropout, for venues
and benchmarks where an answer must cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from bicep.plan import Rung, Weights, encode
from nimbus.messages import NEWS_DIMENSIONS, TAG_NAMES
from ringbuf.jit import inlined
from ringbuf.records import record
from ringbuf.segment import Segment
from strategy.features import COLUMNS, INDEX
from strategy.features.lanes import dot

HIDDEN: Final = (128, 64)
BASIS_POINT: Final = 1e-4
# Expected return in basis points for one unit of each feature.  Chosen by hand; nothing was fitted.
LEAN_BP: Final = {"microprice": 1.0, "imbalance_five": 2.0, "imbalance_top": 1.5, "ofi_10s": 2.0}
SIGMA_BP: Final = 5.0  # what it admits not to know


def rule_weights(density: float = 1.0) -> Weights:
    """Return the rule as an expert whose second layer keeps at most this share of its weights.

    Each output takes the sum through fewer of the first layer's pairs, other ones than its neighbours: the
    answer stays, only dropout scatters it more.
    """
    units, outputs = HIDDEN
    signs = np.where(np.arange(units) % 2 == 0, 1.0, -1.0).astype(np.float32)
    out_signs = signs[:outputs]
    lean = np.zeros(COLUMNS, np.float32)
    for name, weight in LEAN_BP.items():
        lean[INDEX[name]] = weight
    pairs = max(int(density * units / 2), 1)
    first = np.arange(outputs) // 2 * pairs
    takes = (np.arange(units) // 2 - first[:, None]) % (units // 2) < pairs
    return Weights(
        tech=np.outer(signs, lean),
        news=np.zeros((units, NEWS_DIMENSIONS), np.float32),
        bias_one=np.zeros(units, np.float32),
        second=np.where(takes, np.outer(out_signs, signs) / pairs, np.float32(0)).astype(np.float32),
        bias_two=np.zeros(outputs, np.float32),
        mean_head=out_signs / (outputs / 2),
        variance_head=np.zeros(outputs, np.float32),
        biases=np.array([0.0, 2.0 * np.log(SIGMA_BP)], np.float32),
    )


def rule_image(densities: Sequence[float] = (1.0,)) -> bytes:
    """Return the bytes of a plan whose three experts all answer by the rule, at each of the densities."""
    rungs = [Rung(density, [rule_weights(density)] * len(TAG_NAMES)) for density in densities[1:]]
    experts = [rule_weights()] * len(TAG_NAMES)
    return encode(experts, [0] * len(TAG_NAMES), BASIS_POINT, [Rung(1.0), *rungs])


LINEAR = record(
    "LINEAR",
    f"""
    {COLUMNS}f8 weights   expected return for one unit of each normalised feature
    f8  variance    variance of the return that it admits not to know
    7i8 pad         zero
    """,
)
_L = LINEAR.at


@inlined
def linear_answer(rule: int, inputs: int) -> float:
    """Return the expected return: the weighted sum of normalised, hence finite and bounded, inputs."""
    return dot(rule + _L.weights, inputs)


class LinearRule:
    """Own the LINEAR record of the fixed rule; `addr` goes to the strategy agent."""

    def __init__(self, segment: Segment, name: str = "strategy.rule") -> None:
        self.addr = segment.allocate(name, LINEAR.size)
        row = segment.array(name, LINEAR)[0]
        for column, weight in LEAN_BP.items():
            row["weights"][INDEX[column]] = weight * BASIS_POINT
        row["variance"] = (SIGMA_BP * BASIS_POINT) ** 2
        self.image = bytes(row.tobytes())
