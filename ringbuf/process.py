"""Who owns a segment: a process named by pid and start time, so that a re-used pid is not mistaken."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

_PROC = pathlib.Path("/proc")
BOOT_DIGITS = 15  # hexadecimal: an int64 holds them
_START_FIELD = 19  # field 22 of /proc/pid/stat (starttime), counted after the command's closing bracket
_STATE_FIELD = 0


class Process(NamedTuple):
    """A process for all time: pid, start in clock ticks since boot, and which boot (60 bits of its id)."""

    pid: int
    start: int
    boot: int


def boot_id() -> int:
    """Return a number that is another one after each boot (0 where the system does not tell).

    The first digits of the kernel's random id: owners written in C have to come to the same number.
    """
    try:
        text = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.replace("-", "")[:BOOT_DIGITS], 16)


def _start(pid: int) -> int | None:
    """Return when the living process pid started, or None when there is none (a zombie counts as dead)."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()  # the command may hold blanks and brackets
    return None if fields[_STATE_FIELD] in {"Z", "X"} else int(fields[_START_FIELD])


def this_process() -> Process:
    """Return the calling process."""
    return Process(os.getpid(), _start(os.getpid()) or 0, boot_id())


def is_alive(process: Process) -> bool:
    """Say whether exactly this process still runs (same pid, same start, same boot)."""
    return process.pid > 0 and process.boot == boot_id() and _start(process.pid) == process.start
