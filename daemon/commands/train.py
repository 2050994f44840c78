"""`contrafusion train`: the experts, on the feature rows of a capture; writes and pins the model."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from bicep.plan import LADDER, MC_32, PlanError
from daemon.config import read_config
from daemon.errors import CommandError, output_folder, writing
from daemon.model import pin
from daemon.progress import bar, showing_compilation
from daemon.recording import record_rows
from strategy.features import NAMES
from strategy.ladder import check_densities
from strategy.offline.dataset import TrainingError
from strategy.offline.train import TrainSettings, train_on_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dataset", choices=("capture",), default="capture", help="kind of the data")
    parser.add_argument(
        "--data", type=pathlib.Path, required=True, help="the capture; its news stand beside it"
    )
    parser.add_argument("--seed", type=int, default=1, help="same rows and seed, same model (default 1)")
    parser.add_argument("--horizon-s", type=float, default=20.0, help="seconds that a return spans")
    parser.add_argument(
        "--ladder", default=",".join(f"{d:g}" for d in LADDER),
        help="densities of the rungs, falling from 1, or none: the dense rung alone (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models"), help="models folder")
    parser.add_argument("--config", type=pathlib.Path, help="configuration file (default: the defaults)")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON alone")


def ladder_of(text: str) -> tuple[float, ...]:
    """Return the densities of "1,0.5,0.2", or of "none"; raises CommandError for others."""
    if text == "none":
        return (1.0,)
    try:
        return check_densities([float(density) for density in text.split(",")])
    except (ValueError, PlanError):
        msg = f"--ladder {text!r}: give densities that fall from 1, such as 1,0.5,0.2, or none"
        raise CommandError(msg) from None


def rung_lines(ladder: dict[str, Any]) -> Iterator[str]:
    """Yield a line about each rung: what it keeps, and what that costs on later rows."""
    for rung in ladder["rungs"]:
        n = rung["rung"]
        yield (
            f"rung {rung['density']:g}: loss {rung['nll']:.4f}, squared error {rung['error_ratio']:.4f} of"
            f" expecting nothing, error {ladder['error_by_mode'][n][MC_32]:.4f} of the dense net,"
            f" analytic uncertainty {'calibrated' if ladder['analytic']['is_calibrated'][n] else 'off'}"
        )


def execute(arguments: argparse.Namespace) -> int:
    """Record rows, train, write, pin; print the verdict on later rows."""
    if not 0.001 <= arguments.horizon_s <= 86_400:
        msg = f"--horizon-s {arguments.horizon_s:g}: must be between 0.001 and 86400"
        raise CommandError(msg)
    densities = ladder_of(arguments.ladder)
    config, folder = read_config(arguments.config), output_folder(arguments.out)
    quiet = arguments.json
    with showing_compilation(quiet=quiet), bar(None, "messages", "recording", quiet=quiet) as progress:
        rows, embeddings = record_rows(arguments.data, config, progress)
    try:
        manifest = train_on_rows(
            rows,
            embeddings,
            folder,
            arguments.seed,
            progress=not arguments.json and sys.stderr.isatty(),
            feature_names=NAMES,
            settings=TrainSettings(horizon_ns=int(arguments.horizon_s * 1e9), ladder=densities),
            source=f"{arguments.data.name}, {len(rows):,} rows",
        )
    except (TrainingError, PlanError) as error:
        raise CommandError(str(error)) from None
    with writing(folder):
        pin(folder, manifest["id"])
    if arguments.json:
        sys.stdout.write(orjson.dumps(manifest, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print(
            f"model {manifest['id']}, trained on {manifest['trained_on']['source']}, seed {manifest['seed']}"
        )
        for line in rung_lines(manifest["ladder"]):
            print(line)
        print(manifest["verdict"])
        print(f"written to {folder / manifest['id']}, pinned in {folder}")
    return 0
