"""FusionNet is one function in training and in the plan, and its losses are what their names say."""

import math

import numpy as np
import pytest
import torch
from reference import plan as reference
from reference.fusionnet import PlainNet
from reference.plans import Bench, random_weights

from bicep.masks import bank_key, mask_bank
from bicep.plan import Plan, decode, encode
from bicep.plan.store import _digest
from strategy.fusionnet import FusionNet, direction_loss, gaussian_loss

torch.set_num_threads(1)  # two threads on a busy machine wait for each other at every operation


def _net(seed=0, **sizes):
    torch.manual_seed(seed)
    net = FusionNet(**sizes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def test_the_plan_answers_as_the_net_does_under_the_same_masks():
    nets = [_net(seed) for seed in range(3)]
    image = encode([net.weights() for net in nets], (0, 1, 2), 2e-4)
    bench = Bench()
    bench.image, bench.plan = image, Plan.from_image(image, symbols_max=16)
    draw = np.random.default_rng(4).standard_normal
    features, embedding = draw(32).astype(np.float32), (draw(768) / 28).astype(np.float32)
    bench.refresh(3, embedding)
    bank = mask_bank(bank_key(0, _digest(image)), 192)
    for expert, net in enumerate(nets):
        answer = bench.infer(features, expert=expert)
        bits = torch.from_numpy(reference.keep_bits(bank[answer["mask_index"]]).T.astype(np.float32))
        rows = torch.from_numpy(features).repeat(32, 1)
        with torch.no_grad():
            mean, log_variance = net(
                rows,
                torch.from_numpy(embedding)[None],
                torch.zeros(32, dtype=torch.int64),
                (bits[:, :128], bits[:, 128:]),
            )
        assert answer["mean"] == pytest.approx(float(mean.mean()) * 2e-4, rel=1e-5)
        assert answer["epistemic"] == pytest.approx(float(mean.var()) * 4e-8, rel=1e-4)
        assert answer["aleatoric"] == pytest.approx(float(log_variance.exp().mean()) * 4e-8, rel=1e-5)


def test_two_halves_are_one_linear_layer_on_the_concatenation():
    net = _net().eval()
    tech, news = torch.randn(5, 32), torch.randn(5, 768)
    plain = PlainNet(net).eval()
    torch.testing.assert_close(torch.stack(net(tech, news), dim=1), torch.stack(plain(tech, news), dim=1))


def test_one_news_state_for_many_rows_is_the_same_as_repeating_it():
    net = _net().eval()
    tech, news, state = torch.randn(6, 32), torch.randn(2, 768), torch.tensor([1, 0, 1, 1, 0, 1])
    torch.testing.assert_close(net(tech, news, state), net(tech, news[state]))


def test_dropout_never_touches_the_input_and_keeps_the_mean():
    net = _net().train()
    tech, news = torch.randn(1, 32), torch.randn(1, 768)
    first = torch.nn.functional.gelu(
        net.news(news, start=net.tech.bias) + tech @ net.tech.weight.T, approximate="tanh"
    )
    state = torch.zeros(4_000, dtype=torch.int64)
    rows = net.tech(tech.repeat(4_000, 1), start=net.news(news, start=net.tech.bias), state=state)
    torch.testing.assert_close(rows.mean(0), first[0], atol=0.05, rtol=0.05)
    assert float((rows == 0).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    kept = rows[rows[:, 0] != 0, 0]
    torch.testing.assert_close(kept, (first[0, 0] * 8 / 7).expand_as(kept))


def test_the_log_variance_is_clamped_as_in_the_kernel():
    net = _net()
    with torch.no_grad():
        net.heads.bias[1] = 50.0
    assert float(net(torch.zeros(1, 32), torch.zeros(1, 768))[1].detach()) == 12.0


def test_another_drop_probability_cannot_be_exported():
    with pytest.raises(ValueError, match="drops with probability"):
        FusionNet(p=0.2).weights()


def test_weights_are_copied_out_unchanged():
    net = _net(n_tech=32, n_news=768, hidden=(64, 8))
    weights = decode(encode([net.weights()] * 3, (0, 1, 2), 1.0))[1]
    assert (weights.second == net.second.weight.detach().numpy()).all()
    assert (weights.mean_head == net.heads.weight[0].detach().numpy()).all()
    assert weights.biases[1] == net.heads.bias[1].detach().numpy()


def test_the_gaussian_loss_is_the_likelihood_and_beta_weighs_rows():
    mean, log_variance = torch.tensor([0.1, -0.4]), torch.tensor([0.3, -1.0])
    label = torch.tensor([0.5, 0.2])
    plain = gaussian_loss(mean, log_variance, label, 0.0)
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    assert float(plain) == pytest.approx(
        float(-normal.log_prob(label).mean()) - 0.5 * math.log(2 * math.pi), rel=1e-6
    )
    mean.requires_grad_()
    gaussian_loss(mean, log_variance, label, 1.0).backward()
    torch.testing.assert_close(mean.grad, (mean.detach() - label) / 2)  # beta 1: gradient of a squared error


def test_the_direction_loss_rewards_the_right_sign_only():
    spread, label = torch.zeros(3), torch.tensor([2.0, -1.0, 0.0])
    right = direction_loss(torch.tensor([1.0, -1.0, 1.0]), spread, label)
    wrong = direction_loss(torch.tensor([-1.0, 1.0, 1.0]), spread, label)
    even = direction_loss(torch.zeros(3), spread, label)
    assert float(right) < float(even) < float(wrong)
    assert float(even) == pytest.approx(2 / 3 * math.log(2))


def test_random_weights_of_the_tests_have_the_net_shapes():
    ours, theirs = random_weights(1), FusionNet().weights()
    for field in ("tech", "news", "bias_one", "second", "bias_two", "mean_head", "variance_head", "biases"):
        assert getattr(ours, field).shape == getattr(theirs, field).shape
