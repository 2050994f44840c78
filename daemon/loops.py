"""The loops of the live placements: the steps of pipeline.py, by the machine's clock, until the stop word.

    compact    one thread: a packet is carried from the wire to the order before the next one is looked at
    dedicated  three threads, joined by the rings that are there anyway:
                 market    source, sequencing, books, news, paper exchange
                 strategy  events, fills -> decisions, intents
                 orders    intents -> messages out; reports in -> states, positions, fills

The steps are the same kernels as in a replay; only who calls them, and whose clock is read, differs.  A loop
never returns to Python before the stop word: heartbeat, idling and clock are words in memory.  Between two
looks at the orders at most PACKETS_MAX packets are carried, so that a storm cannot keep reports waiting.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Final

from daemon.pipeline import (
    CONTROL,
    STOPPED,
    Pipeline,
    journal_decisions,
    obey,
    show_depth,
    step,
    take_intents,
    take_message,
    take_news,
)
from daemon.rung_change import change_rung, rung_waits
from nimbus.book.levels import warm_best
from nimbus.feed.source import next_of
from nimbus.journal.log import has_free, warm_next
from nimbus.market import (
    BATCH_MAX,
    fetch,
    foresee_message,
    foresee_order,
    has_reference,
    is_foreseen,
    pass_time,
    take_packet,
    usual_message,
)
from nimbus.market import foresee as market_foresee
from nimbus.orders.link import transport_work
from nimbus.orders.rehearse import REHEARSE_NS, rehearse, warm_kept, warm_position
from nimbus.orders.rehearse import foresee as orders_foresee
from nimbus.orders.reports import receive
from nimbus.orders.state import INTENTS_KEPT, kept_locate
from nimbus.venue.paper import receive as venue_receive
from ringbuf.agent import PAUSES, beat, idle, is_busy, should_stop
from ringbuf.atomics import load_relaxed, pause, store_relaxed
from ringbuf.clock import now_ns as clock_ns
from ringbuf.histogram import record_value
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy_line, load_i64, store_i64
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment
from strategy.agent import foresee as strategy_foresee
from strategy.agent import warm_symbol, work

PACKETS_MAX: Final = 32
IDLE_SHARE: Final = 10  # an idle loop rehearses for at most one part in so many of its time
SAMPLE_MASK: Final = 15  # one packet in 16 has its stages timed
DECISIONS_ROOM: Final = 4 * BATCH_MAX  # records: an event may lead to two decisions of two records each
_C = CONTROL.at

# Words of one loop: its heartbeat, how it idles, its own clock (Unix UTC).
Loop = namedtuple("Loop", ["heartbeat", "idler", "clock"])

# What an idle loop plays: a pipeline of its own, and the words of the play (understudy.py).
Rehearsal = namedtuple("Rehearsal", ["pipeline", "words"])
REHEARSAL = record(
    "REHEARSAL",
    """
    i8  count       lines that a play changes; 0 = nothing is played
    i8  places      address of their addresses
    i8  lines       address of what they hold before a play
    i8  now_ns      time of the play
    i8  started_ns  0: its ticks are not timed
    i8  is_sampled  0: nor are its stages
    i8  rung        address of the rung word of the daemon's plan, 0 = no plan is asked
    i8  rung_played address of that of the plan that is asked in a play
    """,
)
_R = REHEARSAL.at


def no_rehearsal(segment: Segment, pipeline: Pipeline) -> Rehearsal:
    """Return a rehearsal that plays nothing yet."""
    return Rehearsal(pipeline, segment.allocate("rehearsal", REHEARSAL.size))


@kernel
def _foresee(events: int, change: int, strategy: int, strategy_stream: int, orders: int) -> None:
    """Ask for the lines that every tick reads or writes, while those of its packet are still on their way.

    A tick copies records that it has just written and sums their bytes; a store to a far line keeps all of
    that waiting.  Asked for together, they come together.  Called, with few arguments, and not pasted in: so
    what runs while the loop idles is the very code that a packet meets.
    """
    market_foresee(events, change)
    strategy_foresee(strategy)
    warm_next(strategy_stream)
    orders_foresee(orders)


@inlined
def _foresee_symbol(p: Pipeline, message: int) -> None:
    """Ask for what a decision and an order about a message's symbol read, while its book changes."""
    locate = foresee_message(p.market, message)
    if 0 < locate < p.market.books.symbols_max:
        warm_symbol(p.strategy, locate)
        warm_position(p.orders, locate)


