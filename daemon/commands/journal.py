"""`contrafusion journal verify|show`: the audit trail, checked and read."""

from __future__ import annotations

import argparse
import pathlib
import sys

import orjson

from daemon.errors import CommandError
from daemon.registry import PAYLOADS
from nimbus.journal.segments import JournalError
from nimbus.journal.show import show
from nimbus.journal.types import RecordType
from nimbus.journal.verify import verify

CORRUPT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verify|show")
    check = verbs.add_parser("verify", help="walk checksums, sequence, epochs and hash chain")
    reader = verbs.add_parser("show", help="print records as JSON lines")
    for verb in (check, reader):
        verb.add_argument("folder", type=pathlib.Path, help="folder of the journal, e.g. out/journal")
    names = ", ".join(kind.name for kind in RecordType)
    reader.add_argument("--type", action="append", default=[], metavar="NAME", help=f"only these: {names}")
    reader.add_argument("--limit", type=int, help="at most so many records")
    reader.add_argument("--trace", default="", help="one story: ClOrdID, ExecID, decision or order number")
    check.add_argument("--json", action="store_true", help="print the finding as JSON alone")


def execute(arguments: argparse.Namespace) -> int:
    """Verify or show; exit code 1 when the journal is corrupt."""
    try:
        return _verify(arguments) if arguments.verb == "verify" else _show(arguments)
    except JournalError as error:
        raise CommandError(str(error)) from None


def _verify(arguments: argparse.Namespace) -> int:
    report = verify(arguments.folder)
    if arguments.json:
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0 if report.ok else CORRUPT
    if report.torn:
        print(f"torn tail, cut at record {report.torn.record}: {report.torn.file}: {report.torn.reason}")
    if report.finding is not None:
        found = report.finding
        msg = f"{arguments.folder}: corrupt at record {found.record} ({found.file}): {found.reason}"
        raise CommandError(msg)
    print(
        f"{arguments.folder}: {report.records:,} records in {report.segments} segments hold; "
        f"epochs {report.epochs}; journal_hash {report.journal_hash}"
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    try:
        types = [RecordType[name.upper()] for name in arguments.type]
    except KeyError as error:
        msg = f"no record type {error.args[0]}: see --help"
        raise CommandError(msg) from None
    if arguments.limit is not None and arguments.limit < 0:
        msg = f"--limit {arguments.limit}: must be 0 or more"
        raise CommandError(msg)
    for row in show(arguments.folder, PAYLOADS, types=types, limit=arguments.limit, trace=arguments.trace):
        sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return 0
