"""Frame -> UDP payload: Ethernet, VLAN, Linux cooked, raw IP, IPv4, IPv6.

Nothing is read before its length has been compared with the bytes at hand; whatever is not a whole UDP
datagram is refused with its own reason.  Wrong or absent checksums are counted and accepted, since captures
are rewritten and cards offload, unless FEED.strict says otherwise.
"""

from __future__ import annotations

from typing import Final

from nimbus.feed import state
from nimbus.feed.state import FEED, OK, SUBSCRIPTION, bump, refuse
from nimbus.feed.wire import layout
from nimbus.messages import LINK_COOKED1, LINK_COOKED2, LINK_ETHERNET, LINK_RAW_IP, LINK_UDP, PACKET
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    add_around,
    fold_around,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_i64,
    u1,
    u2,
    u4,
    u8,
)

ETHERNET = layout("Ethernet", 14, "target:u6 source:u6 ethertype:u2")
COOKED1 = layout("Cooked1", 16, "kind:u2 arphrd:u2 address_size:u2 address:u8 ethertype:u2")
COOKED2 = layout("Cooked2", 20, "ethertype:u2 pad:u2 index:u4 arphrd:u2 kind:u1 address_size:u1 address:u8")
VLAN = layout("Vlan", 4, "tag:u2 ethertype:u2")  # seen from the byte behind its 0x8100
IPV4 = layout(
    "Ipv4", 20,
    "version_size:u1 service:u1 total_size:u2 id:u2 fragment:u2 ttl:u1 protocol:u1 checksum:u2 source:u4"
    " target:u4",
)  # fmt: skip
IPV6 = layout("Ipv6", 40, "version_flow:u4 payload_size:u2 next:u1 hops:u1 source:a16 target:a16")
UDP = layout("Udp", 8, "source:u2 target:u2 size:u2 checksum:u2")

ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP = 0x0800, 0x86DD, 0x0806
ETHERTYPE_VLAN, ETHERTYPE_QINQ, VLAN_TAGS_MAX = 0x8100, 0x88A8, 2
PROTOCOL_TCP, PROTOCOL_UDP = 6, 17
FRAGMENT_BITS: Final = 0x3FFF  # more fragments, and the offset
MAPPED_IPV4: Final = 0xFFFF_0000_0000  # ::ffff:a.b.c.d
_UPPER_BYTES: Final = (1 << 56) - 1  # what is left of a word after a shift by one byte
PLAIN_IPV4: Final = 0x45  # version and header size of an IPv4 header without options
UDP_AS_WORD: Final = PROTOCOL_UDP << 8  # the pseudo header's protocol as a native 16-bit load sees it

_P, _F, _S = PACKET.at, FEED.at, SUBSCRIPTION.at
_E, _C1, _C2, _V, _I4, _I6, _U = ETHERNET.at, COOKED1.at, COOKED2.at, VLAN.at, IPV4.at, IPV6.at, UDP.at
_ETHERNET_SIZE, _COOKED1_SIZE, _COOKED2_SIZE, _VLAN_SIZE = (
    ETHERNET.size,
    COOKED1.size,
    COOKED2.size,
    VLAN.size,
)
_IPV4_SIZE, _IPV6_SIZE, _UDP_SIZE, _ROW_SIZE = IPV4.size, IPV6.size, UDP.size, SUBSCRIPTION.size
USUAL_SIZE: Final = _ETHERNET_SIZE + _IPV4_SIZE + _UDP_SIZE
_SHORT_FRAME, _IP_LENGTH = state.SHORT_FRAME, state.IP_LENGTH


@inlined
def _pair(at: int) -> int:
    """Add two words in ones' complement."""
    return add_around(load_i64(at), load_i64(at + 8))


@inlined
def _sum(at: int, size: int) -> int:
    """Add size (8 or more) bytes in ones' complement, as native words of 64 bits.

    Folded to 16 bits this is the sum of their 16-bit words, the last byte of an odd size being a word of its
    own (RFC 1071): 2**16 - 1 divides 2**64 - 1.
    """
    end, total, other = at + size, 0, 0
    for _block in range(size >> 5):  # two sums, so that the additions do not wait for each other
        total = add_around(total, _pair(at))
        other = add_around(other, _pair(at + 16))
        at += 32
    if size & 16:
        total = add_around(total, _pair(at))
        at += 16
    if size & 8:
        other = add_around(other, load_i64(at))
    rest = ((load_i64(end - 8) >> 8) & _UPPER_BYTES) >> (56 - 8 * (size & 7))  # the bytes behind whole words
    return add_around(add_around(total, other), rest)


