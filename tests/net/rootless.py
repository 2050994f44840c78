"""What the sources can do in a user namespace; run as a process by test_source_xdp.py, prints JSON."""

from __future__ import annotations

import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    from net import netlink
    from net.traffic import GROUP_A, PORT_A, Datagrams, Packets

    from nimbus.feed.af_packet import AfPacketV2
    from nimbus.feed.af_xdp import AfXdp
    from nimbus.feed.decode import Subscription
    from nimbus.feed.source import SourceError, wait_readable
    from nimbus.feed.udp_send import UdpSender, send_paced
    from ringbuf.segment import Segment

    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    netlink.make_veth("mdx0", "mdc0", here)
    for name in ("mdx0", "mdc0"):
        netlink.set_link(name, up=True)
    netlink.add_address("mdx0", "10.77.0.1")
    segment, lines = Segment.anonymous(1 << 20), [Subscription(GROUP_A, PORT_A)]
    ring = AfPacketV2(segment, "mdc0", lines, frames=512)
    sender = UdpSender(segment, GROUP_A, PORT_A, interface="10.77.0.1")
    datagrams = Datagrams([b"one", b"two"])
    send_paced(sender.state, datagrams.rows.ctypes.data, datagrams.count, 0, 0)
    hand, found = Packets(segment, ring), []
    for _ in range(100):
        wait_readable(hand.sources.state, 100)
        found += [frame[42:].decode() for frame in hand.all()]
        if len(found) == datagrams.count:
            break
    try:
        AfXdp(segment, "mdc0", lines, frames=64)
        refusal = ""
    except SourceError as error:
        refusal = str(error)
    json.dump({"frames": found, "refusal": refusal}, sys.stdout)
    sender.close()
    ring.close()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
