"""The compiled bodies against plain torch: every way, odd shapes, both directions; and the dropout words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bicep import masks, ops
from bicep.cpu import bodies, linear
from bicep.cpu.words import keep_rows
from bicep.kernels import REGISTRY

torch.set_num_threads(1)
LEVEL = masks.keep_level(1 / 8)
NAMES = sorted(ops.ACTIVATIONS)


def _case(seed, rows, inputs, outputs, density, *, table=False, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=draw, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, generator=draw, dtype=torch.float64) / max(inputs, 1) ** 0.5
    mask = torch.rand(outputs, inputs, generator=draw) < density
    start = torch.randn(*((5, outputs) if table else (outputs,)), generator=draw, dtype=torch.float64)
    state = torch.randint(0, 5, (rows,), generator=draw) if table else None
    grad = torch.randn(rows, outputs, generator=draw, dtype=torch.float64)
    return [value.to(dtype) for value in (x, weight)] + [mask, start.to(dtype), state, grad.to(dtype)]


def _reference(x, weight, mask, start, state, grad, activation, draw, level):
    """Return y and the gradients of x, weight, start by torch's autograd in float64, mask by mask."""
    x, weight, start = (value.double().requires_grad_() for value in (x, weight, start))
    sums = x @ (weight * mask).T + (start if state is None else start[state])
    y = {"none": lambda v: v, "relu": torch.relu, "silu": torch.nn.functional.silu}.get(
        activation, lambda v: torch.nn.functional.gelu(v, approximate="tanh")
    )(sums)
    if draw is not None:
        words = masks.keep_words(
            (int(draw[0]), int(draw[1])), -(-len(x) // 32), y.shape[1], level, number=int(draw[2])
        )
        rows = np.arange(len(x))
        kept = words[rows // 32] >> (rows % 32).astype(np.uint32)[:, None] & 1
        y = y * torch.from_numpy(kept.astype(np.float64)) * (65_536 / level)
    y.backward(grad.double())
    return y.detach(), x.grad, weight.grad, start.grad


def _compare(case, activation, draw, level, *, regrow=False):
    x, weight, mask, start, state, grad = case
    code = ops.ACTIVATIONS[activation]
    expected = _reference(*case, activation, draw, level)
    y, saved = bodies.fused_linear(x, weight, mask, start, state, draw, code, level, saves=True)
    dx, dw, ds = bodies.fused_linear_bwd(
        grad, x, weight, mask, saved, start, state, draw, code, level, regrow=regrow
    )
    if not regrow:
        assert not dw[~mask].any(), "the gradient of a pruned weight is exactly 0"
    for ours, theirs in zip((y, dx, dw if not regrow else dw * mask, ds), expected, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5 * scale)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([1, 2, 3, 31, 33, 63, 64, 65, 97, 130, 200]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]),
    activation=st.sampled_from(NAMES),
    table=st.booleans(),
    drops=st.booleans(),
)
def test_any_shape_equals_torch_with_the_mask_multiplied_in(
    seed, rows, inputs, outputs, density, activation, table, drops
):
    case = _case(seed, rows, inputs, outputs, density, table=table)
    draw = torch.tensor([seed, 17, 2**32 - 1]) if drops else None
    _compare(case, activation, draw, LEVEL if drops else masks.KEEP_ALL)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 128), (768, 128), (128, 64), (64, 2)])
@pytest.mark.parametrize("density", [1.0, 0.2])
def test_the_shapes_of_the_net_with_many_rows(inputs, outputs, density):
    draw = torch.tensor([1, 2, 3])
    _compare(_case(1, 1_100, inputs, outputs, density, table=True), "gelu", draw, LEVEL)


@pytest.mark.parametrize("way", [linear.DOT, linear.DENSE, linear.SPARSE])
def test_every_way_of_the_product_was_taken(way, monkeypatch):
    taken = []
    monkeypatch.setattr(
        bodies, "forward", lambda job: taken.append(int(bodies._MEMORY.job[21])) or linear.forward(job)
    )
    rows, density = {linear.DOT: (1, 1.0), linear.DENSE: (40, 1.0), linear.SPARSE: (80, 0.1)}[way]
    _compare(_case(5, rows, 24, 20, density), "gelu", None, masks.KEEP_ALL)
    assert taken == [way]


def test_regrow_gives_pruned_weights_their_gradient():
    case = _case(2, 100, 30, 20, 0.1)
    x, weight, mask, start, _, grad = case
    dense = bodies.masked_linear_bwd(grad, x, weight, mask, regrow=True)[1]
    torch.testing.assert_close(dense, grad.T @ x, rtol=1e-4, atol=1e-4)
    hard = bodies.masked_linear_bwd(grad, x, weight, mask)[1]
    assert not hard[~mask].any()
    torch.testing.assert_close(hard, dense * mask, rtol=1e-4, atol=1e-4)
    assert start is not None


