"""A live feed: lines merged, gaps held back and repaired, every number delivered once and accounted for."""

from __future__ import annotations

import itertools

import captures as c
import pytest
from live_rig import MS, US, LiveFed

from nimbus.feed.live import LiveSettings

SESSION, OTHER = b"000010059B", b"000010060C"
A, B, RECOVERY = 0, 1, 2
HEARTBEAT, END = 0, 0xFFFF
SERVERS = (("127.0.0.1", 1_000), ("127.0.0.1", 1_001))


def message(number: int) -> bytes:
    return c.itch("D", 19, ts_ns=number)


def datagram(first: int, count: int = 1, session: bytes = SESSION) -> bytes:
    return c.mold(session, first, [message(first + k) for k in range(count)])


def control(first: int, count: int = HEARTBEAT, session: bytes = SESSION) -> bytes:
    return c.mold(session, first, [], count=count)


def live(**settings) -> LiveFed:
    settings = {"window_messages": 1_024, "gap_wait_us": 500, "gap_timeout_ms": 100} | settings
    options = {k: settings.pop(k) for k in ("agree", "start_at_one") if k in settings}
    return LiveFed(LiveSettings(**settings), **options)


def numbers(feed: LiveFed) -> list[int]:
    feed.check()
    assert all(m == message(n) for n, m in feed.messages)
    return [n for n, _ in feed.messages]


def test_the_first_copy_wins_and_the_lines_are_compared():
    feed = live()
    for n in range(1, 50):
        feed.datagram(datagram(n), A, recv_ns=n * 100)
        feed.datagram(datagram(n), B, recv_ns=n * 100 + n)
    assert numbers(feed) == list(range(1, 50))
    lines = feed.live.lines()
    assert (lines["A"]["won"], lines["B"]["lost"], lines["A"]["lost"]) == (49, 49, 0)
    assert (lines["A"]["leads"], lines["A"]["lead_ns"], lines["A"]["lead_ns_max"]) == (49, 49 * 25, 49)
    assert (lines["A"]["missing"], lines["B"]["missing"]) == (0, 0)
    assert feed.feed.refused() == {"duplicate": 49}
    assert feed.live.phase == "live"


def test_a_gap_holds_the_feed_back_until_the_other_line_fills_it():
    feed = live()
    feed.tick(1 * MS)
    feed.datagram(datagram(1, 2), A)
    assert feed.datagram(datagram(5, 2), A) == 0
    feed.tick(1 * MS + 100 * US)
    assert (numbers(feed), feed.live.phase, feed.feed.stale) == ([1, 2], "waiting", False)
    feed.datagram(datagram(3, 2), B)
    assert (numbers(feed), feed.live.phase) == ([1, 2, 3, 4, 5, 6], "live")
    counts = feed.live.counters()
    assert (counts["missing"], counts["by_line"], counts["gaps_by_line"], counts["kept"]) == (2, 2, 1, 1)
    assert feed.live.lines()["A"]["missing"] == 2


def test_a_gap_past_its_wait_makes_the_books_stale_and_is_requested_once_in_bounded_pieces():
    feed = live(servers=SERVERS, request_messages_max=4, request_interval_us=100)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(12))
    for us in range(0, 2_000, 50):
        feed.tick(MS + us * US)
        assert feed.feed.stale == (us >= 500)
    assert feed.requests == [(0, 2, 4), (0, 6, 4), (0, 10, 2)]
    assert feed.live.phase == "rerequest"
    for first, count in ((2, 4), (6, 4), (10, 2)):
        feed.datagram(datagram(first, count), RECOVERY)
    assert (numbers(feed), feed.live.phase, feed.feed.stale) == (list(range(1, 13)), "live", False)
    counts = feed.live.counters()
    assert (counts["by_rerequest"], counts["gaps_by_rerequest"], counts["replies"]) == (10, 1, 3)
    assert counts["unsent"] == 3


def test_requests_keep_their_distance():
    feed = live(servers=SERVERS, request_messages_max=1, request_interval_us=1_000)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(100))
    for us in range(0, 10_000, 10):
        feed.tick(MS + us * US)
    assert feed.requests == [(0, n, 1) for n in range(2, 12)]


