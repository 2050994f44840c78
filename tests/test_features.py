"""The feature kernels against hand cases, a brute-force recount, closed forms and TA-Lib."""

import math

import numpy as np
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import features as reference
from reference.features import Event, S

from nimbus.messages import BOOK_EVENT, BUY, SELL, TOP_CHANGED, TRADED
from ringbuf.jit import kernel
from ringbuf.memory import store_f64
from ringbuf.segment import Segment
from strategy.features import (
    BAD_LOCATE,
    BAR_CLOSED,
    COLUMNS,
    INDEX,
    NAMES,
    RUN_BEGAN,
    TWO_SIDED,
    VECTOR_WRITTEN,
    Features,
    Normalisation,
    normalise,
    update,
    vector_at,
    volatility,
    warm_mask,
)
from strategy.features.arithmetic import decay, log_ratio
from strategy.features.lanes import dot

START = 34_200 * S


@kernel
def decay_at(x: float, out: int) -> None:
    store_f64(out, decay(x))


@kernel
def dot_at(left: int, right: int) -> float:
    return dot(left, right)


@kernel
def log_ratio_at(a: float, b: float, out: int) -> None:
    store_f64(out, log_ratio(a, b))


class Rig:
    """Features of four symbols, fed by plain events."""

    def __init__(self):
        self.segment = Segment.anonymous(1 << 20)
        self.features = Features(self.segment, 4)
        self.event_at = self.segment.allocate("event", BOOK_EVENT.size)
        self.event = self.segment.array("event", BOOK_EVENT)[0]
        self.float_at = self.segment.allocate("float", 64)
        self.float = self.segment.words(self.float_at, 1).view(np.float64)

    def feed(self, e: Event, locate=1, flags=TOP_CHANGED) -> int:
        """Put a plain event into the record and take it in."""
        resting = {"": 0, "B": BUY, "S": SELL}[e.resting]
        values = {
            "exch_ns": e.ns, "bid_px": e.bid_px, "ask_px": e.ask_px, "bid_qty": e.bid_qty,
            "ask_qty": e.ask_qty, "bid_depth_qty": e.bid_depth, "ask_depth_qty": e.ask_depth,
            "cause": ord(e.cause), "trade_px": e.trade_px, "trade_qty": e.trade_qty, "locate": locate,
            "resting_side": resting, "flags": flags | (TRADED if e.trade_qty else 0),
        }  # fmt: skip
        for key, value in values.items():
            self.event[key] = value
        return update(self.features.addr, self.event_at)

    def get(self, name, locate=1):
        """Return a column by name."""
        return float(self.features.vector(locate)[INDEX[name]])

    def is_warm(self, name, locate=1):
        """Say whether a column is warm."""
        return bool(int(self.features.rows[locate]["warm"]) >> INDEX[name] & 1)


def quote(ns, bid=(1_000_000, 10), ask=(1_000_200, 10), cause="A", **trade) -> Event:
    return Event(ns, bid[0], ask[0], bid[1], ask[1], 5 * bid[1], 5 * ask[1], cause, **trade)


@pytest.mark.parametrize(
    ("before", "after", "flow"),
    [
        (((100, 10), (102, 10)), ((100, 15), (102, 10)), 5),  # bid +5
        (((100, 10), (102, 10)), ((100, 6), (102, 10)), -4),  # cancel 4
        (((100, 10), (102, 10)), ((101, 3), (102, 10)), 3),  # new better bid of 3
        (((100, 10), (102, 10)), ((99, 8), (102, 10)), -10),  # bid 100x10 cleared to 99x8
        (((100, 10), (102, 10)), ((100, 10), (102, 8)), 2),  # ask loses 2
        (((100, 10), (102, 10)), ((100, 10), (101, 4)), -4),  # better ask of 4
        (((100, 10), (102, 10)), ((100, 10), (0, 0)), 10),  # ask side gone
        (((0, 0), (102, 10)), ((100, 7), (102, 10)), 7),  # bid side appears
    ],
)
def test_order_flow_of_one_change_is_the_hand_count(before, after, flow):
    rig = Rig()
    rig.feed(quote(START, *before))
    rig.feed(quote(START, *after))
    assert rig.features.rows[1]["ofi_10"] == flow
    assert reference.order_flow(quote(0, *before), quote(0, *after)) == flow


