"""One fused layer against the same operations run separately, for the shapes of FusionNet, one thread.

Run: python -m pytest bench/bench_layers.py -s.  Separately means: weight * mask, linear, tanh-GELU, dropout,
each torch's own; training adds their backward passes.  Both run in turn in one process and give the same
numbers (without dropout, whose generators differ).  The target is a ratio of 1.5 forward, with dropout.
"""

import time

import numpy as np
import pytest
import torch
from torch.nn import functional as fn

from bench.results import append_row
from bicep import BICEPLayer

ROUNDS, DROP = 60, 1 / 8
SHAPES = {  # name -> rows, inputs, outputs: Monte-Carlo samples of one row, and a batch of training
    "mc32_tech": (32, 32, 128),
    "mc32_second": (32, 128, 64),
    "train_tech": (2_048, 32, 128),
    "train_news": (200, 768, 128),
    "train_second": (2_048, 128, 64),
}


def _in_turn(ours, theirs):
    spans = ([], [])
    for n in range(ROUNDS + 5):
        for place, run in enumerate((ours, theirs)):
            began = time.perf_counter_ns()
            run()
            if n >= 5:
                spans[place].append((time.perf_counter_ns() - began) / 1e3)
    return spans


def _separate(layer, x, p):
    hidden = fn.linear(x, layer.weight * layer.mask, layer.bias)
    hidden = fn.gelu(hidden, approximate="tanh")
    return fn.dropout(hidden, p) if p else hidden


def _measure(name, layer, x, p, *, back):
    def step(run):
        if not back:
            with torch.no_grad():
                return run()
        layer.zero_grad()
        x.grad = None
        y = run()
        y.backward(y.detach())
        return y

    ours, theirs = _in_turn(lambda: step(lambda: layer(x)), lambda: step(lambda: _separate(layer, x, p)))
    fast, slow = np.median(ours), np.median(theirs)
    kind = f"{name}{'_drop' if p else ''}{'_back' if back else ''}_d{layer.density:.2g}"
    print(f"{kind:36s} fused {fast:8.1f} us, separate {slow:8.1f} us, {slow / fast:5.2f}x")
    append_row(f"layer_{kind}_us", ROUNDS, fast, np.percentile(ours, 99), slow / fast)
    return slow / fast


@pytest.mark.parametrize("name", SHAPES)
def test_fused_against_separate(name, capsys):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, inputs, outputs = SHAPES[name]
    x = torch.randn(rows, inputs, requires_grad=True)
    layer = BICEPLayer(inputs, outputs, activation="gelu").eval()
    with capsys.disabled():
        print()
        for density in (1.0, 0.2, 0.05):
            layer.density = density
            torch.testing.assert_close(layer(x), _separate(layer, x, 0.0), rtol=1e-4, atol=1e-5)
            for p in (0.0, DROP):
                layer.dropout = p
                layer.train(p > 0)
                for back in (False, True):
                    _measure(name, layer, x, p, back=back)
            layer.eval()