def test_every_hole_is_requested_in_its_turn_when_it_is_old_enough():
    feed = live(servers=SERVERS, request_messages_max=10)
    feed.tick(MS)
    for first in (1, 4, 5, 9):
        feed.datagram(datagram(first))
    feed.tick(MS + 300 * US)
    feed.datagram(datagram(11))
    for us in range(300, 790, 10):
        feed.tick(MS + us * US)
    assert feed.requests == [(0, 2, 2), (0, 6, 3)]
    feed.tick(MS + 800 * US)
    assert feed.requests[2:] == [(0, 10, 1)]


def test_a_server_that_does_not_answer_is_asked_less_and_less_and_the_next_one_takes_over():
    feed = live(servers=SERVERS, reply_timeout_ms=1, gap_timeout_ms=1_000, retries=3)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(3))
    times = []
    for us in range(0, 40_000, 100):
        feed.tick(MS + us * US)
        times += [us] * (len(feed.requests) - len(times))
    assert feed.requests == [(0, 2, 1), (1, 2, 1), (0, 2, 1), (1, 2, 1)]
    assert times == [500, 1_500, 3_500, 7_500]
    counts = feed.live.counters()  # the fourth round in vain was the last: given up for good
    assert (counts["lost"], counts["gaps_lost"], counts["retried"]) == (1, 1, 4)
    assert (numbers(feed), feed.feed.stale, feed.live.phase) == ([1, 3], True, "live")


def test_a_reply_that_is_lost_is_asked_for_again_from_the_same_server():
    feed = live(servers=SERVERS, reply_timeout_ms=1, request_messages_max=2)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(8))
    for us in range(0, 1_000, 100):
        feed.tick(MS + us * US)
    feed.datagram(datagram(2, 2), RECOVERY)
    feed.datagram(datagram(6, 2), RECOVERY)
    for us in range(1_000, 2_100, 100):
        feed.tick(MS + us * US)
    assert feed.requests == [(0, 2, 2), (0, 4, 2), (0, 6, 2), (0, 4, 2)]
    feed.datagram(datagram(4, 2), RECOVERY)
    assert numbers(feed) == list(range(1, 9))


def test_a_gap_older_than_its_timeout_is_lost_when_there_is_no_snapshot_and_the_books_stay_stale():
    feed = live(servers=SERVERS, gap_timeout_ms=20)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(4, 2))
    for ms in range(1, 25):
        feed.tick(ms * MS)
    feed.datagram(datagram(6))
    assert (numbers(feed), feed.feed.stale) == ([1, 4, 5, 6], True)
    feed.datagram(datagram(2, 2), B)  # too late
    assert (numbers(feed), feed.live.lines()["B"]["late"]) == ([1, 4, 5, 6], 2)


@pytest.mark.parametrize("kind", [HEARTBEAT, END])
def test_the_last_packet_is_missed_by_a_heartbeat_or_the_end_of_the_session(kind):
    feed = live(servers=SERVERS)
    feed.tick(MS)
    feed.datagram(datagram(1, 2))
    feed.datagram(control(5, kind))
    feed.tick(2 * MS)
    assert feed.requests == [(0, 3, 2)]
    assert feed.feed.stale
    feed.datagram(datagram(3, 2), RECOVERY)
    assert (numbers(feed), feed.live.phase, feed.feed.stale) == ([1, 2, 3, 4], "live", False)


def test_a_full_window_without_a_snapshot_gives_the_gap_up_and_loses_nothing_else():
    feed = live(servers=SERVERS, gap_timeout_ms=10_000)
    feed.tick(MS)
    feed.datagram(datagram(1))
    for n in range(3, 1_200):
        feed.datagram(datagram(n))
    feed.check()
    counts = feed.live.counters()
    assert (counts["lost"], counts["overflow"], feed.live.missing_now()) == (1, 0, 1)
    assert feed.feed.refused() == {"far_ahead": 1}  # 1,026: there was no room until 2 was given up
    for us in range(0, 5_000, 100):
        feed.tick(2 * MS + us * US)
    assert feed.requests[-1] == (0, 1_026, 1)
    feed.datagram(datagram(1_026), RECOVERY)
    assert numbers(feed) == [1, *range(3, 1_200)]


# ---------------------------------------------------------------- snapshots


def stuck(**settings) -> LiveFed:
    """Return a feed that has 1, 2 and 6, 7 and wants a snapshot."""
    feed = live(snapshot=True, **settings)
    feed.tick(MS)
    feed.datagram(datagram(1, 2))
    feed.datagram(datagram(6, 2))
    feed.tick(2 * MS)
    assert (feed.live.phase, feed.live.wanted) == ("snapshot", 1)
    return feed


BOOK = [c.itch("A", 36, fill=k) for k in range(25)]


