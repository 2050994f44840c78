"""What the command line shows of a mistake: one line, no traceback."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator


class CommandError(Exception):
    """The command cannot go on; the text is one line for the user."""


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turn an operating-system error while writing `path` into one line."""
    try:
        yield
    except OSError as error:
        msg = f"cannot write {error.filename or path}: {error.strerror or error}"
        raise CommandError(msg) from None


def output_folder(path: pathlib.Path) -> pathlib.Path:
    """Create the folder if it is missing; raise CommandError when it cannot be written to."""
    probe = path / ".writable"
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    return path


def positive(text: str) -> float:
    """Return a number above 0, for an option; raises ValueError otherwise."""
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise ValueError
    return value


def positive_integer(text: str) -> int:
    """Return a whole number above 0, for an option; raises ValueError otherwise."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value
