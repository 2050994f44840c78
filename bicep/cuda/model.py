"""The bytes of a model on the device, and of jobs for it, from and to numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.cuda.layout import ENTRY, EXPERT, GROUPS_MAX, JOB, MODEL, NEWS_HALF, job_record
from bicep.plan import PlanError, Weights

Bytes = NDArray[np.uint8]
_LINE: Final = 64


class _Block:
    """Bytes that grow part by part; each part begins on a cache line."""

    def __init__(self, begin: int) -> None:
        self.begin, self.data = begin, bytearray()

    def add(self, *arrays: NDArray[Any]) -> int:
        at = self.begin + len(self.data)
        for array in arrays:
            self.data += array.tobytes()
        self.data += bytes(-len(self.data) % _LINE)
        return at


def to_rows(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return where the entries of each row begin, and the entries (column, weight) that are not zero."""
    kept = matrix != 0
    rows = np.zeros(len(matrix) + 1, np.int32)
    rows[1:] = np.cumsum(kept.sum(1))
    entries = np.zeros(int(rows[-1]), ENTRY.dtype)
    entries["column"], entries["weight"] = np.nonzero(kept)[1], matrix[kept]
    return rows, entries


def encode_model(
    experts: Sequence[Weights],
    served: Sequence[int],
    label_scale: float,
    *,
    key: tuple[int, int] = (0, 0),
    bank_number: int = 0,
    groups: int = 1,
    rung: int = 0,
) -> Bytes:
    """Return the bytes of a model: one expert per tag, 32 * groups samples, masks of `key`.

    served: for each tag the expert that answers.  Weights that are zero take no room, so a pruned rung is
    smaller. Raises PlanError when groups is out of range or the experts differ in shape.
    """
    if not 1 <= groups <= GROUPS_MAX:
        msg = f"{32 * groups} samples, allowed are 32..{32 * GROUPS_MAX}"
        raise PlanError(msg)
    if len({(e.tech.shape, e.news.shape, e.second.shape) for e in experts}) != 1:
        msg = "experts of different shapes"
        raise PlanError(msg)
    rows = np.zeros(len(experts), EXPERT.dtype)
    block = _Block(MODEL.size + rows.nbytes)
    for tag, expert in enumerate(experts):
        if served[tag] != tag:
            continue
        for name, matrix in (("tech", expert.tech), ("news", expert.news), ("second", expert.second)):
            starts, entries = to_rows(matrix)
            rows[tag][f"{name}_rows"], rows[tag][f"{name}_entries"] = block.add(starts), block.add(entries)
        rows[tag]["bias_one"], rows[tag]["bias_two"] = block.add(expert.bias_one), block.add(expert.bias_two)
        rows[tag]["heads"] = block.add(expert.mean_head, expert.variance_head, expert.biases)
        rows[tag]["served"] = tag
    for tag, answering in enumerate(served):
        rows[tag] = rows[answering]
    header = np.zeros(1, MODEL.dtype)
    shapes = (experts[0].tech.shape[1], experts[0].news.shape[1], *experts[0].second.shape[::-1])
    size = block.begin + len(block.data)
    header[0] = (size, label_scale, *shapes, len(experts), groups, rung, bank_number, *key, (0, 0))
    return np.frombuffer(header.tobytes() + rows.tobytes() + bytes(block.data), np.uint8)


def model_sizes(model: Bytes) -> dict[str, int]:
    """Return what the launch shape of a model's kernels depends on."""
    header = model[: MODEL.size].view(MODEL.dtype)[0]
    return {name: int(header[name]) for name in ("n_tech", "n_news", "hidden_one", "hidden_two", "groups")}


def decode_expert(model: Bytes, tag: int) -> tuple[Weights, int]:
    """Return the weights (zeros filled in) that answer for a tag, and the number of their expert."""
    sizes = model_sizes(model)
    row = model[MODEL.size + tag * EXPERT.size :][: EXPERT.size].view(EXPERT.dtype)[0]

    def part(offset: int, dtype: Any, count: int) -> NDArray[Any]:
        return np.frombuffer(model.tobytes(), dtype, count, offset)

    def matrix(name: str, outputs: int, inputs: int) -> NDArray[np.float32]:
        starts = part(int(row[f"{name}_rows"]), np.int32, outputs + 1)
        entries = part(int(row[f"{name}_entries"]), ENTRY.dtype, int(starts[-1]))
        dense = np.zeros((outputs, inputs), np.float32)
        dense[np.repeat(np.arange(outputs), np.diff(starts)), entries["column"]] = entries["weight"]
        return dense

    one, two = sizes["hidden_one"], sizes["hidden_two"]
    heads = part(int(row["heads"]), np.float32, 2 * two + 2)
    weights = Weights(
        tech=matrix("tech", one, sizes["n_tech"]),
        news=matrix("news", one, sizes["n_news"]),
        bias_one=part(int(row["bias_one"]), np.float32, one),
        second=matrix("second", two, one),
        bias_two=part(int(row["bias_two"]), np.float32, two),
        mean_head=heads[:two],
        variance_head=heads[two : 2 * two],
        biases=heads[2 * two :],
    )
    return weights, int(row["served"])


def make_jobs(sizes: Mapping[str, int], count: int, news: int = NEWS_HALF) -> NDArray[Any]:
    """Return `count` empty jobs, as rows with `features` and `vector`, for a model of these sizes."""
    kind = job_record(sizes["n_tech"], sizes["n_news"], sizes["hidden_one"], news)
    jobs = np.zeros(count, kind.dtype)
    jobs["news"] = news
    return jobs


def read_job(record: NDArray[np.uint8], n_tech: int, behind: int) -> tuple[Any, Any, Any]:
    """Return head, features and news (`behind` numbers of it) of one job's bytes."""
    head = record[: JOB.size].view(JOB.dtype)[0]
    features = record[JOB.size :][: 8 * n_tech].view(np.float64)
    return head, features, record[JOB.size + 8 * n_tech :][: 4 * behind].view(np.float32)
