"""Analytic uncertainty: against its float64 twin, and against many samples on nets that were trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plan as reference
from reference.plans import SCALE, Bench, random_weights
from reference.trained import trained

from bicep import calibration
from bicep.masks import SAMPLES
from bicep.nanopt import NANOpt, Options
from bicep.plan import (
    ANALYTIC,
    LADDER,
    NAN_INPUT,
    NAN_OUTPUT,
    OK,
    RUNGS_MAX,
    Plan,
    decode,
    encode,
    ladder,
)  # fmt: skip

EMBEDDING = (np.random.default_rng(2).standard_normal(768) / 28).astype(np.float32)
RUNGS = (1.0, 0.35, 0.1)


@pytest.fixture(scope="module")
def bench():
    made = Bench(rungs=ladder(RUNGS))
    made.refresh(3, EMBEDDING)
    made.by_rung = [decode(made.image, rung) for rung in range(len(RUNGS))]
    return made


@pytest.fixture(scope="module")
def experts():
    return trained()


@pytest.fixture(scope="module")
def calibrated(experts):
    image = encode(experts.weights(), (0, 1, 2), SCALE, ladder(RUNGS))
    return image, *calibration.calibrate(image, experts.calibration(64))


def _close(answer, expected, tolerance=2e-5):
    assert answer["status"] == OK
    assert answer["mean"] == pytest.approx(expected.mean, rel=tolerance, abs=tolerance * SCALE)
    assert answer["epistemic"] == pytest.approx(expected.epistemic, rel=tolerance)
    assert answer["aleatoric"] == pytest.approx(expected.aleatoric, rel=tolerance)
    assert abs(answer["agree"] - expected.agree) <= 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rung=st.integers(0, 2), tag=st.integers(0, 2))
def test_an_answer_equals_the_float64_reference(bench, seed, rung, tag):
    features = np.random.default_rng(seed).standard_normal(32) * 2
    bench.plan.set_rung(rung, ANALYTIC)
    answer = bench.infer(features, expert=tag)
    assert (answer["rung"], answer["mask_index"]) == (rung + RUNGS_MAX * ANALYTIC, 0)
    weights = bench.by_rung[rung][tag]
    _close(answer, reference.infer_analytic(weights, features, EMBEDDING, SCALE))


@pytest.mark.parametrize("hidden", [(64, 8), (40, 20), (200, 33), (64, 72), (64, 136)])
def test_other_widths_answer_the_same(hidden):
    made = Bench(4, hidden, rungs=ladder((1.0, 0.3)))
    made.refresh(3, EMBEDDING)
    features = np.random.default_rng(5).standard_normal(32)
    for rung in (0, 1):
        made.plan.set_rung(rung, ANALYTIC)
        weights = decode(made.image, rung)[1]
        _close(made.infer(features, expert=1), reference.infer_analytic(weights, features, EMBEDDING, SCALE))


@pytest.mark.parametrize("keep", [(0.5, 0.75), (1.0, 0.5), (0.75, 1.0), (1.0, 1.0)])
def test_other_probabilities_of_dropping_are_propagated_too(keep):
    made = Bench(4, (64, 16))
    levels = tuple(int(p * 65_536) for p in keep)
    made.plan = Plan.from_image(encode(made.weights, (0, 1, 2), SCALE, keep=levels), symbols_max=16)
    made.refresh(3, EMBEDDING)
    made.plan.set_rung(0, ANALYTIC)
    features = np.random.default_rng(5).standard_normal(32)
    expected = reference.infer_analytic(made.weights[0], features, EMBEDDING, SCALE, keep)
    _close(made.infer(features), expected)
    made.plan.set_rung(0)
    sampled = np.mean([made.infer(features, sequence=n)["mean"] for n in range(400)])
    assert sampled == pytest.approx(expected.mean, abs=0.2 * np.sqrt(expected.epistemic) + 1e-6 * SCALE)


def test_the_derivatives_of_the_reference_are_those_of_gelu():
    x, step = np.linspace(-6, 6, 400), 1e-4
    first, second, third = reference.derivatives(x)
    higher, lower = reference.derivatives(x + step), reference.derivatives(x - step)
    slope = (reference.gelu(x + step) - reference.gelu(x - step)) / (2 * step)
    np.testing.assert_allclose(first, slope, atol=1e-7)
    np.testing.assert_allclose(second, (higher[0] - lower[0]) / (2 * step), atol=1e-7)
    np.testing.assert_allclose(third, (higher[1] - lower[1]) / (2 * step), atol=1e-7)


def test_it_depends_on_no_mask(bench):
    bench.plan.set_rung(0, ANALYTIC)
    first = bench.infer(np.ones(32), sequence=1)
    assert bench.infer(np.ones(32), sequence=2).tobytes() == first.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(bench, value):
    bench.plan.set_rung(1, ANALYTIC)
    features = np.ones(32)
    features[7] = value
    assert bench.infer(features)["status"] == NAN_INPUT


@pytest.mark.parametrize("size", [1e3, 1e8, 1e15, 1e18, 3e38, -1e39, 1e300])
@pytest.mark.parametrize("rung", [0, 2])
def test_large_features_give_a_number_or_a_refusal(bench, size, rung):
    bench.plan.set_rung(rung, ANALYTIC)
    answer = bench.infer(np.full(32, size))
    assert answer["status"] in (OK, NAN_OUTPUT)
    assert np.isfinite([answer["mean"], answer["epistemic"], answer["aleatoric"]]).all()
    assert abs(size) > 1e10 or answer["status"] == OK


def test_no_dropout_reaches_a_net_of_zeros():
    import dataclasses

    zero = dataclasses.replace(random_weights(1, (64, 8)), mean_head=np.zeros(8, np.float32))
    made = Bench(1, (64, 8))
    made.plan = Plan.from_image(encode([zero] * 3, (0, 1, 2), SCALE), symbols_max=16)
    made.plan.set_rung(0, ANALYTIC)
    answer = made.infer(np.ones(32))
    assert answer["epistemic"] == 0
    assert answer["agree"] == SAMPLES
    assert answer["mean"] == pytest.approx(float(zero.biases[0]) * SCALE)


def test_on_trained_experts_it_is_within_ten_percent_of_ten_thousand_samples(calibrated):
    """Nine of ten rows, and the median, of each rung that says it is calibrated; the dense one must be."""
    image, _, entry = calibrated
    assert entry["analytic"]["is_calibrated"][0]
    for rung, (low, middle, high) in enumerate(entry["analytic"]["variance_ratio_p05_p50_p95"]):
        said = entry["analytic"]["is_calibrated"][rung]
        assert said == (low >= 0.9 and high <= 1.1 and 0.9 <= middle <= 1.1)
    assert image != calibrated[1]


def test_nets_that_were_trained_for_too_long_are_found_not_to_be_calibrated():
    """They lean on curvature that a second order does not see; the manifest says so and sampling goes on."""
    fitted = trained(epochs=40, tune_epochs=20)
    image = encode(fitted.weights(), (0, 1, 2), SCALE, ladder((1.0, 0.1)))
    _, entry = calibration.calibrate(image, fitted.calibration(64))
    assert entry["analytic"]["is_calibrated"] == [False, False]
    assert all(s.samples > 0 for s in calibration.settings(entry, [[4.0, 2.0, 2.0, 1.0]] * 2))


def test_the_expected_mean_of_trained_experts_is_that_of_many_samples(experts, calibrated):
    """At most a twentieth of the samples' deviation apart: what 32 samples leave open is 3.5 times that."""
    rows = experts.calibration(24)
    asked = calibration.Asked(calibrated[0], rows)
    draws = [asked.ask(0, 0, n).copy() for n in range(320)]
    sampled = np.mean([draw["mean"] for draw in draws], axis=0)
    deviation = np.sqrt(np.mean([draw["epistemic"] for draw in draws], axis=0))
    analytic = asked.ask(0, ANALYTIC, 0)
    assert (np.abs(analytic["mean"] - sampled) < 0.05 * deviation).all()
    noise = np.mean([draw["aleatoric"] for draw in draws], axis=0)
    np.testing.assert_allclose(analytic["aleatoric"], noise, rtol=0.05)


