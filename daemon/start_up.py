"""Signals while a daemon is being built: what was made by then is undone, as by an interrupt."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Iterator[Callable[[], None]]:
    """Let SIGTERM raise KeyboardInterrupt, as SIGINT does, until a loop takes the signals over.

    A callback of the compiler that is interrupted loses the exception and leaves a half-made object, which is
    another exception later, or none: the first is taken for the interrupt that it was, and for the second
    there is what this yields, to be called after the build.
    """
    told, show = False, sys.unraisablehook

    def interrupt(number: int, frame: Any) -> None:
        nonlocal told
        told = True
        signal.default_int_handler(number, frame)

    def show_others(lost: Any) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            show(lost)

    def check() -> None:
        if told:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    sys.unraisablehook = show_others
    try:
        yield check
    except Exception:
        check()
        raise
    finally:
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
