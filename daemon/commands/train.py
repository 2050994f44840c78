"""`contrafusion train`: the experts, on the feature rows of a capture; writes and pins the model."""

from __future__ import annotations

import argparse
import pathlib
import sys

import orjson

from bicep.plan import PlanError
from daemon.config import read_config
from daemon.errors import CommandError, output_folder, writing
from daemon.model import pin
from daemon.progress import bar, showing_compilation
from daemon.recording import record_rows
from strategy.features import NAMES
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
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models"), help="models folder")
    parser.add_argument("--config", type=pathlib.Path, help="configuration file (default: the defaults)")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON alone")


def execute(arguments: argparse.Namespace) -> int:
    """Record rows, train, write, pin; print the verdict on later rows."""
    if not 0.001 <= arguments.horizon_s <= 86_400:
        msg = f"--horizon-s {arguments.horizon_s:g}: must be between 0.001 and 86400"
        raise CommandError(msg)
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
            settings=TrainSettings(horizon_ns=int(arguments.horizon_s * 1e9)),
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
        print(manifest["verdict"])
        print(f"written to {folder / manifest['id']}, pinned in {folder}")
    return 0