def test_the_weighted_mid_leans_to_the_thin_side():
    rig = Rig()
    rig.feed(quote(START, (1_000_000, 10), (1_010_000, 30)))  # 100 x 10 / 101 x 30
    mid = 1_005_000
    assert mid * (1 + rig.get("microprice") / 1e4) == pytest.approx(1_002_500, rel=1e-12)  # 100.25
    assert rig.get("spread") == pytest.approx(1e4 * 10_000 / mid)
    assert rig.get("imbalance_top") == rig.get("imbalance_five") == -0.5


def test_one_empty_side_gives_imbalance_of_one_and_no_mid():
    rig = Rig()
    flags = rig.feed(quote(START, (1_000_000, 10), (0, 0)))
    assert flags == VECTOR_WRITTEN
    assert rig.get("imbalance_top") == rig.get("imbalance_five") == 1.0
    assert math.isnan(rig.get("spread"))
    assert not rig.is_warm("spread")
    assert rig.feed(quote(START, (0, 0), (1_000_200, 10))) == VECTOR_WRITTEN
    assert rig.get("imbalance_top") == -1.0
    assert rig.feed(quote(START + 1)) == VECTOR_WRITTEN | TWO_SIDED


def test_the_aggressor_is_the_other_side_of_the_resting_order():
    rig = Rig()
    rig.feed(quote(START, cause="E", trade_px=1_000_200, trade_qty=300, resting="S"))
    assert rig.get("trade_sign_10s") == 1.0
    rig.feed(quote(START, cause="E", trade_px=1_000_000, trade_qty=100, resting="B"))
    assert rig.get("trade_sign_10s") == 0.5
    rig.feed(quote(START, cause="P", trade_px=1_000_100, trade_qty=400))
    assert rig.get("trade_sign_60s") == 0.25
    assert rig.get("since_trade") == 0.0


def test_everything_is_nan_and_cold_before_it_is_warm():
    rig = Rig()
    rig.feed(quote(START))
    warm = {name for name in NAMES if rig.is_warm(name)}
    assert warm == {"spread", "microprice", "imbalance_top", "imbalance_five"}
    vector = rig.features.vector(1)
    assert all(math.isnan(vector[i]) == (name not in warm) for i, name in enumerate(NAMES))
    assert math.isnan(volatility(rig.features.addr, 1))
    assert warm_mask(rig.features.addr, 1) == 0b1111


def test_a_strange_locate_is_refused_and_counted():
    rig = Rig()
    assert rig.feed(quote(START), locate=4) == BAD_LOCATE
    assert rig.feed(quote(START), locate=65_535) == BAD_LOCATE
    assert rig.features.counters()["bad_locate"] == 2
    assert rig.features.counters()["events"] == 0


def test_an_event_from_the_past_is_taken_now_and_counted():
    rig, twin = Rig(), Rig()
    for r, late in ((rig, START + 1), (twin, START + 2 * S)):
        r.feed(quote(START))
        r.feed(quote(START + 2 * S, (1_000_100, 5)))
        r.feed(quote(late, (1_000_000, 7)))
    assert rig.features.counters()["back_in_time"] == 1
    np.testing.assert_array_equal(rig.features.vector(1), twin.features.vector(1))


