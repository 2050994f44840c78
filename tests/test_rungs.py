"""The control loop's side: what may be configured, when NANopt moves, what it checks, and who may pin."""

from __future__ import annotations

import json
import time
import types

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from rung_rig import DENSITIES, Log, built, config_of, make_model

from bicep.nanopt import Reason
from bicep.plan import INFERENCE, MC_8, MODE_SAMPLES, infer, refresh_news
from daemon.admin.app import build
from daemon.admin.auth import Operator
from daemon.admin.fills import RecentFills
from daemon.admin.views import SystemViews
from daemon.errors import CommandError
from daemon.rung_control import CHECKS_MAX, CostSensor, RungControl, measured_costs
from daemon.rungs import word_of
from daemon.system import CONTROL_STREAM
from nimbus.journal.log import Stream
from nimbus.journal.types import RUNG, RecordType
from nimbus.messages import DECISION, HALTED, JOURNAL, PAPER
from nimbus.orders.kill_switch import CONTROL, OPERATOR
from ringbuf.histogram import Histogram, record_value
from ringbuf.jit import kernel
from ringbuf.segment import Segment
from ringbuf.spsc import pop_into
from strategy.shadows import SHADOW, Sampler, sample

SECOND = 10**9
COSTS = np.array([[6.0, 4.0, 3.0, 2.0], [4.0, 3.0, 2.0, 1.5], [2.5, 2.0, 1.2, 1.0]])  # by rung and mode


@kernel
def record(histogram: int, value: int) -> None:
    record_value(histogram, value)


@kernel
def offer(sampler: int, features: int, inputs: int, sequence: int, version: int, decision: int) -> None:
    sample(sampler, features, inputs, sequence, version, decision)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_model(folder)
    return folder


def words(ring: int) -> list[int]:
    """Return the words that wait in a ring of RUNG, and take them out."""
    rows = np.zeros(64, RUNG.dtype)
    return rows["word"][: pop_into(ring, rows.ctypes.data, 64)].tolist()


# ---------------------------------------------------------------- configuration


def test_the_default_pins_the_dense_rung_and_changes_nothing(models, tmp_path):
    with built(config_of(models), tmp_path) as system:
        assert not system.rungs.is_waiting
        assert system.rungs.sampler is None
        assert system.model.plan.rung == (0, 0)


def test_a_pinned_rung_stands_in_the_ring_before_the_first_decision(models, tmp_path):
    with built(config_of(models, bicep__rung="0.2"), tmp_path) as system:
        assert words(system.rungs.ring) == [2]
    with built(config_of(models, bicep__rung="1.0", bicep__uncertainty="analytic"), tmp_path) as system:
        assert words(system.rungs.ring) == [word_of(0, 0)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bicep__rung": "0.3"}, "the rungs of model .* are 1, 0.5, 0.2"),
        ({"bicep__rung": "auto", "model__kind": "rule"}, "model rule-.* has no ladder"),
        ({"bicep__rung": "auto", "model__kind": "linear"}, "model linear-.* has no ladder"),
        ({"bicep__rung": "0.5", "model__kind": "off"}, "the rungs of model off are 1"),
        ({"bicep__uncertainty": "analytic", "model__kind": "rule"}, "not calibrated"),
        ({"bicep__uncertainty": "any"}, 'needs bicep.rung "auto"'),
    ],
)
def test_what_the_model_cannot_do_is_one_line_at_the_start(models, tmp_path, changes, words):
    with pytest.raises(CommandError, match=words) as caught, built(config_of(models, **changes), tmp_path):
        pass
    assert "\n" not in str(caught.value)


def test_a_mode_that_is_not_calibrated_is_refused(tmp_path):
    manifest = make_model(tmp_path / "m")
    manifest["ladder"]["analytic"]["is_calibrated"] = [False] * len(DENSITIES)
    make_model(tmp_path / "n", ladder=manifest["ladder"])
    for rung in ("auto", "0.5"):
        config = config_of(tmp_path / "n", bicep__rung=rung, bicep__uncertainty="analytic")
        with pytest.raises(CommandError, match="calibrated"), built(config, tmp_path):
            pass