def test_without_a_rerequest_server_a_snapshot_replaces_what_is_missing():
    feed = stuck()
    assert (feed.feed.stale, feed.feed.incomplete) == (True, True)
    feed.snapshot(6, BOOK)
    assert feed.books == [None, message(1), message(2), None, *BOOK, message(6), message(7)]
    assert (feed.feed.stale, feed.feed.incomplete, feed.live.phase, feed.live.wanted) == (
        False,
        False,
        "live",
        0,
    )
    counts = feed.live.counters()
    assert (counts["by_snapshot"], counts["gaps_by_snapshot"], counts["snapshots"]) == (3, 1, 1)
    assert counts["snapshot_messages"] == len(BOOK)
    feed.datagram(datagram(8))
    assert numbers(feed) == [1, 2, 6, 7, 8]


def test_messages_that_arrive_during_a_snapshot_follow_it():
    feed = stuck()
    assert feed.push(1, 1)
    feed.tick(3 * MS)
    feed.datagram(datagram(8, 2))
    feed.datagram(datagram(9, 3))
    assert feed.push(3, 1, seq=7)
    feed.tick(4 * MS)
    assert numbers(feed) == [1, 2, 7, 8, 9, 10, 11]
    assert feed.live.counters()["superseded"] == 1


def test_a_snapshot_newer_than_all_that_was_heard_is_where_the_feed_goes_on():
    feed = stuck()
    feed.snapshot(50, BOOK)
    feed.datagram(datagram(48, 4))
    assert (numbers(feed), feed.live.phase) == ([1, 2, 50, 51], "live")


def test_a_snapshot_to_which_the_window_does_not_reach_down_leaves_a_gap_that_is_repaired():
    feed = stuck(servers=SERVERS, retries=0, reply_timeout_ms=1, gap_wait_us=100, gap_timeout_ms=1)
    feed.snapshot(4, BOOK)
    assert (numbers(feed), feed.live.phase) == ([1, 2], "waiting")
    feed.requests.clear()
    feed.tick(2 * MS + 200 * US)
    assert feed.requests == [(0, 4, 2)]
    feed.datagram(datagram(4, 2), RECOVERY)
    assert (numbers(feed), feed.live.phase) == ([1, 2, 4, 5, 6, 7], "live")


def test_a_snapshot_older_than_the_feed_needs_the_old_messages_again():
    feed = stuck(servers=SERVERS, retries=0, reply_timeout_ms=1, gap_wait_us=100, gap_timeout_ms=1)
    feed.snapshot(1, BOOK)
    feed.tick(2 * MS + 200 * US)
    feed.datagram(datagram(1, 5), RECOVERY)
    assert (numbers(feed), feed.live.phase) == ([1, 2, 1, 2, 3, 4, 5, 6, 7], "live")
    assert feed.books[3:] == [None, *BOOK, *map(message, range(1, 8))]


def test_snapshots_that_do_not_help_are_wanted_more_and_more_slowly():
    feed = stuck(gap_wait_us=100, gap_timeout_ms=1, snapshot_hold_ms=10)
    times, ms = [], 2
    while len(times) < 5:
        if feed.live.wanted:
            times.append(ms)
            feed.snapshot(4, BOOK[:2])
        ms += 1
        feed.tick(ms * MS)
        assert ms < 1_000
    assert [b - a for a, b in itertools.pairwise(times)] == [11, 21, 41, 81]
    assert feed.live.counters()["snapshots"] == 5
    feed.datagram(datagram(4, 2), B)
    feed.tick(ms * MS)
    assert (numbers(feed), feed.live.phase, feed.live.record["attempts"]) == ([1, 2, 4, 5, 6, 7], "live", 0)


def test_a_repair_before_the_snapshot_has_begun_cancels_it():
    feed = stuck()
    feed.datagram(datagram(3, 3), B)
    feed.tick(3 * MS)
    assert (numbers(feed), feed.live.phase, feed.live.wanted) == ([1, 2, 3, 4, 5, 6, 7], "live", 0)
    assert (feed.feed.stale, feed.feed.incomplete, feed.feed.run) == (False, False, 1)
    assert feed.push(1, 1)
    feed.tick(4 * MS)
    assert (feed.feed.run, feed.live.counters()["stale_rows"], feed.live.counters()["cancelled"]) == (1, 1, 1)


