"""A device that does nothing but keep time: what would have run when, by streams, events and priorities."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from bicep.device import DeviceLostError

COMPUTE, COPY = "compute", "copy"


@dataclass
class Span:
    """One piece of work on the time line."""

    name: str
    start: float
    end: float
    stream: Any


class Stream:
    def __init__(self, number: int, priority: int) -> None:
        self.number, self.priority, self.queue, self.busy_until = number, priority, deque(), 0.0


class Event:
    def __init__(self) -> None:
        self.asked = self.passed = 0


class FakeDevice:
    """Runs so many kernels and copies at once; of what could start the most urgent stream goes first.

    lose_at: time at which it answers no more.
    """

    name = "time line"

    def __init__(self, kernels: int = 2, copies: int = 2, lose_at: float | None = None) -> None:
        self.spans: list[Span] = []
        self.now, self.lost, self._lose_at = 0.0, False, lose_at
        self._slots = {COMPUTE: kernels, COPY: copies}
        self._running: list[tuple[Span, str]] = []
        self._streams: list[Stream] = []

    # ---- what the tests put on streams
    def put(self, stream: Stream, name: str, duration: float, resource: str = COMPUTE) -> None:
        self._check()
        stream.queue.append(("work", name, duration, resource))

    def span(self, name: str) -> Span:
        return next(span for span in self.spans if span.name == name)

    # ---- the protocol
    def alloc(self, size: int) -> int:
        return size

    def free(self, address: int) -> None:
        del address

    def mapped(self, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        self.put(stream, f"upload {target}", source.nbytes, COPY)

    def download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        self.put(stream, f"download {source}", target.nbytes, COPY)

    def launch(self, entry: Any, shape: Any, arguments: Any, stream: Stream) -> None:
        self.put(stream, f"{entry.name} {len(arguments)}", float(shape.grid[0]))

    def stream(self, priority: int = 0) -> Stream:
        self._streams.append(Stream(len(self._streams), priority))
        return self._streams[-1]

    def event(self) -> Event:
        return Event()

    def record(self, event: Event, stream: Stream) -> None:
        self._check()
        event.asked += 1
        stream.queue.append(("record", event))

    def wait(self, stream: Stream, event: Event) -> None:
        self._check()
        stream.queue.append(("wait", event, event.asked))

    def is_done(self, event: Event) -> bool:
        while event.passed < event.asked:
            self._check()
            if not self._advance():
                return False
        self._check()
        return True

    def begin_capture(self, stream: Stream) -> None:
        raise NotImplementedError

    def end_capture(self, stream: Stream) -> Any:
        raise NotImplementedError

    def replay(self, graph: Any, stream: Stream) -> None:
        raise NotImplementedError

    # ---- time
    def _check(self) -> None:
        if self._lose_at is not None and self.now >= self._lose_at:
            self.lost = True
        if self.lost:
            msg = "the time line is cut"
            raise DeviceLostError(msg)

    def _start_what_can(self) -> bool:
        """Pass events and start work; False when nothing moved."""
        for stream in sorted(self._streams, key=lambda s: (s.priority, s.number)):
            if not stream.queue or any(span.stream is stream for span, _ in self._running):
                continue
            kind, *rest = stream.queue[0]
            if kind == "wait" and rest[0].passed < rest[1]:
                continue
            if kind == "work":
                name, duration, resource = rest
                if sum(r == resource for _, r in self._running) >= self._slots[resource]:
                    continue
                span = Span(name, self.now, self.now + duration, stream)
                self.spans.append(span)
                self._running.append((span, resource))
            elif kind == "record":
                rest[0].passed += 1
            stream.queue.popleft()
            return True
        return False

    def _advance(self) -> bool:
        while self._start_what_can():
            pass
        if not self._running:
            return False
        ended = min(self._running, key=lambda pair: pair[0].end)
        self.now = ended[0].end
        self._running.remove(ended)
        while self._start_what_can():
            pass
        return True
