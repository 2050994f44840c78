"""From recorded feature rows to training samples: labels, split in time, normalisation, news states.

Nothing here may see the future: a label ends one horizon after its row, so rows of the training part end
one horizon before the calibration part begins, and the same again before the validation part.
Normalisation and label scale come from the training part alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nimbus.messages import NEWS_DIMENSIONS

# What a row must hold (strategy/recorder.py); news_item 0 = no news yet.  Rows whose `status` is not 0 are
# left out where there is such a field: no order would be decided on them.
FIELDS: Final = ("exch_ns", "locate", "mid_px2", "tag", "news_item", "vector")
NORMAL_MAX: Final = 6.0  # normalised features are cut to +- this, as in strategy/features

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class TrainingError(Exception):
    """Rows that cannot be trained on; the message is one line that says why."""


@dataclass(slots=True, frozen=True)
class Samples:
    """Labelled rows, oldest first; arrays of one length, but `news` has one row per distinct state."""

    features: Floats  # [n, columns], raw: NaN where a feature is not warm
    label: Floats  # return of the mid over the horizon
    time_ns: Indices
    locate: Indices
    tag: Indices
    state: Indices  # row of `news`; 0 = no news
    news: NDArray[np.float32]  # [states, NEWS_DIMENSIONS]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.label)

    def take(self, chosen: NDArray[Any]) -> Samples:
        """Return the chosen rows (a mask, or indices in rising order)."""
        return Samples(
            self.features[chosen],
            self.label[chosen],
            self.time_ns[chosen],
            self.locate[chosen],
            self.tag[chosen],
            self.state[chosen],
            self.news,
        )

    def digest(self) -> str:
        """Return a digest of everything in the samples."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.features, self.label, self.time_ns, self.locate, self.tag, self.state, self.news):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def future_returns(time_ns: Indices, locate: Indices, mid_px2: Indices, horizon_ns: int) -> Floats:
    """Return for each row mid(t + horizon)/mid(t) - 1, the mid as of then; rows are in time order.

    The mid as of T is that of the symbol's last row at or before T.  NaN where the symbol's rows end before
    t + horizon (the future is not known) or a mid is not positive.
    """
    label = np.full(len(time_ns), np.nan)
    order = np.argsort(locate, kind="stable")  # keeps time order within a symbol
    for group in np.split(order, np.flatnonzero(np.diff(locate[order])) + 1):
        if not len(group):
            continue
        times, mids = time_ns[group], mid_px2[group].astype(np.float64)
        later = np.searchsorted(times, times + horizon_ns, side="right") - 1
        good = (times + horizon_ns <= times[-1]) & (mids > 0) & (mids[later] > 0)
        label[group[good]] = mids[later[good]] / mids[good] - 1.0
    return label


def collect(rows: NDArray[Any], embeddings: Mapping[int, NDArray[np.float32]], horizon_ns: int) -> Samples:
    """Label the rows (FIELDS, any order) and give each its news state; rows without a label are left out.

    embeddings: by news item; an item that is not there counts as no news.  Raises TrainingError.
    """
    missing = [field for field in FIELDS if field not in (rows.dtype.names or ())]
    if missing:
        msg = f"rows lack the fields {', '.join(missing)}"
        raise TrainingError(msg)
    if "status" in (rows.dtype.names or ()):
        rows = rows[rows["status"] == 0]
    rows = rows[np.argsort(rows["exch_ns"], kind="stable")]
    time_ns, locate = rows["exch_ns"].astype(np.int64), rows["locate"].astype(np.int64)
    label = future_returns(time_ns, locate, rows["mid_px2"].astype(np.int64), horizon_ns)
    known = np.isfinite(label)
    rows, time_ns, locate, label = rows[known], time_ns[known], locate[known], label[known]
    items, place = np.unique(rows["news_item"], return_inverse=True)
    news = [np.zeros(NEWS_DIMENSIONS, np.float32)]
    state_of = np.zeros(len(items), np.int64)
    for n, item in enumerate(items):
        vector = embeddings.get(int(item)) if item else None
        if vector is None:
            continue
        if np.shape(vector) != (NEWS_DIMENSIONS,) or not np.isfinite(vector).all():
            msg = f"embedding of news item {item} is not {NEWS_DIMENSIONS} finite numbers"
            raise TrainingError(msg)
        state_of[n] = len(news)
        news.append(np.asarray(vector, np.float32))
    features = np.asarray(rows["vector"], np.float64)
    tag = rows["tag"].astype(np.int64)
    return Samples(features, label, time_ns, locate, tag, state_of[place.reshape(-1)], np.stack(news))


def split(samples: Samples, horizon_ns: int, shares: tuple[float, float]) -> tuple[Samples, Samples, Samples]:
    """Cut the samples in time into training, calibration and validation parts; no label crosses a cut.

    shares: of calibration and validation, of all rows.  Raises TrainingError when a part is empty.
    """
    count = len(samples)
    if not count:
        msg = f"no row has a future of {horizon_ns / 1e9:g} s: the recording is shorter than the horizon"
        raise TrainingError(msg)
    at = (count * (1 - shares[0] - shares[1]), count * (1 - shares[1]))
    first, second = (int(samples.time_ns[min(int(n), count - 1)]) for n in at)
    ends = samples.time_ns + horizon_ns
    parts = (
        samples.take(ends <= first),
        samples.take((samples.time_ns >= first) & (ends <= second)),
        samples.take(samples.time_ns >= second),
    )
    if not all(len(part) for part in parts):
        minutes = (samples.time_ns[-1] - samples.time_ns[0]) / 60e9
        msg = (
            f"{count} rows over {minutes:.1f} minutes leave a part empty "
            f"({', '.join(str(len(part)) for part in parts)} rows) at a horizon of {horizon_ns / 1e9:g} s"
        )
        raise TrainingError(msg)
    return parts


def thinned(samples: Samples, rows_max: int) -> Samples:
    """Return at most rows_max rows, evenly spread."""
    if len(samples) <= rows_max:
        return samples
    return samples.take(np.arange(rows_max) * len(samples) // rows_max)


def normalisation(features: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each column, NaN left out; deviation 0 switches a column off."""
    known = np.isfinite(features)
    count = known.sum(axis=0)
    values = np.where(known, features, 0.0)
    mean = values.sum(axis=0) / np.maximum(count, 1)
    spread = np.where(known, features - mean, 0.0)
    deviation = np.sqrt((spread**2).sum(axis=0) / np.maximum(count, 1))
    deviation[deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))] = 0.0
    return mean, deviation


def normalised(features: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Return clip((x - mean)/deviation, +-6), and 0 where that is unknown, as the strategy's kernel does."""
    off = deviation <= 0
    z = (features - mean) / np.where(off, 1.0, deviation)
    return np.where(np.isnan(z) | off, 0.0, np.clip(z, -NORMAL_MAX, NORMAL_MAX))
