"""MoldUDP64 as logic without I/O: a datagram in, a cursor over the messages to deliver out.

Every number of a session is delivered once, in the order of the file.  What a datagram means:

| datagram                                 | then                                                      |
|------------------------------------------|-----------------------------------------------------------|
| first one, or first after end of session | follow its session from its own number (or 1: configured) |
| the expected number                      | deliver                                                   |
| a higher number                          | count the gap, FEED.stale = 1, deliver                    |
| begins below it and ends above it        | skip the known messages, deliver the rest                 |
| wholly below it, of a new time, or after | duplicate, and candidate for a restart of the session     |
| a silence of the session                 |                                                           |
| wholly below it, and neither             | duplicate: a late line, a repeat, a capture merged twice  |
| another session                          | foreign, and candidate for a new session                  |
| count 0 (heartbeat) or 0xFFFF (end)      | its number is the next one: it reveals a gap too          |
| session of zero bytes, number 0, first   | anonymised: deliver in file order, count `unsequenced`    |

*Of a new time*: its first well-formed message has a later exchange time than any delivered in this run.  No
copy of a delivered datagram has, however late its line is; a session that is numbered anew goes on in time.
*Silence*: SILENCE_NS of receive time (ten heartbeats of the specification) without a delivery, a heartbeat or
end at the expected number or above, or a duplicate that is no candidate.  It lets a session begin again at an
earlier time of day (the next day under the same name).  A line that is late by that much is not told apart
from a restart; a day that is played twice without a pause is taken once.

A file cannot be asked again, hence a gap does not stop delivery.  A candidate is believed when FEED.agree
datagrams in a row continue each other and the present session did not advance in between.  They are held
meanwhile, so nothing of the new run is lost: FEED.run rises (books start empty) and the held datagrams are
delivered first.  A session that was left is not taken up again.  At the end of a file two agreeing datagrams
of a new session are enough, since nothing can contradict them any more (`close_feed`).

Source: MoldUDP64 Protocol Specification 1.00.
"""

from __future__ import annotations

from typing import Final

from nimbus.feed.itch import SYSTEM_EVENT, size_of
from nimbus.feed.state import (
    DUPLICATE,
    FEED,
    FOREIGN,
    FRAMING,
    HELD,
    MODE_NONE,
    MODE_SEQUENCED,
    MODE_UNSEQUENCED,
    OK,
    SHORT_DATAGRAM,
    WRONG_RUN_MAX,
    bump,
    refuse,
)
from nimbus.feed.wire import layout
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, store_i64, u1, u2, u6, u8

MOLD = layout("MoldUdp64", 20, "session:a10 seq:u8 count:u2")
HEARTBEAT, END_OF_SESSION = 0, 0xFFFF
SEQ_MAX: Final = 1 << 62  # beyond it a number is not MoldUDP64, and first + count cannot overflow
AGREE_AT_END: Final = 2
SILENCE_NS: Final = 10_000_000_000
NO_TIME: Final = -1  # of a datagram without a well-formed message

_F, _M, _H = FEED.at, MOLD.at, HELD.at
_MOLD_SIZE, _HELD_SIZE, _TS_AT = MOLD.size, HELD.size, SYSTEM_EVENT.at.ts_ns  # in every message


@inlined
def check_blocks(at: int, end: int, count: int) -> int:
    """Return how many of the `count` blocks between at and end are well-formed ITCH; -1 = they do not fit."""
    good = 0
    for _block in range(count):
        if end - at < 2:
            return -1
        size = u2(at)
        if size > end - at - 2:
            return -1
        if size > 0 and size_of(u1(at + 2)) == size:
            good += 1
        at += 2 + size
    return good


