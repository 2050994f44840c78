"""The little of rtnetlink(7) that tests need: veth pairs, addresses, routes, links up and down; no `ip`."""

from __future__ import annotations

import fcntl
import os
import pathlib
import socket
import struct

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 17, 18, 20, 24
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL = 1, 4, 0x400, 0x200
NLMSG_ERROR = 2
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_NET_NS_FD, IFLA_XDP = 3, 4, 18, 28, 43
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_XDP_ATTACHED = 1, 2, 1, 2
IFA_ADDRESS, IFA_LOCAL, RTA_DST, RTA_OIF = 1, 2, 1, 4
IFF_UP = 1
SIOCETHTOOL = 0x8946
OFFLOADS = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)  # ETHTOOL_SRXCSUM, STXCSUM, SSG, STSO, SGSO, SGRO


def attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("HH", size, kind) + data + b"\0" * (-size % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while len(data) - at >= 4:
        size, kind = struct.unpack_from("HH", data, at)
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += max(size + 3 & -4, 4)
    return found


def ask(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Send one request in the calling thread's namespace; return the answer's body or raise OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(10)
        flags |= NLM_F_REQUEST | (0 if kind == RTM_GETLINK else NLM_F_ACK)
        sock.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = sock.recv(65_536)
        size, what = struct.unpack_from("IH", answer)
        if what == NLMSG_ERROR:
            code = -struct.unpack_from("i", answer, 16)[0]
            if code:
                raise OSError(code, os.strerror(code))
        return answer[16:size]


def link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("BxHiII", 0, 0, index, flags, change)


def make_veth(name: str, peer: str, peer_namespace: int, queues: int = 1) -> None:
    """Make a pair: `name` here, `peer` in the namespace of that descriptor; queues of each direction."""
    count = struct.pack("I", queues)
    size = attribute(IFLA_NUM_TX_QUEUES, count) + attribute(IFLA_NUM_RX_QUEUES, count)
    other = link() + attribute(IFLA_IFNAME, peer.encode() + b"\0") + size
    other += attribute(IFLA_NET_NS_FD, struct.pack("I", peer_namespace))
    inner = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, other))
    veth = attribute(IFLA_INFO_KIND, b"veth") + inner
    body = link() + attribute(IFLA_IFNAME, name.encode() + b"\0") + size + attribute(IFLA_LINKINFO, veth)
    ask(RTM_NEWLINK, body, NLM_F_CREATE | NLM_F_EXCL)


def set_link(name: str, *, up: bool) -> None:
    ask(RTM_NEWLINK, link(socket.if_nametoindex(name), IFF_UP if up else 0, IFF_UP))


def set_mtu(name: str, size: int) -> None:
    ask(RTM_NEWLINK, link(socket.if_nametoindex(name)) + attribute(IFLA_MTU, struct.pack("I", size)))


def delete_link(name: str) -> None:
    ask(RTM_DELLINK, link(socket.if_nametoindex(name)))


def add_address(name: str, address: str, prefix: int = 24) -> None:
    packed = socket.inet_aton(address)
    body = struct.pack("BBBBI", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(name))
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    ask(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL)


def add_route(name: str, network: str, prefix: int) -> None:
    body = struct.pack("BBBBBBBBI", socket.AF_INET, prefix, 0, 0, 254, 4, 253, 1, 0)  # main, static, link
    body += attribute(RTA_DST, socket.inet_aton(network))
    body += attribute(RTA_OIF, struct.pack("I", socket.if_nametoindex(name)))
    ask(RTM_NEWROUTE, body, NLM_F_CREATE)


def xdp_mode(name: str) -> int:
    """Return how an XDP program is attached to the interface: 0 = none, 1 = native, 2 = generic."""
    answer = ask(RTM_GETLINK, link(socket.if_nametoindex(name)))
    xdp = attributes(attributes(answer[16:]).get(IFLA_XDP, b""))
    return xdp.get(IFLA_XDP_ATTACHED, b"\0")[0]


def offloads_off(name: str) -> None:
    """Let checksums be computed and frames be sent as they are; what the driver has not, is skipped."""
    import array

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in OFFLOADS:
            value = array.array("I", [command, 0])
            request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(sock, SIOCETHTOOL, request)
            except OSError:
                continue


def memberships() -> dict[str, set[str]]:
    """Return the IPv4 groups that each interface of the calling thread's namespace is a member of."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in pathlib.Path("/proc/thread-self/net/igmp").read_text().splitlines()[1:]:
        words = line.split()
        if line[0].isdigit():
            name = words[1]
            found[name] = set()
        else:
            found[name].add(socket.inet_ntoa(struct.pack("I", int(words[0], 16))))
    return found


def packet_sockets() -> int:
    """Return how many packet sockets the calling thread's namespace has."""
    return pathlib.Path("/proc/thread-self/net/packet").read_text().count("\n") - 1
