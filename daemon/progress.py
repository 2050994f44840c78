"""Progress bars of jobs that take more than a second: on a terminal, on stderr, nowhere else."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


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
