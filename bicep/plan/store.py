"""A model on disk (weights and a manifest), and the memory of a loaded one.

    FOLDER/ID/manifest.json   what it is: id, shapes, normalisation, training range, metrics, thresholds
    FOLDER/ID/weights.bicep   the plan file of layout.py

ID is a digest of the weights and of everything else the manifest says: an artefact never changes under
its name.  Neither file can hold code.  Loading imports no training framework.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import tempfile
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from bicep.masks import BANK_ROWS, DROP_PROBABILITY, KEEP_ALL, bank_key, keep_level, keep_words
from bicep.plan.kernels import infer_batch, refresh_news, set_rung
from bicep.plan.layout import (
    EXPERTS,
    INFERENCE,
    JOB,
    MC_32,
    MODE_SAMPLES,
    OK,
    PLAN,
    RUNGS_MAX,
    SCRATCH,
    SLOT,
    padded,
    work_size,
)
from bicep.plan.pack import check_image
from bicep.plan.weights import PlanError
from ringbuf.records import CACHE_LINE, LINE_PAIR
from ringbuf.segment import Segment

MANIFEST, WEIGHTS = "manifest.json", "weights.bicep"
SCHEMA: Final = 1
# What every manifest says.  `normalisation` holds `mean` and `deviation`, one number per feature; a feature
# of deviation 0 is switched off.
REQUIRED: Final = {
    "schema": int,
    "id": str,
    "weights_digest": str,
    "seed": int,
    "trained_on": dict,
    "features": list,
    "normalisation": dict,
    "horizon_ns": int,
    "starved": list,
    "metrics": dict,
}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _identity(manifest: dict[str, Any]) -> str:
    """Return the id of a manifest: a digest of all it says, the weights' digest included."""
    rest = {key: value for key, value in manifest.items() if key != "id"}
    return _digest(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def save(folder: pathlib.Path, image: bytes, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write a model to folder/ID; return the manifest with its id and the weights' digest.

    Raises PlanError when the image is not a good plan or the folder cannot be written.
    """
    check_image(image)
    stated = {**manifest, "schema": SCHEMA, "weights_digest": _digest(image)}
    complete: dict[str, Any] = json.loads(json.dumps(stated, allow_nan=False))  # as it will be read back
    complete["id"] = _identity(complete)
    target = folder / complete["id"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as draft:
                made = pathlib.Path(draft) / complete["id"]
                made.mkdir()
                (made / WEIGHTS).write_bytes(image)
                (made / MANIFEST).write_text(json.dumps(complete, indent=1, sort_keys=True) + "\n")
                made.rename(target)  # whole or not at all
    except OSError as error:
        msg = f"{target}: cannot be written: {error.strerror}"
        raise PlanError(msg) from error
    return complete


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Return the checked manifest of a model folder; raises PlanError with one line."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}"
        raise PlanError(msg) from error
    except ValueError as error:
        msg = f"{path}: not a manifest: {error}"
        raise PlanError(msg) from error
    if not isinstance(manifest, dict):
        msg = f"{path}: not a manifest"
        raise PlanError(msg)
    if manifest.get("schema") != SCHEMA:
        msg = f"{path}: schema {manifest.get('schema')}, this program reads {SCHEMA}"
        raise PlanError(msg)
    for key, kind in REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            msg = f"{path}: {key} is missing or not of type {kind.__name__}"
            raise PlanError(msg)
    if manifest["id"] != _identity(manifest):
        msg = f"{path}: the content does not match the id {manifest['id']}"
        raise PlanError(msg)
    return manifest


def _normalisation(manifest: dict[str, Any], n_tech: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    constants = []
    for key in ("mean", "deviation"):
        try:
            values = np.asarray(manifest["normalisation"].get(key), np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (n_tech,) or not np.isfinite(values).all():
            msg = f"normalisation.{key} is not {n_tech} finite numbers"
            raise PlanError(msg)
        constants.append(values)
    if not (constants[1] >= 0).all():
        msg = "normalisation.deviation has a negative value"
        raise PlanError(msg)
    return constants[0], constants[1]


def _levels(header: Any) -> tuple[int, int]:
    """Return how much both layers keep, in units of 1/KEEP_ALL."""
    default = keep_level(DROP_PROBABILITY)
    return int(header["keep_one"]) or default, int(header["keep_two"]) or default


def _bank(key: tuple[int, int], units: int, outputs: int, header: Any) -> NDArray[np.uint32]:
    """Draw the mask bank [rows, units + outputs] with each layer's probability."""
    levels = _levels(header)
    first, second = (keep_words(key, BANK_ROWS, units + outputs, level) for level in levels)
    return np.concatenate([first[:, :units], second[:, units:]], axis=1)


def _scratch_size(units: int, outputs: int) -> int:
    return SCRATCH.size + padded(work_size(units, outputs), CACHE_LINE)


class Plan:
    """A loaded model: immutable weights, mask bank, news cells and scratch in one segment.

    `state` is the address that kernels take.  Written by the agent that infers (scratch, counters) and by
    the one that refreshes news (cells); the rung word by the control loop.  A plan serves one inferring
    agent at a time: it has one scratch area.
    """

    def __init__(self, state: int, segment: Segment, manifest: dict[str, Any], name: str, of: str) -> None:
        """Give a plan its owner; of: the name of the plan whose weights it has, its own for a first one."""
        self.state = state
        self.manifest = manifest
        self._segment = segment
        self._record = segment.array(name, PLAN)[0]
        self._of = of
        self._image = segment.areas[f"{of}.image"]
        self._table = segment.array(f"{of}.table", SLOT)
        if manifest:
            self.mean, self.deviation = _normalisation(manifest, int(self._record["n_tech"]))

    @classmethod
    def load(
        cls,
        folder: pathlib.Path,
        segment: Segment | None = None,
        symbols_max: int = 8_192,
        *,
        seed: int | None = None,
        name: str = "plan",
    ) -> Self:
        """Load the model in `folder` (FOLDER/ID) into areas `name`, `name.*` of the segment (or of its own).

        seed: of the run, for the masks; the manifest's when None.
        Raises PlanError (one line) when something is missing, damaged or of another version.
        """
        folder = pathlib.Path(folder)
        manifest = read_manifest(folder)
        path = folder / WEIGHTS
        try:
            image = path.read_bytes()
        except OSError as error:
            msg = f"{path}: cannot be read: {error.strerror}"
            raise PlanError(msg) from error
        if _digest(image) != manifest["weights_digest"]:
            msg = f"{path}: the content does not match the manifest"
            raise PlanError(msg)
        seed = manifest["seed"] if seed is None else seed
        try:
            return cls.from_image(image, segment, symbols_max, seed=seed, manifest=manifest, name=name)
        except PlanError as error:
            msg = f"{path}: {error}"
            raise PlanError(msg) from error

    @classmethod
    def from_image(
        cls,
        image: bytes,
        segment: Segment | None = None,
        symbols_max: int = 8_192,
        *,
        seed: int = 0,
        manifest: dict[str, Any] | None = None,
        name: str = "plan",
    ) -> Self:
        """Build a plan from the bytes of a plan file; see `load`."""
        header, slots = check_image(image)
        units, outputs = int(header["hidden_one"]), int(header["hidden_two"])
        cell = CACHE_LINE + 4 * units  # a seqlock cell whose record is the news half
        parts = {
            "": PLAN.size,
            ".image": len(image),
            ".table": len(slots) * SLOT.size,
            ".cells": symbols_max * int(header["experts"]) * cell,
            ".bank": 4 * BANK_ROWS * (units + outputs),
            ".scratch": _scratch_size(units, outputs),
        }
        if segment is None:
            segment = Segment.anonymous(LINE_PAIR + sum(padded(n, LINE_PAIR) for n in parts.values()))
        at = {part: segment.allocate(name + part, size) for part, size in parts.items()}
        segment.words(at[".image"], len(image) // 8)[:] = np.frombuffer(image, np.int64)
        table = segment.array(name + ".table", SLOT)
        table[:] = slots
        table["pack"] += at[".image"]
        table["news"] += at[".image"]
        bank = _bank(bank_key(seed, _digest(image)), units, outputs, header)
        segment.words(at[".bank"], bank.size // 2)[:] = bank.reshape(-1).view(np.int64)
        record = segment.array(name, PLAN)[0]
        for field in ("experts", "rungs", "n_tech", "n_news", "hidden_one", "hidden_two", "label_scale"):
            record[field] = header[field]
        for field in ("table", "cells", "bank", "scratch"):
            record[field] = at["." + field]
        for name_, level in zip(("one", "two"), _levels(header), strict=True):
            record[f"mean_{name_}"] = level / KEEP_ALL / (1 - DROP_PROBABILITY)
            record[f"odds_{name_}"] = (KEEP_ALL - level) / level
        record["symbols_max"], record["cell_size"], record["bank_rows"] = symbols_max, cell, BANK_ROWS
        return cls(at[""], segment, manifest or {}, name, name)

    def twin(self, name: str) -> Plan:
        """Return a plan of the same weights, masks and news, with a rung word and scratch of its own.

        Its agent may infer beside that of the original, through which alone news is refreshed.  It stands in
        the same segment, which must have been given with room for it.
        """
        units, outputs = int(self._record["hidden_one"]), int(self._record["hidden_two"])
        state = self._segment.allocate(name, PLAN.size)
        rows = self._segment.array(name, PLAN)
        rows[0] = self._record
        rows["scratch"] = self._segment.allocate(f"{name}.scratch", _scratch_size(units, outputs))
        return Plan(state, self._segment, self.manifest, name, self._of)

    @property
    def densities(self) -> list[float]:
        """The share of weights that each rung keeps."""
        return [float(density) for density in self._table["density"][: self.rungs]]

    @property
    def id(self) -> str:
        """The content hash under which the model is stored; empty for a bare image."""
        return str(self.manifest.get("id", ""))

    def __repr__(self) -> str:
        """Say the sizes and what serves."""
        sizes = [int(self._record[name]) for name in ("n_tech", "n_news", "hidden_one", "hidden_two")]
        densities = self._table["density"][: self.rungs].tolist()
        rung, mode = self.rung
        return (
            f"Plan({sizes[0]}+{sizes[1]} inputs, {sizes[2]}-{sizes[3]} units, densities "
            f"{[round(density, 4) for density in densities]}; serves {densities[rung]:.4g} with "
            f"{f'{MODE_SAMPLES[mode]} samples' if MODE_SAMPLES[mode] else 'analytic uncertainty'})"
        )

    @property
    def image(self) -> bytes:
        """The plan file it was made from: for `save`, and for bicep.probe."""
        at, size = self._image
        return self._segment.words(at, size // 8).tobytes()

    def predict(
        self, features: Any, news: Any = None, *, expert: int = 0, symbol: int = 0, sequence: int = 0
    ) -> NDArray[Any]:
        """Answer rows of features from Python; return their INFERENCE records.

        features: [n_tech] or [rows][n_tech], normalised; news: the embedding [n_news] that all rows see (None
        = what the symbol saw last); row n has the masks of sequence + n.  A row that is refused (NaN, say)
        has its status and no number.  For trying things out: the tick path calls `infer` with addresses.
        Raises PlanError for other shapes, an expert or a symbol out of range, news that is no number.
        """
        rows = np.ascontiguousarray(np.atleast_2d(features), np.float64)
        n_tech, n_news = int(self._record["n_tech"]), int(self._record["n_news"])
        if rows.ndim != 2 or rows.shape[1] != n_tech:
            msg = f"features of shape {np.shape(features)}, the plan takes [rows][{n_tech}]"
            raise PlanError(msg)
        if not 0 <= expert < EXPERTS or not 0 <= symbol < int(self._record["symbols_max"]):
            msg = f"expert {expert} of {EXPERTS}, symbol {symbol} of {int(self._record['symbols_max'])}"
            raise PlanError(msg)
        if news is not None:
            embedding = np.ascontiguousarray(news, np.float32)
            if embedding.shape != (n_news,) or refresh_news(self.state, symbol, embedding.ctypes.data) != OK:
                msg = f"news of shape {embedding.shape}, the plan takes {n_news} finite numbers"
                raise PlanError(msg)
        jobs, out = np.zeros(len(rows), JOB.dtype), np.zeros(len(rows), INFERENCE.dtype)
        jobs["features"] = rows.ctypes.data + rows.strides[0] * np.arange(len(rows))
        jobs["sequence"], jobs["symbol"] = sequence + np.arange(len(rows)), symbol
        jobs["expert"] = expert
        infer_batch(self.state, jobs.ctypes.data, len(rows), out.ctypes.data)
        return out

    def counters(self) -> dict[str, int]:
        """Return what was answered and what was refused, by reason."""
        fields = (
            "inferences",
            "bad_expert",
            "bad_symbol",
            "nan_input",
            "nan_output",
            "news_busy",
            "bad_rung",
            "refreshes",
        )
        return {field: int(self._record[field]) for field in fields}

    def set_rung(self, rung: int, mode: int = MC_32) -> None:
        """Switch rung and mode by one store, for the next inference; raises PlanError outside the range."""
        if set_rung(self.state, rung, mode) != OK:
            msg = f"rung {rung}, mode {mode}: the ladder has {self.rungs} rungs and {len(MODE_SAMPLES)} modes"
            raise PlanError(msg)

    @property
    def rungs(self) -> int:
        """The number of rungs of the ladder."""
        return int(self._record["rungs"])

    @property
    def rung(self) -> tuple[int, int]:
        """The rung and the mode in use."""
        mode, rung = divmod(int(self._record["rung"]), RUNGS_MAX)
        return rung, mode

    def served(self) -> list[int]:
        """Return for each tag the expert that answers."""
        return [int(expert) for expert in self._table["served"][:: int(self._record["rungs"])]]
