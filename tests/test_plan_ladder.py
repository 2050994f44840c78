"""The ladder: each rung against float64, one store to switch, and one line for every fault."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plan as reference
from reference.plans import SCALE, Bench, random_weights

from bicep import calibration, probe
from bicep.calibration import Calibration
from bicep.masks import bank_key, mask_bank
from bicep.nanopt import NANOpt, Options
from bicep.plan import (
    BAD_EXPERT,
    BAD_RUNG,
    BAD_SYMBOL,
    INFERENCE,
    JOB,
    LADDER,
    MC_32,
    NAN_INPUT,
    OK,
    RUNGS_MAX,
    Plan,
    PlanError,
    Rung,
    decode,
    encode,
    infer_batch,
    ladder,
    pruned,
    refresh_expert,
    save,
    set_rung,
)
from bicep.plan.csr_pack import csr_pack, unpack_csr
from bicep.plan.layout import PLAN, PLAN_FILE, SLOT, csr_slices_at
from bicep.plan.pack import check_image
from bicep.plan.store import _digest
from bicep.plan.weights import filled

MODES = (0, 1, 2)
EMBEDDING = (np.random.default_rng(2).standard_normal(768) / 28).astype(np.float32)


@pytest.fixture(scope="module")
def bench():
    made = Bench(rungs=ladder())
    made.refresh(3, EMBEDDING)
    made.words = mask_bank(bank_key(0, _digest(made.image)), made.units)
    made.by_rung = [decode(made.image, rung) for rung in range(len(LADDER))]
    return made


def _close(answer, expected, tolerance=2e-5):
    assert answer["status"] == OK
    assert answer["mean"] == pytest.approx(expected.mean, rel=tolerance, abs=tolerance * SCALE)
    assert answer["epistemic"] == pytest.approx(expected.epistemic, rel=tolerance, abs=tolerance * SCALE**2)
    assert answer["aleatoric"] == pytest.approx(expected.aleatoric, rel=tolerance)
    assert answer["agree"] == expected.agree


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), rung=st.integers(0, 6), mode=st.sampled_from(MODES), tag=st.integers(0, 2)
)
def test_each_rung_answers_like_the_masked_net_in_float64(bench, seed, rung, mode, tag):
    features = np.random.default_rng(seed).standard_normal(32) * 2
    bench.plan.set_rung(rung, mode)
    answer = bench.infer(features, expert=tag, sequence=seed)
    assert answer["rung"] == rung + RUNGS_MAX * mode
    words = bench.words[answer["mask_index"]]
    weights = bench.by_rung[rung][tag]
    _close(answer, reference.infer(weights, features, EMBEDDING, words, SCALE, 32 >> mode))


@pytest.mark.parametrize("hidden", [(64, 8), (40, 20), (200, 33), (64, 72), (320, 8)])
def test_ladders_of_other_widths_answer_the_same(hidden):
    made = Bench(4, hidden, rungs=ladder((1.0, 0.5, 0.1)))
    made.refresh(3, EMBEDDING)
    features = np.random.default_rng(5).standard_normal(32)
    words = mask_bank(bank_key(0, _digest(made.image)), made.units)
    for rung, mode in np.ndindex(3, 2):
        made.plan.set_rung(rung, mode)
        answer = made.infer(features, expert=2)
        weights = decode(made.image, rung)[2]
        row = words[answer["mask_index"]]
        _close(answer, reference.infer(weights, features, EMBEDDING, row, SCALE, 32 >> mode))


def test_a_rung_keeps_the_largest_weights_of_the_second_layer_and_the_rest_whole(bench):
    for rung, density in enumerate(LADDER):
        for dense, kept in zip(bench.weights, bench.by_rung[rung], strict=True):
            is_kept = kept.second != 0
            assert is_kept.sum() == round(density * dense.second.size)
            assert (kept.second[is_kept] == dense.second[is_kept]).all()
            smallest = np.abs(dense.second[is_kept]).min()
            assert (np.abs(dense.second[~is_kept]) <= smallest).all()
            for field in ("tech", "news", "bias_one", "bias_two", "mean_head", "variance_head", "biases"):
                assert (getattr(dense, field) == getattr(kept, field)).all()


def test_a_switch_is_one_word_and_the_cached_news_stays_valid(bench):
    features = np.linspace(-1, 1, 32)
    record = bench.plan._segment.array("plan", PLAN)[0].copy()
    answers = {}
    for rung in (0, 4, 2):
        bench.plan.set_rung(rung)
        answers[rung] = bench.infer(features)
        assert answers[rung]["news_version"] == 2  # nobody computed the half again
    changed = [name for name in record.dtype.names if np.any(record[name] != bench.plan._record[name])]
    assert set(changed) <= {"rung", "inferences"}
    for rung, before in answers.items():
        bench.plan.set_rung(rung)
        assert bench.infer(features).tobytes() == before.tobytes()
    assert len({answer["mean"] for answer in answers.values()}) == 3


def test_the_masks_of_a_question_are_the_same_on_every_rung(bench):
    rows = set()
    for rung, mode in np.ndindex(len(LADDER), 3):
        bench.plan.set_rung(rung, mode)
        rows.add(int(bench.infer(np.ones(32), sequence=77)["mask_index"]))
    assert len(rows) == 1


def test_a_rung_outside_the_ladder_is_refused_by_the_switch_and_by_the_kernel(bench):
    bench.plan.set_rung(1, 1)
    for rung, mode in ((7, 0), (-1, 0), (0, 4), (0, -1), (1 << 40, 0)):
        assert set_rung(bench.plan.state, rung, mode) == BAD_RUNG
        with pytest.raises(PlanError, match="the ladder has 7 rungs and 4 modes"):
            bench.plan.set_rung(rung, mode)
    assert bench.plan.rung == (1, 1)
    before = bench.plan.counters()["bad_rung"]
    for word in (7, 15, 64, -1, -(1 << 62), 1 << 40):  # as a foreign writer might leave it
        bench.plan._record["rung"] = word
        answer = bench.infer(np.ones(32))
        assert answer["status"] == BAD_RUNG
        assert answer["mean"] == 0
    assert bench.plan.counters()["bad_rung"] == before + 6
    bench.plan.set_rung(0)


def test_a_batch_answers_like_single_calls_on_a_sparse_rung(bench):
    bench.plan.set_rung(4)
    features = np.ascontiguousarray(np.random.default_rng(2).standard_normal((5, 32)))
    features[3, 3] = np.nan
    jobs, out = np.zeros(5, JOB.dtype), np.zeros(5, INFERENCE.dtype)
    jobs["features"] = features.ctypes.data + 256 * np.arange(5)
    jobs["sequence"], jobs["symbol"], jobs["expert"] = np.arange(5), np.arange(5), [0, 1, 2, 0, 1]
    assert infer_batch(bench.plan.state, jobs.ctypes.data, 5, out.ctypes.data) == 4
    for n in range(5):
        single = bench.infer(features[n], expert=int(jobs["expert"][n]), symbol=n, sequence=n)
        assert out[n].tobytes() == single.tobytes()


def test_a_starved_tag_is_answered_by_its_stand_in_on_every_rung():
    made = Bench(3, served=(0, 0, 2), rungs=ladder((1.0, 0.2)))
    for rung in (0, 1):
        made.plan.set_rung(rung)
        none, starved, own = (made.infer(np.ones(32), expert=expert) for expert in range(3))
        assert (none["mean"], none["epistemic"]) == (starved["mean"], starved["epistemic"])
        assert own["mean"] != none["mean"]
        assert (starved["expert"], starved["served"]) == (1, 0)


def test_one_expert_can_be_refreshed_alone(bench):
    bench.plan.set_rung(2)
    news = EMBEDDING * 2
    alone, all_three = Bench(rungs=ladder()), Bench(rungs=ladder())
    all_three.refresh(3, news)
    assert refresh_expert(alone.plan.state, 1, 3, news.ctypes.data) == OK
    assert alone.infer(np.ones(32), expert=1).tobytes() == all_three.infer(np.ones(32), expert=1).tobytes()
    assert alone.infer(np.ones(32), expert=0)["news_version"] == 0
    assert refresh_expert(alone.plan.state, 3, 3, news.ctypes.data) == BAD_EXPERT
    assert refresh_expert(alone.plan.state, 0, 16, news.ctypes.data) == BAD_SYMBOL
    news[5] = np.nan
    assert refresh_expert(alone.plan.state, 0, 3, news.ctypes.data) == NAN_INPUT


def test_rows_without_a_weight_answer_their_bias():
    experts = [random_weights(n, (64, 24)) for n in range(3)]
    for expert in experts:
        expert.second[3:19] = 0  # two whole slices and more
    image = encode(experts, (0, 1, 2), SCALE, ladder((1.0, 0.3)))
    made = Bench(1, (64, 24), rungs=ladder((1.0, 0.3)))
    made.plan, made.image = Plan.from_image(image, symbols_max=16), image
    made.plan.set_rung(1)
    answer = made.infer(np.ones(32))
    words = mask_bank(bank_key(0, _digest(image)), 88)[answer["mask_index"]]
    _close(answer, reference.infer(decode(image, 1)[0], np.ones(32), np.zeros(768), words, SCALE))
    assert calibration.describe(image)[1]["empty_rows"] == [16, 16, 16]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), density=st.floats(0.0, 1.0), units=st.sampled_from([64, 128, 320]),
       outputs=st.sampled_from([8, 24, 64]))  # fmt: skip
def test_a_csr_pack_holds_the_weights_and_nothing_else(seed, density, units, outputs):
    weights = filled(random_weights(seed, (units, outputs)))
    weights.second[np.random.default_rng(seed).random(weights.second.shape) >= density] = 0
    pack = csr_pack(weights)
    assert len(pack) % 64 == 0
    back = unpack_csr(pack, 32, units, outputs)
    for name, value in back.items():
        assert (value == getattr(weights, name)).all(), name
    kept = np.count_nonzero(weights.second)
    assert (
        len(pack)
        < 4 * 32 * units + 400 + outputs * 32 + 6 * 8 * (kept / 8 + outputs / 8 * units) + 64 * outputs
    )


# ---- what is refused


def _experts(**changes):
    experts = [random_weights(n, (64, 8)) for n in range(3)]
    return [dataclasses.replace(experts[0], **changes), *experts[1:]]


def _tuned(density, **changes):
    return [dataclasses.replace(pruned(expert, density), **changes) for expert in _experts()]


NOT_FINITE = np.full(8, np.nan, np.float32)
BAD_LADDERS = [
    ([Rung(0.5)], "the first of density 1"),
    ([], "the first of density 1"),
    ([Rung(1.0), Rung(0.0)], "density 0.0 is not in"),
    ([Rung(1.0), Rung(-0.1)], "density -0.1 is not in"),
    ([Rung(1.5)], "density 1.5 is not in"),
    ([Rung(1.0), Rung(float("nan"))], "density nan is not in"),
    ([Rung(1.0), Rung(float("inf"))], "density inf is not in"),
    ([Rung(1.0), Rung(0.2), Rung(0.5)], "must fall"),
    ([Rung(1.0), Rung(0.2), Rung(0.2)], "must fall"),
    ([Rung(1.0 - n / 100 if n else 1.0) for n in range(17)], "1 to 16 rungs"),
    ([Rung(1.0), Rung(0.0005)], "leaves no weight"),
    ([Rung(1.0, _experts())], "the dense experts"),
    ([Rung(1.0), Rung(0.5, _experts()[:2])], "has 2 experts of 3"),
    ([Rung(1.0), Rung(0.5, _experts())], "holds 512 weights of the second layer, its density allows 256"),
    ([Rung(1.0), Rung(0.5, _tuned(0.5, bias_two=NOT_FINITE))], "NaN or infinite"),
    ([Rung(1.0), Rung(0.5, _tuned(0.5, second=np.zeros((8, 64), np.float32)))], "holds no weight"),
    ([Rung(1.0), Rung(0.5, _tuned(0.5, news=np.ones((64, 768), np.float32)))], "a news half of its own"),
    ([Rung(1.0), Rung(0.5, _tuned(0.5, bias_one=np.ones(64, np.float32)))], "a news half of its own"),
    ([Rung(1.0), Rung(0.5, _tuned(0.5, bias_two=np.ones(9, np.float32)))], "different shapes"),
]  # fmt: skip


@pytest.mark.parametrize(("rungs", "words"), BAD_LADDERS)
def test_a_ladder_that_is_none_is_refused_with_one_line(rungs, words):
    with pytest.raises(PlanError, match=words) as caught:
        encode(_experts(), (0, 1, 2), SCALE, rungs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_weights_from_which_nothing_can_be_pruned_are_refused(value):
    experts = _experts(second=np.full((8, 64), value, np.float32))
    with pytest.raises(PlanError, match=r"leaves no weight|NaN or infinite"):
        encode(experts, (0, 1, 2), SCALE, ladder())


def test_fine_tuned_rungs_serve_as_they_were_given():
    tuned = [
        dataclasses.replace(pruned(e, 0.2), bias_two=e.bias_two + 1, tech=e.tech * 2) for e in _experts()
    ]
    image = encode(_experts(), (0, 1, 2), SCALE, [Rung(1.0), Rung(0.2, tuned)])
    for given_, back in zip(tuned, decode(image, 1), strict=True):
        assert (given_.second == back.second).all()
        assert (given_.bias_two == back.bias_two).all()
        assert (given_.tech == back.tech).all()
    assert (decode(image, 0)[0].tech == _experts()[0].tech).all()
    with pytest.raises(PlanError, match="rung 2 of a ladder of 2"):
        decode(image, 2)


def _spoil(image, at, value, kind):
    copy = bytearray(image)
    np.frombuffer(copy, kind, 1, at)[0] = value
    return bytes(copy)


def test_a_spoiled_csr_pack_is_refused_with_one_line():
    image = encode(_experts(), (0, 1, 2), SCALE, ladder((1.0, 0.2)))
    slot = np.frombuffer(image, SLOT.dtype, 6, PLAN_FILE.size)[1]
    pack = int(slot["pack"])
    steps, first = pack + 4 * (64 * 32 + 16), pack + csr_slices_at(32, 64, 8)
    count = int(np.frombuffer(image, np.int32, 1, steps)[0])
    faults = [
        (steps, -1, np.int32, "slices that do not fit"), (steps, 65, np.int32, "slices that do not fit"),
        (steps, count + 9, np.int32, "slices that do not fit"), (first + 96, 8, np.int32, "each unit"),
        (first + 96, -1, np.int32, "each unit"), (first, np.nan, np.float32, "NaN or infinite"),
        (first + 128, np.inf, np.float32, "NaN or infinite"), (pack, np.nan, np.float32, "NaN or infinite"),
        (first + 128 + 32 * count, 64, np.int16, "column outside"),
        (first + 128 + 32 * count, -1, np.int16, "column outside"),
        (PLAN_FILE.size + SLOT.size + 8, 64, np.int64, "too short"),
        (PLAN_FILE.size + SLOT.size + 8, -64, np.int64, "does not lie in the file"),
        (PLAN_FILE.size + SLOT.size + 16, int(slot["news"]) + 64, np.int64, "news"),
    ]  # fmt: skip
    check_image(image)
    for at, value, kind, words in faults:
        with pytest.raises(PlanError, match=words) as caught:
            check_image(_spoil(image, at, value, kind))
        assert str(caught.value).startswith("slot 1 of the rung table")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mangled_ladder_is_refused_or_answers_a_number(data):
    image = encode(_experts(), (0, 1, 2), SCALE, ladder((1.0, 0.2)))
    copy = bytearray(image)
    slot = np.frombuffer(image, SLOT.dtype, 6, PLAN_FILE.size)[1]
    begin, end = int(slot["pack"]) + 4 * 64 * 32, int(slot["pack"]) + int(slot["pack_size"])
    for _ in range(data.draw(st.integers(1, 6))):
        copy[data.draw(st.integers(begin, end - 1))] = data.draw(st.integers(0, 255))
    try:
        plan = Plan.from_image(bytes(copy), symbols_max=4)
    except PlanError:
        return
    made = Bench.__new__(Bench)
    made.plan, made.out = plan, np.zeros(1, INFERENCE.dtype)
    plan.set_rung(1)
    answer = made.infer(np.ones(32))
    assert np.isfinite([answer["mean"], answer["epistemic"], answer["aleatoric"]]).all()


# ---- calibration, and what NANopt gets


def _calibration(count=40):
    draw = np.random.default_rng(1)
    news = (draw.standard_normal((5, 768)) / 28).astype(np.float32)
    features = draw.standard_normal((count, 32))
    return Calibration(features, news, draw.integers(0, 5, count), draw.integers(0, 3, count))


def test_a_calibrated_ladder_says_what_each_rung_loses(tmp_path, bench):
    image, entry = calibration.calibrate(bench.image, _calibration())
    assert [rung["density"] for rung in entry["rungs"]] == list(LADDER)
    assert [rung["kind"] for rung in entry["rungs"]] == ["dense"] + ["csr"] * 6
    assert [rung["kept"][0] for rung in entry["rungs"]] == [round(d * 8192) for d in LADDER]
    errors = [max(rung["error"]) for rung in entry["rungs"]]
    assert errors[0] == 0
    assert errors[:5] == sorted(errors[:5])
    assert errors[-1] > 5 * errors[1] > 0
    by_mode = np.array(entry["error_by_mode"])
    assert by_mode[0, 0] < by_mode[0, 1] < by_mode[0, 2]  # fewer samples, more noise
    _, slots = check_image(image)
    assert slots["error"].reshape(3, 7).max(axis=0) == pytest.approx(errors)
    manifest = {
        "seed": 1, "trained_on": {}, "features": [], "horizon_ns": 1, "starved": [], "metrics": {},
        "normalisation": {"mean": [0.0] * 32, "deviation": [1.0] * 32}, "ladder": entry,
    }  # fmt: skip
    saved = save(tmp_path, image, manifest)
    assert Plan.load(tmp_path / saved["id"], symbols_max=4).manifest["ladder"] == json.loads(
        json.dumps(entry)
    )


def test_the_error_of_a_rung_is_that_of_a_direct_count(bench):
    rows = _calibration(20)
    errors, units = calibration.measure_errors(bench.image, rows)
    reference_mean, rung_mean = [], []
    for n in range(20):
        embedding = rows.news[rows.state[n]]
        for rung, means in ((0, reference_mean), (6, rung_mean)):
            weights = bench.by_rung[rung][rows.tag[n]]
            heads = [reference.sample_heads(weights, rows.features[n], embedding, words)[0].mean()
                     for words in bench.words[:48]]  # fmt: skip
            means.append(np.mean(heads))
    difference, size = np.subtract(rung_mean, reference_mean), np.array(reference_mean)
    for tag in range(3):
        mine = rows.tag == tag
        expected = np.sqrt(np.mean(difference[mine] ** 2) / np.mean(size[mine] ** 2))
        assert errors[tag, 6, MC_32] == pytest.approx(expected, rel=0.1)
        assert units[tag] == pytest.approx(np.sqrt(np.mean(size[mine] ** 2)) * SCALE, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": np.full((40, 32), np.nan)}, "NaN or infinite"), ({"tag": np.full(40, 3)}, "tag"),
        ({"state": np.full(40, -1)}, "state"), ({"tag": np.zeros(3, np.int64)}, "as many"),
        ({"features": np.zeros((0, 32)), "state": np.zeros(0, int), "tag": np.zeros(0, int)}, "at least one"),
    ],
)  # fmt: skip
def test_a_calibration_set_that_says_nothing_is_refused(changes, words):
    with pytest.raises(PlanError, match=words):
        dataclasses.replace(_calibration(), **changes)


def test_a_plan_that_refuses_a_row_is_not_calibrated(bench):
    rows = _calibration()
    with pytest.raises(PlanError, match="rows refused"):
        calibration.measure_errors(bench.image, dataclasses.replace(rows, features=rows.features * 1e300))


def test_nanopt_moves_a_real_plan_by_its_manifest_and_measured_costs(bench):
    entry = {
        "rungs": [{"rung": n, "density": d} for n, d in enumerate(LADDER)],
        "error_by_mode": [[n / 100, n / 100 + 0.1, 0.3, 0.0] for n in range(7)],
        "samples_by_mode": [32, 16, 8, 0],
        "analytic": {"is_calibrated": [False] * 7},
    }
    costs = [[5 * d + 1, 3 * d + 1, 3 * d + 1, 2.0] for d in LADDER]
    found = calibration.settings(entry, costs)
    assert len(found) == 21  # no analytic mode: it is not calibrated
    nanopt = NANOpt(found, Options(slo_us=3.0, error_budget=0.05))
    from bicep.nanopt import Observation

    change = nanopt.step(Observation(0, 6.0, 100))
    bench.plan.set_rung(change.rung, (32, 16, 8, 0).index(change.samples))
    assert bench.infer(np.ones(32))["rung"] == change.rung == 3
    bench.plan.set_rung(0)


def test_measured_costs_cover_every_rung_and_mode():
    image = probe.random_image((64, 8), (1.0, 0.2))
    costs = probe.ladder_costs(image, 20)
    assert costs.shape == (2, 4)
    assert (costs > 0).all()
    rows = list(probe.measure_ladder(image, 20, ("tight", "dram_cold")))
    assert {(row.density, row.samples) for row in rows} == {
        (d, s) for d in (1.0, 0.2) for s in (32, 16, 8, 0)
    }
    assert {row.cached for row in rows if row.sweep == "dram_cold"} == {True, False}
    assert probe.affine([0.1, 0.2, 0.4], [1.5, 2.0, 3.0]) == pytest.approx((1.0, 5.0, 0.0))
