"""MoldUDP64 sequencing: every number once, in order, and nothing adopted on one packet's word."""

from __future__ import annotations

import captures as c
import pytest
from feeding import Fed
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.feed import SlowFeed

SESSION, OTHER = b"000010059B", b"000010060C"
HEARTBEAT, END = 0, 0xFFFF


SECOND = 10**9


def message(number: int, later: int = 0) -> bytes:
    return c.itch("D", 19, ts_ns=number + later)


def datagram(first: int, count: int = 1, session: bytes = SESSION, later: int = 0) -> bytes:
    """Return `count` messages; each has its number as its exchange time, plus `later`."""
    return c.mold(session, first, [message(first + k, later) for k in range(count)])


def control(first: int, count: int, session: bytes = SESSION) -> bytes:
    return c.mold(session, first, [], count=count)


def fed(*datagrams: bytes, **options: int) -> Fed:
    feed = Fed(**options)
    for data in datagrams:
        feed.frame(c.frame(data))
        assert feed.is_balanced()
    return feed


def fed_at(*timed: tuple[int, bytes], **options: int) -> Fed:
    """Feed (receive time, datagram)s."""
    feed = Fed(**options)
    for recv_ns, data in timed:
        feed.frame(c.frame(data), recv_ns=recv_ns)
        assert feed.is_balanced()
    return feed


def numbers(feed: Fed) -> list[int]:
    return [seq for seq, _ in feed.messages]


def test_messages_get_their_own_numbers_and_the_feed_is_whole_from_number_one() -> None:
    feed = fed(datagram(1, 3), datagram(4), control(5, HEARTBEAT), datagram(5, 38), control(43, END))
    assert feed.messages == [(n, message(n)) for n in range(1, 43)]
    assert (feed.feed.run, feed.feed.stale, feed.feed.incomplete) == (1, False, False)
    assert feed.feed.refused() == {}
    assert feed.feed.warnings() == []
    counts = feed.feed.counters()
    assert (counts["heartbeats"], counts["session_ends"], counts["sessions"]) == (1, 1, 1)


def test_a_capture_that_starts_in_mid_session_is_incomplete() -> None:
    feed = fed(datagram(900, 2), datagram(902))
    assert numbers(feed) == [900, 901, 902]
    assert (feed.feed.incomplete, feed.feed.stale, feed.feed.gaps()) == (True, False, 0)
    assert "mid-session" in feed.feed.warnings()[0]


@pytest.mark.parametrize("revealing", [datagram(6), control(6, HEARTBEAT), control(6, END)])
def test_a_gap_is_counted_whatever_reveals_it_and_makes_the_books_stale(revealing: bytes) -> None:
    feed = fed(datagram(1, 2), revealing, datagram(6 if revealing[18:20] != b"\0\1" else 7))
    assert feed.feed.gaps() == 1
    assert feed.feed.counters()["missing"] == 3
    assert feed.feed.stale
    assert numbers(feed)[:3] == [1, 2, 6]


def test_a_duplicate_is_counted_and_not_delivered_but_stands_in_the_types() -> None:
    feed = fed(datagram(1, 2), datagram(1, 2), datagram(3))
    assert numbers(feed) == [1, 2, 3]
    assert feed.feed.refused() == {"duplicate": 1}
    assert feed.feed.messages_by_type() == {"D": 5}


def test_of_an_overlapping_packet_the_rest_is_delivered() -> None:
    feed = fed(datagram(1, 4), datagram(3, 4))
    assert numbers(feed) == [1, 2, 3, 4, 5, 6]
    assert feed.feed.counters()["overlaps"] == 1
    assert feed.feed.gaps() == 0


def test_lines_a_and_b_in_one_file_give_each_number_once() -> None:
    feed = fed(*(datagram(n) for k in range(1, 60) for n in (k, max(k - 3, 1))))
    assert numbers(feed) == list(range(1, 60))
    assert feed.feed.run == 1


def test_a_restart_is_believed_after_eight_agreeing_packets_and_loses_nothing() -> None:
    again = [datagram(1 + 2 * k, 2, later=90) for k in range(12)]
    feed = fed(datagram(1, 90), *again[:7])
    assert (feed.feed.run, feed.feed.refused()) == (1, {"duplicate": 7})
    feed = fed(datagram(1, 90), *again)
    assert numbers(feed) == [*range(1, 91), *range(1, 25)]
    assert (feed.feed.run, feed.feed.stale, feed.feed.refused()) == (2, False, {})
    assert feed.feed.counters()["restarts"] == 1
    assert "restarts" in feed.feed.warnings()[0]


