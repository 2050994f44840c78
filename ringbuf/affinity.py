"""Cores and priorities: pin the calling thread, name it, and try what needs privileges.

What the machine refuses is no error: the `try_` functions return the reason as text, "" when they did it.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys
import threading
from typing import Final

SWITCH_INTERVAL_S: Final = 1e-4  # a thread that returns to Python waits 0.3 ms for the GIL instead of 5.3 ms
FIFO_PRIORITY: Final = 50
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_NAME_SIZE: Final = 15  # Linux keeps 15 bytes of a thread's name


def usable_cores() -> list[int]:
    """Return the cores this process may run on (ask before any thread is pinned)."""
    return sorted(os.sched_getaffinity(os.getpid()))


def pin_thread(core: int) -> None:
    """Bind the calling thread to one core; the first thing a thread does, as its children inherit it.

    Raises ValueError when the machine, or the process's cpuset, does not have the core.
    """
    try:
        os.sched_setaffinity(threading.get_native_id(), {core})
    except (OSError, OverflowError, ValueError):
        msg = f"core {core} cannot be used, this process has {usable_cores()}"
        raise ValueError(msg) from None


def name_thread(name: str) -> None:
    """Name the calling thread for `top -H`, `ps` and debuggers (cut to 15 bytes)."""
    comm = pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm")
    if comm.exists():
        comm.write_bytes(name.encode("ascii", "replace")[:_NAME_SIZE])


def try_fifo(priority: int = FIFO_PRIORITY) -> str:
    """Put the calling thread under SCHED_FIFO; return "" or why not.

    Without sched_rt_runtime_us = -1 a spinning FIFO thread loses 50 ms in every second, so that is refused.
    """
    limit = pathlib.Path("/proc/sys/kernel/sched_rt_runtime_us")
    if limit.exists() and int(limit.read_text()) != -1:
        return "SCHED_FIFO not used: sched_rt_runtime_us is not -1, a spinner would lose 5 % of its core"
    try:
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, ValueError) as error:
        return f"SCHED_FIFO {priority} refused: {_reason(error)}"
    return ""


def try_lock_memory() -> str:
    """Keep touched pages, present and future, in memory (mlockall); return "" or why not.

    Pages that were never touched stay free of cost: segments reserve far more than a quiet day uses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"mlockall refused: {os.strerror(ctypes.get_errno())} (raise LimitMEMLOCK)"
    return ""


def set_switch_interval() -> None:
    """Shorten the time for which a thread keeps the GIL, for the sake of the cold loops."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
