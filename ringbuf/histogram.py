"""Log-linear histogram in shared memory: one writer records in a kernel, anybody reads percentiles.

Values 0..127 have a bucket each; above, every power of two is cut into 64 equal buckets, so a bucket is at
most 1/64 (1.6 %) of its values wide.  These are the buckets of HdrHistogram with 128 sub-buckets and unit
magnitude 0.  Recording costs a bit count, a shift and three stores, whatever the value; it takes 19 KiB.

Coordinated omission: a loop that measures one request at a time and stalls for a second has ONE slow sample,
though every request that should have been sent in that second would have been slow.  Measure from the
*intended* start time; where that is impossible, `record_corrected` with the expected interval between samples
adds the missing ones (value - interval, value - 2 intervals, ...), as HdrHistogram does.

    line 0  HISTOGRAM: count, sum, smallest, largest, ... (writer)      line 1..  BUCKET_COUNT words (writer)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ringbuf.atomics import load_relaxed, store_relaxed
from ringbuf.jit import inlined, kernel
from ringbuf.memory import leading_zeros
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment

SUB_BUCKET_BITS: Final = 6
SUB_BUCKETS: Final = 1 << SUB_BUCKET_BITS
VALUE_BITS: Final = 42
VALUE_MAX: Final = (1 << VALUE_BITS) - 1  # 73 minutes in ns; larger values count in the last bucket
BUCKET_COUNT: Final = (VALUE_BITS - SUB_BUCKET_BITS + 1) * SUB_BUCKETS
CORRECTIONS_MAX: Final = 10_000  # samples that one record_corrected() adds; the others are counted as omitted

HISTOGRAM: Final = record(
    "HISTOGRAM",
    """
    i8  count      values recorded
    i8  sum        of all values
    i8  smallest   smallest value, meaningless while count is 0
    i8  largest    largest value, not rounded
    i8  beyond     values above VALUE_MAX, counted in the last bucket
    i8  negative   values below 0, counted as 0
    i8  omitted    corrections that CORRECTIONS_MAX left out
    i8  pad        zero
    """,
)
_AT: Final = HISTOGRAM.at
_WORD: Final = 8
_COUNTS: Final = HISTOGRAM.size
HISTOGRAM_SIZE: Final = HISTOGRAM.size + BUCKET_COUNT * _WORD


@inlined
def bucket_of(value: int) -> int:
    """Return the bucket of a value in 0..VALUE_MAX."""
    shift = max(64 - SUB_BUCKET_BITS - 1 - leading_zeros(value), 0)
    return (shift << SUB_BUCKET_BITS) + (value >> shift)


@inlined
def _add(addr: int, amount: int) -> None:
    store_relaxed(addr, load_relaxed(addr) + amount)  # one writer; a reader sees whole words


@inlined
def _record_many(histogram: int, value: int, count: int) -> None:
    if value < 0:
        _add(histogram + _AT.negative, count)
        value = 0
    elif value > VALUE_MAX:
        _add(histogram + _AT.beyond, count)
    if load_relaxed(histogram + _AT.count) == 0 or value < load_relaxed(histogram + _AT.smallest):
        store_relaxed(histogram + _AT.smallest, value)
    if value > load_relaxed(histogram + _AT.largest):
        store_relaxed(histogram + _AT.largest, value)
    _add(histogram + _COUNTS + bucket_of(min(value, VALUE_MAX)) * _WORD, count)
    _add(histogram + _AT.sum, value * count)
    _add(histogram + _AT.count, count)


@kernel
def record_value(histogram: int, value: int) -> None:
    """Count one value (ns, say).  Only the histogram's one writer may call this."""
    _record_many(histogram, value, 1)


@kernel
def record_many(histogram: int, value: int, count: int) -> None:
    """Count one value `count` times, as at a batch edge; nothing for a count below 1."""
    if count > 0:
        _record_many(histogram, value, count)


@kernel
def record_corrected(histogram: int, value: int, expected_interval: int) -> None:
    """Count one value, and the ones that were not taken while it lasted (coordinated omission).

    expected_interval: time between samples; 0 or less adds nothing.
    """
    _record_many(histogram, value, 1)
    if expected_interval <= 0 or value < 2 * expected_interval:
        return
    missing = value // expected_interval - 1
    added = min(missing, CORRECTIONS_MAX)
    for step in range(1, added + 1):
        _record_many(histogram, value - step * expected_interval, 1)
    _add(histogram + _AT.omitted, missing - added)