@inlined
def _is_right(total: int) -> bool:
    """Say whether a sum that includes its own checksum is all ones."""
    return fold_around(total) == 0xFFFF


@inlined
def _subscribed(feed: int, high: int, low: int, port: int) -> int:
    """Return the line of the first matching subscription, or -1."""
    for row in range(load_i64(feed + _F.subscriptions)):
        at = feed + _F.subscription + row * _ROW_SIZE
        row_high, row_low, row_port = (
            load_i64(at + _S.group_high),
            load_i64(at + _S.group_low),
            load_i64(at + _S.port),
        )
        any_group = (row_high | row_low) == 0
        if (any_group or (row_high == high and row_low == low)) and row_port in (0, port):
            return load_i64(at + _S.line)
    return -1


@inlined
def _accept(feed: int, at: int, udp_size: int, high: int, low: int) -> int:
    """Take the payload of the UDP datagram at `at` if somebody subscribes to it."""
    if load_i64(feed + _F.subscriptions) != 0:
        line = _subscribed(feed, high, low, u2(at + _U.target))
        if line < 0:
            return refuse(feed, state.NOT_SUBSCRIBED)
        store_i64(feed + _F.line, line)
    store_i64(feed + _F.payload_at, at + _UDP_SIZE)
    store_i64(feed + _F.payload_size, udp_size - _UDP_SIZE)
    return OK


@inlined
def _open_udp(feed: int, at: int, size: int, pseudo: int, high: int, low: int) -> int:
    """Take the UDP datagram in the size bytes at `at`; pseudo: sum of the pseudo header's addresses."""
    if size < _UDP_SIZE:
        return refuse(feed, _SHORT_FRAME)
    udp_size = u2(at + _U.size)
    if udp_size < _UDP_SIZE or udp_size > size:
        return refuse(feed, state.UDP_LENGTH)
    rest_of_pseudo = UDP_AS_WORD + load_u16(at + _U.size)
    if load_u16(at + _U.checksum) == 0:
        bump(feed + _F.udp_checksum_zero, 1)
    elif not _is_right(add_around(add_around(pseudo, rest_of_pseudo), _sum(at, udp_size))):
        bump(feed + _F.udp_checksum_bad, 1)
        if load_i64(feed + _F.strict) != 0:
            return refuse(feed, state.CHECKSUM)
    return _accept(feed, at, udp_size, high, low)


@inlined
def _open_ipv4(feed: int, at: int, size: int) -> int:
    if size < _IPV4_SIZE:
        return refuse(feed, _SHORT_FRAME)
    header_size = (u1(at + _I4.version_size) & 15) * 4
    if u1(at + _I4.version_size) >> 4 != 4:
        return refuse(feed, state.IP_VERSION)
    if header_size < _IPV4_SIZE:
        return refuse(feed, state.IP_HEADER)
    total_size = u2(at + _I4.total_size)  # what follows it in the frame is padding
    if total_size < header_size or total_size > size:
        return refuse(feed, _IP_LENGTH)
    if u2(at + _I4.fragment) & FRAGMENT_BITS:
        return refuse(feed, state.FRAGMENT)
    protocol = u1(at + _I4.protocol)
    if protocol != PROTOCOL_UDP:
        return refuse(feed, state.TCP if protocol == PROTOCOL_TCP else state.OTHER_IP_PROTOCOL)
    if not _is_right(_sum(at, header_size)):
        zero = load_u16(at + _I4.checksum) == 0
        bump(feed + (_F.ip_checksum_zero if zero else _F.ip_checksum_bad), 1)
        if load_i64(feed + _F.strict) != 0:
            return refuse(feed, state.CHECKSUM)
    pseudo = load_i64(at + _I4.source)  # the target stands behind it
    group = MAPPED_IPV4 | u4(at + _I4.target)
    return _open_udp(feed, at + header_size, total_size - header_size, pseudo, 0, group)


@inlined
def _open_ipv6(feed: int, at: int, size: int) -> int:
    if size < _IPV6_SIZE:
        return refuse(feed, _SHORT_FRAME)
    if u1(at) >> 4 != 6:
        return refuse(feed, state.IP_VERSION)
    payload_size = u2(at + _I6.payload_size)
    if payload_size > size - _IPV6_SIZE:
        return refuse(feed, _IP_LENGTH)
    following = u1(at + _I6.next)
    if following == 44:
        return refuse(feed, state.FRAGMENT)
    # RFC 7045: hop-by-hop, routing, encapsulating security, authentication, options, mobility, HIP, shim6.
    if following in (0, 43, 50, 51, 60, 135, 139, 140):
        return refuse(feed, state.IPV6_EXTENSION)
    if following != PROTOCOL_UDP:
        return refuse(feed, state.TCP if following == PROTOCOL_TCP else state.OTHER_IP_PROTOCOL)
    target = at + _I6.target
    pseudo = add_around(_pair(at + _I6.source), _pair(target))
    return _open_udp(feed, at + _IPV6_SIZE, payload_size, pseudo, u8(target), u8(target + 8))


