"""Indicators, rolling correlations and price paths of many instruments: one definition, three bodies."""

import numpy as np
import pytest
import torch
from emulator import build
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_bodies import EmulatedLauncher

import bicep
from bicep import kernels, series
from bicep.cpu import check
from bicep.cuda.cases import CheckError, cases
from bicep.cuda.twins import TWINS
from bicep.kernels import REGISTRY, compiled, on_device, op

torch.set_num_threads(1)
OPS = ("indicators", "rolling_correlation", "price_paths")
ON_CPU = check.on_cpu(cases())


def _prices(bars, instruments, seed=0):
    draw = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(0.01 * draw.standard_normal((bars, instruments)), axis=0))
    return close, close + draw.random(close.shape), close - draw.random(close.shape)


def _twin(prices):
    out = np.zeros((5, *prices[0].shape))
    bars, instruments = prices[0].shape
    names = ("close", "high", "low")
    TWINS["indicators"](**dict(zip(names, prices, strict=True)), bars=bars, instruments=instruments, out=out)
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 20), st.integers(0, 2**31))
def test_indicators_of_any_shape_equal_the_definition_in_numpy_and_in_torch(bars, instruments, seed):
    prices = _prices(bars, instruments, seed)
    ours = np.stack(series.indicators(*prices))
    np.testing.assert_allclose(ours, _twin(prices), rtol=1e-12, atol=1e-12)
    plain = series._indicators(*(torch.from_numpy(values) for values in prices))
    np.testing.assert_allclose(ours, plain.numpy(), rtol=1e-12, atol=1e-12)


def test_indicators_are_those_of_ta_lib():
    talib = pytest.importorskip("talib")
    close, high, low = _prices(200, 3)
    ours = series.indicators(close, high, low)
    for n in range(3):
        c, h, b = (np.ascontiguousarray(values[:, n]) for values in (close, high, low))
        macd, signal, _ = talib.MACD(c, 12, 26, 9)
        theirs = talib.RSI(c, 14), talib.EMA(c, 20), macd, signal, talib.ATR(h, b, c, 14)
        for mine, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine[:, n], wanted, rtol=1e-9, atol=1e-9)


def test_one_instrument_is_answered_as_among_others_and_neighbours_do_not_meet():
    close, high, low = _prices(60, 130)
    together = series.indicators(close, high, low)
    close[:, 5] *= 1e300  # overflows to infinity within its lane, in the square of nothing else
    after = series.indicators(close, high, low)
    for n in (0, 4, 6, 129):
        alone = series.indicators(close[:, n], high[:, n], low[:, n])
        for three in zip(alone, together, after, strict=True):
            assert three[0].shape == (60,)
            assert three[0].tobytes() == three[1][:, n].tobytes() == three[2][:, n].tobytes()
    still = series.indicators(np.full((40, 2), 7.0))
    assert (still.rsi[14:] == 50).all()
    assert (still.atr[14:] == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(2, 20), st.integers(0, 2**31))
def test_correlations_equal_those_of_numpy(times, instruments, window, seed):
    values = np.random.default_rng(seed).standard_normal((times, instruments))
    values[:, 0] = 3.0  # flat
    ours, pairs = series.rolling_correlation(values, window)
    assert len(pairs) == instruments * (instruments - 1) // 2
    plain = series._correlation(torch.from_numpy(values), torch.tensor(pairs, dtype=torch.int32), window)
    np.testing.assert_allclose(ours, plain.numpy(), rtol=1e-9, atol=1e-12)
    for n, (i, j) in enumerate(pairs):
        assert np.isnan(ours[n, : window - 1]).all()
        for t in range(window - 1, times):
            part = values[t - window + 1 : t + 1]
            wanted = 0.0 if i == 0 else np.corrcoef(part[:, i], part[:, j])[0, 1]
            assert ours[n, t] == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 13), st.integers(0, 2**64 - 1))