def lowest_values() -> NDArray[np.int64]:
    """Return the smallest value of each bucket, and one past the last bucket at the end."""
    index = np.arange(BUCKET_COUNT + 1, dtype=np.int64)
    shift = np.maximum((index >> SUB_BUCKET_BITS) - 1, 0)
    lowest: NDArray[np.int64] = np.left_shift(index - (shift << SUB_BUCKET_BITS), shift)
    return lowest


class Bucket(NamedTuple):
    """Values lowest..highest (both included) and how many of them were counted."""

    lowest: int
    highest: int
    occurrences: int


class Histogram:
    """A histogram in a segment: `addr` for kernels, percentiles for people.

    Numbers read while the writer works may miss its last values; take a `copy()` to read many that agree.
    """

    def __init__(self, segment: Segment, addr: int) -> None:
        self._segment, self.addr = segment, addr

    @classmethod
    def create(cls, segment: Segment, name: str) -> Self:
        """Allocate an empty histogram."""
        return cls(segment, segment.allocate(name, HISTOGRAM_SIZE))

    @classmethod
    def attach(cls, segment: Segment, name: str) -> Self:
        """Find the histogram `name` of an attached segment (KeyError when absent)."""
        return cls(segment, segment.areas[name][0])

    @classmethod
    def private(cls) -> Self:
        """Make an empty histogram in memory of its own (copies, sums)."""
        return cls.create(Segment.anonymous(HISTOGRAM_SIZE), "histogram")

    def _words(self) -> NDArray[np.int64]:
        return self._segment.words(self.addr, HISTOGRAM_SIZE // _WORD)

    def _word(self, offset: int) -> int:
        return int(self._segment.words(self.addr + offset, 1)[0])

    @property
    def count(self) -> int:
        """Values recorded."""
        return self._word(_AT.count)

    @property
    def smallest(self) -> int:
        """Smallest value, exact; 0 when there is none."""
        return self._word(_AT.smallest)

    @property
    def largest(self) -> int:
        """Largest value, exact; 0 when there is none."""
        return self._word(_AT.largest)

    @property
    def mean(self) -> float:
        """Mean, exact; 0 when there is no value."""
        return self._word(_AT.sum) / max(self.count, 1)

    @property
    def beyond(self) -> int:
        """Values above VALUE_MAX: their percentiles are too low."""
        return self._word(_AT.beyond)

    @property
    def negative(self) -> int:
        """Values below 0, counted as 0."""
        return self._word(_AT.negative)

    @property
    def omitted(self) -> int:
        """Corrections for coordinated omission that were left out."""
        return self._word(_AT.omitted)

    def counts(self) -> NDArray[np.int64]:
        """Return the count of each bucket (a copy)."""
        return self._words()[CACHE_LINE // _WORD :].copy()

    def buckets(self) -> list[Bucket]:
        """Return the buckets that are not empty, from low to high."""
        counts, lowest = self.counts(), lowest_values()
        return [
            Bucket(int(lowest[i]), int(lowest[i + 1]) - 1, int(counts[i])) for i in np.flatnonzero(counts)
        ]

    def percentile(self, percent: float) -> int:
        """Return the value that `percent` % of the values do not exceed (<= 1.6 % too high; 0 if empty)."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents: Sequence[float]) -> list[int]:
        """Return several percentiles of one state of the histogram, as `percentile`."""
        below = np.cumsum(self.counts())
        if not below[-1]:
            return [0 for _ in percents]
        wanted = np.ceil(np.asarray(percents, np.float64) / 100 * below[-1] - 1e-9).clip(1, below[-1])
        highest = lowest_values()[np.searchsorted(below, wanted) + 1] - 1
        return [min(int(value), self.largest) for value in highest]

    def copy(self) -> Histogram:
        """Return a private copy of the present state."""
        other = Histogram.private()
        other.merge(self)
        return other

    def merge(self, other: Histogram) -> None:
        """Add the values of another histogram (sums over loops; this one's writer must be the caller)."""
        if not other.count:
            return
        smallest = min(self.smallest, other.smallest) if self.count else other.smallest
        largest, mine = max(self.largest, other.largest), self._words()
        mine += other._words()
        mine[_AT.smallest // _WORD], mine[_AT.largest // _WORD] = smallest, largest

    def clear(self) -> None:
        """Forget all values (only while its writer is still)."""
        self._words()[:] = 0

    def summary(self) -> dict[str, Any]:
        """Return count, mean, p50, p90, p99, p99.9 and max, as the reports print them."""
        p50, p90, p99, p999 = self.percentiles([50, 90, 99, 99.9])
        return {
            "count": self.count,
            "mean": self.mean,
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "p999": p999,
            "max": self.largest,
        }