@kernel
def count_blocks(feed: int, at: int, count: int) -> int:
    """Count the blocks, which are known to fit, by type; return the address behind the last.

    FEED.first_ns and last_ns become the exchange times of the first and the last well-formed one.
    """
    wrong_run, first_at, last_at = load_i64(feed + _F.wrong_run), 0, 0
    for _block in range(count):
        size = u2(at)
        if size == 0:
            bump(feed + _F.empty_blocks, 1)
        else:
            code = u1(at + 2)
            known_size = size_of(code)
            if size == known_size:
                bump(feed + _F.types + 8 * code, 1)
                wrong_run, last_at = 0, at
                first_at = first_at or at
            else:
                bump(feed + (_F.unknown if known_size == 0 else _F.wrong) + 8 * code, 1)
                wrong_run += 1
                if wrong_run == WRONG_RUN_MAX:
                    bump(feed + _F.wrong_protocol, 1)
        at += 2 + size
    store_i64(feed + _F.wrong_run, wrong_run)
    bump(feed + _F.blocks, count)
    store_i64(feed + _F.first_ns, u6(first_at + 2 + _TS_AT) if first_at else NO_TIME)
    store_i64(feed + _F.last_ns, u6(last_at + 2 + _TS_AT) if last_at else NO_TIME)
    return at


@inlined
def count_checked(feed: int, at: int, count: int, good: int) -> int:
    """Do what count_blocks does; good: what check_blocks said of these blocks, 0 or more."""
    if good != count:
        return count_blocks(feed, at, count)
    first_at = last_at = at
    for _block in range(count):
        bump(feed + _F.types + 8 * u1(at + 2), 1)
        last_at = at
        at += 2 + u2(at)
    store_i64(feed + _F.wrong_run, 0)
    bump(feed + _F.blocks, count)
    store_i64(feed + _F.first_ns, u6(first_at + 2 + _TS_AT))
    store_i64(feed + _F.last_ns, u6(last_at + 2 + _TS_AT))
    return at


@inlined
def pass_blocks(at: int, count: int) -> int:
    """Return the address behind `count` blocks, which are known to fit."""
    for _block in range(count):
        at += 2 + u2(at)
    return at


@inlined
def deliver(feed: int, at: int, count: int, first: int, skip: int) -> int:
    """Set the cursor on `count` blocks at `at`, the first of which has number `first`; pass over `skip`."""
    store_i64(feed + _F.at, pass_blocks(at, skip))
    store_i64(feed + _F.left, count - skip)
    store_i64(feed + _F.next_seq, first + skip)
    store_i64(feed + _F.expected, first + count)
    return OK


@inlined
def is_session(feed: int, at: int) -> bool:
    """Say whether the header at `at` names the session that is followed."""
    return u8(at) == load_i64(feed + _F.session_high) and u2(at + 8) == load_i64(feed + _F.session_low)


@inlined
def is_left_session(feed: int, at: int) -> bool:
    """Say whether the header at `at` names the session that was left for it."""
    left = u8(at) == load_i64(feed + _F.left_high) and u2(at + 8) == load_i64(feed + _F.left_low)
    return left and load_i64(feed + _F.sessions) > 1


@inlined
def is_text(at: int) -> bool:
    """Say whether the ten bytes of a session are printable, or the zeros of padding and anonymisers."""
    for index in range(10):
        byte = u1(at + index)
        if byte != 0 and (byte < 0x20 or byte > 0x7E):
            return False
    return True


@inlined
def _hear(feed: int) -> None:
    """Note that the present session is alive."""
    store_i64(feed + _F.heard_ns, load_i64(feed + _F.recv_ns))


@inlined
def _may_restart(feed: int) -> bool:
    """Say whether the datagram in hand, wholly below the expected number, can belong to a restart."""
    silent_ns = load_i64(feed + _F.recv_ns) - load_i64(feed + _F.heard_ns)
    return load_i64(feed + _F.first_ns) > load_i64(feed + _F.newest_ns) or silent_ns >= SILENCE_NS


@inlined
def _take_time(feed: int, last_ns: int) -> None:
    """Note the exchange time up to which messages of this run are delivered."""
    store_i64(feed + _F.newest_ns, max(load_i64(feed + _F.newest_ns), last_ns))


@inlined
def _open_gap(feed: int, first: int) -> None:
    bump(feed + _F.gaps, 1)
    bump(feed + _F.missing, first - load_i64(feed + _F.expected))
    store_i64(feed + _F.expected, first)
    store_i64(feed + _F.stale, 1)


