"""A change of rung at a definite point: before a decision, never inside one, and in the journal before it.

    control loop, or a recorded journal -> RUNG ring -> plan (set_rung), RUNG record of the strategy stream

The strategy loop looks at one word before it takes events.  A change that names no decision is taken before
the next event.  One that names a decision comes from a journal, and is taken before the same event as then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bicep.masks import SAMPLES
from bicep.plan import ANALYTIC, OK, RUNGS_MAX, set_rung
from bicep.plan.layout import PLAN
from nimbus.journal.log import append, has_free
from nimbus.journal.types import RUNG, RecordType
from ringbuf.atomics import load_relaxed
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, store_i64, store_u8
from ringbuf.spsc import HEAD, TAIL, front, pop
from strategy.state import STRATEGY

if TYPE_CHECKING:
    from daemon.pipeline import Pipeline

CHANGES_MAX: Final = 64  # taken at one point
_R, _S, _PLAN = RUNG.at, STRATEGY.at, PLAN.at
_RUNG_SIZE, _TYPE = RUNG.size, int(RecordType.RUNG)


@inlined
def rung_waits(p: Pipeline) -> bool:
    """Say whether a change waits: one relaxed load of the control loop's word, one of our own."""
    return load_relaxed(p.rungs + TAIL) != load_relaxed(p.rungs + HEAD)


@inlined
def _samples(mode: int) -> int:
    return 0 if mode == ANALYTIC else SAMPLES >> mode


@kernel
def change_rung(p: Pipeline, now_ns: int) -> int:
    """Apply and journal the changes that hold from the event that waits now; return how many.

    None is taken while no event waits, while older decisions wait for room in the journal, or while it has
    none for the change.
    Whoever pushes gives rungs that the plan has; another one is dropped without a trace.
    """
    plan, events, taken = load_i64(p.strategy + _S.plan), load_i64(p.strategy + _S.handled), 0
    if front(load_i64(p.strategy + _S.events)) == 0:
        return 0
    for _ in range(CHANGES_MAX):
        change = front(p.rungs)
        if change == 0 or front(p.decisions) != 0 or not has_free(p.strategy_stream, 1):
            break
        following, wanted = load_i64(p.strategy + _S.decision) + 1, load_i64(change + _R.decision)
        if wanted > following or (wanted != 0 and load_i64(change + _R.events) > events):
            break
        if wanted == 0:
            store_i64(change + _R.now_ns, now_ns)
        old, word = load_relaxed(plan + _PLAN.rung), load_u8(change + _R.word)
        if set_rung(plan, word % RUNGS_MAX, word // RUNGS_MAX) == OK:
            store_i64(change + _R.decision, following)
            store_i64(change + _R.events, events)
            store_u8(change + _R.old_word, old)
            store_u8(change + _R.old_samples, _samples(old // RUNGS_MAX))
            append(p.strategy_stream, _TYPE, change, _RUNG_SIZE, load_i64(change + _R.now_ns))
            taken += 1
        pop(p.rungs)
    return taken
