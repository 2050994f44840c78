"""A hot thread: pinned, owns a uvloop event loop, parked inside one kernel call until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import uvloop

from ringbuf.affinity import name_thread, pin_thread, try_fifo
from ringbuf.agent import request_stop


class HotThread:
    """Owner of a thread that calls `kernel(*arguments)` once, on a core of its own.

    The kernel must be compiled for exactly these arguments before (warm-up), and must watch `stop`.  Written
    by the thread: result, error, remarks; read them after join().  An exception, which only a programmer's
    error can cause, lands in `error`, goes to `on_error` and ends this thread alone.
    """

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Any],
        arguments: tuple[Any, ...],
        stop: int,
        *,
        core: int | None = None,
        fifo: bool = False,
        on_error: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self.name, self.core, self.stop_word = name, core, stop
        self.native_id = 0
        self.result: Any = None
        self.error: BaseException | None = None
        self.remarks: list[str] = []  # what the machine refused, one line each
        self._kernel, self._arguments, self._fifo, self._on_error = kernel, arguments, fifo, on_error
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the thread and wait until it is pinned and about to enter its kernel.

        Raises ValueError when the core cannot be used.
        """
        self._thread.start()
        if not self._started.wait(timeout_s):
            msg = f"thread {self.name!r} did not start within {timeout_s} s"
            raise TimeoutError(msg)
        if isinstance(self.error, ValueError) and not self.native_id:
            raise self.error

    @property
    def is_running(self) -> bool:
        """Whether the thread is inside its kernel (or on its way in or out)."""
        return self._thread.is_alive()

    def request_stop(self) -> None:
        """Set the stop word; every loop that watches the same word ends too."""
        request_stop(self.stop_word)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the thread; return False when it has not ended in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            if self.core is not None:
                pin_thread(self.core)
            name_thread(self.name)
            if self._fifo and (reason := try_fifo()):
                self.remarks.append(reason)
            loop = uvloop.new_event_loop()
            try:
                self.result = loop.run_until_complete(self._inside())
            finally:
                loop.close()
        except BaseException as error:  # noqa: BLE001  (a thread's last line: nobody above could see it)
            self.error = error
            if self._on_error is not None:
                self._on_error(self.name, error)
        finally:
            self._started.set()

    async def _inside(self) -> Any:
        self.native_id = threading.get_native_id()
        self._started.set()
        return self._kernel(*self._arguments)