@kernel
def follow(feed: int, at: int, first: int) -> bool:
    """Turn to the session of the header at `at`, whose first datagram here is `first`, with empty books.

    Returns whether it is nameless: zero bytes and number 0.
    """
    mode = load_i64(feed + _F.mode)
    if mode != MODE_NONE and is_session(feed, at):
        bump(feed + _F.restarts, 1)
    else:
        bump(feed + _F.sessions, 1)
        store_i64(feed + _F.left_high, load_i64(feed + _F.session_high))
        store_i64(feed + _F.left_low, load_i64(feed + _F.session_low))
        store_i64(feed + _F.session_high, u8(at))
        store_i64(feed + _F.session_low, u2(at + 8))
    nameless = first == 0 and u8(at) == 0 and u2(at + 8) == 0
    store_i64(feed + _F.mode, MODE_UNSEQUENCED if nameless else MODE_SEQUENCED)
    store_i64(feed + _F.incomplete, 1 if nameless or first > 1 else 0)
    store_i64(feed + _F.stale, 0)
    store_i64(feed + _F.ended, 0)
    store_i64(feed + _F.candidates, 0)
    store_i64(feed + _F.newest_ns, NO_TIME)
    _hear(feed)
    bump(feed + _F.run, 1)
    return nameless


@kernel
def _begin_run(feed: int, at: int, first: int) -> None:
    """Follow the session of the header at `at` from number `first`, with empty books."""
    nameless = follow(feed, at, first)
    from_one = nameless or load_i64(feed + _F.start_at_one) != 0
    store_i64(feed + _F.expected, 1 if from_one else first)
    if first > load_i64(feed + _F.expected):
        _open_gap(feed, first)


@kernel
def _control(feed: int, at: int, size: int, first: int, count: int) -> int:
    """Take a heartbeat or an end of session."""
    mode = load_i64(feed + _F.mode)
    if mode == MODE_NONE or not is_session(feed, at):
        waiting = mode == MODE_NONE or (load_i64(feed + _F.ended) != 0 and not is_left_session(feed, at))
        if not waiting or size != _MOLD_SIZE or not is_text(at):
            return refuse(feed, FOREIGN)
        _begin_run(feed, at, first)
    elif load_i64(feed + _F.mode) == MODE_SEQUENCED:
        expected = load_i64(feed + _F.expected)
        if first > expected:
            _open_gap(feed, first)
        if first >= expected:
            store_i64(feed + _F.candidates, 0)
            _hear(feed)
    if size != _MOLD_SIZE:
        bump(feed + _F.trailing, 1)
    if count == END_OF_SESSION:
        bump(feed + _F.session_ends, 1)
        store_i64(feed + _F.ended, 1)
    else:
        bump(feed + _F.heartbeats, 1)
    return 0


@inlined
def open_held(feed: int) -> int:
    """Set the cursor on the next held datagram; return OK, or 0 when there is none."""
    left = load_i64(feed + _F.held_left)
    if left == 0:
        return 0
    index = load_i64(feed + _F.held_next)
    slot = load_i64(feed + _F.held_at) + index * _HELD_SIZE
    store_i64(feed + _F.held_left, left - 1)
    store_i64(feed + _F.held_next, index + 1)
    header, first, count = slot + _H.bytes, load_i64(slot + _H.first), load_i64(slot + _H.count)
    if load_i64(feed + _F.mode) == MODE_UNSEQUENCED:
        first = load_i64(feed + _F.expected)
        bump(feed + _F.unsequenced, count)
    _take_time(feed, load_i64(slot + _H.last_ns))
    return deliver(feed, header + _MOLD_SIZE, count, first, 0)


@kernel
def _believe(feed: int, reason: int) -> int:
    """Begin the new run of the held datagrams; they were counted as `reason` and are delivered after all."""
    agreed, slot = load_i64(feed + _F.candidates), load_i64(feed + _F.held_at)
    _begin_run(feed, slot + _H.bytes, load_i64(slot + _H.first))
    bump(feed + _F.refused - 8 * reason, -agreed)
    bump(feed + _F.delivered, agreed)
    store_i64(feed + _F.held_next, 0)
    store_i64(feed + _F.held_left, agreed)
    return open_held(feed)


