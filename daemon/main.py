"""The command line: finds the command, imports only its module, turns errors into one line each."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from typing import Final

from daemon.errors import CommandError
from daemon.settings import SettingsError

COMMANDS: Final = {
    "replay": "capture -> whole pipeline -> paper venue: report, orders, fills, journal",
    "book": "capture -> books only: best bid and offer or depth as CSV, message counts",
    "run": "the daemon: the pipeline on a wire, or a capture at recorded speed; admin endpoint",
    "venue": "the paper exchange as a process: multicast feed, rerequests, snapshots, FIX acceptor",
    "generate": "write a synthetic, valid ITCH 5.0 day with news",
    "train": "train the experts and export the plan that replay loads",
    "journal": "verify or show an audit trail",
    "check": "configuration and machine doctor",
    "bench": "latency and throughput on this machine",
}
USAGE, FAILED, BAD_CONFIGURATION, INTERRUPTED = 2, 1, 78, 130


def usage() -> str:
    """Return the text of `contrafusion --help`."""
    rows = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return (
        "usage: contrafusion COMMAND [--help] [OPTIONS]\n\n"
        "Market packets in, FIX orders out; every decision can be replayed bit for bit.\n\n"
        f"commands:\n{rows}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 usage, 78 configuration."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] not in COMMANDS:
        asked = bool(words) and words[0] in {"-h", "--help"}
        (sys.stdout if asked else sys.stderr).write(usage())
        if words and not asked:
            sys.stderr.write(f"contrafusion: unknown command {words[0]!r}\n")
        return 0 if asked else USAGE
    command = importlib.import_module(f"daemon.commands.{words[0]}")
    parser = argparse.ArgumentParser(prog=f"contrafusion {words[0]}", description=COMMANDS[words[0]])
    command.add_arguments(parser)
    try:
        code: int = command.execute(parser.parse_args(words[1:]))
        sys.stdout.flush()
    except SettingsError as error:
        sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
        return BAD_CONFIGURATION
    except CommandError as error:
        sys.stderr.write(f"contrafusion {words[0]}: {error}\n")
        return FAILED
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # files are told of where they are written: this is our own output
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more at exit
        sys.stderr.write(
            f"contrafusion {words[0]}: {error.filename or 'output'}: {error.strerror or error}\n"
        )
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"contrafusion {words[0]}: interrupted\n")
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
