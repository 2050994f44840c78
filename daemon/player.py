"""The player: a capture at recorded speed, in the placement `inline`, on one pinned hot thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from daemon.config import RunConfig
from daemon.pipeline import NEED_INPUT, STOPPED, run_inline
from daemon.system import System, close_input
from daemon.threads import HotLoop, cores_of
from nimbus.feed.capture import CaptureError
from ringbuf.hot_thread import HotThread

FOREVER: Final = 1 << 62


def create_player(
    system: System,
    config: RunConfig,
    on_damage: Callable[[str], None],
    on_error: Callable[[str, BaseException], None],
) -> HotLoop:
    """Make the thread that plays the system's capture; it ends with the capture.

    on_damage: told the reason when the capture cannot be read further.
    """

    def crank() -> str:
        """Keep the thread inside the kernel; it comes out for the next chunk of the file only."""
        while True:
            status = run_inline(system.pipeline, FOREVER)
            if status == STOPPED:
                return "stopped"
            try:
                if status == NEED_INPUT and not system.refill() and not close_input(system.market):
                    return "end of capture"
            except CaptureError as error:
                on_damage(str(error))
                return "capture at fault"

    def beats() -> int:
        """Return the messages handled."""
        return int(system.control["heartbeat"])

    def pulse() -> int:
        """Return what moves while the thread lives: messages, and turns spent waiting for their time."""
        return beats() + int(system.control["idle"])

    core = cores_of(config, 1)[0]
    thread = HotThread("market", crank, (), system.control_addr, core=core, on_error=on_error)
    return HotLoop("market", "inline", thread, beats, pulse, system.clock)
