"""What each rung and mode of a plan is worth: measured with the serving kernel on a calibration set.

The reference of a row is the dense net with 2,048 samples.  The error of a setting is the root mean square
of its mean to the reference, less that of the dense rung with 32 samples (squares are subtracted: a setting
as good as that has error 0), over the root mean square of the reference.  The analytic variance is compared
with that of 10,240 samples; outside 10 % of it the plan is not calibrated, and its manifest says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.nanopt import Setting
from bicep.plan import (
    ANALYTIC,
    EXPERTS,
    INFERENCE,
    JOB,
    MC_32,
    MODE_SAMPLES,
    OK,
    Plan,
    PlanError,
    decode,
    infer_batch,
    refresh_news,
)
from bicep.plan.layout import CSR, DENSE, PLAN_FILE
from bicep.plan.pack import check_image

_REPEATS: Final = 64  # of 32 samples, behind the reference
_VARIANCE_REPEATS: Final = 320
_VARIANCE_ROWS: Final = 64
TOLERANCE: Final = 0.1  # of the analytic variance
Floats = NDArray[np.float64]


@dataclass(slots=True, frozen=True)
class Calibration:
    """Inputs on which a ladder is judged.

    features: float64 [n, n_tech], normalised; news: float32 [states, n_news]; state: the row of `news` that
    each row sees; tag: the expert asked; any rows in any order.
    """

    features: Floats
    news: NDArray[np.float32]
    state: NDArray[np.int64]
    tag: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse inputs that say nothing."""
        sizes = {len(self.features), len(self.state), len(self.tag)}
        if len(sizes) != 1 or not len(self.features):
            msg = "a calibration set has as many features as states and tags, and at least one row"
            raise PlanError(msg)
        if not (np.isfinite(self.features).all() and np.isfinite(self.news).all()):
            msg = "a calibration set holds a number that is NaN or infinite"
            raise PlanError(msg)
        for name, values, count in (("state", self.state, len(self.news)), ("tag", self.tag, EXPERTS)):
            if ((values < 0) | (values >= count)).any():
                msg = f"a {name} of the calibration set is outside 0..{count - 1}"
                raise PlanError(msg)

    def head(self, count: int) -> Calibration:
        """Return `count` rows, spread over the set."""
        rows = np.unique(np.linspace(0, len(self.features) - 1, count).astype(np.int64))
        return Calibration(self.features[rows], self.news, self.state[rows], self.tag[rows])


class Asked:
    """A plan with the news of a calibration set, asked for all rows at once."""

    def __init__(self, image: bytes, rows: Calibration) -> None:
        self.plan = Plan.from_image(image, symbols_max=len(rows.news))
        news = np.ascontiguousarray(rows.news, np.float32)
        for state in range(len(news)):
            refresh_news(self.plan.state, state, news[state].ctypes.data)
        self._features = np.ascontiguousarray(rows.features, np.float64)
        self._jobs = np.zeros(len(rows.features), JOB.dtype)
        self._jobs["features"] = self._features.ctypes.data + self._features.strides[0] * np.arange(
            len(rows.features)
        )
        self._jobs["symbol"], self._jobs["expert"] = rows.state, rows.tag
        self._out = np.zeros(len(rows.features), INFERENCE.dtype)

    def ask(self, rung: int, mode: int, repeat: int) -> NDArray[Any]:
        """Return an answer per row; `repeat` picks the masks.  Raises PlanError when one is refused."""
        self.plan.set_rung(rung, mode)
        self._jobs["sequence"] = np.arange(len(self._jobs)) * 1_000 + repeat
        answered = infer_batch(
            self.plan.state, self._jobs.ctypes.data, len(self._jobs), self._out.ctypes.data
        )
        if answered != len(self._jobs):
            bad = self._out[self._out["status"] != OK]["status"][0]
            msg = f"rung {rung}, mode {mode}: {len(self._jobs) - answered} rows refused, first with {bad}"
            raise PlanError(msg)
        return self._out


def _mean_squares(square: Floats, tag: NDArray[np.int64]) -> Floats:
    """Return the mean per expert; an expert that was not asked gets that of all rows."""
    return np.array([square[tag == t].mean() if (tag == t).any() else square.mean() for t in range(EXPERTS)])


