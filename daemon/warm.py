"""Compile every kernel before the first packet, and say so while it takes its time."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import tempfile
import time
from typing import Final

from daemon.config import Config
from daemon.pipeline import Pipeline, run_inline, settle
from daemon.system import System
from ringbuf.jit import is_warm, on_compiled

__all__ = ["is_warm", "warm_kernels", "warm_up"]

_ONE_MESSAGE: Final = b"\x00\x0cS" + bytes(10) + b"O"  # a raw ITCH file: start of messages


def warm_up(pipeline: Pipeline, *, quiet: bool = False) -> None:
    """Load, or the first time compile, the loop kernels for this pipeline without handling a message."""
    if quiet or is_warm():
        _touch(pipeline)
        return
    started, count = time.monotonic(), 0

    def tell(name: str) -> None:
        nonlocal count
        count += 1
        if sys.stderr.isatty():
            sys.stderr.write(f"\rcompiling kernels, once: {count} done, last {name:<32.32}")
        elif count % 50 == 0:
            sys.stderr.write(f"compiling kernels, once: {count} done\n")

    with on_compiled(tell):
        _touch(pipeline)
    if count:
        end = "\r" if sys.stderr.isatty() else ""
        seconds = time.monotonic() - started
        sys.stderr.write(f"{end}compiled {count} kernels in {seconds:.0f} s; kept for the next start\n")


def _touch(pipeline: Pipeline) -> None:
    run_inline(pipeline, 0)
    settle(pipeline, 0)


def warm_kernels(config: Config) -> None:
    """Compile what a replay of this configuration needs, without a capture at hand."""
    with tempfile.TemporaryDirectory() as folder:
        capture = pathlib.Path(folder) / "one.itch"
        capture.write_bytes(_ONE_MESSAGE)
        with contextlib.closing(System(config, capture)) as system:
            warm_up(system.pipeline)