@kernel
def hold(feed: int, at: int, size: int, first: int, count: int, reason: int) -> bool:
    """Refuse a datagram that may belong to a new run, and hold it; say whether enough of them agree now.

    size is at most what a UDP length can say, so that it fits a HELD record.  In live mode two lines bring
    the same run: a copy of what is held changes nothing.
    """
    refuse(feed, reason)
    agreed = load_i64(feed + _F.candidates)
    same = u8(at) == load_i64(feed + _F.candidate_high) and u2(at + 8) == load_i64(feed + _F.candidate_low)
    if same and agreed > 0 and load_i64(feed + _F.arbiter) != 0:
        held = load_i64(load_i64(feed + _F.held_at) + _H.first)
        if first >= held and first + count <= load_i64(feed + _F.candidate_next):
            return False
    if not same or first != load_i64(feed + _F.candidate_next):
        agreed = 0
    slot = load_i64(feed + _F.held_at) + agreed * _HELD_SIZE
    store_i64(slot + _H.size, size)
    store_i64(slot + _H.first, first)
    store_i64(slot + _H.count, count)
    store_i64(slot + _H.last_ns, load_i64(feed + _F.last_ns))
    copy(slot + _H.bytes, at, size)
    store_i64(feed + _F.candidate_high, u8(at))
    store_i64(feed + _F.candidate_low, u2(at + 8))
    store_i64(feed + _F.candidate_next, first + count)
    store_i64(feed + _F.candidates, agreed + 1)
    return agreed + 1 >= load_i64(feed + _F.agree)


@inlined
def _consider(feed: int, at: int, size: int, first: int, count: int, reason: int) -> int:
    """Hold a datagram that may belong to a new run; return its reason of refusal, or OK: it is believed."""
    if not hold(feed, at, size, first, count, reason):
        return reason
    return _believe(feed, reason)


@kernel
def open_datagram(feed: int, at: int, size: int) -> int:
    """Sequence the datagram of `size` bytes at `at` and set the cursor on its new messages.

    Returns OK, 0 (heartbeat, end of session: nothing to deliver) or the counted reason of refusal.
    """
    if size < _MOLD_SIZE:
        return refuse(feed, SHORT_DATAGRAM)
    first, count = u8(at + _M.seq), u2(at + _M.count)
    if first < 0 or first > SEQ_MAX:
        return refuse(feed, FOREIGN)
    if count in (HEARTBEAT, END_OF_SESSION):
        return _control(feed, at, size, first, count)
    mode = load_i64(feed + _F.mode)
    ours = mode != MODE_NONE and is_session(feed, at)
    good = check_blocks(at + _MOLD_SIZE, at + size, count)
    if good < 0:
        return refuse(feed, FRAMING if ours else FOREIGN)
    behind = count_checked(feed, at + _MOLD_SIZE, count, good)
    if behind != at + size:
        bump(feed + _F.trailing, 1)
    if not ours:
        if good == 0 or is_left_session(feed, at):
            return refuse(feed, FOREIGN)
        if mode != MODE_NONE and load_i64(feed + _F.ended) == 0:
            return _consider(feed, at, size, first, count, FOREIGN)
        _begin_run(feed, at, first)
    expected, skip = load_i64(feed + _F.expected), 0
    if load_i64(feed + _F.mode) == MODE_UNSEQUENCED:
        first = expected
        bump(feed + _F.unsequenced, count)
    elif first + count <= expected:
        if _may_restart(feed):
            return _consider(feed, at, size, first, count, DUPLICATE)
        _hear(feed)
        return refuse(feed, DUPLICATE)
    elif first > expected:
        _open_gap(feed, first)
    elif first < expected:
        skip = expected - first
        bump(feed + _F.overlaps, 1)
    store_i64(feed + _F.candidates, 0)
    _hear(feed)
    _take_time(feed, load_i64(feed + _F.last_ns))
    bump(feed + _F.delivered, 1)
    return deliver(feed, at + _MOLD_SIZE, count, first, skip)


@kernel
def close_file(feed: int) -> int:
    """At the end of a file: begin a new session that two or more datagrams announced.

    Returns OK when next_message has something to give, else 0.
    """
    high, low = load_i64(feed + _F.candidate_high), load_i64(feed + _F.candidate_low)
    same = high == load_i64(feed + _F.session_high) and low == load_i64(feed + _F.session_low)
    if same or load_i64(feed + _F.candidates) < AGREE_AT_END:
        return 0
    return _believe(feed, FOREIGN)
