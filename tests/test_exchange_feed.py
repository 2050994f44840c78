"""The published feed over loopback sockets: packets, heartbeats, impairments, store, rerequests."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest
from venue_process import Subscriber

from nimbus.venue.lines import HELD_MAX, Impairment, Lines
from nimbus.venue.publisher import Publisher, beat, end_session, flush, publish
from nimbus.venue.rerequests import REQUESTS_MAX, Rerequests, serve
from nimbus.venue.store import Store, follow_to, room
from ringbuf.jit import kernel
from ringbuf.segment import Segment

SESSION = b"TEST000001"
SECOND = 1_000_000_000


@kernel
def room_of(store: int) -> int:
    return room(store)


@kernel
def read_to(store: int, seq: int) -> None:
    follow_to(store, seq)


def message(number: int, size: int = 20) -> bytes:
    return struct.pack(">cI", b"D", number).ljust(size, b".")


class Feed:
    """A publisher with its lines and rerequest server, driven by hand."""

    def __init__(self, *ports: int, slots: int = 1 << 12, group: str = "127.0.0.1", **options) -> None:
        bad = options.pop("impairments", None)
        served = {name: options.pop(name) for name in ("lost_ppm", "reply_max") if name in options}
        self.segment = Segment.anonymous(1 << 22)
        self.store = Store(self.segment, slots, followed=options.pop("followed", False))
        targets = [(group, port) if port else None for port in ports]
        self.lines = Lines(self.segment, targets, impairments=bad)
        self.publisher = Publisher(self.segment, self.store, self.lines, session=SESSION.decode(), **options)
        self.server = Rerequests(
            self.segment, self.store, self.publisher, ("127.0.0.1", 0),
            lost_ppm=served.get("lost_ppm", 0), messages_max=served.get("reply_max", 64),
        )  # fmt: skip
        self.now = 5 * SECOND
        self.publisher.set_now(self.now)
        self._buffer = ctypes.create_string_buffer(64)

    def publish(self, *messages: bytes) -> None:
        for one in messages:
            ctypes.memmove(self._buffer, one, len(one))
            publish(self.publisher.addr, ctypes.addressof(self._buffer), len(one))

    def flush(self) -> None:
        flush(self.publisher.addr)

    def wait(self, seconds: float) -> int:
        """Let time go by; return how many heartbeats that brings."""
        self.now += int(seconds * SECOND)
        self.publisher.set_now(self.now)
        return beat(self.publisher.addr)

    def end(self, packets: int = 1) -> None:
        end_session(self.publisher.addr, packets)

    def close(self) -> None:
        self.lines.close()
        self.server.close()


@pytest.fixture
def line():
    made = Subscriber()
    yield made
    made.close()


@pytest.fixture
def other():
    made = Subscriber()
    yield made
    made.close()


@pytest.fixture
def asker():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(5)
    yield made
    made.close()


def feed(request, *ports, **options) -> Feed:
    made = Feed(*ports, **options)
    request.addfinalizer(made.close)
    return made


# ---------------------------------------------------------------- packets


def test_messages_are_packed_until_the_packet_is_full_or_flushed(request, line, other):
    made = feed(request, line.port, other.port, messages_max=4)
    sent = [message(n) for n in range(1, 11)]
    made.publish(*sent)
    made.flush()
    made.flush()  # nothing is left: nothing is sent
    made.end()
    for subscriber in (line, other):
        subscriber.until_end()
        assert subscriber.packets == [
            (SESSION, 1, 4),
            (SESSION, 5, 4),
            (SESSION, 9, 2),
            (SESSION, 11, 0xFFFF),
        ]
        assert list(subscriber.messages.values()) == sent
    assert made.publisher.counters() == {"packets": 3, "heartbeats": 0, "ends": 1}


def test_a_packet_never_has_more_bytes_than_it_may(request, line):
    made = feed(request, line.port, messages_max=1_000, bytes_max=200)
    sent = [message(n, 5 + n % 46) for n in range(1, 60)]
    made.publish(*sent)
    made.end()
    line.until_end()
    assert list(line.messages.values()) == sent
    sizes = [20 + sum(2 + len(line.messages[first + n]) for n in range(count % 0xFFFF)) for _, first, count in
             line.packets]  # fmt: skip
    assert max(sizes) <= 200
    assert all(size > 200 - 52 for size in sizes[:-2])


def test_silence_brings_a_heartbeat_with_the_next_number(request, line):
    made = feed(request, line.port)
    assert made.wait(0.9) == 1  # nothing was sent yet at all
    assert made.wait(0.9) == 0
    made.publish(message(1))
    assert made.wait(2.0) == 0  # a packet is being built: it will be sent instead
    made.flush()
    assert [made.wait(0.6), made.wait(0.6), made.wait(1.0)] == [0, 1, 1]
    made.end(3)
    line.drain()
    assert line.packets == [
        (SESSION, 1, 0), (SESSION, 1, 1), (SESSION, 2, 0), (SESSION, 2, 0), *[(SESSION, 2, 0xFFFF)] * 3,
    ]  # fmt: skip


def test_the_lines_may_be_multicast_groups_on_loopback(request):
    line = Subscriber("239.192.7.77", 0)
    request.addfinalizer(line.close)
    made = feed(request, line.port, group="239.192.7.77")
    made.publish(message(1), message(2))
    made.end()
    line.until_end(5)
    assert len(line.messages) == 2


def test_a_line_that_nobody_hears_stops_nothing(request, line):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    made = feed(request, port, line.port, messages_max=1)
    made.publish(*(message(n) for n in range(1, 101)))
    made.end()
    line.until_end()
    assert len(line.messages) == 100
    assert [c["sent"] + c["errors"] for c in made.lines.counters()] == [101, 101]
    assert made.lines.counters()[1]["errors"] == 0


def test_a_line_may_be_absent(request, line):
    made = feed(request, 0, line.port)
    made.publish(message(1))
    made.end()
    line.until_end()
    assert made.lines.counters()[0]["datagrams"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bytes_max": 30}, "a packet has"),
        ({"bytes_max": 9_000}, "a packet has"),
        ({"session": "x" * 11}, "session"),
    ],
)
def test_a_publisher_that_cannot_be_is_refused(options, words):
    segment = Segment.anonymous(1 << 20)
    store = Store(segment, 16)
    with pytest.raises(ValueError, match=words):
        Publisher(segment, store, None, **{"session": "S", **options})


# ---------------------------------------------------------------- impairments


def impaired(request, bad: Impairment, count: int = 2_000) -> tuple[list[int], dict[str, int]]:
    """Return the numbers in the order in which they arrive, and the counters of the line."""
    line = Subscriber()
    request.addfinalizer(line.close)
    made = feed(request, line.port, messages_max=1, impairments=[bad])
    for number in range(1, count + 1):
        made.publish(message(number))
        if number % 100 == 0:
            line.drain(0.001)
    made.end(3)
    line.drain()
    return [first for _, first, count in line.packets if count == 1], made.lines.counters()[0]


def test_lost_datagrams_are_missing_and_the_rest_is_in_order(request):
    got, counts = impaired(request, Impairment(lost_ppm=200_000))
    assert got == sorted(set(got))
    assert 2_003 - counts["lost"] == counts["sent"]
    assert 300 < counts["lost"] < 500
    assert 2_000 - len(got) in range(counts["lost"] - 3, counts["lost"] + 1)


def test_duplicated_datagrams_come_twice(request):
    got, counts = impaired(request, Impairment(duplicated_ppm=100_000))
    assert sorted(set(got)) == list(range(1, 2_001))
    assert 150 < counts["duplicated"] < 250
    assert len(got) - 2_000 in range(counts["duplicated"] - 3, counts["duplicated"] + 1)


@pytest.mark.parametrize("reorder_max", [1, 5, HELD_MAX])
def test_a_reordered_datagram_is_passed_by_a_bounded_number_of_others(request, reorder_max):
    got, counts = impaired(request, Impairment(reordered_ppm=100_000, reorder_max=reorder_max))
    assert sorted(got) == list(range(1, 2_001))
    assert got != sorted(got)
    assert 150 < counts["reordered"] < 250
    place = {number: index for index, number in enumerate(got)}
    passed_by = [sum(place[later] < place[n] for later in range(n + 1, min(n + 200, 2_001))) for n in got]
    assert 0.9 * reorder_max <= max(passed_by) <= reorder_max


def test_the_same_seed_does_the_same_and_another_does_not(request):
    bad = Impairment(lost_ppm=100_000, duplicated_ppm=50_000, reordered_ppm=100_000, seed=5)
    first, again = impaired(request, bad, 500)[0], impaired(request, bad, 500)[0]
    assert first == again
    assert impaired(request, bad._replace(seed=6), 500)[0] != first


def test_everything_lost_is_everything(request):
    got, counts = impaired(request, Impairment(lost_ppm=1_000_000), 50)
    assert got == []
    assert counts["lost"] == 53


# ---------------------------------------------------------------- store


def test_the_store_keeps_the_last_messages_and_forgets_the_oldest(request):
    made = feed(request, slots=8)
    made.publish(*(message(n) for n in range(1, 12)))
    assert made.store.last == 11
    assert [made.store.message(n) for n in (3, 4, 11, 12)] == [None, message(4), message(11), None]


def test_a_follower_is_never_overtaken(request):
    made = feed(request, slots=8, followed=True)
    made.publish(*(message(n) for n in range(1, 7)))
    assert room_of(made.store.addr) == 2
    read_to(made.store.addr, 5)
    assert room_of(made.store.addr) == 7


# ---------------------------------------------------------------- rerequests


def ask(made: Feed, asker: socket.socket, first: int, count: int, session: bytes = SESSION) -> bytes | None:
    """Ask for messages; return the reply, None when there is none."""
    asker.sendto(struct.pack(">10sQH", session, first, count), ("127.0.0.1", made.server.port))
    before = made.server.counters()["replies"]
    assert serve(made.server.addr, REQUESTS_MAX) == 1
    return asker.recv(2_048) if made.server.counters()["replies"] > before else None


def test_a_request_is_answered_with_what_was_sent(request, line, asker):
    made = feed(request, line.port, messages_max=1)
    sent = [message(n, 10 + n) for n in range(1, 21)]
    made.publish(*sent)
    reader = Subscriber()
    request.addfinalizer(reader.close)
    assert reader.take(ask(made, asker, 5, 3)) == (SESSION, 5, 3)
    assert reader.take(ask(made, asker, 19, 50)) == (SESSION, 19, 2)  # as many as there are
    assert reader.messages == {n: sent[n - 1] for n in (5, 6, 7, 19, 20)}


def test_a_reply_holds_what_fits_into_one_packet(request, asker):
    made = feed(request, reply_max=1_000)
    made.publish(*(message(n, 50) for n in range(1, 101)))
    reader = Subscriber()
    request.addfinalizer(reader.close)
    _, first, count = reader.take(ask(made, asker, 1, 100))
    assert (first, count) == (1, (1_472 - 20) // 52)
    limited = feed(request, reply_max=7)
    limited.publish(*(message(n, 50) for n in range(1, 101)))
    assert reader.take(ask(limited, asker, 11, 100))[1:] == (11, 7)


@pytest.mark.parametrize(
    ("first", "count", "session", "counter"),
    [
        (13, 1, SESSION, "beyond"),
        (4, 1, SESSION, "too_old"),
        (1, 20, SESSION, "too_old"),
        (12, 0, SESSION, "foreign"),
        (0, 1, SESSION, "foreign"),
        (2**64 - 1, 1, SESSION, "foreign"),
        (12, 1, b"ANOTHER   ", "foreign"),
    ],
)
def test_what_cannot_be_answered_is_counted_and_not_answered(request, asker, first, count, session, counter):
    made = feed(request, slots=8)
    made.publish(*(message(n) for n in range(1, 13)))
    assert ask(made, asker, first, count, session) is None
    counts = made.server.counters()
    assert (counts["requests"], counts[counter], counts["replies"]) == (1, 1, 0)


@pytest.mark.parametrize(
    "datagram", [b"", b"x", SESSION + bytes(9), SESSION + bytes(11), bytes(64), bytes(900)]
)
def test_a_datagram_that_is_no_request_is_counted(request, asker, datagram):
    made = feed(request)
    made.publish(message(1))
    asker.sendto(datagram, ("127.0.0.1", made.server.port))
    assert serve(made.server.addr, REQUESTS_MAX) == 1
    assert made.server.counters()["foreign"] == 1


def test_replies_can_be_lost_for_tests(request, asker):
    made = feed(request, lost_ppm=500_000)
    made.publish(message(1))
    answers = [ask(made, asker, 1, 1) for _ in range(200)]
    counts = made.server.counters()
    assert 60 < answers.count(None) < 140
    assert counts["lost"] == answers.count(None)
    assert counts["lost"] + counts["replies"] == 200


def test_a_storm_of_requests_is_taken_in_bounded_steps(request, asker):
    made = feed(request)
    made.publish(message(1))
    for _ in range(50):
        asker.sendto(struct.pack(">10sQH", SESSION, 1, 1), ("127.0.0.1", made.server.port))
    assert serve(made.server.addr, REQUESTS_MAX) == REQUESTS_MAX
    taken = REQUESTS_MAX
    while step := serve(made.server.addr, REQUESTS_MAX):
        taken += step
    assert taken == made.server.counters()["replies"] == 50