@inlined
def _foresee_packet(p: Pipeline) -> None:
    """Ask for the lines of the symbol that a usual packet begins with, before the packet is opened."""
    message = usual_message(p.market)
    if message != 0:
        _foresee_symbol(p, message)


@inlined
def _foresee_message(p: Pipeline, message: int) -> None:
    """Ask for the order of a message in hand, or for all where the guess was another message."""
    if not has_reference(message):
        return
    if is_foreseen(p.market, message):
        foresee_order(p.market, message)
    else:
        _foresee_symbol(p, message)


@inlined
def _keep_warm(p: Pipeline) -> None:
    """Fetch again what the next tick reads and writes, should it be about one of the recent symbols."""
    for slot in range(INTENTS_KEPT):
        locate = kept_locate(p.orders, slot)
        if 0 < locate < p.market.books.symbols_max:
            warm_symbol(p.strategy, locate)
            warm_best(p.market.books, locate)
            warm_kept(p.orders, slot)
    _foresee(p.market.events, p.market.change, p.strategy, p.strategy_stream, p.orders)


@inlined
def _count_message(p: Pipeline) -> int:
    count = load_relaxed(p.control + _C.heartbeat) + 1
    store_relaxed(p.control + _C.heartbeat, count)
    return count


@kernel
def _carry(p: Pipeline, now_ns: int, started_ns: int, is_sampled: bool) -> int:
    """Carry the messages at hand through everything, in one thread; return how many."""
    done = 0
    message = fetch(p.market)
    while message != 0:
        done += 1
        _foresee_message(p, message)
        _count_message(p)
        step(p, message, now_ns, started_ns, is_sampled)
        message = fetch(p.market)
    return done


@kernel
def _tend_orders(p: Pipeline, now_ns: int) -> int:
    """Let reports in and what waits out; return how much was done."""
    done = transport_work(p.orders, p.transport, now_ns) if p.transport != 0 else 0
    done += receive(p.orders, now_ns)
    obey(p, now_ns)
    return done


@kernel
def play(r: Rehearsal) -> None:
    """Carry the packet in hand of a rehearsal through its pipeline, and put back the lines that this changes.

    The very kernels that a packet of the wire meets, with arguments that the compiler does not know: a copy
    of them would keep nothing warm.
    """
    now_ns, started_ns = load_i64(r.words + _R.now_ns), load_i64(r.words + _R.started_ns)
    rung = load_i64(r.words + _R.rung)
    if rung != 0:
        store_i64(load_i64(r.words + _R.rung_played), load_relaxed(rung))
    _foresee_packet(r.pipeline)
    take_packet(r.pipeline.market)
    _carry(r.pipeline, now_ns, started_ns, load_i64(r.words + _R.is_sampled) != 0)
    places, lines = load_i64(r.words + _R.places), load_i64(r.words + _R.lines)
    for n in range(load_i64(r.words + _R.count)):
        copy_line(load_i64(places + n * 8), lines + n * CACHE_LINE)


@inlined
def _idle(p: Pipeline, loop: Loop, done: int) -> int:
    """Wait as the loop's strategy says; a busy one looks for packets meanwhile.

    Returns when a packet was seen, which is in hand then, or 0.
    """
    if done > 0 or not is_busy(loop.idler):
        idle(loop.idler, done)
        return 0
    for _ in range(PAUSES):
        pause()
        if next_of(p.source, p.market.packet) > 0:
            return clock_ns(loop.clock)
    return 0


