"""The ContradictionEngine against its truth table, its symmetry, its clocks, and a plain twin."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import contradiction as reference

from nimbus.messages import (
    BOOK_CROSSED,
    BOOK_HALTED,
    BOOK_ONE_SIDED,
    BOOK_STALE,
    NEWS,
    TAG_NAMES,
    TAG_NONE,
)
from ringbuf.segment import Segment
from strategy.contradiction import ContradictionEngine, tag

S = 1_000_000_000
EPOCH = 1_700_000_000 * S
SIGMA = 1e-4  # 1 bp per square root of a second
PRICE, SPREAD = 1_000_000, 100  # 100.00, one cent


class Rig:
    """One symbol in seconds since EPOCH and ratios of PRICE."""

    def __init__(self, **parameters):
        self.segment = Segment.anonymous(1 << 16)
        given_or = {"history_min": 1, "dwell_ns": 0} | parameters
        self.engine = ContradictionEngine(self.segment, 4, **given_or)
        self.news_at = self.segment.allocate("news", NEWS.size)
        self.news = self.segment.array("news", NEWS)[0]
        self.news["deviation"] = 1.0

    def publish(self, t, z, item=1, half_life=1e9):
        """Put a material item received at t, so strong, into the news record."""
        at = EPOCH + round(t * S)
        self.news["received_ns"] = self.news["material_ns"] = at
        self.news["score"], self.news["item_id"] = z, item
        self.news["half_life_ns"] = round(half_life * S)

    def at(self, t, ratio=1.0, sigma=SIGMA, status=0, px2=None, spread=SPREAD):
        """Return the tag's name after a quote at t."""
        px2 = round(2 * PRICE * ratio) if px2 is None else px2
        now_ns = EPOCH + round(t * S)
        return TAG_NAMES[tag(self.engine.addr, 1, self.news_at, now_ns, px2, spread, sigma, status)]

    @property
    def reason(self):
        """Return the last reason."""
        return self.engine.reason(1)


MOVES = {"up": 1.05, "flat": 1.0, "down": 0.95}
SCORES = {"+": 2.0, "0": 0.3, "-": -2.0}


@pytest.mark.parametrize(("age", "column"), [(30, 0), (60, 0), (60.1, 1), (200, 1), (1_000, 1)])
@pytest.mark.parametrize("key", reference.TABLE, ids=" ".join)
def test_each_row_of_the_truth_table(key, age, column):
    rig = Rig()
    rig.at(0)
    rig.publish(10, SCORES[key[0]])
    rig.at(10)
    tag_name = rig.at(10 + age, MOVES[key[1]])
    assert tag_name == reference.TABLE[key][column]


@pytest.mark.parametrize("key", [("+", "flat"), ("-", "flat")])
def test_a_desk_that_will_not_fade_a_quiet_market_switches_it_off(key):
    rig = Rig(settled_flat=0)
    rig.publish(0, SCORES[key[0]])
    rig.at(0)
    assert rig.at(30) != "none"
    assert rig.at(100) == "none"
    assert rig.reason == "settled_flat_off"
    assert rig.at(101, MOVES["down" if key[0] == "+" else "up"]) != "none"


def test_a_price_that_jumped_on_the_news_and_then_rests_has_answered():
    rig = Rig()
    rig.at(0)
    rig.publish(10, 2.0)
    rig.at(10)
    for t in range(11, 1_000, 7):
        rig.at(t, 1.05)
    assert rig.at(1_000, 1.05) == "none"  # the last 300 s are flat, the whole reaction is not
    assert rig.reason == "agreement"


def test_the_recent_move_decides_before_the_whole_reaction():
    rig = Rig()
    rig.publish(0, 2.0)
    rig.at(0)
    for t in range(1, 400, 3):
        rig.at(t, 1.10)
    assert rig.at(400, 1.05) == "overhype"  # still above receipt, but falling now
    assert rig.reason == "contradicted"