def test_packets_that_do_not_continue_each_other_are_no_restart() -> None:
    feed = fed(datagram(1, 90), *(datagram(1 + 3 * k, 2, later=90) for k in range(20)))
    assert (feed.feed.run, feed.feed.refused()) == (1, {"duplicate": 20})


def test_a_session_that_goes_on_stops_a_restart() -> None:
    both = ((datagram(1 + k, later=900), datagram(51 + k)) for k in range(12))
    feed = fed(datagram(1, 50), *(data for pair in both for data in pair))
    assert (feed.feed.run, numbers(feed)) == (1, list(range(1, 63)))


def test_line_b_may_be_late_by_any_number_of_packets_of_a_quiet_market() -> None:
    feed = fed(*(datagram(n) for n in range(1, 60)), *(datagram(n) for n in range(1, 60)), datagram(60))
    assert numbers(feed) == list(range(1, 61))
    assert (feed.feed.run, feed.feed.refused()) == (1, {"duplicate": 59})


def test_the_newest_packet_repeated_is_no_restart_though_its_time_is_the_newest() -> None:
    feed = fed(datagram(1), *(datagram(1) for _ in range(9)), *(c.mold(SESSION, 2, [message(7)]),) * 20)
    assert (feed.feed.run, numbers(feed)) == (1, [1, 2])


def test_coarse_times_that_are_all_the_same_make_no_restart_of_a_late_line() -> None:
    coarse = [c.mold(SESSION, n, [c.itch("D", 19, ts_ns=5)]) for n in range(1, 40)]
    feed = fed(*coarse, *coarse)
    assert (feed.feed.run, feed.feed.refused()) == (1, {"duplicate": 39})


def test_a_late_line_with_what_the_other_one_lost_is_no_restart_either() -> None:
    feed = fed(datagram(1), *(datagram(n) for n in range(20, 40)), *(datagram(n) for n in range(2, 20)))
    assert (feed.feed.run, numbers(feed)) == (1, [1, *range(20, 40)])


def test_the_next_day_under_the_same_name_is_a_restart_because_the_session_was_silent() -> None:
    day = [(n, datagram(n, later=500)) for n in range(1, 40)]
    night = [(10 * SECOND, control(1, HEARTBEAT)), (40 * SECOND, control(1, HEARTBEAT))]  # numbered anew
    morning = [(50 * SECOND + n, datagram(n)) for n in range(1, 12)]  # at earlier times of day
    feed = fed_at(*day, *night, *morning)
    assert numbers(feed) == [*range(1, 40), *range(1, 12)]
    assert (feed.feed.run, feed.feed.refused()) == (2, {})
    broken = [*morning[:3], *morning[4:], (51 * SECOND, datagram(12))]  # one is missing: eight come after it
    feed = fed_at(*day, *night, *broken)
    assert numbers(feed) == [*range(1, 40), *range(5, 13)]


@pytest.mark.parametrize("alive", ["heartbeat", "duplicate"])
def test_a_session_that_is_heard_is_not_silent(alive: str) -> None:
    day = [(n, datagram(n, later=500)) for n in range(1, 40)]
    sign = control(40, HEARTBEAT) if alive == "heartbeat" else datagram(39, later=500)
    signs = [(k * 9 * SECOND, sign) for k in range(1, 5)]
    late = [(40 * SECOND + n, datagram(n, later=500)) for n in range(1, 30)]
    feed = fed_at(*day, *signs, *late)
    assert (feed.feed.run, numbers(feed)) == (1, list(range(1, 40)))


def test_one_packet_of_another_session_is_foreign() -> None:
    feed = fed(datagram(1, 2), datagram(1, 2, OTHER), datagram(3), control(9, HEARTBEAT, OTHER))
    assert numbers(feed) == [1, 2, 3]
    assert feed.feed.refused() == {"foreign": 2}


def test_a_new_session_is_followed_at_once_after_the_end_of_the_old_one() -> None:
    feed = fed(datagram(1, 2), control(3, END), control(3, END), datagram(1, 3, OTHER), datagram(4, 1, OTHER))
    assert numbers(feed) == [1, 2, 1, 2, 3, 4]
    assert (feed.feed.run, feed.feed.incomplete) == (2, False)
    assert feed.feed.counters()["sessions"] == 2


