"""The inference kernel against its specification in numpy, and what it does with bad input."""

import ctypes
import mmap
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plan as reference
from reference.plans import SCALE, Bench

from bicep import plan as bicep_plan
from bicep.masks import bank_key, mask_bank
from bicep.plan import (
    BAD_EXPERT,
    BAD_SYMBOL,
    INFERENCE,
    JOB,
    NAN_INPUT,
    NAN_OUTPUT,
    OK,
    infer_batch,
    news_version,
)
from bicep.plan.kernels import mask_row
from bicep.plan.store import _digest
from bicep.plan.vectors import spread_samples, to_variances
from ringbuf.jit import kernel
from ringbuf.records import LINE_PAIR
from ringbuf.segment import Segment
from strategy.fusionnet import FusionNet

torch.set_num_threads(1)  # two threads on a busy machine wait for each other at every operation
NUMBERS = ("mean", "epistemic", "aleatoric", "agree", "mask_index", "news_version")


@pytest.fixture(scope="module")
def bench():
    return Bench()


def _bank(bench, seed=0):
    return mask_bank(bank_key(seed, _digest(bench.image)), bench.units)


def _close(answer, expected, tolerance=1e-5):
    assert answer["mean"] == pytest.approx(expected.mean, rel=tolerance, abs=tolerance * SCALE)
    assert answer["epistemic"] == pytest.approx(expected.epistemic, rel=tolerance, abs=tolerance * SCALE**2)
    assert answer["aleatoric"] == pytest.approx(expected.aleatoric, rel=tolerance)
    assert answer["agree"] == expected.agree


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    expert=st.integers(0, 2),
    symbol=st.integers(0, 15),
    seq=st.integers(0, 2**62),
)
def test_an_answer_equals_the_float64_reference(bench, seed, expert, symbol, seq):
    draw = np.random.default_rng(seed).standard_normal
    features, embedding = draw(32) * 2, (draw(768) / 28).astype(np.float32)
    assert bench.refresh(symbol, embedding) == OK
    answer = bench.infer(features, expert=expert, symbol=symbol, sequence=seq)
    assert answer["status"] == OK
    words = _bank(bench)[answer["mask_index"]]
    _close(answer, reference.infer(bench.weights[expert], features, embedding, words, SCALE))


@pytest.mark.parametrize("hidden", [(64, 64), (64, 8), (40, 20), (200, 33)])
def test_other_widths_are_filled_up_and_answer_the_same(hidden):
    bench = Bench(4, hidden)
    draw = np.random.default_rng(5).standard_normal
    features, embedding = draw(32), draw(768) / 28
    bench.refresh(3, embedding)
    answer = bench.infer(features, expert=2)
    words = _bank(bench)[answer["mask_index"]]
    _close(answer, reference.infer(bench.weights[2], features, embedding.astype(np.float32), words, SCALE))


def test_the_spread_of_many_draws_equals_dropout_in_torch():
    """512 rows of masks x 32 samples against 10,000 samples of torch's own generator."""
    bench = Bench()
    features = np.random.default_rng(8).standard_normal(32)
    net, weights = FusionNet(), bench.weights[0]
    with torch.no_grad():
        for parameter, value in (
            (net.tech.weight, weights.tech),
            (net.news.weight, weights.news),
            (net.tech.bias, weights.bias_one),
            (net.second.weight, weights.second),
            (net.second.bias, weights.bias_two),
            (net.heads.weight, np.stack([weights.mean_head, weights.variance_head])),
            (net.heads.bias, weights.biases),
        ):
            parameter.copy_(torch.from_numpy(np.array(value)))
        torch.manual_seed(1)
        tech = torch.from_numpy(features.astype(np.float32)).repeat(10_000, 1)
        mean, log_variance = net.train()(tech, torch.zeros(1, 768), torch.zeros(10_000, dtype=torch.int64))
    draws = [bench.infer(features, symbol=9, sequence=n) for n in range(4_000)]
    assert len({int(d["mask_index"]) for d in draws}) > 500
    ours = {name: np.mean([d[name] for d in draws]) for name in ("mean", "epistemic", "aleatoric")}
    error = float(mean.std()) / 100
    assert abs(ours["mean"] / SCALE - float(mean.mean())) < 5 * error
    assert ours["epistemic"] / SCALE**2 == pytest.approx(float(mean.var()), rel=0.08)
    assert ours["aleatoric"] / SCALE**2 == pytest.approx(float(log_variance.exp().mean()), rel=0.03)


