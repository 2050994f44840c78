"""Properties of FIX byte streams: how they are cut does not matter, no number is used twice, gaps close."""

from __future__ import annotations

import itertools
import socket

import pytest
from fix_link_rig import NOW, THEIRS, LinkRig, from_venue, logon
from fix_session_rig import Line
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fix_link import Link

from nimbus.fix.framing import Framer
from nimbus.fix.message import NS_PER_S, Message, stamp
from nimbus.fix.session import Session
from nimbus.fix.settings import Role, SessionSettings
from nimbus.fix.store import Store
from nimbus.fix.table import Event, State
from nimbus.messages import OUT_ESTABLISH, OUT_OPEN

LATE = NOW - 500 * NS_PER_S
STAMP = stamp(NOW - NS_PER_S)


def break_up(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@st.composite
def streams(draw):
    """Return a stream of a peer whose numbers begin at 2: gaps, repeats, garble and strangers included."""
    seq, out = 2, b""
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from("8888990123D5j"))
        step = draw(st.sampled_from([0, 0, 0, 0, 0, 1, 3, -1]))
        pairs = (
            [(36, seq + draw(st.integers(0, 4))), (123, draw(st.sampled_from("YYN")))] if kind == "4" else []
        )
        original = STAMP if draw(st.integers(0, 5)) == 0 else b""
        when = LATE if draw(st.integers(0, 15)) == 0 else NOW
        text = from_venue(kind, max(seq + step, 1), *pairs, now_ns=when, original=original)
        fate = draw(st.integers(0, 20))
        if fate == 0:
            text = text.replace(b"49=VENUE", b"49=OTHER")  # its checksum is wrong now
        elif fate == 1:
            text = draw(st.binary(max_size=9)) + text
        out += text
        seq += step == 0
    return out


# ---------------------------------------------------------------- splits


@given(streams(), st.lists(st.integers(0, 5_000), max_size=30))
def test_the_plain_session_does_the_same_however_the_stream_is_cut(stream, cuts):
    results = []
    for pieces in ([stream], break_up(stream, cuts), [stream[n : n + 1] for n in range(len(stream))]):
        line = Line(Role.INITIATOR)
        line.session = Session(
            SessionSettings(Role.INITIATOR, "CONTRAFUSION", "VENUE"), {"VENUE": line.store}
        )
        line.session.connected(NOW)
        line.take(logon())
        sent = [m.raw for m in line.take(*pieces)]
        apps = [m.raw for m in line.apps()]
        results.append((sent, apps, line.store.next_in, line.state, line.kinds(), line.session.counts))
    assert results[0] == results[1] == results[2]


@pytest.fixture(scope="module")
def rig():
    return LinkRig(connect=False)


@settings(max_examples=150)
@given(stream=streams(), cuts=st.lists(st.integers(0, 5_000), max_size=8))
def test_the_kernel_does_what_its_twin_does_however_the_stream_is_cut(rig, stream, cuts):
    ours, peer = socket.socketpair()
    with ours, peer:
        rig.transport.set_numbers(1, 1)
        rig.transport.command(OUT_OPEN, fd=ours.fileno())
        peer.sendall(logon())
        rig.wait(Event.LOGON)
        rig.transport.command(OUT_ESTABLISH)
        rig.work()
        before, twin = rig.transport.counters(), Link(THEIRS, 120 * NS_PER_S, 2)
        twin.receive(stream, NOW)
        found = []
        for piece in break_up(stream, cuts):
            peer.sendall(piece)
            rig.work(2)
            found += rig.transport.events()
        peer.close()
        rig.until(lambda: found.extend(rig.transport.events()) or rig.transport.phase == "down")
        found += rig.transport.events()
    assert [(e.event, e.next_in) for e in found[:-1]] == twin.events
    assert found[-1].event is Event.DISCONNECTED
    assert rig.arrived() == twin.delivered
    after = rig.transport.counters()
    assert rig.transport.word("next_in") == twin.next_in
    assert after["repeated"] - before["repeated"] == twin.repeated
    assert after["garbled"] - before["garbled"] == twin.framer.garbled
    assert after["skipped_size"] - before["skipped_size"] == twin.framer.skipped_size


# ---------------------------------------------------------------- two sessions and a bad line


