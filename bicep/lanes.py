"""CPU lanes: a fixed set of pinned threads that run kernels without the GIL.

A task waits until all it depends on is done, then in one queue ordered by urgency, then by age.  With more
than one lane the first is kept for what is short (copies and reductions), so that none of it queues behind
long computations.  Nothing is created after start but the tasks themselves.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final

from ringbuf.affinity import name_thread, pin_thread

JOIN_S: Final = 60.0


class Kind(Enum):
    """What a task does, the most urgent first: the value orders the queue."""

    REDUCE = 0
    COPY = 1
    COMPUTE = 2


class TaskError(Exception):
    """A task failed, or one that it depends on; the cause is chained."""


class Task:
    """One piece of work, and its result once it is done; written by the lane that runs it."""

    def __init__(self, name: str, kind: Kind, body: Callable[[], Any], after: Iterable[Task]) -> None:
        self.name, self.kind, self.body, self.after = name, kind, body, tuple(after)
        self.value: Any = None
        self.error: BaseException | None = None
        self.blocked = 0  # tasks before it that are not done; under the lock of the lanes
        self.dependents: list[Task] = []
        self.finished = threading.Event()

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.finished.is_set()

    def result(self, timeout_s: float = JOIN_S) -> Any:
        """Wait for the end and return what the body returned.  Raises TaskError, or TimeoutError."""
        if not self.finished.wait(timeout_s):
            msg = f"task {self.name!r} did not end within {timeout_s} s"
            raise TimeoutError(msg)
        if self.error is not None:
            msg = f"task {self.name!r}: {self.error}"
            raise TaskError(msg) from self.error
        return self.value


class Lanes:
    """The threads and their queue.

    cores: one lane each, pinned; None = a lane that the system places.  Raises ValueError when a core is
    missing.
    """

    def __init__(self, cores: Sequence[int | None] = (None,), *, reserve: bool = True) -> None:
        if not cores:
            msg = "at least one lane is needed"
            raise ValueError(msg)
        self._condition = threading.Condition()
        self._queue: list[tuple[int, int, Task]] = []
        self._numbers = itertools.count()
        self._closing = False
        self._starting: list[BaseException | None] = []
        self._reserved = reserve and len(cores) > 1
        self._threads = [
            threading.Thread(target=self._main, args=(n, core), name=f"lane{n}", daemon=True)
            for n, core in enumerate(cores)
        ]
        for thread in self._threads:
            thread.start()
        with self._condition:
            self._condition.wait_for(lambda: len(self._starting) == len(cores))
        if failed := next((error for error in self._starting if error is not None), None):
            self.close()
            raise failed

    def submit(
        self,
        body: Callable[[], Any],
        kind: Kind = Kind.COMPUTE,
        after: Iterable[Task] = (),
        name: str = "task",
    ) -> Task:
        """Queue a task that may start once all of `after` is done; if one of them fails, it fails too."""
        task = Task(name, kind, body, after)
        with self._condition:
            if self._closing:
                msg = "the lanes are closed"
                raise RuntimeError(msg)
            for before in task.after:
                if not before.is_done:
                    before.dependents.append(task)
                    task.blocked += 1
            if task.blocked == 0:
                self._push(task)
        return task

    def close(self) -> None:
        """Run what is queued, then end the threads."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _push(self, task: Task) -> None:
        heapq.heappush(self._queue, (task.kind.value, next(self._numbers), task))
        self._condition.notify_all()

    def _take(self, lane: int) -> Task | None:
        """Wait for a task that this lane may run; None at the end."""

        def fits() -> bool:
            only_short = self._reserved and lane == 0
            return bool(self._queue) and not (only_short and self._queue[0][0] == Kind.COMPUTE.value)

        with self._condition:
            self._condition.wait_for(lambda: fits() or (self._closing and not self._queue))
            return heapq.heappop(self._queue)[2] if fits() else None

    def _main(self, lane: int, core: int | None) -> None:
        error: BaseException | None = None
        try:
            if core is not None:
                pin_thread(core)
            name_thread(f"lane{lane}")
        except ValueError as refused:
            error = refused
        with self._condition:
            self._starting.append(error)
            self._condition.notify_all()
        while error is None and (task := self._take(lane)) is not None:
            self._run(task)

    def _run(self, task: Task) -> None:
        failed = next((before for before in task.after if before.error is not None), None)
        try:
            if failed is not None:
                msg = f"{failed.name!r} failed before it"
                raise TaskError(msg) from failed.error  # noqa: TRY301  (ends like any other failure)
            task.value = task.body()
        except BaseException as error:  # noqa: BLE001  (a lane outlives its tasks; result() raises it)
            task.error = error
        with self._condition:
            task.finished.set()
            for dependent in task.dependents:
                dependent.blocked -= 1
                if dependent.blocked == 0:
                    self._push(dependent)
            self._condition.notify_all()
