"""The graph: every agent and every ring on one screen.

    1. source    capture or wire  -> PACKET
    2. market    PACKET           -> books, tops, CHANGE, BOOK_EVENT
    3. venue     WIRE out -> WIRE in   the socket (transport), or the paper exchange that stands in its place
    4. news      schedule         -> NEWS cells
    5. strategy  BOOK_EVENT, FILL, NEWS, RUNG -> INTENT, DECISION
    6. orders    INTENT -> WIRE out;  WIRE in -> positions, FILL
    7. journal   DECISION, orders -> rings -> segments on disk   (cold: see replay.py and live.py)

`run_inline` is the placement `inline`: one thread, a fixed order of calls for each message, the packet's time
as the clock.  It returns to Python only for more input, for a drain of the journal, or at the stop word.
The placements `compact` and `dedicated` run the same steps by the machine's clock: see loops.py.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Final

from daemon.rung_change import change_rung, rung_waits
from nimbus.book.publish import publish_depth
from nimbus.feed.capture import next_packet
from nimbus.feed.itch import DIRECTORY
from nimbus.fix.transport_layout import TRANSPORT
from nimbus.journal.log import append, free_slots
from nimbus.journal.types import NEWS, RecordType
from nimbus.market import BATCH_MAX, apply_message, fetch, take_packet
from nimbus.messages import CHANGE, DECISION, DEPTH_CHANGED, DISARMED, HALTED, INTENT_NEW
from nimbus.messages import INTENT as INTENT_RECORD
from nimbus.messages import NEWS as NEWS_RECORD
from nimbus.orders.kill_switch import effective
from nimbus.orders.link import transport_work
from nimbus.orders.pool import first_open
from nimbus.orders.rehearse import warm_intent
from nimbus.orders.reports import receive
from nimbus.orders.send import cancel_all, take_intent
from nimbus.orders.state import ORDERS, note_intent
from nimbus.venue.paper import receive as venue_receive
from nimbus.venue.queue_model import on_change
from ringbuf.agent import should_stop
from ringbuf.atomics import load_relaxed, pause, store_relaxed
from ringbuf.clock import now_ns as clock_ns
from ringbuf.histogram import record_value
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    store_f64,
    store_i64,
    store_u16,
    u1,
    u2,
    wrapping_multiply,
)
from ringbuf.records import record
from ringbuf.seqlock import VALUE_AT, cell_size
from ringbuf.spsc import front, pop
from strategy.agent import work
from strategy.news import announce, apply_due

# Why run_inline returned.
NEED_INPUT, NEED_DRAIN, STOPPED = 0, 1, 2

TIMED_MASK: Final = 3  # one intent in 4 has its own stage timed
SAMPLE_MASK: Final = 15  # one message in 16 has its stages timed, and the journal's room looked at after it
INTENTS_MAX: Final = 64
OBEY_NS: Final = 100_000_000  # between two tries to cancel what the state forbids

CONTROL = record(
    "CONTROL",
    """
    i8  stop          stop word (control loop)
    7i8 pad0          zero
    i8  heartbeat     market messages handled; moves while the loop lives (hot loop)
    i8  now_ns        logical clock (hot loop)
    i8  journal_lost  news the journal had no room for (hot loop)
    i8  news_taken    news records applied (hot loop)
    i8  idle          turns spent waiting for the recorded time (hot loop)
    i8  journal_waits times that decisions and their intents waited for room in the journal (hot loop)
    2i8 pad1          zero
    i8  clock         address: CLOCK used to time stages and to pace
    i8  drain_below   free journal slots below which the loop asks for a drain, 0 = never
    f8  pace          wall nanoseconds per market nanosecond, 0 = as fast as it goes
    i8  pace_market   market time at which pacing began, 0 = not yet
    i8  pace_wall     clock at that moment
    i8  feed_ns       address: histogram, packet (or the message before) to message
    i8  book_ns       histogram, message to book and event
    i8  strategy_ns   histogram, event to decision, inference included
    i8  orders_ns     histogram, one intent in 4 to bytes in the venue's ring: risk, pool, journal, encoding
    i8  tick_ns       histogram, packet to order handed to send(), with what its earlier messages cost
    i8  depths        1 = the ten-level cell of a book is published after each change of it
    i8  wire_ns       histogram, kernel's stamp of a packet to its order handed to send(); 0 = none
    i8  send_ns       histogram, one hand-over to the socket; 0 = none
    i8  obeyed_ns     when the working orders were last cancelled because of the state (orders loop)
    2i8 pad2          zero
    """,
)
_C, _I, _N, _CHANGE, _O, _T = CONTROL.at, INTENT_RECORD.at, NEWS.at, CHANGE.at, ORDERS.at, TRANSPORT.at
_NEWS, _DECISION_SIZE, _NEWS_TAKEN_SIZE = NEWS_RECORD.at, DECISION.size, NEWS.size
_NEWS_CELL: Final = cell_size(NEWS_RECORD)
_EMBEDDING_WORDS: Final = (NEWS_RECORD.size - NEWS_RECORD.at.embedding) // 8
_R, _SYMBOL_AT, _LOCATE_AT = DIRECTORY.code, DIRECTORY.at.symbol, DIRECTORY.at.locate
_PRIME: Final = 1_099_511_628_211  # FNV-1a, on words
_DECISION_TYPE, _NEWS_TYPE = int(RecordType.DECISION), int(RecordType.NEWS)

# Addresses (and the states of market and books): everything the loops need.  source: a capture, or the
# sources of the wire.  One of venue and transport is 0.
Pipeline = namedtuple(
    "Pipeline",
    [
        "source", "market", "venue", "transport", "schedule", "news", "strategy", "intents", "decisions",
        "orders", "market_stream", "strategy_stream", "orders_stream", "news_taken", "control", "rungs",
    ],
)  # fmt: skip


@inlined
def _add(addr: int, step: int) -> None:
    store_i64(addr, load_i64(addr) + step)


@inlined
def _time(p: Pipeline) -> int:
    return clock_ns(load_i64(p.control + _C.clock))


@inlined
def _record_news(p: Pipeline, locate: int, now_ns: int) -> None:
    """Journal that a news record now holds for a symbol."""
    cell, taken = p.news + locate * _NEWS_CELL, p.news_taken
    news = cell + VALUE_AT
    clear(taken, _NEWS_TAKEN_SIZE)
    store_i64(taken + _N.version, load_relaxed(cell))
    for field, source in (
        (_N.item_id, _NEWS.item_id),
        (_N.received_ns, _NEWS.received_ns),
        (_N.material_ns, _NEWS.material_ns),
    ):
        store_i64(taken + field, load_i64(news + source))
    store_f64(taken + _N.score, load_f64(news + _NEWS.score))
    mixed = 0
    for word in range(_EMBEDDING_WORDS):
        mixed = wrapping_multiply(mixed ^ load_i64(news + _NEWS.embedding + word * 8), _PRIME)
    store_i64(taken + _N.embedding_digest, mixed)
    store_u16(taken + _N.locate, locate)
    if append(p.market_stream, _NEWS_TYPE, taken, _NEWS_TAKEN_SIZE, now_ns) == 0:
        _add(p.control + _C.journal_lost, 1)


@inlined
def take_news(p: Pipeline, now_ns: int) -> int:
    """4. Let the news that has been received by now reach its cells; return how many items."""
    taken = 0
    if p.schedule != 0:
        for _ in range(BATCH_MAX):
            locate = apply_due(p.schedule, p.news, now_ns)
            if locate < 0:
                break
            taken += 1
            _record_news(p, locate, now_ns)
        _add(p.control + _C.news_taken, taken)
    return taken


@inlined
def take_message(p: Pipeline, message: int, now_ns: int) -> int:
    """2, 3. Apply a message to its book; the paper exchange follows.  Returns the flags of the change."""
    flags = apply_message(p.market, message)
    if flags > 0 and p.venue != 0:
        on_change(p.venue, p.market.books, p.market.change, now_ns)
    if p.schedule != 0 and u1(message) == _R:
        announce(p.schedule, load_i64(message + _SYMBOL_AT), u2(message + _LOCATE_AT))
    return flags


@inlined
def show_depth(p: Pipeline, flags: int) -> None:
    """Publish the ten levels of the book that changed: for onlookers, so it comes after the orders."""
    if flags > 0 and flags & DEPTH_CHANGED != 0 and load_i64(p.control + _C.depths) != 0:
        publish_depth(p.market.books, load_u16(p.market.change + _CHANGE.locate))


@inlined
def journal_decisions(p: Pipeline, now_ns: int) -> bool:
    """7. Move the decisions to the journal; False when one waits for room, and its intent with it."""
    for _ in range(BATCH_MAX):
        decision = front(p.decisions)
        if decision == 0:
            break
        if append(p.strategy_stream, _DECISION_TYPE, decision, _DECISION_SIZE, now_ns) == 0:
            _add(p.control + _C.journal_waits, 1)
            return False
        pop(p.decisions)
    return True


@inlined
def _send(p: Pipeline, now_ns: int) -> int:
    """Let the socket have what waits; return when send() was called, by the loop's clock; 0 = not at all."""
    before_ns = load_i64(p.transport + _T.called_ns)
    transport_work(p.orders, p.transport, now_ns)
    called_ns = load_i64(p.transport + _T.called_ns)
    return called_ns if called_ns != before_ns else 0


