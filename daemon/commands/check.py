"""`contrafusion check`: the effective configuration, the bytes of each table, and the machine."""

from __future__ import annotations

import argparse
import pathlib

from daemon.config import Config, config_hash, read_config
from daemon.doctor import machine_name, machine_report
from daemon.settings import flatten
from daemon.warm import is_warm, warm_kernels
from nimbus.book.owner import table_sizes
from nimbus.messages import JOURNAL, ORDER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", type=pathlib.Path, help="configuration file (default: the defaults)")
    parser.add_argument("--warm", action="store_true", help="compile every kernel into the cache now")


def _sizes(config: Config) -> dict[str, int]:
    book = config.book
    sizes = {
        f"book.{name}": size
        for name, size in table_sizes(book.symbols_max, book.live_orders_max, book.levels_max).items()
    }
    sizes["orders.pool"] = (config.orders.day_orders_max + 1) * ORDER.size
    sizes["journal.rings"] = 3 * config.journal.ring_records * JOURNAL.size
    return sizes


def execute(arguments: argparse.Namespace) -> int:
    """Print the three parts; exit code 0 unless the configuration is wrong."""
    config, defaults = read_config(arguments.config), {k: v for k, v, _ in flatten(Config())}
    print(f"configuration (hash {config_hash(config)})")
    for key, value, _ in flatten(config):
        origin = "default" if value == defaults[key] else str(arguments.config)
        print(f"  {key:<32} {value!r:<20} {origin}")
    print("tables, bytes (a page that is never touched costs nothing)")
    for name, size in _sizes(config).items():
        print(f"  {name:<32} {size:>16,}")
    print(f"machine: {machine_name()}")
    for finding in machine_report():
        advice = f"  -> {finding.advice}" if finding.advice else ""
        print(f"  {finding.what:<16} {finding.value}{advice}")
    print(f"  {'kernels':<16} {'compiled' if is_warm() else 'not compiled yet: --warm does it now'}")
    if arguments.warm:
        warm_kernels(config)
    return 0
