"""A device whose kernels are PTX run on the CPU, and whose streams are as asynchronous as they may be.

Nothing happens when it is asked for: work waits in its stream until somebody looks at an event, and then the
streams go on in a seeded order that keeps to what streams and events promise, and to nothing else.  So a
missing wait, or an array read before its copy is done, gives a wrong answer here too.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from typing import Any

import numpy as np
from emulator import build

from bicep.cuda import Entry, Launch
from bicep.device import DeviceError, DeviceLostError

BUDGET = 2_000_000_000
FRESH, MAPPED = 1, 2


class Stream:
    """A queue of work."""

    def __init__(self, priority: int) -> None:
        self.priority, self.queue, self.captured = priority, deque(), None


class Event:
    """Done when as many records have passed as were asked for."""

    def __init__(self) -> None:
        self.asked = self.passed = 0


class PtxCpuDevice:
    """The emulated device.

    seed: of the order of streams and of threads (0: in order).  libraries: source -> library instead of its
    own.  lose_after: launches after which the device is lost.  A fault of a kernel is a DeviceError.
    """

    def __init__(
        self, seed: int = 0, *, libraries=None, lose_after=None, budget=BUDGET, load=build.load, runtime=None
    ):
        self.name, self.seed, self.budget = "emulated device (PTX on the CPU)", seed, budget
        self.launches = 0
        self.lost = False
        self._lose_after, self._load = lose_after, load
        self._libraries = dict(libraries or {})
        self._random = random.Random(seed)
        self._streams: list[Stream] = []
        self._memory: dict[int, Any] = {}
        self._lock = threading.RLock()
        self._runtime = runtime or build.runtime()
        self._fresh = FRESH if runtime is None else 0  # sources run directly do not report their stores

    # ---- memory
    def _known(self, array: np.ndarray, flags: int) -> int:
        at = array.ctypes.data
        self._memory[at] = array
        self._tell("allocate", at, array.nbytes, flags)
        return at

    def _tell(self, what: str, *arguments: int) -> int:
        return getattr(self._runtime, f"emulator_{what}")(*arguments)

    def _library(self, source: str) -> ctypes.CDLL:
        if source not in self._libraries:
            self._libraries[source] = self._load(source)
        return self._libraries[source]

    def alloc(self, size: int) -> int:
        self._check()
        raw = np.full(size + 512, 0xFF, np.uint8)
        array = raw[256 - raw.ctypes.data % 256 :][: max(size, 1)]
        return self._known(array, self._fresh)

    def free(self, address: int) -> None:
        del self._memory[address]
        self._tell("release", address)

    def mapped(self, size: int) -> np.ndarray:
        self._check()
        raw = np.zeros(size + 512, np.uint8)
        array = raw[256 - raw.ctypes.data % 256 :][:size]
        self._known(array, MAPPED)
        return array

    # ---- work
    def _check(self) -> None:
        if self.lost:
            msg = "the emulated device is lost"
            raise DeviceLostError(msg)

    def _put(self, stream: Stream, work) -> None:
        self._check()
        with self._lock:
            (stream.queue if stream.captured is None else stream.captured).append(work)

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        def work() -> bool:
            ctypes.memmove(target, source.ctypes.data, source.nbytes)
            self._tell("written", target, source.nbytes)
            return True

        self._put(stream, work)

    def download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        def work() -> bool:
            if count := self._tell("unwritten", source, target.nbytes):
                msg = f"{count} bytes are copied to the host that nobody has written"
                raise DeviceError(msg)
            ctypes.memmove(target.ctypes.data, source, target.nbytes)
            return True

        self._put(stream, work)

    def launch(self, entry: Entry, shape: Launch, arguments: list[Any], stream: Stream) -> None:
        assert len(arguments) == len(entry.arguments)

        def work() -> bool:
            self.launches += 1
            if self._lose_after is not None and self.launches > self._lose_after:
                self.lost = True
            self._check()
            self.run_kernel(entry, shape, arguments)
            return True

        self._put(stream, work)

    def run_kernel(self, entry: Entry, shape: Launch, arguments: list[Any]) -> None:
        """Run a kernel to its end in the calling thread."""
        pairs = list(zip(entry.arguments, arguments, strict=True))
        mutable = {int(v) for a, v in pairs if a.is_pointer and not a.is_const}
        constant = [int(v) for a, v in pairs if a.is_pointer and a.is_const and v and int(v) not in mutable]
        launch = build.Launch(
            *shape.grid, shape.threads, 0, shape.shared, len(constant), self.seed, self.budget
        )
        addresses = (ctypes.c_uint64 * max(len(constant), 1))(*constant)
        launch.constant = ctypes.addressof(addresses)
        values = [np.array(value) for value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        call = getattr(self._library(entry.source), f"run_{entry.name}")
        call.restype = ctypes.c_char_p
        if fault := call(ctypes.byref(launch), pointers):
            msg = f"{entry.name}: {fault.decode()}"
            raise DeviceError(msg)

    # ---- streams, events, graphs
    def stream(self, priority: int = 0) -> Stream:
        self._check()
        self._streams.append(Stream(priority))
        return self._streams[-1]

    def event(self) -> Event:
        return Event()

    def record(self, event: Event, stream: Stream) -> None:
        event.asked += 1

        def work() -> bool:
            event.passed += 1
            return True

        self._put(stream, work)

    def wait(self, stream: Stream, event: Event) -> None:
        wanted = event.asked
        self._put(stream, lambda: event.passed >= wanted)

    def is_done(self, event: Event) -> bool:
        self._check()
        with self._lock:
            while event.passed < event.asked and self._step():
                pass
        return event.passed >= event.asked

    def _step(self) -> bool:
        """Do one piece of work of some stream; False when none can go on."""
        waiting = [s for s in self._streams if s.queue]
        if self.seed:
            self._random.shuffle(waiting)
        for stream in waiting:
            try:
                done = stream.queue[0]()
            except DeviceError:
                for other in self._streams:
                    other.queue.clear()  # as on the device: nothing behind a fault runs
                raise
            if done:
                stream.queue.popleft()
                return True
        return False

    def begin_capture(self, stream: Stream) -> None:
        stream.captured = []

    def end_capture(self, stream: Stream) -> list[Any]:
        graph, stream.captured = stream.captured, None
        return graph

    def replay(self, graph: list[Any], stream: Stream) -> None:
        for work in graph:
            self._put(stream, work)
