"""Subscriptions -> a classic BPF program: which frames a packet socket lets through to its ring.

It passes IPv4 UDP datagrams to a subscribed group and port, behind up to two VLAN tags, whole or the first
of fragments (so that fragments are counted, and the later ones, which name no port, are not).
Numbers: linux/bpf_common.h and linux/filter.h.
"""

from __future__ import annotations

import ctypes
import ipaddress
import struct
from collections.abc import Sequence
from typing import Final

from nimbus.feed.decode import Subscription
from nimbus.feed.kinds import SourceError
from nimbus.feed.packet import (
    ETHERNET,
    ETHERTYPE_IPV4,
    ETHERTYPE_QINQ,
    ETHERTYPE_VLAN,
    IPV4,
    PROTOCOL_UDP,
    UDP,
    VLAN,
    VLAN_TAGS_MAX,
)

# struct sock_filter: code = class | size | mode; jt, jf: instructions to skip; k.
_LDH_ABS, _LDB_IND, _LDH_IND, _LD_IND, _LD_MEM = 0x28, 0x50, 0x48, 0x40, 0x60
_LDX_IMM, _ST, _TAX = 0x01, 0x02, 0x07
_JA, _JEQ, _JSET, _AND, _LSH, _ADD_X, _RET = 0x05, 0x15, 0x45, 0x54, 0x64, 0x0C, 0x06
_WHOLE_FRAME: Final = 262_144
_OFFSET_BITS: Final = 0x1FFF  # of IPV4.fragment
_GROUP, _PORT = 0, 1  # words of the program's scratch memory
_PART: Final = 7  # instructions that look behind one number of tags

NOTHING: Final = struct.pack("HBBI", _RET, 0, 0, 0)  # a program that lets no frame through

Instruction = tuple[int, int, int, int]


def _find_ip() -> list[Instruction]:
    """Set X to the offset of the IPv4 header, looking behind each number of tags; else drop."""
    out: list[Instruction] = []
    variants = VLAN_TAGS_MAX + 1
    for tags in range(variants):
        at = ETHERNET.at.ethertype + tags * VLAN.size
        out += [(_LDH_ABS, 0, 0, at), (_JEQ, 0, 2, ETHERTYPE_IPV4), (_LDX_IMM, 0, 0, at + 2)]
        out += [(_JA, 0, 0, (variants - tags) * _PART - 3)]  # over the rest of all parts
        out += [(_JEQ, 2, 0, ETHERTYPE_VLAN), (_JEQ, 1, 0, ETHERTYPE_QINQ), (_RET, 0, 0, 0)]
    return [*out, (_RET, 0, 0, 0)]  # a third tag


def ipv4_address(group: str) -> int:
    """Return the group as a number.  Raises SourceError when it is none of IPv4."""
    address = ipaddress.ip_address(group)
    if not isinstance(address, ipaddress.IPv4Address):
        msg = f"subscription to {group}: live sources take IPv4 groups only"
        raise SourceError(msg)
    return int(address)


def classic_filter(subscriptions: Sequence[Subscription]) -> bytes:
    """Return an array of struct sock_filter that passes what is subscribed; () = every IPv4 UDP datagram."""
    out = _find_ip()
    out += [(_LDB_IND, 0, 0, IPV4.at.protocol), (_JEQ, 1, 0, PROTOCOL_UDP), (_RET, 0, 0, 0)]
    out += [(_LDH_IND, 0, 0, IPV4.at.fragment), (_JSET, 0, 1, _OFFSET_BITS), (_RET, 0, 0, 0)]
    out += [(_LD_IND, 0, 0, IPV4.at.target), (_ST, 0, 0, _GROUP)]
    out += [(_LDB_IND, 0, 0, 0), (_AND, 0, 0, 15), (_LSH, 0, 0, 2), (_ADD_X, 0, 0, 0), (_TAX, 0, 0, 0)]
    out += [(_LDH_IND, 0, 0, UDP.at.target), (_ST, 0, 0, _PORT)]
    for wanted in subscriptions:
        tests: list[Instruction] = []
        if wanted.group is not None:
            tests += [
                (_LD_MEM, 0, 0, _GROUP),
                (_JEQ, 0, 3 if wanted.port else 1, ipv4_address(wanted.group)),
            ]
        if wanted.port:
            tests += [(_LD_MEM, 0, 0, _PORT), (_JEQ, 0, 1, wanted.port)]
        out += [*tests, (_RET, 0, 0, _WHOLE_FRAME)]
    out += [(_RET, 0, 0, 0 if subscriptions else _WHOLE_FRAME)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in out)


def program_of(instructions: bytes) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    """Return struct sock_fprog for SO_ATTACH_FILTER, and the memory it points at, to be kept till then."""
    keep = ctypes.create_string_buffer(instructions, len(instructions))
    return struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(keep)), keep