def test_rows_that_are_not_dense_in_memory_are_read_right():
    x, weight, mask, start, _, _ = _case(3, 70, 24, 20, 0.5)
    wanted = torch.nn.functional.linear(x, weight * mask, start)
    wide = torch.zeros(70, 60)
    wide[:, 7:31] = x
    for odd in (wide[:, 7:31], x.T.contiguous().T, torch.stack([x, x])[::2][0]):
        torch.testing.assert_close(
            bodies.masked_linear(odd, weight, mask, start), wanted, rtol=1e-4, atol=1e-5
        )
    shaped = x.reshape(7, 2, 5, 24)
    torch.testing.assert_close(
        bodies.masked_linear(shaped, weight, mask, start).reshape(70, 20), wanted, rtol=1e-4, atol=1e-5
    )


def test_memory_around_the_results_is_left_alone():
    x, weight, mask, start, _, grad = _case(4, 3, 17, 5, 1.0)
    guarded = {}
    for name, shape in (("y", (3, 5)), ("saved", (3, 5)), ("dx", (3, 17)), ("dw", (5, 17))):
        room = torch.full((64 + shape[0] * shape[1] + 64,), 7.0)
        guarded[name] = room
    count = {name: room.numel() - 128 for name, room in guarded.items()}
    at = {name: room.data_ptr() + 256 for name, room in guarded.items()}
    memory = bodies._MEMORY
    scratch = memory.scratch(linear.scratch_size(17, 5, 85))
    ds = torch.zeros(5)
    for kernel, y_at in ((bodies.forward, at["y"]), (bodies.backward, grad.data_ptr())):
        bodies._JOB.pack_into(
            memory.view, 0, 3, 17, 5, x.data_ptr(), 68, weight.data_ptr(), mask.data_ptr(), start.data_ptr(),
            0, 0, memory.words_at, 0, 1, 1.0, y_at, at["saved"], scratch, at["dx"], at["dw"], ds.data_ptr(),
            0, linear.DENSE, 85, 0,
        )  # fmt: skip
        kernel(memory.job_at)
    for name, room in guarded.items():
        assert (room[:64] == 7).all()
        assert (room[64 + count[name] :] == 7).all()
        assert (room[64 : 64 + count[name]] != 7).all(), f"{name} was written in full"


def test_calls_that_the_kernels_are_not_made_for_go_to_torch():
    x, weight, mask, start, _, _ = _case(6, 8, 6, 4, 0.5)
    assert bodies.masked_linear(x.double(), weight.double(), mask, start.double()) is NotImplemented
    assert bodies.masked_linear(x, weight.T.contiguous().T, mask, start) is NotImplemented
    assert bodies.masked_linear(x[:0], weight, mask, start) is NotImplemented
    before = dict(REGISTRY.ops["masked_linear"].calls)
    torch.ops.bicep.masked_linear(x[:0], weight, mask, start)
    torch.ops.bicep.masked_linear(x, weight, mask, start)
    after = REGISTRY.ops["masked_linear"].calls
    assert (after["torch"] - before["torch"], after["compiled"] - before["compiled"]) == (1, 1)


def test_a_state_outside_the_table_is_an_index_error():
    x, weight, mask, start, state, _ = _case(7, 40, 6, 4, 1.0, table=True)
    for bad in (-1, 5, 2**40):
        state[17] = bad
        with pytest.raises(IndexError, match="not a row of the 5 rows"):
            bodies.fused_linear(x, weight, mask, start, state)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.integers(1, 5), st.integers(1, 70), st.integers(1, 65_535),
)  # fmt: skip
def test_compiled_dropout_words_are_those_of_the_specification(left, right, number, rows, units, level):
    ours = np.zeros((rows, units), np.uint32)
    keep_rows(ours.ctypes.data, rows, units, number, left, right, level)
    assert (ours == masks.keep_words((left, right), rows, units, level, number=number)).all()


def test_a_word_keeps_with_the_probability_asked_for_and_an_eighth_is_the_plans_bank():
    key = (3, 4)
    for drop in (1 / 8, 0.5, 0.1, 0.3):
        words = masks.keep_words(key, 256, 128, masks.keep_level(drop))
        share = np.unpackbits(words.view(np.uint8)).mean()
        assert share == pytest.approx(1 - drop, abs=4 * (drop * (1 - drop) / words.size / 32) ** 0.5)
    assert (
        masks.keep_words(key, 64, 192, LEVEL, number=5) == masks.mask_bank(key, 192, rows=64, number=5)
    ).all()
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="not in"):
            masks.keep_level(bad)
