"""Which weights stay, and pruning along a schedule while a net trains."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bicep import BICEPLayer, Pruner, Schedule, pruning

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 1.0), st.booleans())
def test_the_largest_stay_as_many_as_asked_for(seed, rows, columns, density, each_output):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    mask = pruning.best(pruning.scores(weight), density, each_output=each_output)
    parts = [(mask, weight)] if not each_output else list(zip(mask, weight, strict=True))
    for kept, values in parts:
        count = values.numel()
        assert int(kept.sum()) == max(1, int(density * count + 0.5))
        if not kept.all():
            assert values[kept].abs().min() >= values[~kept].abs().max()


def test_of_equal_weights_the_first_stay():
    assert pruning.best(torch.ones(2, 4).double(), 0.5).tolist() == [[True] * 4, [False] * 4]


def test_wanda_weighs_a_weight_with_its_input():
    weight = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    inputs = torch.tensor([[9.0, 1.0], [0.0, 1.0]])
    score = pruning.scores(weight, "wanda", inputs)
    torch.testing.assert_close(
        score, torch.tensor([[9.0, 2 * 2**0.5], [27.0, 0.5 * 2**0.5]], dtype=torch.float64)
    )
    layer = BICEPLayer(2, 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer.prune(0.5, "wanda", inputs)
    assert layer.mask.tolist() == [[True, False], [True, False]]
    layer.prune(0.5, each_output=True)
    assert layer.mask.tolist() == [[False, True], [True, False]]
    for bad in (None, torch.ones(3, 3)):
        with pytest.raises(ValueError, match="wanda needs inputs"):
            layer.prune(0.5, "wanda", bad)
    with pytest.raises(ValueError, match="criterion 'luck'"):
        layer.prune(0.5, "luck")


def test_two_of_four():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.0, 5.0, 5.0, 5.0, 5.0]])
    mask = pruning.two_of_four(weight)
    assert mask.tolist() == [[False, True, True, False, True, True, False, False]]
    assert pruning.is_two_of_four(mask)
    assert not pruning.is_two_of_four(torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="multiple of four"):
        pruning.two_of_four(torch.ones(2, 6))


def test_the_schedule_is_cubic_from_one_end_to_the_other():
    density = [pruning.cubic(step, 10, 30, 0.2) for step in range(40)]
    assert density[:11] == [1.0] * 11
    assert density[30:] == [0.2] * 10
    assert density[20] == pytest.approx(0.2 + 0.8 / 8)
    assert all(a >= b for a, b in itertools.pairwise(density))
    for words, options in (
        ("ends at step", (0, 5, 5, 0.2)),
        ("not in", (0, 0, 5, 0.0)),
        ("not in", (0, 0, 5, 0.5, 2.0)),
    ):
        with pytest.raises(ValueError, match=words):
            pruning.cubic(*options)


def test_an_exchange_drops_the_smallest_and_wakes_the_steepest():
    weight = torch.tensor([[4.0, 1.0, 0.0, 0.0], [3.0, 2.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False, False]] * 2)
    grad = torch.tensor([[0.0, 9.0, 1.0, 5.0], [9.0, 9.0, 2.0, 3.0]])
    assert pruning.regrown(mask, weight, grad, 0.5).tolist() == [
        [True, False, False, True],
        [True, False, False, True],
    ]
    assert (pruning.regrown(mask, weight, grad, 0.0) == mask).all()
    with pytest.raises(ValueError, match="gradient holds"):
        pruning.regrown(mask, weight, grad / 0, 0.5)


def _problem(rows=256):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 16, generator=draw)
    return x, torch.relu(x[:, :4] @ torch.randn(4, 8, generator=draw)) @ torch.randn(8, 1, generator=draw)


def _train(net, schedule, steps=120):
    x, label = _problem()
    optimiser, pruner, losses = (
        torch.optim.Adam(net.parameters(), lr=1e-2),
        Pruner(net.modules(), schedule),
        [],
    )
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (net(x) - label).square().mean()
        loss.backward()
        pruner.before_step()
        optimiser.step()
        pruner.after_step()
        losses.append(loss.item())
    return losses, pruner


def _net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(BICEPLayer(16, 32, activation="relu"), BICEPLayer(32, 1))


def test_a_net_pruned_while_it_trains_learns_and_ends_at_its_density():
    net = _net()
    losses, _ = _train(net, Schedule(0.25, begin=20, end=80))
    assert [layer.density for layer in net] == [0.25, 0.25]
    assert losses[-1] < 0.2 * losses[0]


def test_regrowth_keeps_the_density_and_changes_the_pattern():
    net = _net()
    losses, _ = _train(net, Schedule(0.25, begin=0, end=60, every=20, regrow_every=15, regrow_share=0.3))
    still = _net()
    _train(still, Schedule(0.25, begin=0, end=60, every=20))
    assert net[0].density == still[0].density == 0.25
    assert (net[0].mask != still[0].mask).any()
    assert losses[-1] < 0.3 * losses[0]
    assert not net[0].regrow


def test_two_of_four_in_training():
    net = _net()
    losses, _ = _train(net, Schedule(0.5, begin=0, end=60, two_of_four=True))
    assert all(pruning.is_two_of_four(layer.mask) for layer in net)
    assert losses[-1] < 0.2 * losses[0]


def test_schedules_that_make_no_sense_are_refused():
    for options in (
        {"density": 0.0},
        {"density": 0.5, "begin": 5, "end": 5},
        {"density": 0.5, "every": 0},
        {"density": 0.5, "regrow_share": 1.0},
        {"density": 0.5, "two_of_four": True, "regrow_every": 5},
    ):
        with pytest.raises(ValueError, match=r"density|ends at|every|exclude"):
            Schedule(**options)
    with pytest.raises(ValueError, match="no BICEPLayer"):
        Pruner(nn.Linear(2, 2).modules(), Schedule(0.5, end=5))
