"""`contrafusion venue` as a child process: started, listened to, stopped; and a subscriber of its lines."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

from fix_client import FixClient
from replays import environment

SMALL = "[book]\nsymbols_max = 64\nlive_orders_max = 65536\nlevels_max = 16384\n"
START_S = 400.0  # the first start compiles


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Subscriber:
    """A socket of one line: unicast on loopback, or a multicast group joined there."""

    def __init__(self, group: str = "127.0.0.1", port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((group, port))
        if int(group.split(".", maxsplit=1)[0]) >= 224:
            member = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        self.port = self.socket.getsockname()[1]
        self.packets: list[tuple[bytes, int, int]] = []  # session, first number, count
        self.messages: dict[int, bytes] = {}
        self.ended = False

    def take(self, datagram: bytes) -> tuple[bytes, int, int]:
        session, first, count = struct.unpack(">10sQH", datagram[:20])
        self.packets.append((session, first, count))
        if count == 0xFFFF:
            self.ended = True
            count = 0
        at = 20
        for number in range(first, first + count):
            size = int.from_bytes(datagram[at : at + 2], "big")
            self.messages[number] = datagram[at + 2 : at + 2 + size]
            at += 2 + size
        assert at == len(datagram)
        return self.packets[-1]

    def drain(self, timeout_s: float = 0.2) -> None:
        """Take what comes until it is quiet for timeout_s."""
        self.socket.settimeout(timeout_s)
        while True:
            try:
                self.take(self.socket.recv(2_048))
            except TimeoutError:
                return

    def until_end(self, timeout_s: float = 60.0) -> None:
        """Take datagrams up to the end of the session."""
        self.socket.settimeout(timeout_s)
        while not self.ended:
            self.take(self.socket.recv(2_048))

    def close(self) -> None:
        self.socket.close()


class VenueProcess:
    """A running exchange; `started` is its venue_started event."""

    def __init__(self, folder: pathlib.Path, text: str, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._log = folder, folder / "stderr.log"
        config = folder / "venue.toml"
        base = f"{SMALL}[rerequest]\nport = 0\n[snapshot]\nport = 0\n"
        config.write_text(base + text)
        words = [sys.executable, "-m", "daemon.main", "venue", "--config", str(config), "--json", *options]
        with self._log.open("a") as log:
            self.child = subprocess.Popen(
                words, env=environment(), stderr=log, stdout=subprocess.PIPE, cwd=folder, text=True
            )
        self._clients: list[FixClient] = []
        self.started = self.wait_for("venue_started")

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]

    def wait_for(self, event: str, timeout_s: float = START_S) -> dict:
        """Return the last event of a name, once there is one of this process."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = [row for row in self.events() if row["event"] == event]
            if found:
                return found[-1]
            assert self.child.poll() is None, self._log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no event {event!r}: {self._log.read_text()}")

    def client(self, **options) -> FixClient:
        """Connect a FIX client; it is closed with the exchange."""
        self._clients.append(FixClient(self.started["fix_port"], **options))
        return self._clients[-1]

    def stop(self, number: int = signal.SIGTERM) -> dict:
        """Stop in order; return the summary."""
        self.child.send_signal(number)
        out, _ = self.child.communicate(timeout=60)
        assert self.child.returncode == 0, self._log.read_text()
        return json.loads(out)

    def close(self) -> None:
        """End what is left."""
        for client in self._clients:
            client.close()
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()

    def finish(self, timeout_s: float = 120.0) -> dict:
        """Wait for the exchange to stop by itself; return the summary."""
        out, _ = self.child.communicate(timeout=timeout_s)
        assert self.child.returncode == 0, self._log.read_text()
        return json.loads(out)


@contextlib.contextmanager
def venue(folder: pathlib.Path, text: str, *options: str) -> Iterator[VenueProcess]:
    """Start an exchange; whatever happens, it is gone at the end."""
    process = VenueProcess(folder, text, *options)
    try:
        yield process
    finally:
        process.close()
