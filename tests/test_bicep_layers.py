"""BICEPLayer takes nn.Linear's place: same first values, same training, same files, wherever torch goes."""

import copy
import io
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fusionnet import PlainNet
from torch import nn
from torch.nn import functional as fn

from bicep import BICEPFunction, BICEPLayer, ops
from strategy.fusionnet import FusionNet, gaussian_loss

torch.set_num_threads(1)


def _pair(inputs=12, outputs=7, seed=0, **options):
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs)
    torch.manual_seed(seed)
    return linear, BICEPLayer(inputs, outputs, **options)


def test_the_first_values_and_the_state_dict_are_those_of_a_linear_layer():
    linear, layer = _pair()
    assert linear.state_dict().keys() == layer.state_dict().keys()
    assert all((linear.state_dict()[name] == value).all() for name, value in layer.state_dict().items())
    x = torch.randn(5, 12)
    torch.testing.assert_close(layer(x), linear(x))
    torch.testing.assert_close(layer.to_linear()(x), linear(x))


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_state_dicts_go_both_ways_and_a_pruned_weight_stays_pruned(density):
    linear, layer = _pair()
    layer.density = density
    with torch.no_grad():
        layer.weight[0, 0], layer.mask[0, 0] = -0.0, True  # kept, though it is zero
    x = torch.randn(5, 12)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    linear.load_state_dict(torch.load(file), strict=True)
    torch.testing.assert_close(linear(x), layer(x))
    again = BICEPLayer(12, 7)
    again.load_state_dict(linear.state_dict(), strict=True)
    assert (again.mask == layer.mask).all()
    assert again.density == layer.density
    torch.testing.assert_close(again(x), layer(x))
    fresh = BICEPLayer(12, 7)
    fresh.load_state_dict(nn.Linear(12, 7).state_dict())
    assert fresh.density == 1.0


