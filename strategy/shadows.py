"""Inputs of decisions for shadow evaluations: one inference in N hands its inputs to the control loop.

The strategy loop writes a SHADOW into a ring and goes on; a full ring refuses and counts.  Nothing of it
enters a decision.  The control loop evaluates the same inputs again, off the hot path.
"""

from __future__ import annotations

from typing import Final

from nimbus.messages import DECISION
from ringbuf.jit import inlined
from ringbuf.memory import copy, load_i64, load_u8, load_u16, store_f64, store_i64, store_u8, store_u16
from ringbuf.records import record
from ringbuf.segment import Segment
from ringbuf.spsc import RingView, claim, create_ring, publish
from strategy.features import COLUMNS, volatility

CAPACITY: Final = 64

SHADOW = record(
    "SHADOW",
    f"""
    {COLUMNS}f8 inputs   normalised features
    i8  sequence      market sequence number: with the locate it picks the masks
    i8  decision      decision number
    i8  news_version  version of the cached news half
    f8  volatility    of the symbol, return per square root of a second; NaN until warm
    u2  locate        stock locate
    u1  tag           expert that was asked for
    u1  word          rung and mode that answered
    28u1 pad          zero
    """,
)
SAMPLER = record(
    "SAMPLER",
    """
    i8  ring     ring of SHADOW, out
    i8  every    one inference in so many
    i8  left     until the next one
    5i8 pad      zero
    """,
)
_S, _D, _SHADOW = SAMPLER.at, DECISION.at, SHADOW.at
_INPUTS_SIZE: Final = COLUMNS * 8


@inlined
def sample(sampler: int, features: int, inputs: int, sequence: int, news_version: int, decision: int) -> None:
    """Hand on the inputs of an answered inference when it is the one in N; sampler: address, 0 = none."""
    if sampler == 0:
        return
    left = load_i64(sampler + _S.left) - 1
    if left > 0:
        store_i64(sampler + _S.left, left)
        return
    store_i64(sampler + _S.left, load_i64(sampler + _S.every))
    ring = load_i64(sampler + _S.ring)
    slot = claim(ring)
    if slot == 0:
        return
    locate = load_u16(decision + _D.locate)
    copy(slot + _SHADOW.inputs, inputs, _INPUTS_SIZE)
    store_i64(slot + _SHADOW.sequence, sequence)
    store_i64(slot + _SHADOW.decision, load_i64(decision + _D.decision))
    store_i64(slot + _SHADOW.news_version, news_version)
    store_f64(slot + _SHADOW.volatility, volatility(features, locate))
    store_u16(slot + _SHADOW.locate, locate)
    store_u8(slot + _SHADOW.tag, load_u8(decision + _D.tag))
    store_u8(slot + _SHADOW.word, load_u8(decision + _D.rung))
    publish(ring)


class Sampler:
    """Own the ring and the counter; `addr` goes to the strategy agent, `ring` to the control loop."""

    def __init__(
        self, segment: Segment, every: int, capacity: int = CAPACITY, name: str = "strategy.shadows"
    ) -> None:
        self.ring = create_ring(segment, name, capacity, SHADOW)
        self.view = RingView(segment, name)
        self.addr = segment.allocate(f"{name}.sampler", SAMPLER.size)
        row = segment.array(f"{name}.sampler", SAMPLER)[0]
        row["ring"], row["every"], row["left"] = self.ring, every, every
