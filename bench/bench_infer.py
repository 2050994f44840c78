"""One MC-32 inference: our kernel against torch eager running 32 copies of the row as a batch.

Run: python -m pytest bench/bench_infer.py -s.  Both have the same weights, in one run, in turn; the kernel's
answer is checked against the float64 reference and against the spread of torch's own dropout.
"""

import time

import numpy as np
import pytest
import torch
from reference import plan as reference
from reference.plans import SCALE, Bench

from bench.results import append_row
from bicep import probe
from bicep.masks import bank_key, mask_bank
from bicep.plan.store import _digest
from strategy.fusionnet import FusionNet

ROUNDS, CALLS = 30, 20


def _net(weights):
    net = FusionNet()
    values = (
        (net.tech.weight, weights.tech),
        (net.news.weight, weights.news),
        (net.tech.bias, weights.bias_one),
        (net.second.weight, weights.second),
        (net.second.bias, weights.bias_two),
        (net.heads.weight, np.stack([weights.mean_head, weights.variance_head])),
        (net.heads.bias, weights.biases),
    )
    with torch.no_grad():
        for parameter, value in values:
            parameter.copy_(torch.from_numpy(np.array(value)))
    return net.train()


def _check_answer(bench, features, embedding, net, tech, news):
    answer = bench.infer(features)
    words = mask_bank(bank_key(0, _digest(bench.image)), bench.units)[answer["mask_index"]]
    expected = reference.infer(bench.weights[0], features, embedding, words, SCALE)
    assert answer["mean"] == pytest.approx(expected.mean, rel=1e-5, abs=1e-5 * SCALE)
    with torch.no_grad():
        mean = torch.stack([net(tech, news)[0] for _ in range(100)])
    ours = np.mean([bench.infer(features, sequence=n)["mean"] for n in range(500)]) / SCALE
    assert abs(ours - float(mean.mean())) < 6 * float(mean.std()) / np.sqrt(mean.numel())


def test_one_inference_against_torch_eager(capsys):
    torch.set_num_threads(1)
    bench = Bench()
    features = np.random.default_rng(1).standard_normal(32)
    embedding = (np.random.default_rng(2).standard_normal(768) / 28).astype(np.float32)
    bench.refresh(3, embedding)
    net = _net(bench.weights[0])
    tech = torch.from_numpy(features.astype(np.float32)).repeat(32, 1)
    news = torch.from_numpy(embedding).repeat(32, 1)
    _check_answer(bench, features, embedding, net, tech, news)
    spans = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            for _ in range(CALLS):
                start = time.perf_counter_ns()
                net(tech, news)
                spans.append((time.perf_counter_ns() - start) / 1e3)
    timings = probe.measure()
    theirs, tail = np.percentile(spans, [50, 99])
    with capsys.disabled():
        print(f"\ntorch eager, 32 copies: p50 {theirs:.1f} us, p99 {tail:.1f} us")
        for name, timing in timings.items():
            ratio = theirs / timing.p50_us
            print(f"plan, {name}: p50 {timing.p50_us:.2f} us, p99 {timing.p99_us:.2f} us, {ratio:.0f}x torch")
            append_row(f"infer_mc32_{name}_us", timing.count, timing.p50_us, timing.p99_us, ratio)
