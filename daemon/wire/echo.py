"""The echo as a process of the daemon's namespace: the floor that tick-to-trade is held against.

python -m daemon.wire.echo INTERFACE GROUP:PORT SINK:PORT EVERY CORE: says "ready" on stdout, answers one
packet in EVERY on a pinned thread until SIGTERM, and then says how many.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from typing import Final

import numpy as np

from daemon.config import endpoint
from daemon.threads import keep_off
from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.decode import Subscription
from nimbus.feed.echo import ECHO, echo
from nimbus.messages import PACKET
from ringbuf.hot_thread import HotThread
from ringbuf.segment import Segment

FRAMES: Final = 16_384
ORDER: Final = (
    b"8=FIX.4.4\x019=0166\x0135=D\x0134=000000002\x0149=CONTRAFUSION\x0156=VENUE\x01"
    b"52=20260105-14:30:00.000000\x0111=0001000010000000\x0155=AAAA\x0154=1\x0138=0000100\x0140=2\x01"
    b"44=000100.0000\x0159=0\x0160=20260105-14:30:00.000000\x0110=000\x01"
)
_ID: Final = b"\x0111="


def main(interface: str, line: str, sink: str, every: str, core: str) -> None:
    """Answer packets until SIGTERM."""
    group, target = endpoint(line), endpoint(sink)
    assert group is not None
    assert target is not None
    segment = Segment.anonymous(1 << 20)
    source = AfPacketV2(segment, interface, [Subscription(group[0], group[1], 0)], frames=FRAMES)
    state, packet = segment.allocate("echo", ECHO.size), segment.allocate("packet", PACKET.size)
    row, text = segment.array("echo", ECHO)[0], np.frombuffer(bytearray(ORDER), np.uint8)
    with socket.create_connection(target) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setblocking(False)  # noqa: FBT003
        row["fd"], row["order"], row["size"] = peer.fileno(), text.ctypes.data, len(text)
        row["id_at"], row["every"] = text.ctypes.data + ORDER.index(_ID) + len(_ID), int(every)
        row["stop"] = 1
        echo(state, source.state, packet)  # compiled
        row["stop"] = 0
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        keep_off({int(core)})
        thread = HotThread("echo", echo, (state, source.state, packet), state, core=int(core))
        thread.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        stop.wait()
        thread.request_stop()
        thread.join()
    sys.stdout.write(f"{int(row['answered'])} answered, {int(row['failed'])} refused\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
