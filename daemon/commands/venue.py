"""`contrafusion venue`: the paper exchange as a process of its own."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import orjson

from daemon.errors import CommandError
from daemon.exchange import run
from daemon.exchange_config import ExchangeConfig, read_exchange_config
from daemon.logs import configure

_SPEED_MIN, _SPEED_MAX, _PACKETS_MAX = 0.01, 100_000.0, 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", type=pathlib.Path, help="configuration file (configs/venue.toml)")
    parser.add_argument(
        "--capture", type=pathlib.Path, help="play this capture: flow.source and flow.capture"
    )
    parser.add_argument(
        "--speed", help="pace of the flow: Nx the recorded speed, max, or N/s packets a second"
    )
    parser.add_argument("--wait-for-session", action="store_true", help="the flow begins at the first Logon")
    parser.add_argument("--stop-at-end", action="store_true", help="stop when the flow has ended")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _with_speed(config: ExchangeConfig, speed: str) -> ExchangeConfig:
    """Return the configuration with the pace that --speed asks for."""
    flow, number = config.flow, speed.removesuffix("x").removesuffix("/s")
    is_number = number.replace(".", "", 1).isdigit()
    if speed == "max":
        flow = dataclasses.replace(flow, pace="max")
    elif is_number and speed == f"{number}x" and _SPEED_MIN <= float(number) <= _SPEED_MAX:
        flow = dataclasses.replace(flow, pace="market", speed=float(number))
    elif number.isdigit() and speed == f"{number}/s" and 1 <= int(number) <= _PACKETS_MAX:
        flow = dataclasses.replace(flow, pace="packets", packets_per_s=int(number))
    else:
        msg = f"--speed {speed}: max, Nx ({_SPEED_MIN} to {_SPEED_MAX:.0f}) or N/s (1 to {_PACKETS_MAX})"
        raise CommandError(msg)
    return dataclasses.replace(config, flow=flow)


def execute(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; exit code 0 after an orderly stop."""
    config = read_exchange_config(arguments.config)
    if arguments.capture:
        flow = dataclasses.replace(config.flow, source="capture", capture=str(arguments.capture))
        config = dataclasses.replace(config, flow=flow)
    if arguments.speed:
        config = _with_speed(config, arguments.speed)
    if arguments.stop_at_end:
        config = dataclasses.replace(config, flow=dataclasses.replace(config.flow, at_end="stop"))
    configure()
    summary = run(config, wait_for_session=arguments.wait_for_session)
    if arguments.json:
        sys.stdout.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0
