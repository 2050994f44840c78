"""The CUDA kernels as a table: name, source, arguments, launch shape, tolerance, registers.

Everything that runs, compiles or checks kernels reads this table: the device, the self-check, the compile
gate and the registry of operations.  An argument is written as in the source ("const f32* x", "i32 count");
"f32* y" is filled by the kernel, "u32*+ counts" is added to.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from bicep.cuda.layout import header, room_size

FOLDER: Final = pathlib.Path(__file__).parent
WARP: Final = 32
BLOCKS_MAX: Final = 1_024  # of a launch whose threads stride over their work
TYPES: Final = {
    "u8": np.uint8,
    "char": np.uint8,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "f32": np.float32,
    "f64": np.float64,
}
_ARGUMENT: Final = re.compile(r"(const )?(\w+)(\*\+?)? (\w+)")


class Argument(NamedTuple):
    """One parameter of a kernel."""

    name: str
    dtype: Any  # of the value, or of what the pointer points at
    is_pointer: bool
    is_const: bool
    is_added_to: bool  # the kernel reads what it changes


class Launch(NamedTuple):
    """Blocks (x, y), threads of a block, bytes of dynamic shared memory."""

    grid: tuple[int, int]
    threads: int
    shared: int = 0


Scalars = Mapping[str, Any]
Shape = Callable[[Scalars, int], Launch]


@dataclass(slots=True, frozen=True)
class Entry:
    """One kernel.

    tolerance: largest difference from float64 NumPy, relative above 1 and absolute below; 0 = the same bits.
    registers: budget of a thread, kept by the compile gate on every architecture.
    """

    name: str
    source: str
    arguments: tuple[Argument, ...]
    shape: Shape
    tolerance: float
    registers: int
    threads: int = 256

    def launch(self, scalars: Scalars, threads: int = 0) -> Launch:
        """Return the launch for these scalar arguments; threads: of a block, the table's when 0."""
        return self.shape(scalars, threads or self.threads)

    def pack(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the arguments in order as numpy scalars (pointers as uint64).  KeyError: one is missing."""
        return [
            np.uint64(values[a.name] or 0) if a.is_pointer else a.dtype(values[a.name])
            for a in self.arguments
        ]


def _parse(text: str) -> tuple[Argument, ...]:
    found = []
    for part in text.split(","):
        match = _ARGUMENT.fullmatch(part.strip())
        assert match, part
        found.append(Argument(match[4], TYPES[match[2]], bool(match[3]), bool(match[1]), match[3] == "*+"))
    return tuple(found)


def blocks(work: int, threads: int) -> int:
    """Return how many blocks a launch has whose threads stride over `work` items."""
    return min(max(-(-work // threads), 1), BLOCKS_MAX)


def _each(*names: str, shared: Callable[[Scalars], int] = lambda _: 0) -> Shape:
    """Return the shape of a kernel with one thread per item; items = product of these arguments."""

    def shape(scalars: Scalars, threads: int) -> Launch:
        work = functools.reduce(lambda product, name: product * int(scalars[name]), names, 1)
        return Launch((blocks(work, threads), 1), threads, shared(scalars))

    return shape


def _warp_each(name: str) -> Shape:
    """Return the shape of a kernel with one warp per item."""
    return lambda scalars, threads: Launch((blocks(int(scalars[name]) * WARP, threads), 1), threads)


def _rows(across: str, down: str) -> Shape:
    """Return the shape of a kernel whose grid has `down` rows of threads over `across`."""
    return lambda scalars, threads: Launch(
        (blocks(int(scalars[across]), threads), int(scalars[down])), threads
    )


def _tiles(across: str, down: str) -> Shape:
    """Return the shape of a kernel whose block makes a tile of 32 by 32; its threads are 256."""
    return lambda scalars, _: Launch((-(-int(scalars[across]) // 32), -(-int(scalars[down]) // 32)), 256)


def _room(scalars: Scalars, threads: int) -> int:
    hidden = int(scalars["hidden_one"]), int(scalars["hidden_two"])
    return room_size(int(scalars["n_tech"]), int(scalars["n_news"]), hidden, int(scalars["groups"]), threads)


def _jobs(scalars: Scalars, threads: int) -> Launch:
    return Launch((int(scalars["count"]), 1), threads, _room(scalars, threads))


def _one_block(scalars: Scalars, threads: int) -> Launch:
    return Launch((1, 1), threads, int(scalars["job_size"]) + _room(scalars, threads))


def _kernel(
    name: str, source: str, arguments: str, shape: Shape, tolerance: float, registers: int, threads: int = 256
) -> Entry:
    return Entry(name, source, _parse(arguments), shape, tolerance, registers, threads)


_KEY: Final = "u32 number, u32 left, u32 right"
_TABLE: Final = (
    _kernel(
        "philox_words", "masks.cu", "const u32* counters, i32 count, u32 left, u32 right, u32* words",
        _each("count"), 0, 24,
    ),
    _kernel(
        "mask_words", "masks.cu",
        "i32 rows, i32 units, u32 number, u32 group, u32 left, u32 right, u32* words",
        _each("rows", "units"), 0, 40,
    ),
    _kernel(
        "score_histogram", "masks.cu",
        "const f32* weights, const f32* norms, i32 count, i32 columns, u32 prefix, i32 shift, i32 bits, "
        "u32*+ counts",
        _each("count", shared=lambda s: 4 << int(s["bits"])), 0, 32,
    ),
    _kernel(
        "score_mask", "masks.cu",
        "const f32* weights, const f32* norms, i32 count, i32 columns, u32 least, u8* mask, u32*+ kept",
        _each("count"), 0, 24,
    ),
    _kernel("mask_2_4", "structured.cu", "const f32* weights, i32 groups, u8* mask", _each("groups"), 0, 24),
    _kernel(
        "compress_2_4", "structured.cu", "const f32* weights, i32 groups, f32* values, u8* positions",
        _each("groups"), 0, 24,
    ),
    _kernel(
        "expand_2_4", "structured.cu", "const f32* values, const u8* positions, i32 groups, f32* weights",
        _each("groups"), 0, 24,
    ),
    _kernel(
        "check_2_4", "structured.cu", "const f32* weights, i32 groups, u32*+ bad", _each("groups"), 0, 16
    ),
    _kernel(
        "csr_layer_mc", "layer.cu",
        "const i32* rows, const i32* columns, const f32* weights, const f32* bias, const f32* x, "
        f"i32 x_samples, i32 units, i32 samples, u32 first_unit, u32 row, {_KEY}, f32* y",
        _warp_each("units"), 1e-5, 40,
    ),
    _kernel(
        "masked_linear", "linear.cu",
        "const f32* x, const f32* weights, const u8* mask, const f32* bias, i32 n, i32 inputs, i32 outputs, "
        f"i32 activate, i32 drop, {_KEY}, f32* pre, f32* y",
        _tiles("outputs", "n"), 1e-5, 48,
    ),
    _kernel(
        "masked_linear_inner", "linear.cu",
        f"const f32* grad, const f32* pre, i32 n, i32 outputs, i32 activate, i32 drop, {_KEY}, f32* inner",
        _each("n", "outputs"), 1e-5, 40,
    ),
    _kernel(
        "masked_linear_dx", "linear.cu",
        "const f32* inner, const f32* weights, const u8* mask, i32 n, i32 inputs, i32 outputs, f32* dx",
        _tiles("inputs", "n"), 1e-5, 40,
    ),
    _kernel(
        "masked_linear_dw", "linear.cu",
        "const f32* inner, const f32* x, const i32* rows, const i32* columns, i32 n, i32 inputs, "
        "i32 outputs, f32* dw, f32* db",
        lambda s, threads: Launch((int(s["outputs"]), 1), threads, 4 * threads), 1e-5, 40, 128,
    ),
    _kernel(
        "expert_batch", "expert.cu",
        "const char* model, const char* jobs, i32 job_size, i32 count, char* answers",
        _jobs, 1e-5, 64,
    ),
    _kernel(
        "expert_persistent", "persistent.cu", "char* box, char* jobs, char* answers", _one_block, 1e-5, 80,
    ),
    _kernel(
        "indicators", "series.cu",
        "const f64* close, const f64* high, const f64* low, i32 bars, i32 instruments, f64* out",
        _each("instruments"), 1e-9, 56, 64,
    ),
    _kernel(
        "rolling_correlation", "series.cu",
        "const f64* values, const i32* pairs, i32 times, i32 instruments, i32 window, i32 pair_count, "
        "f64* out",
        _rows("times", "pair_count"), 1e-9, 48,
    ),
    _kernel(
        "price_paths", "paths.cu",
        "const f32* spot, const f32* drift, const f32* volatility, i32 assets, i32 paths, i32 steps, "
        f"{_KEY}, f32* last, f32* lowest, f32* highest",
        _rows("paths", "assets"), 1e-5, 40,
    ),
)  # fmt: skip
ENTRIES: Final[dict[str, Entry]] = {entry.name: entry for entry in _TABLE}
SOURCES: Final = tuple(dict.fromkeys(entry.source for entry in _TABLE))


@functools.cache
def read_source(name: str) -> str:
    """Return the text of a source of this folder."""
    return (FOLDER / name).read_text()


@functools.cache
def headers() -> dict[str, str]:
    """Return file name -> text of what the sources include; layouts.cuh is written from the records."""
    found = {path.name: path.read_text() for path in FOLDER.glob("*.cuh")}
    return {**found, "layouts.cuh": header()}
