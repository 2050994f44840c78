"""What a model is worth on rows it has not seen: predictions of the serving kernel, scored honestly.

Labels of neighbouring rows overlap, so they are far fewer than they look: `effective_rows` counts
stretches of one horizon per symbol, and standard errors use that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.plan import INFERENCE, JOB, OK, Plan, infer_batch, refresh_news
from nimbus.messages import TAG_NAMES
from strategy.offline.dataset import Floats, Samples, TrainingError, normalised

_SHARE_ROWS_MIN: Final = 30  # a tag with fewer validation rows gets no numbers of its own


@dataclass(slots=True, frozen=True)
class Prediction:
    """One number per row: expected return, its total variance, samples that agree with the sign."""

    mean: Floats
    variance: Floats
    agree: NDArray[np.int64]


def predict(
    image: bytes, samples: Samples, constants: tuple[Floats, Floats], seed: int, rung: int = 0
) -> Prediction:
    """Evaluate every row with the kernel that serves, one news cell per news state."""
    plan = Plan.from_image(image, symbols_max=len(samples.news), seed=seed)
    plan.set_rung(rung)
    for state in range(1, len(samples.news)):
        refresh_news(plan.state, state, samples.news[state].ctypes.data)
    features = np.ascontiguousarray(normalised(samples.features, *constants))
    jobs, out = np.zeros(len(samples), JOB.dtype), np.zeros(len(samples), INFERENCE.dtype)
    jobs["features"] = features.ctypes.data + features.strides[0] * np.arange(len(samples))
    jobs["sequence"], jobs["symbol"], jobs["expert"] = np.arange(len(samples)), samples.state, samples.tag
    answered = infer_batch(plan.state, jobs.ctypes.data, len(jobs), out.ctypes.data)
    if answered != len(jobs):
        refused = out[out["status"] != OK]
        msg = f"the plan refused {len(refused)} of {len(jobs)} rows, first with status {refused['status'][0]}"
        raise TrainingError(msg)
    return Prediction(out["mean"].copy(), out["epistemic"] + out["aleatoric"], out["agree"].copy())


def conformal_quantile(score: Floats, miss_rate: float) -> float:
    """Return the split-conformal quantile: |label - mean| <= q*sigma misses at most miss_rate of new rows."""
    rank = int(np.ceil((len(score) + 1) * (1 - miss_rate)))
    return float(np.sort(score)[min(rank, len(score)) - 1])


def effective_rows(samples: Samples, horizon_ns: int) -> int:
    """Return the number of distinct (symbol, stretch of one horizon) pairs: labels that do not overlap."""
    pairs = np.stack([samples.locate, samples.time_ns // horizon_ns], axis=1)
    return len(np.unique(pairs, axis=0)) if len(pairs) else 0


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place.reshape(-1)], np.float64)  # ties share their mean rank


def _likelihood(error: Floats, variance: Floats) -> float:
    """Return the mean Gaussian negative log likelihood, in nats per row."""
    return float(np.mean(0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)))


def _part(
    prediction: Prediction, samples: Samples, base_variance: float, quantile: Floats, horizon_ns: int
) -> dict[str, Any]:
    label, mean, variance = samples.label, prediction.mean, prediction.variance
    moved = label != 0
    hits = np.sign(mean[moved]) == np.sign(label[moved])
    up = float((label[moved] > 0).mean()) if moved.any() else 0.5
    independent = effective_rows(samples, horizon_ns)
    return {
        "rows": len(samples),
        "effective_rows": independent,
        "nll": _likelihood(label - mean, variance),
        "nll_zero": _likelihood(label, np.full(len(label), base_variance)),
        "nll_zero_mean": _likelihood(label, variance),
        "directional_accuracy": float(hits.mean()) if moved.any() else 0.5,
        "majority_accuracy": max(up, 1 - up),
        "ic": _correlation(mean, label),
        "ic_rank": _correlation(_ranks(mean), _ranks(label)),
        "ic_error": float(1 / np.sqrt(max(independent, 1))),
        "error_ratio": float(np.mean((label - mean) ** 2)) / max(float(np.mean(label**2)), 1e-300),
        "coverage": float((np.abs(label - mean) <= quantile * np.sqrt(variance)).mean()),
    }


def scores(
    prediction: Prediction, samples: Samples, train: Samples, quantiles: dict[str, float], horizon_ns: int
) -> dict[str, Any]:
    """Return the validation metrics of all rows and of each tag that has enough.

    nll against nll_zero (mean 0, variance of the training labels) says what the whole model is worth;
    against nll_zero_mean (mean 0, our variance) what the expected return alone adds.  error_ratio: squared
    error over that of "expect nothing", below 1 is better.  coverage: share inside the conformal interval.
    """
    base = float(np.mean(train.label**2))
    quantile = np.array([quantiles[name] for name in TAG_NAMES])[samples.tag]
    result: dict[str, Any] = {"all": _part(prediction, samples, base, quantile, horizon_ns)}
    for tag, name in enumerate(TAG_NAMES):
        rows = samples.tag == tag
        if rows.sum() >= _SHARE_ROWS_MIN:
            part = Prediction(prediction.mean[rows], prediction.variance[rows], prediction.agree[rows])
            result[name] = _part(part, samples.take(rows), base, quantile[rows], horizon_ns)
    return result


def verdict(metrics: dict[str, Any]) -> str:
    """Say in one sentence what the metrics show."""
    part = metrics["all"]
    ic, error = part["ic"], part["ic_error"]
    words = (
        f"validation IC {ic:+.3f} +- {error:.3f} ({part['effective_rows']} independent labels), "
        f"squared error {part['error_ratio']:.3f} of expecting nothing: "
    )
    if ic > 2 * error and part["error_ratio"] < 1:
        return words + "the expected return holds information on rows it has not seen"
    return words + "no evidence that the expected return beats expecting nothing"
