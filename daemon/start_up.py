"""Signals while a daemon is being built: what was made by then is undone, as by an interrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

AGAIN_S = 0.05
_ENDING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Iterator[Callable[[], None]]:
    """Let SIGTERM raise KeyboardInterrupt, as SIGINT does, until a loop takes the signals over.

    A callback of the compiler that is interrupted loses the exception.  Then the signal comes again a moment
    later.  What fails meanwhile for want of what the callback should have made counts as the interrupt too,
    and what is yielded, to be called after the build, raises it at the latest.  What half-made objects say
    when they go, until the process has ended, is not shown.
    """
    told, over, show, timers = False, False, sys.unraisablehook, list[threading.Timer]()

    def interrupt(number: int, frame: Any) -> None:
        nonlocal told
        told = True
        signal.default_int_handler(number, frame)

    def again(lost: Any) -> None:
        if not told:
            show(lost)
        elif lost.exc_type is KeyboardInterrupt and not over:
            timers.append(threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT)))
            timers[-1].start()

    def check() -> None:
        if told:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    sys.unraisablehook = again
    try:
        yield check
    except Exception:
        check()
        raise
    finally:
        over = True
        for timer in timers:
            timer.cancel()
            timer.join()
        if not told:
            sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def masked() -> Iterator[Callable[[], None]]:
    """Hold signals back until what is yielded is called: between making a thing and a way to undo it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def unmask() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    try:
        yield unmask
    finally:
        unmask()