def test_a_net_outside_ten_percent_is_not_calibrated_and_nanopt_is_not_offered_it():
    assert calibration.is_calibrated(np.full(20, 1.05))
    assert not calibration.is_calibrated(np.full(20, 1.15))
    assert not calibration.is_calibrated(np.r_[np.ones(18), 0.5, 0.5])
    assert calibration.is_calibrated(np.empty(0))
    entry = {
        "rungs": [{"rung": 0, "density": 1.0}, {"rung": 1, "density": 0.5}],
        "error_by_mode": [[0.0, 0.1, 0.2, 0.0]] * 2, "samples_by_mode": [32, 16, 8, 0],
        "analytic": {"is_calibrated": [True, False]},
    }  # fmt: skip
    found = calibration.settings(entry, [[4.0, 2.0, 2.0, 1.0]] * 2)
    assert [(s.rung, s.samples) for s in found if s.samples == 0] == [(0, 0)]
    nanopt = NANOpt(found, Options(slo_us=3.0, error_budget=0.05))
    assert nanopt.setting.samples == 0  # as exact as 32 samples, and cheaper


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_samples_of_every_rung_are_distributed_like_dropout_in_torch(experts, calibrated, rung):
    """10,240 samples of the kernel and 10,000 of torch: means, variances and quantiles of the samples."""
    from strategy.fusionnet import FusionNet

    image, weights = calibrated[0], decode(calibrated[0], rung)[0]
    net = FusionNet(hidden=weights.second.shape[::-1])
    values = (weights.tech, weights.bias_one, weights.news, weights.second, weights.bias_two,
              np.stack([weights.mean_head, weights.variance_head]), weights.biases)  # fmt: skip
    names = (
        "tech.weight",
        "tech.bias",
        "news.weight",
        "second.weight",
        "second.bias",
        "heads.weight",
        "heads.bias",
    )
    net.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in zip(names, values, strict=True)})
    rows = experts.calibration(64)
    chosen = int(np.flatnonzero(rows.tag == 0)[3])
    tech = torch.from_numpy(rows.features[chosen].astype(np.float32)).repeat(10_000, 1)
    news = torch.from_numpy(rows.news[rows.state[chosen]][None])
    torch.manual_seed(4)
    with torch.no_grad():
        mean, log_variance = net.train()(tech, news, torch.zeros(10_000, dtype=torch.int64))
    asked = calibration.Asked(image, calibration.Calibration(
        rows.features[[chosen]], rows.news, rows.state[[chosen]], rows.tag[[chosen]]))  # fmt: skip
    draws = np.concatenate([asked.ask(rung, 0, n).copy() for n in range(320)])
    deviation = float(mean.std())
    assert (
        abs(draws["mean"].mean() / SCALE - float(mean.mean())) < 5 * deviation / 70
    )  # both sides have an error
    assert draws["epistemic"].mean() / SCALE**2 == pytest.approx(deviation**2, rel=0.1)
    assert draws["aleatoric"].mean() / SCALE**2 == pytest.approx(float(log_variance.exp().mean()), rel=0.03)
    spread = draws["mean"].std() / SCALE  # of means of 32
    assert spread == pytest.approx(deviation / np.sqrt(32), rel=0.2)


def test_the_ladder_of_the_default_densities_is_known():
    assert LADDER == (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.05)
