"""A random plan, the same model for a device, and rings of jobs between: for checks and measurements."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np

from bicep.cuda.cases import LABEL_SCALE, CheckError
from bicep.cuda.model import encode_model
from bicep.cuda.twins import answer
from bicep.jobs import push_job
from bicep.mailbox import copy_unanswered
from bicep.masks import bank_key
from bicep.offload import ring_record
from bicep.plan import EXPERTS, INFERENCE, OK, Plan, encode, refresh_news
from bicep.probe import random_weights
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring, pop_into, ring_size

TOLERANCE: Final = 1e-5  # of an answer, in labels
SYMBOLS: Final = 8
FEATURES: Final = 64  # different feature vectors


class RingRig:
    """plan, model, and the rings `jobs` and `answers`; no two questions that it pushes are alike."""

    def __init__(self, *, seed: int = 0, capacity: int = 256, hidden: tuple[int, int] = (128, 64)) -> None:
        experts = [random_weights(seed + n, hidden) for n in range(EXPERTS)]
        image = encode(experts, (0, 1, 2), LABEL_SCALE)
        self.plan = Plan.from_image(image, symbols_max=SYMBOLS)
        key = bank_key(0, hashlib.blake2b(image, digest_size=16).hexdigest())  # as Plan.from_image has it
        self.model = encode_model(experts, (0, 1, 2), LABEL_SCALE, key=key)
        self.record = ring_record(self.plan)
        self.segment = Segment.anonymous(2 * ring_size(capacity, self.record))
        self.jobs = create_ring(self.segment, "jobs", capacity, self.record)
        self.answers = create_ring(self.segment, "answers", capacity, INFERENCE)
        self.pushed = 0
        draw = np.random.default_rng(seed).standard_normal
        self.features = np.ascontiguousarray(draw((FEATURES, 32)))
        for symbol in range(1, SYMBOLS):  # symbol 0 has had no news
            news = (draw(768) / 28).astype(np.float32)
            refresh_news(self.plan.state, symbol, news.ctypes.data)

    def push(self, count: int, jobs: int = 0) -> int:
        """Push questions to a ring (its own when 0); return how many it took."""
        taken = 0
        for n in range(self.pushed, self.pushed + count):
            features = self.features[n % FEATURES].ctypes.data
            state = self.plan.state
            taken += push_job(jobs or self.jobs, state, n % EXPERTS, features, n % SYMBOLS, 1_000 + n) == OK
        self.pushed += taken
        return taken

    def asked(self, first: int, count: int, jobs: int = 0) -> Any:
        """Return jobs by their number since the ring began; good until the ring has gone round."""
        staged = np.zeros(count, self.record.dtype)
        found = copy_unanswered(jobs or self.jobs, first, staged.ctypes.data, count)
        return staged[:found]

    def expected(self, jobs: Any) -> Any:
        """Return the twin's answers to jobs."""
        rows = jobs.view(np.uint8).reshape(len(jobs), -1)
        return np.concatenate([answer(self.model, row) for row in rows])

    def popped(self, count: int, answers: int = 0) -> Any:
        """Return what lies in a ring of answers, at most count, and give it back."""
        out = np.zeros(count, INFERENCE.dtype)
        return out[: pop_into(answers or self.answers, out.ctypes.data, count)]


def compare(found: Any, wanted: Any, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference between answers, in labels.  Raises CheckError when it is too large."""
    if len(found) != len(wanted):
        msg = f"{len(found)} answers instead of {len(wanted)}"
        raise CheckError(msg)
    worst = 0.0
    for name in INFERENCE.dtype.names or ():
        unit = LABEL_SCALE ** {"mean": 1, "epistemic": 2, "aleatoric": 2}.get(name, 0)
        ours, theirs = found[name].astype(np.float64) / unit, wanted[name].astype(np.float64) / unit
        error = float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1.0), initial=0.0))
        if not error <= tolerance:
            msg = f"{name} of an answer differs by {error:.3g}"
            raise CheckError(msg)
        worst = max(worst, error)
    return worst
