"""A small model with a ladder, and a system that serves it, for the tests of rungs."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import numpy as np
from reference.plans import random_weights

from bicep.calibration import Calibration, calibrate
from bicep.plan import encode, ladder, save
from daemon.config import Config
from daemon.model import pin
from daemon.settings import adjusted
from daemon.system import System
from strategy.features import COLUMNS, NAMES

DENSITIES = (1.0, 0.5, 0.2)
HIDDEN = (64, 16)
SCALE = 1e-3
SMALL_BOOKS = {"book.symbols_max": 1_024, "book.live_orders_max": 65_536, "book.levels_max": 16_384}
ONE_MESSAGE = b"\x00\x0cS" + bytes(10) + b"O"  # a raw ITCH file: start of messages


def make_model(folder: pathlib.Path, densities: tuple[float, ...] = DENSITIES, **more: Any) -> dict[str, Any]:
    """Write a model of random experts with a calibrated ladder, pin it, return its manifest."""
    draw = np.random.default_rng(4)
    image = encode([random_weights(n, HIDDEN) for n in range(3)], [0, 1, 2], SCALE, ladder(densities))
    rows = Calibration(
        draw.standard_normal((24, COLUMNS)),
        (draw.standard_normal((3, 768)) / 28).astype(np.float32),
        np.arange(24) % 3,
        np.arange(24) // 3 % 3,
    )
    image, entry = calibrate(image, rows)
    manifest = {
        "seed": 4, "trained_on": {"source": "nothing: drawn at random"}, "features": list(NAMES),
        "normalisation": {"mean": [0.0] * COLUMNS, "deviation": [1.0] * COLUMNS},
        "horizon_ns": 10**9, "starved": [], "metrics": {}, "ladder": entry, **more,
    }  # fmt: skip
    stated = save(folder, image, manifest)
    pin(folder, stated["id"])
    return stated


def config_of(models: pathlib.Path, **changes: Any) -> Config:
    """Return a configuration of the model; keys as "table.key" with "__" for the dot."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    base = {"model.kind": "fusionnet", "model.folder": str(models), **SMALL_BOOKS}
    return adjusted(Config(), base | given)


@contextlib.contextmanager
def built(config: Config, folder: pathlib.Path, **more: Any) -> Any:
    """Give a system over a capture of one message; no kernel of a loop is called."""
    capture = folder / "one.itch"
    capture.write_bytes(ONE_MESSAGE)
    with contextlib.closing(System(config, capture, **more)) as system:
        yield system


class Log:
    """A logger that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = info
