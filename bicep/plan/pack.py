"""Weights to the bytes of a plan file and back, in numpy; the layout itself stands in layout.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.masks import KEEP_ALL, SAMPLES
from bicep.plan.csr_pack import check_csr_pack, csr_pack, tiles, unpack_csr, untile
from bicep.plan.layout import (
    CSR,
    DENSE,
    EXPERTS,
    GROUP,
    GROUP_TAIL,
    HEADS,
    LINE,
    MAGIC,
    PLAN_FILE,
    PLAN_VERSION,
    RUNGS_MAX,
    SLOT,
    TILE,
    WIDTH_MAX,
    dense_pack_size,
    news_pack_size,
)
from bicep.plan.weights import Floats, PlanError, Rung, Weights, check_weights, filled, weights_of_rungs

_DENSE_ALONE: Final = (Rung(1.0),)


def _news_pack(weights: Weights) -> bytes:
    return weights.bias_one.tobytes() + tiles(weights.news)


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
    return tiles(weights.tech) + block.tobytes() + heads.tobytes()


class _Packs:
    """Packs one behind the other, each on a line of its own."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.data = bytearray()

    def add(self, pack: bytes) -> tuple[int, int]:
        """Append a pack; return its offset in the file and its bytes."""
        place = self.at + len(self.data)
        self.data += pack + bytes(-len(pack) % LINE)
        return place, len(pack)


def encode(
    experts: Sequence[Weights],
    served: Sequence[int],
    label_scale: float,
    rungs: Sequence[Rung] = _DENSE_ALONE,
    *,
    keep: tuple[int, int] = (0, 0),
) -> bytes:
    """Return the bytes of a plan file; by default it has one dense rung per tag.

    served: for each tag the expert that answers; a starved tag names another one and its own weights
    are left out.  rungs: the ladder, the dense rung first; `ladder()` prunes the usual one by magnitude.
    keep: of both layers, see PLAN_FILE; whatever it is, the kernel divides what it keeps by 7/8.
    Raises PlanError for weights that are not finite or whose shapes differ, and for a rung that keeps
    nothing, more than its density says, or a news half of its own.
    """
    check_weights(experts)
    table = [[filled(expert) for expert in row] for row in weights_of_rungs(experts, rungs)]
    first = table[0][0]
    slots = np.zeros((len(experts), len(rungs)), SLOT.dtype)
    packs = _Packs(PLAN_FILE.size + slots.size * SLOT.size)
    for tag, expert in enumerate(served):
        if expert != tag:
            continue
        slots[tag]["served"] = tag
        slots[tag]["news"], slots[tag]["news_size"] = packs.add(_news_pack(table[0][tag]))
        for n, rung in enumerate(rungs):
            slot, weights = slots[tag, n], table[n][tag]
            slot["density"], slot["kind"] = rung.density, DENSE if n == 0 else CSR
            slot["pack"], slot["pack_size"] = packs.add(_dense_pack(weights) if n == 0 else csr_pack(weights))
            slot["kept"] = 0 if n == 0 else np.count_nonzero(weights.second)
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
        len(rungs),
        SAMPLES,
        label_scale,
        packs.at + len(packs.data),
        *keep,
    )
    return header.tobytes() + slots.tobytes() + bytes(packs.data)


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


