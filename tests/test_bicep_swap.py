"""accelerate() says what it did; build_plan() gives a plan that computes the module, or one line why not."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as fn
from torch.nn.utils import parametrizations

import bicep
from bicep import BICEPLayer, accelerate, build_plan
from bicep.plan import INFERENCE, OK, Plan, PlanError, infer, refresh_news
from strategy.fusionnet import FusionNet

torch.set_num_threads(1)


def _model():
    torch.manual_seed(5)
    return nn.ModuleDict(
        {
            "body": nn.Sequential(
                nn.Linear(10, 32), nn.GELU(approximate="tanh"), nn.Dropout(0.25),
                nn.LayerNorm(32), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(),
            ),
            "head": nn.Linear(16, 2),
        }
    )  # fmt: skip


def _run(model, x):
    return model["head"](model["body"](x))


def test_a_model_is_swapped_in_place_and_computes_and_trains_as_before():
    model, x = _model(), torch.randn(6, 10)
    parameters, state = list(model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    before = _run(model.eval(), x)
    report = accelerate(model)
    assert report.swapped == {
        "body.0": "BICEPLayer with gelu and dropout 0.25",
        "body.4": "BICEPLayer",
        "body.6": "BICEPLayer with relu",
        "head": "BICEPLayer",
    }
    assert report.kept == {"body.3": "not a linear layer"}
    assert "kept    body.3 (LayerNorm): not a linear layer" in str(report)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.state_dict().keys() == state.keys()
    torch.testing.assert_close(_run(model, x), before)
    model.train()
    assert (_run(model, x) != _run(model, x)).any(), "dropout is at work"
    _run(model, x).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    assert accelerate(model).swapped == {}


def test_what_cannot_be_swapped_is_named_with_its_reason():
    class Own(nn.Linear):
        pass

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = Own(4, 4)
            self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.hooked = nn.Linear(4, 4)
            self.hooked.register_forward_hook(lambda *_: None)
            self.broken = nn.Linear(4, 4)
            nn.init.constant_(self.broken.weight, float("nan"))
            self.layer = nn.TransformerEncoderLayer(4, 2, 8)
            self.third = nn.Linear(4, 4)
            self.fourth = self.third

    kept = accelerate(Odd()).kept
    reasons = {
        "own": "subclass of nn.Linear (Own)", "normed": "parametrized", "one": "another place",
        "two": "another place", "hooked": "hooks", "third": "another place", "broken": "NaN",
        "layer.linear1": "TransformerEncoderLayer reads",
    }  # fmt: skip
    assert all(reason in kept[name] for name, reason in reasons.items()), kept
    assert "use BICEPLayer" in accelerate(nn.Linear(3, 3)).kept[""]


def test_swapping_can_prune_at_once():
    model = _model()
    accelerate(model, density=0.25)
    assert model["body"][0].density == 0.25
    with pytest.raises(ValueError, match="not in"):
        accelerate(_model(), density=0.0)


def _answer(plan, x, n_tech, *, symbol=3, sequence=1):
    features = np.ascontiguousarray(x[:n_tech], np.float64)
    if n_tech < len(x):
        embedding = np.ascontiguousarray(x[n_tech:], np.float32)
        assert refresh_news(plan.state, symbol, embedding.ctypes.data) == OK
    out = np.zeros(1, INFERENCE.dtype)
    assert infer(plan.state, 0, features.ctypes.data, symbol, sequence, out.ctypes.data) == OK
    return out[0]


def _mlp(*sizes, p=0.0):
    torch.manual_seed(len(sizes))
    parts = []
    for inputs, outputs in itertools.pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.GELU(approximate="tanh"), nn.Dropout(p)]
    return nn.Sequential(*parts[:-2])


@pytest.mark.parametrize("sizes", [(20, 2), (20, 30, 2), (20, 30, 11, 2), (20, 130, 70, 1), (5, 1)])
def test_a_plan_computes_what_the_module_computes(sizes):
    module = _mlp(*sizes).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    n_tech = 4
    plan = build_plan(module, n_tech=n_tech, label_scale=2.0, symbols_max=8, log_variance=-1.5)
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal(sizes[0]).astype(np.float32) * 2
        answer = _answer(plan, x, n_tech)
        wanted = module(torch.from_numpy(x)).detach().numpy()
        log_variance = wanted[1] if len(wanted) == 2 else -1.5
        assert answer["mean"] == pytest.approx(2 * wanted[0], rel=1e-5, abs=1e-5)
        assert answer["aleatoric"] == pytest.approx(4 * np.exp(log_variance), rel=1e-4)
        assert answer["epistemic"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("p", [1 / 8, 0.3])
def test_a_plan_drops_with_the_modules_own_probability(p):
    module = _mlp(20, 64, 32, 2, p=p)
    plan = build_plan(module, symbols_max=8)
    x = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    answers = [_answer(plan, x, 20, sequence=n) for n in range(400)]
    with torch.no_grad():
        mean = module.train()(torch.from_numpy(x).repeat(20_000, 1))[:, 0].double()
    spread = float(mean.var())
    assert np.mean([a["mean"] for a in answers]) == pytest.approx(
        float(mean.mean()), abs=6 * (spread / 12_800) ** 0.5
    )
    assert np.mean([a["epistemic"] for a in answers]) == pytest.approx(spread, rel=0.1)


def test_a_pruned_and_swapped_module_becomes_the_same_plan_as_its_twin():
    module = _mlp(20, 64, 2).eval()
    accelerate(module, density=0.3)
    dense = _mlp(20, 64, 2).eval()
    dense.load_state_dict(module.state_dict())
    x = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    wanted = float(dense(torch.from_numpy(x))[0].detach())
    for twin in (module, dense):
        assert _answer(build_plan(twin, symbols_max=8), x, 20)["mean"] == pytest.approx(wanted, rel=1e-5)


class _Written(nn.Module):
    """As people write it: functions, methods, a norm, an output without its last size."""

    def __init__(self, p=0.0):
        super().__init__()
        self.p, self.norm = p, nn.BatchNorm1d(20)
        self.one, self.two, self.three = nn.Linear(20, 24), nn.Linear(24, 12), nn.Linear(12, 1)

    def forward(self, x):
        x = fn.dropout(torch.relu(self.one(torch.flatten(self.norm(x), 1))), self.p, self.training)
        return self.three(fn.leaky_relu(self.two(x), negative_slope=0.2)).squeeze(-1)


def _block(activation, *, norm_first, p=0.0):
    norm = nn.BatchNorm1d(24)
    parts = [norm, activation] if norm_first else [activation, nn.Dropout(p), norm]
    return nn.Sequential(nn.Linear(20, 24), *parts, nn.Linear(24, 16), nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (_Written(), {}),
        (_block(nn.ReLU(), norm_first=True), {}),
        (_block(nn.ReLU(), norm_first=False), {}),
        (_block(nn.LeakyReLU(0.1), norm_first=False), {}),
        (_block(nn.GELU(approximate="tanh"), norm_first=True), {}),
        (nn.Sequential(*_mlp(20, 32, 16)[:1], nn.ReLU(), *_mlp(32, 16, 1)), {}),
        (nn.Sequential(nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 2)), {"erf_as_tanh": True}),
        (nn.Sequential(BICEPLayer(20, 32, activation="relu", density=0.4), nn.Linear(32, 2)), {}),
    ],
)  # fmt: skip
def test_a_plan_computes_what_other_peoples_modules_compute(module, options):
    torch.manual_seed(2)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                part.weight.normal_()
                part.bias.normal_()
    module.eval()
    plan = build_plan(module, symbols_max=8, **options)
    loose = 1e-3 if "erf_as_tanh" in options else 2e-5
    for size in (1e-3, 1.0, 1e3):
        x = (np.random.default_rng(0).standard_normal(20) * size).astype(np.float32)
        wanted = module(torch.from_numpy(x)[None]).detach().numpy().reshape(-1)
        assert _answer(plan, x, 20)["mean"] == pytest.approx(wanted[0], rel=loose, abs=loose * size)


@pytest.mark.parametrize("module", [_Written(0.2), _block(nn.LeakyReLU(0.1), norm_first=False, p=0.1)])
def test_relu_and_dropout_together_are_those_of_the_module_in_distribution(module):
    torch.manual_seed(3)
    module.eval()
    plan = build_plan(module, symbols_max=8)
    x = np.random.default_rng(1).standard_normal(20).astype(np.float32) * 2
    answers = [_answer(plan, x, 20, sequence=n) for n in range(400)]
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.eval()  # dropout alone is at work
    with torch.no_grad():
        samples = module(torch.from_numpy(x).repeat(20_000, 1)).reshape(20_000, -1)[:, 0].double()
    spread = float(samples.var())
    assert spread > 1e-4
    error = 6 * (spread / 12_800) ** 0.5
    assert np.mean([a["mean"] for a in answers]) == pytest.approx(float(samples.mean()), abs=error)
    assert np.mean([a["epistemic"] for a in answers]) == pytest.approx(spread, rel=0.1)


def test_a_pruned_module_is_served_by_the_sparse_kernel_without_further_loss():
    module = _mlp(20, 64, 30, 2).eval()
    accelerate(module, density=0.2)
    plan = build_plan(module, symbols_max=8, densities=(1.0, 0.7))
    kept = float((module[3].masked_weight() != 0).float().mean())
    assert f"densities [1.0, 0.7, {kept:.4g}]; serves {kept:.4g} with 32 samples" in repr(plan)
    x = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)
    wanted = module(torch.from_numpy(x)).detach().numpy()
    for rung in (2, 0):
        plan.set_rung(rung)
        np.testing.assert_allclose(plan.predict(x)["mean"], wanted[:, 0], rtol=1e-5, atol=1e-6)
    assert build_plan(_mlp(20, 64, 30, 2)).rungs == 1
    again = Plan.from_image(plan.image, symbols_max=8)
    assert again.predict(x).tobytes() == plan.predict(x).tobytes()
    with pytest.raises(PlanError, match="density 0 is not in"):
        build_plan(module, densities=(1.0, 0))


def test_a_plan_answers_rows_from_python_and_says_what_it_cannot_take():
    module = _mlp(20, 64, 30, 2, p=0.2).eval()
    plan = build_plan(module, n_tech=8, symbols_max=4)
    rows = np.random.default_rng(1).standard_normal((6, 8))
    news = np.random.default_rng(2).standard_normal(12)
    first = plan.predict(rows, news, symbol=2)
    assert (first["status"] == OK).all()
    assert plan.predict(rows, symbol=2).tobytes() == first.tobytes()  # it has seen these news
    assert plan.predict(rows[3], symbol=2, sequence=3).tobytes() == first[3].tobytes()
    assert plan.predict(rows, symbol=1)["mean"][0] != first["mean"][0]
    assert (plan.predict(rows, symbol=2, sequence=99)["mean"] != first["mean"]).all()
    rows[4, 1] = np.nan
    assert (plan.predict(rows, symbol=2)["status"] != OK).tolist() == [False] * 4 + [True, False]
    for arguments, options, words in (
        ((rows[:, :7],), {}, "takes .rows..8"),
        ((rows,), {"symbol": 4}, "symbol 4 of 4"),
        ((rows,), {"expert": 3}, "expert 3 of 3"),
        ((rows, news[:5]), {}, "12 finite numbers"),
        ((rows, news * np.inf), {}, "12 finite numbers"),
    ):
        with pytest.raises(PlanError, match=words):
            plan.predict(*arguments, **options)


def test_fusionnet_is_asked_for_its_weights_and_three_experts_serve_three_tags():
    nets = [FusionNet(8, 16, (64, 8)) for _ in range(3)]
    assert build_plan(nets, symbols_max=8).served() == [0, 1, 2]
    assert build_plan(nets[0], symbols_max=8).served() == [0, 0, 0]


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(x + self.one(x))


class _Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 2)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else self.one(-x)


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2)), {}, "SiLU is not part"),
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), {}, "LayerNorm is not part"),
        (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), {}, "erf form.*erf_as_tanh=True"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8)), {}, "behind the last activation"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), {}, "does not follow a linear"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)), {}, "statistics"),
        (nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), {}, "not follow an activation"),
        (_mlp(4, 8, 8, 8, 2), {}, "4 linear layers"),
        (_mlp(4, 8, 3), {}, "3 outputs"),
        (_mlp(4, 8, 5_000, 2), {}, "5000 units"),
        (_mlp(4, 8, 2), {"n_tech": 5}, "n_tech is 5, it has 4 inputs"),
        (BICEPLayer(4, 2, activation="relu"), {}, "behind its last layer"),
        (BICEPLayer(4, 2, activation="silu"), {}, "activation silu"),
        (_Residual(), {}, "residual or a branch"),
        (_Branches(), {}, "cannot be traced"),
        (FusionNet(p=0.5), {}, "drops with probability"),
        ([_mlp(4, 2), _mlp(4, 2)], {}, "2 modules"),
        ([_mlp(4, 8, 2, p=p) for p in (0.0, 0.1, 0.1)], {}, "different probabilities"),
    ],
)  # fmt: skip
def test_what_the_plan_cannot_do_is_said_in_one_line(module, options, reason):
    with pytest.raises(PlanError, match=reason) as caught:
        build_plan(module, symbols_max=8, **options)
    assert "\n" not in str(caught.value)


def test_names_of_the_package_are_found_when_they_are_used():
    assert bicep.BICEPLayer is BICEPLayer
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bicep.nothing