def test_training_in_double_precision_is_that_of_a_linear_layer_to_the_last_digits():
    linear, layer = _pair(8, 3)
    linear, layer = linear.double(), layer.double()
    optimisers = [torch.optim.AdamW(module.parameters(), lr=0.1) for module in (linear, layer)]
    for step in range(10):
        x = torch.randn(20, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for module, optimiser in zip((linear, layer), optimisers, strict=True):
            optimiser.zero_grad()
            module(x).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(layer.weight, linear.weight, rtol=1e-12, atol=1e-12)


def test_a_net_of_such_layers_trains_step_for_step_like_plain_pytorch():
    torch.manual_seed(3)
    net = FusionNet(32, 48, (64, 24), p=0.0)
    plain = PlainNet(net)
    optimisers = [torch.optim.AdamW(module.parameters(), lr=3e-3) for module in (net, plain)]
    losses = []
    for step in range(20):
        draw = torch.Generator().manual_seed(step)
        tech, news = torch.randn(96, 32, generator=draw), torch.randn(6, 48, generator=draw)
        state, label = torch.randint(0, 6, (96,), generator=draw), torch.randn(96, generator=draw)
        answers = (net(tech, news, state), plain(tech, news[state]))
        losses.append([gaussian_loss(*answer, label, 0.5) for answer in answers])
        for loss, optimiser in zip(losses[-1], optimisers, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[-1] = [loss.item() for loss in losses[-1]]
        assert losses[-1][0] == pytest.approx(losses[-1][1], rel=2e-4, abs=2e-5)
    assert losses[-1][0] != losses[0][0]
    torch.testing.assert_close(net.second.weight, plain.layers[3].weight, rtol=2e-2, atol=2e-4)


def test_a_pruned_weight_has_no_gradient_and_regrow_gives_it_one():
    _, layer = _pair(density=0.3)
    x = torch.randn(9, 12)
    layer(x).sum().backward()
    assert not layer.weight.grad[~layer.mask].any()
    assert layer.weight.grad[layer.mask].all()
    layer.weight.grad = None
    layer.regrow = True
    layer(x).sum().backward()
    assert layer.weight.grad.all()


def test_pruning_can_be_taken_back():
    linear, layer = _pair()
    for density in (0.5, 0.1, 0.7, 1.0):
        layer.density = density
        assert int(layer.mask.sum()) == round(density * 84)
    x = torch.randn(3, 12)
    torch.testing.assert_close(layer(x), linear(x))


def test_dropout_follows_the_seed_keeps_the_mean_and_is_off_in_evaluation():
    layer = BICEPLayer(16, 64, activation="gelu", dropout=0.25)
    x = torch.randn(512, 16)
    torch.manual_seed(4)
    first = layer(x)
    torch.manual_seed(4)
    assert (layer(x) == first).all()
    assert (layer(x) != first).any()
    whole = layer.eval()(x)
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    kept = first != 0
    torch.testing.assert_close(first[kept], whole[kept] / 0.75, rtol=1e-5, atol=1e-6)
    again = layer.train()(x, keep=kept.float())
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-6)


def test_a_checkpointed_layer_draws_the_same_mask_twice():
    layer = BICEPLayer(6, 32, activation="gelu", dropout=0.5)
    x = torch.randn(40, 6)
    grads = []
    for run in (layer, lambda v: torch.utils.checkpoint.checkpoint(layer, v, use_reentrant=False)):
        torch.manual_seed(1)
        layer.zero_grad()
        run(x).square().sum().backward()
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    density=st.floats(0.01, 1.0),
    activation=st.sampled_from(sorted(ops.ACTIVATIONS)),
)
def test_any_leading_shape(shape, inputs, outputs, density, activation):
    layer = BICEPLayer(inputs, outputs, activation=activation, density=density)
    x = torch.randn(*shape, inputs, requires_grad=True)
    y = layer(x)
    plain = fn.linear(x, layer.weight * layer.mask, layer.bias)
    plain = {"relu": fn.relu, "silu": fn.silu, "none": lambda v: v}.get(
        activation, lambda v: fn.gelu(v, approximate="tanh")
    )(plain)
    torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_one_mask_per_asset():
    _, layer = _pair()
    layer.prune_assets([1.0, 0.5, 0.1])
    x = torch.randn(3, 5, 12)
    y = layer(x)
    for n, density in enumerate((1.0, 0.5, 0.1)):
        one = copy.deepcopy(layer)
        one.density = density
        torch.testing.assert_close(y[n], one(x[n]))
    with pytest.raises(ValueError, match="masks of 3 assets"):
        layer(torch.randn(2, 5, 12))
    layer.density = 0.5
    assert layer(torch.randn(2, 5, 12)).shape == (2, 5, 7)


class _Steering:
    def __init__(self):
        self.seen = []

    def observe(self, rows, elapsed_ns):
        self.seen.append((rows, elapsed_ns > 0))

    def density(self, now):
        return now / 2


def test_a_controller_hears_of_calls_and_is_asked_between_steps():
    steering = _Steering()
    layer = BICEPLayer(10, 10, nanopt=steering)
    layer(torch.randn(3, 4, 10))
    assert steering.seen == [(12, True)]
    assert layer.adjust() == 0.5
    assert layer.density == 0.5
    y = BICEPFunction.apply(torch.randn(5, 10), steering, layer.weight, layer.mask, layer.bias)
    assert y.shape == (5, 10)
    assert steering.seen[1] == (5, True)


def test_automatic_mixed_precision_and_half_precision_models():
    _, layer = _pair(activation="gelu")
    x = torch.randn(6, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(fn.linear(x, torch.eye(12)))
    y.float().sum().backward()
    assert layer.weight.grad.dtype is torch.float32
    half = copy.deepcopy(layer).bfloat16()
    assert half.mask.dtype is torch.bool
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), atol=0.05, rtol=0.05)


def test_moving_a_layer_moves_its_mask():
    layer = BICEPLayer(4, 3, density=0.5)
    assert layer.to("meta").mask.device.type == "meta"
    assert BICEPLayer(4, 3, device="meta").to_empty(device="cpu").mask.shape == (3, 4)


