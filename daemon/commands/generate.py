"""`contrafusion generate`: a synthetic, valid ITCH 5.0 day with news."""

from __future__ import annotations

import argparse
import pathlib
import sys

import orjson

from daemon.errors import CommandError, output_folder, writing
from daemon.progress import bar, showing_compilation
from nimbus.venue.generator import generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("out", metavar="OUT.pcap", type=pathlib.Path, help="capture to write")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same bytes (default 1)")
    parser.add_argument("--messages", type=int, default=100_000, help="ITCH messages (default 100,000)")
    parser.add_argument("--symbols", type=int, default=16, help="symbols (default 16)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON alone")


def execute(arguments: argparse.Namespace) -> int:
    """Write the capture and its news; print what was written."""
    output_folder(arguments.out.parent)
    try:
        with (
            showing_compilation(quiet=arguments.json),
            writing(arguments.out),
            bar(arguments.messages, "messages", "generate", quiet=arguments.json) as progress,
        ):
            summary = generate(
                arguments.out, arguments.seed, arguments.messages, arguments.symbols, progress.update
            )
    except ValueError as error:
        raise CommandError(str(error)) from None
    if arguments.json:
        sys.stdout.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print(
            f"{summary['capture']}: {sum(summary['messages'].values()):,} messages in "
            f"{summary['packets']:,} packets, {summary['symbols']} symbols, {summary['span_s']:.0f} s; "
            f"{summary['news']}: {summary['news_items']} news items"
        )
    return 0
