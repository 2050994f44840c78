"""What BICEP asks of a GPU, as a protocol, and the real one through CuPy.

Everything above this file (scheduler, offload, self-check) knows the protocol alone, so it runs the same on
the emulated device of the tests.  Work is put on streams and is asynchronous: it has happened when an event
recorded after it is done.  Memory is reserved at start and addressed by integers; `mapped` memory is the
host's and has one address for both.  CuPy is imported when a device is opened, not before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bicep.cuda import ENTRIES, SOURCES, Entry, Launch, headers, read_source
from bicep.nvrtc import ARCHITECTURES, NvrtcError, compile_source

HIGH, NORMAL = -1, 0  # priority of a stream: lower is more urgent
_POLL_S: Final = 20e-6
# Errors of the runtime after which the context answers nothing more.
_STICKY: Final = frozenset({4, 46, 100, 101, 201, 214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
_STATIC_SHARED_MAX: Final = 48 * 1_024


class DeviceError(Exception):
    """The device refused something; the message is one line."""


class DeviceLostError(DeviceError):
    """The device answers no more: nothing that was put on it can be relied on."""


class Device(Protocol):
    """A GPU, or something that behaves like one.

    Every method may raise DeviceLostError.  Streams, events and graphs are the device's own objects.
    """

    @property
    def name(self) -> str:
        """What it is, for people."""

    def alloc(self, size: int) -> int:
        """Return the address of `size` new bytes; they hold nothing yet."""

    def free(self, address: int) -> None:
        """Give memory of `alloc` back."""

    def mapped(self, size: int) -> NDArray[np.uint8]:
        """Return zeroed host memory that the device reads and writes at the same address."""

    def upload(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """Copy an array to the device; it may be changed again once the stream has passed this point."""

    def download(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """Copy into an array; it holds the bytes once the stream has passed this point."""

    def launch(self, entry: Entry, shape: Launch, arguments: Sequence[Any], stream: Any) -> None:
        """Start a kernel; arguments as Entry.pack() gives them."""

    def stream(self, priority: int = NORMAL) -> Any:
        """Return a new stream."""

    def event(self) -> Any:
        """Return a new event, which counts as done."""

    def record(self, event: Any, stream: Any) -> None:
        """Let the event be done when all that lies on the stream now is done."""

    def wait(self, stream: Any, event: Any) -> None:
        """Hold what comes on the stream later back until the event is done."""

    def is_done(self, event: Any) -> bool:
        """Say whether the event is done."""

    def begin_capture(self, stream: Any) -> None:
        """Collect what is put on the stream, instead of doing it, until end_capture()."""

    def end_capture(self, stream: Any) -> Any:
        """Return what was collected, as a graph."""

    def replay(self, graph: Any, stream: Any) -> None:
        """Put a whole graph on a stream in one call, with the addresses it was captured with."""


def finish(device: Device, event: Any, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Wait for an event.  Raises DeviceLostError when it is not done in time: the device hangs."""
    end = clock() + timeout_s
    while not device.is_done(event):
        if clock() > end:
            msg = f"{device.name} did not finish within {timeout_s} s"
            raise DeviceLostError(msg)
        time.sleep(_POLL_S)


def run(
    device: Device,
    entry: Entry,
    arguments: Mapping[str, Any],
    *,
    sizes: Mapping[str, int] | None = None,
    threads: int = 0,
    timeout_s: float = 60.0,
) -> None:
    """Run one kernel on host arrays: copy in, launch, copy what it may have changed back.  Allocates.

    arguments: by name; arrays for pointers, None for a null pointer.  sizes: what the launch shape needs
    beyond the scalar arguments.
    """
    stream, event, at = device.stream(), device.event(), {}
    values = dict(arguments)
    for argument in entry.arguments:
        array = arguments[argument.name]
        if argument.is_pointer and array is not None:
            assert array.flags.c_contiguous, argument.name
            at[argument.name] = values[argument.name] = device.alloc(array.nbytes)
            if argument.is_const or argument.is_added_to:
                device.upload(at[argument.name], array, stream)
    try:
        shape = entry.launch({**arguments, **(sizes or {})}, threads)
        device.launch(entry, shape, entry.pack(values), stream)
        for argument in entry.arguments:
            if argument.name in at and not argument.is_const:
                device.download(arguments[argument.name], at[argument.name], stream)
        device.record(event, stream)
        finish(device, event, timeout_s)
    finally:
        for address in at.values():
            device.free(address)