def test_a_repair_after_the_snapshot_has_begun_does_not_stop_it():
    feed = stuck()
    assert feed.push(1, 1)
    feed.tick(3 * MS)
    feed.datagram(datagram(3, 3), B)
    feed.tick(4 * MS)
    assert (numbers(feed), feed.live.phase) == ([1, 2], "snapshot")
    assert feed.push(3, 1, seq=5)
    feed.tick(5 * MS)
    assert (numbers(feed), feed.live.phase) == ([1, 2, 5, 6, 7], "live")


@pytest.mark.parametrize("fault", ["abort", "silence", "session", "end", "row"])
def test_a_snapshot_that_fails_is_wanted_again_after_a_while(fault):
    feed = stuck(snapshot_timeout_ms=100, snapshot_hold_ms=10)
    assert feed.push(1, 1, session=OTHER if fault == "session" else b"")
    feed.tick(3 * MS)
    if fault == "abort":
        feed.abort()
    elif fault == "end":
        assert feed.push(3, 1, seq=0)
    elif fault == "row":
        assert feed.push(2, 1, data=b"\0\2A")
    feed.tick(4 * MS)
    feed.tick(103 * MS)
    assert (feed.live.wanted, feed.live.counters()["snapshots_failed"]) == (2 if fault != "silence" else 0, 1)
    feed.tick(113 * MS)
    assert feed.live.wanted == 2
    feed.snapshot(6, BOOK)
    assert numbers(feed) == [1, 2, 6, 7]


def test_a_full_window_wants_a_snapshot_and_keeps_the_newest():
    feed = live(snapshot=True, servers=SERVERS, gap_timeout_ms=10_000)
    feed.tick(MS)
    feed.datagram(datagram(1))
    for n in range(3, 1_500, 2):
        feed.datagram(datagram(n, 2))
    assert feed.live.phase == "snapshot"
    feed.check()
    assert feed.live.counters()["overflow"] == 1_501 - 3 - 1_024
    feed.snapshot(1_400, BOOK)
    assert numbers(feed) == [1, *range(1_400, 1_501)]
    assert feed.live.missing_now() == 0


def test_a_late_join_takes_a_snapshot_at_once():
    feed = live(snapshot=True)
    feed.tick(MS)
    feed.datagram(datagram(900, 2))
    feed.datagram(datagram(902))
    assert (numbers(feed), feed.live.wanted, feed.feed.incomplete, feed.feed.stale) == ([], 1, True, True)
    feed.snapshot(901, BOOK)
    assert (numbers(feed), feed.live.phase, feed.feed.incomplete, feed.feed.stale) == (
        [901, 902],
        "live",
        False,
        False,
    )
    assert feed.live.counters()["gaps"] == 0


def test_a_late_join_with_an_older_snapshot_repairs_the_difference():
    feed = live(snapshot=True, servers=SERVERS)
    feed.tick(MS)
    feed.datagram(datagram(900, 2))
    feed.snapshot(890, BOOK)
    assert feed.live.phase == "waiting"
    feed.tick(2 * MS)
    assert feed.requests == [(0, 890, 10)]
    feed.datagram(datagram(890, 10), RECOVERY)
    assert (numbers(feed), feed.live.phase) == (list(range(890, 902)), "live")


def test_a_late_join_without_a_snapshot_server_is_incomplete_and_goes_on():
    feed = live()
    feed.datagram(datagram(900, 2))
    assert (numbers(feed), feed.feed.incomplete, feed.live.phase) == ([900, 901], True, "live")


def test_a_session_that_should_begin_at_one_is_requested_from_there():
    feed = live(servers=SERVERS, start_at_one=True)
    feed.tick(MS)
    feed.datagram(datagram(11))
    feed.tick(2 * MS)
    assert feed.requests == [(0, 1, 10)]
    feed.datagram(datagram(1, 10), RECOVERY)
    assert (numbers(feed), feed.feed.incomplete, feed.feed.stale) == (list(range(1, 12)), False, False)


# ---------------------------------------------------------------- conflicts, runs, sessions


@pytest.mark.parametrize("place", ["delivered", "window", "overlap"])
def test_two_copies_that_differ_are_a_conflict_and_the_first_one_stays(place):
    feed = live()
    feed.datagram(datagram(1, 3))
    other = c.mold(SESSION, 3, [c.itch("D", 19, ts_ns=77)])
    if place == "window":
        feed.datagram(datagram(6))
        other = c.mold(SESSION, 6, [c.itch("D", 19, ts_ns=77)])
    elif place == "overlap":
        other = c.mold(SESSION, 3, [c.itch("D", 19, ts_ns=77), message(4)])
    assert feed.live.conflict_seq == 0
    feed.datagram(other, B)
    assert (feed.live.conflict_seq, feed.live.counters()["conflicts"]) == (6 if place == "window" else 3, 1)
    feed.datagram(datagram(4, 2), B)
    assert numbers(feed) == list(range(1, 7 if place == "window" else 6))