class World:
    """An initiator and an acceptor; bytes wait on the line, may be spoiled, and are lost when it is cut."""

    def __init__(self) -> None:
        self.now_ns = NOW
        self.stores = {role: Store() for role in Role}
        self.names = {Role.INITIATOR: "US", Role.ACCEPTOR: "THEM"}
        self.said: dict[Role, list[bytes]] = {role: [] for role in Role}
        self.heard: dict[Role, list[bytes]] = {role: [] for role in Role}
        self.used: dict[tuple[Role, int], tuple[str, bytes]] = {}
        self.watch: dict[Role, Framer] = {}
        self.connect()

    def connect(self) -> None:
        self.ends, self.line, self.is_up = {}, dict.fromkeys(Role, b""), True
        for role, other in ((Role.INITIATOR, Role.ACCEPTOR), (Role.ACCEPTOR, Role.INITIATOR)):
            target = self.names[other]
            agreed = SessionSettings(role, self.names[role], target if role is Role.INITIATOR else "")
            self.ends[role] = Session(agreed, {target: self.stores[role]})
            self.watch[role] = Framer()
            self.ends[role].connected(self.now_ns)
        self.collect()

    def cut(self) -> None:
        for end in self.ends.values():
            end.disconnected(self.now_ns)
        self.is_up, self.line = False, dict.fromkeys(Role, b"")

    def collect(self) -> None:
        """Put what both want to send on the line, and look at its numbers."""
        for role, end in self.ends.items():
            out = end.take_output()
            self.line[role] += out
            for raw in self.watch[role].feed(out):
                message = Message.parse(raw)
                first = self.used.setdefault((role, message.seq), (message.msg_type, message.body))
                if message.is_poss_dup:
                    assert message.msg_type == "4" or first == (message.msg_type, message.body)
                else:
                    assert first == (message.msg_type, message.body), "a number was used twice"
        if any(end.is_closed for end in self.ends.values()) and not any(self.line.values()):
            self.cut()

    def say(self, role: Role) -> None:
        body = b"58=%d\x01" % len(self.said[role])
        if not self.ends[role].target:
            return  # an acceptor does not know yet to whom
        self.said[role].append(body)
        self.used[role, self.ends[role].send("B", body, self.now_ns)] = ("B", body)
        self.collect()

    def move(self, role: Role, size: int) -> None:
        """Let bytes reach the other side."""
        if not self.is_up:
            return
        data, self.line[role] = self.line[role][:size], self.line[role][size:]
        other = next(r for r in Role if r is not role)
        self.ends[other].received(data, self.now_ns)
        self.heard[role] += [m.body for m in self.ends[other].messages()]
        self.collect()

    def spoil(self, role: Role, at: int) -> None:
        """Change a byte inside a message on the line, its head excepted."""
        data = bytearray(self.line[role])
        if len(data) > 30:
            data[at % (len(data) - 25) + 20] ^= 1
            self.line[role] = bytes(data)

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_S)
        for end in self.ends.values():
            if self.is_up:
                end.tick(self.now_ns)
        self.collect()

    def settle(self) -> None:
        """Let everything arrive, connect again where needed, until nothing more happens."""
        for _ in range(60):
            if not self.is_up:
                self.connect()
            for _ in range(20):
                for role in Role:
                    self.move(role, 1 << 20)
            if all(end.state is State.ACTIVE for end in self.ends.values()) and self.agrees():
                return
            self.wait(5)

    def agrees(self) -> bool:
        left, right = self.stores.values()
        return (left.next_in, left.next_out) == (right.next_out, right.next_in) and self.said == self.heard


STEP = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(Role)),
    st.tuples(st.just("say"), st.sampled_from(Role)),
    st.tuples(st.just("move"), st.sampled_from(Role), st.sampled_from([1, 7, 80, 200, 5_000])),
    st.tuples(st.just("move"), st.sampled_from(Role), st.just(5_000)),
    st.tuples(st.just("spoil"), st.sampled_from(Role), st.integers(0, 2_000)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 11, 31, 80])),
)


@settings(max_examples=300)
@given(st.lists(STEP, max_size=40))
def test_no_number_is_used_twice_and_every_message_arrives_once_and_in_order(steps):
    world = World()
    for name, *arguments in steps:
        if name == "cut" and not world.is_up:
            world.connect()
        else:
            getattr(world, name)(*arguments)
    world.settle()
    assert world.heard == world.said
    assert {end.state for end in world.ends.values()} == {State.ACTIVE}
    assert world.agrees()
