"""The slow twin of a live feed: lines, gaps, requests and snapshots with dicts and lists.

Written from the rules in the docstrings of nimbus/feed/arbiter.py, window.py and gaps.py, without addresses,
tags or running totals: what waits and what is missing is looked for each time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

RECOVERY = 2
LIVE, WAITING, REREQUEST, SNAPSHOT = "live", "waiting", "rerequest", "snapshot"
HOW = ("by_line", "by_rerequest", "by_snapshot", "lost")


@dataclass
class Limits:
    window: int
    wait: int
    timeout: int
    servers: int
    request_max: int
    interval: int
    reply: int
    retries: int
    snapshot: bool
    silence: int
    hold: int
    agree: int


@dataclass
class Copy:
    """The first copy of a number."""

    message: bytes
    recv: int
    line: int
    lines: set[int]


@dataclass
class SlowLive:
    """delivered: (number, message); books: messages, those of snapshots too, None = they begin empty."""

    limits: Limits
    now: int = 0
    delivered: list[tuple[int, bytes]] = field(default_factory=list)
    books: list[bytes | None] = field(default_factory=list)
    requests: list[tuple[int, int, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lines: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    conflict_seq: int = 0
    session: bytes | None = None
    left: bytes | None = None
    ended: bool = False
    run: int = 0
    wanted: int = 0
    server: int = 0
    next_request: int = 0
    held: list[tuple[bytes, int, list[bytes]]] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)

    def begin(self, session: bytes, first: int) -> None:
        """Follow a session from number `first` with empty books."""
        if self.run:
            lost = self.absent()
            self.counts["lost"] += lost
            if lost:
                self.level = 3
            self.close()
        self.counts["restarts" if session == self.session else "sessions"] += 1
        if session != self.session:
            self.left, self.session = self.session, session
        self.run += 1
        self.books.append(None)
        self.expected = self.high = self.recent = first
        self.window: dict[int, tuple[int, bytes, int]] = {}  # place -> number, message, seen
        self.copies: dict[int, Copy] = {}
        self.next_of: dict[int, int] = {}
        self.level = self.asked = self.retries = self.attempts = 0
        self.open = self.progress = self.lossy = self.ended = self.loading = self.settling = False
        self.hole_first = self.hole_end = self.hole_ns = 0
        self.tail_ns, self.settled_ns = getattr(self, "tail_ns", 0), getattr(self, "settled_ns", 0)
        self.round_ns = getattr(self, "round_ns", 0)
        self.doubts = 0
        self.due, self.heard = 0, getattr(self, "heard", 0)
        self.phase, self.stale = LIVE, False
        self.incomplete = self.hollow = first > 1
        self.held = []
        if first > 1 and self.limits.snapshot:
            self.want()

    # ---- what is where

    @property
    def waiting(self) -> dict[int, tuple[bytes, int]]:
        """The messages of the window that were not delivered yet, by number."""
        return {n: (m, seen) for n, m, seen in self.window.values() if n >= self.expected}

    def missing(self) -> list[int]:
        waiting = self.waiting
        return [n for n in range(self.expected, self.high) if n not in waiting]

    def absent(self) -> int:
        return len(self.missing())

    def knows(self, seq: int) -> bool:
        """Say whether the copies of a number below the expected one can still be compared."""
        return seq >= self.recent and seq + 2 * self.limits.window >= self.high

    # ---- datagrams

    def datagram(self, session: bytes, first: int, messages: list[bytes], line: int, recv: int) -> None:
        """Take a datagram with messages."""
        if session != self.session:
            if line == RECOVERY or session == self.left:
                self.refused["foreign"] += 1
                return
            if self.session is not None and not self.ended:
                self.consider("foreign", session, first, messages, line, recv)
                return
            self.begin(session, first)
        self.lines[line]["datagrams"] += 1
        self.counts["replies"] += line == RECOVERY
        behind, full = first + len(messages), self.limits.window
        if behind <= self.expected:
            before = self.note(line, first, behind)
            pairs = enumerate(messages, first)
            same = [self.compare(n, m, line, recv, before) for n, m in pairs]
            if line != RECOVERY and (not all(same) or behind + full <= self.expected):
                self.consider("duplicate", session, first, messages, line, recv)
            else:
                self.refused["duplicate"] += 1
        elif first > self.high + full:
            if line == RECOVERY:
                self.refused["far_ahead"] += 1
            else:
                self.doubt()
                self.consider("far_ahead", session, first, messages, line, recv)
        elif first <= self.expected and self.phase != SNAPSHOT:
            before = self.note(line, first, behind)
            self.counts["overlaps"] += first < self.expected
            for n, m in enumerate(messages, first):
                if n < self.expected or n in self.waiting:
                    self.compare(n, m, line, recv, before)
                else:
                    self.arrive(n, m, line, recv, before)
            start = self.expected
            self.expected = behind
            self.hand_out((n, m) for n, m in enumerate(messages, first) if n >= start)
            self.go_on()
            self.counts["delivered"] += 1
            self.drain()
        else:
            self.keep(first, messages, line, recv)

    def keep(self, first: int, messages: list[bytes], line: int, recv: int) -> None:
        behind = first + len(messages)
        before, is_news = self.note(line, first, behind), first > self.high
        self.reveal(first)
        if self.phase != SNAPSHOT and behind - self.expected > self.limits.window:
            if not self.limits.snapshot:
                self.refused["far_ahead"] += 1
                self.tail_ns = self.now if is_news else self.tail_ns
                self.give_up()
                return
            self.want()
        if not self.store(first, messages, line, recv, before):
            self.refused["duplicate"] += 1
            return
        if self.expected < first < self.hole_end and first in self.waiting:
            self.hole_end = first
        self.go_on()
        self.counts["kept"] += 1

    def store(self, first: int, messages: list[bytes], line: int, recv: int, before: int) -> int:
        new = 0
        for n, m in enumerate(messages, first):
            if n < self.expected or n in self.waiting:
                self.compare(n, m, line, recv, before)
                continue
            place = n % self.limits.window
            there = self.window[place][0] if place in self.window else 0
            if there > n:
                self.lines[line]["late"] += 1  # the window has left it behind
                continue
            if there >= self.expected:
                self.counts["overflow"] += 1
                self.counts["missing"] += 1
            self.arrive(n, m, line, recv, before)
            self.window[place] = (n, m, self.now)
            new += 1
        return new

    def arrive(self, seq: int, message: bytes, line: int, recv: int, before: int) -> None:
        """Note the first copy of a number."""
        self.copies[seq] = Copy(message, recv, line, {line})
        self.lines[line]["won"] += 1
        self.lines[line]["missing"] -= seq < before
        if seq >= self.high:
            self.high = seq + 1
            return
        self.counts["by_rerequest" if line == RECOVERY else "by_line"] += 1
        self.level = max(self.level, int(line == RECOVERY))
        self.progress = self.progress or line == RECOVERY

    def compare(self, seq: int, message: bytes, line: int, recv: int, before: int) -> bool:
        """Take a further copy of a number; return False when it differs."""
        mine = self.lines[line]
        if seq < self.expected and not self.knows(seq):
            mine["late"] += 1
            return True
        copy = self.copies[seq]
        if line in copy.lines:
            mine["repeats"] += 1
        else:
            copy.lines.add(line)
            mine["lost"] += 1
            mine["missing"] -= seq < before
            winner, lead = self.lines[copy.line], max(recv - copy.recv, 0)
            winner["leads"] += 1
            winner["lead_ns"] += lead
            winner["lead_ns_max"] = max(winner["lead_ns_max"], lead)
        if copy.message == message:
            return True
        self.counts["conflicts"] += 1
        self.conflict_seq = self.conflict_seq or seq
        return False

    def note(self, line: int, first: int, behind: int) -> int:
        """Follow a line's own numbers; return what it would have sent next."""
        if line == RECOVERY:
            return 0
        before = self.next_of.get(line, first)
        self.lines[line]["missing"] += max(first - before, 0)
        self.next_of[line] = max(before, behind)
        return before

    def consider(
        self, reason: str, session: bytes, first: int, messages: list[bytes], line: int, recv: int
    ) -> None:
        """Hold a datagram that may begin a new run; refuse it meanwhile."""
        self.refused[reason] += 1
        if self.held and self.held[0][0] == session:
            held_next = self.held[-1][1] + len(self.held[-1][2])
            if self.held[0][1] <= first and first + len(messages) <= held_next:
                return  # the other line's copy
            if first != held_next:
                self.held = []
        else:
            self.held = []
        self.held.append((session, first, messages))
        if len(self.held) < self.limits.agree:
            return
        held = self.held
        self.begin(session, held[0][1])
        self.refused[reason] -= len(held)
        self.counts["kept"] += len(held)
        for _, start, part in held:
            behind = start + len(part)
            full = self.phase != SNAPSHOT and behind - self.expected > self.limits.window
            if self.limits.snapshot and full:
                self.want()
            self.store(start, part, line, recv, self.note(line, start, behind))
        self.settling = True
        self.drain()

    def control(self, session: bytes, first: int, end: bool, line: int) -> None:
        """Take a heartbeat or an end of session."""
        if session != self.session:
            waiting = self.session is None or (self.ended and session != self.left)
            if not waiting or line == RECOVERY:
                self.refused["foreign"] += 1
                return
            self.begin(session, first)
        if first > self.high + self.limits.window and (line == RECOVERY or not self.doubt()):
            self.refused["far_ahead"] += 1
            return
        self.note(line, first, first)
        if first > self.high:
            self.tail_ns = self.now
            self.reveal(first)
        if first >= self.expected:
            self.go_on()
        self.counts["session_ends" if end else "heartbeats"] += 1
        self.ended = self.ended or end

    def doubt(self) -> bool:
        """Note a packet beyond the window; say whether enough of them came."""
        self.doubts += 1
        self.stale = True
        return self.doubts >= self.limits.agree

    def go_on(self) -> None:
        self.held = []
        if self.doubts and self.phase in {LIVE, WAITING}:
            self.stale = self.lossy
        self.doubts = 0

    # ---- gaps

    def reveal(self, first: int) -> None:
        """Learn that all numbers below `first` exist."""
        if first > self.high:
            self.counts["missing"] += first - self.high
            self.high = first
            self.open_gap(first)

    def open_gap(self, end: int) -> None:
        if self.open:
            return
        self.counts["gaps"] += 1
        self.open = self.settling = True
        self.level = self.asked = self.retries = 0
        self.progress = False
        self.hole_first, self.hole_end, self.hole_ns = self.expected, end, self.now
        if self.phase != SNAPSHOT:
            self.phase = WAITING

    def close(self) -> None:
        if self.open:
            self.counts["gaps_" + HOW[self.level]] += 1
        self.open = False

    def hand_out(self, pairs) -> None:
        for n, m in pairs:
            self.delivered.append((n, m))
            self.books.append(m)

    def drain(self) -> None:
        """Deliver what waits for nothing any more, and look at where that ends."""
        if not self.settling or self.phase == SNAPSHOT:
            return
        waiting = self.waiting
        while self.expected in waiting:
            self.hand_out([(self.expected, waiting[self.expected][0])])
            self.expected += 1
        waiting = self.waiting
        if self.expected >= self.high:
            self.close()
            self.settling, self.phase, self.attempts, self.stale = False, LIVE, 0, self.lossy
            return
        if self.expected == self.hole_first:
            return
        self.hole_first, self.round_ns = self.expected, self.now
        if self.expected >= self.hole_end:
            self.hole_end = min([*waiting, self.high])
            seen = waiting[self.hole_end][1] if self.hole_end in waiting else self.tail_ns
            self.hole_ns = max(seen, self.settled_ns)
            if self.hole_ns > self.settled_ns:
                self.attempts = 0
            if self.now - self.hole_ns < self.limits.wait:
                self.phase, self.stale = WAITING, self.lossy

    def give_up(self) -> None:
        if self.limits.snapshot:
            self.want()
            return
        self.counts["lost"] += self.hole_end - self.expected
        self.level, self.lossy, self.stale = 3, True, True
        self.recent = self.expected = self.hole_end
        self.drain()

    def want(self) -> None:
        self.phase, self.stale, self.incomplete, self.loading = SNAPSHOT, True, True, False
        self.heard = self.now
        if self.attempts == 0:
            self.due = 0
            self.wanted += 1
        else:
            self.due = self.now + self.limits.hold * 2 ** min(self.attempts - 1, 6)
        self.attempts += 1

    def fail(self) -> None:
        self.counts["snapshots_failed"] += 1
        self.want()

    # ---- time

    def tick(self, now: int) -> None:
        """Let time pass."""
        self.now = now
        if not self.run:
            self.counts["stale_rows"] += len(self.rows)
            self.rows = []
            return
        if self.take_rows():
            self.drain()
            return
        if self.phase == SNAPSHOT:
            self.wait_for_snapshot()
            return
        if self.settling:
            self.work_on_gap()

    def work_on_gap(self) -> None:
        limits, age = self.limits, self.now - self.hole_ns
        if age < limits.wait:
            return
        self.stale = True
        if limits.servers:
            self.phase = REREQUEST
            patience = limits.reply * 2 ** min(self.retries, 6)
            if self.asked > self.expected and self.now - self.round_ns >= patience:
                self.asked = 0
                self.counts["retried"] += 1
                if self.progress:
                    self.progress, self.retries = False, 0
                else:
                    self.retries += 1
                    self.server = (self.server + 1) % limits.servers
        hopeless = self.retries > limits.retries or (not limits.servers and limits.snapshot)
        if hopeless or age >= limits.timeout:
            self.give_up()
        elif limits.servers and self.now >= self.next_request:
            self.ask()

    def ask(self) -> None:
        missing = [n for n in self.missing() if n >= self.asked]
        if not missing:
            self.asked = self.high
            return
        first = self.asked = missing[0]
        count = 1
        while count < self.limits.request_max and first + count in missing:
            count += 1
        seen, behind = self.hole_ns, first + count
        if first >= self.hole_end:
            if behind in self.waiting:
                seen = self.waiting[behind][1]
            elif behind == self.high:
                seen = self.tail_ns
            elif first - 1 in self.waiting:
                seen = self.waiting[first - 1][1]
        if self.now - seen < self.limits.wait:
            return
        self.requests.append((self.server, first, count))
        self.asked = behind
        self.next_request = self.now + self.limits.interval
        if first == self.expected:
            self.round_ns = self.now

    # ---- snapshots: rows are (kind, wanted, session, messages, number)

    def take_rows(self) -> bool:
        while self.rows:
            kind, wanted, session, messages, seq = self.rows.pop(0)
            ready = self.phase == SNAPSHOT and not self.due and wanted == self.wanted
            if not ready or (kind != "begin" and not self.loading):
                self.counts["stale_rows"] += 1
                continue
            self.heard = self.now
            if kind == "messages":
                self.books.extend(messages)
                self.counts["snapshot_messages"] += len(messages)
                return True
            if kind == "end":
                self.finish(seq)
                return True
            if kind == "begin" and session == self.session:
                self.run += 1
                self.books.append(None)
                self.loading = self.hollow = True
            else:
                self.fail()
        return False

    def finish(self, seq: int) -> None:
        before = self.absent()
        self.counts["by_snapshot"] += len([n for n in self.missing() if n < seq])
        self.counts["superseded"] += len([n for n in self.waiting if n < seq])
        again = seq < self.expected
        self.expected, self.high, self.recent = seq, max(seq, self.high), seq
        if again:
            self.counts["missing"] += self.absent() - before
        self.incomplete = self.loading = self.lossy = self.hollow = False
        self.stale = self.expected < self.high
        if self.open:
            self.level = 2
        elif self.absent():
            self.open_gap(0)
        self.hole_first = self.hole_end = self.asked = self.retries = 0
        self.settled_ns, self.settling, self.phase = self.now, True, REREQUEST
        self.counts["snapshots"] += 1

    def wait_for_snapshot(self) -> None:
        repaired = self.expected in self.waiting or self.expected == self.high
        if repaired and not self.loading and not self.hollow:
            self.counts["cancelled"] += 1
            self.due, self.phase, self.incomplete = 0, REREQUEST, False
            self.drain()
        elif self.due:
            if self.now >= self.due:
                self.due, self.heard = 0, self.now
                self.wanted += 1
        elif self.now - self.heard >= self.limits.silence:
            self.fail()