def test_very_good_news_six_minutes_old_against_a_fall_in_the_last_five():
    rig = Rig()
    rig.at(0)
    rig.publish(0, 3.0)
    for t in range(1, 361):
        rig.at(t, 1.0 if t < 100 else 0.995)
    assert rig.at(361, 0.995) == "overhype"


def test_silence_becomes_an_answer_with_time():
    rig = Rig()
    rig.publish(0, 2.0)
    assert rig.at(0) == rig.at(60) == "underhype"
    assert rig.reason == "fresh_flat"
    assert rig.at(60.5) == "overhype"
    assert rig.reason == "settled_flat"


def test_a_class_is_entered_at_k_and_left_at_seven_tenths():
    rig = Rig()
    rig.publish(0, 1.0)  # the tie counts as inside
    assert rig.at(0) == "underhype"
    rig.publish(1, 0.7)
    assert rig.at(1) == "underhype"
    rig.publish(2, 0.699)
    assert rig.at(2) == "none"
    rig.publish(3, 0.9)
    assert rig.at(3) == "none"
    assert rig.reason == "neutral"


def test_a_response_class_has_the_same_hysteresis():
    rig = Rig()
    rig.publish(0, 2.0)
    rig.at(0)
    unit = SIGMA * math.sqrt(25)
    assert rig.at(25, math.exp(-0.95 * unit)) == "underhype"
    assert rig.at(25, math.exp(-1.05 * unit)) == "overhype"
    assert rig.at(25, math.exp(-0.75 * unit)) == "overhype"
    assert rig.at(25, math.exp(-0.65 * unit)) == "underhype"


def test_a_tag_stands_for_the_dwell_but_a_bad_book_ends_it_at_once():
    rig = Rig(dwell_ns=S)
    rig.publish(0, 2.0)
    assert rig.at(0) == "underhype"
    assert rig.at(0.5, 1.05) == "underhype"
    assert rig.reason == "dwell"
    assert rig.at(1.0, 1.05) == "none"
    rig.publish(2, 2.0, item=2)
    assert rig.at(2, 1.05) == "underhype"
    assert rig.at(2.1, status=BOOK_STALE) == "none"


def test_a_new_item_resets_age_and_reference():
    rig = Rig()
    rig.publish(0, 2.0)
    rig.at(0)
    assert rig.at(50, 1.05) == "none"
    rig.publish(51, -2.0, item=2)
    assert rig.at(52, 1.05) == "overhype"  # flat since the scandal
    assert rig.engine.rows[1]["reference_px2"] == round(2 * PRICE * 1.05)


def test_the_reference_is_the_mid_in_force_at_receipt_not_the_first_one_after():
    rig = Rig()
    rig.at(0, 1.0)
    rig.publish(10, 2.0)
    assert rig.at(11, 1.05) == "none"  # it has answered already
    assert rig.engine.rows[1]["reference_px2"] == 2 * PRICE


def test_news_that_was_scored_late_is_measured_from_its_receipt():
    rig = Rig()
    for n in range(100):
        rig.at(n * 0.5, 1.0)
    rig.at(50.0, 1.05)
    rig.publish(49.0, 2.0)  # visible only now
    assert rig.at(50.1, 1.05) == "none"
    assert rig.engine.rows[1]["reference_px2"] == 2 * PRICE


def test_news_fades_and_expires():
    rig = Rig(expire_ns=3_600 * S)
    rig.publish(0, 2.0, half_life=600)
    rig.at(0)
    assert rig.at(599) == "overhype"  # z = 1.0008
    assert rig.at(900) == "overhype"  # z = 0.707: left below 0.7
    assert rig.at(930) == "none"
    rig.publish(0, 1e6, half_life=600)
    assert rig.at(3_600) == "overhype"
    assert rig.at(3_601) == "none"
    assert rig.reason == "news_expired"