def test_a_new_session_without_an_end_of_the_old_one_needs_eight_packets() -> None:
    feed = fed(datagram(1, 2), *(datagram(k, 1, OTHER) for k in range(1, 11)))
    assert numbers(feed) == [1, 2, *range(1, 11)]
    assert (feed.feed.run, feed.feed.refused()) == (2, {})


def test_a_short_new_session_is_believed_at_the_end_of_the_file() -> None:
    feed = fed(datagram(1, 2), datagram(1, 2, OTHER), datagram(3, 1, OTHER))
    assert numbers(feed) == [1, 2]
    feed.close()
    assert numbers(feed) == [1, 2, 1, 2, 3]
    assert feed.is_balanced()
    alone = fed(datagram(1, 2), datagram(1, 2, OTHER))
    alone.close()
    assert (numbers(alone), alone.feed.refused()) == ([1, 2], {"foreign": 1})


def test_two_sessions_side_by_side_do_not_change_places() -> None:
    feed = fed(*(datagram(k, 1, s) for k in range(1, 40) for s in (SESSION, OTHER)))
    assert numbers(feed) == list(range(1, 40))
    assert feed.feed.refused() == {"foreign": 39}


def test_a_session_that_was_left_is_not_taken_up_again() -> None:
    feed = fed(datagram(1), control(2, END), datagram(1, 1, OTHER), *(datagram(k) for k in range(2, 30)))
    assert numbers(feed) == [1, 1]
    assert feed.feed.refused() == {"foreign": 28}


def test_a_new_session_can_be_expected_to_begin_at_one() -> None:
    feed = fed(datagram(5, 2), start_at_one=True)
    assert (numbers(feed), feed.feed.gaps(), feed.feed.counters()["missing"]) == ([5, 6], 1, 4)


def test_anonymised_packets_are_delivered_in_file_order_and_counted() -> None:
    zero = [c.mold(bytes(10), 0, [message(k)]) for k in (7, 3, 5)]
    feed = fed(*zero)
    assert feed.messages == [(1, message(7)), (2, message(3)), (3, message(5))]
    assert feed.feed.counters()["unsequenced"] == 3
    assert feed.feed.incomplete


def test_a_message_count_beyond_the_bytes_at_hand_refuses_the_packet() -> None:
    feed = fed(
        datagram(1), c.mold(SESSION, 2, [message(2)], count=2), c.mold(SESSION, 2, [message(2)], count=40_000)
    )
    assert numbers(feed) == [1]
    assert feed.feed.refused() == {"framing": 2}


def test_bytes_behind_the_last_message_are_counted() -> None:
    feed = fed(datagram(1) + b"xx", datagram(2))
    assert numbers(feed) == [1, 2]
    assert feed.feed.counters()["trailing"] == 1


def test_a_sequence_number_beyond_all_reason_is_foreign() -> None:
    feed = fed(
        datagram(1),
        c.mold(SESSION, (1 << 63) + 5, [message(1)]),
        c.mold(SESSION, (1 << 62) + 1, [message(1)]),
    )
    assert feed.feed.refused() == {"foreign": 2}


def test_a_run_of_other_lengths_raises_wrong_protocol_and_never_begins_a_session() -> None:
    sibling = [c.mold(SESSION, k, [c.itch("A", 34)]) for k in range(1, 100)]
    feed = fed(*sibling)
    assert feed.feed.counters()["wrong_protocol"] == 1
    assert feed.feed.wrong_lengths() == {"A": 99}
    assert (feed.feed.refused(), feed.feed.run) == ({"foreign": 99}, 0)


def test_unknown_types_keep_their_number_and_the_rest_of_the_packet() -> None:
    feed = fed(c.mold(SESSION, 1, [message(1), c.itch("z", 5), b"", c.itch("A", 35), message(5)]))
    assert feed.messages == [(1, message(1)), (5, message(5))]


LATER = st.sampled_from([0, 0, 0, 20, 45, 100])
ONE = st.builds(
    datagram,
    st.integers(0, 40), st.integers(1, 5), st.sampled_from([SESSION, SESSION, SESSION, OTHER, bytes(10)]),
    LATER,
)  # fmt: skip
CONTROL = st.builds(
    control, st.integers(0, 45), st.sampled_from([0, 0, END]), st.sampled_from([SESSION, OTHER, bytes(10)])
)
RUN = st.builds(
    lambda first, count, session, later: [datagram(first + k, 1, session, later) for k in range(count)],
    st.integers(0, 30), st.integers(1, 20), st.sampled_from([SESSION, SESSION, OTHER]), LATER,
)  # fmt: skip
PART = st.one_of(ONE.map(lambda d: [d]), CONTROL.map(lambda d: [d]), RUN)
PAUSE = st.sampled_from([0, 0, 1, SECOND, 10 * SECOND - 1, 10 * SECOND, 100 * SECOND, -SECOND])
STREAM = st.lists(st.tuples(PAUSE, PART), max_size=12)


