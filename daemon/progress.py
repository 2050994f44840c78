"""Progress of jobs that take more than a second, on stderr: bars on a terminal, and the compilation."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from ringbuf.jit import on_compiled


def bar(total: int | None, unit: str, what: str, *, quiet: bool = False) -> Any:
    """Return a tqdm bar over `total` units (None: not known); it draws nothing without a terminal."""
    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=what,
        unit_scale=True,
        leave=False,
        delay=0.5,
        disable=quiet or not sys.stderr.isatty(),
        file=sys.stderr,
    )


@contextlib.contextmanager
def showing_compilation(*, quiet: bool = False) -> Iterator[None]:
    """Tell on a terminal of the kernels compiled inside the block; silent when the cache has them all."""
    started, count = time.monotonic(), 0

    def tell(name: str) -> None:
        nonlocal count
        count += 1
        sys.stderr.write(f"\rcompiling kernels, once: {count} done, last {name:<32.32}")

    if quiet or not sys.stderr.isatty():
        yield
        return
    with on_compiled(tell):
        yield
    if count:
        text = f"compiled {count} kernels in {time.monotonic() - started:.0f} s; kept for the next start"
        sys.stderr.write(f"\r{text:<72}\n")
