"""Training sees no future, finds a planted signal, admits when there is none, and repeats itself."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bicep.plan import LADDER, Plan, PlanError, decode
from daemon.commands.train import ladder_of
from daemon.errors import CommandError
from strategy.experts import Training
from strategy.offline import dataset
from strategy.offline.dataset import TrainingError, collect, future_returns, normalisation, normalised, split
from strategy.offline.evaluate import conformal_quantile, effective_rows
from strategy.offline.train import TrainSettings, train_on_rows

ROW = np.dtype(
    [
        ("seq", "i8"),
        ("exch_ns", "i8"),
        ("locate", "i8"),
        ("mid_px2", "i8"),
        ("tag", "i8"),
        ("news_item", "i8"),
        ("status", "u1"),
        ("vector", "f8", 32),
    ]
)
SECOND = 1_000_000_000
SMALL = TrainSettings(
    horizon_ns=20 * SECOND,
    training=Training(hidden=(64, 16), epochs=6, tune_epochs=2, batch=512, min_rows=100),
)


def _day(count=8_000, *, strength=3e-5, seed=1, minutes=120):
    """Return a random walk per symbol whose drift is feature 0, held for a while; with news and tags."""
    draw = np.random.default_rng(seed)
    rows = np.zeros(count, ROW)
    rows["seq"] = np.arange(count)
    rows["exch_ns"] = np.sort(draw.integers(0, minutes * 60 * SECOND, count))
    rows["locate"] = draw.integers(1, 4, count)
    rows["vector"] = draw.standard_normal((count, 32))
    rows["tag"] = draw.choice(3, count, p=[0.9, 0.09, 0.01])
    rows["news_item"] = rows["exch_ns"] // (600 * SECOND)
    for locate in (1, 2, 3):
        at = np.flatnonzero(rows["locate"] == locate)
        drift = np.repeat(draw.standard_normal(len(at) // 40 + 1), 40)[: len(at)]
        steps = np.diff(rows["exch_ns"][at], prepend=0) / SECOND
        moves = strength * drift * steps + 2e-5 * np.sqrt(steps) * draw.standard_normal(len(at))
        rows["vector"][at, 0] = drift
        rows["mid_px2"][at] = 2_000_000 * np.exp(np.cumsum(moves))
    rows["vector"][:50, 5] = np.nan  # not warm yet
    rows["vector"][:, 6] = 4.0  # says nothing
    return rows


def _news(seed=2):
    draw = np.random.default_rng(seed).standard_normal((20, 768)).astype(np.float32) / 28
    return dict(enumerate(draw))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return folder, train_on_rows(_day(), _news(), folder, 7, settings=SMALL, source="a test day")


def test_a_planted_signal_is_found_on_later_rows(trained):
    _, manifest = trained
    part = manifest["metrics"]["all"]
    assert part["ic"] > 0.3
    assert part["error_ratio"] < 0.95
    assert part["directional_accuracy"] > part["majority_accuracy"] + 0.03
    assert part["nll"] < part["nll_zero"]
    assert 0.85 < part["coverage"] < 0.95
    assert "holds information" in manifest["verdict"]


def test_a_day_without_signal_is_called_that(tmp_path):
    manifest = train_on_rows(_day(strength=0.0), _news(), tmp_path, 7, settings=SMALL)
    assert abs(manifest["metrics"]["all"]["ic"]) < 5 * manifest["metrics"]["all"]["ic_error"]
    assert "no evidence" in manifest["verdict"]


def test_the_model_loads_and_says_where_it_comes_from(trained):
    folder, manifest = trained
    plan = Plan.load(folder / manifest["id"], symbols_max=4)
    assert plan.manifest == manifest
    assert plan.deviation[6] == 0.0
    assert plan.manifest["trained_on"]["source"] == "a test day"
    assert plan.manifest["starved"] == ["underhype"]
    assert plan.served() == [0, 1, 0]
    json.dumps(manifest, allow_nan=False)


def test_the_ladder_is_fine_tuned_and_calibrated_rung_by_rung(trained):
    folder, manifest = trained
    ladder, image = manifest["ladder"], (folder / manifest["id"] / "weights.bicep").read_bytes()
    assert [rung["density"] for rung in ladder["rungs"]] == list(LADDER)
    dense = decode(image, 0)
    for rung in ladder["rungs"][1:]:
        for own, first in zip(decode(image, rung["rung"]), dense, strict=True):
            assert (own.news == first.news).all()
            assert (own.bias_one == first.bias_one).all()
            assert 0 < np.count_nonzero(own.second) <= round(rung["density"] * own.second.size)
            assert not np.array_equal(own.second[own.second != 0], first.second[own.second != 0])
        assert rung["nll"] < manifest["metrics"]["all"]["nll_zero"]
        assert 0.8 < rung["coverage"] < 0.97
        assert set(rung["conformal"]) == {"none", "overhype", "underhype"}
    assert ladder["error_by_mode"][0][0] == 0.0
    assert min(ladder["error_unit"]) > 0
    assert len(ladder["analytic"]["is_calibrated"]) == len(LADDER)


def test_a_fine_tuned_rung_is_nearer_to_the_dense_net_than_a_pruned_one(trained, tmp_path):
    _, tuned = trained
    still = dataclasses.replace(SMALL, training=dataclasses.replace(SMALL.training, rung_rate=1e-9))
    pruned = train_on_rows(_day(), _news(), tmp_path, 7, settings=still, source="a test day")
    errors = [[row[0] for row in m["ladder"]["error_by_mode"]] for m in (tuned, pruned)]
    assert errors[0][-1] < errors[1][-1]
    assert sum(errors[0]) < sum(errors[1])


def test_a_model_can_have_the_dense_rung_alone(tmp_path):
    manifest = train_on_rows(_day(), _news(), tmp_path, 7, settings=dataclasses.replace(SMALL, ladder=(1.0,)))
    assert [rung["density"] for rung in manifest["ladder"]["rungs"]] == [1.0]
    with pytest.raises(PlanError, match="a ladder begins with density 1 and falls"):
        train_on_rows(_day(), _news(), tmp_path, 7, settings=dataclasses.replace(SMALL, ladder=(0.5, 0.2)))


@pytest.mark.parametrize("text", ["", "1,2", "0.5", "1,0.5,0.5", "1,0", "1,x", "1,nan"])
def test_a_ladder_that_is_none_is_one_line(text):
    with pytest.raises(CommandError, match="--ladder"):
        ladder_of(text)


def test_a_ladder_is_read_from_the_command_line():
    assert ladder_of("none") == (1.0,)
    assert ladder_of("1,0.5,0.05") == (1.0, 0.5, 0.05)


def test_the_same_rows_and_seed_give_the_same_id_and_another_seed_does_not(trained, tmp_path):
    _, manifest = trained
    torch.manual_seed(99)  # what ran before does not matter
    again = train_on_rows(_day(), _news(), tmp_path, 7, settings=SMALL, source="a test day")
    assert again["id"] == manifest["id"]
    quick = TrainSettings(horizon_ns=20 * SECOND, training=Training(hidden=(64, 8), epochs=1, tune_epochs=1))
    ids = {
        train_on_rows(_day(), _news(), tmp_path, seed, settings=quick)["weights_digest"] for seed in (1, 2)
    }
    assert len(ids) == 2


def test_training_leaves_the_settings_of_torch_alone(trained):
    assert trained
    assert not torch.are_deterministic_algorithms_enabled()


def test_parts_do_not_touch(trained):
    _, manifest = trained
    parts = manifest["trained_on"]
    assert parts["train"]["labels_end_ns"] <= parts["calibration"]["first_ns"]
    assert parts["calibration"]["labels_end_ns"] <= parts["validation"]["first_ns"]


def test_a_label_is_the_return_to_the_mid_as_of_one_horizon_later():
    time_ns = np.array([0, 1, 4, 5, 6, 11, 12], np.int64)
    locate = np.array([1, 2, 1, 1, 2, 1, 2], np.int64)
    mid = np.array([100, 50, 110, 120, 60, 130, 70], np.int64)
    label = future_returns(time_ns, locate, mid, 5)
    assert label[0] == pytest.approx(0.2)  # at 5: 120, not the 110 of 4
    assert label[2] == pytest.approx(120 / 110 - 1)  # at 9 the last row is that of 5
    assert label[1] == pytest.approx(60 / 50 - 1)
    assert label[3] == pytest.approx(0.0)  # at 10 it is still its own mid
    assert np.isnan(label[[5, 6]]).all()  # the future is not known
    assert label[4] == pytest.approx(0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 30))
def test_labels_equal_a_search_by_hand(seed, count, horizon):
    draw = np.random.default_rng(seed)
    time_ns, locate = np.sort(draw.integers(0, 100, count)), draw.integers(0, 3, count)
    mid = draw.integers(0, 5, count)
    label = future_returns(time_ns, locate, mid, horizon)
    for n in range(count):
        mine = [k for k in range(count) if locate[k] == locate[n]]
        later = [k for k in mine if time_ns[k] <= time_ns[n] + horizon][-1]
        known = time_ns[mine[-1]] >= time_ns[n] + horizon and mid[n] > 0 and mid[later] > 0
        assert np.isnan(label[n]) != known
        if known:
            assert label[n] == pytest.approx(mid[later] / mid[n] - 1)


def test_what_happens_after_the_cut_changes_nothing_in_training():
    rows, horizon = _day(), 20 * SECOND
    train = split(collect(rows, _news(), horizon), horizon, (0.1, 0.2))[0]
    end = train.time_ns[-1] + horizon
    poisoned, late = rows.copy(), rows["exch_ns"] > end
    poisoned["mid_px2"][late] = 7
    poisoned["vector"][late] = 1e9
    poisoned["tag"][late] = 2
    again = split(collect(poisoned, _news(), horizon), horizon, (0.1, 0.2))[0]
    assert (again.label == train.label).all()
    assert all(
        (a == b).all()
        for a, b in zip(normalisation(again.features), normalisation(train.features), strict=True)
    )
    touched = rows.copy()
    touched["mid_px2"][rows["exch_ns"] > end - horizon // 2] *= 2  # inside the last labels: this must show
    assert (split(collect(touched, _news(), horizon), horizon, (0.1, 0.2))[0].label != train.label).any()


def test_unknown_and_silent_columns_become_zero_and_outliers_are_cut():
    features = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [np.nan, 5.0, 4.0]])
    mean, deviation = normalisation(features)
    assert mean.tolist() == [2.0, 5.0, 3.0]
    assert deviation.tolist() == [1.0, 0.0, 1.0]
    z = normalised(np.array([[100.0, 9.0, np.nan], [2.5, 5.0, -np.inf]]), mean, deviation)
    assert z.tolist() == [[6.0, 0.0, 0.0], [0.5, 0.0, -6.0]]


def test_rows_see_their_own_news_and_an_unknown_item_is_no_news():
    rows = _day(500)
    rows["news_item"] = np.arange(500) % 5
    samples = collect(rows, {1: np.full(768, 0.5), 2: np.ones(768), 4: np.full(768, 2.0)}, SECOND)
    assert samples.news[:, 0].tolist() == [0.0, 0.5, 1.0, 2.0]
    kept = np.isfinite(future_returns(rows["exch_ns"], rows["locate"], rows["mid_px2"], SECOND))
    assert (samples.state == np.array([0, 1, 2, 0, 3])[rows["news_item"][kept]]).all()


@pytest.mark.parametrize(
    ("rows", "news", "words"),
    [
        (np.zeros(5, np.dtype([("exch_ns", "i8")])), {}, "rows lack the fields locate, mid_px2"),
        (np.zeros(0, ROW), {}, "no row has a future of 20 s"),
        (_day(300, minutes=1), {}, "leave a part empty"),
        (_day(400), {3: np.full(768, np.nan)}, "news item 3"),
        (_day(400), {3: np.zeros(5)}, "news item 3"),
        (_day(200), {}, "at least 200"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_with_one_line(tmp_path, rows, news, words):
    with pytest.raises(TrainingError, match=words) as caught:
        train_on_rows(rows, news, tmp_path, 1, settings=SMALL)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_conformal_quantile_covers_what_it_promises():
    draw = np.random.default_rng(3).standard_normal
    quantile = conformal_quantile(np.abs(draw(2_000)), 0.1)
    assert (np.abs(draw(20_000)) <= quantile).mean() == pytest.approx(0.9, abs=0.02)
    assert conformal_quantile(np.array([1.0, 2.0]), 0.1) == 2.0


def test_overlapping_labels_count_once():
    samples = collect(_day(1_000, minutes=10), {}, 60 * SECOND)
    assert effective_rows(samples, 60 * SECOND) <= 3 * 10


def test_rows_of_a_book_on_which_no_order_is_decided_are_left_out():
    rows = _day(500)
    rows["status"][::2] = 2
    odd = rows[1::2]
    assert (
        len(collect(rows, {}, SECOND))
        == np.isfinite(future_returns(odd["exch_ns"], odd["locate"], odd["mid_px2"], SECOND)).sum()
    )


def test_the_row_fields_are_those_of_the_contract():
    assert set(dataset.FIELDS) <= set(ROW.names)
