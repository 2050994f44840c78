"""The same three duty cycles, joined by two rings, run inline, compact and dedicated with the same result."""

from __future__ import annotations

from collections import namedtuple

import pytest

from ringbuf.affinity import usable_cores
from ringbuf.agent import YIELD, clear_stop, create_idler, create_stop, idle, request_stop, should_stop
from ringbuf.hot_thread import HotThread
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment
from ringbuf.spsc import claim, create_ring, front, pop, publish

LINE = record("LINE", "i8 value a number\n7i8 pad zero")
LAST = 20_000
BATCH = 64

Source = namedtuple("Source", "out count idler")
Middle = namedtuple("Middle", "inward out idler")
Sink = namedtuple("Sink", "inward total idler")


@inlined
def source_work(source: Source) -> int:
    for done in range(BATCH):
        count = load_i64(source.count)
        slot = claim(source.out) if count < LAST else 0
        if slot == 0:
            return done
        store_i64(slot, count + 1)
        publish(source.out)
        store_i64(source.count, count + 1)
    return BATCH


@inlined
def middle_work(middle: Middle) -> int:
    for done in range(BATCH):
        message = front(middle.inward)
        slot = claim(middle.out) if message != 0 else 0
        if slot == 0:
            return done  # nothing there, or no room: the message stays where it is
        store_i64(slot, 3 * load_i64(message))
        publish(middle.out)
        pop(middle.inward)
    return BATCH


@inlined
def sink_work(sink: Sink, stop: int) -> int:
    for done in range(BATCH):
        message = front(sink.inward)
        if message == 0:
            return done
        value = load_i64(message)
        store_i64(sink.total, load_i64(sink.total) + value)
        pop(sink.inward)
        if value == 3 * LAST:
            request_stop(stop)
    return BATCH


@kernel
def run_inline_once(source: Source, middle: Middle, sink: Sink, stop: int) -> int:
    return source_work(source) + middle_work(middle) + sink_work(sink, stop)


@kernel
def run_compact(source: Source, middle: Middle, sink: Sink, stop: int) -> None:
    while not should_stop(stop):
        idle(source.idler, source_work(source) + middle_work(middle) + sink_work(sink, stop))


@kernel
def run_source(source: Source, stop: int) -> None:
    while not should_stop(stop):
        idle(source.idler, source_work(source))


@kernel
def run_middle(middle: Middle, stop: int) -> None:
    while not should_stop(stop):
        idle(middle.idler, middle_work(middle))


@kernel
def run_sink(sink: Sink, stop: int) -> None:
    while not should_stop(stop):
        idle(sink.idler, sink_work(sink, stop))


class Graph:
    def __init__(self) -> None:
        self.segment = Segment.anonymous(1 << 20)
        first, second = (create_ring(self.segment, name, 256, LINE) for name in ("first", "second"))
        idlers = [create_idler(self.segment, f"idler.{n}", YIELD) for n in range(3)]
        words = self.segment.allocate("words", 128)
        self.source = Source(first, words, idlers[0])
        self.middle = Middle(first, second, idlers[1])
        self.sink = Sink(second, words + 64, idlers[2])
        self.stop = create_stop(self.segment)

    @property
    def total(self) -> int:
        return int(self.segment.words(self.sink.total, 1)[0])


EXPECTED = 3 * LAST * (LAST + 1) // 2


def test_inline_returns_after_each_pass_and_ends_with_the_whole_sum():
    graph = Graph()
    while run_inline_once(graph.source, graph.middle, graph.sink, graph.stop):
        pass
    assert graph.total == EXPECTED
    assert should_stop(graph.stop)


@pytest.mark.alone
@pytest.mark.parametrize("placement", ["compact", "dedicated"])
def test_hot_threads_stay_inside_their_loops_and_give_the_same_sum(placement):
    graph, cores = Graph(), usable_cores()
    loops = {
        "compact": [(run_compact, (graph.source, graph.middle, graph.sink, graph.stop))],
        "dedicated": [
            (run_source, (graph.source, graph.stop)),
            (run_middle, (graph.middle, graph.stop)),
            (run_sink, (graph.sink, graph.stop)),
        ],
    }[placement]
    request_stop(graph.stop)
    for loop, arguments in loops:  # compiled before the threads begin
        loop(*arguments)
    clear_stop(graph.stop)
    threads = [
        HotThread(loop.__name__, loop, arguments, graph.stop, core=cores[n % len(cores)])
        for n, (loop, arguments) in enumerate(loops)
    ]
    for thread in threads:
        thread.start()
    assert all(thread.join(60.0) for thread in threads)
    assert [thread.error for thread in threads] == [None] * len(threads)
    assert graph.total == EXPECTED
