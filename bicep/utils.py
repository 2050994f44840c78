"""What the machine can do, what a GPU's memory holds, what a mask costs, and tensors that cross to CuPy."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import llvmlite.binding
import torch
from torch import Tensor

# CuPy and PyTorch name streams by number: the default stream of old is 1, the one per thread 2.
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
_VECTORS: Final = ("avx2", "fma", "avx512f", "avx512vnni", "avx512bf16", "amx-tile")


@dataclass(slots=True, frozen=True)
class Cpu:
    """The processor."""

    cores: int  # that this process may use
    features: tuple[str, ...]  # of _VECTORS
    torch_threads: int


@dataclass(slots=True, frozen=True)
class Gpu:
    """One GPU as PyTorch sees it."""

    index: int
    name: str
    architecture: int  # 90 = sm_90
    memory_size: int
    multiprocessors: int


@dataclass(slots=True, frozen=True)
class Capabilities:
    """What calls can run on here."""

    cpu: Cpu
    gpus: tuple[Gpu, ...]
    absent: dict[str, str]  # what is not there -> why


@dataclass(slots=True, frozen=True)
class GpuMemory:
    """Bytes of a GPU's memory, of all processes."""

    total: int
    used: int
    free: int


def _why_absent(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return ""


def cpu() -> Cpu:
    """Return what the processor offers."""
    known = llvmlite.binding.get_host_cpu_features()
    features = tuple(name for name in _VECTORS if known.get(name))
    return Cpu(len(os.sched_getaffinity(0)), features, torch.get_num_threads())


def capabilities() -> Capabilities:
    """Look at the machine.  Nothing here raises: what is missing stands in `absent` with its reason."""
    absent, gpus = {}, []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(index)
            architecture = 10 * seen.major + seen.minor
            gpus.append(Gpu(index, seen.name, architecture, seen.total_memory, seen.multi_processor_count))
    else:
        built = torch.version.cuda
        absent["gpu"] = "no device answers" if built else "this PyTorch is built for the CPU alone"
    for name, module in (("cupy", "cupy"), ("nvml", "pynvml"), ("onnx", "onnx")):
        if reason := _why_absent(module):
            absent[name] = reason
    return Capabilities(cpu(), tuple(gpus), absent)


def gpu_memory(index: int = 0) -> tuple[GpuMemory | None, str]:
    """Return a GPU's memory by NVML, or None and the reason."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        return None, f"nvidia-ml-py is absent: {error}"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"NVML does not answer: {error}"
    try:
        seen = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index))
        return GpuMemory(int(seen.total), int(seen.used), int(seen.free)), ""
    except nvml.NVMLError as error:
        return None, f"GPU {index}: {error}"
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


# ---- metrics


@dataclass(slots=True)
class Metrics:
    """A Controller that only listens: counts calls and rows, keeps the last times."""

    room: int = 1_024
    calls: int = 0
    rows: int = 0
    spans_ns: list[int] = field(default_factory=list)

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Take note of a call; beyond `room` the oldest time is overwritten."""
        if len(self.spans_ns) < self.room:
            self.spans_ns.append(elapsed_ns)
        else:
            self.spans_ns[self.calls % self.room] = elapsed_ns
        self.calls += 1
        self.rows += rows

    def density(self, now: float) -> float:
        """Leave the density as it is."""
        return now

    def quantile_ns(self, share: float) -> int:
        """Return a quantile of the kept times, 0 when there is none."""
        ordered = sorted(self.spans_ns)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0


@contextlib.contextmanager
def timed(into: Metrics, rows: int = 1) -> Iterator[None]:
    """Measure a block."""
    began = time.perf_counter_ns()
    yield
    into.observe(rows, time.perf_counter_ns() - began)


def error_ratio(ours: Tensor, exact: Tensor) -> float:
    """Return the root mean square difference over the root mean square of what is exact."""
    scale = float(exact.detach().double().square().mean().sqrt())
    return float((ours.detach().double() - exact.detach().double()).square().mean().sqrt()) / max(
        scale, 1e-300
    )


# ---- PyTorch <-> CuPy and others, without a copy


def exportable(tensor: Tensor) -> Tensor:
    """Return a view that DLPack can hand over: no gradient, no lazy conjugate or negation."""
    return tensor.detach().resolve_conj().resolve_neg()


def stream_number(tensor: Tensor) -> int | None:
    """Return the number of the stream on which the tensor's data is made; None on the CPU.

    torch's default stream is 0, which DLPack reads as "do not wait": the number for it is 1.  The stream
    per thread (2) is refused, as PyTorch raises on it.
    """
    if not tensor.is_cuda:
        return None
    number = int(torch.cuda.current_stream(tensor.device).cuda_stream)
    if number == PER_THREAD_STREAM:
        msg = "the per-thread default stream cannot be shared with CuPy: use a torch.cuda.Stream"
        raise ValueError(msg)
    return number or LEGACY_STREAM


def to_other(tensor: Tensor, take: Any) -> Any:
    """Hand a tensor to another library without a copy: take is its from_dlpack.

    The other library asks for the capsule on its own stream, and torch makes that stream wait for the data.
    The result keeps the memory alive.
    """
    return take(exportable(tensor))


def from_other(array: Any) -> Tensor:
    """Take an array of another library without a copy; torch's current stream waits for its data."""
    return torch.utils.dlpack.from_dlpack(array)


@contextlib.contextmanager
def on_torch_stream(tensor: Tensor) -> Iterator[Any]:
    """Let CuPy launch on the stream that torch uses for the tensor; on the CPU this does nothing.

    Kernels of both then run in the order in which they were called, and nothing has to wait.
    """
    number = stream_number(tensor)
    if number is None:
        yield None
        return
    cupy = importlib.import_module("cupy")
    with cupy.cuda.ExternalStream(number, tensor.device.index) as stream:
        yield stream