def _check_slot(image: bytes, header: Any, slot: Any, first: int) -> None:
    """Check the two packs of a slot; the words of a PlanError follow its number."""
    n_tech, n_news = int(header["n_tech"]), int(header["n_news"])
    units, outputs = int(header["hidden_one"]), int(header["hidden_two"])
    if slot["kind"] not in (DENSE, CSR) or slot["served"] >= header["experts"]:
        msg = f"has kind {slot['kind']} served by {slot['served']}"
        raise PlanError(msg)
    sizes = {"pack": dense_pack_size(n_tech, units, outputs), "news": news_pack_size(n_news, units)}
    if slot["kind"] == CSR:
        sizes["pack"] = int(slot["pack_size"])
    for field, size in sizes.items():
        at = int(slot[field])
        if slot[f"{field}_size"] != size or size < 0 or at < first or at % LINE or size > len(image) - at:
            msg = f"its {field} pack does not lie in the file"
            raise PlanError(msg)
        pack = image[at : at + size]
        if field == "pack" and slot["kind"] == CSR:
            try:
                check_csr_pack(pack, n_tech, units, outputs)
            except PlanError as error:
                msg = f"its pack {error}"
                raise PlanError(msg) from None
        elif not np.isfinite(np.frombuffer(pack, np.float32)).all():
            msg = "a weight is NaN or infinite"
            raise PlanError(msg)


def check_image(image: bytes) -> tuple[Any, NDArray[Any]]:
    """Check a plan file; return its header and its rung table (experts x rungs SLOT rows).

    Afterwards every offset in the table is inside the file, every index of a CSR pack in its layer and
    every weight finite.  Raises PlanError with one line that says what is wrong.
    """
    header = _header(image)
    experts, rungs = int(header["experts"]), int(header["rungs"])
    first = PLAN_FILE.size + experts * rungs * SLOT.size
    if first > len(image):
        msg = "the rung table is cut off"
        raise PlanError(msg)
    slots = np.frombuffer(image, SLOT.dtype, experts * rungs, PLAN_FILE.size)
    for n, slot in enumerate(slots):
        try:
            _check_slot(image, header, slot, first)
        except PlanError as error:
            msg = f"slot {n} of the rung table: {error}"
            raise PlanError(msg) from None
    for n, slot in enumerate(slots):
        if slots[int(slot["served"]) * rungs]["served"] != slot["served"]:
            msg = f"slot {n} of the rung table is served by a tag that does not serve itself"
            raise PlanError(msg)
        dense = slots[n // rungs * rungs]
        if slot["news"] != dense["news"] or slot["served"] != dense["served"]:
            msg = f"slot {n} of the rung table is not served like rung 0: cached news would not fit"
            raise PlanError(msg)
    return header, slots


def _unpack_dense(pack: bytes, n_tech: int, units: int, outputs: int) -> dict[str, Floats]:
    values = np.frombuffer(pack, np.float32)
    groups = values[units * n_tech : -HEADS].reshape(outputs // GROUP, -1)
    tail = groups[:, units * GROUP :].reshape(-1, 4, GROUP)
    second = groups[:, : units * GROUP].reshape(-1, units, GROUP).transpose(0, 2, 1)
    return {
        "tech": untile(values[: units * n_tech], units, n_tech),
        "second": second.reshape(outputs, units),
        "bias_two": tail[:, 0].reshape(-1),
        "mean_head": tail[:, 1].reshape(-1),
        "variance_head": tail[:, 2].reshape(-1),
        "biases": values[-HEADS : -HEADS + 2],
    }


def decode(image: bytes, rung: int = 0) -> list[Weights]:
    """Return the weights that answer for each tag on a rung, filled up as the kernel sees them."""
    header, slots = check_image(image)
    n_tech, n_news, rungs = int(header["n_tech"]), int(header["n_news"]), int(header["rungs"])
    units, outputs = int(header["hidden_one"]), int(header["hidden_two"])
    if not 0 <= rung < rungs:
        msg = f"rung {rung} of a ladder of {rungs}"
        raise PlanError(msg)
    experts = []
    for slot in slots[rung::rungs]:
        news = np.frombuffer(image, np.float32, units * (1 + n_news), int(slot["news"]))
        pack = image[int(slot["pack"]) : int(slot["pack"]) + int(slot["pack_size"])]
        unpack = _unpack_dense if slot["kind"] == DENSE else unpack_csr
        fields = unpack(pack, n_tech, units, outputs)
        experts.append(Weights(news=untile(news[units:], units, n_news), bias_one=news[:units], **fields))
    return experts
