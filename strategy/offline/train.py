"""Train the three experts on recorded feature rows and write the model that the hot path serves.

Everything that is measured is measured on later rows than those trained on, with the exported plan and
the kernel that will serve it.  The numbers are printed as they are, next to "expect nothing".
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bicep.calibration import Calibration, calibrate
from bicep.masks import DROP_PROBABILITY, SAMPLES
from bicep.plan import LADDER, Rung, Weights, encode, save
from nimbus.messages import TAG_NAMES
from strategy.experts import TAGS, Tensors, Training, fit_experts, starved_tags, steps_of
from strategy.fusionnet import FusionNet
from strategy.ladder import check_densities, tuned_rungs, tuned_steps
from strategy.offline.dataset import (
    Floats,
    Samples,
    TrainingError,
    collect,
    normalisation,
    normalised,
    split,
    thinned,
)
from strategy.offline.evaluate import Prediction, conformal_quantile, predict, scores, verdict

ROWS_MIN: Final = 200
CALIBRATION_ROWS_MIN: Final = 100  # of a tag; with fewer it takes the quantile of all rows
LADDER_ROWS: Final = 512  # of the validation part, on which the rungs' errors are measured


@dataclass(slots=True, frozen=True)
class TrainSettings:
    """What `train_on_rows` may be told; the defaults fit a generated day."""

    horizon_ns: int = 60_000_000_000
    shares: tuple[float, float] = (0.1, 0.2)  # of rows, the last ones: calibration, validation
    rows_max: int = 100_000  # to train on; validation takes a third of it
    miss_rate: float = 0.1  # of the conformal interval
    ladder: tuple[float, ...] = LADDER  # densities of the rungs; (1.0,) = no rung but the dense one
    threads: int = 1  # two threads wait for each other at every operation: 30x slower on a busy machine
    training: Training = field(default_factory=Training)


@contextmanager
def _repeatable(threads: int) -> Iterator[None]:
    """Fix torch's threads and algorithms, so that the same rows and seed give the same bits."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def _tensors(samples: Samples, constants: tuple[Floats, Floats], label_scale: float, cut: float) -> Tensors:
    label = np.clip(samples.label / label_scale, -cut, cut)
    return Tensors(
        torch.from_numpy(normalised(samples.features, *constants).astype(np.float32)),
        torch.from_numpy(samples.news),
        torch.from_numpy(samples.state),
        torch.from_numpy(label.astype(np.float32)),
        samples.tag,
    )


def _fit(
    tensors: Tensors, settings: TrainSettings, seed: int, *, progress: bool
) -> tuple[list[Weights], list[Rung]]:
    """Fit the experts and the rungs of their ladder under a progress bar."""
    training = settings.training
    starved = starved_tags(tensors.tag, training.min_rows)
    tuned = [int((tensors.tag == tag).sum()) for tag in TAGS if tag not in starved]
    total = steps_of(len(tensors), training.epochs, training)
    total += sum(steps_of(rows, training.tune_epochs, training) for rows in tuned if rows)
    total += tuned_steps(tensors.tag, starved, len(settings.ladder), training)
    with tqdm(total=total, disable=not progress, unit="step", desc="training", leave=True) as bar:
        smooth = np.zeros(2)

        def report(phase: str, loss: float, right: float) -> None:
            smooth[:] = (loss, right) if bar.n == 0 else 0.95 * smooth + (0.05 * loss, 0.05 * right)
            bar.set_postfix_str(f"{phase}, loss {smooth[0]:.4f}, right signs {smooth[1]:.3f}", refresh=False)
            bar.update(1)

        def told(density: float) -> None:
            bar.set_postfix_str(f"rung {density:g}", refresh=False)
            bar.update(1)

        nets: list[FusionNet] = fit_experts(tensors, training, seed, report)
        rungs = tuned_rungs(nets, tensors, settings.ladder, starved, training, seed, told)
        return [net.weights() for net in nets], rungs


