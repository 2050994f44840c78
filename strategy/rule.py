"""The fixed rule: an answer without training, written as the weights of a FusionNet.

It leans with the pressure in the book: the expected return is a sum of a few order-flow features.  Being a
plan like any other it runs through the same kernel, with the same dropout; but nothing in it was learned, and
every report says so.  GELU(x) - GELU(-x) = x, so pairs of units carry the sum through both layers exactly.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bicep.plan import Weights, encode
from nimbus.messages import NEWS_DIMENSIONS, TAG_NAMES
from strategy.features import COLUMNS, INDEX

HIDDEN: Final = (128, 64)
BASIS_POINT: Final = 1e-4
# Expected return in basis points for one unit of each feature.  Chosen by hand; nothing was fitted.
LEAN_BP: Final = {"microprice": 1.0, "imbalance_five": 2.0, "imbalance_top": 1.5, "ofi_10s": 2.0}
SIGMA_BP: Final = 5.0  # what it admits not to know


def rule_image() -> bytes:
    """Return the bytes of a plan whose three experts all answer by the rule."""
    units, outputs = HIDDEN
    signs = np.where(np.arange(units) % 2 == 0, 1.0, -1.0).astype(np.float32)
    out_signs = signs[:outputs]
    lean = np.zeros(COLUMNS, np.float32)
    for name, weight in LEAN_BP.items():
        lean[INDEX[name]] = weight
    weights = Weights(
        tech=np.outer(signs, lean),
        news=np.zeros((units, NEWS_DIMENSIONS), np.float32),
        bias_one=np.zeros(units, np.float32),
        second=np.outer(out_signs, signs) / (units / 2),
        bias_two=np.zeros(outputs, np.float32),
        mean_head=out_signs / (outputs / 2),
        variance_head=np.zeros(outputs, np.float32),
        biases=np.array([0.0, 2.0 * np.log(SIGMA_BP)], np.float32),
    )
    return encode([weights] * len(TAG_NAMES), [0] * len(TAG_NAMES), BASIS_POINT)