def measure_errors(image: bytes, rows: Calibration) -> tuple[Floats, Floats]:
    """Return the error of every setting [expert, rung, mode], and by expert what 1 of them is: a return."""
    asked = Asked(image, rows)
    reference = np.mean([asked.ask(0, MC_32, 10_000 + n)["mean"].copy() for n in range(_REPEATS)], axis=0)
    size = np.maximum(_mean_squares(reference**2, rows.tag), 1e-300)
    shape = asked.plan.rungs, len(MODE_SAMPLES)
    squares = np.zeros((*shape, EXPERTS))
    for rung, mode in np.ndindex(shape):
        repeats = 1 if mode == ANALYTIC else _REPEATS
        errors = [(asked.ask(rung, mode, n)["mean"] - reference) ** 2 for n in range(repeats)]
        squares[rung, mode] = _mean_squares(np.mean(errors, axis=0), rows.tag)
    above = np.maximum(squares - squares[0, MC_32], 0.0)
    return np.asarray(np.sqrt(above / size).transpose(2, 0, 1)), np.sqrt(size)


def measure_analytic(image: bytes, rows: Calibration, rung: int = 0) -> Floats:
    """Return analytic variance over that of 10,240 samples, for up to 64 rows."""
    asked = Asked(image, rows.head(_VARIANCE_ROWS))
    sampled = np.mean(
        [asked.ask(rung, MC_32, n)["epistemic"].copy() for n in range(_VARIANCE_REPEATS)], axis=0
    )
    analytic = asked.ask(rung, ANALYTIC, 0)["epistemic"]
    is_alive = sampled > 0
    return np.asarray(analytic[is_alive] / sampled[is_alive])


def is_calibrated(ratios: Floats) -> bool:
    """Say whether nine of ten analytic variances, and their median, are within 10 % of the sampled ones."""
    if not len(ratios):
        return True  # no dropout reaches the head: both are 0
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    return bool(max(abs(middle - 1), 1 - low, high - 1) <= TOLERANCE)


def with_errors(image: bytes, errors: Floats) -> bytes:
    """Return the plan file with the errors of its rungs (32 samples) in the rung table."""
    _, slots = check_image(image)
    table = slots.copy()
    table["error"] = errors[:, :, MC_32].reshape(-1)
    return image[: PLAN_FILE.size] + table.tobytes() + image[PLAN_FILE.size + table.nbytes :]


def describe(image: bytes) -> list[dict[str, Any]]:
    """Return what a manifest says of each rung; lists are by expert."""
    header, slots = check_image(image)
    rungs = int(header["rungs"])
    table = []
    for rung in range(rungs):
        row = slots[rung::rungs]
        seconds = [weights.second for weights in decode(image, rung)]
        table.append(
            {
                "rung": rung,
                "density": float(row["density"][0]),
                "kind": {DENSE: "dense", CSR: "csr"}[int(row["kind"][0])],
                "kept": [int(np.count_nonzero(second)) for second in seconds],
                "empty_rows": [int((~second.any(axis=1)).sum()) for second in seconds],
                "bytes": [int(size) for size in row["pack_size"]],
                "error": [float(error) for error in row["error"]],
            }
        )
    return table


def calibrate(image: bytes, rows: Calibration) -> tuple[bytes, dict[str, Any]]:
    """Measure a ladder; return the plan file with its errors, and the `ladder` entry of a manifest.

    Raises PlanError when the plan refuses a row.
    """
    errors, scale = measure_errors(image, rows)
    complete = with_errors(image, errors)
    ratios = [measure_analytic(image, rows, rung) for rung in range(errors.shape[1])]
    quantiles = [
        [float(q) for q in np.quantile(ratio, [0.05, 0.5, 0.95])] if len(ratio) else [1.0] * 3
        for ratio in ratios
    ]
    entry = {
        "rows": len(rows.features),
        "error_unit": scale.tolist(),  # by expert: root mean square of the reference
        "rungs": describe(complete),
        "error_by_mode": errors.max(axis=0).tolist(),  # [rung][mode], of the worst expert
        "samples_by_mode": list(MODE_SAMPLES),
        "analytic": {
            "variance_ratio_p05_p50_p95": quantiles,  # by rung
            "is_calibrated": [is_calibrated(ratio) for ratio in ratios],
        },
    }
    return complete, entry


def settings(entry: dict[str, Any], costs: Floats | Sequence[Sequence[float]]) -> list[Setting]:
    """Return the settings NANopt chooses from: a manifest's `ladder` and costs in us [rung][mode].

    The analytic mode is left out on rungs where it is not calibrated.
    """
    found = []
    for rung in entry["rungs"]:
        n = int(rung["rung"])
        for mode, samples in enumerate(entry["samples_by_mode"]):
            if mode == ANALYTIC and not entry["analytic"]["is_calibrated"][n]:
                continue
            error = float(entry["error_by_mode"][n][mode])
            found.append(Setting(n, int(samples), float(rung["density"]), float(costs[n][mode]), error))
    return found
