"""Scenarios of a FIX session, continued: identity, time, silence, resending, the end: S18 to S40."""

from __future__ import annotations

import pytest
from fix_session_rig import NOW, THEM, US, Line, active, brief, initiator

from nimbus.fix.dialect import FIX42, FIX50SP2
from nimbus.fix.engine import Kind
from nimbus.fix.message import NS_PER_S, stamp
from nimbus.fix.settings import Role, SessionSettings
from nimbus.fix.store import FileLog, Store
from nimbus.fix.table import Event, State

ORDER = ((11, "x"), (55, "A"))


# ---------------------------------------------------------------- whose, and when


def test_s18_another_begin_string_or_another_comp_id_in_the_session():
    line = active()
    assert brief(line.give("0", begin_string="FIX.4.2")) == [("5", 2, "58=Incorrect BeginString|")]
    for field in ({"sender": "XX"}, {"target": "XX"}):
        line = active()
        sent = line.give("D", *ORDER, **field)
        assert brief(sent) == [("3", 2, "45=2|58=CompID problem|372=D|373=9|"), ("5", 3, "")]
        assert line.apps() == []


@pytest.mark.parametrize(("offset_s", "is_taken"), [(-121, False), (-119, True), (119, True), (121, False)])
def test_s19_a_sending_time_too_far_from_ours(offset_s, is_taken):
    line = active()
    line.now_ns += offset_s * NS_PER_S
    text = line.text("D", *ORDER)
    line.now_ns = NOW
    sent = line.take(text)
    assert [m.msg_type for m in sent] == ([] if is_taken else ["3", "5"])
    assert len(line.apps()) == is_taken


@pytest.mark.parametrize("role", Role)
def test_s20_a_heartbeat_goes_out_when_nothing_else_did(role):
    line = Line(role)
    line.sent()
    line.log_on()
    line.sent()
    line.wait(15)
    line.take(b"8")
    line.session.send("8", b"37=a\x01", line.now_ns)
    assert [m.msg_type for m in line.wait(29.8)] == ["8"]
    (beat,) = line.wait(0.2)
    assert (beat.msg_type, beat.get(52), beat.body) == ("0", stamp(line.now_ns), b"")


def test_s21_silence_is_tested_once_and_then_ends_the_connection():
    line = active()
    sent = line.wait(71.9)
    assert [m.msg_type for m in sent] == ["0", "1"]
    assert sent[1].text(112) == "TEST"
    assert not line.session.is_closed
    line.wait(0.1)
    assert line.session.is_closed
    assert line.kinds()[-1] is Kind.TIMED_OUT


def test_s21_an_answer_to_our_test_keeps_the_session_and_heartbeats_go_on():
    line = active()
    line.wait(36)
    line.give("0", (112, "TEST"))
    assert [m.msg_type for m in line.wait(35)] == ["0"]
    assert not line.session.is_closed


def test_s22_a_test_request_is_answered_with_its_id():
    assert brief(active().give("1", (112, "who there"))) == [("0", 2, "112=who there|")]


def test_s23_any_byte_is_a_sign_of_life():
    line = active()
    for _ in range(30):
        line.wait(10)
        line.take(b"8")
    assert not line.session.is_closed
    assert Kind.TIMED_OUT not in line.kinds()


def test_s23_messages_that_wait_behind_a_gap_are_signs_of_life_too():
    line = active(resend_timeout_s=1_000)
    line.seq = 5
    for _ in range(20):
        line.wait(20)
        line.give("0")
    assert line.state is State.RECOVERING


# ---------------------------------------------------------------- the end


def test_s26_a_logout_is_answered_and_the_connection_closed():
    line = active()
    assert brief(line.give("5", (58, "good night"))) == [("5", 2, "")]
    assert line.session.is_closed
    assert line.kinds()[-1] is Kind.LOGGED_OUT
    assert line.told[-1].text == "good night"
    assert line.take(line.text("D", *ORDER)) == []
    assert line.apps() == []


def test_s27_after_our_logout_resend_requests_are_answered_and_ten_seconds_waited():
    line = active()
    line.session.send("8", b"37=a\x01", NOW)
    line.session.stop(NOW)
    assert [m.msg_type for m in line.sent()] == ["8", "5"]
    assert brief(line.give("2", (7, 2), (16, 2))) == [("8", 2, "37=a|")]
    line.give("D", *ORDER)
    assert len(line.apps()) == 1  # it was on its way
    line.wait(9.9)
    assert not line.session.is_closed
    line.wait(0.1)
    assert line.session.is_closed


def test_s27_the_answer_to_our_logout_closes():
    line = active()
    line.session.stop(NOW)
    line.sent()
    assert line.give("5") == []
    assert line.session.is_closed


def test_s28_without_a_logout_the_numbers_stay():
    line = active()
    line.give("D", *ORDER)
    line.apps()
    line.session.disconnected(NOW)
    assert line.kinds()[-1] is Kind.LOST
    again = Line(store=line.store)
    assert brief(again.log_on(3)) == [("A", 2, "98=0|108=30|")]
    assert again.state is State.ACTIVE