def test_news_from_the_future_is_not_seen():
    rig = Rig()
    rig.publish(10, 2.0)
    assert rig.at(5) == "none"
    assert rig.reason == "news_ahead"
    assert rig.engine.rows[1]["item_id"] == 0
    assert rig.at(10) == "underhype"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": BOOK_HALTED}, "halted"),
        ({"status": BOOK_CROSSED}, "book_bad"),
        ({"status": BOOK_ONE_SIDED}, "book_bad"),
        ({"status": BOOK_STALE}, "market_stale"),
        ({"px2": 0}, "book_bad"),
        ({"spread": 0}, "book_bad"),
        ({"sigma": math.nan}, "short_history"),
        ({"sigma": math.inf}, "unset"),
    ],
)
def test_what_cannot_be_judged_is_none_with_its_reason(change, reason):
    rig = Rig()
    rig.publish(0, 2.0)
    assert rig.at(0) == "underhype"
    tag_name = rig.at(1, **change)
    if reason != "unset":
        assert (tag_name, rig.reason) == ("none", reason)
    assert rig.at(2) == "underhype"


def test_no_news_and_no_numbers_are_none_with_their_reasons():
    rig = Rig()
    assert rig.at(0) == "none"
    assert rig.reason == "no_news"
    rig.publish(1, math.nan)
    assert rig.at(2) == "none"
    assert rig.reason == "not_a_number"
    rig.publish(1, 1.0)
    rig.news["deviation"] = 0.0
    assert rig.at(3) == "none"
    assert rig.reason == "not_a_number"


def test_too_few_mids_are_none_but_the_reference_is_captured():
    rig = Rig(history_min=3)
    rig.publish(0, 2.0)
    assert [rig.at(t) for t in (0, 1, 2)] == ["none", "none", "underhype"]
    assert rig.engine.rows[1]["reference_px2"] == 2 * PRICE


def test_a_strange_locate_is_refused():
    rig = Rig()
    assert tag(rig.engine.addr, 4, rig.news_at, EPOCH, 2 * PRICE, SPREAD, SIGMA, 0) == TAG_NONE
    assert tag(rig.engine.addr, -1, rig.news_at, EPOCH, 2 * PRICE, SPREAD, SIGMA, 0) == TAG_NONE
    assert rig.engine.parameters["bad_locate"] == 2


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="k_x"):
        ContradictionEngine(Segment.anonymous(1 << 16), 1, k_x=1.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.3, 1.2, 7.2, 31.2, 66.0, 340.8]),  # seconds, most on the grid of the history
        st.integers(-40, 40),  # mid, in units of its half-tick from PRICE
        st.one_of(st.none(), st.floats(-3, 3)),  # news
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_negating_news_and_moves_swaps_the_two_tags(steps, settled_flat):
    swapped = {"overhype": "underhype", "underhype": "overhype", "none": "none"}
    one, other = (Rig(settled_flat=int(settled_flat)) for _ in range(2))
    t = 0.0
    for n, (dt, move, z) in enumerate(steps):
        t += dt
        if z is not None:
            one.publish(t, z, item=n + 1)
            other.publish(t, -z, item=n + 1)
        ratio = math.exp(move * 1e-4)
        mid, mirrored = 2e8 * ratio, 2e8 / ratio  # large, so that rounding to integers does not decide
        first = one.at(t, px2=round(mid), spread=2_000)
        assert swapped[first] == other.at(t, px2=round(mirrored), spread=2_000), (n, t)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_the_kernel_agrees_with_the_plain_engine(steps, settled_flat):
    rig = Rig(dwell_ns=S, settled_flat=int(settled_flat))
    twin = reference.Engine(settled_flat=settled_flat)
    t, news = 0.0, None
    for n, (dt, move, z) in enumerate(steps):
        t = round(t + round(dt / 1.2) * 1.2 if dt > 1 else t + 1.2, 6)  # the history's own grid: 300 s / 250
        if z is not None:
            news = (n + 1, t, t, z, 1_800.0)
            rig.publish(t, z, item=n + 1, half_life=1_800.0)
        px2 = 2 * PRICE + 50 * move
        expected = twin.step(t, px2 / 2, SPREAD, SIGMA, news)
        assert rig.at(t, px2=px2) == expected, (n, t)