def test_auto_offers_what_uncertainty_says(models, tmp_path):
    for uncertainty, samples in (("mc", {32, 16, 8}), ("analytic", {0}), ("any", {32, 16, 8, 0})):
        config = config_of(models, bicep__rung="auto", bicep__uncertainty=uncertainty)
        with built(config, tmp_path, is_live=True) as system:
            assert {MODE_SAMPLES[word // 16] for word in system.rungs.words} == samples


def test_a_replay_under_auto_says_that_the_dense_rung_served(models, tmp_path):
    with built(config_of(models, bicep__rung="auto"), tmp_path) as system:
        assert not system.rungs.is_adaptive
        assert "dense rung" in system.rungs.warnings[0]
        assert not system.rungs.is_waiting


# ---------------------------------------------------------------- NANopt


class Desk:
    """A system under NANopt, with a sensor that is fed by hand."""

    def __init__(self, system) -> None:
        self.system, self.log, self.now_ns = system, Log(), time.monotonic_ns()
        self.control = RungControl(system, self.log, COSTS)
        system.orders.kill_switch.set(OPERATOR, PAPER)

    def period(self, cost_us: float, count: int = 50):
        """Spend 100 ms in which each inference cost so much, and look."""
        for _ in range(count):
            record(self.system.histograms["inference"].addr, round(cost_us * 1_000))
        self.now_ns += SECOND // 10
        return self.control.look(self.now_ns)

    def take(self) -> list[int]:
        """Do what the strategy loop does with a change."""
        return words(self.system.rungs.ring)


@pytest.fixture
def desk(models, tmp_path):
    config = config_of(models, bicep__rung="auto", bicep__slo_us=5.0, bicep__error_budget=100.0)
    with built(config, tmp_path, is_live=True) as system:
        yield Desk(system)


def test_inference_that_is_too_slow_gets_a_cheaper_setting_and_the_change_says_why(desk):
    assert desk.control.nanopt.setting.cost_us > 5
    change = desk.period(6.0)
    assert change.reason == Reason.LATENCY
    [word] = desk.take()
    assert word == word_of(change.rung, change.samples) != 0
    [(event, fields)] = desk.log.events
    assert event == "rung_changed"
    assert fields["reason"] == "LATENCY"


def test_nothing_moves_while_the_last_change_has_not_been_taken_or_trading_is_halted(desk):
    assert desk.period(6.0) is not None
    for _ in range(50):
        assert desk.period(60.0) is None
    assert len(desk.take()) == 1
    desk.system.orders.kill_switch.set(CONTROL, HALTED)
    frozen = desk.control.nanopt.counts["frozen"]
    for _ in range(50):
        assert desk.period(60.0) is None
    assert desk.control.nanopt.counts["frozen"] == frozen + 50


def test_nothing_moves_while_messages_are_missing(desk):
    desk.system.feed.live = types.SimpleNamespace(phase="snapshot")
    for _ in range(20):
        assert desk.period(60.0) is None
    desk.system.feed.live.phase = "live"
    assert desk.period(60.0) is not None


def test_a_period_in_which_the_rung_changed_measures_neither(desk):
    desk.period(6.0)
    desk.take()
    gain = desk.control.nanopt.gain
    desk.period(60.0)
    assert desk.control.nanopt.gain == gain
    desk.period(60.0)
    desk.period(60.0)
    assert desk.control.nanopt.gain > gain


def test_an_slo_that_cannot_be_kept_is_told_once(desk):
    for _ in range(100):
        desk.period(600.0)
        desk.take()
    missed = [fields["missed"] for event, fields in desk.log.events if event == "slo_miss"]
    assert missed == [True]
    assert desk.control.status()["slo_miss"]


def test_the_sensor_gives_the_p90_of_one_period():
    histogram = Histogram.create(Segment.anonymous(1 << 20), "h")
    for _ in range(100):
        record(histogram.addr, 1_000_000)
    sensor = CostSensor(histogram)
    assert sensor.read()[1] == 0
    for value in range(1, 101):
        record(histogram.addr, value * 100)
    cost_us, count, total_ns = sensor.read()
    assert (count, cost_us) == (100, pytest.approx(9.0, rel=0.02))
    assert total_ns == pytest.approx(505_000, rel=0.02)


def test_the_costs_are_measured_on_the_model_in_use(models, tmp_path):
    with built(config_of(models), tmp_path) as system:
        costs = measured_costs(system)
    assert costs.shape == (len(DENSITIES), len(MODE_SAMPLES))
    assert (costs > 0).all()


# ---------------------------------------------------------------- checks of decisions


def feed(system, count: int, tag: int = 0) -> np.ndarray:
    """Hand inputs to the sampler as decisions of a symbol without news; return the inputs."""
    inputs = np.random.default_rng(8).standard_normal((count, 32))
    decision = np.zeros(1, DECISION.dtype)
    for n in range(count):
        decision["locate"], decision["decision"], decision["tag"] = 3, n + 1, tag
        features = system.strategy.features.addr
        offer(system.rungs.sampler.addr, features, inputs[n].ctypes.data, 100 + n, 0, decision.ctypes.data)
    return inputs


def answers(plan, rows, tag: int, word: int) -> list[float]:
    """Return what a plan answers, one call at a time."""
    out = np.zeros(1, INFERENCE.dtype)
    plan.set_rung(word % 16, word // 16)
    found = []
    for n, row in enumerate(rows):
        infer(plan.state, tag, row.ctypes.data, 3, 100 + n, out.ctypes.data)
        found.append(float(out["mean"][0]))
    plan.set_rung(0)
    return found


def test_one_decision_in_n_is_sampled_and_a_full_ring_drops_and_counts():
    segment = Segment.anonymous(1 << 22)
    sampler = Sampler(segment, 3, capacity=4)
    decision, blank = np.zeros(1, DECISION.dtype), np.zeros(1 << 14, np.float64)
    for n in range(1, 19):
        decision["decision"] = n
        offer(sampler.addr, blank.ctypes.data, blank.ctypes.data, n, 0, decision.ctypes.data)
    rows = np.zeros(8, SHADOW.dtype)
    assert pop_into(sampler.ring, rows.ctypes.data, 8) == 4
    assert rows["decision"][:4].tolist() == [3, 6, 9, 12]
    assert sampler.view.refused == 2


@pytest.mark.parametrize("tag", [0, 2])
def test_a_check_is_the_difference_to_the_dense_net_on_the_same_masks(models, tmp_path, tag):
    config = config_of(models, bicep__rung="auto", bicep__shadow_every=1)
    with built(config, tmp_path, is_live=True) as system:
        control, plan = RungControl(system, Log(), COSTS), system.model.plan
        inputs = feed(system, 5, tag)
        found = control.checks.take([(1, 32), (2, 8)])
        dense = answers(plan, inputs, tag, 0)
        for rung, samples, word in ((1, 32, 1), (2, 8, 2 + 16 * MC_8)):
            direct = np.subtract(answers(plan, inputs, tag, word), dense) / control.checks.unit[tag]
            assert [d for r, s, d in found if (r, s) == (rung, samples)] == pytest.approx(direct, rel=1e-12)
        assert control.checks.counts == {"checked": 5, "left_out": 0, "news_moved": 0}


def test_an_analytic_answer_is_compared_with_many_samples(models, tmp_path):
    config = config_of(models, bicep__rung="auto", bicep__uncertainty="any", bicep__shadow_every=1)
    with built(config, tmp_path, is_live=True) as system:
        control = RungControl(system, Log(), COSTS)
        feed(system, 16)
        found = [d for _, _, d in control.checks.take([(0, 0)])]
        feed(system, 16)
        eight = [d for _, _, d in control.checks.take([(0, 8)])]
    assert np.square(found).mean() < 0.25 * np.square(eight).mean()


def test_checks_are_bounded_and_drop_inputs_whose_news_has_moved(models, tmp_path):
    config = config_of(models, bicep__rung="auto", bicep__shadow_every=1)
    with built(config, tmp_path, is_live=True) as system:
        control = RungControl(system, Log(), COSTS)
        feed(system, CHECKS_MAX + 9)
        assert len(control.checks.take([(1, 32)])) == CHECKS_MAX
        assert control.checks.counts["left_out"] == 9
        feed(system, 4)
        embedding = np.ones(768, np.float32)
        refresh_news(system.model.plan.state, 3, embedding.ctypes.data)
        assert control.checks.take([(1, 32)]) == []
        assert control.checks.counts["news_moved"] == 4


def test_the_checks_leave_the_plan_that_serves_alone(models, tmp_path):
    config = config_of(models, bicep__rung="auto", bicep__shadow_every=1)
    with built(config, tmp_path, is_live=True) as system:
        control, before = RungControl(system, Log(), COSTS), system.model.plan.counters()
        feed(system, 3)
        control.checks.take([(2, 16)])
        assert system.model.plan.counters() == before
        assert system.model.plan.rung == (0, 0)


# ---------------------------------------------------------------- the operator


def texts(stream: Stream) -> list[str]:
    """Return the LOG records of a stream."""
    records = np.concatenate([np.frombuffer(v, JOURNAL.dtype) for v in stream.waiting()])
    logs = records[records["type"] == RecordType.LOG]
    return [row["payload"].tobytes()[: row["payload_size"]].decode() for row in logs]


def test_a_pin_holds_against_latency_and_is_told_to_log_and_journal(desk):
    settings = [(s.density, s.samples) for s in desk.control.nanopt.settings]
    density, samples = settings[1]
    desk.control.pin(density, samples, "ada")
    assert len(desk.take()) == 1
    for _ in range(50):
        assert desk.period(600.0) is None
    assert desk.control.status()["pinned"]
    desk.control.unpin("ada")
    assert any(desk.period(600.0) for _ in range(30))
    assert texts(desk.system.streams[CONTROL_STREAM]) == [
        f"rung pinned to {density:g} x {samples} by ada", "rung unpinned by ada",
    ]  # fmt: skip
    assert [event for event, _ in desk.log.events][:2] == ["rung_changed", "rung_pinned"]


def test_what_is_no_setting_cannot_be_pinned(desk):
    with pytest.raises(ValueError, match="the settings are"):
        desk.control.pin(0.33, 32, "ada")
    assert desk.take() == []


async def test_the_endpoint_shows_the_setting_and_pins_for_the_holder_of_the_token(desk, tmp_path):
    views = SystemViews(desk.system, [], RecentFills(), desk.control)
    operator = Operator(desk.control, tmp_path)
    token = (tmp_path / "admin.token").read_text().strip()
    assert (tmp_path / "admin.token").stat().st_mode & 0o777 == 0o600
    async with TestClient(TestServer(build(views, 1_000, operator))) as client:
        shown = await (await client.get("/bicep")).json()
        assert {"density", "samples", "gain", "slo_miss", "counts"} <= set(shown)
        assert (shown["adaptive"], shown["density"], shown["pinned"]) == (True, 1.0, False)
        chosen = {"density": shown["settings"][1]["density"], "samples": shown["settings"][1]["samples"]}
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            refused = await client.post("/bicep/pin", json=chosen, headers=header)
            assert refused.status == 401
        assert desk.take() == []
        header = {"Authorization": f"Bearer {token}"}
        for body in ("[]", "{", '{"density": "1"}', '{"density": 1, "samples": 1.5}', '{"density": true}'):
            assert (await client.post("/bicep/pin", data=body, headers=header)).status == 400
        assert (await client.post("/bicep/pin", json={"density": 0.33}, headers=header)).status == 409
        done = await client.post("/bicep/pin", json=chosen | {"who": "ada"}, headers=header)
        assert done.status == 200
        assert (await done.json())["pinned"]
        assert (await client.post("/bicep/pin", json=chosen, headers=header)).status == 409  # still waiting
        assert len(desk.take()) == 1
        assert not (await (await client.post("/bicep/unpin", headers=header)).json())["pinned"]
        metrics = await (await client.get("/metrics")).text()
        assert "contrafusion_rung_density 1.0\n" in metrics
    operator.close()
    assert not (tmp_path / "admin.token").exists()


async def test_a_rung_that_the_configuration_pins_takes_no_command(models, tmp_path):
    with built(config_of(models), tmp_path) as system:
        app = build(SystemViews(system, [], RecentFills()), 1_000)
        async with TestClient(TestServer(app)) as client:
            shown = await (await client.get("/bicep")).json()
            assert shown == {"adaptive": False, "density": 1.0, "samples": 32, "changes": 0}
            assert (await client.post("/bicep/pin", json={"density": 1.0})).status == 409


def test_a_status_is_plain_json(desk):
    json.dumps(desk.control.status(), allow_nan=False)
