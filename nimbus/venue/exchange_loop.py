"""The hot loop of the paper exchange: requests, background flow, packets, rerequests; one thread, one kernel.

A duty cycle: read the clock, handle the requests that wait, let the flow go on as far as it is due, send what
has come together, answer rerequests, send a heartbeat if it was quiet.  The flow has a pace:

PACE_MAX      as fast as it goes
PACE_MARKET   a packet of the source is due at its recorded time, times `pace`
PACE_PACKETS  so many packets a second on each line, whatever the recorded times say

The flow waits while `started` is 0, and while there is no room for what one more step can cause: no event and
no message is ever lost inside.  The kernel returns for the next chunk of the file and at the stop word only.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Final

from nimbus.feed.capture import next_packet
from nimbus.feed.decode import next_message, open_packet
from nimbus.feed.itch import SYSTEM_EVENT, size_of
from nimbus.feed.state import FEED
from nimbus.venue.engine_flow import step_flow
from nimbus.venue.engine_layout import ENGINE
from nimbus.venue.engine_orders import has_room, step_requests
from nimbus.venue.publisher import PUBLISHER, beat, flush
from nimbus.venue.rerequests import REQUESTS_MAX, serve
from ringbuf.agent import idle, should_stop
from ringbuf.atomics import load_acquire, store_relaxed
from ringbuf.clock import now_ns as clock_ns
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_f64, load_i64, store_i64, u1, u2, u6
from ringbuf.records import record

# Why run_exchange returned.
NEED_INPUT, STOPPED = 0, 1

PACE_MAX, PACE_MARKET, PACE_PACKETS = 0, 1, 2
FLOW_MAX: Final = 64  # messages of the flow in one cycle
SERVE_EVERY: Final = 16  # busy cycles between two looks at the rerequest socket

LOOP = record(
    "LOOP",
    """
    i8  stop         stop word (control loop)
    7i8 pad0         zero
    i8  started      1 = the flow may go on (control loop)
    i8  at_end       1 = the source has no more (control loop)
    6i8 pad1         zero
    i8  clock        CLOCK: Unix time (fixed)
    i8  idler        IDLER (fixed)
    i8  source       SOURCE of the capture, 0 = no flow (fixed)
    i8  feed         FEED that decodes it (fixed)
    i8  packet       PACKET in hand (fixed)
    i8  store        STORE (fixed)
    i8  rerequests   REREQUESTS (fixed)
    i8  pace_kind    PACE_* (fixed)
    f8  pace         PACE_MARKET: wall ns per market ns (fixed)
    i8  interval_ns  PACE_PACKETS: wall ns per packet (fixed)
    i8  burst_max    PACE_PACKETS: messages in one packet (fixed)
    i8  in_hand      1 = messages of the open packet are left
    i8  due_ns       market time of the packet in hand
    i8  market_ns    market time at which the flow began
    i8  wall_ns      wall time of that moment, 0 = not yet
    i8  base_packets packets sent before it
    i8  run          run of the feed that the flow follows
    i8  other_run    1 = the capture goes on with another session: the flow ends there
    i8  cycles       duty cycles so far
    i8  messages     messages of the flow so far
    i8  late_ns_max  most that a packet left behind its time
    11i8 pad2        zero
    """,
)
_L, _F, _E, _P = LOOP.at, FEED.at, ENGINE.at, PUBLISHER.at
_TS_AT, _LENGTH_SIZE = SYSTEM_EVENT.at.ts_ns, 2

Exchange = namedtuple("Exchange", ["loop", "engine"])


@inlined
def _begin(x: Exchange, now_ns: int) -> None:
    """Note when the flow began, in both times."""
    if load_i64(x.loop + _L.wall_ns) == 0:
        store_i64(x.loop + _L.wall_ns, now_ns)
        store_i64(x.loop + _L.market_ns, load_i64(x.loop + _L.due_ns))
        store_i64(x.loop + _L.base_packets, load_i64(x.engine.publisher + _P.packets))


@inlined
def _is_due(x: Exchange, now_ns: int) -> bool:
    """Say whether the next message of the flow may go: a packet is in hand."""
    kind, since_ns = load_i64(x.loop + _L.pace_kind), now_ns - load_i64(x.loop + _L.wall_ns)
    if kind == PACE_MAX:
        return True
    if kind == PACE_PACKETS:
        sent = load_i64(x.engine.publisher + _P.packets) - load_i64(x.loop + _L.base_packets)
        return since_ns >= sent * load_i64(x.loop + _L.interval_ns)
    market_ns = load_i64(x.loop + _L.due_ns) - load_i64(x.loop + _L.market_ns)
    late_ns = since_ns - int(market_ns * load_f64(x.loop + _L.pace))
    if late_ns < 0:
        return False
    if late_ns > load_i64(x.loop + _L.late_ns_max):
        store_i64(x.loop + _L.late_ns_max, late_ns)
    return True


@kernel
def fetch_packet(x: Exchange) -> int:
    """Bring the next packet of the source: 1, or 0 = the chunk is used up, or the flow has ended."""
    loop = x.loop
    source, feed, packet = load_i64(loop + _L.source), load_i64(loop + _L.feed), load_i64(loop + _L.packet)
    if load_acquire(loop + _L.at_end) != 0 or load_i64(loop + _L.other_run) != 0:
        return 0
    if next_packet(source, packet) <= 0:
        return 0
    open_packet(feed, packet)
    run = load_i64(feed + _F.run)
    if load_i64(loop + _L.run) == 0:
        store_i64(loop + _L.run, run)
    elif run != load_i64(loop + _L.run):
        store_i64(loop + _L.other_run, 1)
        return 0
    store_i64(loop + _L.in_hand, 1)
    store_i64(loop + _L.due_ns, max(load_i64(loop + _L.due_ns), load_i64(feed + _F.recv_ns)))
    return 1


@inlined
def _exchange_time(x: Exchange, now_ns: int) -> None:
    """Move the exchange time of our own messages on, never past the next message of the flow."""
    loop, words = x.loop, x.engine.words
    feed, before = load_i64(loop + _L.feed), load_i64(words + _E.exch_ns)
    if load_i64(loop + _L.pace_kind) != PACE_MARKET or load_i64(loop + _L.in_hand) == 0 or before == 0:
        return
    block = load_i64(feed + _F.at)
    size = u2(block) if load_i64(feed + _F.left) > 0 else 0
    if size == 0 or size_of(u1(block + _LENGTH_SIZE)) != size:  # passed over by next_message
        return
    next_ns = u6(block + _LENGTH_SIZE + _TS_AT)
    ahead_ns = load_i64(loop + _L.due_ns) - load_i64(loop + _L.market_ns)
    left_ns = ahead_ns - int((now_ns - load_i64(loop + _L.wall_ns)) / load_f64(loop + _L.pace))
    store_i64(words + _E.exch_ns, max(before, min(next_ns, next_ns - left_ns)))


@kernel
def step_due(x: Exchange, now_ns: int) -> int:
    """Let the flow go on as far as it is due, at most FLOW_MAX messages; return how many, -1 = no input.

    What belongs together leaves together: a packet of the source, or burst_max messages.
    """
    loop, done, packed = x.loop, 0, 0
    by_packets = load_i64(loop + _L.pace_kind) == PACE_PACKETS
    for _ in range(FLOW_MAX):
        if load_i64(loop + _L.in_hand) == 0:
            if not by_packets and load_i64(loop + _L.pace_kind) == PACE_MARKET:
                flush(x.engine.publisher)
            if fetch_packet(x) == 0:
                return done if done > 0 else -1
        _begin(x, now_ns)
        if packed == 0 and not _is_due(x, now_ns):
            return done
        if not has_room(x.engine, load_i64(loop + _L.store)):
            return done
        message = next_message(load_i64(loop + _L.feed))
        if message == 0:
            store_i64(loop + _L.in_hand, 0)
            continue
        step_flow(x.engine, message)
        done += 1
        packed += 1
        if by_packets and packed >= load_i64(loop + _L.burst_max):
            flush(x.engine.publisher)
            packed = 0
    return done


@kernel
def run_exchange(x: Exchange, cycles_max: int) -> int:
    """Run the loop for at most cycles_max duty cycles; return NEED_INPUT or STOPPED.

    NEED_INPUT: the chunk of the source is used up (its owner refills, or sets at_end), or the cycles are.
    """
    loop, publisher, words = x.loop, x.engine.publisher, x.engine.words
    for cycle in range(cycles_max):
        if should_stop(loop):
            return STOPPED
        now_ns = clock_ns(load_i64(loop + _L.clock))
        store_i64(words + _E.now_ns, now_ns)
        store_i64(publisher + _P.now_ns, now_ns)
        _exchange_time(x, now_ns)
        done = step_requests(x.engine, load_i64(loop + _L.store))
        if done > 0:
            flush(publisher)
        flowed = 0
        if load_acquire(loop + _L.started) != 0 and load_i64(loop + _L.source) != 0:
            flowed = step_due(x, now_ns)  # -1: no input
            store_i64(loop + _L.messages, load_i64(loop + _L.messages) + max(flowed, 0))
        flush(publisher)
        if flowed <= 0 or cycle % SERVE_EVERY == 0:
            done += serve(load_i64(loop + _L.rerequests), REQUESTS_MAX)
        done += beat(publisher)
        store_relaxed(loop + _L.cycles, load_i64(loop + _L.cycles) + 1)
        if flowed < 0 and done == 0 and load_acquire(loop + _L.at_end) == 0:
            return NEED_INPUT
        idle(load_i64(loop + _L.idler), done + max(flowed, 0))
    return NEED_INPUT