def _variance_factors(prediction: Prediction, samples: Samples, starved: list[int]) -> list[float]:
    """Return for each tag by what the aleatoric variance is multiplied, so that z^2 averages 1."""
    square = (samples.label - prediction.mean) ** 2 / prediction.variance
    factors = []
    for tag in TAGS:
        rows = np.ones(len(samples), bool) if tag in starved else samples.tag == tag
        rows = rows if rows.sum() >= CALIBRATION_ROWS_MIN else np.ones(len(samples), bool)
        factors.append(float(np.clip(square[rows].mean(), 0.1, 10.0)))
    return factors


def _rescaled(weights: Weights, factor: float) -> Weights:
    """Multiply the aleatoric variance: one bias of the log variance."""
    return replace(weights, biases=weights.biases + np.array([0.0, np.log(factor)], np.float32))


def _quantiles(prediction: Prediction, samples: Samples, miss_rate: float) -> dict[str, float]:
    score = np.abs(samples.label - prediction.mean) / np.sqrt(prediction.variance)
    quantiles = {}
    for tag, name in enumerate(TAG_NAMES):
        rows = samples.tag == tag
        rows = rows if rows.sum() >= CALIBRATION_ROWS_MIN else np.ones(len(samples), bool)
        quantiles[name] = conformal_quantile(score[rows], miss_rate)
    return quantiles


@dataclass(slots=True, frozen=True)
class _Parts:
    """What a draft is calibrated and measured with."""

    train: Samples
    calibration: Samples
    validation: Samples
    constants: tuple[Floats, Floats]
    starved: list[int]
    seed: int


def _calibrated(
    weights: list[Weights], rungs: list[Rung], label_scale: float, parts: _Parts
) -> tuple[bytes, dict[str, Any], list[list[float]]]:
    """Return the plan file, the manifest's `ladder`, and by rung the factors of the aleatoric variance."""
    served = [0 if tag in parts.starved else tag for tag in TAGS]
    draft = encode(weights, served, label_scale, rungs)
    factors = []
    for n in range(len(rungs)):
        found = predict(draft, parts.calibration, parts.constants, parts.seed, n)
        factors.append(_variance_factors(found, parts.calibration, parts.starved))

    def rescaled(experts: Sequence[Weights], by_tag: list[float]) -> list[Weights]:
        return [_rescaled(w, f) for w, f in zip(experts, by_tag, strict=True)]

    ladder = [
        Rung(rung.density, rescaled(rung.experts, found) if rung.experts is not None else None)
        for rung, found in zip(rungs, factors, strict=True)
    ]
    image = encode(rescaled(weights, factors[0]), served, label_scale, ladder)
    rows = parts.validation.take(_spread(len(parts.validation), LADDER_ROWS))
    features = normalised(rows.features, *parts.constants)
    return *calibrate(image, Calibration(features, rows.news, rows.state, rows.tag)), factors


def _spread(count: int, wanted: int) -> NDArray[np.int64]:
    """Return up to `wanted` of `count` row numbers, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def _measure_rungs(
    image: bytes, ladder: dict[str, Any], factors: list[list[float]], parts: _Parts, settings: TrainSettings
) -> dict[str, Any]:
    """Add to each rung of a manifest's ladder its calibration and loss; return the dense rung's metrics."""
    metrics: dict[str, Any] = {}
    for rung in ladder["rungs"]:
        n = rung["rung"]
        drawn = predict(image, parts.calibration, parts.constants, parts.seed, n)
        quantiles = _quantiles(drawn, parts.calibration, settings.miss_rate)
        found = predict(image, parts.validation, parts.constants, parts.seed, n)
        measured = scores(found, parts.validation, parts.train, quantiles, settings.horizon_ns)
        metrics = metrics or measured
        rung |= {"conformal": quantiles, "variance_factors": factors[n]}
        rung |= {name: measured["all"][name] for name in ("nll", "ic", "error_ratio", "coverage")}
    return metrics


def _describe(part: Samples, horizon_ns: int) -> dict[str, Any]:
    return {
        "rows": len(part),
        "first_ns": int(part.time_ns[0]),
        "last_ns": int(part.time_ns[-1]),
        "labels_end_ns": int(part.time_ns[-1]) + horizon_ns,
        "rows_by_tag": {name: int((part.tag == tag).sum()) for tag, name in enumerate(TAG_NAMES)},
        "news_states": len(np.unique(part.state)),
    }


def _net(train: Samples, hidden: tuple[int, int]) -> dict[str, Any]:
    """Return what the manifest says of the net's shape."""
    return {
        "n_tech": int(train.features.shape[1]),
        "n_news": int(train.news.shape[1]),
        "hidden": list(hidden),
        "drop_probability": DROP_PROBABILITY,
        "samples": SAMPLES,
    }


