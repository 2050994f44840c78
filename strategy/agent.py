"""The strategy agent: market events in, decisions and intents out.

    FILL ring -> holdings          BOOK_EVENT ring -> features -> tag -> expert -> decision -> INTENT ring
                                                                            |
                                     NEWS cell of the symbol                +-> DECISION ring (journal)

Fills are taken first.  Every event updates the features; a new top of book or trading state makes a
decision.  Written by the strategy loop alone; it reads the news cells through their seqlock and puts the
version it read into the decision.  Without a plan ("model off") features and tags run, and a decision is
written when a tag has changed.
"""

from __future__ import annotations

import math
from typing import Any, Final

from bicep.plan import refresh_news
from nimbus.messages import (
    BOOK_EVENT,
    BOOK_HALTED,
    DECISION,
    EXPERT_OFF,
    FILL,
    INTENT,
    NEWS,
    STATE_CHANGED,
    TAG_NAMES,
    TOP_CHANGED,
)
from ringbuf.atomics import load_relaxed
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    load_i64,
    load_u8,
    load_u16,
    prefetch,
    prefetch_write,
    store_f64,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
)
from ringbuf.records import CACHE_LINE
from ringbuf.segment import Segment
from ringbuf.seqlock import cell_size, read
from ringbuf.spsc import claim, create_ring, front, pop, publish, warm_slot
from strategy.ask import answers, ask, warm_asked
from strategy.contradiction import (
    ContradictionEngine,
    forget,
    item_of,
    reason_of,
    tag,
    tag_of,
    warm_engine,
    warm_state,
)
from strategy.features import (
    RUN_BEGAN,
    VECTOR_WRITTEN,
    Features,
    Normalisation,
    digest,
    update,
    vector_at,
    volatility,
    warm_mask,
    warm_row,
)
from strategy.recorder import is_full, write_row
from strategy.state import SCRATCH, SEEN, STRATEGY
from strategy.trading_model import (
    HOLDING,
    TradingModel,
    cancel_overdue,
    deadline,
    decide,
    find_overdue,
    holding,
    on_fill,
    warm_head,
)

JOURNAL_ALL, JOURNAL_ACTIONS = 0, 1
JOURNAL: Final = {"all": JOURNAL_ALL, "actions": JOURNAL_ACTIONS}
NEWS_AGE_NONE: Final = (1 << 32) - 1
FILLS_MAX: Final = 256  # fills taken in one duty cycle

_AT, _EVENT, _DECISION, _NEWS = STRATEGY.at, BOOK_EVENT.at, DECISION.at, NEWS.at
_SCRATCH, _SEEN = SCRATCH.at, SEEN.at
_HEAD_SIZE, _SEEN_SIZE, _DECISION_SIZE, _NEWS_SIZE = STRATEGY.size, SEEN.size, DECISION.size, NEWS.size
_HOLDING_LINES: Final = HOLDING.size // CACHE_LINE
_MAKING: Final = tuple(range(_HEAD_SIZE + _SCRATCH.inference, _HEAD_SIZE + _SCRATCH.news, CACHE_LINE))
_NEWS_CELL: Final = cell_size(NEWS)
_DECIDES = TOP_CHANGED | STATE_CHANGED
_TRADING = ord("T")


@inlined
def _add(addr: int, step: int) -> None:
    store_i64(addr, load_i64(addr) + step)


@inlined
def _read_news(strategy: int, locate: int, news: int) -> int:
    """Copy the head of the symbol's news record to news, and tell the plan of a new one; return its version.

    Without news the record is zeros and the version 0.  A torn read counts and gives the same.
    """
    cells, plan = load_i64(strategy + _AT.news), load_i64(strategy + _AT.plan)
    cell = cells + locate * _NEWS_CELL
    if cells == 0 or load_relaxed(cell) == 0:
        clear(news, CACHE_LINE)
        return 0
    seen = load_i64(strategy + _AT.seen) + locate * _SEEN_SIZE + _SEEN.news_version
    is_new = plan != 0 and load_relaxed(cell) != load_i64(seen)
    version = read(cell, news, _NEWS_SIZE if is_new else CACHE_LINE)
    if version < 0:
        _add(strategy + _AT.news_torn, 1)
        clear(news, CACHE_LINE)
        return 0
    if is_new:
        refresh_news(plan, locate, news + _NEWS.embedding)
        store_i64(seen, version)
    return version