def test_the_first_event_of_a_new_run_finds_the_symbol_as_if_never_seen():
    rig, fresh = Rig(), Rig()
    for event in random_events(3, 200):
        rig.feed(event)
    rig.event["run"] = 1
    later = random_events(4, 200)  # from the same time of day again
    for number, event in enumerate(later):
        flags = fresh.feed(event)
        assert rig.feed(event) == flags | (RUN_BEGAN if number == 0 else 0)
        assert rig.features.rows["vector"][1].tobytes() == fresh.features.rows["vector"][1].tobytes()
        assert rig.features.rows["warm"][1] == fresh.features.rows["warm"][1]
    assert rig.features.counters()["back_in_time"] == fresh.features.counters()["back_in_time"]
    assert fresh.features.rows["warm"][1] != 0


def test_symbols_do_not_touch_each_other():
    rig, alone = Rig(), Rig()
    for n in range(200):
        rig.feed(quote(START + n * S // 7, (1_000_000 + 100 * (n % 3), 10 + n)), locate=1)
        alone.feed(quote(START + n * S // 7, (1_000_000 + 100 * (n % 3), 10 + n)), locate=1)
        rig.feed(quote(START + n * S // 5, (500_000, 3), (500_100 + 100 * (n % 5), 9)), locate=2)
    np.testing.assert_array_equal(rig.features.vector(1), alone.features.vector(1))


def test_only_an_event_worth_a_vector_writes_one():
    rig = Rig()
    rig.feed(quote(START))
    before = rig.features.vector(1).copy()
    assert rig.feed(quote(START + 5, (999_900, 9)), flags=0) == TWO_SIDED
    np.testing.assert_array_equal(rig.features.vector(1), before)
    assert rig.feed(quote(START + S), flags=0) == TWO_SIDED | BAR_CLOSED


def random_events(seed, count, silence=0.02):
    random = np.random.default_rng(seed)
    ns, bid, spread, events = START + 123_456_789, 1_000_000, 200, []
    for _ in range(count):
        ns += int(random.exponential(0.3) * S) if random.random() > silence else int(random.integers(90) * S)
        bid += int(random.integers(-1, 2)) * 100
        spread = max(100, spread + int(random.integers(-1, 2)) * 100)
        bid_qty, ask_qty = (int(q) for q in random.integers(1, 500, 2))
        more = [int(q) for q in random.integers(0, 900, 2)]
        ask = bid + spread
        trade = {}
        if random.random() < 0.2:
            resting = str(random.choice(["B", "S", ""]))
            trade = {"trade_px": ask if resting == "S" else bid, "trade_qty": 100, "resting": resting}
        side = random.random()
        event = Event(ns, bid, ask, bid_qty, ask_qty, bid_qty + more[0], ask_qty + more[1], "A", **trade)
        if side < 0.03:
            event = event._replace(ask_px=0, ask_qty=0, ask_depth=0)
        elif side < 0.06:
            event = event._replace(bid_px=0, bid_qty=0, bid_depth=0)
        events.append(event._replace(cause=str(random.choice(list("AXDEU")))))
    return events


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_agrees_with_a_recount_from_all_events(seed):
    events, rig = random_events(seed, 240), Rig()
    for n, event in enumerate(events):
        rig.feed(event)
        if n % 9 and n < 230:
            continue
        expected = reference.vector(events[: n + 1]) | {"realised_60s": reference.realised(events[: n + 1])}
        for name, value in expected.items():
            assert rig.is_warm(name) == (value is not None), (n, name)
            if value is not None:
                assert rig.get(name) == pytest.approx(value, rel=1e-8, abs=1e-9), (n, name)


def test_five_and_thirty_minute_returns_come_from_the_minute_samples():
    rig, events = Rig(), []
    for n in range(150):
        events.append(quote(START + n * 17 * S + n, (1_000_000 + 100 * n, 10), (1_000_200 + 100 * n, 10)))
        rig.feed(events[-1])
        expected = reference.vector(events)
        for name in ("return_5min", "return_30min"):
            assert rig.is_warm(name) == (expected[name] is not None), (n, name)
            if expected[name] is not None:
                assert rig.get(name) == pytest.approx(expected[name], rel=1e-12)
    assert rig.is_warm("return_30min")


def test_volatility_on_a_regular_grid_is_the_geometric_sum():
    rig, dt, tau, n = Rig(), 0.05, 10.0, 600
    for k in range(n + 1):
        bid = 1_000_000 + (100 if k % 2 else 0)
        rig.feed(quote(START + round(k * dt * S), (bid, 10), (bid + 200, 10)))
    r2 = math.log(1_000_200 / 1_000_100) ** 2
    variance = r2 * (1 - math.exp(-n * dt / tau)) / (1 - math.exp(-dt / tau))
    variance /= tau * (1 - math.exp(-n * dt / tau))
    assert rig.get("volatility_10s") == pytest.approx(1e4 * math.sqrt(variance), rel=1e-10)
    rate = (1 - math.exp(-(n + 1) * dt)) / (1 - math.exp(-dt)) / (1 - math.exp(-n * dt))
    assert rig.get("arrival_1s") == pytest.approx(rate, rel=1e-10)


def bars_and_columns(count, seed):
    """Feed `count` seconds of random mids; return high, low, close per bar and each bar's columns."""
    random, rig = np.random.default_rng(seed), Rig()
    bid, force, bars, columns = 1_000_000, None, [], []
    for second in range(count + 1):
        seen = [] if force is None else [force]
        for part in range(int(random.integers(1, 5)) if second % 7 else 1):
            bid += int(random.integers(-3, 4)) * 100
            rig.feed(quote(START + second * S + part * S // 5, (bid, 10), (bid + 200, 10)))
            if part == 0 and second:
                columns.append(rig.features.vector(1).copy())
            seen.append(2 * bid + 200)
        force = seen[-1]
        bars.append((max(seen), min(seen), force))
    return np.array(bars[:-1], float).T, np.array(columns)


def test_indicators_agree_with_ta_lib_on_every_bar():
    (high, low, close), columns = bars_and_columns(400, 5)
    fast, signal, _ = talib.MACD(close, 12, 26, 9)
    upper, middle, _lower = talib.BBANDS(close, 20, 1, 1)
    expected = {
        "rsi_14": talib.RSI(close, 14),
        "ema_20": (close - talib.EMA(close, 20)) / close * 1e4,
        "macd": fast / close * 1e4,
        "macd_signal": signal / close * 1e4,
        "atr_14": talib.ATR(high, low, close, 14) / close * 1e4,
        "bollinger_20": (close - middle) / (upper - middle),
    }
    for name, series in expected.items():
        ours = columns[:, INDEX[name]]
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(series), err_msg=name)
        np.testing.assert_allclose(ours, series, rtol=1e-7, atol=1e-7, err_msg=name)
    assert np.isnan(expected["macd"]).sum() == 33


def test_the_macd_trap_would_be_seen():
    (_, _, close), columns = bars_and_columns(60, 6)
    naive = (talib.EMA(close, 12) - talib.EMA(close, 26)) / close * 1e4
    assert np.nanmax(np.abs(columns[:, INDEX["macd"]] - naive)) > 1e-3


def test_a_market_that_never_moves_has_middling_strength_and_no_width():
    rig = Rig()
    for second in range(80):
        rig.feed(quote(START + second * S))
    assert rig.get("rsi_14") == 50.0
    assert rig.get("bollinger_20") == rig.get("macd") == rig.get("atr_14") == rig.get("realised_60s") == 0.0


def test_a_long_silence_counts_as_64_flat_bars():
    rig, short = Rig(), Rig()
    for r, silence in ((rig, 5_000), (short, 64)):
        for second in range(70):
            r.feed(quote(START + second * S, (1_000_000 + 100 * (second % 5), 10)))
        r.feed(quote(START + (69 + silence) * S))
    assert rig.features.counters()["capped_bars"] == 1
    assert short.features.counters()["capped_bars"] == 0
    for name in ("rsi_14", "ema_20", "macd", "macd_signal", "atr_14", "bollinger_20"):
        assert rig.get(name) == short.get(name), name


def test_normalise_cuts_at_six_and_turns_nan_into_zero():
    rig = Rig()
    constants = Normalisation(rig.segment)
    rig.feed(quote(START))
    vector = rig.features.vector(1)
    vector[:6] = [3.0, 1e9, -math.inf, math.nan, 5.0, 0.0]
    mean, deviation = np.ones(COLUMNS), np.full(COLUMNS, 2.0)
    deviation[4] = 0.0  # a switched-off column
    constants.set(mean, deviation)
    out_at = rig.segment.allocate("out", COLUMNS * 8)
    known = normalise(vector_at(rig.features.addr, 1), constants.addr, out_at)
    out = rig.segment.words(out_at, COLUMNS).view(np.float64)
    assert out[:6].tolist() == [1.0, 6.0, -6.0, 0.0, 0.0, -0.5]
    assert known == 0b100111
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="finite"):
        constants.set(mean * math.nan, deviation)


def test_a_return_beyond_the_short_series_is_the_logarithm_too():
    rig = Rig()
    for second in range(80):
        rig.feed(quote(START + second * S, (1_000_000, 10), (1_000_100, 10)))
    rig.feed(quote(START + 80 * S + 1, (1_500_000, 10), (1_500_100, 10)))
    for name in ("return_1s", "return_5s", "return_30s", "return_1min"):
        assert rig.get(name) == pytest.approx(1e4 * math.log(3_000_100 / 2_000_100), rel=1e-12), name
    assert math.isnan(rig.get("return_5min"))
    rig.feed(quote(START + 82 * S, (1_500_000, 10), (1_500_200, 10)))
    assert rig.get("return_1s") == pytest.approx(1e4 * math.log(3_000_200 / 3_000_100), rel=1e-9)
    assert rig.get("return_5s") == pytest.approx(1e4 * math.log(3_000_200 / 2_000_100), rel=1e-12)


def test_normalise_and_dot_are_numpys_on_all_columns():
    segment = RIG.segment
    draw = np.random.default_rng(1)
    at = {name: segment.allocate(f"lanes.{name}", COLUMNS * 8) for name in ("vector", "weights", "out")}
    view = {name: segment.words(addr, COLUMNS).view(np.float64) for name, addr in at.items()}
    constants = Normalisation(segment, "lanes.normalisation")
    for _ in range(50):
        mean, deviation = draw.normal(size=COLUMNS), draw.uniform(0.1, 2.0, COLUMNS)
        deviation[draw.integers(COLUMNS, size=3)] = 0.0
        constants.set(mean, deviation)
        view["vector"][:] = draw.normal(scale=4.0, size=COLUMNS)
        view["vector"][draw.integers(COLUMNS, size=3)] = math.nan
        view["weights"][:] = draw.normal(size=COLUMNS)
        known = normalise(at["vector"], constants.addr, at["out"])
        is_known = (deviation > 0) & ~np.isnan(view["vector"])
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.clip((view["vector"] - mean) / deviation, -6.0, 6.0)
        assert view["out"].tolist() == np.where(is_known, z, 0.0).tolist()
        assert known == sum(1 << column for column in np.flatnonzero(is_known).tolist())
        assert dot_at(at["out"], at["weights"]) == pytest.approx(view["out"] @ view["weights"], rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 800))
def test_decay_is_exp_of_minus_x(x):
    rig = RIG
    decay_at(x, rig.float_at)
    expected = math.exp(-x) if x < 708 else 0.0
    assert rig.float[0] == pytest.approx(expected, rel=5e-16, abs=0)


@settings(max_examples=200, deadline=None)
@given(st.floats(1, 1e10), st.floats(1, 1e10))
def test_log_ratio_is_the_logarithm(a, b):
    rig = RIG
    log_ratio_at(a, b, rig.float_at)
    assert rig.float[0] == pytest.approx(math.log(a / b), rel=1e-13, abs=2e-16)


RIG = Rig()
