"""The session table: every pair of state and event, one by one."""

from __future__ import annotations

import itertools

import pytest

from nimbus.fix.engine import REJECTS, Engine
from nimbus.fix.message import Address, Message, encode, fields, stamp
from nimbus.fix.settings import Role, SessionSettings
from nimbus.fix.table import REFUSED, TABLE, Event, State, row_of

NOW = 1_764_111_111_123_456_789
THEIRS = Address("FIX.4.4", "THEM", "US")
PAIRS = list(itertools.product(State, Event))
MESSAGE = Message.parse(
    encode(THEIRS, "A", 5, stamp(NOW), fields([(7, 1), (16, 0), (98, 0), (108, 30), (112, "x")]))
)


class Paper:
    """A port that writes down what the engine wants."""

    next_in, next_out, highest, sent_ns, received_ns = 5, 9, 7, NOW, NOW

    def __init__(self):
        self.wanted = []

    def send(self, msg_type, _body, _now_ns):
        self.wanted.append(msg_type)
        return 0

    def resend(self, first, last, _now_ns):
        self.wanted.append(("resend", first, last))

    def deliver(self, message):
        self.wanted.append(("deliver", message))

    def reset(self, next_in):
        self.wanted.append(("reset", next_in))

    def establish(self):
        self.wanted.append("establish")

    def release(self):
        self.wanted.append("release")

    def close(self):
        self.wanted.append("close")


def run(state, event, role=Role.ACCEPTOR):
    """Return (state afterwards, what was wanted) of one event in one state."""
    port = Paper()
    engine = Engine(SessionSettings(role, "US", "THEM"), port)
    engine.state = state
    engine.on(event, NOW, MESSAGE)
    return engine.state, port.wanted


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.name)
@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_a_pair_does_what_its_row_says_and_a_pair_without_a_row_closes(state, event, role):
    after, wanted = run(state, event, role)
    row = row_of(state, event)
    assert after is row.state
    assert ("close" in wanted) == ("close" in row.actions)
    assert ("5" in wanted) == bool({"log_out", "answer_logout"} & set(row.actions))
    assert ("A" in wanted) == bool({"send_logon", "answer_logon"} & set(row.actions))
    assert ("3" in wanted) == ("reject" in row.actions)
    if (state, event) not in TABLE:
        assert row is REFUSED
        assert (after, wanted) == (State.CLOSED, ["close"])


def test_every_action_of_the_table_exists_and_none_is_left_over():
    named = {action for row in [*TABLE.values(), REFUSED] for action in row.actions}
    assert named == {name.removeprefix("_do_") for name in vars(Engine) if name.startswith("_do_")}


def test_every_rejected_event_has_its_reason():
    assert {event for (_, event), row in TABLE.items() if "reject" in row.actions} == set(REJECTS)


def test_a_session_is_entered_by_a_logon_alone():
    inside = {State.ACTIVE, State.RECOVERING}
    doors = {event for (state, event), row in TABLE.items() if row.state in inside and state not in inside}
    assert doors == {Event.LOGON, Event.LOGON_HIGH, Event.LOGON_RESET}


def test_a_closed_session_wakes_up_with_a_connection_alone():
    woken = {
        event for (state, event), row in TABLE.items() if state is State.CLOSED and row.state is not state
    }
    assert woken == {Event.ACCEPTED, Event.CONNECTED}


@pytest.mark.parametrize("state", set(State) - {State.CLOSED}, ids=lambda state: state.name)
def test_every_state_has_a_way_out_in_bounded_time(state):
    assert row_of(state, Event.DISCONNECTED).state is State.CLOSED
    timers = {Event.LOGON_TIMEOUT, Event.LOGOUT_TIMEOUT, Event.DEAD}
    ways = [row_of(state, timer) for timer in timers if (state, timer) in TABLE]
    assert [(row.state, "close" in row.actions) for row in ways] == [(State.CLOSED, True)]


@pytest.mark.parametrize("state", [State.LOGOUT_SENT, State.CLOSING], ids=lambda state: state.name)
def test_after_our_logout_we_say_nothing_but_what_was_asked_to_be_sent_again(state):
    talk = {"reject", "log_out", "answer_test", "heartbeat", "test", "ask", "answer_logon", "answer_logout"}
    assert not any(talk & set(row.actions) for (at, _), row in TABLE.items() if at is state)


def test_application_messages_are_delivered_only_by_sessions_that_agree():
    at = {state for (state, _), row in TABLE.items() if "deliver" in row.actions}
    assert at == {State.ACTIVE, State.RECOVERING, State.LOGOUT_SENT}
