"""The ring: capacity, batches, counters, recovery; a model test against a deque; threads and processes."""

from __future__ import annotations

import collections
import pathlib
import threading
import time

import numpy as np
import pytest
import ringbuf_load as load
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringbuf import spsc
from ringbuf.jit import kernel
from ringbuf.memory import store_i64
from ringbuf.records import record
from ringbuf.segment import Segment, SegmentError

SMALL = record("SMALL", "i8 number any\n2i8 rest any", line=8)  # 24 bytes: not a whole line


@kernel
def push(ring: int, source: int) -> bool:
    return spsc.try_push(ring, source)


@kernel
def push_in_place(ring: int, number: int) -> bool:
    slot = spsc.claim(ring)
    if slot == 0:
        return False
    store_i64(slot, number)
    store_i64(slot + 8, number)
    store_i64(slot + 16, number)
    spsc.publish(ring)
    return True


@kernel
def front(ring: int) -> int:
    return spsc.front(ring)


@kernel
def pop(ring: int) -> None:
    spsc.pop(ring)


@kernel
def used(ring: int) -> int:
    return spsc.used(ring)


@kernel
def room(ring: int, limit: int) -> int:
    return spsc.room(ring, limit)


class Bench:
    """A ring with its segment, a buffer to push from and one to pop into."""

    def __init__(self, capacity: int) -> None:
        self.segment = Segment.anonymous(1 << 16)
        self.ring = spsc.create_ring(self.segment, "ring", capacity, SMALL)
        self.view = spsc.RingView(self.segment, "ring")
        self.source, self.target = np.zeros((64, 3), np.int64), np.zeros((64, 3), np.int64)

    def push(self, numbers: list[int]) -> int:
        """Push records that hold the numbers; return how many went in."""
        self.source[: len(numbers)] = np.array(numbers, np.int64)[:, None]
        return spsc.push_many(self.ring, self.source.ctypes.data, len(numbers))

    def pop(self, limit: int) -> list[int]:
        """Pop up to limit records; return their numbers."""
        count = spsc.pop_into(self.ring, self.target.ctypes.data, limit)
        rows = self.target[:count]
        assert (rows == rows[:, :1]).all()
        return rows[:, 0].tolist()


@pytest.mark.parametrize("capacity", [0, -1, 3, 12])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        spsc.ring_size(capacity, SMALL)


def test_a_record_of_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        spsc.ring_size(4, record("ODD", "i4 number any", line=4))


def test_a_ring_of_one_record_works() -> None:
    bench = Bench(1)
    for number in range(5):
        assert bench.push([number]) == 1
        assert bench.push([99]) == 0
        assert bench.pop(9) == [number]
        assert bench.pop(9) == []
    assert (bench.view.pushed, bench.view.popped, bench.view.refused) == (5, 5, 5)


def test_a_full_ring_refuses_counts_and_goes_on_after_a_pop() -> None:
    bench = Bench(4)
    assert bench.push([1, 2, 3, 4, 5, 6]) == 4
    assert bench.view.refused == 2
    assert not push_in_place(bench.ring, 7)
    assert bench.view.refused == 3
    assert bench.view.used_ratio == 1.0
    pop(bench.ring)
    assert push_in_place(bench.ring, 8)
    assert bench.pop(64) == [2, 3, 4, 8]
    assert front(bench.ring) == 0


def test_counts_below_one_move_nothing() -> None:
    bench = Bench(4)
    bench.push([1])
    assert spsc.push_many(bench.ring, bench.source.ctypes.data, -1) == 0
    assert spsc.pop_into(bench.ring, bench.target.ctypes.data, -1) == 0
    assert (bench.view.pushed, bench.view.popped, bench.view.used) == (1, 0, 1)


