"""What survives: the acceptor's store and its log, the initiator's numbers; messages and their framing."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.fix.message import Message, shown, stamp, utc_ns
from nimbus.fix.numbers import RESERVE, FileNumbers, MemoryNumbers, Reservation
from nimbus.fix.store import Entry, FileLog, MemoryLog, Sent, Store, StoreError

SENT = Sent("8", b"20251125-22:51:51.123", b"37=a\x0158=two\nlines\x01")


def reopened(path: pathlib.Path) -> Store:
    log = FileLog(path)
    try:
        return Store(log)
    finally:
        log.close()


@given(st.lists(st.sampled_from(["in", "out", "sent", "reset"]), max_size=12), st.integers(0, 200))
def test_a_log_torn_anywhere_gives_back_a_state_that_was(tmp_path_factory, steps, cut):
    path = tmp_path_factory.mktemp("log") / "session"
    log = FileLog(path)
    store, states, sizes = Store(log), [(1, 1)], [0]
    for step in steps:
        if step == "in":
            store.next_in += 1
            store.processed(store.next_in)
        elif step == "reset":
            store.reset()
        else:
            store.use(SENT if step == "sent" else None)
        states.append((store.next_in, store.next_out))
        sizes.append(path.stat().st_size)
    log.close()
    again = reopened(path)
    assert (again.next_in, again.next_out) == states[-1]
    assert [again.sent(n) for n in range(1, 15)] == [store.sent(n) for n in range(1, 15)]
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    torn = reopened(path)
    assert (torn.next_in, torn.next_out) in states
    assert path.stat().st_size <= max(len(whole) - cut, 0)


def test_what_is_written_after_a_torn_entry_is_found_again(tmp_path):
    path = tmp_path / "session"
    path.write_bytes(b"O 1\nI 7\nM 2 8 20251125-22:51:51.123 400\n37=a")
    log = FileLog(path)
    store = Store(log)
    assert (store.next_in, store.next_out) == (7, 2)
    store.use(SENT)
    log.close()
    again = reopened(path)
    assert (again.next_out, again.sent(2)) == (3, SENT)


def test_a_reset_makes_the_file_short_again(tmp_path):
    log = FileLog(tmp_path / "session")
    store = Store(log)
    for _ in range(100):
        store.use(SENT)
    store.reset()
    assert (tmp_path / "session").read_bytes() == b"R\n"
    log.close()


def test_messages_beyond_the_limit_are_no_longer_kept():
    store = Store(sent_max=3)
    for _ in range(5):
        store.use(SENT)
    assert [store.sent(n) is None for n in range(1, 6)] == [True, True, False, False, False]


def test_numbers_end_with_nine_digits():
    store = Store()
    store.next_out = 10**9 - 1
    store.use()
    with pytest.raises(StoreError, match="used up"):
        store.use()


def test_a_store_is_held_by_one_connection_at_a_time():
    store = Store()
    assert store.acquire()
    assert not store.acquire()
    store.release()
    assert store.acquire()


def test_a_log_that_cannot_be_opened_says_why(tmp_path):
    for kind in (FileLog, FileNumbers):
        with pytest.raises(StoreError, match="No such file"):
            kind(tmp_path / "absent" / "file")


def test_a_log_that_cannot_be_written_says_so():
    log = FileLog("/dev/full")
    with pytest.raises(StoreError, match="No space left"):
        log.save(Entry(out=1))
    log.close()


def test_a_memory_log_forgets():
    assert list(MemoryLog().load()) == []


# ---------------------------------------------------------------- the initiator's numbers


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=20))
def test_a_saved_number_was_never_used_and_is_not_far_ahead(steps):
    log = MemoryNumbers()
    reservation, used = Reservation(log), 1
    reservation.save(1, used)
    for step in steps:
        for _ in range(step // 4_000 + 1):  # the control loop looks often enough: every 5,000 numbers
            used += min(step, 4_000)
            assert used <= log.load()[1]
            reservation.save(7, used)
        assert used < log.load()[1] <= used + RESERVE
    reservation.save(8, used, is_final=True)
    assert log.load() == (8, used)


def test_a_reset_takes_the_reservation_back():
    log = MemoryNumbers(9, 90_000)
    reservation = Reservation(log)
    reservation.save(9, 90_000)
    reservation.save(2, 2)
    assert log.load() == (2, 2 + RESERVE)


def test_numbers_in_a_file_are_read_as_written_and_damage_is_refused(tmp_path):
    numbers = FileNumbers(tmp_path / "numbers")
    assert numbers.load() == (1, 1)
    numbers.save(12, 345)
    numbers.save(13, 7)
    assert numbers.load() == (13, 7)
    numbers.close()
    text = (tmp_path / "numbers").read_bytes()
    for damaged in (text.replace(b"13", b"14"), b"13 7\n", b"x"):
        (tmp_path / "numbers").write_bytes(damaged)
        again = FileNumbers(tmp_path / "numbers")
        with pytest.raises(StoreError, match="damaged"):
            again.load()
        again.close()


# ---------------------------------------------------------------- texts


@given(st.integers(0, 7_000_000_000 * 10**9))
def test_a_timestamp_is_read_as_it_was_written(now_ns):
    text = stamp(now_ns)
    assert len(text) == 21
    assert utc_ns(text) == now_ns // 10**6 * 10**6


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        (b"", 0),
        (b".5", None),
        (b".123", 123_000_000),
        (b".123456", 123_456_000),
        (b".123456789", 123_456_789),
    ],
)
def test_s38_fractions_of_zero_three_six_and_nine_digits_are_read(text, fraction):
    base = utc_ns(b"20251125-22:51:51")
    assert utc_ns(b"20251125-22:51:51" + text) == (-1 if fraction is None else base + fraction)


def test_s38_a_leap_second_is_read():
    assert utc_ns(b"20161231-23:59:60") == utc_ns(b"20170101-00:00:00")


@pytest.mark.parametrize(
    "text",
    [None, b"", b"20250229-00:00:00", b"20251301-00:00:00", b"20250101-24:00:00", b"20250101-00:60:00",
     b"20250101-00:00:61", b"20250101 00:00:00", "\uff120250101-00:00:00".encode()],
)  # fmt: skip
def test_what_is_no_time_is_none(text):
    assert utc_ns(text) == -1


def test_secrets_are_hidden_wherever_they_stand():
    raw = b"8=FIX.4.4\x01553=me\x0158=554=seen\x01925=new\x0196=raw\x0110=000\x01"
    assert shown(raw) == "8=FIX.4.4|553=***|58=554=seen|925=***|96=***|10=000|"
    assert Message.parse(raw).text(553) == "me"
