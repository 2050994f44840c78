"""Questions to an expert as records in a ring, for whoever answers them: a CPU or a GPU.

    strategy agent --JOB--> ring --> offload --INFERENCE--> ring --> strategy agent

A job brings its features and the cached news half of its symbol, read under the seqlock when it is pushed, so
its answer depends on nothing that changes later.  Jobs are given back after their answers are published:
whoever dies in between leaves them in the ring.
"""

from __future__ import annotations

from typing import Final

from bicep.cuda.layout import JOB, NEWS_HALF, NEWS_NONE
from bicep.plan.kernels import mask_row
from bicep.plan.layout import BAD_EXPERT, BAD_SYMBOL, NEWS_BUSY, OK, PLAN, SLOT
from ringbuf.atomics import load_acquire, store_release
from ringbuf.jit import kernel
from ringbuf.memory import clear, copy, load_i64, load_u32, store_i64
from ringbuf.seqlock import read
from ringbuf.spsc import RECORD_SIZE, claim, front_at, pop_many, publish, publish_many, ready, room, slot_at

RING_FULL: Final = 0
_PLAN, _SLOT, _JOB = PLAN.at, SLOT.at, JOB.at
_JOB_SIZE, _SLOT_SIZE = JOB.size, SLOT.size


@kernel
def word(addr: int) -> int:
    """Return a word that another thread, or a device, may be writing."""
    return load_acquire(addr)  # pairs with store_release of whoever wrote it: what came before is visible


@kernel
def set_word(addr: int, value: int) -> None:
    """Set a word that another thread, or a device, reads."""
    store_release(addr, value)  # pairs with load_acquire of whoever reads it


@kernel
def push_job(jobs: int, plan: int, expert: int, features: int, symbol: int, sequence: int) -> int:
    """Push the question that infer(plan, expert, features, symbol, sequence) asks.

    jobs: a ring of job_record() for this plan.  Returns OK, RING_FULL (counted by the ring), BAD_EXPERT,
    BAD_SYMBOL or NEWS_BUSY; nothing is pushed then, and the caller asks the plan itself.
    """
    if expert < 0 or expert >= load_i64(plan + _PLAN.experts):
        return BAD_EXPERT
    if symbol < 0 or symbol >= load_i64(plan + _PLAN.symbols_max):
        return BAD_SYMBOL
    slot = claim(jobs)
    if slot == 0:
        return RING_FULL
    n_tech, units = load_i64(plan + _PLAN.n_tech), load_i64(plan + _PLAN.hidden_one)
    row = load_i64(plan + _PLAN.table) + expert * load_i64(plan + _PLAN.rungs) * _SLOT_SIZE
    index = symbol * load_i64(plan + _PLAN.experts) + load_u32(row + _SLOT.served)
    cell = load_i64(plan + _PLAN.cells) + index * load_i64(plan + _PLAN.cell_size)
    version = read(cell, slot + _JOB_SIZE + 8 * n_tech, 4 * units)
    if version < 0:
        return NEWS_BUSY
    copy(slot + _JOB_SIZE, features, 8 * n_tech)
    clear(slot, _JOB_SIZE)
    store_i64(slot + _JOB.sequence, sequence)
    store_i64(slot + _JOB.symbol, symbol)
    store_i64(slot + _JOB.expert, expert)
    store_i64(slot + _JOB.mask_index, mask_row(symbol, sequence, load_i64(plan + _PLAN.bank_rows)))
    store_i64(slot + _JOB.news_version, version)
    store_i64(slot + _JOB.news, NEWS_HALF if version > 0 else NEWS_NONE)
    publish(jobs)
    return OK


@kernel
def peek_jobs(jobs: int, target: int, limit: int) -> int:
    """Copy the oldest jobs, at most limit, side by side to target, and leave them; return how many."""
    count, size = ready(jobs, limit), load_i64(jobs + RECORD_SIZE)
    for n in range(count):
        copy(target + n * size, front_at(jobs, n), size)
    return count


@kernel
def give_answers(jobs: int, answers: int, source: int, count: int) -> int:
    """Publish answers (INFERENCE records side by side) to the oldest jobs, then give those jobs back.

    Returns how many: fewer than count when the ring of answers is short of room; the rest stay as jobs.
    """
    fit, size = room(answers, count), load_i64(answers + RECORD_SIZE)
    for n in range(fit):
        copy(slot_at(answers, n), source + n * size, size)
    publish_many(answers, fit)
    pop_many(jobs, fit)
    return fit
