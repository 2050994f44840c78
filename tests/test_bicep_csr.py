"""Compressed rows and the helpers around them: round trips, refusals, memory that is shared, not copied."""

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bicep import csr, utils
from bicep.csr import Csr

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 12), st.integers(0, 12), st.floats(0, 1), st.booleans())
def test_there_and_back_and_the_same_product(seed, rows, columns, density, small):
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=draw)
    mask = torch.rand(rows, columns, generator=draw) < density
    made = csr.from_dense(matrix, mask, small=small)
    assert made.columns.dtype is (torch.int16 if small else torch.int32)
    assert made.density == pytest.approx(int(mask.sum()) / max(rows * columns, 1))
    assert (csr.to_dense(made) == matrix * mask).all()
    again = csr.from_torch(csr.to_torch(made), small=small)
    assert (csr.to_dense(again) == matrix * mask).all()
    x = torch.randn(columns, 3, generator=draw)
    torch.testing.assert_close(csr.multiply(made, x), (matrix * mask) @ x, rtol=1e-5, atol=1e-6)


def test_a_stored_zero_stays_stored_and_empty_rows_are_rows():
    matrix, mask = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = True
    made = csr.from_dense(matrix, mask)
    assert made.starts.tolist() == [0, 0, 1, 1]
    assert made.columns.tolist() == [2]
    assert csr.from_dense(torch.zeros(3, 4)).values.numel() == 0
    assert not csr.multiply(csr.from_dense(torch.zeros(3, 4)), torch.ones(4, 2)).any()


def _csr(starts, columns, values, shape, dtype=torch.int32):
    return Csr(
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(columns, dtype=dtype),
        torch.tensor(values),
        shape,
    )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (([0, 1], [0], [1.0], (2, 2)), "2 row starts for 2 rows"),
        (([1, 1, 1], [0], [1.0], (2, 2)), "begin with 0"),
        (([0, 2, 1], [0], [1.0], (2, 2)), "fall"),
        (([0, 1, 3], [0], [1.0], (2, 2)), "end with 3"),
        (([0, 1, 1], [2], [1.0], (2, 2)), "outside 0..1"),
        (([0, 1, 1], [-1], [1.0], (2, 2)), "outside 0..1"),
        (([0, 2, 2], [1, 0], [1.0, 2.0], (2, 2)), "do not rise"),
        (([0, 2, 2], [1, 1], [1.0, 2.0], (2, 2)), "do not rise"),
        (([0, 1, 1], [0, 1], [1.0], (2, 2)), "2 columns for 1 values"),
        (([0, 1, 1], [0], [1.0], (2, 2), torch.uint8), "columns of"),
        (([0, 0], [], [], (1, 40_000), torch.int16), "int16"),
    ],
)
def test_arrays_that_are_no_matrix_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        _csr(*parts)


def test_what_cannot_be_compressed_is_refused():
    with pytest.raises(ValueError, match="int16 can name 32767"):
        csr.from_dense(torch.zeros(1, 32_768), small=True)
    assert csr.from_dense(torch.ones(1, 32_767), small=True).columns[-1] == 32_766
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            csr.from_dense(torch.tensor([[bad]]))
    with pytest.raises(ValueError, match="mask"):
        csr.from_dense(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="times"):
        csr.multiply(csr.from_dense(torch.ones(2, 2)), torch.ones(3, 1))


def test_cupyx_is_asked_for_and_its_absence_has_a_reason(monkeypatch):
    made = csr.from_dense(torch.eye(2))
    if reason := csr.cupyx_absent():
        with pytest.raises(RuntimeError, match="cupyx is absent"):
            csr.to_cupyx(made)
        assert reason.startswith("cupyx is absent")
    monkeypatch.setattr(csr, "cupyx_absent", lambda: "")
    with pytest.raises(ValueError, match="lie on cpu"):
        csr.to_cupyx(made)


def test_capabilities_say_what_is_there_and_why_the_rest_is_not():
    seen = utils.capabilities()
    assert seen.cpu.cores >= 1
    assert seen.cpu.torch_threads == torch.get_num_threads()
    assert bool(seen.gpus) != ("gpu" in seen.absent)
    assert all(seen.absent.values())


class _Nvml(types.ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self, fails_at=""):
        super().__init__("pynvml")
        self.fails_at, self.ended = fails_at, 0

    def _step(self, name):
        if name == self.fails_at:
            raise self.NVMLError(f"{name} failed")

    def nvmlInit(self):  # noqa: N802
        self._step("init")

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        self._step("memory")
        return types.SimpleNamespace(total=10, used=4, free=6 - handle)

    def nvmlShutdown(self):  # noqa: N802
        self.ended += 1


def test_memory_of_a_gpu_or_none_and_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    memory, reason = utils.gpu_memory()
    assert memory is None
    assert "absent" in reason
    for fails_at in ("init", "memory"):
        driver = _Nvml(fails_at)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        memory, reason = utils.gpu_memory()
        assert memory is None
        assert f"{fails_at} failed" in reason
        assert driver.ended == (fails_at == "memory")
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml())
    assert utils.gpu_memory() == (utils.GpuMemory(10, 4, 6), "")


def test_metrics_keep_the_last_times_and_change_nothing():
    metrics = utils.Metrics(room=4)
    for n in range(6):
        metrics.observe(10, n)
    assert (metrics.calls, metrics.rows, sorted(metrics.spans_ns)) == (6, 60, [2, 3, 4, 5])
    assert (metrics.quantile_ns(0.5), metrics.quantile_ns(1.0), utils.Metrics().quantile_ns(0.5)) == (4, 5, 0)
    assert metrics.density(0.3) == 0.3
    with utils.timed(metrics, 5):
        pass
    assert metrics.rows == 65
    assert utils.error_ratio(torch.tensor([1.1, 2.2]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1)


def test_tensors_cross_without_a_copy_and_outlive_their_owner():
    tensor = torch.arange(6.0, requires_grad=True)
    array = utils.to_other(tensor, np.from_dlpack)
    assert array.ctypes.data == tensor.data_ptr()
    back = utils.from_other(array)
    assert back.data_ptr() == tensor.data_ptr()
    del tensor, array
    assert back.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    lazy = torch.tensor([1 + 2j]).conj()
    assert utils.to_other(lazy, np.from_dlpack).tolist() == [1 - 2j]


class _Device:
    """Stands for a tensor on a GPU whose current stream has this number."""

    is_cuda, device = True, types.SimpleNamespace(index=0)


def test_streams_are_named_as_the_other_library_names_them(monkeypatch):
    assert utils.stream_number(torch.zeros(1)) is None
    with utils.on_torch_stream(torch.zeros(1)) as stream:
        assert stream is None
    current = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
    assert utils.stream_number(_Device()) == 1  # torch's default stream; 0 would mean: do not wait
    current.cuda_stream = 94_000
    assert utils.stream_number(_Device()) == 94_000
    current.cuda_stream = 2
    with pytest.raises(ValueError, match="per-thread"):
        utils.stream_number(_Device())