@settings(max_examples=300, deadline=None)
@given(STREAM, st.integers(1, 9))
def test_any_stream_is_sequenced_as_by_the_slow_twin(
    stream: list[tuple[int, list[bytes]]], agree: int
) -> None:
    feed, slow, now_ns = Fed(agree=agree), SlowFeed(agree=agree), SECOND
    for pause_ns, data in ((pause if n == 0 else 0, d) for pause, part in stream for n, d in enumerate(part)):
        now_ns += pause_ns
        feed.frame(c.frame(data), recv_ns=now_ns)
        slow.frame("ethernet", c.frame(data), now_ns)
        assert feed.is_balanced()
        state = (feed.feed.run, feed.feed.stale, feed.feed.incomplete)
        assert state == (slow.run, slow.stale, slow.incomplete)
    feed.close()
    slow.close()
    assert feed.messages == slow.delivered
    assert feed.feed.refused() == dict(+slow.refused)
    assert feed.feed.messages_by_type() == dict(slow.types)
    ignored = {"blocks", "empty_blocks", "wrong_protocol"}
    assert {k: v for k, v in feed.feed.counters().items() if v and k not in ignored} == dict(+slow.counts)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_merge_of_two_lines_however_late_gives_anything_but_each_number_once(data: st.DataObject) -> None:
    """Packets of two lines, each of which may lose some, in any interleaving that keeps each line's order."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=40))
    firsts = [1 + sum(sizes[:n]) for n in range(len(sizes))]
    coarse = data.draw(st.sampled_from([1, 1, 3, 1_000]))
    whole = [
        c.mold(SESSION, first, [c.itch("D", 19, ts_ns=k // coarse) for k in range(first, first + size)])
        for first, size in zip(firsts, sizes, strict=True)
    ]
    lost = [data.draw(st.one_of(st.just(set()), st.sets(st.integers(1, len(whole))))) for _ in "AB"]
    lines = [[packet for n, packet in enumerate(whole) if n not in without] for without in lost]
    order = data.draw(st.permutations([line for line in (0, 1) for _ in lines[line]]))
    left = [iter(line) for line in lines]
    feed = fed(*(next(left[line]) for line in order), agree=data.draw(st.integers(1, 8)))
    assert feed.feed.run == 1
    assert feed.feed.counters()["restarts"] == 0
    assert numbers(feed) == sorted(set(numbers(feed)))
    if not feed.feed.stale:
        assert numbers(feed) == list(range(1, len(numbers(feed)) + 1))


@settings(max_examples=200, deadline=None)
@given(
    before=st.integers(1, 60), sizes=st.lists(st.integers(1, 4), min_size=8, max_size=30),
    agree=st.integers(1, 8), repeats=st.booleans(), first=st.integers(1, 3), by_silence=st.booleans(),
)  # fmt: skip
def test_every_restart_at_a_low_number_is_followed_whole(
    before: int, sizes: list[int], agree: int, repeats: bool, first: int, by_silence: bool
) -> None:
    """Genuine restarts: their times go on, or they come after a silence; what is above the old end too."""
    old = [(n, datagram(n)) for n in range(1, before + 1)]
    old += [(before + 1, data) for _, data in old if repeats]  # line B, whole and late
    starts = [first + sum(sizes[:n]) for n in range(len(sizes))]
    begin_ns, later = (11 * SECOND + before, 0) if by_silence else (before + 2, before)
    new = [
        (begin_ns + n, datagram(start, size, later=later))
        for n, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    feed = fed_at(*old, *new, agree=agree)
    below = 0  # packets wholly below the old end: enough of them to be believed
    while below < len(new) and starts[below] + sizes[below] <= before + 1:
        below += 1
    if below >= agree:
        assert numbers(feed) == [*range(1, before + 1), *range(first, first + sum(sizes))]
        assert (feed.feed.run, feed.feed.incomplete) == (2, first > 1)