def test_functions_of_functions():
    _, layer = _pair(density=0.5, activation="silu")
    x = torch.randn(5, 12)
    weight = layer.weight.detach()

    def loss(w):
        return torch.func.functional_call(layer, {"weight": w}, (x,)).sum()

    layer(x).sum().backward()
    torch.testing.assert_close(torch.func.grad(loss)(weight), layer.weight.grad)
    batch = torch.randn(4, 5, 12)
    torch.testing.assert_close(torch.vmap(layer)(batch), layer(batch))


def test_eager_compiled_and_exported_agree_and_density_compiles_nothing_anew():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of other tests
    _, layer = _pair(activation="gelu", dropout=0.25, density=0.6)
    x = torch.randn(9, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for density in (0.6, 0.3, 1.0):
        layer.density = density
        grads = []
        for run in (layer, compiled):
            torch.manual_seed(2)
            layer.zero_grad()
            y = run(x)
            y.square().sum().backward()
            grads.append((y.detach(), layer.weight.grad.clone()))
        torch.testing.assert_close(grads[0], grads[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    layer.density = 0.3
    exported = torch.export.export(layer.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert "bicep.fused_linear" in str(exported.graph)
    more = torch.randn(31, 12)
    torch.testing.assert_close(exported.module()(more), layer(more))
    exported.module()(x).sum().backward()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own parts
def test_inductor_compiles_a_layer_forward_and_backward():
    torch._dynamo.reset()
    _, layer = _pair(activation="gelu", dropout=0.25, density=0.6)
    model, x = nn.Sequential(layer, nn.Linear(7, 2)), torch.randn(9, 12)
    # Inductor draws random numbers of its own, for nn.Dropout too, unless it is told not to.
    compiled = torch.compile(model, fullgraph=True, options={"fallback_random": True})
    found = []
    for run in (model, compiled):
        torch.manual_seed(2)
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        found.append((y.detach(), layer.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model.eval())(x), model(x))


def test_regrown_training_is_that_of_a_dense_layer_whose_output_is_masked():
    """With regrow a pruned weight's gradient is what it would be if it were kept, in every precision."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        _, layer = _pair(density=0.3, activation="gelu", regrow=True)
        layer = layer.to(dtype)
        for shape in ((1,), (7,), (33,), (3, 5)):
            x, weight = torch.randn(*shape, 12, dtype=dtype), layer.masked_weight().detach().requires_grad_()
            layer.weight.grad = None
            layer(x).sum().backward()
            fn.gelu(fn.linear(x, weight, layer.bias), approximate="tanh").sum().backward()
            torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=tolerance, atol=tolerance)


def test_the_traced_evaluation_model_can_be_saved():
    _, layer = _pair(activation="relu", density=0.5)
    model, x = nn.Sequential(layer, nn.Linear(7, 2)).eval(), torch.randn(4, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is in maintenance and says so
        traced = torch.jit.trace(model, (x,))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    other = torch.randn(11, 12)
    torch.testing.assert_close(loaded(other), model(other))


def test_what_makes_no_sense_is_a_value_error_with_the_numbers_in_it():
    _, layer = _pair()
    for density in (0.0, -0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
            layer.density = density
    with pytest.raises(ValueError, match="last size is not 12"):
        layer(torch.randn(3, 11))
    with pytest.raises(ValueError, match="last size is not 7"):
        layer(torch.randn(3, 12), start=torch.zeros(6))
    with pytest.raises(ValueError, match="without the table"):
        layer(torch.randn(3, 12), state=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="wanted is"):
        layer.set_mask(torch.ones(7, 12))
    with pytest.raises(ValueError, match="not one of none"):
        BICEPLayer(3, 3, activation="gelu_erf")
    for dropout in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="drop probability"):
            BICEPLayer(3, 3, dropout=dropout)
    for bad in (float("nan"), float("inf")):
        with torch.no_grad():
            layer.weight[2, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            layer.density = 0.5
        with pytest.raises(ValueError, match="NaN or infinite"):
            layer.prune_2_4()