def test_the_same_question_has_the_same_bits_and_another_sequence_other_masks():
    bench, features = Bench(), np.linspace(-2, 2, 32)
    first = bench.infer(features).tobytes()
    assert bench.infer(features).tobytes() == first
    other = Bench()
    assert other.infer(features).tobytes() == bench.infer(features, symbol=3).tobytes()
    assert bench.infer(features, sequence=8).tobytes() != first
    assert bench.infer(features, symbol=4).tobytes() != first
    assert Bench(1, (128, 64), seed=5).infer(features).tobytes() != first


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_avx2_gives_the_same_bits_as_this_machine():
    code = (
        "import numpy as np; from reference.plans import Bench; b = Bench(); "
        "b.refresh(3, np.cos(np.arange(768)) / 28); print(b.infer(np.linspace(-2, 2, 32)).tobytes().hex())"
    )
    processor = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+sse4.2,+bmi,+bmi2,+popcnt"}
    environment = {**os.environ, **processor, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    fresh = Bench()
    fresh.refresh(3, np.cos(np.arange(768)) / 28)
    assert done.stdout.strip() == fresh.infer(np.linspace(-2, 2, 32)).tobytes().hex()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 13, 31])
def test_a_feature_that_is_no_number_is_refused(bench, column, bad):
    features, before = np.ones(32), bench.plan.counters()["nan_input"]
    features[column] = bad
    answer = bench.infer(features, expert=1)
    assert answer["status"] == NAN_INPUT
    assert all(answer[name] == 0 for name in NUMBERS)
    assert bench.plan.counters()["nan_input"] == before + 1


def test_a_number_too_large_for_the_net_is_refused_and_nothing_infinite_comes_out(bench):
    for value in (1e300, -1e39, 3e38):
        answer = bench.infer(np.full(32, value))
        assert answer["status"] == NAN_OUTPUT
        assert all(answer[name] == 0 for name in NUMBERS)
    assert bench.infer(np.ones(32))["status"] == OK


@pytest.mark.parametrize("expert", [-1, 3, 255, -(2**63), 2**63 - 1])
def test_an_expert_outside_the_range_is_refused(bench, expert):
    assert bench.infer(np.ones(32), expert=expert)["status"] == BAD_EXPERT


@pytest.mark.parametrize("symbol", [-1, 16, -(2**63), 2**63 - 1])
def test_a_symbol_outside_the_range_is_refused(bench, symbol):
    assert bench.infer(np.ones(32), symbol=symbol)["status"] == BAD_SYMBOL
    assert bench.refresh(symbol, np.zeros(768)) == BAD_SYMBOL
    assert news_version(bench.plan.state, symbol) == BAD_SYMBOL


def test_the_cached_news_half_belongs_to_one_symbol_and_counts_its_versions():
    bench, features = Bench(2), np.ones(32)
    silent = [bench.infer(features, expert=expert) for expert in range(3)]
    assert bench.refresh(4, np.ones(768) / 28) == OK
    assert [bench.infer(features, expert=expert) for expert in range(3)] == silent  # symbol 3 had no news
    told = [bench.infer(features, expert=expert, symbol=4) for expert in range(3)]
    assert [int(answer["news_version"]) for answer in told] == [2, 2, 2]
    bench.refresh(4, np.zeros(768))
    bench.refresh(4, np.ones(768) / 28)
    again = [bench.infer(features, expert=expert, symbol=4) for expert in range(3)]
    assert [int(answer["news_version"]) for answer in again] == [6, 6, 6]
    assert [answer["mean"] for answer in again] == [answer["mean"] for answer in told]
    bench.refresh(4, np.zeros(768))
    assert news_version(bench.plan.state, 4) == 8
    quiet = [bench.infer(features, expert=expert, symbol=4)["mean"] for expert in range(3)]
    bench.refresh(5, np.zeros(768))
    other = Bench(2)
    assert quiet == [other.infer(features, expert=expert, symbol=4)["mean"] for expert in range(3)]


def test_an_embedding_that_is_no_number_leaves_the_cell_alone(bench):
    bench.refresh(6, np.ones(768) / 28)
    before, version = bench.infer(np.ones(32), symbol=6), news_version(bench.plan.state, 6)
    for bad in (np.nan, np.inf):
        embedding = np.ones(768)
        embedding[767] = bad
        assert bench.refresh(6, embedding) == NAN_INPUT
    assert bench.infer(np.ones(32), symbol=6) == before
    assert news_version(bench.plan.state, 6) == version


def test_a_starved_tag_is_answered_by_the_expert_that_stands_in():
    bench = Bench(3, served=(0, 0, 2))
    bench.refresh(3, np.ones(768) / 28)
    none, starved, own = (bench.infer(np.ones(32), expert=expert) for expert in range(3))
    assert (none["mean"], none["epistemic"]) == (starved["mean"], starved["epistemic"])
    assert own["mean"] != none["mean"]
    assert (starved["expert"], starved["served"]) == (1, 0)
    assert bench.plan.served() == [0, 0, 2]


