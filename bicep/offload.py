"""Answer jobs in batches on the CPU or a GPU, whichever is quicker; on the CPU when the GPU fails.

A cold agent: its turns take what lies in the ring of jobs, answer it as one batch and publish the
answers.  The GPU has fixed buffers and one graph per batch size (powers of two, filled up with empty jobs),
so a turn is one copy of jobs, one replay and one wait with a deadline.  A hang, an error, or an answer that
is no number where the CPU has one, ends the use of the GPU: the same batch is answered by the CPU in the same
turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.crossover import Backend, Chooser, Costs, measure
from bicep.cuda import ENTRIES
from bicep.cuda.layout import JOB, NEWS_HALF, job_record
from bicep.cuda.model import model_sizes
from bicep.device import HIGH, Device, DeviceError, DeviceLostError, finish
from bicep.jobs import give_answers, peek_jobs, word
from bicep.plan import INFERENCE, NAN_OUTPUT, OK, Plan, infer_batch
from bicep.plan import JOB as PLAN_JOB
from bicep.plan.layout import PLAN

BATCH_MAX: Final = 256
TIMEOUT_S: Final = 0.05
_NOBODY: Final = -1  # expert of an empty job: refused at once


class GpuBatch:
    """Fixed buffers of one model on a device, and the graphs that answer 1, 2, 4, ... batch_max jobs."""

    def __init__(self, device: Device, model: NDArray[np.uint8], batch_max: int = BATCH_MAX) -> None:
        """Copy the model and capture the graphs.  Raises DeviceError."""
        self.device, self.sizes = device, model_sizes(model)
        record = job_record(self.sizes["n_tech"], self.sizes["n_news"], self.sizes["hidden_one"])
        self._stream, self._event = device.stream(HIGH), device.event()
        staged = device.mapped(batch_max * record.size)
        self.jobs: NDArray[Any] = staged.view(record.dtype)
        self.answers: NDArray[Any] = device.mapped(batch_max * INFERENCE.size).view(INFERENCE.dtype)
        at = {
            "model": device.alloc(model.nbytes),
            "jobs": device.alloc(staged.nbytes),
            "answers": device.alloc(self.answers.nbytes),
        }
        device.upload(at["model"], model, self._stream)
        self._graphs: dict[int, Any] = {}
        size = 1
        while size <= batch_max:
            self._graphs[size] = self._capture(at, record.size, size)
            size *= 2
        device.record(self._event, self._stream)
        finish(device, self._event, 60.0)  # the model is there

    def _capture(self, at: dict[str, int], job_size: int, count: int) -> Any:
        entry, device = ENTRIES["expert_batch"], self.device
        values = {**at, "job_size": job_size, "count": count}
        device.begin_capture(self._stream)
        device.upload(at["jobs"], self.jobs[:count], self._stream)
        shape = entry.launch({**values, **self.sizes})
        device.launch(entry, shape, entry.pack(values), self._stream)
        device.download(self.answers[:count], at["answers"], self._stream)
        return device.end_capture(self._stream)

    def answer(self, count: int, timeout_s: float = TIMEOUT_S) -> NDArray[Any]:
        """Answer the first `count` of self.jobs.  Raises DeviceLostError when it fails or takes too long."""
        size = 1 << max(count - 1, 0).bit_length()
        self.jobs["expert"][count:size] = _NOBODY
        try:
            self.device.replay(self._graphs[size], self._stream)
            self.device.record(self._event, self._stream)
            finish(self.device, self._event, timeout_s)
        except DeviceLostError:
            raise
        except DeviceError as error:  # a fault of a kernel leaves nothing behind that could be trusted
            raise DeviceLostError(str(error)) from error
        return self.answers[:count]


class Offload:
    """The agent: `jobs` and `answers` are rings (bicep.jobs); `plan` is the CPU's.

    fault: why the GPU was given up, "" while it is not; the alarm is the caller's.  Counters: answered by
    each back end, answered again by the CPU, changes of back end.
    """

    def __init__(
        self,
        plan: Plan,
        jobs: int,
        answers: int,
        gpu: GpuBatch | None = None,
        *,
        chooser: Chooser | None = None,
        batch_max: int = BATCH_MAX,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan, self.fault = plan, ""
        self.counters = {"cpu": 0, "cuda": 0, "again": 0}
        self.chooser = chooser or Chooser(None)
        self._jobs, self._answers, self._gpu = jobs, answers, gpu
        self._batch_max, self._timeout_s, self._clock = batch_max, timeout_s, clock
        sizes = plan_sizes(plan)
        record = job_record(sizes["n_tech"], sizes["n_news"], sizes["hidden_one"])
        if gpu is not None and gpu.jobs.dtype != record.dtype:
            msg = "the model on the device has other shapes than the plan"
            raise ValueError(msg)
        self._staged = np.zeros(batch_max, record.dtype) if gpu is None else gpu.jobs
        self._questions = np.zeros(batch_max, PLAN_JOB.dtype)
        self._out = np.zeros(batch_max, INFERENCE.dtype)

    @property
    def is_lost(self) -> bool:
        """Whether a GPU was there and was given up."""
        return bool(self.fault)

    def turn(self) -> int:
        """Answer what lies in the ring, at most batch_max jobs; return how many answers were published."""
        staged = self._staged
        count = int(peek_jobs(self._jobs, staged.ctypes.data, self._batch_max))
        if count == 0:
            return 0
        start = self._clock()
        on_gpu = self._gpu is not None and self.chooser.choose(count) is Backend.CUDA
        answers = self._by_gpu(count) if on_gpu else self._by_cpu(count)
        self.counters["cuda" if on_gpu and not self.is_lost else "cpu"] += count
        self.chooser.observe(count, (self._clock() - start) * 1e6)
        return int(give_answers(self._jobs, self._answers, answers.ctypes.data, count))

    def remeasure(self) -> Costs | None:
        """Time both back ends on jobs of zeros, and let the chooser go on with that; a second or so.

        For the start, and for when chooser.is_stale; the plan counts these inferences too.  None without a
        GPU, or when it fails: then it is given up.
        """
        if self._gpu is None:
            return None
        self._staged[:] = np.zeros(1, self._staged.dtype)
        sizes = [n for n in (1, 8, 64, 256) if n <= self._batch_max]
        try:
            costs = measure(lambda n: _drop(self._by_cpu(n)), lambda n: _drop(self._gpu_answers(n)), sizes)
        except DeviceLostError as error:
            self._lose(str(error))
            return None
        self.chooser.renew(costs)
        return costs

    def _gpu_answers(self, count: int) -> NDArray[Any]:
        assert self._gpu is not None
        return self._gpu.answer(count, self._timeout_s)

    def _by_gpu(self, count: int) -> NDArray[Any]:
        try:
            answers = self._gpu_answers(count)
        except DeviceLostError as error:
            return self._instead(count, str(error))
        if not (answers["status"] == NAN_OUTPUT).any():
            return answers
        checked = self._by_cpu(count)
        if ((checked["status"] == OK) & (answers["status"] == NAN_OUTPUT)).any():
            self.counters["again"] += count
            self._lose("an answer of the device is no number, the CPU's is")
            return checked
        return answers

    def _instead(self, count: int, reason: str) -> NDArray[Any]:
        self._lose(reason)
        self.counters["again"] += count
        return self._by_cpu(count)

    def _lose(self, reason: str) -> None:
        """Give the GPU up, and its memory: it may still write there."""
        self.fault, self._gpu = reason, None
        self._staged = self._staged.copy()
        self.chooser.lose()

    def _by_cpu(self, count: int) -> NDArray[Any]:
        staged, questions = self._staged[:count], self._questions[:count]
        stride = staged.dtype.itemsize
        questions["features"] = staged.ctypes.data + JOB.size + stride * np.arange(count)
        for name in ("sequence", "symbol", "expert"):
            questions[name] = staged[name]
        infer_batch(self.plan.state, questions.ctypes.data, count, self._out.ctypes.data)
        return self._out[:count]


def _drop(_answers: Any) -> None:
    """Forget answers that were asked for their time."""


def plan_sizes(plan: Plan) -> dict[str, int]:
    """Return the sizes of a loaded plan, as model_sizes() names them."""
    names = ("n_tech", "n_news", "hidden_one", "hidden_two")
    return {name: int(word(plan.state + getattr(PLAN.at, name))) for name in names}


def ring_record(plan: Plan) -> Any:
    """Return the record that a ring of jobs for this plan holds."""
    sizes = plan_sizes(plan)
    return job_record(sizes["n_tech"], sizes["n_news"], sizes["hidden_one"], NEWS_HALF)
