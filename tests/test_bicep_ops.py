"""The operations as torch sees them: gradients, dtypes, opcheck, autocast, vmap; and which body answers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as fn

from bicep import kernels, ops
from bicep.kernels import REGISTRY, DeviceLostError, Registry
from bicep.masks import KEEP_ALL

torch.set_num_threads(1)
OPS = torch.ops.bicep
DRAW = torch.tensor([1, 2, 3])
LEVEL = 57_344  # keeps 7 of 8


def _tensors(dtype, density, rows=4, inputs=6, outputs=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(outputs, inputs, generator=draw, dtype=torch.float64).to(dtype)
    bias = torch.randn(outputs, generator=draw, dtype=torch.float64).to(dtype)
    mask = torch.rand(outputs, inputs, generator=draw) < density
    return x.requires_grad_(), weight.requires_grad_(), mask, bias.requires_grad_()


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.0])
def test_gradients_are_those_of_finite_differences(density):
    x, weight, mask, bias = _tensors(torch.float64, density)
    assert torch.autograd.gradcheck(lambda *a: OPS.masked_linear(a[0], a[1], mask, a[2]), (x, weight, bias))
    state, table = torch.tensor([0, 1, 1, 0]), torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    for code in ops.ACTIVATIONS.values():

        def fused(*a, code=code):
            draw = DRAW if code == 1 else None  # drawing is slow here, and the same for all
            return OPS.fused_linear(a[0], a[1], mask, a[2], state, draw, code, LEVEL, saves=True)[0]

        assert torch.autograd.gradcheck(fused, (x, weight, table))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (7, 33, 17), (65, 40, 3), (3, 128, 64)])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.0])
def test_values_and_gradients_equal_a_dense_layer_with_masked_weights(dtype, rows, inputs, outputs, density):
    x, weight, mask, bias = _tensors(dtype, density, rows, inputs, outputs)
    grad = torch.ones(rows, outputs, dtype=dtype)
    OPS.masked_linear(x, weight, mask, bias).backward(grad)
    ours = [value.grad.clone() for value in (x, weight, bias)]
    for value in (x, weight, bias):
        value.grad = None
    fn.linear(x, weight * mask, bias).backward(grad)
    absolute, relative = kernels.TOLERANCE[dtype]
    for mine, value in zip(ours, (x, weight, bias), strict=True):
        torch.testing.assert_close(mine, value.grad, atol=absolute * 10, rtol=relative)
    assert not ours[1][~mask].any()
    torch.testing.assert_close(
        OPS.masked_linear(x, weight, mask, bias),
        fn.linear(x, weight * mask, bias),
        atol=absolute,
        rtol=relative,
    )


def test_opcheck_finds_nothing():
    for dtype in (torch.float32, torch.float64):
        x, weight, mask, bias = _tensors(dtype, 0.5)
        state, table = torch.tensor([0, 1, 1, 0]), torch.randn(2, 5, dtype=dtype, requires_grad=True)
        options = (1, LEVEL, True, False)
        torch.library.opcheck(OPS.masked_linear.default, (x, weight, mask, bias, False))
        torch.library.opcheck(OPS.fused_linear.default, (x, weight, mask, bias, None, None, *options))
        torch.library.opcheck(OPS.fused_linear.default, (x, weight, mask, table, state, DRAW, *options))
        x, weight, bias, table = (value.detach() for value in (x, weight, bias, table))
        grad, saved = torch.randn(4, 5, dtype=dtype), torch.randn(4, 5, dtype=dtype)
        torch.library.opcheck(OPS.masked_linear_bwd.default, (grad, x, weight, mask, False, True))
        torch.library.opcheck(
            OPS.fused_linear_bwd.default,
            (grad, x, weight, mask, saved, table, state, DRAW, 1, LEVEL, False, False),
        )


def test_a_batch_of_nothing_has_gradients_of_zero():
    x, weight, mask, bias = _tensors(torch.float32, 0.5, rows=0)
    y = OPS.fused_linear(x, weight, mask, bias, None, DRAW, 1, LEVEL, saves=True)[0]
    assert y.shape == (0, 5)
    y.sum().backward()
    assert x.grad.shape == (0, 6)
    assert not weight.grad.any()
    assert not bias.grad.any()


def test_fusing_is_only_faster_not_different():
    x, weight, mask, bias = _tensors(torch.float32, 0.4, rows=50, inputs=30, outputs=20)
    fused = OPS.fused_linear(x, weight, mask, bias, None, DRAW, 1, LEVEL, saves=True)[0]
    kept = ops.kept_elements(DRAW, LEVEL, 50, 20)
    apart = fn.gelu(fn.linear(x, weight * mask, bias), approximate="tanh") * kept * (65_536 / LEVEL)
    torch.testing.assert_close(fused, apart, atol=1e-6, rtol=1e-5)
    assert 0 < int((~kept).sum()) < 300


def test_where_a_gradient_is_asked_for_what_it_needs_must_be_saved():
    x, weight, mask, bias = _tensors(torch.float32, 1.0)
    with pytest.raises(ValueError, match="saves=True"):
        OPS.fused_linear(x, weight, mask, bias)


def test_autocast_computes_in_single_precision():
    x, weight, mask, bias = _tensors(torch.float32, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert OPS.masked_linear(x.bfloat16(), weight, mask, bias).dtype is torch.float32
        y = OPS.fused_linear(x.bfloat16(), weight, mask, bias, None, None, 1, KEEP_ALL, saves=True)[0]
    y.sum().backward()
    assert weight.grad.dtype is torch.float32


def test_vmap_over_inputs_and_over_masks():
    _, weight, mask, bias = (value.detach() for value in _tensors(torch.float32, 0.5))
    batch = torch.randn(3, 4, 6)
    masks = torch.rand(3, 5, 6) < 0.5
    over_x = torch.vmap(lambda v: OPS.masked_linear(v, weight, mask, bias))(batch)
    torch.testing.assert_close(over_x, fn.linear(batch, weight * mask, bias))
    over_both = torch.vmap(lambda v, m: OPS.masked_linear(v, weight, m, bias))(batch, masks)
    torch.testing.assert_close(
        over_both, torch.stack([fn.linear(v, weight * m, bias) for v, m in zip(batch, masks, strict=True)])
    )
    fused = torch.vmap(lambda v: OPS.fused_linear(v, weight, mask, bias, None, None, 2)[0], in_dims=1)(batch)
    torch.testing.assert_close(fused, fn.relu(fn.linear(batch.movedim(1, 0), weight * mask, bias)))


class _Device:
    """A device in main memory that runs a body written here, and can die at any launch."""

    def __init__(self, *, dies_at=None, wanted=True, keeps=()):
        self.launches, self.dies_at, self.wanted = 0, dies_at, wanted
        self.held = {id(value) for value in keeps}

    def launch(self, *_arguments, **_named):
        self.launches += 1
        if self.launches == self.dies_at:
            raise DeviceLostError("the driver says 719")

    def holds(self, tensor):
        return id(tensor) in self.held

    def wants(self, name, work):
        assert (name, work > 0) == ("twice", True)
        return self.wanted

    def fetch(self, tensor):
        return tensor.clone()

    def give(self, tensor):
        if self.dies_at == -1:
            raise DeviceLostError("no answer")
        return tensor.clone()


def _registry():
    def on_device(launcher, x):
        launcher.launch("source", "kernel", (1, 1), 32, (x,))
        return 2 * x

    made = kernels.Op("twice", "", lambda x: x + x, lambda x: x, lambda x: x.numel(), "source", {})
    made.device = on_device
    return Registry({"twice": made}), made


def test_a_device_lost_in_a_call_costs_time_and_nothing_else():
    registry, twice = _registry()
    device, x = _Device(dies_at=2), torch.arange(3.0)
    registry.attach(device)
    assert [registry.run(twice, (x,)).tolist() for _ in range(4)] == [[0.0, 2.0, 4.0]] * 4
    assert device.launches == 2
    assert (twice.calls["device"], twice.calls["torch"], registry.losses) == (1, 3, 1)
    assert registry.launcher is None
    assert "719" in registry.lost
    registry.attach(_Device())
    registry.run(twice, (x,))
    assert (twice.calls["device"], registry.lost) == (2, "")


def test_what_only_the_lost_device_held_is_named_as_lost():
    registry, twice = _registry()
    x = torch.arange(3.0)
    registry.attach(_Device(dies_at=1, keeps=(x,)))
    assert registry.run(twice, (x,)).tolist() == [0.0, 2.0, 4.0]  # it could still be read
    dead = _Device(dies_at=-1, keeps=(x,))
    dead.launch = lambda *_a, **_n: (_ for _ in ()).throw(DeviceLostError("gone"))
    registry.attach(dead)
    with pytest.raises(DeviceLostError, match="inputs of the call"):
        registry.run(twice, (x,))


def test_data_on_the_cpu_stays_there_unless_the_device_wants_the_call():
    registry, twice = _registry()
    registry.attach(_Device(wanted=False))
    registry.run(twice, (torch.ones(2),))
    assert (twice.calls["device"], twice.calls["torch"]) == (0, 1)


def test_every_operation_has_what_the_registry_asks_for():
    assert set(REGISTRY.ops) >= {"masked_linear", "masked_linear_bwd", "fused_linear", "fused_linear_bwd"}
    x, weight, mask, bias = (value.detach() for value in _tensors(torch.float32, 0.5))
    for op in REGISTRY.ops.values():
        assert op.tolerance
        assert op.compiled is not None
    assert REGISTRY.ops["fused_linear"].work(x, weight, mask, bias) == 4 * 6 * 5
    assert np.isfinite(REGISTRY.ops["masked_linear_bwd"].work(x, x, weight))
