"""`contrafusion run`: the daemon."""

from __future__ import annotations

import argparse
import pathlib

from daemon.config import read_config
from daemon.errors import CommandError
from daemon.live import run
from daemon.logs import configure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config", type=pathlib.Path, help="configuration file; feed.capture names the source"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; exit code 0 after an orderly stop."""
    config = read_config(arguments.config)
    if not config.feed.capture:
        msg = "feed.capture is empty: the configuration must name the capture to play"
        raise CommandError(msg)
    configure()
    run(config, pathlib.Path(config.feed.capture))
    return 0