def test_the_layout_is_pinned() -> None:
    bench = Bench(8)
    assert spsc.HEADER_SIZE == 6 * 64
    lines = [spsc.TAIL, spsc.MASK, spsc.HEAD, spsc.TAIL_CACHE, spsc.HEAD_CACHE]
    assert [at // 64 for at in lines] == [0, 1, 2, 3, 4]
    assert spsc.RECORD_SIZE // 64 == 1
    assert spsc.REFUSED // 64 == spsc.TAIL_OWN // 64 == 4
    pairs = [{at // 128 for at in side} for side in ((spsc.HEAD, spsc.TAIL_CACHE),
             (spsc.TAIL, spsc.HEAD_CACHE, spsc.REFUSED, spsc.TAIL_OWN))]  # fmt: skip
    assert not pairs[0] & pairs[1], "no pair of lines has two writers"
    assert bench.ring % 128 == 0
    assert (bench.view.capacity, bench.view.record_size) == (8, 24)
    assert spsc.ring_size(8, SMALL) == 384 + 8 * 24


def test_a_stale_cached_index_of_the_consumer_is_healed_by_recovery() -> None:
    bench = Bench(4)
    bench.push([1, 2])
    bench.segment.words(bench.ring + spsc.TAIL_CACHE, 1)[0] = 9  # as code that went past the cache leaves it
    assert bench.pop(4) != [1, 2]  # without recovery it believes the guess
    bench = Bench(4)
    bench.push([1, 2])
    bench.segment.words(bench.ring + spsc.TAIL_CACHE, 1)[0] = 9
    assert spsc.recover_consumer(bench.ring) == 2
    assert bench.pop(2) == [1, 2]
    assert bench.pop(1) == []  # the guess of 9 is gone


def test_stale_indexes_of_the_producer_are_healed_by_recovery() -> None:
    bench = Bench(4)
    bench.push([1, 2, 3])
    bench.pop(1)
    bench.segment.words(bench.ring + spsc.HEAD_CACHE, 1)[0] = 50
    bench.segment.words(bench.ring + spsc.TAIL_OWN, 1)[0] = 2  # died between its two stores
    assert spsc.recover_producer(bench.ring) == 2
    assert bench.push([4, 5, 6]) == 2
    assert bench.pop(64) == [2, 3, 4, 5]


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class RingModel(RuleBasedStateMachine):
    """The ring is a deque with a bound that counts what it refuses."""

    @initialize(bits=st.integers(0, 3))
    def create(self, bits: int) -> None:
        """Start with an empty ring."""
        self.capacity = 1 << bits
        self.bench = Bench(self.capacity)
        self.model: collections.deque[int] = collections.deque()
        self.number = self.pushed = self.popped = self.refused = 0

    def _pushed(self, offered: int, went: int) -> None:
        fit = min(offered, self.capacity - len(self.model))
        assert went == fit
        self.model.extend(range(self.number + 1, self.number + 1 + fit))
        self.number += offered
        self.pushed += fit
        self.refused += offered - fit

    @rule(count=st.integers(1, 12))
    def push_many(self, count: int) -> None:
        """Offer several."""
        self._pushed(count, self.bench.push(list(range(self.number + 1, self.number + 1 + count))))

    @rule()
    def push_one(self) -> None:
        """Offer one by copy."""
        self.bench.source[0] = self.number + 1
        self._pushed(1, push(self.bench.ring, self.bench.source.ctypes.data))

    @rule()
    def push_in_place(self) -> None:
        """Offer one by claim and publish."""
        self._pushed(1, push_in_place(self.bench.ring, self.number + 1))

    @rule(limit=st.integers(0, 12))
    def pop_many(self, limit: int) -> None:
        """Take up to limit."""
        got = self.bench.pop(limit)
        assert got == [self.model.popleft() for _ in range(min(limit, len(self.model)))]
        self.popped += len(got)

    @rule()
    def peek(self) -> None:
        """Look at the oldest."""
        slot = front(self.bench.ring)
        assert bool(slot) == bool(self.model)
        if slot:
            assert self.bench.segment.words(slot, 1)[0] == self.model[0]

    @precondition(lambda self: self.model)
    @rule()
    def pop_one(self) -> None:
        """Take the oldest."""
        assert front(self.bench.ring)
        pop(self.bench.ring)
        self.model.popleft()
        self.popped += 1

    @rule(limit=st.integers(0, 12))
    def look_for_room(self, limit: int) -> None:
        """Ask for free slots."""
        assert room(self.bench.ring, limit) == min(limit, self.capacity - len(self.model))

    @rule()
    def take_over(self) -> None:
        """Both sides attach again."""
        assert spsc.recover_producer(self.bench.ring) == len(self.model)
        assert spsc.recover_consumer(self.bench.ring) == len(self.model)

    @invariant()
    def counters_agree(self) -> None:
        """Compare all counters."""
        if hasattr(self, "bench"):
            view = self.bench.view
            assert (view.pushed, view.popped, view.refused) == (self.pushed, self.popped, self.refused)
            assert view.used == used(self.bench.ring) == len(self.model)


TestRingModel = RingModel.TestCase


def _shared(path: pathlib.Path, capacity: int = 64) -> tuple[Segment, int, spsc.RingView]:
    owner = Segment.create(path, 1 << 16, epoch=1)
    return owner, spsc.create_ring(owner, "ring", capacity, load.LOAD), spsc.RingView(owner, "ring")


def test_a_ring_is_found_by_name_or_refused_with_one_line(tmp_path: pathlib.Path) -> None:
    owner, _, _ = _shared(tmp_path / "s")
    owner.allocate("short", 64)
    reader = Segment.attach(tmp_path / "s")
    assert spsc.attach_ring(reader, "ring", load.LOAD) == reader.areas["ring"][0]
    with pytest.raises(SegmentError, match="no ring 'other'"):
        spsc.attach_ring(reader, "other", load.LOAD)
    for name, layout in (("ring", SMALL), ("short", load.LOAD)):
        with pytest.raises(SegmentError, match="does not hold"):
            spsc.attach_ring(reader, name, layout)
    for offset, value in ((spsc.MASK, 6), (spsc.MASK, 1 << 40), (spsc.TAIL, 65), (spsc.HEAD, 1)):
        word = owner.words(owner.areas["ring"][0] + offset, 1)
        kept, word[0] = int(word[0]), value
        with pytest.raises(SegmentError, match="damaged"):
            spsc.attach_ring(reader, "ring", load.LOAD)
        word[0] = kept


@pytest.mark.alone
def test_two_threads_pass_every_record_once_and_in_order() -> None:
    segment = Segment.anonymous(1 << 16)
    ring = spsc.create_ring(segment, "ring", 32, load.LOAD)
    (_keep1, waiting1), (_keep2, waiting2) = load.idler(), load.idler()
    load.produce(ring, 1, 0, waiting1)
    load.consume(ring, 1, 0, waiting2)
    last = 300_000
    producer = threading.Thread(target=load.produce, args=(ring, 1, last, waiting1))
    producer.start()
    assert load.consume(ring, 1, last, waiting2) == 0
    producer.join()
    view = spsc.RingView(segment, "ring")
    assert (view.pushed, view.popped) == (last, last)


def test_the_integrity_check_can_fail() -> None:
    segment = Segment.anonymous(1 << 16)
    ring = spsc.create_ring(segment, "ring", 32, load.LOAD)
    _keep, waiting = load.idler()
    load.produce(ring, 1, 10, waiting)
    segment.words(ring + spsc.HEADER_SIZE + 3 * load.SIZE + 16, 1)[0] ^= 1
    segment.words(ring + spsc.HEADER_SIZE + 5 * load.SIZE, 1)[0] += 1
    assert load.consume(ring, 1, 10, waiting) == 2


@pytest.mark.alone
def test_two_processes_survive_the_death_of_the_producer(tmp_path: pathlib.Path) -> None:
    _owner, ring, view = _shared(tmp_path / "s")
    _keep, waiting = load.idler()
    load.consume(ring, 1, 0, waiting)
    seen = 0
    for _life in range(2):
        child = load.start("produce", tmp_path / "s", seen + 1, 1 << 40)
        assert load.consume(ring, seen + 1, seen + 20_000, waiting) == 0
        seen += 20_000
        load.kill(child)
        left = view.used
        assert load.consume(ring, seen + 1, seen + left, waiting) == 0  # all that was published is whole
        seen += left
    assert (view.pushed, view.popped) == (seen, seen)
    child = load.start("produce", tmp_path / "s", seen + 1, seen + 1_000)
    assert load.consume(ring, seen + 1, seen + 1_000, waiting) == 0
    assert child.communicate()[0] == f"{seen + 1_000}\n"


@pytest.mark.alone
def test_two_processes_survive_the_death_of_the_consumer(tmp_path: pathlib.Path) -> None:
    _owner, ring, view = _shared(tmp_path / "s")
    _keep, waiting = load.idler()
    load.produce(ring, 1, 0, waiting)
    sent, last = 0, 60_000
    for _life in range(2):
        child = load.start("consume", tmp_path / "s", view.popped + 1, 1 << 40)
        assert load.produce(ring, sent + 1, sent + 20_000, waiting) == sent + 20_000
        sent += 20_000
        load.kill(child)
        assert spsc.recover_producer(ring) == view.used
    child = load.start("consume", tmp_path / "s", view.popped + 1, last)
    assert load.produce(ring, sent + 1, last, waiting) == last
    assert child.communicate()[0] == "0\n"  # each record from the first unpopped one on, whole and in order
    assert (view.pushed, view.popped) == (last, last)


@pytest.mark.alone
@pytest.mark.slow
def test_many_deaths_at_random_moments_lose_nothing_that_was_published(tmp_path: pathlib.Path) -> None:
    _owner, ring, view = _shared(tmp_path / "s")
    _keep, waiting = load.idler()
    load.consume(ring, 1, 0, waiting)
    for life in range(12):
        child = load.start("produce", tmp_path / "s", view.pushed + 1, 1 << 40)
        deadline = time.monotonic() + 0.002 * life
        while time.monotonic() < deadline:
            assert load.consume(ring, view.popped + 1, view.popped + 100, waiting) == 0
        load.kill(child)
        assert load.consume(ring, view.popped + 1, view.pushed, waiting) == 0