def test_a_conflict_is_noticed_in_every_byte():
    text = bytes(range(19))
    for size in (1, 7, 8, 9, 15, 16, 17, 19):
        for at in range(size):
            feed = live()
            feed.datagram(c.mold(SESSION, 1, [b"D" + text[1:], text[:size]]))
            wrong = bytearray(text[:size])
            wrong[at] ^= 1
            feed.datagram(c.mold(SESSION, 2, [bytes(wrong)]), B)
            assert feed.live.conflict_seq == 2


def test_a_restart_is_believed_from_both_lines_and_its_messages_are_delivered():
    feed = live()
    for n in range(1, 60):
        feed.datagram(datagram(n), A)
    again = [c.mold(SESSION, n, [c.itch("D", 19, ts_ns=10_000 + n)]) for n in range(1, 15)]
    for data in again:
        feed.datagram(data, A)
        feed.datagram(data, B)
    feed.check()
    assert feed.feed.run == 2
    assert [n for n, _ in feed.messages] == [*range(1, 60), *range(1, 15)]
    assert feed.live.conflict_seq == 1
    assert feed.feed.counters()["restarts"] == 1


def test_a_line_that_is_far_behind_is_no_restart():
    feed = live()
    for n in range(1, 60):
        feed.datagram(datagram(n), A)
    for n in range(1, 60):
        feed.datagram(datagram(n), B)
    assert (numbers(feed), feed.feed.run) == (list(range(1, 60)), 1)
    assert feed.feed.refused() == {"duplicate": 59}


def test_numbers_beyond_the_window_need_eight_packets_that_agree():
    feed = live(snapshot=True)
    feed.datagram(datagram(1))
    for n in range(5_000, 5_007):
        feed.datagram(datagram(n), A)
        feed.datagram(datagram(n), B)
    feed.check()
    assert (feed.feed.run, feed.feed.refused(), feed.live.phase) == (1, {"far_ahead": 14}, "live")
    feed.datagram(datagram(5_007))
    assert (feed.feed.run, feed.feed.refused(), feed.live.phase) == (2, {"far_ahead": 7}, "snapshot")
    feed.snapshot(5_003, BOOK)
    assert numbers(feed) == [1, *range(5_003, 5_008)]
    assert feed.datagram(control(90_000)) < 0  # nor is a heartbeat believed


def test_the_recovery_line_begins_no_run():
    feed = live(agree=1)
    feed.datagram(datagram(1), RECOVERY)
    feed.datagram(control(1), RECOVERY)
    assert (feed.feed.run, feed.feed.refused()) == (0, {"foreign": 2})
    feed.datagram(datagram(1, 3))
    feed.datagram(datagram(1, 1, OTHER), RECOVERY)
    feed.datagram(datagram(5_000), RECOVERY)
    feed.datagram(c.mold(SESSION, 1, [message(9)]), RECOVERY)
    assert (feed.feed.run, numbers(feed)) == (1, [1, 2, 3])


def test_a_new_session_closes_the_gaps_of_the_old_one_as_lost():
    feed = live(snapshot=True, servers=SERVERS)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(4))
    feed.datagram(control(5, END))
    feed.datagram(datagram(1, 2, OTHER))
    feed.check()
    assert [n for n, _ in feed.messages] == [1, 1, 2]
    counts = feed.live.counters()
    assert (counts["lost"], counts["gaps_lost"], feed.live.phase) == (2, 1, "live")
    assert (feed.feed.run, feed.feed.stale, feed.feed.incomplete) == (2, False, False)


def test_a_new_session_in_the_middle_of_a_snapshot_ends_it():
    feed = stuck()
    assert feed.push(1, 1)
    assert feed.push(2, 1, data=b"".join(b"\0\x24" + m for m in BOOK[:3]))
    feed.tick(3 * MS)
    feed.datagram(control(8, END))
    feed.datagram(datagram(1, 2, OTHER))
    assert feed.push(2, 1, data=b"\0\x24" + BOOK[0])
    assert feed.push(3, 1, seq=9)
    feed.tick(4 * MS)
    feed.datagram(datagram(3, 1, OTHER))
    feed.check()
    assert [n for n, _ in feed.messages] == [1, 2, 1, 2, 3]
    assert feed.books[-4:] == [None, message(1), message(2), message(3)]
    assert feed.live.counters()["stale_rows"] == 2


