"""`contrafusion run`: the daemon."""

from __future__ import annotations

import argparse
import pathlib

from daemon.config import read_config
from daemon.live import run
from daemon.logs import configure
from daemon.settings import SettingsError
from daemon.wire_input import problems_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config", type=pathlib.Path, help="configuration file; feed.capture names the source"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; exit code 0 after an orderly stop."""
    config = read_config(arguments.config)
    if problems := problems_of(config):
        raise SettingsError([f"{arguments.config or 'defaults'}: {line}" for line in problems])
    configure()
    run(config, pathlib.Path(config.feed.capture) if config.feed.source == "capture" else None)
    return 0