def test_paths_equal_the_definition_and_depend_on_nothing_but_their_key(assets, paths, steps, seed):
    start = np.linspace(10, 500, assets), np.linspace(-0.01, 0.01, assets), np.linspace(0, 0.2, assets)
    how = {"steps": steps, "paths": paths, "seed": seed, "number": 9}
    ours = series.price_paths(*start, **how)
    given_ = [torch.tensor(values, dtype=torch.float32) for values in start]
    plain = series._paths(*given_, paths, steps, 9, seed & 0xFFFFFFFF, seed >> 32)
    for mine, wanted in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, wanted.numpy(), rtol=1e-5)
    fewer = series.price_paths(*start, **how | {"paths": max(paths - 1, 1)})
    assert (fewer.last == ours.last[:, : fewer.last.shape[1]]).all()
    assert (ours.lowest <= ours.last).all()
    assert (ours.highest >= ours.last).all()
    assert (ours.lowest <= start[0][:, None].astype(np.float32)).all()


def test_paths_have_the_moments_of_the_process():
    drift, volatility, steps = 0.002, 0.03, 50
    ends = series.price_paths([100.0], [drift], [volatility], steps=steps, paths=200_000, seed=3).last[0]
    logs = np.log(ends.astype(np.float64) / 100)
    error = volatility * (steps / 200_000) ** 0.5
    assert logs.mean() == pytest.approx((drift - volatility**2 / 2) * steps, abs=5 * error)
    assert logs.std() == pytest.approx(volatility * steps**0.5, rel=0.01)
    assert ((logs - logs.mean()) ** 4).mean() / logs.var() ** 2 == pytest.approx(3, abs=0.06)
    other = series.price_paths([100.0], [drift], [volatility], steps=steps, paths=200_000, seed=4).last[0]
    assert abs(np.corrcoef(ends, other)[0, 1]) < 0.012


@pytest.mark.parametrize("case", ON_CPU, ids=lambda case: case.label)
def test_every_case_of_the_self_check_passes_on_the_cpu_and_can_fail(case):
    assert check.run(case) <= case.entry.tolerance
    arguments = case.copy()
    check.BODIES[case.entry.name](**arguments)
    for result in (values for values in case.results(arguments).values() if values.size):
        result.reshape(-1)[-1] += np.array(1, result.dtype)
    with pytest.raises(CheckError):
        case.check(arguments)


def test_the_compiled_bodies_answered():
    before = {name: dict(REGISTRY.ops[name].calls) for name in OPS}
    series.indicators(np.ones(3))
    series.rolling_correlation(np.ones((3, 2)), 2)
    series.price_paths([1.0], [0.0], [0.1], steps=1, paths=1)
    for name in OPS:
        assert REGISTRY.ops[name].calls["compiled"] == before[name]["compiled"] + 1
        assert REGISTRY.ops[name].calls["torch"] == before[name]["torch"]


@pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
def test_the_cuda_bodies_answer_the_same_on_the_emulated_device():
    launcher = EmulatedLauncher(2)
    prices = [torch.from_numpy(values) for values in _prices(40, 5)]
    ours = torch.ops.bicep.indicators(*prices)
    torch.testing.assert_close(
        REGISTRY.ops["indicators"].device(launcher, *prices), ours, rtol=1e-9, atol=1e-9, equal_nan=True
    )
    pairs = torch.tensor([[0, 1], [4, 2]], dtype=torch.int32)
    ours = torch.ops.bicep.rolling_correlation(prices[0], pairs, 10)
    theirs = REGISTRY.ops["rolling_correlation"].device(launcher, prices[0], pairs, 10)
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9, equal_nan=True)
    start = [torch.tensor(values) for values in ([10.0, 20.0], [0.0, 0.1], [0.1, 0.2])]
    for ours, theirs in zip(
        torch.ops.bicep.price_paths(*start, 33, 5, 1, 2, 3),
        REGISTRY.ops["price_paths"].device(launcher, *start, 33, 5, 1, 2, 3),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert launcher.launched == list(OPS)
    single = [values.float() for values in prices]
    assert REGISTRY.ops["indicators"].device(launcher, *single) is NotImplemented


def test_opcheck_finds_nothing_and_arrays_come_back_as_they_were_given():
    prices = [torch.from_numpy(values) for values in _prices(40, 5)]
    start = [torch.tensor([1.0, 2.0])] * 3
    pairs = torch.tensor([[0, 1]], dtype=torch.int32)
    alike = {"test_utils": ("test_schema", "test_faketensor", "test_autograd_registration")}  # NaN != NaN
    torch.library.opcheck(torch.ops.bicep.indicators.default, tuple(prices), **alike)
    torch.library.opcheck(torch.ops.bicep.rolling_correlation.default, (prices[0], pairs, 10), **alike)
    torch._dynamo.reset()
    compiled_ = torch.compile(torch.ops.bicep.indicators, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled_(*prices), torch.ops.bicep.indicators(*prices), equal_nan=True)
    torch.library.opcheck(torch.ops.bicep.price_paths.default, (*start, 3, 4, 5, 6, 7))
    assert isinstance(bicep.indicators(prices[0]).rsi, torch.Tensor)
    assert isinstance(bicep.indicators(prices[0].numpy()[:, :1]).rsi, np.ndarray)
    assert bicep.indicators(prices[0].float()).rsi.dtype is torch.float64
    wide = np.repeat(prices[0].numpy(), 2, axis=1)[:, ::2]  # not dense in memory
    assert (
        np.nan_to_num(bicep.indicators(wide).atr) == np.nan_to_num(bicep.indicators(prices[0].numpy()).atr)
    ).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named_with_their_place(bad):
    close = np.ones((40, 3))
    close[7, 2] = bad
    with pytest.raises(ValueError, match=r"close is NaN or infinite at \[7, 2\]"):
        bicep.indicators(close)
    with pytest.raises(ValueError, match=r"low is NaN or infinite at \[7, 2\]"):
        bicep.indicators(np.ones((40, 3)), low=close)
    with pytest.raises(ValueError, match="values is NaN"):
        bicep.rolling_correlation(close, 5)
    for place in range(3):
        start = [[1.0], [0.0], [0.1]]
        start[place] = [bad]
        with pytest.raises(ValueError, match="NaN or infinite"):
            bicep.price_paths(*start, steps=1, paths=1)


def test_what_makes_no_sense_is_a_value_error():
    for shape in ((3, 3, 3), (0, 3), (3, 0)):
        with pytest.raises(ValueError, match="wanted is"):
            bicep.indicators(np.ones(shape))
    with pytest.raises(ValueError, match="close, high and low of shapes"):
        bicep.indicators(np.ones((4, 2)), np.ones((4, 3)))
    for window, pairs, words in ((1, None, "a window of 1"), (3, [(0, 2)], "pair"), (3, [(-1, 0)], "pair"),
                                 (3, [], "0 pairs")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            bicep.rolling_correlation(np.ones((9, 2)), window, pairs)
    for start in (([0.0], [0.0], [0.1]), ([1.0], [0.0], [-0.1]), ([1.0, 2.0], [0.0], [0.1])):
        with pytest.raises(ValueError, match="one number per asset"):
            bicep.price_paths(*start, steps=1, paths=1)
    for how in ({"steps": 0}, {"paths": 0}, {"number": -1}, {"steps": 1 << 31}):
        with pytest.raises(ValueError, match="paths of"):
            bicep.price_paths([1.0], [0.0], [0.1], **{"steps": 1, "paths": 1} | how)


def test_an_operation_of_ones_own_is_one_registration():
    """A definition, a compiled body and a device body make an operation that torch and the registry know."""
    asked = []

    @op("thrice", schema="(Tensor x) -> Tensor", fake=torch.empty_like, work=lambda x: x.numel())
    def thrice(x):
        return 3 * x

    @compiled("thrice")
    def thrice_compiled(x):
        asked.append(x.dtype)
        return torch.from_numpy(x.numpy() * 3) if x.dtype is torch.float32 else NotImplemented

    @on_device("thrice")
    def thrice_on_device(_launcher, _x):
        return NotImplemented

    try:
        x = torch.arange(3.0)
        assert torch.ops.bicep.thrice(x).tolist() == thrice(x).tolist() == [0.0, 3.0, 6.0]
        assert torch.ops.bicep.thrice(x.double()).tolist() == [0.0, 3.0, 6.0]
        assert asked == [torch.float32, torch.float64]
        made = kernels.REGISTRY.ops["thrice"]
        assert (made.calls["compiled"], made.calls["torch"]) == (1, 1)
        assert made.device is thrice_on_device
        torch.library.opcheck(torch.ops.bicep.thrice.default, (x,))
        assert thrice_compiled(x).tolist() == [0.0, 3.0, 6.0]
    finally:
        REGISTRY.ops.pop("thrice")
