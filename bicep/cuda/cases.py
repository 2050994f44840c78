"""Inputs for every kernel, drawn from a seed: what the self-check and the tests run.

A case holds a kernel's arguments by name, arrays to be filled included, and what the launch shape needs
beyond them. Sizes are odd on purpose: no tile, warp or group of them comes out even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.cuda import ENTRIES, Entry
from bicep.cuda.layout import NEWS_EMBEDDING, NEWS_HALF, NEWS_NONE
from bicep.cuda.model import encode_model, make_jobs, model_sizes
from bicep.cuda.twins import TWINS
from bicep.plan import INFERENCE, Weights

Array = NDArray[Any]
Random = np.random.Generator
KEY: Final = {"left": 0x243F6A88, "right": 0x85A308D3}


class CheckError(Exception):
    """A kernel's result differs from its twin's; the message says where and by how much."""


@dataclass(slots=True)
class Case:
    """One call of a kernel."""

    entry: Entry
    arguments: dict[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    label: str = ""

    def copy(self) -> dict[str, Any]:
        """Return the arguments with arrays of their own, as they were drawn."""
        return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in self.arguments.items()}

    def results(self, arguments: Mapping[str, Any]) -> dict[str, Array]:
        """Return the arrays that the kernel changes."""
        changed = [a.name for a in self.entry.arguments if a.is_pointer and not a.is_const]
        return {name: arguments[name] for name in changed if arguments[name] is not None}

    def expected(self) -> dict[str, Any]:
        """Return the arguments after the twin has run on them; floats are float64."""
        wide = self.copy()
        for name, array in self.results(wide).items():
            wide[name] = array.astype(np.float64) if array.dtype == np.float32 else array
        TWINS[self.entry.name](**wide)
        return wide

    def check(self, arguments: Mapping[str, Any], expected: Mapping[str, Any] | None = None) -> float:
        """Compare what a kernel left in `arguments` with the twin; return the largest difference.

        Differences are relative above 1 and absolute below.  Raises CheckError.
        """
        wanted, worst = self.results(expected or self.expected()), 0.0
        for name, found in self.results(arguments).items():
            pairs = _numbers(found, wanted[name])
            for part, (ours, theirs) in pairs.items():
                if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
                    msg = f"{self.label}: {name}{part} is NaN in other places"
                    raise CheckError(msg)
                error = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1.0)
                worst = max(worst, float(np.nanmax(error, initial=0.0)))
                if worst > self.entry.tolerance:
                    at = int(np.nanargmax(error))
                    msg = f"{self.label}: {name}{part} differs by {worst:.3g} at {at}"
                    raise CheckError(msg)
        return worst


def _numbers(found: Array, wanted: Array) -> dict[str, tuple[Array, Array]]:
    """Return the pairs of float64 arrays to compare; of answers one pair per field, scaled to the label."""
    if wanted.dtype != INFERENCE.dtype:
        return {"": (found.astype(np.float64).reshape(-1), wanted.astype(np.float64).reshape(-1))}
    scales = {"mean": 1.0, "epistemic": 2.0, "aleatoric": 2.0}
    pairs = {}
    for name in INFERENCE.dtype.names or ():
        unit = LABEL_SCALE ** scales.get(name, 0.0)
        ours, theirs = (np.asarray(a[name], np.float64).reshape(-1) / unit for a in (found, wanted))
        pairs[f".{name}"] = ours, theirs
    return pairs


LABEL_SCALE: Final = 1e-3


def _normal(random: Random, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (random.standard_normal(shape) * scale).astype(np.float32)


def _sparse(random: Random, outputs: int, inputs: int, density: float) -> NDArray[np.float32]:
    matrix = _normal(random, outputs, inputs, scale=(inputs * max(density, 0.05)) ** -0.5)
    matrix *= random.random((outputs, inputs)) < density
    matrix[outputs // 3] = 0  # an empty row
    return matrix


def _csr(matrix: Array) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    rows = np.zeros(len(matrix) + 1, np.int32)
    rows[1:] = np.cumsum((matrix != 0).sum(1))
    return rows, np.nonzero(matrix)[1].astype(np.int32), matrix[matrix != 0].astype(np.float32)


def _masks(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    count = 300 * scale + 7
    counters = random.integers(0, 2**32, (count, 4), dtype=np.uint32)
    words = np.zeros((count, 4), np.uint32)
    yield "philox_words", {"counters": counters, "count": count, **KEY, "words": words}
    sizes = {"rows": 5, "units": 37 * scale}
    words = np.zeros((5, 37 * scale), np.uint32)
    yield "mask_words", {**sizes, "number": 3, "group": 1, **KEY, "words": words}
    weights, norms = _normal(random, 13, 29 * scale), np.abs(_normal(random, 29 * scale))
    shared = {"weights": weights, "norms": norms, "count": weights.size, "columns": weights.shape[1]}
    score = int(np.median(np.abs(weights) * norms).astype(np.float32).view(np.uint32))
    mask, kept = np.zeros(weights.shape, np.uint8), np.zeros(1, np.uint32)
    yield "score_mask", {**shared, "least": score, "mask": mask, "kept": kept}
    for bits, shift in ((11, 21), (11, 10), (10, 0)):
        digit = {"prefix": score >> (shift + bits), "shift": shift, "bits": bits}
        yield "score_histogram", {**shared, **digit, "counts": np.zeros(1 << bits, np.uint32)}


def _structured(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    weights = _normal(random, 9, 28 * scale)
    weights[2] = random.integers(-2, 3, 28 * scale)  # ties
    weights[3, :14] = 0
    groups = weights.size // 4
    shared = {"weights": weights, "groups": groups}
    yield "mask_2_4", {**shared, "mask": np.zeros(weights.shape, np.uint8)}
    values, positions = np.zeros((9, 14 * scale), np.float32), np.zeros((9, 7 * scale), np.uint8)
    packed = {**shared, "values": values, "positions": positions}
    yield "compress_2_4", packed
    filled = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in packed.items()}
    TWINS["compress_2_4"](**filled)
    yield "expand_2_4", {**filled, "weights": np.zeros_like(weights)}
    yield "check_2_4", {**shared, "bad": np.zeros(1, np.uint32)}


def _layer(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for samples, each, density in ((32, False, 0.3), (64, True, 0.2), (32, True, 1.0)):
        units, inputs = 11 * scale, 45 * scale
        rows, columns, weights = _csr(_sparse(random, units, inputs, density))
        x = _normal(random, inputs, samples) if each else _normal(random, inputs, 1)
        yield (
            "csr_layer_mc",
            {
                "rows": rows, "columns": columns, "weights": weights,
                "bias": _normal(random, units, scale=0.1),
                "x": x, "x_samples": x.shape[1], "units": units, "samples": samples, "first_unit": 128,
                "row": 17, "number": 2, **KEY, "y": np.zeros((units, samples), np.float32),
            },
        )  # fmt: skip


def _linear(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for density, activate, drop in ((0.4, 1, 1), (0.0, 0, 0)):
        n, inputs, outputs = 37 * scale, 45, 33 * scale
        weights = _normal(random, outputs, inputs, scale=inputs**-0.5)
        mask = (random.random(weights.shape) < density).astype(np.uint8)
        x, grad = _normal(random, n, inputs), _normal(random, n, outputs)
        pre, y = np.zeros((2, n, outputs), np.float32)
        sizes = {"n": n, "inputs": inputs, "outputs": outputs}
        how = {"activate": activate, "drop": drop, "number": 9, **KEY}
        bias = _normal(random, outputs) if activate else None
        call = {"x": x, "weights": weights, "mask": mask, "bias": bias, **sizes, **how}
        yield "masked_linear", {**call, "pre": pre if activate else None, "y": y}
        inner = {"grad": grad, "pre": _normal(random, n, outputs), "n": n, "outputs": outputs, **how}
        yield "masked_linear_inner", {**inner, "inner": np.zeros((n, outputs), np.float32)}
        back = {"inner": grad, "weights": weights, "mask": mask, **sizes}
        yield "masked_linear_dx", {**back, "dx": np.zeros((n, inputs), np.float32)}
        rows, columns, kept = _csr(mask)
        sums = {
            "dw": np.zeros(max(len(kept), 1), np.float32)[: len(kept)],
            "db": np.zeros(outputs, np.float32),
        }
        yield "masked_linear_dw", {"inner": grad, "x": x, "rows": rows, "columns": columns, **sizes, **sums}


def random_weights(
    random: Random, hidden: tuple[int, int], n_tech: int, n_news: int, density: float
) -> Weights:
    """Return weights of a net, pruned at random to a density."""
    one, two = hidden
    return Weights(
        _sparse(random, one, n_tech, density),
        _sparse(random, one, n_news, density),
        _normal(random, one, scale=0.3),
        _sparse(random, two, one, density),
        _normal(random, two, scale=0.3),
        _normal(random, two, scale=two**-0.5),
        _normal(random, two, scale=two**-0.5),
        _normal(random, 2, scale=0.3),
    )


def fill_jobs(random: Random, jobs: Array) -> None:
    """Draw everything that jobs ask, the kind of their news excepted."""
    count = len(jobs)
    jobs["sequence"], jobs["symbol"] = np.arange(count) + 1_000, np.arange(count)
    jobs["expert"], jobs["mask_index"] = np.arange(count) % 3, random.integers(0, 512, count)
    jobs["news_version"] = 2 * np.arange(count)
    jobs["features"] = random.standard_normal(jobs["features"].shape)
    jobs["vector"] = random.standard_normal(jobs["vector"].shape) * 0.3


def _experts(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for hidden, groups, density, news in (
        ((64, 24), 1, 0.3, NEWS_HALF),
        ((64 * scale, 40), 2, 1.0, NEWS_EMBEDDING),
        ((64, 8), 1, 0.1, NEWS_NONE),
    ):
        experts = [random_weights(random, hidden, 32, 96, density) for _ in range(3)]
        key = KEY["left"], KEY["right"]
        served = (0, 0, 2)
        model = encode_model(experts, served, LABEL_SCALE, key=key, bank_number=4, groups=groups, rung=1)
        jobs = make_jobs(model_sizes(model), 5 * scale, news)
        fill_jobs(random, jobs)
        jobs["features"][1, 3], jobs["expert"][2], jobs["features"][3] = np.nan, 3, 1e300
        answers = np.zeros(len(jobs), INFERENCE.dtype)
        call = {
            "model": model,
            "jobs": jobs.view(np.uint8),
            "job_size": jobs.dtype.itemsize,
            "count": len(jobs),
        }
        yield "expert_batch", {**call, "answers": answers}


def _series(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    bars, instruments = 70 * scale, 130
    close = 100 + np.cumsum(random.standard_normal((bars, instruments)), axis=0) * 0.1
    close[:, 5] = 100.0  # a market that never moves
    high, low = close + random.random(close.shape), close - random.random(close.shape)
    out = np.zeros((5, bars, instruments))
    prices = {"close": close, "high": high, "low": low}
    yield "indicators", {**prices, "bars": bars, "instruments": instruments, "out": out}
    pairs = np.array([[0, 1], [2, 2], [3, 5], [6, 129]], np.int32)
    sizes = {"times": bars, "instruments": instruments, "window": 20, "pair_count": len(pairs)}
    yield (
        "rolling_correlation",
        {"values": close, "pairs": pairs, **sizes, "out": np.zeros((len(pairs), bars))},
    )


def _paths(random: Random, scale: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for steps in (30, 1):
        spot, drift = 50 + 10 * random.random(3), 1e-4 * random.standard_normal(3)
        call = {"spot": spot, "drift": drift, "volatility": 0.01 * (1 + random.random(3))}
        paths = 70 * scale
        ends = {name: np.zeros((3, paths), np.float32) for name in ("last", "lowest", "highest")}
        floats = {name: array.astype(np.float32) for name, array in call.items()}
        yield (
            "price_paths",
            {**floats, "assets": 3, "paths": paths, "steps": steps, "number": 1, **KEY, **ends},
        )


Source = Callable[[Random, int], Iterator[tuple[str, dict[str, Any]]]]
_SOURCES: Final[tuple[Source, ...]] = (_masks, _structured, _layer, _linear, _experts, _series, _paths)


def cases(seed: int = 0, scale: int = 1) -> list[Case]:
    """Return at least one case of every kernel but the persistent one, which answers through rings."""
    random = np.random.default_rng(seed)
    found: list[Case] = []
    for source in _SOURCES:
        for name, arguments in source(random, scale):
            sizes = model_sizes(arguments["model"]) if "model" in arguments else {}
            taken = {a.name: arguments[a.name] for a in ENTRIES[name].arguments}
            number = sum(case.entry.name == name for case in found)
            found.append(Case(ENTRIES[name], taken, sizes, f"{name} {number}"))
    return found
