"""Scenarios of a FIX session, by their numbers in the specification: S01 to S17."""

from __future__ import annotations

import pytest
from fix_session_rig import NOW, US, Line, active, brief, initiator

from nimbus.fix.engine import Kind
from nimbus.fix.message import NS_PER_S, stamp
from nimbus.fix.session import HELD_MAX, Session
from nimbus.fix.settings import Reset, Role, SessionSettings
from nimbus.fix.store import Store
from nimbus.fix.table import Event, State

ORDER = ((11, "x"), (55, "A"))


# ---------------------------------------------------------------- Logon


def test_s01_the_logon_comes_first_and_nothing_else_until_it_is_answered():
    line = Line(Role.INITIATOR)
    assert brief(line.sent()) == [("A", 1, "98=0|108=30|")]
    assert line.session.send("D", b"11=x\x01", NOW) == 2
    assert line.sent() == []
    assert not line.session.is_logged_on
    line.log_on()
    assert line.session.is_logged_on


def test_s01_without_an_answer_the_connection_is_closed_after_ten_seconds():
    line = initiator()
    line.wait(9.9)
    assert not line.session.is_closed
    line.wait(0.1)
    assert line.session.is_closed
    assert line.kinds() == [Kind.TIMED_OUT]


def test_s02_a_reset_is_answered_with_141_and_both_numbers_begin_again():
    line = active()
    line.give("0")
    line.session.send("8", b"37=a\x01", NOW)
    line.sent()
    line.seq = 0
    assert brief(line.log_on(pairs=[(141, "Y")])) == [("A", 1, "98=0|108=30|141=Y|")]
    assert (line.store.next_in, line.store.next_out, line.store.sent(2)) == (2, 2, None)
    assert brief(line.give("1", (112, "t"))) == [("0", 2, "112=t|")]


def test_s02_a_reset_that_was_not_agreed_is_refused():
    line = Line(reset=Reset.NEVER)
    line.log_on(pairs=[(141, "Y")])
    assert line.session.is_closed
    line = active(reset=Reset.NEVER)
    assert brief(line.log_on(pairs=[(141, "Y")])) == [("5", 2, "58=ResetSeqNumFlag is not agreed|")]


def test_s02_an_initiator_resets_where_its_caller_says_that_a_day_begins():
    store = Store()
    store.next_in, store.next_out = 40, 50
    line = Line(Role.INITIATOR, store=store, connect=False)
    line.session.connected(NOW, is_new_day=True)
    assert brief(line.sent()) == [("A", 1, "98=0|108=30|141=Y|")]
    line.log_on(pairs=[(141, "Y")])
    assert (line.state, store.next_in, store.next_out) == (State.ACTIVE, 2, 2)


@pytest.mark.parametrize(("pairs", "seq"), [((), 1), (((141, "Y"),), 2)])
def test_s02_an_answer_without_the_reset_that_was_asked_for_is_refused(pairs, seq):
    line = Line(Role.INITIATOR, reset=Reset.ALWAYS)
    assert line.sent()[0].text(141) == "Y"
    assert line.log_on(seq, pairs=pairs)[0].msg_type == "5"
    assert line.state is State.CLOSING


def test_s03_a_logon_above_the_expected_number_is_accepted_and_the_gap_asked_for():
    assert brief(Line().log_on(5)) == [("A", 1, "98=0|108=30|"), ("2", 2, "7=1|16=0|")]
    line = initiator()
    assert brief(line.log_on(5)) == [("2", 2, "7=1|16=0|")]
    line.give("4", (36, 5), (123, "Y"), seq=1, original=stamp(NOW))
    assert (line.state, line.store.next_in) == (State.ACTIVE, 6)  # the Logon itself counts


@pytest.mark.parametrize("role", Role)
def test_s04_a_logon_below_the_expected_number_ends_in_a_logout_never_in_a_reset(role):
    store = Store()
    store.next_in = 7
    line = Line(role, store=store)
    line.sent()
    (logout,) = line.log_on(3)
    assert logout.text(58) == "MsgSeqNum too low, expecting 7 but received 3"
    assert (line.state, store.next_in) == (State.CLOSING, 7)
    assert line.session.is_held == (role is Role.INITIATOR)
    line.wait(2)
    assert line.session.is_closed