def test_a_batch_answers_like_single_calls(bench):
    features = np.ascontiguousarray(np.random.default_rng(2).standard_normal((5, 32)))
    features[3, 3] = np.nan
    jobs, out = np.zeros(5, JOB.dtype), np.zeros(5, INFERENCE.dtype)
    jobs["features"] = features.ctypes.data + 256 * np.arange(5)
    jobs["sequence"], jobs["symbol"], jobs["expert"] = np.arange(5) + 100, np.arange(5), [0, 1, 2, 0, 1]
    assert infer_batch(bench.plan.state, jobs.ctypes.data, 5, out.ctypes.data) == 4
    for n in range(5):
        single = bench.infer(features[n], expert=int(jobs["expert"][n]), symbol=n, sequence=n + 100)
        assert out[n].tobytes() == single.tobytes()


def _end_of_page(size):
    """Return an address whose next `size` bytes end at a page that must not be touched, and its map."""
    page = mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(base + pages * page), ctypes.c_size_t(page), 0) == 0
    return base + pages * page - size, memory


def test_nothing_is_touched_behind_features_embedding_answer_and_plan():
    page, filler = mmap.PAGESIZE, LINE_PAIR
    for _ in range(2):  # the first try says by how much the end misses a page
        segment = Segment.anonymous(1 << 22)
        segment.allocate("filler", filler)
        bench = Bench(segment=segment)
        filler += -sum(segment.areas["plan.scratch"]) % page
    # Its last area, the scratch, now ends at the forbidden page.
    guard = segment.allocate("guard", page)
    assert guard == sum(segment.areas["plan.scratch"])
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    features, keep_a = _end_of_page(32 * 8)
    embedding, keep_b = _end_of_page(768 * 4)
    out, keep_c = _end_of_page(INFERENCE.size)
    ctypes.memset(features, 0, 32 * 8)
    ctypes.memset(embedding, 0, 768 * 4)
    before = segment.words(segment.areas["plan.image"][0], len(bench.image) // 8).copy()
    assert bicep_plan.refresh_news(bench.plan.state, 15, embedding) == OK
    for sequence in range(600):
        assert bicep_plan.infer(bench.plan.state, sequence % 3, features, 15, sequence, out) == OK
    assert (segment.words(segment.areas["plan.image"][0], len(bench.image) // 8) == before).all()
    at, size = segment.areas["filler"]
    assert not segment.words(at, size // 8).any()
    del keep_a, keep_b, keep_c


@kernel
def _activate(hidden, masks, count, target):
    spread_samples(hidden, masks, count, target)


@kernel
def _variances(samples):
    to_variances(samples)


def _aligned(count):
    raw = np.zeros(count + 16, np.float32)
    return raw[(-raw.ctypes.data // 4) % 16 :][:count]


def test_the_activation_is_the_one_of_training_over_the_float_range():
    x = np.concatenate(
        [np.linspace(-12, 12, 200_000), np.geomspace(1e-30, 1e30, 2_000), -np.geomspace(1e-30, 1e30, 2_000)]
    )
    x = np.resize(x, 204_032).astype(np.float32)
    hidden, spread = _aligned(len(x)), _aligned(32 * len(x))
    hidden[:] = x
    masks = np.full(len(x), 0xFFFF_FFFF, np.uint32)
    _activate(hidden.ctypes.data, masks.ctypes.data, len(x), spread.ctypes.data)
    ours = hidden.astype(np.float64) * 7 / 8
    trained = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    assert (np.abs(ours - trained) <= 1e-6 * np.maximum(1, np.abs(x))).all()
    exact = reference.gelu(np.clip(x, -1e4, 1e4).astype(np.float64))
    near = np.abs(x) < 1e4
    assert (np.abs(ours - exact)[near] <= 5e-7 * np.maximum(1, np.abs(x[near]))).all()
    assert (spread.reshape(-1, 32) == hidden[:, None]).all()


def test_the_exponential_is_exact_to_single_precision_and_clamped():
    for start in np.linspace(-13, 13, 200):
        samples = _aligned(64)
        samples[32:] = start + np.linspace(0, 0.1, 32)
        log_variance = np.clip(samples[32:].astype(np.float64), -12, 12)
        _variances(samples.ctypes.data)
        np.testing.assert_allclose(samples[32:], np.exp(log_variance), rtol=5e-7)


def test_rows_of_the_bank_are_picked_evenly():
    rows = [mask_row(symbol, sequence, 512) for symbol in range(64) for sequence in range(512)]
    counts = np.bincount(rows, minlength=512)
    assert counts.min() > 20
    assert counts.max() < 120
