"""The CUDA bodies of the torch operations, on the emulated device, against torch itself."""

import pytest
import torch
from emulator import build
from emulator.device import PtxCpuDevice
from torch.nn import functional as fn

from bicep.cuda import ENTRIES, Launch
from bicep.cuda.bodies import BODIES, GELU, KEEP_ALL, NONE, address_of
from bicep.cuda.twins import _row_keep

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
torch.set_num_threads(1)


class EmulatedLauncher:
    """Runs a kernel at once on tensors of the CPU, whose memory it makes known for that long."""

    def __init__(self, seed=0):
        self.device = PtxCpuDevice(seed)
        self.launched = []

    def launch(self, source, kernel, grid, block, arguments, shared=0):
        assert ENTRIES[kernel].source == f"{source}.cu"
        tensors = {value.data_ptr(): value for value in arguments if isinstance(value, torch.Tensor)}
        for at, tensor in tensors.items():
            assert tensor.is_contiguous()
            self.device._tell("allocate", at, tensor.numel() * tensor.element_size(), 0)
        try:
            shape = Launch(grid, block, shared)
            self.device.run_kernel(ENTRIES[kernel], shape, [address_of(value) for value in arguments])
        finally:
            for at in tensors:
                self.device._tell("release", at)
        self.launched.append(kernel)


def draws(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.fixture
def launcher():
    return EmulatedLauncher(3)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(40, 33), (3, 5, 33), (1, 33)])
def test_forward_and_backward_equal_torch(launcher, shape, density):
    x, weight, bias, grad = draws(shape, (17, 33), (17,), (*shape[:-1], 17))
    mask = torch.rand((17, 33), generator=torch.Generator().manual_seed(1)) < density
    tx, tw, tb = (t.double().requires_grad_() for t in (x, weight, bias))
    wanted = fn.linear(tx, tw * mask, tb)
    wanted.backward(grad.double())
    y = BODIES["masked_linear"](launcher, x, weight, mask, bias)
    dx, dw, db = BODIES["masked_linear_bwd"](launcher, grad, x, weight, mask)
    assert torch.allclose(y.double(), wanted, atol=1e-5)
    assert torch.allclose(dx.double(), tx.grad, atol=1e-5)
    assert torch.allclose(dw.double(), tw.grad, atol=2e-5)
    assert torch.allclose(db.double(), tb.grad, atol=1e-5)
    assert not dw[~mask].any()
    assert launcher.launched == ["masked_linear", "masked_linear_dx", "masked_linear_dw"]


@pytest.mark.parametrize("level", [KEEP_ALL, 7 << 13, 40_000])
@pytest.mark.parametrize("activation", [NONE, GELU])
def test_the_fused_layer_and_its_gradients_equal_torch_with_the_same_dropout(launcher, activation, level):
    x, weight, start, grad = draws((37, 20), (9, 20), (9,), (37, 9), seed=5)
    mask = torch.rand((9, 20), generator=torch.Generator().manual_seed(1)) < 0.5
    draw = torch.tensor([11, 12, 3])
    keep = torch.from_numpy(_row_keep(37, 9, level, 3, (11, 12)))
    tx, tw, ts = (t.double().requires_grad_() for t in (x, weight, start))
    inside = fn.linear(tx, tw * mask, ts)
    wanted = (fn.gelu(inside, approximate="tanh") if activation == GELU else inside) * keep
    wanted.backward(grad.double())
    y, saved = BODIES["fused_linear"](
        launcher, x, weight, mask, start, None, draw, activation, level, saves=True
    )
    how = (start, None, draw, activation, level)
    dx, dw, ds = BODIES["fused_linear_bwd"](launcher, grad, x, weight, mask, saved, *how)
    assert torch.allclose(saved.double(), inside, atol=1e-5)
    assert torch.allclose(y.double(), wanted, atol=1e-5)
    assert not y[keep == 0].any()  # the same elements are dropped
    assert y[(keep != 0) & (wanted.abs() > 1e-6)].all()
    for ours, theirs in ((dx, tx.grad), (dw, tw.grad), (ds, ts.grad)):
        assert torch.allclose(ours.double(), theirs, atol=3e-5)


def test_the_share_that_is_kept_is_the_level():
    kept = _row_keep(20_000, 8, 40_000, 1, (5, 6)) > 0
    assert kept.mean() == pytest.approx(40_000 / 65_536, abs=5e-3)


def test_views_are_taken_and_what_is_not_needed_is_not_computed(launcher):
    x, weight = draws((20, 33), (33, 17))
    mask = torch.ones((17, 33), dtype=torch.bool)
    y = BODIES["masked_linear"](launcher, x[::2], weight.T, mask)
    assert torch.allclose(y, x[::2] @ weight, atol=1e-5)
    dx, _, _ = BODIES["masked_linear_bwd"](launcher, y, x[::2], weight.T, mask, needs_x=False)
    assert dx.numel() == 0
    assert "masked_linear_dx" not in launcher.launched


def test_what_the_kernels_do_not_have_is_left_to_torch(launcher):
    x, weight = draws((4, 33), (17, 33))
    mask = torch.ones((17, 33), dtype=torch.bool)
    assert BODIES["masked_linear"](launcher, x.double(), weight.double(), mask) is NotImplemented
    assert BODIES["masked_linear"](launcher, x, weight, mask.float()) is NotImplemented
    assert BODIES["masked_linear"](launcher, x[:0], weight, mask) is NotImplemented
    assert BODIES["masked_linear_bwd"](launcher, x[:, :17], x, weight, mask, regrow=True) is NotImplemented
    assert BODIES["fused_linear"](launcher, x, weight, mask, activation=2) is NotImplemented
    state = torch.zeros(4, dtype=torch.int64)
    start = torch.zeros((1, 17))
    assert BODIES["fused_linear"](launcher, x, weight, mask, start, state) is NotImplemented
    assert launcher.launched == []