def train_on_rows(
    rows: NDArray[Any],
    news_embeddings: Mapping[int, NDArray[np.float32]],
    out_folder: pathlib.Path,
    seed: int = 0,
    *,
    progress: bool = False,
    settings: TrainSettings | None = None,
    feature_names: tuple[str, ...] = (),
    source: str = "",
) -> dict[str, Any]:
    """Train on FEATURE_ROW rows and write the model to out_folder/ID; return its manifest.

    rows: structured array with the fields of dataset.FIELDS; news_embeddings: float32[768] by news item.
    source: one phrase for `trained_on`, such as "generated day, seed 7".  The same rows, settings and seed
    give the same ID on the same machine.  Raises TrainingError or PlanError (one line each).
    """
    settings = settings or TrainSettings()
    check_densities(settings.ladder)
    samples = collect(rows, news_embeddings, settings.horizon_ns)
    train, calibration, validation = split(samples, settings.horizon_ns, settings.shares)
    data_digest = samples.digest()
    train = thinned(train, settings.rows_max)
    calibration = thinned(calibration, settings.rows_max // 6)
    validation = thinned(validation, settings.rows_max // 3)
    label_scale = float(np.sqrt(np.mean(train.label**2)))
    if len(train) < ROWS_MIN or not label_scale > 0:
        msg = f"{len(train)} rows to train on (at least {ROWS_MIN}), root mean square return {label_scale:g}"
        raise TrainingError(msg)
    constants = normalisation(train.features)
    training = settings.training
    with _repeatable(settings.threads):
        tensors = _tensors(train, constants, label_scale, training.label_max)
        weights, rungs = _fit(tensors, settings, seed, progress=progress)
    starved = starved_tags(train.tag, training.min_rows)
    parts = _Parts(train, calibration, validation, constants, starved, seed)
    image, ladder, factors = _calibrated(weights, rungs, label_scale, parts)
    metrics = _measure_rungs(image, ladder, factors, parts, settings)
    quantiles = ladder["rungs"][0]["conformal"]
    manifest = {
        "seed": seed,
        "trained_on": {
            "source": source,
            "data_digest": data_digest,
            "train": _describe(train, settings.horizon_ns),
            "calibration": _describe(calibration, settings.horizon_ns),
            "validation": _describe(validation, settings.horizon_ns),
        },
        "features": list(feature_names) or [f"feature_{n}" for n in range(train.features.shape[1])],
        "normalisation": {"mean": constants[0].tolist(), "deviation": constants[1].tolist()},
        "horizon_ns": settings.horizon_ns,
        "label_scale": label_scale,
        "net": _net(train, training.hidden),
        "training": asdict(training),
        "starved": [TAG_NAMES[tag] for tag in starved],
        "thresholds": {
            "miss_rate": settings.miss_rate,
            "conformal": quantiles,
            "variance_factors": factors[0],
        },
        "ladder": ladder,
        "metrics": metrics,
        "verdict": verdict(metrics),
        "code_digest": _code_digest(),
    }
    return save(pathlib.Path(out_folder), image, manifest)


def _code_digest() -> str:
    """Return a digest of the sources that decide how a net is trained."""
    folder = pathlib.Path(__file__).resolve().parent
    digest = hashlib.blake2b(digest_size=16)
    sources = ("train.py", "dataset.py", "evaluate.py", "../experts.py", "../fusionnet.py", "../ladder.py")
    for name in sources:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