@inlined
def take_intents(p: Pipeline, clock: int, now_ns: int, started_ns: int) -> int:
    """6. Hand the intents to the orders agent, and its messages to the socket; return how many.

    started_ns: when the packet behind them was seen, by the same clock; 0 = unknown or none.
    """
    taken = 0
    for _ in range(INTENTS_MAX):
        intent = front(p.intents)
        if intent == 0:
            break
        is_timed = load_i64(p.orders + _O.intents) & TIMED_MASK == 0
        before_ns = clock_ns(clock) if is_timed else 0
        is_order, recv_ns = load_u8(intent + _I.kind) == INTENT_NEW, load_i64(intent + _I.recv_ns)
        if is_order:
            warm_intent(p.orders, intent)
        reason = take_intent(p.orders, intent, now_ns)
        taken += 1
        made_ns = clock_ns(clock) if is_timed or p.transport == 0 else 0
        left_ns = _send(p, now_ns) if p.transport != 0 else made_ns
        if is_timed:
            record_value(load_i64(p.control + _C.orders_ns), made_ns - before_ns)
        if reason == 0 and is_order and left_ns > 0:
            if started_ns > 0:
                record_value(load_i64(p.control + _C.tick_ns), left_ns - started_ns)
            if p.transport != 0:
                record_value(load_i64(p.control + _C.wire_ns), left_ns - recv_ns)
                record_value(load_i64(p.control + _C.send_ns), clock_ns(clock) - left_ns)
        if is_order and p.transport != 0:
            note_intent(p.orders, intent)
        pop(p.intents)
    return taken


