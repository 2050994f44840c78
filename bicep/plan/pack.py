"""Weights to the bytes of a plan file and back, in numpy; the layout itself stands in layout.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.masks import KEEP_ALL, SAMPLES
from bicep.plan.layout import (
    DENSE,
    EXPERTS,
    GROUP,
    GROUP_TAIL,
    HEADS,
    MAGIC,
    PLAN_FILE,
    PLAN_VERSION,
    RUNGS_MAX,
    SLOT,
    TILE,
    WIDTH_MAX,
    dense_pack_size,
    news_pack_size,
    padded,
)

Floats = NDArray[np.float32]
_LINE: Final = 64


class PlanError(Exception):
    """A plan that cannot be used; the message is one line that says which and why."""


@dataclass(slots=True, frozen=True)
class Weights:
    """One expert, in the shapes of torch.nn.Linear; label_scale is not folded in."""

    tech: Floats  # [H1, n_tech]
    news: Floats  # [H1, n_news]
    bias_one: Floats  # [H1]
    second: Floats  # [H2, H1]
    bias_two: Floats  # [H2]
    mean_head: Floats  # [H2]
    variance_head: Floats  # [H2], of the log variance
    biases: Floats  # [2], of the two heads


def _tiles(matrix: Floats) -> bytes:
    units, inputs = matrix.shape
    return matrix.reshape(units // TILE, TILE, inputs).transpose(0, 2, 1).tobytes()


def _filled(weights: Weights) -> Weights:
    """Fill the layers up to whole tiles and groups with units of zero weight."""
    one = padded(len(weights.bias_one), TILE) - len(weights.bias_one)
    two = padded(len(weights.bias_two), GROUP) - len(weights.bias_two)

    def fill(array: Floats, *more: int) -> Floats:
        return np.pad(np.asarray(array, np.float32), [(0, n) for n in more])

    return Weights(
        fill(weights.tech, one, 0),
        fill(weights.news, one, 0),
        fill(weights.bias_one, one),
        fill(weights.second, two, one),
        fill(weights.bias_two, two),
        fill(weights.mean_head, two),
        fill(weights.variance_head, two),
        fill(weights.biases, 0),
    )


def _news_pack(weights: Weights) -> bytes:
    return weights.bias_one.tobytes() + _tiles(weights.news)


def _dense_pack(weights: Weights) -> bytes:
    outputs, units = weights.second.shape
    groups = outputs // GROUP
    block = np.zeros((groups, units * GROUP + GROUP_TAIL), np.float32)
    block[:, : units * GROUP] = (
        weights.second.reshape(groups, GROUP, units).transpose(0, 2, 1).reshape(groups, -1)
    )
    for n, row in enumerate((weights.bias_two, weights.mean_head, weights.variance_head)):
        at = units * GROUP + n * GROUP
        block[:, at : at + GROUP] = row.reshape(groups, GROUP)
    heads = np.zeros(HEADS, np.float32)
    heads[:2] = weights.biases
    return _tiles(weights.tech) + block.tobytes() + heads.tobytes()


def _check_weights(experts: Sequence[Weights]) -> None:
    shapes = [[array.shape for array in astuple(expert)] for expert in experts]
    if not all(np.isfinite(array).all() for expert in experts for array in astuple(expert)):
        msg = "a weight is NaN or infinite"
        raise PlanError(msg)
    if any(shape != shapes[0] for shape in shapes):
        msg = f"experts of different shapes: {shapes}"
        raise PlanError(msg)


def encode(
    experts: Sequence[Weights],
    served: Sequence[int],
    label_scale: float,
    keep: tuple[int, int] = (0, 0),
) -> bytes:
    """Return the bytes of a plan file with one dense rung per tag.

    served: for each tag the expert that answers; a starved tag names another one and its own weights are
    left out.  keep: of both layers, see PLAN_FILE; whatever it is, the kernel divides what it keeps by 7/8.
    Raises PlanError for weights that are not finite or whose shapes differ.
    """
    _check_weights(experts)
    filled = [_filled(expert) for expert in experts]
    first = filled[0]
    at = PLAN_FILE.size + len(experts) * SLOT.size
    slots, packs = np.zeros(len(experts), SLOT.dtype), bytearray()
    for tag, expert in enumerate(served):
        if expert == tag:
            for field, pack in (("news", _news_pack(filled[tag])), ("pack", _dense_pack(filled[tag]))):
                slots[tag][field], slots[tag][f"{field}_size"] = at + len(packs), len(pack)
                packs += pack + bytes(-len(pack) % _LINE)
            slots[tag]["density"], slots[tag]["kind"], slots[tag]["served"] = 1.0, DENSE, tag
    for tag, expert in enumerate(served):
        slots[tag] = slots[expert]
    header = np.zeros(1, PLAN_FILE.dtype)
    header[0] = (
        MAGIC,
        PLAN_VERSION,
        first.tech.shape[1],
        first.news.shape[1],
        *first.second.shape[::-1],
        len(experts),
        1,
        SAMPLES,
        label_scale,
        at + len(packs),
        *keep,
    )
    return header.tobytes() + slots.tobytes() + bytes(packs)


def _header(image: bytes) -> Any:
    if len(image) < PLAN_FILE.size:
        msg = f"{len(image)} bytes are too few for a plan"
        raise PlanError(msg)
    header = np.frombuffer(image, PLAN_FILE.dtype, 1)[0]
    faults = {
        "not a plan: magic is wrong": header["magic"] != MAGIC,
        f"plan version {header['version']}, this program reads {PLAN_VERSION}": header["version"]
        != PLAN_VERSION,
        f"{header['samples']} samples, the kernel has {SAMPLES}": header["samples"] != SAMPLES,
        f"{len(image)} bytes, the header says {header['size']}": header["size"] != len(image),
        "a unit is kept with a probability above 1": max(header["keep_one"], header["keep_two"]) > KEEP_ALL,
    }
    for words, wrong in faults.items():
        if wrong:
            raise PlanError(words)
    limits = {
        "n_tech": (1, WIDTH_MAX, 1),
        "n_news": (1, WIDTH_MAX, 1),
        "hidden_one": (TILE, WIDTH_MAX, TILE),
        "hidden_two": (GROUP, WIDTH_MAX, GROUP),
        "experts": (EXPERTS, EXPERTS, 1),
        "rungs": (1, RUNGS_MAX, 1),
    }
    for field, (low, high, multiple) in limits.items():
        if not low <= header[field] <= high or header[field] % multiple:
            msg = f"{field} is {header[field]}, allowed are multiples of {multiple} in {low}..{high}"
            raise PlanError(msg)
    if not (np.isfinite(header["label_scale"]) and header["label_scale"] > 0):
        msg = f"label_scale is {header['label_scale']}"
        raise PlanError(msg)
    return header


def check_image(image: bytes) -> tuple[Any, NDArray[Any]]:
    """Check a plan file; return its header and its rung table (experts x rungs SLOT rows).

    Afterwards every offset in the table is inside the file and every weight is finite.
    Raises PlanError with one line that says what is wrong.
    """
    header = _header(image)
    experts, rungs = int(header["experts"]), int(header["rungs"])
    first = PLAN_FILE.size + experts * rungs * SLOT.size
    if first > len(image):
        msg = "the rung table is cut off"
        raise PlanError(msg)
    slots = np.frombuffer(image, SLOT.dtype, experts * rungs, PLAN_FILE.size)
    units = int(header["hidden_one"])
    sizes = {
        "pack": dense_pack_size(int(header["n_tech"]), units, int(header["hidden_two"])),
        "news": news_pack_size(int(header["n_news"]), units),
    }
    for n, slot in enumerate(slots):
        if slot["kind"] != DENSE or slot["served"] >= experts:
            msg = f"slot {n} of the rung table has kind {slot['kind']} served by {slot['served']}"
            raise PlanError(msg)
        for field, size in sizes.items():
            at = int(slot[field])
            if slot[f"{field}_size"] != size or at < first or at % _LINE or size > len(image) - at:
                msg = f"slot {n} of the rung table: its {field} pack does not lie in the file"
                raise PlanError(msg)
            if not np.isfinite(np.frombuffer(image, np.float32, size // 4, at)).all():
                msg = f"slot {n} of the rung table: a weight is NaN or infinite"
                raise PlanError(msg)
    for n, slot in enumerate(slots):
        if slots[int(slot["served"]) * rungs]["served"] != slot["served"]:
            msg = f"slot {n} of the rung table is served by a tag that does not serve itself"
            raise PlanError(msg)
    return header, slots


def decode(image: bytes) -> list[Weights]:
    """Return the weights that answer for each tag (rung 0), filled up as the kernel sees them."""
    header, slots = check_image(image)
    n_tech, n_news = int(header["n_tech"]), int(header["n_news"])
    units, outputs, rungs = int(header["hidden_one"]), int(header["hidden_two"]), int(header["rungs"])

    def untile(values: Floats, inputs: int) -> Floats:
        return values.reshape(units // TILE, inputs, TILE).transpose(0, 2, 1).reshape(units, inputs)

    experts = []
    for slot in slots[::rungs]:
        news = np.frombuffer(image, np.float32, units * (1 + n_news), int(slot["news"]))
        pack = np.frombuffer(image, np.float32, int(slot["pack_size"]) // 4, int(slot["pack"]))
        groups = pack[units * n_tech : -HEADS].reshape(outputs // GROUP, -1)
        tail = groups[:, units * GROUP :].reshape(-1, 4, GROUP)
        experts.append(
            Weights(
                tech=untile(pack[: units * n_tech], n_tech),
                news=untile(news[units:], n_news),
                bias_one=news[:units],
                second=groups[:, : units * GROUP]
                .reshape(-1, units, GROUP)
                .transpose(0, 2, 1)
                .reshape(outputs, units),
                bias_two=tail[:, 0].reshape(-1),
                mean_head=tail[:, 1].reshape(-1),
                variance_head=tail[:, 2].reshape(-1),
                biases=pack[-HEADS : -HEADS + 2],
            )
        )
    return experts