def test_s29_application_messages_are_sent_again_and_runs_of_others_filled():
    line = active()
    for n, text in enumerate((b"37=a\x01", b"37=b\x01")):
        line.session.send("8", text, NOW + n)
        line.give("1", (112, "t"))
    sent = line.sent()
    line.now_ns += NS_PER_S
    again = line.give("2", (7, 1), (16, 0))
    assert brief(again) == [
        ("4", 1, "36=2|123=Y|"), ("8", 2, "37=a|"), ("4", 3, "36=4|123=Y|"), ("8", 4, "37=b|"),
        ("4", 5, "36=6|123=Y|"),
    ]  # fmt: skip
    assert all(m.is_poss_dup and m.get(52) == stamp(line.now_ns) for m in again)
    assert again[1].get(122) == stamp(NOW)
    assert again[0].get(122) == again[0].get(52)
    assert line.store.next_out == 6
    assert sent == []


@pytest.mark.parametrize(("first", "last"), [(0, 5), (9, 0), (3, 2), ("", 0), (1, "")])
def test_s29_a_resend_request_that_makes_no_sense_is_rejected(first, last):
    line = active()
    (reject,) = line.give("2", (7, first), (16, last))
    assert (reject.msg_type, reject.text(371), line.state) == ("3", "7", State.ACTIVE)


def test_s29_a_range_beyond_what_was_sent_ends_there():
    line = active()
    assert brief(line.give("2", (7, 1), (16, 999_999))) == [("4", 1, "36=2|123=Y|")]


def test_messages_sent_while_nobody_is_connected_are_asked_for_at_the_next_logon():
    line = active()
    line.session.disconnected(NOW)
    line.session.send("8", b"37=away\x01", NOW)
    again = Line(store=line.store)
    again.seq = 1
    again.log_on()
    assert brief(again.give("2", (7, 2), (16, 0))) == [("8", 2, "37=away|"), ("4", 3, "36=4|123=Y|")]


def test_s32_s33_numbers_and_messages_survive_the_process(tmp_path):
    log, later = FileLog(tmp_path / "session"), FileLog(tmp_path / "session")
    line = active(store=Store(log))
    line.session.send("8", b"37=a\x01", NOW)
    line.give("D", *ORDER)
    line.give("D", (11, "unprocessed"))
    messages = line.session.messages()
    assert next(messages).text(11) == "x"
    assert next(messages).text(11) == "unprocessed"  # the process dies while it is being processed
    store = Store(later)
    assert (store.next_in, store.next_out) == (3, 3)
    again = Line(store=store)
    assert brief(again.log_on(4)) == [("A", 3, "98=0|108=30|"), ("2", 4, "7=3|16=0|")]
    again.give("D", (11, "unprocessed"), seq=3, original=stamp(NOW))
    assert [m.text(11) for m in again.apps()] == ["unprocessed"]
    assert brief(again.give("2", (7, 2), (16, 2), seq=5)) == [("8", 2, "37=a|")]
    log.close()
    later.close()


def test_s35_a_long_gap_is_asked_for_in_chunks():
    line = active(resend_chunk=10)
    line.seq = 24
    assert brief(line.give("0")) == [("2", 2, "7=2|16=11|")]
    line.give("4", (36, 12), (123, "Y"), seq=2)
    assert brief(line.sent()) == []
    assert line.session.counts[Event.GAP_FILL] == 1


def test_s35_the_next_chunk_follows_when_one_has_come():
    line = active(resend_chunk=10)
    line.seq = 24
    line.give("0")
    assert brief(line.give("4", (36, 12), (123, "Y"), seq=2)) == [("2", 3, "7=12|16=21|")]
    assert brief(line.give("4", (36, 22), (123, "Y"), seq=12)) == [("2", 4, "7=22|16=25|")]
    line.give("4", (36, 25), (123, "Y"), seq=22)
    assert (line.state, line.store.next_in) == (State.ACTIVE, 26)


def test_s40_secrets_are_not_shown():
    line = initiator(username="u", password="open-sesame")
    line = Line(Role.INITIATOR, username="u", password="open-sesame")
    (logon,) = line.sent()
    assert logon.text(554) == "open-sesame"
    assert "open-sesame" not in repr(logon) + repr(line.settings)
    assert "554=***|" in repr(logon)


def test_other_dialects_differ_in_their_begin_string_and_logon():
    line = Line(Role.INITIATOR, dialect=FIX50SP2)
    (logon,) = line.sent()
    assert (logon.begin_string, logon.text(1137)) == ("FIXT.1.1", "9")
    line = Line(dialect=FIX42)
    assert line.log_on()[0].begin_string == "FIX.4.2"
    assert Line(dialect=FIX42).take(Line().text("A", (98, 0), (108, 30))) == []


WRONG = [
    {"sender": ""}, {"sender": "a=b"}, {"sender": "é"}, {"target": ""}, {"heartbeat_s": 0},
    {"resend_chunk": -1},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=r"CompID|range"):
        SessionSettings(**({"role": Role.INITIATOR, "sender": US, "target": THEM} | wrong))
