"""One way to run work in parallel, on a GPU's streams or on CPU lanes.

    scheduler.submit(work, Kind.COMPUTE, after=[copied], asset="AAPL") -> task
    scheduler.map(works) -> tasks            scheduler.join(tasks) -> results

Streams: several for computation, one each way for copies, one of high priority for reductions, so that a
short task never queues behind a long one.  Work of one asset stays on one stream and thus in order; assets
take the streams in turn.  Tasks that depend on each other across streams are tied by events, which nobody
above sees.

Every piece of work has a CPU body.  When the device is lost, what had not come back from it runs again on the
lanes, in the order of submission, and so does all that comes later: no task is lost.  A body must therefore
be one that may run twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bicep.device import HIGH, NORMAL, Device, DeviceLostError, finish
from bicep.lanes import JOIN_S, Kind, Lanes, Task

COMPUTE_STREAMS: Final = 4
OPEN_TASKS_MAX: Final = 65_536  # tasks whose end nobody has asked for


@dataclass(slots=True, frozen=True)
class Work:
    """What a task does.

    cpu: does it in a lane and returns the result.  device: puts it on a stream and returns the result, which
    holds once the task is done; None = on the CPU always.
    """

    cpu: Callable[[], Any]
    device: Callable[[Device, Any], Any] | None = None
    name: str = "work"


@dataclass(slots=True)
class Placed:
    """A task as the scheduler keeps it: on a stream with an event, or in a lane."""

    work: Work
    kind: Kind
    after: tuple[Placed, ...]
    stream: Any = None
    event: Any = None
    value: Any = None
    lane: Task | None = None
    came_back: bool = False  # from the device

    @property
    def on_device(self) -> bool:
        """Whether its result is the device's to give."""
        return self.lane is None


class Scheduler:
    """Streams of a device with CPU lanes behind them, or lanes alone."""

    def __init__(
        self,
        device: Device | None = None,
        cores: Sequence[int | None] = (None,),
        *,
        compute_streams: int = COMPUTE_STREAMS,
        timeout_s: float = 1.0,
    ) -> None:
        self.lanes = Lanes(cores)
        self.fault = ""  # why the device is no longer used
        self._device, self._timeout_s = device, timeout_s
        self._open: list[Placed] = []
        self._of_asset: dict[Hashable, int] = {}
        self._turns = itertools.count()
        self._streams: dict[Kind, list[Any]] = {}
        if device is not None:
            self._streams = {
                Kind.COMPUTE: [device.stream(NORMAL) for _ in range(compute_streams)],
                Kind.COPY: [device.stream(NORMAL) for _ in range(2)],
                Kind.REDUCE: [device.stream(HIGH)],
            }

    @property
    def device(self) -> Device | None:
        """The device in use, or None."""
        return self._device

    def submit(
        self,
        work: Work,
        kind: Kind = Kind.COMPUTE,
        *,
        after: Iterable[Placed] = (),
        asset: Hashable = None,
        stream: int | None = None,
    ) -> Placed:
        """Start a piece of work once all of `after` is done.

        asset: work of one asset keeps its order.  stream: number within the kind, instead.
        """
        if len(self._open) >= OPEN_TASKS_MAX:
            self._open = [task for task in self._open if not self._is_done(task)]
            if len(self._open) >= OPEN_TASKS_MAX:
                msg = f"{OPEN_TASKS_MAX} tasks are open: join some"
                raise RuntimeError(msg)
        task = Placed(work, kind, tuple(after))
        self._open.append(task)
        if self._device is None or work.device is None:
            self._to_lane(task)
            return task
        try:
            self._to_stream(task, self._device, self._pick(kind, asset, stream))
        except DeviceLostError as error:
            self._fall_back(error)
        return task

    def map(self, works: Iterable[Work], kind: Kind = Kind.COMPUTE) -> list[Placed]:
        """Start independent pieces of work, each as an asset of its own."""
        return [self.submit(work, kind, asset=("map", n)) for n, work in enumerate(works)]

    def join(self, tasks: Iterable[Placed] | None = None) -> list[Any]:
        """Wait for tasks (all that are open when None); return their results in order.

        Raises TaskError for the first that failed in a lane; device errors other than a loss as they are.
        """
        wanted = list(self._open if tasks is None else tasks)
        results = [self._result(task) for task in wanted]
        joined = {id(task) for task in wanted}
        self._open = [task for task in self._open if id(task) not in joined]
        return results

    def close(self) -> None:
        """End the lanes; what the streams hold is not waited for."""
        self.lanes.close()

    # ---- streams
    def _pick(self, kind: Kind, asset: Hashable, stream: int | None) -> Any:
        streams = self._streams[kind]
        if stream is None:
            stream = (
                next(self._turns) if asset is None else self._of_asset.setdefault(asset, len(self._of_asset))
            )
        return streams[stream % len(streams)]

    def _to_stream(self, task: Placed, device: Device, stream: Any) -> None:
        for before in task.after:
            if not before.on_device:
                self._lane_result(before)  # the device cannot wait for a lane
            elif before.stream is not stream:
                device.wait(stream, before.event)
        task.stream, task.event = stream, device.event()
        assert task.work.device is not None
        task.value = task.work.device(device, stream)
        device.record(task.event, stream)

    # ---- lanes
    def _to_lane(self, task: Placed) -> None:
        for before in task.after:
            if before.on_device:
                self._result(before)  # a lane cannot wait for the device
        lanes = [before.lane for before in task.after if before.lane is not None]
        task.lane = self.lanes.submit(task.work.cpu, task.kind, lanes, task.work.name)

    @staticmethod
    def _lane_result(task: Placed) -> Any:
        assert task.lane is not None
        return task.lane.result(JOIN_S)

    # ---- ends
    def _is_done(self, task: Placed) -> bool:
        if task.lane is not None:
            return task.lane.is_done
        if not task.came_back and self._device is not None:
            task.came_back = self._device.is_done(task.event)
        return task.came_back

    def _result(self, task: Placed) -> Any:
        if task.on_device and not task.came_back and self._device is not None:
            try:
                finish(self._device, task.event, self._timeout_s)
                task.came_back = True
            except DeviceLostError as error:
                self._fall_back(error)
        return task.value if task.on_device else self._lane_result(task)

    def _fall_back(self, error: DeviceLostError) -> None:
        """Give the device up and run on the lanes what has not come back."""
        self.fault, self._device = str(error), None
        for task in self._open:
            if task.on_device and not task.came_back:
                self._rerun(task)

    def _rerun(self, task: Placed) -> None:
        for before in task.after:  # it may have been joined, or dropped, without coming back
            if before.on_device and not before.came_back:
                self._rerun(before)
        if task.lane is None:
            self._to_lane(task)
