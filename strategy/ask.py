"""Asking for an expected return: the plan of the tag's expert, or the linear rule where there is no plan.

Both see the same normalised features and fill the same fields of the decision.  A plan that refuses to answer
leaves them unset and is noted as a fault, on which no entry is made.
"""

from __future__ import annotations

from typing import Final

from bicep.plan import INFERENCE, infer
from bicep.plan import OK as ANSWERED
from nimbus.messages import BOOK_EVENT, DECISION, EXPERT_FAULT
from ringbuf.clock import now_ns as clock_ns
from ringbuf.histogram import record_value
from ringbuf.jit import inlined
from ringbuf.memory import (
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    prefetch,
    store_f64,
    store_i64,
    store_u8,
    store_u16,
)
from ringbuf.records import CACHE_LINE
from strategy.features import NORMALISATION, normalise, vector_at
from strategy.rule import LINEAR, linear_answer
from strategy.shadows import sample
from strategy.state import SCRATCH, STRATEGY

SAMPLES: Final = 32  # what DECISION.agree counts

_AT, _EVENT, _DECISION, _LINEAR = STRATEGY.at, BOOK_EVENT.at, DECISION.at, LINEAR.at
_INFERENCE, _SCRATCH = INFERENCE.at, SCRATCH.at
_HEAD_SIZE, _LINEAR_SIZE, _NORMALISATION_SIZE = STRATEGY.size, LINEAR.size, NORMALISATION.size


@inlined
def _count(addr: int) -> None:
    store_i64(addr, load_i64(addr) + 1)


@inlined
def _ask_plan(strategy: int, event: int, decision: int, inputs: int) -> None:
    """Run the tag's expert and note its answer in the decision."""
    plan, answer = load_i64(strategy + _AT.plan), strategy + _HEAD_SIZE + _SCRATCH.inference
    locate, expert = load_u16(decision + _DECISION.locate), load_u8(decision + _DECISION.tag)
    clock = load_i64(strategy + _AT.clock)
    started_ns = clock_ns(clock) if clock != 0 else 0
    status = infer(plan, expert, inputs, locate, load_i64(event + _EVENT.seq), answer)
    if clock != 0:
        record_value(load_i64(strategy + _AT.inference_ns), clock_ns(clock) - started_ns)
    if status != ANSWERED:
        _count(strategy + _AT.faults)
        store_u8(decision + _DECISION.expert, EXPERT_FAULT)
        store_u8(decision + _DECISION.rung, -status)
        return
    store_u8(decision + _DECISION.expert, load_u8(answer + _INFERENCE.served))
    store_u8(decision + _DECISION.agree, load_i64(answer + _INFERENCE.agree))
    store_u8(decision + _DECISION.rung, load_u16(answer + _INFERENCE.rung))
    store_u16(decision + _DECISION.mask_index, load_i64(answer + _INFERENCE.mask_index))
    store_u16(decision + _DECISION.bank, load_u32(answer + _INFERENCE.bank))
    store_f64(decision + _DECISION.mean, load_f64(answer + _INFERENCE.mean))
    store_f64(decision + _DECISION.epistemic, load_f64(answer + _INFERENCE.epistemic))
    store_f64(decision + _DECISION.aleatoric, load_f64(answer + _INFERENCE.aleatoric))
    sample(
        load_i64(strategy + _AT.sampler),
        load_i64(strategy + _AT.features),
        inputs,
        load_i64(event + _EVENT.seq),
        load_i64(answer + _INFERENCE.news_version),
        decision,
    )


@inlined
def _ask_rule(strategy: int, decision: int, inputs: int) -> None:
    """Let the linear rule answer: one answer that all samples would give."""
    rule = load_i64(strategy + _AT.rule)
    store_u8(decision + _DECISION.expert, load_u8(decision + _DECISION.tag))
    store_u8(decision + _DECISION.agree, SAMPLES)
    store_f64(decision + _DECISION.mean, linear_answer(rule, inputs))
    store_f64(decision + _DECISION.epistemic, 0.0)
    store_f64(decision + _DECISION.aleatoric, load_f64(rule + _LINEAR.variance))


@inlined
def answers(strategy: int) -> bool:
    """Say whether anything can be asked: a plan or a rule."""
    return load_i64(strategy + _AT.plan) != 0 or load_i64(strategy + _AT.rule) != 0


@inlined
def warm_asked(strategy: int) -> None:
    """Fetch what comes between a vector and its answer: means and deviations, and the linear rule."""
    for offset in range(0, _NORMALISATION_SIZE, CACHE_LINE):
        prefetch(load_i64(strategy + _AT.normalisation) + offset)
    if load_i64(strategy + _AT.rule) != 0:
        for offset in range(0, _LINEAR_SIZE, CACHE_LINE):
            prefetch(load_i64(strategy + _AT.rule) + offset)


@inlined
def ask(strategy: int, event: int, decision: int) -> None:
    """Fill the decision with the answer of the plan or the rule; with neither leave it as it is."""
    if not answers(strategy):
        return
    inputs = strategy + _HEAD_SIZE + _SCRATCH.inputs
    vector = vector_at(load_i64(strategy + _AT.features), load_u16(decision + _DECISION.locate))
    normalise(vector, load_i64(strategy + _AT.normalisation), inputs)
    _count(strategy + _AT.asked)
    if load_i64(strategy + _AT.plan) != 0:
        _ask_plan(strategy, event, decision, inputs)
    else:
        _ask_rule(strategy, decision, inputs)
