"""Talk to the service manager: one datagram for each notice, in systemd's own protocol (sd_notify(3)).

    notifier = Notifier.from_environment(os.environ)      # silent when no manager is there
    notifier.extend(60)                                   # while kernels compile, again and again
    notifier.ready("DISARMED")                            # warm, recovered, endpoint answers
    notifier.watch(now_ns, {"market": beats, ...})        # every few ms, by the control loop
    notifier.stopping("SIGTERM")

`watch` tells the watchdog that all is well only when the heartbeat of every agent has moved since it last
did.  A loop that stands still is therefore a missed ping, and the manager kills and starts the service.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final, Self

PINGS_A_PERIOD: Final = 3  # the manager wants one; a late turn of the control loop must not be fatal
STATUS_SIZE_MAX: Final = 512  # characters of STATUS=
_US, _NS_PER_US = 1_000_000, 1_000


class Notifier:
    """Send notices and decide about the watchdog; no clock and no socket of its own.

    Written and read by the control loop only.  A notice that cannot be sent is counted in `failures`, and
    `trouble` says why the last one was not; trading goes on.
    """

    def __init__(self, send: Callable[[bytes], object] | None, watchdog_ns: int = 0) -> None:
        """Take the way to the manager and its watchdog period.

        send: hands one datagram over or raises OSError; None: no manager listens, every notice is dropped.
        watchdog_ns: a ping is expected within it, 0 = no watchdog.
        """
        self._send = send
        self._interval_ns = watchdog_ns // PINGS_A_PERIOD
        self._pinged_ns: int | None = None
        self._beats: dict[str, int] = {}
        self._status = ""
        self.pings = self.failures = 0
        self.trouble = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], pid: int | None = None) -> Self:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and remove them: no child speaks for us.

        pid: of the process that pings, default this one.  Without NOTIFY_SOCKET every notice is dropped.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        period_us = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", "")
        ours = meant_for in {"", str(os.getpid() if pid is None else pid)}
        watchdog_ns = int(period_us) * _NS_PER_US if period_us.isdecimal() and ours else 0
        if not address:
            return cls(None)
        if address[0] not in "/@":
            notifier = cls(None)
            notifier.trouble = f"NOTIFY_SOCKET {address}: neither a path nor an abstract name"
            return notifier
        return cls(functools.partial(send_datagram, address), watchdog_ns)

    @property
    def is_heard(self) -> bool:
        """Whether a manager listens."""
        return self._send is not None

    def ready(self, status: str = "") -> None:
        """Say that the start is over; `status` stands beside it in `systemctl status`."""
        self._tell("READY=1", *self._changed(status))

    def status(self, text: str) -> None:
        """Show one line, such as the state and its reason; nothing is sent while it stays the same."""
        if changed := self._changed(text):
            self._tell(*changed)

    def extend(self, seconds: float) -> None:
        """Ask for so much more time, from now, to start or to stop."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * _US)}")

    def stopping(self, status: str = "") -> None:
        """Say that the stop has begun."""
        self._tell("STOPPING=1", *self._changed(status))

    def watch(self, now_ns: int, beats: Mapping[str, int]) -> list[str]:
        """Ping the watchdog when it is time and every agent's beat has moved since the last ping.

        now_ns: CLOCK_MONOTONIC; beats: agent -> its heartbeat, all that should live.  Returns the agents that
        keep the ping back, [] = none.  Without an agent there is no ping.
        """
        if self._interval_ns == 0 or not self.is_heard:
            return []
        if self._pinged_ns is not None and now_ns - self._pinged_ns < self._interval_ns:
            return []
        stuck = [agent for agent, beat in beats.items() if self._beats.get(agent) == beat]
        if beats and not stuck and self._tell("WATCHDOG=1"):
            self._beats, self._pinged_ns = dict(beats), now_ns
            self.pings += 1
        return stuck

    def _changed(self, status: str) -> list[str]:
        """Return the STATUS field when the text is another one; a field ends at the end of its line."""
        text = " ".join(status.split())[:STATUS_SIZE_MAX]
        if not text or text == self._status:
            return []
        self._status = text
        return [f"STATUS={text}"]

    def _tell(self, *fields: str) -> bool:
        """Send the fields as one datagram; say whether somebody took it."""
        if self._send is None:
            return False
        try:
            self._send("\n".join(fields).encode())
        except OSError as error:
            self.failures += 1
            self.trouble = error.strerror or str(error)
            return False
        return True


def send_datagram(address: str, datagram: bytes) -> None:
    """Send one datagram to a path or, with a leading @, an abstract name; never waits.

    Raises OSError: nobody is there (any more), or the queue is full.
    """
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(datagram, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, target)
