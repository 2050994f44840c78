"""The histogram against numpy's order statistics, and its edges."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringbuf import histogram as hist
from ringbuf.histogram import Histogram
from ringbuf.jit import kernel
from ringbuf.segment import Segment

PERCENTS = [0, 1, 25, 50, 90, 99, 99.9, 99.99, 100]


@kernel
def record_all(histogram: int, values: int, count: int) -> None:
    for index in range(count):
        hist.record_value(histogram, hist.load_relaxed(values + 8 * index))


@kernel
def bucket_of(value: int) -> int:
    return hist.bucket_of(value)


def _of(values: Iterable[int]) -> Histogram:
    made, array = Histogram.private(), np.array(list(values), np.int64)
    record_all(made.addr, array.ctypes.data, len(array))
    return made


def _exact(values: NDArray[np.int64], percent: float) -> int:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    rank = int(np.ceil(percent / 100 * len(values) - 1e-9))
    return int(np.sort(values)[max(rank, 1) - 1])


def _same(one: Histogram, other: Histogram) -> None:
    assert one.buckets() == other.buckets()
    assert one.summary() == other.summary()
    assert (one.smallest, one.beyond, one.negative) == (other.smallest, other.beyond, other.negative)


def test_the_layout_is_pinned() -> None:
    assert hist.HISTOGRAM.size == 64
    assert list(hist.HISTOGRAM.at) == list(range(0, 64, 8))
    assert (hist.BUCKET_COUNT, hist.HISTOGRAM_SIZE) == (37 * 64, 64 + 37 * 64 * 8)


def test_buckets_are_hdr_buckets_side_by_side_and_at_most_a_64th_wide() -> None:
    lowest = hist.lowest_values()
    assert (lowest[0], lowest[127], lowest[128], lowest[129], lowest[192]) == (0, 127, 128, 130, 256)
    assert lowest[-1] == hist.VALUE_MAX + 1
    width = np.diff(lowest)
    assert (width[:128] == 1).all()
    assert (width[128:] * 64 <= lowest[128:-1]).all()
    for index in (*range(300), hist.BUCKET_COUNT - 1):
        assert bucket_of(int(lowest[index])) == bucket_of(int(lowest[index + 1]) - 1) == index


@given(st.integers(0, hist.VALUE_MAX))
def test_a_value_lies_in_its_bucket(value: int) -> None:
    lowest, index = hist.lowest_values(), bucket_of(value)
    assert lowest[index] <= value < lowest[index + 1]


@pytest.mark.parametrize("shape", ["lognormal", "uniform", "two-humps", "constant"])
def test_percentiles_are_within_the_error_of_numpy(shape: str) -> None:
    rng = np.random.default_rng(7)
    values = {
        "lognormal": rng.lognormal(8, 2, 50_000),
        "uniform": rng.integers(0, 1_000_000, 50_000),
        "two-humps": np.concatenate([rng.normal(300, 20, 49_000), rng.normal(5e6, 1e5, 1_000)]),
        "constant": np.full(1_000, 12_345),
    }[shape].astype(np.int64)
    made = _of(values.tolist())
    for percent, got in zip(PERCENTS, made.percentiles(PERCENTS), strict=True):
        exact = _exact(values, percent)
        assert exact <= got <= exact + exact // 64, percent
        lower = int(np.percentile(values, percent, method="lower"))
        assert got >= lower - 1
    assert made.mean == pytest.approx(values.mean())
    assert (made.count, made.smallest, made.largest) == (len(values), values.min(), values.max())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, hist.VALUE_MAX), min_size=1, max_size=50), st.floats(0, 100))
def test_any_percentile_of_any_values_is_within_the_error(values: list[int], percent: float) -> None:
    exact = _exact(np.array(values), percent)
    assert exact <= _of(values).percentile(percent) <= exact + exact // 64


def test_small_values_are_exact() -> None:
    made = _of(range(1, 101))
    assert made.percentiles([1, 50, 99, 100]) == [1, 50, 99, 100]


def test_an_empty_histogram_says_zero() -> None:
    assert Histogram.private().summary() == dict.fromkeys(
        ["count", "mean", "p50", "p90", "p99", "p999", "max"], 0
    )
    assert Histogram.private().buckets() == []


def test_values_out_of_range_are_counted_and_kept_at_the_edge() -> None:
    made = _of([-5, hist.VALUE_MAX + 1, 2**62, 10])
    assert (made.count, made.negative, made.beyond) == (4, 1, 2)
    assert (made.smallest, made.largest) == (0, 2**62)
    assert [bucket.occurrences for bucket in made.buckets()] == [1, 1, 2]
    assert made.percentile(100) == hist.VALUE_MAX


def test_recording_many_equals_recording_one_by_one() -> None:
    made = Histogram.private()
    hist.record_many(made.addr, 1_000, 5)
    hist.record_many(made.addr, 7, 0)
    hist.record_many(made.addr, 7, -3)
    _same(made, _of([1_000] * 5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 2**43), max_size=20), st.lists(st.integers(-9, 2**43), max_size=20))
def test_a_merge_equals_recording_everything_in_one(left: list[int], right: list[int]) -> None:
    one, other = _of(left), _of(right)
    copied = one.copy()
    one.merge(other)
    _same(one, _of(left + right))
    _same(copied, _of(left))


def test_clear_forgets_everything() -> None:
    made = _of([-1, 5, 2**50])
    made.clear()
    _same(made, Histogram.private())


def test_a_stall_is_spread_over_the_samples_it_hid() -> None:
    made = Histogram.private()
    hist.record_corrected(made.addr, 100, 10)
    _same(made, _of(range(10, 101, 10)))
    hist.record_corrected(made.addr, 19, 10)  # less than two intervals: nothing was hidden
    hist.record_corrected(made.addr, 500, 0)
    hist.record_corrected(made.addr, 500, -1)
    assert made.count == 13


def test_corrections_have_a_bound_and_the_rest_is_counted() -> None:
    made = Histogram.private()
    hist.record_corrected(made.addr, 1_000_000, 1)
    assert made.count == hist.CORRECTIONS_MAX + 1
    assert made.omitted == 999_999 - hist.CORRECTIONS_MAX


def test_another_mapping_reads_the_same_numbers(tmp_path: pathlib.Path) -> None:
    owner = Segment.create(tmp_path / "s", 1 << 16, epoch=1)
    made = Histogram.create(owner, "latency")
    hist.record_value(made.addr, 1_234)
    _same(Histogram.attach(Segment.attach(tmp_path / "s"), "latency"), made)


def test_the_reference_implementation_agrees() -> None:
    reference = pytest.importorskip("hdrh.histogram")
    values = np.random.default_rng(3).lognormal(9, 1.5, 20_000).astype(np.int64)
    other, made = reference.HdrHistogram(1, hist.VALUE_MAX, 3), _of(values.tolist())
    for value in values.tolist():
        other.record_value(value)
    for percent in (50, 90, 99, 99.9):
        assert made.percentile(percent) == pytest.approx(other.get_value_at_percentile(percent), rel=0.017)
