"""A strategy agent with its rings and a plan of stub experts, for the tests of it."""

import math

import numpy as np

from bicep.plan import Plan, Weights, encode
from nimbus.messages import (
    BOOK_EVENT,
    DECISION,
    FILL,
    INTENT,
    NEWS,
    TOP_CHANGED,
)
from ringbuf.jit import kernel
from ringbuf.segment import Segment
from ringbuf.seqlock import VALUE_AT, begin_write, cell_size, create_cells, end_write
from ringbuf.spsc import create_ring, front, pop, try_push, used
from strategy.agent import Strategy, work
from strategy.recorder import Recorder

S = 1_000_000_000
EPOCH = 1_700_000_000 * S
SYMBOLS = 16
LEAN = (0.0, -0.02, 0.02)  # what the stub experts expect, by tag


@kernel
def push(ring: int, source: int) -> bool:
    return try_push(ring, source)


@kernel
def oldest(ring: int) -> int:
    return front(ring)


@kernel
def drop(ring: int) -> None:
    pop(ring)


@kernel
def length(ring: int) -> int:
    return used(ring)


@kernel
def open_cell(cell: int) -> int:
    return begin_write(cell)


@kernel
def close_cell(cell: int) -> None:
    end_write(cell)


def lean_plan(segment):
    """Build a plan whose experts answer LEAN whatever they see, with little doubt."""
    experts = []
    for lean in LEAN:
        zeros = [np.zeros(shape, np.float32) for shape in ((8, 32), (8, 768), 8, (8, 8), 8, 8, 8)]
        experts.append(Weights(*zeros, np.array([lean, math.log(1e-4)], np.float32)))
    return Plan.from_image(encode(experts, [0, 1, 2], 1.0), segment, SYMBOLS)


class Rig:
    """An agent with its rings; times in seconds since EPOCH, one event per duty cycle."""

    def __init__(self, *, plan=True, rows=0, **options):
        self.segment = Segment.anonymous(1 << 24)
        self.events = create_ring(self.segment, "events", 64, BOOK_EVENT)
        self.fills = create_ring(self.segment, "fills", 64, FILL)
        self.news = create_cells(self.segment, "news", SYMBOLS, NEWS)
        self.plan = lean_plan(self.segment)
        self.recorder = Recorder(self.segment, rows) if rows else None
        options = {
            "contradiction": {"history_min": 1, "dwell_ns": 0},
            "trading": {"stop": 0.0, "target": 0.0, "trailing": 0.0, "order_qty_max": 100},
        } | options  # fmt: skip
        self.strategy = Strategy(
            self.segment,
            SYMBOLS,
            events=self.events,
            fills=self.fills,
            news=self.news,
            plan=self.plan.state if plan else 0,
            recorder=self.recorder.addr if self.recorder else 0,
            **options,
        )
        self.at = {r.name: self.segment.allocate(r.name, r.size) for r in (BOOK_EVENT, FILL)}
        self.seq = 0

    def event(self, t, bid=1_000_000, *, locate=5, flags=TOP_CHANGED, **more):
        """Push a market event at t."""
        self.seq += 1
        row = self.segment.array("BOOK_EVENT", BOOK_EVENT)
        row.view(np.uint8)[:] = 0
        for key, value in (
            {
                "seq": self.seq, "exch_ns": 34_200 * S + round(t * S), "recv_ns": EPOCH + round(t * S),
                "update": self.seq, "bid_px": bid, "ask_px": bid + 100, "bid_qty": 300, "ask_qty": 200,
                "bid_depth_qty": 900, "ask_depth_qty": 800, "locate": locate, "cause": ord("A"),
                "flags": flags, "state": ord("T"),
            }
            | more
        ).items():  # fmt: skip
            row[key] = value
        return push(self.events, self.at["BOOK_EVENT"])

    def step(self, t, bid=1_000_000, **more):
        """Push one event and run one duty cycle; return the decision, or None."""
        self.event(t, bid, **more)
        self.work(t)
        decisions = self.take(self.strategy.decisions, DECISION)
        return decisions[-1] if decisions else None

    def work(self, t, limit=256):
        """Run one duty cycle at t."""
        return work(self.strategy.addr, EPOCH + round(t * S), limit)

    def fill(self, t, kind, decision, **more):
        """Push a report of the orders agent."""
        row = self.segment.array("FILL", FILL)
        row.view(np.uint8)[:] = 0
        fields = {"kind": kind, "decision": decision, "order": 70 + decision, "locate": 5} | more
        for key, value in (fields | {"now_ns": EPOCH + round(t * S)}).items():
            row[key] = value
        push(self.fills, self.at["FILL"])

    def publish(self, t, score, item, locate=5):
        """Write a news cell as the news agent would."""
        cell = self.news + locate * cell_size(NEWS)
        value = open_cell(cell)
        assert value == cell + VALUE_AT
        words = self.segment.words(value, NEWS.size // 8)
        row = words.view(NEWS.dtype)[0]
        row["received_ns"] = row["material_ns"] = EPOCH + round(t * S)
        row["item_id"], row["score"], row["deviation"], row["half_life_ns"] = item, score, 1.0, 1800 * S
        row["embedding"] = score
        close_cell(cell)

    def take(self, ring, record):
        """Return copies of all records of a ring and empty it."""
        found = []
        while length(ring):
            words = self.segment.words(oldest(ring), record.size // 8)
            found.append(words.copy().view(record.dtype)[0])
            drop(ring)
        return found

    def intents(self):
        """Return and remove what was pushed to the orders agent."""
        return self.take(self.strategy.intents, INTENT)

    def warm(self, t_end=70):
        """Run a quiet market until volatility is warm; return nothing."""
        for n in range(t_end):
            self.step(n * 1.0)
        self.intents()