@inlined
def _open_decision(strategy: int, event: int, now_ns: int, locate: int, version: int) -> int:
    """Begin the next DECISION with what was seen, where the journal will find it; return its address.

    Without room in its ring it is made in the scratch area, and lost.
    """
    features, news = load_i64(strategy + _AT.features), strategy + _HEAD_SIZE + _SCRATCH.news
    decision = claim(load_i64(strategy + _AT.decisions))
    if decision == 0:
        decision = strategy + _HEAD_SIZE + _SCRATCH.decision
    engine, number = load_i64(strategy + _AT.engine), load_i64(strategy + _AT.decision) + 1
    store_i64(strategy + _AT.decision, number)
    clear(decision, _DECISION_SIZE)
    store_i64(decision + _DECISION.decision, number)
    store_i64(decision + _DECISION.cause_seq, load_i64(event + _EVENT.seq))
    store_i64(decision + _DECISION.exch_ns, load_i64(event + _EVENT.exch_ns))
    store_i64(decision + _DECISION.now_ns, now_ns)
    store_i64(decision + _DECISION.news_version, version)
    store_i64(decision + _DECISION.news_item, load_i64(news + _NEWS.item_id))
    age_ms, material_ns = NEWS_AGE_NONE, load_i64(news + _NEWS.material_ns)
    if material_ns > 0:
        age_ms = min(max((now_ns - material_ns) // 1_000_000, 0), NEWS_AGE_NONE)
    store_u32(decision + _DECISION.news_age_ms, age_ms)
    store_i64(decision + _DECISION.features_digest, digest(vector_at(features, locate)))
    store_u32(decision + _DECISION.warm, warm_mask(features, locate))
    store_u16(decision + _DECISION.locate, locate)
    store_u8(decision + _DECISION.tag, tag_of(engine, locate))
    store_u8(decision + _DECISION.tag_reason, reason_of(engine, locate))
    store_u8(decision + _DECISION.expert, EXPERT_OFF)
    for field in (_DECISION.mean, _DECISION.epistemic, _DECISION.aleatoric):
        store_f64(decision + field, math.nan)
    return decision


@inlined
def _has_slot(strategy: int, decision: int) -> bool:
    """Say whether a decision stands in its ring."""
    scratch: int = strategy + _HEAD_SIZE + _SCRATCH.decision
    return decision != scratch


@inlined
def _intent_slot(strategy: int, decision: int) -> int:
    """Return where an intent may be written; 0 when it, or the decision behind it, has no room."""
    return claim(load_i64(strategy + _AT.intents)) if _has_slot(strategy, decision) else 0


@inlined
def _close_decision(strategy: int, decision: int, is_worth: bool) -> None:
    """Hand the decision to the journal, then the intent in its slot to the orders agent."""
    acted = load_u8(decision + _DECISION.action) != 0
    if acted or is_worth:
        if _has_slot(strategy, decision):
            publish(load_i64(strategy + _AT.decisions))
        else:
            _add(strategy + _AT.lost, 1)  # acted is 0 here: without room no intent was written
    if acted:
        publish(load_i64(strategy + _AT.intents))
        _add(strategy + _AT.intended, 1)
    _add(strategy + _AT.tags + load_u8(decision + _DECISION.tag) * 8, 1)


@inlined
def _decide(strategy: int, event: int, now_ns: int, locate: int, version: int, tag_changed: bool) -> None:
    """Decide about a symbol whose tag is up to date."""
    is_off = not answers(strategy)
    if is_off and not (tag_changed and load_i64(strategy + _AT.journal_tags) != 0):
        return
    seen = load_i64(strategy + _AT.seen) + locate * _SEEN_SIZE + _SEEN.decided_ns
    exch_ns = load_i64(event + _EVENT.exch_ns)
    if 0 <= exch_ns - load_i64(seen) < load_i64(strategy + _AT.interval_ns) and not tag_changed:
        return
    store_i64(seen, exch_ns)
    decision = _open_decision(strategy, event, now_ns, locate, version)
    store_i64(decision + _DECISION.book_update, load_i64(event + _EVENT.update))
    store_u8(decision + _DECISION.status, load_u8(event + _EVENT.status))
    store_u8(decision + _DECISION.state, load_u8(event + _EVENT.state))
    ask(strategy, event, decision)
    decide(load_i64(strategy + _AT.model), event, decision, now_ns, _intent_slot(strategy, decision))
    _close_decision(strategy, decision, load_i64(strategy + _AT.journal) == JOURNAL_ALL or is_off)


@inlined
def _sweep(strategy: int, event: int, now_ns: int) -> None:
    """Cancel one overdue order, if this event's share of the deadlines holds one."""
    model = load_i64(strategy + _AT.model)
    locate = find_overdue(model, now_ns)
    if locate < 0:
        return
    version = _read_news(strategy, locate, strategy + _HEAD_SIZE + _SCRATCH.news)
    decision = _open_decision(strategy, event, now_ns, locate, version)
    cancel_overdue(model, event, decision, now_ns, _intent_slot(strategy, decision))
    _close_decision(strategy, decision, load_i64(strategy + _AT.journal) == JOURNAL_ALL)


@kernel
def take(strategy: int, event: int, now_ns: int) -> int:
    """Handle one BOOK_EVENT at an address; return 1, or a status below 0 of an event that was refused.

    The recorder, if there is one, has room for a row.
    """
    features, locate = load_i64(strategy + _AT.features), load_u16(event + _EVENT.locate)
    flags = update(features, event)
    if flags < 0:
        return flags
    _sweep(strategy, event, now_ns)
    engine, news = load_i64(strategy + _AT.engine), strategy + _HEAD_SIZE + _SCRATCH.news
    decides = load_u8(event + _EVENT.flags) & _DECIDES != 0
    before, version = tag_of(engine, locate), 0
    if flags & RUN_BEGAN:
        forget(engine, locate)
    verdict = tag_of(engine, locate)
    if decides:
        version = _read_news(strategy, locate, news)
        bid_px, ask_px = load_i64(event + _EVENT.bid_px), load_i64(event + _EVENT.ask_px)
        status, state = load_u8(event + _EVENT.status), load_u8(event + _EVENT.state)
        status |= BOOK_HALTED if state not in (0, _TRADING) else 0
        sigma = volatility(features, locate)
        verdict = tag(engine, locate, news, now_ns, bid_px + ask_px, ask_px - bid_px, sigma, status)
    recorder = load_i64(strategy + _AT.recorder)
    if recorder != 0 and flags & VECTOR_WRITTEN:
        write_row(recorder, features, event, verdict, item_of(engine, locate))
    if decides:
        _decide(strategy, event, now_ns, locate, version, verdict != before)
    return 1


@inlined
def foresee(strategy: int) -> None:
    """Fetch what every decision reads and writes: parameters, inputs and answer, its slots in both rings."""
    warm_engine(load_i64(strategy + _AT.engine))
    warm_head(load_i64(strategy + _AT.model))
    warm_asked(strategy)
    warm_slot(load_i64(strategy + _AT.decisions))
    warm_slot(load_i64(strategy + _AT.intents))
    for offset in _MAKING:
        prefetch_write(strategy + offset)


@inlined
def warm_symbol(strategy: int, locate: int) -> None:
    """Fetch what a decision about a symbol reads: its features, its tag's state, its holding."""
    warm_row(load_i64(strategy + _AT.features), locate)
    warm_state(load_i64(strategy + _AT.engine), locate)
    prefetch(load_i64(strategy + _AT.seen) + locate * _SEEN_SIZE)
    prefetch(deadline(load_i64(strategy + _AT.model), locate))
    row = holding(load_i64(strategy + _AT.model), locate)
    for line in range(_HOLDING_LINES):
        prefetch(row + line * CACHE_LINE)


@kernel
def work(strategy: int, now_ns: int, limit: int) -> int:
    """Run one duty cycle: fills, then up to `limit` events; return how many records were handled.

    Takes no events while a recorder waits to be drained (`NEED_DRAIN` stands in its status).
    """
    fills, events = load_i64(strategy + _AT.fills), load_i64(strategy + _AT.events)
    model, recorder = load_i64(strategy + _AT.model), load_i64(strategy + _AT.recorder)
    filled = handled = 0
    for _ in range(FILLS_MAX):
        fill = front(fills)
        if fill == 0:
            break
        on_fill(model, fill)
        pop(fills)
        filled += 1
    for _ in range(limit):
        if is_full(recorder):
            break
        event = front(events)
        if event == 0:
            break
        take(strategy, event, now_ns)
        pop(events)
        handled += 1
    _add(strategy + _AT.filled, filled)
    _add(strategy + _AT.handled, handled)
    return filled + handled


class Strategy:
    """Own the agent's memory and its two outgoing rings; `addr` goes to `work`.

    events, fills: addresses of the rings of BOOK_EVENT and FILL; news: address of the NEWS cells by
    locate, 0 = none; plan: a plan's state; rule: LinearRule.addr (neither = model off); recorder:
    Recorder.addr, 0 = none.
    journal_decisions: a key of JOURNAL.
    trading, contradiction: keyword parameters of TradingModel and ContradictionEngine.
    """

    def __init__(
        self,
        segment: Segment,
        symbols_max: int,
        *,
        events: int,
        fills: int,
        news: int = 0,
        plan: int = 0,
        rule: int = 0,
        recorder: int = 0,
        intents_capacity: int = 1_024,
        decisions_capacity: int = 4_096,
        interval_ns: int = 0,
        journal_decisions: str = "all",
        journal_tags: bool = True,
        trading: dict[str, float] | None = None,
        contradiction: dict[str, float] | None = None,
    ) -> None:
        self.features = Features(segment, symbols_max, "strategy.features")
        self.normalisation = Normalisation(segment, "strategy.normalisation")
        self.engine = ContradictionEngine(
            segment, symbols_max, "strategy.contradiction", **(contradiction or {})
        )
        self.model = TradingModel(segment, symbols_max, "strategy.trading", **(trading or {}))
        self.intents = create_ring(segment, "strategy.intents", intents_capacity, INTENT)
        self.decisions = create_ring(segment, "strategy.decisions", decisions_capacity, DECISION)
        self.addr = segment.allocate("strategy", STRATEGY.size + SCRATCH.size)
        self.head: Any = segment.words(self.addr, STRATEGY.size // 8).view(STRATEGY.dtype)[0]
        words = {
            "features": self.features.addr, "normalisation": self.normalisation.addr,
            "engine": self.engine.addr, "model": self.model.addr, "plan": plan, "rule": rule, "news": news,
            "recorder": recorder, "events": events, "fills": fills, "intents": self.intents,
            "decisions": self.decisions, "symbols_max": symbols_max, "interval_ns": interval_ns,
            "journal": JOURNAL[journal_decisions], "journal_tags": int(journal_tags),
            "seen": segment.allocate("strategy.seen", symbols_max * SEEN.size),
        }  # fmt: skip
        for key, value in words.items():
            self.head[key] = value

    def counters(self) -> dict[str, int]:
        """Return the agent's counters by name, and its decisions by tag."""
        names = ("handled", "filled", "decision", "intended", "asked", "faults", "lost", "news_torn")
        by_tag = {f"tag_{name}": int(n) for name, n in zip(TAG_NAMES, self.head["tags"], strict=True)}
        return {name: int(self.head[name]) for name in names} | by_tag


assert FILL.size == CACHE_LINE, "a fill is one line: taking FILLS_MAX of them is bounded work"
