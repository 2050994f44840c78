"""A live feed and its slow twin eat the same losses, copies, delays, replies and snapshots."""

from __future__ import annotations

import random
from collections import Counter

import captures as c
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_rig import MS, US, LiveFed
from reference.live_feed import Limits, SlowLive

from nimbus.feed.arbiter_state import ROW_ABORT, ROW_BEGIN, ROW_END, ROW_MESSAGES
from nimbus.feed.live import LINE_NAMES, LiveSettings

SESSIONS = (b"000010059B", b"000010060C")
SERVERS = (("127.0.0.1", 1_000), ("127.0.0.1", 1_001))
WINDOW = 1_024
KINDS = {"begin": ROW_BEGIN, "messages": ROW_MESSAGES, "end": ROW_END, "abort": ROW_ABORT}
FRAME_COUNTERS = (
    "delivered", "heartbeats", "session_ends", "overlaps", "sessions", "restarts", "gaps", "missing",
)  # fmt: skip


def message(number: int, version: int = 0) -> bytes:
    return c.itch("D", 19, ts_ns=number, locate=1 + version)


class Pair:
    """The feed and its twin, compared after every step."""

    def __init__(self, *, servers: int, snapshot: bool, agree: int, retries: int, request_max: int) -> None:
        self.feed = LiveFed(
            LiveSettings(
                window_messages=WINDOW, gap_wait_us=500, gap_timeout_ms=40, servers=SERVERS[:servers],
                request_messages_max=request_max, request_interval_us=100, reply_timeout_ms=2,
                retries=retries, snapshot=snapshot, snapshot_timeout_ms=50, snapshot_hold_ms=5,
            ),
            agree=agree,
        )  # fmt: skip
        self.slow = SlowLive(
            Limits(
                window=WINDOW, wait=500 * US, timeout=40 * MS, servers=servers, request_max=request_max,
                interval=100 * US, reply=2 * MS, retries=retries, snapshot=snapshot, silence=50 * MS,
                hold=5 * MS, agree=agree,
            )
        )  # fmt: skip
        self.checked = 0

    def data(self, first: int, messages: list[bytes], line: int = 0, session: bytes = SESSIONS[0]) -> None:
        recv = self.feed.now_ns + random.Random(first).randrange(100) * line
        self.feed.datagram(c.mold(session, first, messages), line, recv_ns=recv)
        self.slow.datagram(session, first, messages, line, recv)
        self.compare()

    def control(self, first: int, end: bool, line: int = 0, session: bytes = SESSIONS[0]) -> None:
        self.feed.datagram(c.mold(session, first, [], count=0xFFFF if end else 0), line)
        self.slow.control(session, first, end, line)
        self.compare()

    def tick(self, step_ns: int) -> None:
        now = self.feed.now_ns + step_ns
        self.feed.tick(now)
        self.slow.tick(now)
        self.compare()

    def row(self, kind: str, wanted: int, seq: int = 0, messages: tuple[bytes, ...] = ()) -> None:
        if not self.slow.limits.snapshot or not self.slow.run:
            return
        session = self.slow.session
        assert self.feed.push(KINDS[kind], wanted, seq=seq, session=session, data=c.blocks(messages))
        self.slow.rows.append((kind, wanted, session, list(messages), seq))

    def compare(self) -> None:
        feed, slow = self.feed, self.slow
        feed.check()
        assert feed.messages[self.checked :] == slow.delivered[self.checked :]
        self.checked = len(feed.messages)
        assert feed.requests == slow.requests
        assert feed.feed.run == slow.run
        if not slow.run:
            return
        record = feed.live.record
        state = (
            feed.live.phase, feed.feed.stale, feed.feed.incomplete, int(feed.feed.record["expected"]),
            int(record["high"]), feed.live.missing_now(), int(record["wanted"]), feed.live.conflict_seq,
            bool(record["open"]),
        )  # fmt: skip
        assert state == (
            slow.phase, slow.stale, slow.incomplete, slow.expected, slow.high, slow.absent(), slow.wanted,
            slow.conflict_seq, slow.open,
        )  # fmt: skip
        assert feed.feed.refused() == dict(+slow.refused)
        counts = feed.live.counters()
        assert {k: v for k, v in counts.items() if v and k not in {"requests", "unsent"}} == {
            k: v for k, v in slow.counts.items() if v and k in counts
        }
        ours = feed.feed.counters()
        assert [ours[k] for k in FRAME_COUNTERS] == [slow.counts[k] for k in FRAME_COUNTERS]
        lines = {LINE_NAMES[n]: +count for n, count in slow.lines.items() if +count}
        assert {k: +Counter(v) for k, v in feed.live.lines().items() if any(v.values())} == lines

    def end(self) -> None:
        assert self.feed.books == self.slow.books


FAR = st.one_of(st.integers(900, 2_300), st.integers(WINDOW - 2, WINDOW + 2))
STEP = st.one_of(
    st.tuples(st.just("data"), st.integers(1, 60), st.integers(1, 6), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("next"), st.integers(0, 5), st.integers(1, 4), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("far"), FAR, st.integers(1, 3), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("control"), st.integers(1, 70), st.booleans(), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("tick"), st.sampled_from([0, 100 * US, 600 * US, 3 * MS, 45 * MS])),
    st.tuples(
        st.just("row"), st.sampled_from(["begin", "messages", "end", "end", "abort"]), st.integers(0, 70)
    ),
    st.tuples(st.just("rows"), st.integers(-10, 20)),
)


HOLE = [("data", 1, 1, 0, False), ("data", 3, 1, 0, False)]
BEYOND_THE_WINDOW = [("far", 1_020, 3, 0, False), ("tick", 0)]
PLAIN = {"servers": 1, "snapshot": False, "agree": 1, "retries": 0, "version": 0}


@settings(max_examples=300)
@example(steps=[*HOLE, *BEYOND_THE_WINDOW], **PLAIN)
@example(steps=[*HOLE, ("tick", 45 * MS), *BEYOND_THE_WINDOW], **PLAIN)
@given(
    steps=st.lists(STEP, max_size=40), servers=st.integers(0, 2), snapshot=st.booleans(),
    agree=st.integers(1, 3), retries=st.integers(0, 2), version=st.integers(0, 5),
)  # fmt: skip
def test_any_steps_lead_to_the_state_of_the_slow_twin(steps, servers, snapshot, agree, retries, version):
    pair = Pair(servers=servers, snapshot=snapshot, agree=agree, retries=retries, request_max=3)
    pair.tick(MS)
    for step in steps:
        what, slow = step[0], pair.slow
        high = slow.high if slow.run else 1
        if what in {"data", "next", "far"}:
            first, count, line, other = step[1:]
            first += {"data": 0, "next": high - 1, "far": high}[what] + (first == 0)
            made = [
                message(first + k, version and (first + k) % 17 == 0 and line == version % 3)
                for k in range(count)
            ]
            pair.data(first, made, line, SESSIONS[other and what == "data"])
        elif what == "control":
            pair.control(step[1], step[2] and step[1] % 5 == 0, step[3], SESSIONS[step[4]])
        elif what == "tick":
            pair.tick(step[1])
        elif what == "row":
            pair.row(step[1], slow.wanted, step[2], (message(7, 9),) * (step[1] == "messages"))
        elif slow.run and slow.wanted:
            pair.row("begin", slow.wanted)
            pair.row("messages", slow.wanted, 0, (message(8, 9), message(9, 9)))
            pair.row("end", slow.wanted, max(high - 5 + step[1], 1))
            for _ in range(4):
                pair.tick(0)
    pair.end()
