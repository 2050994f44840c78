"""The scheduler: what overlaps, what waits, and that nothing is lost with the device."""

import itertools
import threading

import numpy as np
import pytest
from emulator import build
from emulator.device import PtxCpuDevice
from emulator.fake import COPY, FakeDevice

from bicep.cuda import ENTRIES
from bicep.device import HIGH, DeviceLostError, finish
from bicep.lanes import Kind, Lanes, TaskError
from bicep.scheduler import Scheduler, Work
from ringbuf.affinity import usable_cores

emulated = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")


def work(name, duration=10.0, resource="compute", value=None):
    """Return work that takes this long on a time line, and a value on a lane."""
    return Work(
        cpu=lambda: ("cpu", name if value is None else value),
        device=lambda device, stream: (device.put(stream, name, duration, resource), ("device", name))[1],
        name=name,
    )


@pytest.fixture
def scheduler_on():
    made = []

    def make(device=None, **options):
        made.append(Scheduler(device, **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


# ---------------------------------------------------------------- streams


def test_independent_work_overlaps_and_results_come_in_order(scheduler_on):
    device = FakeDevice()
    scheduler = scheduler_on(device)
    scheduler.submit(work("a"))
    scheduler.submit(work("b"))
    assert scheduler.join() == [("device", "a"), ("device", "b")]
    assert device.span("a").start == device.span("b").start == 0
    assert device.span("a").stream is not device.span("b").stream


def test_dependent_work_never_starts_early_whatever_its_stream(scheduler_on):
    device = FakeDevice(kernels=8)
    scheduler = scheduler_on(device)
    tasks = [scheduler.submit(work("0", 7))]
    for n in range(1, 20):
        after = [tasks[n // 2], tasks[-1]] if n % 3 else [tasks[-1]]
        tasks.append(scheduler.submit(work(str(n), n), list(Kind)[n % 3], after=after))
    scheduler.join()
    for n in range(1, 20):
        before = {n - 1, n // 2} if n % 3 else {n - 1}
        assert device.span(str(n)).start >= max(device.span(str(m)).end for m in before)


def test_a_short_urgent_task_does_not_queue_behind_long_ones(scheduler_on):
    device = FakeDevice(kernels=2)
    scheduler = scheduler_on(device)
    for n in range(8):
        scheduler.submit(work(f"long {n}", 1_000))
    scheduler.submit(work("short", 1), Kind.REDUCE)
    scheduler.join()
    assert device.span("short").start <= 1_000  # the first slot that came free was its
    assert sum(device.span(f"long {n}").start < device.span("short").start for n in range(8)) <= 2


def test_copies_run_beside_computation(scheduler_on):
    device = FakeDevice(kernels=1)
    scheduler = scheduler_on(device)
    scheduler.submit(work("compute", 100))
    scheduler.submit(work("in", 30, COPY), Kind.COPY)
    scheduler.submit(work("out", 30, COPY), Kind.COPY)
    scheduler.join()
    assert device.span("in").start == device.span("out").start == device.span("compute").start == 0


def test_work_of_one_asset_keeps_its_order_and_assets_take_streams_in_turn(scheduler_on):
    device = FakeDevice(kernels=8)
    scheduler = scheduler_on(device, compute_streams=2)
    for n in range(3):
        for asset in ("A", "B", "C"):
            scheduler.submit(work(f"{asset}{n}", 5), asset=asset)
    scheduler.join()
    for asset in ("A", "B", "C"):
        spans = [device.span(f"{asset}{n}") for n in range(3)]
        assert len({id(span.stream) for span in spans}) == 1
        assert all(one.end <= two.start for one, two in itertools.pairwise(spans))
    assert device.span("A0").stream is device.span("C0").stream is not device.span("B0").stream
    assert device.span("A0").start == device.span("B0").start


def test_a_stream_can_be_named(scheduler_on):
    device = FakeDevice(kernels=8)
    scheduler = scheduler_on(device)
    for n in range(3):
        scheduler.submit(work(str(n)), stream=2)
    scheduler.join()
    assert len({id(device.span(str(n)).stream) for n in range(3)}) == 1


def test_the_reduction_stream_is_the_urgent_one(scheduler_on):
    device = FakeDevice()
    scheduler = scheduler_on(device)
    scheduler.submit(work("sum", 1), Kind.REDUCE)
    scheduler.join()
    assert device.span("sum").stream.priority == HIGH


def test_map_gives_a_task_for_each_piece(scheduler_on):
    scheduler = scheduler_on(FakeDevice())
    tasks = scheduler.map([work(str(n), 1) for n in range(5)])
    assert scheduler.join(tasks) == [("device", str(n)) for n in range(5)]


@pytest.mark.parametrize("lose_at", [0, 5, 15, 35, 60])
def test_a_lost_device_loses_no_task_and_keeps_their_order(scheduler_on, lose_at):
    done, order = FakeDevice(lose_at=lose_at), []

    def step(n):
        def cpu():
            order.append(n)
            return n

        return Work(cpu, lambda device, stream: (device.put(stream, str(n), 10), n)[1], str(n))

    scheduler = scheduler_on(done, cores=(None, None))
    tasks = []
    for n in range(6):
        tasks.append(scheduler.submit(step(n), after=tasks[-1:]))
    assert scheduler.join(tasks) == list(range(6))
    assert order == sorted(order)
    assert set(order) | {int(span.name) for span in done.spans} == set(range(6))
    if order:
        assert scheduler.fault
        assert scheduler.device is None
        assert scheduler.join([scheduler.submit(step(9))]) == [9]


def test_work_without_a_device_body_runs_in_a_lane_between_work_on_the_device(scheduler_on):
    device = FakeDevice()
    scheduler = scheduler_on(device)
    first = scheduler.submit(work("first"))
    middle = scheduler.submit(Work(lambda: device.span("first").end, name="middle"), after=[first])
    last = scheduler.submit(work("last"), after=[middle])
    assert scheduler.join([middle, last]) == [10, ("device", "last")]
    assert device.span("last").start >= 10


def test_too_many_open_tasks_are_refused(scheduler_on, monkeypatch):
    monkeypatch.setattr("bicep.scheduler.OPEN_TASKS_MAX", 3)
    device = FakeDevice()
    scheduler = scheduler_on(device)
    for n in range(10):  # what has ended makes room
        scheduler.submit(work(str(n)))
    gate = threading.Event()
    blocked = scheduler_on(None)
    for _ in range(3):
        blocked.submit(Work(gate.wait))
    with pytest.raises(RuntimeError, match="3 tasks"):
        blocked.submit(Work(gate.wait))
    gate.set()
    blocked.join()


@emulated
@pytest.mark.parametrize("seed", range(8))
def test_copies_and_kernels_of_many_streams_give_the_right_numbers_in_any_order(scheduler_on, seed):
    """On the emulated device work happens as late and as mixed as its streams and events allow."""
    device = PtxCpuDevice(seed)
    scheduler = scheduler_on(device, timeout_s=60)
    entry, weights = (
        ENTRIES["mask_2_4"],
        np.random.default_rng(seed).standard_normal((6, 32)).astype(np.float32),
    )
    masks = np.zeros((6, 32), np.uint8)
    finals = []
    for n in range(6):
        source, target = device.alloc(128), device.alloc(32)

        def copy_in(device, stream, n=n, source=source):
            device.upload(source, weights[n], stream)

        def compute(device, stream, source=source, target=target):
            values = {"weights": source, "groups": 8, "mask": target}
            device.launch(entry, entry.launch(values), entry.pack(values), stream)

        def copy_out(device, stream, n=n, target=target):
            device.download(masks[n], target, stream)

        def nothing():
            raise AssertionError

        copied = scheduler.submit(Work(nothing, copy_in), Kind.COPY)
        computed = scheduler.submit(Work(nothing, compute), after=[copied])
        finals.append(scheduler.submit(Work(nothing, copy_out), Kind.COPY, after=[computed]))
    scheduler.join(finals)
    kept = np.sort(np.argsort(-np.abs(weights.reshape(-1, 4)), axis=1)[:, :2], axis=1)
    assert np.array_equal(np.nonzero(masks.reshape(-1, 4))[1].reshape(-1, 2), kept)


@emulated
@pytest.mark.parametrize("lose_after", [0, 1, 3])
def test_an_emulated_device_that_dies_hands_its_work_to_the_lanes(scheduler_on, lose_after):
    device = PtxCpuDevice(1, lose_after=lose_after)
    scheduler = scheduler_on(device, timeout_s=60)
    entry, results = ENTRIES["mask_words"], np.zeros((5, 8), np.uint32)

    def job(n):
        def on_device(device, stream):
            at = device.alloc(32)
            values = {"rows": 1, "units": 8, "number": n, "group": 0, "left": 1, "right": 2, "words": at}
            device.launch(entry, entry.launch(values), entry.pack(values), stream)
            device.download(results[n], at, stream)

        def on_cpu():
            from bicep.masks import mask_bank

            results[n] = mask_bank((1, 2), 8, rows=1, number=n)[0]

        return Work(on_cpu, on_device)

    scheduler.join(scheduler.map([job(n) for n in range(5)]))
    from bicep.masks import mask_bank

    assert np.array_equal(results, [mask_bank((1, 2), 8, rows=1, number=n)[0] for n in range(5)])
    assert "lost" in scheduler.fault


def test_a_device_that_does_not_finish_is_lost():
    device = FakeDevice()
    stream, event, never = device.stream(), device.event(), device.event()
    never.asked = 1
    device.wait(stream, never)
    device.record(event, stream)
    ticks = iter(range(100))
    with pytest.raises(DeviceLostError, match="did not finish"):
        finish(device, event, 5, clock=lambda: float(next(ticks)))


# ---------------------------------------------------------------- lanes


def test_lanes_run_the_urgent_first_and_the_older_of_equals():
    lanes, order, gate = Lanes((None,)), [], threading.Event()
    lanes.submit(gate.wait)
    kinds = [Kind.COMPUTE, Kind.COPY, Kind.REDUCE, Kind.COMPUTE, Kind.REDUCE]
    tasks = [lanes.submit(lambda n=n: order.append(n), kind) for n, kind in enumerate(kinds)]
    gate.set()
    for task in tasks:
        task.result()
    lanes.close()
    assert order == [2, 4, 1, 0, 3]


def test_a_lane_is_kept_for_what_is_short():
    lanes, gate = Lanes((None, None, None)), threading.Event()
    long = [lanes.submit(gate.wait) for _ in range(4)]
    assert lanes.submit(lambda: "now", Kind.REDUCE).result() == "now"
    assert not any(task.is_done for task in long)
    gate.set()
    lanes.close()


def test_a_task_waits_for_those_before_it_and_fails_with_them():
    lanes, seen = Lanes((None, None)), []
    first = lanes.submit(lambda: seen.append(1), name="first")
    second = lanes.submit(lambda: seen.append(2), after=[first])
    broken = lanes.submit(lambda: 1 // 0, after=[second], name="broken")
    behind = lanes.submit(lambda: seen.append(3), after=[broken])
    fine = lanes.submit(lambda: "fine", after=[first, second])
    with pytest.raises(TaskError, match="broken"):
        behind.result()
    with pytest.raises(TaskError, match="division") as caught:
        broken.result()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert fine.result() == "fine"
    assert seen == [1, 2]
    lanes.close()
    with pytest.raises(RuntimeError, match="closed"):
        lanes.submit(lambda: None)


def test_lanes_are_pinned_and_a_core_that_is_missing_is_an_error():
    import os

    core = usable_cores()[0]
    lanes = Lanes((core,))
    assert lanes.submit(lambda: os.sched_getaffinity(threading.get_native_id())).result() == {core}
    lanes.close()
    with pytest.raises(ValueError, match="core 99999"):
        Lanes((99_999,))
    with pytest.raises(ValueError, match="lane"):
        Lanes(())


def test_close_ends_after_what_is_queued():
    lanes, seen = Lanes((None, None)), []
    for n in range(50):
        lanes.submit(lambda n=n: seen.append(n))
    lanes.close()
    assert sorted(seen) == list(range(50))
