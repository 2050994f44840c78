"""`contrafusion replay`: a capture through the whole pipeline into the paper venue."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import sys
from typing import Any

import orjson

from daemon.config import read_config
from daemon.errors import CommandError, output_folder
from daemon.outcome import write
from daemon.progress import bar, showing_compilation
from daemon.replay import Replay
from daemon.rungs import as_text
from daemon.system import System
from daemon.warm import warm_up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "capture", metavar="CAPTURE", type=pathlib.Path, help="pcap, pcapng, gz, zst or raw ITCH"
    )
    parser.add_argument("--config", type=pathlib.Path, help="configuration file (default: the defaults)")
    parser.add_argument("--speed", default="max", help="max, or Nx of recorded speed, e.g. 1x (default max)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder (default out)")
    parser.add_argument(
        "--rungs",
        type=pathlib.Path,
        metavar="JOURNAL",
        help="apply the changes of rung of a recorded journal",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON alone")


def pace_of(speed: str) -> float:
    """Return wall seconds per market second: 0 for "max", 1/N for "Nx"."""
    if speed == "max":
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x", speed)
    if match is None or float(match[1]) <= 0:
        msg = f"--speed {speed!r}: give max, or a factor such as 1x or 10x"
        raise CommandError(msg)
    return 1.0 / float(match[1])


def execute(arguments: argparse.Namespace) -> int:
    """Replay, write the results, print the summary."""
    config, pace = read_config(arguments.config), pace_of(arguments.speed)
    folder = output_folder(arguments.out)
    with showing_compilation(quiet=arguments.json):
        system = System(config, arguments.capture, rungs=arguments.rungs)
        warm_up(system.pipeline)
    system.control["pace"] = pace
    with contextlib.closing(system):
        replay = Replay(system, folder)
        with bar(None, "messages", "replay", quiet=arguments.json) as progress:
            replay.run(progress)
    summary = write(replay, folder)
    for warning in summary["warnings"]:
        sys.stderr.write(f"warning: {warning}\n")
    if arguments.json:
        sys.stdout.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(summary, folder)
    return 0


def _print(summary: dict[str, Any], folder: pathlib.Path) -> None:
    model, pnl = summary["model"], summary["pnl"]
    messages = sum(summary["messages"].values())
    print(f"{summary['capture']}: {summary['packets']:,} packets, {messages:,} messages,"
          f" {summary['symbols']} symbols, {summary['gaps']} gaps")  # fmt: skip
    print(f"model {model['id']}, trained on {model['trained_on']}")
    if summary["rungs"]:
        print(f"rungs {as_text(summary['rungs'])}")
    print(f"decisions {sum(summary['decisions'].values()):,}, orders {summary['orders']:,},"
          f" fills {summary['fills']:,}, profit {pnl['total']:,.2f} dollars before fees")  # fmt: skip
    print(f"{summary['throughput_msgs_per_s']:,} messages/s over {summary['elapsed_s']} s")
    print(f"book {summary['book_state_hash']}  journal {summary['journal_hash']}")
    print(f"report: {folder / 'report.html'}")