def test_anonymised_packets_are_foreign_to_a_live_feed():
    feed = live()
    feed.datagram(c.mold(bytes(10), 0, [message(1)]))
    assert (feed.messages, feed.feed.refused()) == ([], {"foreign": 1})


def test_lines_count_what_they_left_out_until_they_bring_it():
    feed = live()
    feed.datagram(datagram(1), A)
    feed.datagram(datagram(5), A)
    assert feed.live.lines()["A"]["missing"] == 3
    feed.datagram(datagram(3), A)
    feed.datagram(datagram(2, 3), B)
    feed.datagram(datagram(4), A)
    assert numbers(feed) == [1, 2, 3, 4, 5]
    assert feed.live.lines()["A"] == {
        "datagrams": 4, "won": 3, "lost": 1, "repeats": 0, "late": 0, "missing": 1, "leads": 1, "lead_ns": 0,
        "lead_ns_max": 0,
    }  # fmt: skip
    assert feed.live.lines()["B"]["won"] == 2


def test_blocks_that_are_no_messages_keep_their_numbers_in_the_window():
    feed = live()
    feed.datagram(datagram(1))
    feed.datagram(c.mold(SESSION, 3, [c.itch("z", 5), b"", c.itch("A", 35), b"x" * 900, message(7)]))
    feed.datagram(datagram(2))
    assert numbers(feed) == [1, 2, 7]
    feed.datagram(datagram(8))
    assert numbers(feed) == [1, 2, 7, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_messages": 1_000}, {"window_messages": 512}, {"servers": [("127.0.0.1", 1)] * 5},
        {"servers": [("localhost", 1)]}, {"servers": [("127.0.0.1", 0)]}, {"retries": -1},
        {"gap_timeout_ms": 0}, {"request_messages_max": 1_001},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_in_one_line(wrong):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        live(**wrong)


def test_heartbeats_beyond_the_window_make_the_books_stale_and_are_believed_when_enough_agree():
    feed = live(servers=SERVERS, agree=3)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(control(5_000))
    assert (feed.feed.stale, feed.live.counters()["gaps"]) == (True, 0)
    feed.datagram(datagram(2))
    assert not feed.feed.stale
    for line in (A, B, A):
        feed.datagram(control(5_000), line)
    feed.tick(2 * MS)
    assert (feed.feed.stale, feed.live.missing_now(), feed.requests) == (True, 4_997, [(0, 3, 30)])
    assert feed.feed.refused() == {"far_ahead": 3}


def test_packets_before_the_first_look_at_the_clock_are_not_old():
    feed = live(snapshot=True)
    feed.datagram(datagram(900))
    feed.tick(10**18)
    assert (feed.live.wanted, feed.live.counters()["snapshots_failed"]) == (1, 0)
    feed = live(servers=SERVERS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(3))
    feed.tick(10**18)
    assert (feed.live.phase, feed.feed.stale) == ("waiting", False)


def test_the_next_hole_has_its_own_age_when_the_first_one_is_filled():
    feed = live(servers=SERVERS)
    feed.tick(MS)
    feed.datagram(datagram(1))
    feed.datagram(datagram(3))
    feed.tick(MS + 400 * US)
    feed.datagram(datagram(5))
    feed.datagram(control(8))
    feed.tick(MS + 700 * US)
    assert (feed.feed.stale, feed.live.phase, feed.requests) == (True, "rerequest", [(0, 2, 1)])
    feed.datagram(datagram(2), B)
    assert (numbers(feed), feed.feed.stale, feed.live.phase) == ([1, 2, 3], False, "waiting")
    feed.tick(MS + 899 * US)
    assert (feed.feed.stale, len(feed.requests)) == (False, 1)
    feed.tick(MS + 900 * US)
    assert (feed.feed.stale, feed.requests[1:]) == (True, [(0, 4, 1)])
    feed.tick(MS + 950 * US)
    feed.datagram(datagram(4), RECOVERY)
    assert (feed.live.phase, feed.feed.stale) == ("rerequest", True)  # the heartbeat is as old as 5
    feed.tick(MS + 1_000 * US)
    assert feed.requests[2:] == [(0, 6, 2)]