def architecture_for(capability: int) -> int:
    """Return the newest architecture of the list that a device of this compute capability (89 = 8.9) runs.

    Machine code runs on its own major version only, from its minor version on.  Raises DeviceError below 8.0.
    """
    fitting = [a for a in ARCHITECTURES if a // 10 == capability // 10 and a <= capability]
    if fitting:
        return max(fitting)
    if capability < min(ARCHITECTURES):
        msg = f"compute capability {capability / 10} is below {min(ARCHITECTURES) / 10}"
        raise DeviceError(msg)
    return capability  # a major version of its own: NVRTC may know it


def absent() -> str:
    """Return why no GPU can be used here, or nothing."""
    try:
        import cupy  # noqa: PLC0415  (takes up to a second)
    except ImportError as error:
        return f"CuPy is not installed ({error}): pip install contrafusion[gpu]"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no usable driver: {error}"
    return "" if count else "no GPU in this machine"


def open_device(setting: str = "auto") -> tuple[Device | None, str]:
    """Return the device for a setting ("auto", "cpu", "cuda"), and why there is none.

    "auto" without a usable GPU is no device and the reason.  Raises DeviceError where "cuda" cannot be had.
    """
    if setting == "cpu":
        return None, "the CPU was asked for"
    if setting not in {"auto", "cuda"}:
        msg = f"device {setting!r}: auto, cpu or cuda"
        raise DeviceError(msg)
    try:
        return CupyDevice(), ""
    except DeviceError as error:
        if setting == "cuda":
            raise
        return None, str(error)


class CupyDevice:
    """A GPU through CuPy: modules compiled by NVRTC for its architecture, loaded once at start."""

    def __init__(self, index: int = 0) -> None:
        """Open GPU `index` and compile every source.  Raises DeviceError with one line."""
        if reason := absent():
            raise DeviceError(reason)
        import cupy  # noqa: PLC0415

        self._cupy, self._cuda = cupy, cupy.cuda
        self._pool: dict[int, Any] = {}
        self._mapped: list[Any] = []
        self._functions: dict[str, Any] = {}
        self._failures = (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
        self._device = cupy.cuda.Device(index)
        self._device.use()
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        driver = cupy.cuda.runtime.driverGetVersion()
        self._name = f"{properties['name'].decode()}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
        self.capability = int(self._device.compute_capability)
        self._load(architecture_for(self.capability))

    def _load(self, architecture: int) -> None:
        for source in SOURCES:
            try:
                program = compile_source(source, read_source(source), headers(), architecture)
            except NvrtcError as error:
                msg = f"{source}: {str(error).splitlines()[0]}"
                raise DeviceError(msg) from error
            module = self._cuda.function.Module()
            self._guarded(module.load, program.image)
            for entry in ENTRIES.values():
                if entry.source == source:
                    self._functions[entry.name] = self._guarded(module.get_function, entry.name)

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        try:
            return call(*arguments, **more)
        except self._failures as error:
            kind = DeviceLostError if error.status in _STICKY else DeviceError
            msg = f"{self._name}: {error}"
            raise kind(msg) from error

    @property
    def name(self) -> str:
        """Card and driver."""
        return self._name

    def alloc(self, size: int) -> int:
        """Return the address of `size` new bytes."""
        memory = self._guarded(self._cuda.alloc, max(size, 1))
        self._pool[int(memory.ptr)] = memory
        return int(memory.ptr)

    def free(self, address: int) -> None:
        """Give memory of `alloc` back; KeyError for an address that is not."""
        del self._pool[address]

    def mapped(self, size: int) -> NDArray[np.uint8]:
        """Return pinned host memory; with unified addressing the device knows it by the same address."""
        memory = self._guarded(self._cuda.alloc_pinned_memory, size)
        self._mapped.append(memory)
        array: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, size)
        array[:] = 0
        return array

    def upload(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """Copy an array to the device."""
        runtime = self._cuda.runtime
        copy = runtime.memcpyHostToDevice
        self._guarded(runtime.memcpyAsync, target, source.ctypes.data, source.nbytes, copy, stream.ptr)

    def download(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """Copy into an array."""
        runtime = self._cuda.runtime
        copy = runtime.memcpyDeviceToHost
        self._guarded(runtime.memcpyAsync, target.ctypes.data, source, target.nbytes, copy, stream.ptr)

    def launch(self, entry: Entry, shape: Launch, arguments: Sequence[Any], stream: Any) -> None:
        """Start a kernel."""
        function = self._functions[entry.name]
        if shape.shared > _STATIC_SHARED_MAX:
            attribute = self._cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._guarded(self._cuda.driver.funcSetAttribute, function.ptr, attribute, shape.shared)
        grid, block = (*shape.grid, 1), (shape.threads, 1, 1)
        self._guarded(function, grid, block, tuple(arguments), shared_mem=shape.shared, stream=stream)

    def stream(self, priority: int = NORMAL) -> Any:
        """Return a new stream that does not wait for the default one."""
        return self._guarded(self._cuda.Stream, non_blocking=True, priority=priority)

    def event(self) -> Any:
        """Return a new event, which counts as done."""
        return self._guarded(self._cuda.Event, disable_timing=True)

    def record(self, event: Any, stream: Any) -> None:
        """Let the event be done when all that lies on the stream now is done."""
        self._guarded(event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """Hold what comes on the stream later back until the event is done."""
        self._guarded(stream.wait_event, event)

    def is_done(self, event: Any) -> bool:
        """Say whether the event is done; an error of earlier work shows here."""
        try:
            self._cuda.runtime.eventQuery(event.ptr)
        except self._failures as error:
            if error.status == self._cuda.runtime.errorNotReady:
                return False
            msg = f"{self._name}: {error}"
            raise DeviceLostError(msg) from error
        return True

    def begin_capture(self, stream: Any) -> None:
        """Collect what is put on the stream until end_capture()."""
        self._guarded(stream.begin_capture)

    def end_capture(self, stream: Any) -> Any:
        """Return what was collected, as a graph."""
        return self._guarded(stream.end_capture)

    def replay(self, graph: Any, stream: Any) -> None:
        """Put a whole graph on a stream."""
        self._guarded(graph.launch, stream=stream)
