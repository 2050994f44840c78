"""A kernel that stays on the device and answers jobs from a ring in memory that both sides share.

The strategy's own kernel pushes jobs (bicep.jobs.push_job) and pops INFERENCE records; no Python runs in
between. The host's part is here: start, a look at the heartbeat, a new model, the end, and what to do when
the kernel died.

A kernel that stays blocks calls that wait for the whole device, so memory is reserved before it starts.  It
ends by itself when nothing came for long, and is started again.  When its heartbeat stands still it is given
up: the rings are read no more, since it might wake, and the jobs that it had not answered are handed to the
CPU.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.cuda import ENTRIES
from bicep.cuda.layout import COMMAND_IDLE, MAILBOX, job_record
from bicep.cuda.model import model_sizes
from bicep.device import HIGH, Device, DeviceLostError, finish
from bicep.jobs import set_word, word
from bicep.plan import INFERENCE
from ringbuf import spsc
from ringbuf.atomics import load_acquire
from ringbuf.jit import kernel
from ringbuf.memory import copy, load_i64
from ringbuf.records import Record

CAPACITY: Final = 256
IDLE_LIMIT: Final = 1 << 30  # polls: minutes
TIMEOUT_NS: Final = 5_000_000
_MODELS_MAX: Final = 64
_AT = MAILBOX.at


class State(Enum):
    """What a look at the mailbox found."""

    ALIVE = "alive"  # it polls
    WAITING = "waiting"  # no beat since the last look, which is not long ago
    RESTARTED = "restarted"  # it had ended for want of jobs
    LOST = "lost"  # it stands still


@kernel
def copy_unanswered(jobs: int, first: int, target: int, limit: int) -> int:
    """Copy the jobs from number `first` (counted from the ring's start) on to target; return how many."""
    mask, size = load_i64(jobs + spsc.MASK), load_i64(jobs + spsc.RECORD_SIZE)
    count = min(load_acquire(jobs + spsc.TAIL) - first, limit)  # pairs with publish(): the jobs are visible
    for n in range(count):
        copy(target + n * size, jobs + spsc.HEADER_SIZE + ((first + n) & mask) * size, size)
    return count


def _ring(device: Device, capacity: int, record: Record) -> NDArray[np.uint8]:
    memory = device.mapped(spsc.ring_size(capacity, record))
    words = memory[: spsc.HEADER_SIZE].view(np.int64)
    words[spsc.MASK // 8], words[spsc.RECORD_SIZE // 8] = capacity - 1, record.size
    return memory


class Mailbox:
    """Owner of the persistent kernel, its model and both rings.

    jobs, answers: addresses of the rings.  Written by the strategy agent: jobs' tail, answers' head; by the
    device: the others and its half of MAILBOX; by this class: the host's half.
    """

    def __init__(
        self,
        device: Device,
        model: NDArray[np.uint8],
        *,
        capacity: int = CAPACITY,
        idle_limit: int = IDLE_LIMIT,
        timeout_ns: int = TIMEOUT_NS,
        threads: int = 0,
    ) -> None:
        """Reserve all memory, copy the model.  Raises DeviceError."""
        sizes = model_sizes(model)
        self.record = job_record(sizes["n_tech"], sizes["n_news"], sizes["hidden_one"])
        self._device, self._sizes, self._threads = device, sizes, threads
        self._capacity, self._timeout_ns = capacity, timeout_ns
        self._memory = [
            device.mapped(MAILBOX.size),
            _ring(device, capacity, self.record),
            _ring(device, capacity, INFERENCE),
        ]
        self._box, self.jobs, self.answers = (int(m.ctypes.data) for m in self._memory)
        self._stream, self._copies, self._event = device.stream(HIGH), device.stream(), device.event()
        self._models: list[int] = []
        self._beat, self._beat_ns, self.is_lost = 0, 0, False
        self._store(_AT.idle_limit, idle_limit)
        self.swap(model)

    def _store(self, field: int, value: int) -> None:
        set_word(self._box + field, value)

    def read(self, field: str) -> int:
        """Return a word of the mailbox, as `heartbeat` or `epoch_taken`."""
        return int(word(self._box + getattr(_AT, field)))

    def swap(self, model: NDArray[np.uint8]) -> int:
        """Let the next jobs be answered by another model of the same shapes; return its number.

        The copy is on a stream of its own, beside the running kernel.  Models stay where they are until the
        end: a job may be reading the old one.
        """
        if model_sizes(model) != self._sizes:
            msg = "the new model has other shapes"
            raise ValueError(msg)
        if len(self._models) == _MODELS_MAX:
            msg = f"{_MODELS_MAX} models are on the device: start the mailbox anew"
            raise ValueError(msg)
        at = self._device.alloc(model.nbytes)
        copied = self._device.event()
        self._device.upload(at, model, self._copies)
        self._device.record(copied, self._copies)
        finish(self._device, copied, 60.0)
        self._models.append(at)
        self._store(_AT.model, at)
        self._store(_AT.epoch, len(self._models))  # pairs with load_acquire of the epoch: the model is there
        return len(self._models)

    def start(self, now_ns: int) -> None:
        """Launch the kernel; it answers until stop(), or until nothing came for long."""
        self._store(_AT.stop, 0)
        self._store(_AT.ended, 0)
        entry = ENTRIES["expert_persistent"]
        shape = entry.launch({**self._sizes, "job_size": self.record.size}, self._threads)
        arguments = entry.pack({"box": self._box, "jobs": self.jobs, "answers": self.answers})
        self._device.launch(entry, shape, arguments, self._stream)
        self._device.record(self._event, self._stream)
        self._beat, self._beat_ns = self.read("heartbeat"), now_ns

    def watch(self, now_ns: int) -> State:
        """Look whether the kernel lives; call this more often than timeout_ns."""
        if self.is_lost:
            return State.LOST
        beat = self.read("heartbeat")
        if beat != self._beat:
            self._beat, self._beat_ns = beat, now_ns
            return State.ALIVE
        if self.read("ended") == COMMAND_IDLE:
            self.start(now_ns)
            return State.RESTARTED
        if now_ns - self._beat_ns <= self._timeout_ns:
            return State.WAITING
        self.is_lost = True
        self._store(_AT.stop, 1)  # should it wake, it ends
        return State.LOST

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Tell the kernel to end; return whether it has."""
        self._store(_AT.stop, 1)
        try:
            finish(self._device, self._event, timeout_s)
        except DeviceLostError:
            self.is_lost = True
        return not self.is_lost

    def unanswered(self) -> NDArray[Any]:
        """Return the jobs without an answer, oldest first: what the CPU does once the kernel has ended.

        An answer is published before its job is given back, so the number of answers says where to begin.
        """
        first = int(word(self.answers + spsc.TAIL))
        target = np.zeros(self._capacity, self.record.dtype)
        count = int(copy_unanswered(self.jobs, first, target.ctypes.data, self._capacity))
        return target[:count]
