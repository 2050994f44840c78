"""Feature rows for training: a capture through the same pipeline with the model off and a recorder on."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daemon.config import BicepConfig, Config, ModelConfig
from daemon.errors import CommandError
from daemon.pipeline import NEED_INPUT, run_inline
from daemon.system import System, close_input
from daemon.warm import warm_up
from nimbus.feed.capture import CaptureError
from nimbus.messages import JOURNAL
from ringbuf.records import CACHE_LINE
from ringbuf.segment import Segment
from strategy.recorder import FEATURE_ROW, RECORDER, Recorder

ROWS_A_CALL: Final = 65_536  # also the messages of one call: a message writes at most one row


def record_rows(
    capture: pathlib.Path, config: Config, progress: Any = None
) -> tuple[NDArray[Any], dict[int, NDArray[np.float32]]]:
    """Return (FEATURE_ROW rows in time order, news embedding by item number) of a capture.

    Raises CommandError when the capture or its news cannot be read.
    """
    config = dataclasses.replace(config, model=ModelConfig(kind="off"), bicep=BicepConfig())
    rows: list[NDArray[Any]] = []
    memory = Segment.anonymous(RECORDER.size + ROWS_A_CALL * FEATURE_ROW.size + 2 * CACHE_LINE + (1 << 20))
    recorder = Recorder(memory, ROWS_A_CALL)
    with contextlib.closing(System(config, capture, recorder=recorder.addr)) as system:
        warm_up(system.pipeline)
        done = 0
        while True:
            try:
                status = run_inline(system.pipeline, ROWS_A_CALL)
                rows.append(recorder.drain())
                for stream in system.streams:  # a recording leaves no journal
                    for view in stream.waiting():
                        stream.release(len(view) // JOURNAL.size)
                if progress is not None:
                    progress.update(int(system.control["heartbeat"]) - done)
                    done = int(system.control["heartbeat"])
                # what is held back until the end is recorded too
                if status == NEED_INPUT and not system.refill() and not close_input(system.market):
                    break
            except CaptureError as error:
                raise CommandError(str(error)) from None
    return np.concatenate(rows), _embeddings(system)


def _embeddings(system: System) -> dict[int, NDArray[np.float32]]:
    """Return the embedding of the news record that each item number made the newest."""
    schedule = system.news.schedule
    if schedule is None:
        return {}
    return {int(record["item_id"]): record["embedding"].copy() for record in schedule.records}
