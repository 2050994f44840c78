"""NANopt in closed loop: the SLO is kept, the error budget is never broken, and nothing oscillates."""

import dataclasses
import itertools
import math
import subprocess
import sys

import pytest
from nanopt_rig import BUDGET, HOUR, PERIOD_NS, Plant, ladder_settings, options

from bicep.budget import Allocator, Share
from bicep.nanopt import Change, NANOpt, Observation, Options, Reason, Setting, front, robust_cost
from bicep.pid import PidOptions
from bicep.training_control import FeatureGate, LayerControl, TrainingSchedule, cubic_density

SECOND = 1_000_000_000
FORMS = {"ladder": None, "pid": PidOptions()}


def _between(begin, end, inside, outside):
    return lambda n: inside if begin <= n < end else outside


def _plant(seed=0, form="ladder", slo_us=2.6, **plant):
    return Plant(NANOpt(ladder_settings(), options(slo_us=slo_us, pid=FORMS[form])), seed, **plant)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_a_volatility_shock_and_a_load_shock_break_neither_goal(seed, form):
    plant = _plant(
        seed, form, load=_between(6_000, 9_000, 1.2, 1.0), volatility=_between(18_000, 21_000, 2.0, 0.7)
    ).run(HOUR)
    assert plant.share_met() >= 0.99
    assert max(plant.errors) <= BUDGET
    assert len(plant.changes) <= 30
    assert max(plant.offline[18_000:21_000]) < min(plant.offline[10_000:17_000])  # pruned less, at once
    assert plant.offline[-1] > max(plant.offline[18_000:21_000])  # and more again, once it is calm
    assert plant.nanopt.counts["changes"] == len(plant.changes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("slo_us", [1.5, 2.05, 2.35, 2.6, 3.5, 6.1])
def test_an_hour_of_noise_makes_no_limit_cycle(seed, slo_us, form):
    plant = _plant(seed, form, slo_us, noise=0.03).run(HOUR)
    times = [change.time_ns for change in plant.changes]
    assert all(later - earlier >= SECOND for earlier, later in itertools.pairwise(times))
    assert len(plant.changes) <= 10
    assert sum(time > 600 * SECOND for time in times) <= 3  # it has found its place
    assert plant.share_met() >= 0.99


def test_a_ramp_in_load_is_followed_down_and_back():
    plant = _plant(load=lambda n: 1 + 0.6 * (1 - abs(n - 5_000) / 5_000) if n < 10_000 else 1.0).run(15_000)
    assert plant.share_met() >= 0.99
    assert min(plant.densities[4_000:6_000]) < plant.densities[-1]
    assert {change.reason for change in plant.changes} == {Reason.LATENCY, Reason.HEADROOM}


def test_down_at_once_and_up_one_step_per_dwell():
    plant = _plant(load=_between(100, 300, 1.6, 0.3), mismatch=0, noise=0).run(800)
    downs = [change for change in plant.changes if change.reason == Reason.LATENCY]
    ups = [change for change in plant.changes if change.reason == Reason.HEADROOM]
    index = {(s.rung, s.samples): n for n, s in enumerate(plant.nanopt.settings)}
    moved = [index[c.rung, c.samples] - index[c.old_rung, c.old_samples] for c in downs]
    assert max(moved) > 1
    assert all(index[c.old_rung, c.old_samples] - index[c.rung, c.samples] == 1 for c in ups)
    assert plant.densities[-1] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_an_error_that_grows_without_a_sign_is_found_by_shadow_evaluations(seed):
    plant = _plant(seed, drift=_between(3_000, 12_000, 3.0, 1.0)).run(20_000)
    assert plant.offline[2_999] >= 0.03
    assert max(plant.errors[3_060:12_000]) <= BUDGET  # retracted, and not tried again while it lasts
    assert sum(plant.errors[3_000:3_060]) / 60 <= 2 * BUDGET
    first = next(change for change in plant.changes if change.reason == Reason.ERROR)
    assert first.time_ns <= 3_060 * PERIOD_NS
    assert plant.offline[-1] >= 0.03  # it recovered
    assert plant.nanopt.counts["slo_miss"] >= 1  # while error had to win


def test_conflicting_goals_error_wins_and_the_miss_is_raised():
    nanopt = NANOpt(ladder_settings(), options(slo_us=0.7))
    plant = Plant(nanopt).run(500)
    assert nanopt.slo_miss
    assert max(plant.errors) <= BUDGET
    cheapest = min(s.cost_us for s in nanopt.settings if s.error <= 0.8 * BUDGET)
    assert nanopt.setting.cost_us == cheapest
    assert not any(plant.possible)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_a_sensor_that_gives_no_number_changes_nothing(bad):
    def spoil(n, seen):
        return dataclasses.replace(seen, cost_us=bad) if n >= 200 else seen

    plant = _plant(spoil=spoil).run(2_000)
    assert plant.nanopt.sensor_lost
    assert plant.nanopt.counts["bad_sensor"] == 1_800
    assert math.isfinite(plant.nanopt.gain)
    assert not [change for change in plant.changes if change.time_ns >= 200 * PERIOD_NS]


def test_without_a_cost_sensor_the_error_budget_still_binds():
    def spoil(n, seen):
        return dataclasses.replace(seen, cost_us=math.nan) if n >= 500 else seen

    plant = _plant(spoil=spoil, volatility=_between(1_000, 1_500, 2.0, 0.7)).run(2_000)
    assert max(plant.errors) <= BUDGET
    assert plant.changes[-1].reason == Reason.VOLATILITY


def test_shadows_and_volatility_that_are_no_numbers_are_counted_or_ignored():
    def spoil(_, seen):
        shadows = [(rung, samples, math.nan) for rung, samples, _ in seen.shadows] + [(99, 32, 0.1)]
        return dataclasses.replace(seen, shadows=shadows, volatility=math.nan, matured=math.inf)

    plant = _plant(spoil=spoil).run(300)
    assert plant.nanopt.counts["bad_shadow"] > 300
    assert plant.nanopt.factor == 1.0


def test_single_outliers_of_the_sensor_move_nothing():
    def spoil(n, seen):
        return dataclasses.replace(seen, cost_us=seen.cost_us * 1e6) if n == 1_000 else seen

    plant = _plant(spoil=spoil, mismatch=0, slo_us=6.4, noise=0.01).run(3_000)
    assert len(plant.changes) <= 3
    assert plant.nanopt.setting.density == 1.0


def test_matured_errors_prune_less_when_enough_labels_speak():
    nanopt = NANOpt(ladder_settings(), options(matured_high=1.5))
    Plant(nanopt).run(200)
    before = nanopt.setting.error
    nanopt.step(Observation(21 * SECOND, matured=24.0, matured_count=10))
    assert nanopt.setting.error == before
    change = nanopt.step(Observation(21 * SECOND, matured=24.0, matured_count=500))
    assert change.reason == Reason.VOLATILITY
    assert nanopt.factor == 4.0
    assert nanopt.setting.error * 4 <= BUDGET


def test_a_busy_agent_prunes_more_and_stays_there():
    def spoil(_, seen):  # the agent's time goes into inference, at a rate that leaves room for 4.5 us
        return dataclasses.replace(seen, utilisation=seen.cost_us / 5)

    plant = _plant(slo_us=100.0, spoil=spoil, mismatch=0).run(3_000)
    assert plant.nanopt.setting.cost_us <= 4.5
    assert len(plant.changes) <= 4


def test_two_models_work_within_their_grants_of_one_agents_time():
    """Both ask alike at first; then one asks four times as much, is granted more, and the other prunes."""
    allocator = Allocator([Share("a", floor=0.2), Share("b", floor=0.2)])
    models = {name: NANOpt(ladder_settings(), options(slo_us=100.0)) for name in "ab"}
    used = {name: [] for name in "ab"}
    for n in range(4_000):
        asks = {"a": 0.08e6, "b": 0.08e6 if n < 2_000 else 0.3e6}  # inferences a second
        for name, rate in asks.items():
            allocator.observe(name, rate)
        granted = allocator.allocate()
        for name, nanopt in models.items():
            cost = nanopt.setting.cost_us
            share = asks[name] * cost / 1e6
            used[name].append(share)
            seen = Observation(n * PERIOD_NS, cost, 1_000, utilisation=share, grant=granted[name])
            nanopt.step(seen)
        if n == 1_999:
            before = {name: nanopt.setting.cost_us for name, nanopt in models.items()}
    assert before["a"] == before["b"]
    assert models["b"].setting.cost_us < before["b"]  # four times the work in less than twice the time
    assert models["a"].setting.cost_us < before["a"]
    for name, share in (("a", 0.3), ("b", 0.85)):
        assert used[name][-1] <= share
    assert all(nanopt.counts["changes"] <= 12 for nanopt in models.values())
    assert used["a"][-1] + used["b"][-1] <= 1.0


def test_nothing_moves_while_frozen():
    def spoil(n, seen):
        return dataclasses.replace(seen, is_frozen=True) if n >= 100 else seen

    plant = _plant(spoil=spoil, load=_between(100, 500, 3.0, 1.0)).run(500)
    assert all(change.time_ns < 100 * PERIOD_NS for change in plant.changes)
    assert plant.nanopt.counts["frozen"] == 400


def test_a_pin_holds_against_latency_but_not_against_error():
    nanopt = NANOpt(ladder_settings(), options())
    change = nanopt.pin(0, 3, 32)
    assert (change.rung, change.reason) == (3, Reason.PIN)
    plant = Plant(nanopt, load=lambda _: 5.0).run(100)
    assert not plant.changes
    assert nanopt.setting.rung == 3
    later = Plant(nanopt, drift=lambda _: 6.0, seed=2).run(200)
    assert later.changes[0].reason == Reason.ERROR
    assert nanopt.setting.rung < 3


def test_a_pin_outside_the_budget_or_off_the_ladder_is_refused():
    nanopt = NANOpt(ladder_settings(), options())
    for rung, samples in ((6, 32), (9, 32), (0, 7)):
        with pytest.raises(ValueError, match="not on the ladder, or outside"):
            nanopt.pin(0, rung, samples)
    nanopt.pin(0, 2, 32)
    nanopt.unpin()
    assert Plant(nanopt).run(100).changes


@pytest.mark.parametrize("form", FORMS)
def test_the_same_observations_give_the_same_changes(form):
    seen = []

    def spoil(_, observation):
        seen.append(observation)
        return observation

    plant = _plant(
        3, form, spoil=spoil, load=_between(500, 900, 1.4, 1.0), drift=_between(2_000, 2_500, 3.0, 1.0)
    ).run(4_000)
    told: list[Change] = []
    again = NANOpt(ladder_settings(), plant.nanopt.options, told.append)
    returned = [change for observation in seen if (change := again.step(observation)) is not None]
    assert returned == plant.changes == told
    assert len(told) >= 3
    assert (again.gain, again.factor, again.counts) == (
        plant.nanopt.gain, plant.nanopt.factor, plant.nanopt.counts,
    )  # fmt: skip


def test_a_change_says_all_that_a_journal_needs():
    plant = _plant().run(100)
    first = plant.changes[0]
    assert (first.old_rung, first.old_samples, first.slo_us, first.reason) == (0, 32, 2.6, Reason.LATENCY)
    for earlier, later in itertools.pairwise(plant.changes):
        assert (earlier.rung, earlier.samples) == (later.old_rung, later.old_samples)
    assert math.isfinite(first.gain)
    assert 0 <= first.error <= BUDGET


def test_the_front_leaves_out_what_costs_more_and_errs_more():
    dense, slow = Setting(0, 32, 1.0, 5.0, 0.0), Setting(1, 32, 0.7, 5.5, 0.01)
    quick = Setting(2, 32, 0.5, 3.0, 0.02)
    assert front([quick, slow, dense]) == [dense, quick]
    ordered = front(ladder_settings())
    assert [s.error for s in ordered] == sorted(s.error for s in ordered)
    assert [s.cost_us for s in ordered] == sorted((s.cost_us for s in ordered), reverse=True)


@pytest.mark.parametrize(("cost", "error"), [(math.nan, 0), (0, 0), (1, math.nan), (1, -1), (math.inf, 0)])
def test_settings_that_are_no_numbers_are_refused(cost, error):
    with pytest.raises(ValueError, match="rung 0, 32 samples"):
        NANOpt([Setting(0, 32, 1.0, cost, error)], options())


@pytest.mark.parametrize(
    "changes",
    [
        {"slo_us": 0}, {"slo_us": math.nan}, {"error_budget": 0}, {"dwell_ns": 0}, {"climb_share": 0.99},
        {"gain_weight": 0}, {"calm_weight": 2}, {"error_margin": 1.5}, {"utilisation_max": 0},
    ],
)  # fmt: skip
def test_options_that_bound_nothing_are_refused(changes):
    with pytest.raises(ValueError, match="must"):
        options(**changes)


def test_no_settings_are_refused():
    with pytest.raises(ValueError, match="no setting"):
        NANOpt([], options())


def test_a_robust_cost_leaves_out_context_switches():
    costs, switched = [1.0] * 90 + [2.0] * 10 + [500.0] * 50, [False] * 100 + [True] * 50
    assert robust_cost(costs, switched) == (1.0, 100)
    assert robust_cost([1.0, 2.0, math.nan], [False] * 3) == (2.0, 2)
    assert math.isnan(robust_cost([1.0], [True])[0])


def test_the_pid_form_does_not_wind_up_while_it_is_held():
    plant = _plant(form="pid", slo_us=1.05, load=_between(0, 3_000, 2.5, 1.0), mismatch=0, noise=0).run(3_000)
    held = plant.nanopt._pid.integral
    assert abs(held) < 20
    assert max(plant.errors) <= BUDGET
    assert plant.nanopt.slo_miss


def test_controllers_import_no_compiler():
    code = (
        "import sys, bicep.nanopt, bicep.training_control; assert not {'numba', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_training_schedule_is_cubic_and_only_falls():
    assert [cubic_density(n, 10, 20, 0.2) for n in (0, 10, 15, 20, 99)] == pytest.approx(
        [1, 1, 0.2 + 0.8 / 8, 0.2, 0.2]
    )
    schedule, density, seen = TrainingSchedule(2, 50, 0.1, every=5), 1.0, []
    for _ in range(60):
        schedule.observe(1, 1)
        density = schedule.density(density)
        seen.append(density)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.1
    assert len(set(seen)) <= 12
    for bad in ((5, 5, 0.1), (0, 5, 0.0), (0, 5, 2.0)):
        with pytest.raises(ValueError, match="densities"):
            TrainingSchedule(*bad)


def test_a_layer_follows_the_setting_that_its_calls_can_afford():
    clock = iter(range(0, 10**15, SECOND))
    nanopt = NANOpt([Setting(n, 32, d, d * 10, 0.0 if d == 1 else 0.01) for n, d in enumerate((1.0, 0.5))],
                    Options(slo_us=7.0, error_budget=0.1))  # fmt: skip
    control, density = LayerControl(nanopt, lambda: next(clock)), 1.0
    for _ in range(20):
        for _ in range(10):
            control.observe(4, round(40_000 * density))
        density = control.density(density)
    assert density == 0.5


def test_an_optional_feature_that_earns_nothing_is_switched_off_and_tried_again():
    gate = FeatureGate({"wavelet": 2.0, "spread": 0.1}, 0.01, dwell_ns=10 * SECOND, retry_ns=100 * SECOND)
    changed = []
    for n in range(150):
        worth = {"wavelet": 0.0 if n < 100 else 1.0, "spread": 0.05}
        switches = gate.step(n * SECOND, {name: worth[name] for name in gate.on()})
        changed += [(n, name, is_on) for name, is_on in switches.items()]
    assert [(name, is_on) for _, name, is_on in changed] == [("wavelet", False), ("wavelet", True)]
    assert changed[1][0] - changed[0][0] == 100
    assert gate.on() == {"wavelet", "spread"}
    with pytest.raises(ValueError, match="above 0"):
        FeatureGate({"x": 0.0}, 1.0, dwell_ns=1, retry_ns=1)
