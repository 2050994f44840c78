"""The sink of the echo: a TCP acceptor that reads and forgets.  python -m daemon.wire.sink ADDRESS PORT."""

from __future__ import annotations

import socket
import sys
from typing import Final

READ_SIZE: Final = 65_536


def main(address: str, port: str) -> None:
    """Accept one connection and read it to its end."""
    with socket.create_server((address, int(port))) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        peer, _ = server.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while peer.recv(READ_SIZE):
                pass


if __name__ == "__main__":
    main(*sys.argv[1:])