@inlined
def _pass_on(p: Pipeline, now_ns: int, started_ns: int) -> None:
    """Journal the decisions, then hand over the intents: journal before wire."""
    if journal_decisions(p, now_ns):
        take_intents(p, load_i64(p.control + _C.clock), now_ns, started_ns)


@inlined
def obey(p: Pipeline, now_ns: int) -> None:
    """Cancel what works while the state forbids it, again at intervals for what could not be sent."""
    state = effective(load_i64(p.orders + _O.kill_switch))
    if state == DISARMED or state >= HALTED:
        pool = load_i64(p.orders + _O.pool)
        if first_open(pool) != 0 and now_ns - load_i64(p.control + _C.obeyed_ns) >= OBEY_NS:
            store_i64(p.control + _C.obeyed_ns, now_ns)
            cancel_all(p.orders, 0, now_ns)


@kernel
def settle(p: Pipeline, now_ns: int) -> None:
    """Let what is under way between us and the venue arrive by now_ns, without market data."""
    if p.venue != 0:
        venue_receive(p.venue, p.market.books, now_ns)
    if p.transport != 0:
        transport_work(p.orders, p.transport, now_ns)
    receive(p.orders, now_ns)
    work(p.strategy, now_ns, 0)
    _pass_on(p, now_ns, 0)