BAD_LOGONS = {
    "encryption": ((98, 1), (108, 30)), "no interval": ((98, 0),), "interval 0": ((98, 0), (108, 0)),
    "interval too long": ((98, 0), (108, 99_999)), "interval no number": ((98, 0), (108, "x")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LOGONS)
def test_s05_an_acceptor_closes_on_an_invalid_logon_without_a_word(name):
    line = Line()
    assert line.give("A", *BAD_LOGONS[name]) == []
    assert line.session.is_closed
    assert line.kinds() == [Kind.VIOLATION]


@pytest.mark.parametrize("name", [*BAD_LOGONS, "another interval"])
def test_s05_an_initiator_says_what_is_wrong_with_the_answer(name):
    line = initiator()
    (logout,) = line.give("A", *BAD_LOGONS.get(name, ((98, 0), (108, 31))))
    assert logout.msg_type == "5"
    assert logout.text(58)
    assert line.state is State.CLOSING


@pytest.mark.parametrize("field", [{"sender": "XX"}, {"target": "XX"}, {"begin_string": "FIX.4.3"}])
def test_s05_a_logon_of_somebody_else(field):
    line = Line()
    assert line.log_on(**field) == []
    assert line.session.is_closed
    line = initiator()
    assert line.log_on(**field)[0].msg_type == "5"


def test_s05_a_logon_at_another_time():
    line = Line()
    line.now_ns -= 200 * NS_PER_S
    text = line.text("A", (98, 0), (108, 30))
    line.now_ns = NOW
    assert line.take(text) == []
    assert line.session.is_closed
    assert brief(initiator().take(text)) == [("5", 2, "58=SendingTime accuracy problem|")]


@pytest.mark.parametrize("kind", [*"0123458", "D"])
def test_s06_a_first_message_that_is_no_logon(kind):
    line = Line()
    assert line.give(kind) == []
    assert line.session.is_closed
    line = initiator()
    sent = line.give(kind, (36, 5))
    if kind == "5":
        assert (sent, line.session.is_closed) == ([], True)
    else:
        assert brief(sent) == [("5", 2, "58=First message is not a Logon|")]
    assert line.apps() == []


def test_s07_a_logout_instead_of_an_answer_is_kept_with_its_text_and_no_number_is_guessed():
    line = initiator()
    assert line.give("5", (58, "no trading today")) == []
    assert line.session.is_closed
    assert line.kinds() == [Kind.REFUSED]
    assert line.told[0].text == "no trading today"
    assert line.store.next_out == 2


def test_a_second_connection_with_the_same_comp_ids_is_closed_without_a_word():
    line = active()
    other = Line(store=line.store)
    assert other.log_on(1) == []
    assert other.session.is_closed
    other.session.disconnected(NOW)
    assert brief(line.give("1", (112, "t"))) == [("0", 2, "112=t|")]
    line.session.disconnected(NOW)
    third = Line(store=line.store)
    assert brief(third.log_on(3)) == [("A", 3, "98=0|108=30|")]


def test_an_unknown_counterparty_is_closed_without_a_word():
    session = Session(SessionSettings(Role.ACCEPTOR, US), {"OTHER": Store()})
    session.connected(NOW)
    session.received(Line().text("A", (98, 0), (108, 30)), NOW)
    assert (session.is_closed, session.take_output()) == (True, b"")


# ---------------------------------------------------------------- numbers


def test_s09_messages_above_a_gap_wait_for_it_and_it_is_asked_for_once():
    line = active()
    line.seq = 4
    assert brief(line.give("D", *ORDER)) == [("2", 2, "7=2|16=0|")]
    assert line.give("1", (112, "late")) == []
    assert line.apps() == []
    assert line.state is State.RECOVERING
    line.give("D", (11, "a"), seq=2)
    line.give("D", (11, "b"), seq=3)
    assert brief(line.give("D", (11, "c"), seq=4)) == [("0", 3, "112=late|")]
    assert [m.text(11) for m in line.apps()] == ["a", "b", "c", "x"]
    assert (line.state, line.store.next_in) == (State.ACTIVE, 7)


def test_s09_a_gap_behind_a_gap_is_another_one():
    line = active()
    line.give("0", seq=3)
    line.give("4", (36, 3), (123, "Y"), seq=2)
    assert line.state is State.ACTIVE
    assert brief(line.give("0", seq=9)) == [("2", 3, "7=4|16=0|")]


def test_s09_a_request_that_is_not_answered_is_made_again_and_in_the_end_given_up():
    line = active()
    line.give("0", seq=5)
    asked = [m for m in line.wait(25) if m.msg_type == "2"]
    assert [m.text(7) for m in asked] == ["2", "2"]
    assert line.wait(6)[-1].text(58) == "No answer to ResendRequest from 2"
    assert line.state is State.CLOSING


def test_s09_a_resend_that_stops_half_way_is_asked_for_from_there():
    line = active()
    line.give("0", seq=5)
    line.give("0", seq=2)
    line.give("0", seq=3)
    assert [m.text(7) for m in line.wait(12) if m.msg_type == "2"] == ["4"]


def test_s09_a_resend_that_comes_slowly_is_not_asked_for_again():
    line = active()
    line.give("0", seq=9)
    for seq in range(2, 9):
        asked = [m for m in line.wait(8) if m.msg_type == "2"]
        assert asked == []
        line.give("0", seq=seq)
    assert line.state is State.ACTIVE


def test_s09_what_waited_for_a_gap_that_was_filled_over_takes_no_room_any_more():
    line = active()
    for seq in range(3, HELD_MAX + 3):
        line.session.received(line.text("0", seq=seq), NOW)
    line.give("4", (36, 20_000), (123, "Y"), seq=2)
    line.give("D", (11, "b"), seq=20_001)
    line.give("D", (11, "a"), seq=20_000)
    assert [m.text(11) for m in line.apps()] == ["a", "b"]


def test_s10_a_resend_request_above_a_gap_is_answered_before_ours_goes_out():
    line = active()
    line.session.send("8", b"37=a\x01", NOW)
    line.sent()
    line.seq = 6
    sent = line.give("2", (7, 1), (16, 0))
    assert brief(sent) == [("4", 1, "36=2|123=Y|"), ("8", 2, "37=a|"), ("2", 3, "7=2|16=0|")]
    line.give("4", (36, 7), (123, "Y"), seq=2)
    assert line.sent() == []  # not answered a second time when its turn comes
    assert line.store.next_in == 8


@pytest.mark.parametrize("kind", [*"0138", "D"])
def test_s11_a_number_used_before_ends_the_session(kind):
    line = active()
    line.give("0")
    (logout,) = line.give(kind, seq=2)
    assert logout.text(58) == "MsgSeqNum too low, expecting 3 but received 2"
    line.give("D", *ORDER, seq=3)
    assert line.apps() == []
    assert line.store.next_in == 3  # it was not processed: it will be asked for
    line.give("5", seq=4)
    assert line.session.is_closed


def test_s12_a_repeat_is_ignored_when_it_was_seen_and_taken_when_not():
    line = active()
    line.give("D", (11, "a"), seq=2)
    assert line.give("D", (11, "a"), seq=2, original=stamp(NOW)) == []
    line.give("D", (11, "b"), seq=3, original=stamp(NOW))
    assert [m.text(11) for m in line.apps()] == ["a", "b"]
    assert line.session.counts[Event.SEEN] == 1


def test_s13_a_repeat_without_its_first_time_is_rejected_and_uses_no_number():
    line = active()
    line.give("0")
    text = line.text("D", (43, "Y"), *ORDER, seq=2)
    assert brief(line.take(text)) == [("3", 2, "45=2|58=Required tag missing|371=122|372=D|373=1|")]
    assert (line.state, line.store.next_in) == (State.ACTIVE, 3)


def test_s13_a_first_time_after_the_second_is_rejected_and_ends_the_session():
    line = active()
    line.give("0")
    sent = line.give("D", *ORDER, seq=2, original=stamp(NOW + NS_PER_S))
    assert brief(sent) == [
        ("3", 2, "45=2|58=SendingTime accuracy problem|372=D|373=10|"), ("5", 3, ""),
    ]  # fmt: skip
    assert line.state is State.CLOSING


def test_s14_a_gap_fill_below_the_expected_number():
    line = active()
    line.give("0")
    assert line.give("4", (36, 9), (123, "Y"), seq=2, original=stamp(NOW)) == []
    assert (line.state, line.store.next_in) == (State.ACTIVE, 3)
    assert line.give("4", (36, 9), (123, "Y"), seq=2)[0].text(58).startswith("MsgSeqNum too low")


def test_s15_a_gap_fill_moves_the_number_when_it_is_next_and_shows_a_gap_when_not():
    line = active()
    line.give("4", (36, 20), (123, "Y"), seq=2)
    assert line.store.next_in == 20
    assert brief(line.give("4", (36, 40), (123, "Y"), seq=30)) == [("2", 2, "7=20|16=0|")]
    line.give("4", (36, 30), (123, "Y"), seq=20)
    assert (line.store.next_in, line.state) == (40, State.ACTIVE)


@pytest.mark.parametrize("new_seq", [1, "", "x"])
def test_s15_a_gap_fill_never_leads_back(new_seq):
    line = active()
    line.give("0")
    (reject,) = line.give("4", (36, new_seq), (123, "Y"), seq=3)
    assert (reject.text(373), line.store.next_in) == ("5", 3)


def test_s16_a_reset_goes_up_or_stays_whatever_its_number_and_never_back():
    line = active()
    for seq, new_seq in ((9, 5), (1, 5), (1, 70)):
        assert line.give("4", (36, new_seq), seq=seq) == []
        assert line.store.next_in == new_seq
    assert brief(line.give("4", (36, 69), seq=3)) == [
        ("3", 2, "45=3|58=Value is incorrect (out of range) for this tag|372=4|373=5|")
    ]
    assert (line.state, line.store.next_in) == (State.ACTIVE, 70)


def test_s16_a_reset_ends_a_gap():
    line = active()
    line.give("0", seq=9)
    assert line.state is State.RECOVERING
    line.give("4", (36, 10), seq=1)
    assert (line.state, line.store.next_in) == (State.ACTIVE, 10)


def test_s17_a_garbled_message_uses_no_number_and_the_next_one_shows_the_gap():
    line = active()
    text = line.text("D", *ORDER)
    assert line.take(text.replace(b"55=A", b"55=B")) == []
    assert line.session.garbled == 1
    assert brief(line.give("0")) == [("2", 2, "7=2|16=0|")]
    line.take(text)
    assert [m.text(11) for m in line.apps()] == ["x"]
