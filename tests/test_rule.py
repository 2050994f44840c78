"""The fixed rule as weights: whatever a rung keeps, it says the same."""

from __future__ import annotations

import numpy as np
import pytest

from bicep.plan import Plan
from strategy.features import COLUMNS, INDEX
from strategy.rule import LEAN_BP, rule_image, rule_weights


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.05])
def test_every_rung_of_the_rule_gives_the_same_sum(density):
    weights = rule_weights(density)
    features = np.random.default_rng(1).normal(size=COLUMNS)
    hidden = gelu(weights.tech @ features + weights.bias_one)
    answer = weights.mean_head @ gelu(weights.second @ hidden + weights.bias_two) + weights.biases[0]
    assert answer == pytest.approx(sum(bp * features[INDEX[name]] for name, bp in LEAN_BP.items()), rel=1e-5)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
def test_a_rung_keeps_no_more_than_its_share_and_every_row_something(density):
    kept = rule_weights(density).second != 0
    assert 0.8 * density <= kept.mean() <= density
    assert (kept.sum(axis=1) == kept[0].sum()).all()
    assert len({row.tobytes() for row in kept}) > 1  # neighbours keep other pairs


def test_the_rule_has_the_rungs_that_it_is_asked_for():
    assert Plan.from_image(rule_image((1.0, 0.2)), symbols_max=4).densities == pytest.approx([1.0, 0.2])
    assert Plan.from_image(rule_image(), symbols_max=4).densities == [1.0]