@inlined
def step(p: Pipeline, message: int, now_ns: int, started_ns: int, is_sampled: bool) -> None:
    """Run one message through agents 2 to 6, in one thread."""
    if p.venue != 0:
        venue_receive(p.venue, p.market.books, now_ns)
    fetched_ns = _time(p) if is_sampled else 0
    flags = take_message(p, message, now_ns)
    applied_ns = _time(p) if is_sampled else 0
    receive(p.orders, now_ns)
    thinking_ns = _time(p) if is_sampled else 0
    if rung_waits(p):
        change_rung(p, now_ns)
    handled = work(p.strategy, now_ns, BATCH_MAX)
    if is_sampled:
        record_value(load_i64(p.control + _C.book_ns), applied_ns - fetched_ns)
        if handled > 0:
            record_value(load_i64(p.control + _C.strategy_ns), _time(p) - thinking_ns)
    _pass_on(p, now_ns, started_ns)
    show_depth(p, flags)


@inlined
def _is_paced(p: Pipeline) -> bool:
    return load_f64(p.control + _C.pace) != 0.0


@inlined
def _may_pass(p: Pipeline, market_ns: int) -> bool:
    """Say whether the recorded time of the packet in hand has come."""
    pace = load_f64(p.control + _C.pace)
    wall_ns = _time(p)
    if load_i64(p.control + _C.pace_market) == 0:
        store_i64(p.control + _C.pace_market, market_ns)
        store_i64(p.control + _C.pace_wall, wall_ns)
    due = load_i64(p.control + _C.pace_wall) + (market_ns - load_i64(p.control + _C.pace_market)) * pace
    return wall_ns >= due


@inlined
def _wait(p: Pipeline, market_ns: int) -> bool:
    """Wait for the recorded time of the packet in hand; False when the stop word was set meanwhile."""
    while not _may_pass(p, market_ns):
        if should_stop(p.control):
            return False
        _add(p.control + _C.idle, 1)
        pause()
    return True


@inlined
def least_free(p: Pipeline) -> int:
    """Return the free slots of the fullest journal ring of the loops."""
    free = min(free_slots(p.strategy_stream), free_slots(p.orders_stream))
    return min(free, free_slots(p.market_stream))


@inlined
def _lacks_room(p: Pipeline) -> bool:
    """Say whether a journal ring should be drained before the next messages."""
    least = load_i64(p.control + _C.drain_below)
    return least > 0 and least_free(p) < least


@kernel
def run_inline(p: Pipeline, messages_max: int) -> int:
    """Run the pipeline; return NEED_INPUT, NEED_DRAIN (also at each multiple of messages_max) or STOPPED.

    NEED_INPUT: the source's chunk is used up, or the source is at fault: its owner knows.  NEED_DRAIN comes
    at the same messages however the input is cut into chunks, so that the journal's order does not tell.
    """
    count = load_relaxed(p.control + _C.heartbeat)
    last = (count // messages_max + 1) * messages_max if messages_max > 0 else 0
    now_ns = load_i64(p.control + _C.now_ns)
    # A tick begins with its packet: messages behind others in it wait, and that counts.
    started_ns = fetching_ns = _time(p)
    while count < last:
        is_sampled = (count + 1) & SAMPLE_MASK == 0
        if is_sampled and fetching_ns == 0:
            fetching_ns = _time(p)
        message = fetch(p.market)
        if message == 0:
            if should_stop(p.control):
                return STOPPED
            started_ns = fetching_ns = _time(p)
            if next_packet(p.source, p.market.packet) <= 0:
                return NEED_INPUT
            now_ns = take_packet(p.market)
            store_i64(p.control + _C.now_ns, now_ns)
            if _is_paced(p):
                if not _wait(p, now_ns):
                    return STOPPED
                started_ns = fetching_ns = _time(p)
            take_news(p, now_ns)
            obey(p, now_ns)
            continue
        count += 1
        if is_sampled:
            record_value(load_i64(p.control + _C.feed_ns), _time(p) - fetching_ns)
        fetching_ns = 0
        step(p, message, now_ns, started_ns, is_sampled)
        store_relaxed(p.control + _C.heartbeat, count)
        if is_sampled and _lacks_room(p):
            break
    return NEED_DRAIN
