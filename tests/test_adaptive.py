"""Who answers (crossover) and who gets how much (budget): properties, over any numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bicep.budget import Allocator, Share
from bicep.crossover import Backend, Chooser, Costs, Policy, measure

COSTS = Costs(cpu_us=3.0, launch_us=20.0, symbol_us=1.0)  # quicker on the GPU from 10 symbols on
positive = st.floats(0.01, 1e6)


def feed(chooser, symbols, count):
    for _ in range(count):
        chooser.choose(symbols)
    return chooser.backend


def test_the_crossover_is_where_both_cost_the_same():
    n = COSTS.crossover
    assert n * COSTS.cpu_us == pytest.approx(COSTS.launch_us + n * COSTS.symbol_us)
    assert Costs(1.0, 5.0, 1.0).crossover == math.inf
    assert Costs(1.0, 5.0, 2.0).crossover == math.inf
    assert Costs(2.0, 0.0, 1.0).crossover == 0


@given(cpu=positive, launch=st.floats(0, 1e6), symbol=positive)
def test_beyond_the_crossover_the_gpu_is_quicker_and_below_it_the_cpu(cpu, launch, symbol):
    costs = Costs(cpu, launch, symbol)
    edge = costs.crossover
    for symbols in (0.5 * edge, 2 * edge):
        if math.isfinite(symbols) and symbols > 0:
            assert (launch + symbol * symbols < cpu * symbols) == (symbols > edge) or launch == 0


def test_the_fit_finds_the_costs_of_an_ideal_clock():
    now = [0.0]

    def busy(seconds):
        now[0] += seconds

    costs = measure(lambda n: busy(3e-6 * n), lambda n: busy(20e-6 + 1e-6 * n), clock=lambda: now[0])
    assert (costs.cpu_us, costs.launch_us, costs.symbol_us) == pytest.approx((3, 20, 1), rel=1e-3)


def test_the_choice_follows_the_load_with_a_band_and_a_rest():
    chooser = Chooser(COSTS)
    assert feed(chooser, 1, 200) is Backend.CPU
    assert feed(chooser, 11, 500) is Backend.CPU  # beyond the crossover, within the band
    assert feed(chooser, 30, 200) is Backend.CUDA
    assert feed(chooser, 9, 500) is Backend.CUDA  # below it, within the band
    assert feed(chooser, 2, 200) is Backend.CPU
    assert chooser.changes == 2


def test_a_load_that_jumps_about_the_crossover_changes_little():
    chooser = Chooser(COSTS)
    for n in range(10_000):
        chooser.choose(5 if n % 2 else 15)
    assert chooser.changes <= 1
    wild = Chooser(COSTS, Policy(smoothing=1.0))
    for n in range(6_400):
        wild.choose(1 if n % 2 else 100)
    assert wild.changes <= 6_400 / wild.policy.dwell + 1  # at most one in a dwell


def test_a_gpu_that_never_pays_is_never_chosen_and_none_neither():
    assert feed(Chooser(Costs(1.0, 5.0, 2.0)), 10_000, 500) is Backend.CPU
    assert feed(Chooser(None), 10_000, 500) is Backend.CPU


def test_a_forced_back_end_stays_until_it_is_lost():
    chooser = Chooser(COSTS, forced=Backend.CUDA)
    assert feed(chooser, 1, 500) is Backend.CUDA
    chooser.lose()
    assert feed(chooser, 1_000, 500) is Backend.CPU
    assert Chooser(COSTS, forced=Backend.CPU).choose(10_000) is Backend.CPU


def test_load_or_cost_that_moves_asks_for_a_new_measurement():
    chooser = Chooser(COSTS)
    feed(chooser, 4, 100)
    assert not chooser.is_stale
    feed(chooser, 8, 100)
    assert chooser.is_stale
    chooser.renew(COSTS)
    assert not chooser.is_stale
    for _ in range(50):
        chooser.observe(8, 8 * COSTS.cpu_us * 2)
    assert chooser.is_stale
    chooser.renew(Costs(6.0, 20.0, 1.0))
    assert not chooser.is_stale
    assert chooser.costs.crossover == pytest.approx(4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_a_time_that_is_no_number_moves_nothing(bad):
    chooser = Chooser(COSTS)
    feed(chooser, 4, 10)
    for _ in range(100):
        chooser.observe(4, bad)
    assert not chooser.is_stale


def test_the_choice_is_a_function_of_what_it_was_fed():
    def run():
        chooser, said = Chooser(COSTS), []
        for n in range(3_000):
            said.append(chooser.choose(1 + n * 7 % 40))
            chooser.observe(1 + n * 7 % 40, 10.0 + n % 13)
        return said

    assert run() == run()


# ---------------------------------------------------------------- budget

shares = st.lists(
    st.tuples(st.floats(0.01, 100), st.floats(0, 0.1), st.floats(0, 1e6)), min_size=1, max_size=10
)


@given(shares)
def test_shares_add_up_keep_the_floors_and_follow_weight_times_activity(models):
    allocator = Allocator([Share(str(n), weight, floor) for n, (weight, floor, _) in enumerate(models)], 1.0)
    for n, (_, _, activity) in enumerate(models):
        allocator.observe(str(n), activity)
    granted = allocator.allocate()
    assert sum(granted.values()) == pytest.approx(1.0)
    for n, (_, floor, _) in enumerate(models):
        assert granted[str(n)] >= floor - 1e-6
    wants = {str(n): weight * activity for n, (weight, _, activity) in enumerate(models)}
    above = [name for name in granted if granted[name] > models[int(name)][1] + 1e-6 and wants[name] > 1e-3]
    for one in above:
        for two in above:
            if any(activity for _, _, activity in models):
                assert granted[one] * wants[two] == pytest.approx(
                    granted[two] * wants[one], rel=1e-3, abs=1e-6
                )


def test_an_idle_model_has_its_floor_and_the_active_ones_the_rest():
    allocator = Allocator([Share("a", 1, 0.1), Share("b", 1, 0.1), Share("c", 2, 0.1)], 1.0)
    for name, activity in (("a", 0), ("b", 100), ("c", 100)):
        allocator.observe(name, activity)
    assert allocator.allocate() == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6})


def test_nobody_active_is_shared_by_weight():
    assert Allocator([Share("a", 1), Share("b", 3)]).allocate() == pytest.approx({"a": 0.25, "b": 0.75})


def test_a_burst_is_smoothed_and_a_lasting_change_wins():
    allocator = Allocator([Share("a"), Share("b")])
    for _ in range(50):
        allocator.observe("a", 10)
        allocator.observe("b", 10)
        granted = allocator.allocate()
    assert granted == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-6)
    allocator.observe("a", 100)
    allocator.observe("b", 10)
    assert 0.5 < allocator.allocate()["a"] < 0.85
    for _ in range(50):
        allocator.observe("a", 100)
        allocator.observe("b", 10)
        granted = allocator.allocate()
    assert granted["a"] == pytest.approx(100 / 110, abs=1e-3)


def test_a_broken_sensor_moves_nothing_and_bad_declarations_are_refused():
    allocator = Allocator([Share("a"), Share("b")], 1.0)
    for bad in (math.nan, math.inf, -5.0):
        allocator.observe("a", bad)
    allocator.observe("a", 1)
    allocator.observe("b", 1)
    assert allocator.allocate() == pytest.approx({"a": 0.5, "b": 0.5})
    with pytest.raises(KeyError):
        allocator.observe("c", 1)
    for wrong in ([], [Share("a", 0)], [Share("a", math.nan)], [Share("a", 1, 1.5)]):
        with pytest.raises(ValueError, match=r"budget|model"):
            Allocator(wrong)
    with pytest.raises(ValueError, match="floors add up"):
        Allocator([Share("a", 1, 0.6), Share("b", 1, 0.6)])
