"""A busy client of the admin endpoint, as a process of the daemon's namespace.

python -m daemon.wire.admin_load HOST PORT PER_S CORE OUT.json: says "ready" on stdout, asks the routes in
turn, so many times a second, until SIGTERM, and then writes what was answered.  It has CONNECTIONS of them
open and one request under way on each, so a slow answer holds up its own connection first.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import sys
import time
from collections import Counter
from typing import Final

import orjson

ROUTES: Final = ("/health", "/metrics", "/positions", "/latency")
CONNECTIONS: Final = 8
TIMEOUT_S: Final = 60.0
READ_SIZE: Final = 65_536
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


class Connection:
    """One connection that is kept open: `ask` sends a request, `answer` reads its answer."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bytes = b""
        self.is_waiting = False

    def ask(self, path: str) -> None:
        """Send a GET."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        self.is_waiting = True

    def _read(self) -> None:
        piece = self._socket.recv(READ_SIZE)
        if not piece:
            msg = "the endpoint closed the connection"
            raise ConnectionError(msg)
        self._bytes += piece

    def answer(self) -> int:
        """Read the answer whole; return its status."""
        while (end := self._bytes.find(_HEAD_END)) < 0:
            self._read()
        head, size = self._bytes[:end], 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(_LENGTH):
                size = int(line[len(_LENGTH) :])
        whole = end + len(_HEAD_END) + size
        while len(self._bytes) < whole:
            self._read()
        self._bytes, self.is_waiting = self._bytes[whole:], False
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def main(host: str, port: str, per_s: str, core: str, out: str) -> None:
    """Ask until SIGTERM; a client that was held up catches up as fast as it can."""
    stopped, answers, interval_s = False, Counter[str](), 1.0 / int(per_s)

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    os.sched_setaffinity(0, {int(core)})
    connections = [Connection(host, int(port)) for _ in range(CONNECTIONS)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    began, asked = time.monotonic(), 0
    while not stopped:
        wait_s = began + asked * interval_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        connection = connections[asked % CONNECTIONS]
        if connection.is_waiting:
            answers[str(connection.answer())] += 1
        connection.ask(ROUTES[asked // CONNECTIONS % len(ROUTES)])
        asked += 1
    elapsed_s = time.monotonic() - began
    for connection in connections:
        with contextlib.suppress(OSError), contextlib.closing(connection):
            if connection.is_waiting:
                answers[str(connection.answer())] += 1
    result = {"asked": asked, "elapsed_s": elapsed_s, "answers": answers}
    pathlib.Path(out).write_bytes(orjson.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
