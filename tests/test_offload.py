"""Jobs in rings, answered by CPU, by a device in batches, by a kernel that stays: none lost, none twice."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
from emulator import build
from emulator.device import PtxCpuDevice

from bicep.crossover import Backend, Chooser, Costs
from bicep.cuda.cases import CheckError
from bicep.cuda.layout import COMMAND_STOP, MAILBOX, MODEL, NEWS_HALF, NEWS_NONE
from bicep.cuda.model import decode_expert, encode_model
from bicep.cuda.rings import SYMBOLS, RingRig, compare
from bicep.device import DeviceError, finish
from bicep.jobs import RING_FULL, push_job
from bicep.mailbox import CAPACITY, Mailbox, State
from bicep.offload import GpuBatch, Offload
from bicep.plan import BAD_EXPERT, BAD_SYMBOL, INFERENCE, NAN_OUTPUT, NEWS_BUSY, OK
from bicep.plan.layout import PLAN
from ringbuf.segment import Segment
from ringbuf.spsc import RingView, create_ring

emulated = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
HIDDEN = (64, 8)


@pytest.fixture(scope="module")
def library():
    return {"expert.cu": build.load("expert.cu"), "persistent.cu": build.load("persistent.cu")}


@pytest.fixture
def rig():
    return RingRig(hidden=HIDDEN, capacity=16)


def offload_on(rig, device, **options):
    gpu = GpuBatch(device, options.pop("model", rig.model), 8)
    options = {"timeout_s": 60, "chooser": Chooser(None, forced=Backend.CUDA), **options}
    return Offload(rig.plan, rig.jobs, rig.answers, gpu, batch_max=8, **options)


def run_dry(offload, rig, count):
    """Answer everything; return the answers in order."""
    found = []
    while sum(len(part) for part in found) < count:
        assert offload.turn() > 0
        found.append(rig.popped(64))
    assert offload.turn() == 0
    return np.concatenate(found)


# ---------------------------------------------------------------- jobs


def test_a_job_holds_all_that_its_answer_depends_on(rig):
    assert rig.push(9) == 9
    jobs = rig.asked(0, 9)
    assert jobs["symbol"].tolist() == [n % SYMBOLS for n in range(9)]
    assert jobs["news"].tolist() == [NEWS_NONE, *[NEWS_HALF] * 7, NEWS_NONE]
    assert (jobs["news_version"] == np.where(jobs["news"] == NEWS_HALF, 2, 0)).all()
    assert (jobs["features"] == rig.features[:9]).all()
    by_twin = rig.expected(jobs)
    offload = Offload(rig.plan, rig.jobs, rig.answers)
    compare(run_dry(offload, rig, 9), by_twin)
    assert (by_twin["status"] == OK).all()


def test_questions_that_cannot_be_asked_are_refused_and_nothing_is_pushed(rig):
    at, state = rig.features.ctypes.data, rig.plan.state
    for expert in (3, -1):
        assert push_job(rig.jobs, state, expert, at, 0, 1) == BAD_EXPERT
    for symbol in (SYMBOLS, -1):
        assert push_job(rig.jobs, state, 0, at, symbol, 1) == BAD_SYMBOL
    assert rig.push(16) == 16
    assert push_job(rig.jobs, state, 0, at, 0, 1) == RING_FULL
    view = RingView(rig.segment, "jobs")
    assert (view.used, view.refused) == (16, 1)


def test_news_that_is_being_written_is_not_waited_for(rig):
    plan = rig.plan._segment.array("plan", PLAN)[0]
    cell = int(plan["cells"]) + 3 * 3 * int(plan["cell_size"])  # symbol 3, expert 0
    word = rig.plan._segment.words(cell, 1)
    word[0] |= 1
    assert push_job(rig.jobs, rig.plan.state, 0, rig.features.ctypes.data, 3, 1) == NEWS_BUSY
    assert RingView(rig.segment, "jobs").used == 0


def test_answers_that_find_no_room_stay_jobs(rig):
    segment = Segment.anonymous(1 << 16)
    small = create_ring(segment, "answers", 4, INFERENCE)
    rig.push(10)
    offload, found = Offload(rig.plan, rig.jobs, small), []
    expected = rig.expected(rig.asked(0, 10))
    assert offload.turn() == 4
    assert offload.turn() == 0
    for _ in range(3):
        found.append(rig.popped(8, small))
        offload.turn()
    compare(np.concatenate(found), expected)


# ---------------------------------------------------------------- batches on a device


@emulated
@pytest.mark.parametrize("count", [1, 3, 8, 13])
def test_the_device_answers_what_the_cpu_answers(rig, library, count):
    rig.push(count)
    wanted = rig.expected(rig.asked(0, count))
    offload = offload_on(rig, PtxCpuDevice(count, libraries=library))
    on_device = run_dry(offload, rig, count)
    compare(on_device, wanted)
    assert offload.counters == {"cpu": 0, "cuda": count, "again": 0}
    twin = RingRig(hidden=HIDDEN, capacity=16)
    twin.push(count)
    on_cpu = run_dry(Offload(twin.plan, twin.jobs, twin.answers), twin, count)
    compare(on_device, on_cpu)
    assert (on_device["mask_index"] == on_cpu["mask_index"]).all()  # the same masks, bit for bit


@emulated
@pytest.mark.parametrize("lose_after", [0, 1, 2])
def test_a_device_lost_in_the_middle_of_a_run_loses_no_decision(rig, library, lose_after):
    device = PtxCpuDevice(2, libraries=library, lose_after=lose_after)
    offload = offload_on(rig, device)
    found, wanted = [], []
    for burst in (3, 5, 2, 6):
        first = rig.pushed
        rig.push(burst)
        wanted.append(rig.expected(rig.asked(first, burst)))
        assert offload.turn() == burst  # within the same turn, whatever happens to the device
        found.append(rig.popped(16))
    compare(np.concatenate(found), np.concatenate(wanted))
    assert offload.is_lost
    assert "lost" in offload.fault
    assert offload.counters["cuda"] == sum((3, 5, 2, 6)[:lose_after])
    assert offload.counters["again"] == (3, 5, 2, 6)[lose_after]


@emulated
def test_a_device_that_hangs_is_given_up_within_the_turn(rig, library):
    class Hanging(PtxCpuDevice):
        hangs = False

        def is_done(self, event):
            return not self.hangs and super().is_done(event)

    device = Hanging(0, libraries=library)
    offload = offload_on(rig, device, timeout_s=0.01)
    device.hangs = True
    rig.push(4)
    wanted = rig.expected(rig.asked(0, 4))
    assert offload.turn() == 4
    compare(rig.popped(4), wanted)
    assert "did not finish" in offload.fault
    staged = offload._staged
    device.hangs = False
    rig.push(2)
    assert offload.turn() == 2
    assert offload._staged is staged  # none of the device's memory is used any more


@emulated
def test_a_fault_of_the_kernel_is_a_lost_device(rig, library):
    offload = offload_on(rig, PtxCpuDevice(0, libraries=library))
    memory = offload._gpu.device._memory
    model = max(memory, key=lambda at: memory[at].nbytes)
    offload._gpu.device.free(model)
    rig.push(3)
    wanted = rig.expected(rig.asked(0, 3))
    assert offload.turn() == 3
    compare(rig.popped(3), wanted)
    assert "outside every allocation" in offload.fault


@emulated
def test_a_number_that_only_the_device_lacks_gives_the_device_up(rig, library):
    experts = [decode_expert(rig.model, tag)[0] for tag in range(3)]
    damaged = np.full_like(experts[1].mean_head, np.inf)  # as if its memory had been hit
    experts[1] = dataclasses.replace(experts[1], mean_head=damaged)
    header = rig.model[: MODEL.size].view(MODEL.dtype)[0]
    key = int(header["key_left"]), int(header["key_right"])
    model = encode_model(experts, (0, 1, 2), 1e-3, key=key)
    offload = offload_on(rig, PtxCpuDevice(0, libraries=library), model=model)
    rig.push(3)
    wanted = rig.expected(rig.asked(0, 3))
    assert offload.turn() == 3
    compare(rig.popped(3), wanted)
    assert "no number" in offload.fault


@emulated
def test_a_number_that_both_lack_is_an_answer(rig, library):
    rig.features[:, 5] = 1e300
    rig.push(2)
    offload = offload_on(rig, PtxCpuDevice(0, libraries=library))
    assert offload.turn() == 2
    assert (rig.popped(2)["status"] == NAN_OUTPUT).all()
    assert not offload.is_lost


@emulated
def test_auto_goes_to_the_device_when_symbols_are_many_and_back_when_few(library):
    rig = RingRig(hidden=HIDDEN, capacity=64)
    chooser = Chooser(Costs(cpu_us=3.0, launch_us=6.0, symbol_us=1.0))  # from 3 symbols on
    offload = offload_on(rig, PtxCpuDevice(0, libraries=library), chooser=chooser)
    chooser.observe = lambda *_: None  # an emulated device has no times worth learning
    for burst in itertools.chain([1] * 5, [8] * 8, [1] * 80):
        rig.push(burst)
        assert offload.turn() == burst
        rig.popped(8)
    assert chooser.changes == 2
    assert offload.counters["cuda"] > 0
    assert offload.counters["cpu"] > 5


@emulated
def test_both_back_ends_are_measured_at_start(rig, library):
    offload = offload_on(rig, PtxCpuDevice(0, libraries=library), chooser=Chooser(None))
    costs = offload.remeasure((1, 2), 1)
    assert costs == offload.chooser.costs
    assert costs.cpu_us > 0
    assert costs.launch_us + costs.symbol_us > 0
    assert offload.chooser.choose(1) is Backend.CPU
    lost = offload_on(rig, PtxCpuDevice(0, libraries=library, lose_after=1))
    assert lost.remeasure((1, 2), 3) is None
    assert lost.is_lost


@emulated
def test_a_load_that_moved_is_measured_again_in_a_quiet_moment(rig, library):
    chooser = Chooser(Costs(cpu_us=3.0, launch_us=600.0, symbol_us=1.0))
    offload = offload_on(rig, PtxCpuDevice(0, libraries=library), chooser=chooser)
    asked = []
    offload.remeasure = lambda **how: asked.append(how)
    for burst in [1] * 30:
        rig.push(burst)
        offload.turn()
        rig.popped(8)
    chooser.renew(chooser.costs)  # as measured under this load
    assert not offload.rest()
    for burst in [4] * 60:
        rig.push(burst)
        offload.turn()
        rig.popped(8)
    assert offload.rest()
    assert asked == [{"repeats": 3}]


@emulated
def test_a_model_of_other_shapes_is_refused(rig, library):
    other = RingRig(hidden=(128, 8))
    with pytest.raises(ValueError, match="shapes"):
        offload_on(rig, PtxCpuDevice(0, libraries=library), model=other.model)


# ---------------------------------------------------------------- the kernel that stays


def mailbox_on(rig, device, **options):
    box = Mailbox(device, rig.model, capacity=8, threads=64, **options)
    box.start(0)
    return box


def wait(condition, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the kernel does not answer"
        time.sleep(1e-3)


def collect(rig, box, count):
    found = []

    def enough():
        found.append(rig.popped(8, box.answers))
        return sum(len(part) for part in found) >= count

    wait(enough)
    return np.concatenate(found)


@emulated
def test_a_kernel_that_stays_answers_through_the_rings_until_it_is_stopped(rig, library):
    device = PtxCpuDevice(0, libraries=library)
    box = mailbox_on(rig, device)
    wanted, found = [], []
    for burst in (1, 5, 8, 3, 8):
        first = rig.pushed
        assert rig.push(burst, box.jobs) == burst
        wanted.append(rig.expected(rig.asked(first, burst, box.jobs)))
        found.append(collect(rig, box, burst))
    compare(np.concatenate(found), np.concatenate(wanted))
    assert box.watch(1) is State.ALIVE
    assert box.stop(60)
    assert box.read("ended") == COMMAND_STOP
    assert len(box.unanswered()) == 0


@emulated
def test_a_full_ring_of_answers_is_waited_for(rig, library):
    box = mailbox_on(rig, PtxCpuDevice(0, libraries=library))
    rig.push(8, box.jobs)
    wanted = [rig.expected(rig.asked(0, 8, box.jobs))]
    wait(lambda: len(box.unanswered()) == 0)
    rig.push(8, box.jobs)
    wanted.append(rig.expected(rig.asked(8, 8, box.jobs)))
    assert len(box.unanswered()) == 8
    compare(collect(rig, box, 16), np.concatenate(wanted))
    assert box.stop(60)


@emulated
def test_another_model_answers_from_its_epoch_on(rig, library):
    box = mailbox_on(rig, PtxCpuDevice(0, libraries=library))
    rig.push(2, box.jobs)
    compare(collect(rig, box, 2), rig.expected(rig.asked(0, 2, box.jobs)))
    other = RingRig(seed=40, hidden=HIDDEN)
    assert box.swap(other.model) == 2
    rig.push(2, box.jobs)
    jobs = rig.asked(2, 2, box.jobs)
    found = collect(rig, box, 2)
    assert box.read("epoch_taken") == 2
    compare(found, other.expected(jobs))
    with pytest.raises(CheckError, match="differs"):
        compare(found, rig.expected(jobs))
    with pytest.raises(ValueError, match="shapes"):
        box.swap(RingRig(hidden=(128, 8)).model)
    assert box.stop(60)


@emulated
def test_an_idle_kernel_ends_by_itself_and_is_started_again(rig, library):
    device = PtxCpuDevice(0, libraries=library)
    box = mailbox_on(rig, device, idle_limit=50)
    seen = set()

    def restarted():
        seen.add(box.watch(0))
        return State.RESTARTED in seen

    wait(restarted)
    assert State.LOST not in seen
    box._store(MAILBOX.at.idle_limit, 1 << 30)  # it stays from now on
    rig.push(3, box.jobs)
    wanted = rig.expected(rig.asked(0, 3, box.jobs))

    def answered():
        box.watch(0)  # it may have ended once more
        return len(box.unanswered()) == 0

    wait(answered)
    compare(rig.popped(8, box.answers), wanted)
    assert box.stop(60)


@emulated
def test_a_kernel_that_dies_leaves_what_it_had_not_answered_to_the_cpu(rig, library):
    device = PtxCpuDevice(0, libraries=library)
    box = mailbox_on(rig, device, timeout_ns=1_000)
    rig.push(8, box.jobs)
    jobs = [rig.asked(0, 8, box.jobs)]
    wait(lambda: len(box.unanswered()) == 0)
    rig.push(8, box.jobs)  # the ring of answers is full, so these wait
    jobs.append(rig.asked(8, 8, box.jobs))
    rig.popped(3, box.answers)
    wait(lambda: len(box.unanswered()) == 5)
    device.abort()
    beats = box.watch(10)
    assert beats in {State.ALIVE, State.WAITING}
    assert box.watch(500) is State.WAITING
    assert box.watch(2_000) is State.LOST
    assert box.watch(2_001) is State.LOST
    left = box.unanswered()
    assert left["sequence"].tolist() == np.concatenate(jobs)["sequence"][11:].tolist()
    answered = rig.popped(8, box.answers)
    again = rig.expected(left)
    compare(np.concatenate([answered, again]), rig.expected(np.concatenate(jobs)[3:]))
    with pytest.raises(DeviceError, match="aborted"):
        finish(device, box._event, 60)


@emulated
def test_a_kernel_that_never_starts_is_lost():
    class Dead(PtxCpuDevice):
        def launch(self, *_):
            """Take the launch and do nothing."""

    rig = RingRig(hidden=HIDDEN)
    box = Mailbox(Dead(0, libraries={}), rig.model, timeout_ns=1_000)
    box.start(0)
    assert box.watch(1_000) is State.WAITING
    assert box.watch(1_001) is State.LOST
    rig.push(5, box.jobs)
    assert len(box.unanswered()) == 5
    assert CAPACITY >= 5


@emulated
def test_pushing_and_popping_beside_the_running_kernel_loses_nothing(rig, library):
    box = mailbox_on(rig, PtxCpuDevice(0, libraries=library))
    total, found = 40, []

    def push():
        left = total
        while left:
            left -= rig.push(min(left, 3), box.jobs)
            time.sleep(1e-4)

    pusher = threading.Thread(target=push)
    pusher.start()
    while sum(len(part) for part in found) < total:
        found.append(collect(rig, box, 1))
    pusher.join()
    answers = np.concatenate(found)
    assert (answers["status"] == OK).all()
    fresh = RingRig(hidden=HIDDEN, capacity=64)
    fresh.push(total)
    compare(answers, run_dry(Offload(fresh.plan, fresh.jobs, fresh.answers, batch_max=64), fresh, total))
    assert box.stop(60)