@inlined
def _open_ip(feed: int, ethertype: int, at: int, size: int) -> int:
    if ethertype == ETHERTYPE_IPV4:
        return _open_ipv4(feed, at, size)
    if ethertype == ETHERTYPE_IPV6:
        return _open_ipv6(feed, at, size)
    return refuse(feed, state.ARP if ethertype == ETHERTYPE_ARP else state.OTHER_ETHERTYPE)


@inlined
def _is_usual(at: int, size: int) -> bool:
    """Say whether the size bytes at `at` are Ethernet, IPv4 without options and a whole UDP datagram.

    True only when both checksums are there and right.  Nothing is counted here.
    """
    ip, udp = at + _ETHERNET_SIZE, at + _ETHERNET_SIZE + _IPV4_SIZE
    if size < USUAL_SIZE or u2(at + _E.ethertype) != ETHERTYPE_IPV4 or u1(ip) != PLAIN_IPV4:
        return False
    if u1(ip + _I4.protocol) != PROTOCOL_UDP or u2(ip + _I4.fragment) & FRAGMENT_BITS:
        return False
    total_size, udp_size = u2(ip + _I4.total_size), u2(udp + _U.size)
    if total_size > size - _ETHERNET_SIZE or udp_size > total_size - _IPV4_SIZE or udp_size < _UDP_SIZE:
        return False
    if load_u16(udp + _U.checksum) == 0 or not _is_right(add_around(_pair(ip), load_u32(ip + 16))):
        return False
    pseudo = add_around(load_i64(ip + _I4.source), UDP_AS_WORD + load_u16(udp + _U.size))
    return _is_right(add_around(pseudo, _sum(udp, udp_size)))


@kernel
def _open_link(feed: int, at: int, size: int, link: int) -> int:
    """Take any frame, layer by layer."""
    if link == LINK_RAW_IP:
        if size == 0:
            return refuse(feed, _SHORT_FRAME)
        return _open_ip(feed, ETHERTYPE_IPV6 if u1(at) >> 4 == 6 else ETHERTYPE_IPV4, at, size)
    if link == LINK_ETHERNET:
        header_size, ethertype_at = _ETHERNET_SIZE, _E.ethertype
    elif link == LINK_COOKED1:
        header_size, ethertype_at = _COOKED1_SIZE, _C1.ethertype
    elif link == LINK_COOKED2:
        header_size, ethertype_at = _COOKED2_SIZE, _C2.ethertype
    else:
        return refuse(feed, state.LINK_TYPE)
    if size < header_size:
        return refuse(feed, _SHORT_FRAME)
    ethertype = u2(at + ethertype_at)
    end = at + size
    at += header_size
    for _tag in range(VLAN_TAGS_MAX):
        if ethertype not in (ETHERTYPE_VLAN, ETHERTYPE_QINQ):
            break
        if end - at < _VLAN_SIZE:
            return refuse(feed, _SHORT_FRAME)
        ethertype = u2(at + _V.ethertype)
        at += _VLAN_SIZE
    if ethertype in (ETHERTYPE_VLAN, ETHERTYPE_QINQ):
        return refuse(feed, state.VLAN_DEPTH)
    return _open_ip(feed, ethertype, at, end - at)


@inlined
def open_frame(feed: int, packet: int) -> int:
    """Find the UDP payload of the PACKET; set payload_at, payload_size and line of FEED.

    Returns OK or the (counted) reason of refusal.
    """
    at, size, link = load_i64(packet + _P.frame_at), load_u32(packet + _P.size), load_u16(packet + _P.link)
    store_i64(feed + _F.line, load_u8(packet + _P.line))
    if size < load_u32(packet + _P.wire_size):
        return refuse(feed, state.SNAPPED)
    if link == LINK_UDP:  # a socket has checked the headers and knows the line
        store_i64(feed + _F.payload_at, at)
        store_i64(feed + _F.payload_size, size)
        return OK
    if link == LINK_ETHERNET and _is_usual(at, size):
        udp, group = at + USUAL_SIZE - _UDP_SIZE, MAPPED_IPV4 | u4(at + _ETHERNET_SIZE + _I4.target)
        return _accept(feed, udp, u2(udp + _U.size), 0, group)
    return _open_link(feed, at, size, link)
