"""FusionNet's training: ours against the plain PyTorch loop, one thread each, to equal validation loss.

Run: python -m pytest bench/bench_training.py -s.  Both see the same rows in the same order from the same
first weights.  The plain loop is what anybody would write (tests/reference/fusionnet.py); "once per news
state" is that loop with our FusionNet's arithmetic in torch's own operations.  The clock stops while the
validation loss is taken.  Time is that of the thread, so that neighbours on the machine do not count; the
ratio is of the times at which a loss within 0.005 nats of the plain loop's last one was first reached.
"""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.fusionnet import PlainNet
from reference.fusionnet import fit as fit_plain

from bench.results import append_row
from bicep.kernels import REGISTRY
from strategy import experts
from strategy.experts import Tensors, Training
from strategy.fusionnet import FusionNet, gaussian_loss

ROWS, STATES, CHECKS, SLACK = 65_536, 512, 48, 0.005  # the slack in nats per row
SETTINGS = Training(epochs=12, batch=2_048, news_decay=1e-2, prune_span=(0.1, 0.5))


def _samples(rows, seed):
    """Return rows whose mean and variance are a small net's function of features and news."""
    world = torch.Generator().manual_seed(3)
    draw = torch.Generator().manual_seed(seed)
    into, news_into = torch.randn(32, 16, generator=world) / 5, torch.randn(768, 16, generator=world) / 4
    out = torch.randn(16, 2, generator=world) / 3
    news = torch.randn(STATES, 768, generator=torch.Generator().manual_seed(4)) / 28
    tech = torch.randn(rows, 32, generator=draw)
    state = torch.randint(0, STATES, (rows,), generator=draw)
    hidden = torch.tanh(tech @ into + (news @ news_into)[state])
    mean, log_variance = (hidden @ out).unbind(1)
    label = mean + torch.exp(0.5 * (log_variance - 1)) * torch.randn(rows, generator=draw)
    return Tensors(tech, news, state, label, np.zeros(rows, np.int64))


class Course:
    """Validation loss against time spent; `told` is called after each step, `reached` afterwards."""

    def __init__(self, net, samples, predict, steps):
        self.net, self.samples, self.predict = net, samples, predict
        self.every = max(steps // CHECKS, 1)
        self.spent, self.points, self.since = 0, [], time.thread_time_ns()

    def told(self, step):
        if (step + 1) % self.every:
            return
        self.spent += time.thread_time_ns() - self.since
        self.net.eval()
        with torch.no_grad():
            mean, log_variance = self.predict(self.net, self.samples)
            loss = float(gaussian_loss(mean, log_variance, self.samples.label, 0.0))
        self.net.train()
        self.points.append((self.spent / 1e9, loss))
        self.since = time.thread_time_ns()

    def reached(self, target):
        return next((spent for spent, loss in self.points if loss <= target), math.inf)


def _ours(net, samples, validation, order, training):
    steps = len(order)
    course = Course(net, validation, lambda n, s: n(s.tech, s.news, s.state), steps)
    count = iter(range(steps))
    experts.fit(
        net, samples, training.epochs, training.learning_rate, training, torch.Generator().manual_seed(0),
        lambda *_: course.told(next(count)), experts.pruner_of(net, steps, training),
    )  # fmt: skip
    return course


def _without_bodies(run):
    """Run with the compiled bodies switched off: the same operations in plain torch."""
    bodies = {name: op.compiled for name, op in REGISTRY.ops.items()}
    try:
        for op in REGISTRY.ops.values():
            op.compiled = None
        return run()
    finally:
        for name, op in REGISTRY.ops.items():
            op.compiled = bodies[name]


def _order(rows, training):
    generator, order = torch.Generator().manual_seed(0), []
    for _ in range(training.epochs):
        shuffled = torch.randperm(rows, generator=generator)
        order += [shuffled[at : at + training.batch] for at in range(0, rows, training.batch)]
    return order


@pytest.mark.slow
def test_time_to_equal_validation_loss(capsys):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    samples, validation = _samples(ROWS, 1), _samples(16_384, 2)
    first, order = FusionNet(), _order(ROWS, SETTINGS)
    state = {name: value.clone() for name, value in first.state_dict().items()}

    def fresh():
        net = FusionNet()
        net.load_state_dict(state)
        return net

    warm = Training(epochs=1, batch=2_048)
    part = samples.take(np.arange(4_096))
    _ours(fresh(), part, part, _order(4_096, warm), warm)  # compiled before the clock starts
    plain_net = PlainNet(first)
    plain = Course(plain_net, validation, lambda n, s: n(s.tech, s.news[s.state]), len(order))
    fit_plain(plain_net, samples, SETTINGS, order, plain.told)
    target = plain.points[-1][1] + SLACK
    courses = {"plain": plain}
    courses["dense"] = _ours(fresh(), samples, validation, order, SETTINGS)
    for density in (0.5, 0.2, 0.1):
        training = replace(SETTINGS, density=density)
        courses[f"density_{density:g}"] = _ours(fresh(), samples, validation, order, training)
    courses["states_in_torch"] = _without_bodies(lambda: _ours(fresh(), samples, validation, order, SETTINGS))
    with capsys.disabled():
        print(
            f"\ntarget: validation loss {target:.4f} (the plain loop: from "
            f"{plain.points[0][1]:.4f} at its first check to {plain.points[-1][1]:.4f})"
        )
        for name, course in courses.items():
            spent, loss = course.points[-1]
            reached = course.reached(target)
            ratio = plain.reached(target) / reached if math.isfinite(reached) else 0.0
            print(
                f"{name:16s} {spent:6.2f} s for all {len(order)} steps ({plain.points[-1][0] / spent:.2f}x), "
                f"loss {loss:.4f}; target after {reached:6.2f} s: {ratio:.2f}x the plain loop"
            )
            append_row(f"training_{name}_s", len(order), spent, reached, ratio)
    assert courses["dense"].points[-1][1] < plain.points[0][1]
    assert math.isfinite(courses["dense"].reached(target))
