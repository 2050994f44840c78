"""Two network namespaces joined by a veth pair, for a venue and a daemon that meet on one machine.

Made with iproute2 by root, or without root inside a user namespace (`enter_user_namespace`).  Everything is
removed at the end, and what a killed process left behind is removed by the next one that takes its names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from typing import Any, Final, Self

PREFIX_BITS: Final = 24
_INSIDE: Final = "CONTRAFUSION_INSIDE_NAMESPACE"
_REENTER: Final = 'mount -t tmpfs none /run && exec "$@"'


class NamespaceError(Exception):
    """The namespaces cannot be made; the text is one line that says what is missing."""


def enter_user_namespace(module: str, arguments: list[str]) -> None:
    """Start `python -m module` again as root of a user namespace; return at once for root, or when inside.

    Raises NamespaceError when the machine forbids it.
    """
    if os.geteuid() == 0 or os.environ.get(_INSIDE):
        return
    unshare = shutil.which("unshare")
    if unshare is None or _run([unshare, "-Urnm", "true"]).returncode:
        msg = "network namespaces need root, or `unshare -Urnm`, which this machine does not allow"
        raise NamespaceError(msg)
    command = [unshare, "-Urnm", "sh", "-c", _REENTER, "sh", sys.executable, "-m", module, *arguments]
    os.execve(unshare, command, os.environ | {_INSIDE: "1"})  # noqa: S606  no shell: fixed text


class VethPair:
    """Two namespaces and the wire between them: names[0] has addresses[0] on interfaces[0], and so on."""

    def __init__(self, tag: str = "") -> None:
        tag = tag or str(os.getpid() % 100_000)
        self.names = (f"cf-venue-{tag}", f"cf-daemon-{tag}")
        self.interfaces = (f"cfv{tag}", f"cfd{tag}")
        self.addresses = ("10.77.0.1", "10.77.0.2")

    def __enter__(self) -> Self:
        """Make both; raises NamespaceError, after undoing what was done."""
        if shutil.which("ip") is None:
            msg = "the command `ip` is missing: install iproute2"
            raise NamespaceError(msg)
        try:
            self._create()
        except NamespaceError:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove both, and the interfaces with them."""
        self.close()

    def _create(self) -> None:
        self.close()
        for name in self.names:
            _ip("netns", "add", name)
        first, second = self.interfaces
        peer = ("peer", "name", second, "netns", self.names[1])
        _ip("-n", self.names[0], "link", "add", first, "type", "veth", *peer)
        for name, interface, address in zip(self.names, self.interfaces, self.addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/{PREFIX_BITS}", "dev", interface)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", interface, "up")
            _ip("-n", name, "route", "add", "224.0.0.0/4", "dev", interface)
            if ethtool := shutil.which("ethtool"):  # so that a tap sees whole checksums
                with contextlib.suppress(OSError):
                    self.run(0 if name == self.names[0] else 1, [ethtool, "-K", interface, "tx", "off"])

    def command(self, side: int, command: list[str]) -> list[str]:
        """Return the command that runs `command` in a namespace: 0 = venue, 1 = daemon."""
        return ["ip", "netns", "exec", self.names[side], *command]

    def run(self, side: int, command: list[str]) -> None:
        """Run a command in a namespace to its end; what it says and whether it fails does not matter."""
        _run(self.command(side, command))

    def start(self, side: int, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in a namespace; the venue's keep to the first core."""
        before = os.sched_getaffinity(0)
        if side == 0:
            os.sched_setaffinity(0, {min(before)})  # inherited
        try:
            return subprocess.Popen(self.command(side, command), **options)  # noqa: S603  our own programs
        finally:
            os.sched_setaffinity(0, before)

    def set_link(self, side: int, state: str) -> None:
        """Take one end of the wire "up" or "down"."""
        _ip("-n", self.names[side], "link", "set", self.interfaces[side], state)

    def close(self) -> None:
        """Remove the namespaces, as far as they exist."""
        for name in self.names:
            _run(["ip", "netns", "del", name])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed programs


def _ip(*arguments: str) -> None:
    done = _run(["ip", *arguments])
    if done.returncode:
        msg = f"ip {' '.join(arguments)}: {done.stderr.strip() or 'failed'}"
        raise NamespaceError(msg)