@kernel
def run_compact(p: Pipeline, loop: Loop, r: Rehearsal) -> int:
    """Run every agent in one thread, and the rehearsal while there is nothing to do; return STOPPED."""
    packets = rehearse_at_ns = seen_ns = 0
    while seen_ns != 0 or not should_stop(p.control):
        done = 0
        for _ in range(PACKETS_MAX):
            if seen_ns == 0:
                if next_of(p.source, p.market.packet) <= 0:
                    break
                seen_ns = clock_ns(loop.clock)
            packets += 1
            _foresee(p.market.events, p.market.change, p.strategy, p.strategy_stream, p.orders)
            _foresee_packet(p)
            now_ns = max(take_packet(p.market), seen_ns)
            is_sampled = packets & SAMPLE_MASK == 0
            if is_sampled:
                record_value(load_i64(p.control + _C.feed_ns), clock_ns(loop.clock) - seen_ns)
            done += 1 + _carry(p, now_ns, seen_ns, is_sampled)
            seen_ns = 0
        now_ns = clock_ns(loop.clock)
        if pass_time(p.market, now_ns) > 0:
            # Untimed.  As constants these would have the compiler make a second _carry of a quarter megabyte.
            done += _carry(p, now_ns, seen_ns, packets < 0)
        done += take_news(p, now_ns)
        if p.venue != 0:
            venue_receive(p.venue, p.market.books, now_ns)
        done += _tend_orders(p, now_ns)
        done += work(p.strategy, now_ns, 0)
        if journal_decisions(p, now_ns):
            done += take_intents(p, loop.clock, now_ns, 0)
        store_i64(p.control + _C.now_ns, now_ns)
        beat(loop.heartbeat, now_ns, done)
        if done == 0 and now_ns >= rehearse_at_ns:
            if load_i64(r.words + _R.count) != 0:
                play(r)
            _keep_warm(p)
            rehearse(p.orders, now_ns)
            took_ns = clock_ns(loop.clock) - now_ns
            rehearse_at_ns = now_ns + max(REHEARSE_NS, took_ns * IDLE_SHARE)
        seen_ns = _idle(p, loop, done)
    return STOPPED


@kernel
def _apply_all(p: Pipeline, now_ns: int) -> int:
    """Apply the messages at hand to their books; return how many."""
    done = 0
    message = fetch(p.market)
    while message != 0:
        done += 1
        _count_message(p)
        if p.venue != 0:
            venue_receive(p.venue, p.market.books, now_ns)
        show_depth(p, take_message(p, message, now_ns))
        message = fetch(p.market)
    return done


@kernel
def run_market(p: Pipeline, loop: Loop) -> int:
    """Run source, sequencing, books, news and the paper exchange; return STOPPED."""
    while not should_stop(p.control):
        now_ns = clock_ns(loop.clock)
        done = 0
        for _ in range(PACKETS_MAX):
            if next_of(p.source, p.market.packet) <= 0:
                break
            started_ns = clock_ns(loop.clock)
            now_ns = max(take_packet(p.market), started_ns)
            done += 1 + _apply_all(p, now_ns)
            record_value(load_i64(p.control + _C.book_ns), clock_ns(loop.clock) - started_ns)
        if pass_time(p.market, now_ns) > 0:
            done += _apply_all(p, now_ns)
        done += take_news(p, now_ns)
        if p.venue != 0:
            venue_receive(p.venue, p.market.books, now_ns)
        store_i64(p.control + _C.now_ns, now_ns)
        beat(loop.heartbeat, now_ns, done)
        idle(loop.idler, done)
    return STOPPED


@kernel
def run_strategy(p: Pipeline, loop: Loop) -> int:
    """Run features, contradiction, inference and decisions; return STOPPED.

    Without room for a batch of decisions in the journal no event is taken: events wait in their ring.
    """
    while not should_stop(p.control):
        now_ns = clock_ns(loop.clock)
        if rung_waits(p):
            change_rung(p, now_ns)
        limit = BATCH_MAX if has_free(p.strategy_stream, DECISIONS_ROOM) else 0
        done = work(p.strategy, now_ns, limit)
        journal_decisions(p, now_ns)
        if done > 0:
            record_value(load_i64(p.control + _C.strategy_ns), clock_ns(loop.clock) - now_ns)
        beat(loop.heartbeat, now_ns, done)
        idle(loop.idler, done)
    return STOPPED


@kernel
def run_orders(p: Pipeline, loop: Loop) -> int:
    """Run risk, order pool, encoding and the socket, and take reports in; return STOPPED."""
    rehearsed_ns = 0
    while not should_stop(p.control):
        now_ns = clock_ns(loop.clock)
        done = take_intents(p, loop.clock, now_ns, 0)
        done += _tend_orders(p, now_ns)
        beat(loop.heartbeat, now_ns, done)
        if done == 0 and now_ns - rehearsed_ns >= REHEARSE_NS:
            rehearsed_ns = now_ns
            orders_foresee(p.orders)
            rehearse(p.orders, now_ns)
        idle(loop.idler, done)
    return STOPPED
