"""Compile every kernel before the first packet."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from typing import Final

from daemon.config import Config
from daemon.pipeline import Pipeline, run_inline, settle
from daemon.progress import showing_compilation
from daemon.system import System
from ringbuf.jit import is_warm

__all__ = ["is_warm", "warm_kernels", "warm_up"]

_ONE_MESSAGE: Final = b"\x00\x0cS" + bytes(10) + b"O"  # a raw ITCH file: start of messages


def warm_up(pipeline: Pipeline) -> None:
    """Load, or the first time compile, the loop kernels for this pipeline without handling a message."""
    run_inline(pipeline, 0)
    settle(pipeline, 0)


def warm_kernels(config: Config) -> None:
    """Compile what a replay of this configuration needs, without a capture at hand."""
    with tempfile.TemporaryDirectory() as folder, showing_compilation():
        capture = pathlib.Path(folder) / "one.itch"
        capture.write_bytes(_ONE_MESSAGE)
        with contextlib.closing(System(config, capture)) as system:
            warm_up(system.pipeline)
