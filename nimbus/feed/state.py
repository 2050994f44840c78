"""FEED: the state of one feed, its counters, and the reasons for which a frame is not delivered.

Written by the loop that calls open_packet and next_message; everybody else only reads the counters.
`frames = delivered + heartbeats + session_ends + sum(refused)` holds after every packet of a file; of a live
feed `+ ARBITER.kept`.
"""

from __future__ import annotations

from typing import Final

from ringbuf.jit import inlined
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import record

OK: Final = 1

# Why a frame was refused or skipped; the status a kernel returns is minus the place in this tuple.
REASONS: Final = (
    "none",
    "snapped",  # the capture cut the frame
    "link_type",  # framing we do not know
    "short_frame",  # ends inside a link, IP or UDP header
    "vlan_depth",  # more than two VLAN tags
    "arp",
    "other_ethertype",
    "ip_version",  # neither 4 nor 6, or not what the link layer said
    "ip_header",  # header length below 20 bytes
    "ip_length",  # total length against the header and the bytes at hand
    "fragment",  # the first one included: half a datagram is never parsed
    "ipv6_extension",
    "tcp",
    "other_ip_protocol",
    "udp_length",
    "checksum",  # strict only
    "not_subscribed",
    "short_datagram",  # shorter than a MoldUDP64 header
    "framing",  # message blocks do not fit into the datagram
    "foreign",  # another session or another protocol
    "duplicate",  # every message was seen before
    "far_ahead",  # live only: number beyond the window, not believed yet
)
(
    _NONE, SNAPPED, LINK_TYPE, SHORT_FRAME, VLAN_DEPTH, ARP, OTHER_ETHERTYPE, IP_VERSION, IP_HEADER,
    IP_LENGTH, FRAGMENT, IPV6_EXTENSION, TCP, OTHER_IP_PROTOCOL, UDP_LENGTH, CHECKSUM, NOT_SUBSCRIBED,
    SHORT_DATAGRAM, FRAMING, FOREIGN, DUPLICATE, FAR_AHEAD,
) = (-reason for reason in range(len(REASONS)))  # fmt: skip

# FEED.mode: how messages are numbered.
MODE_NONE, MODE_SEQUENCED, MODE_UNSEQUENCED, MODE_FILE = 0, 1, 2, 3

WRONG_RUN_MAX: Final = 64
SUBSCRIPTIONS_MAX: Final = 16
SUBSCRIPTION = record(
    "SUBSCRIPTION",
    """
    i8  group_high  first 8 bytes of the IPv6 group; 0 for IPv4
    i8  group_low   last 8 bytes; IPv4 as ::ffff:a.b.c.d; both 0 = any group
    i8  port        UDP port, 0 = any
    i8  line        feed line: 0 = A, 1 = B
    """,
    line=32,
)

AGREE_MAX: Final = 16  # largest number of packets that may be asked to agree on a new run
HELD_BYTES_MAX: Final = 65_536  # a UDP datagram is never longer
HELD = record(
    "HELD",
    f"""
    i8  size        bytes used
    i8  first       sequence number of the first message
    i8  count       messages
    i8  last_ns     exchange time of its last well-formed message, -1 = none
    4i8 pad         zero
    {HELD_BYTES_MAX}u1 bytes  the datagram, kept until the new run is believed or dropped
    """,
)

FEED = record(
    "FEED",
    f"""
    i8  at            address of the next message block
    i8  left          blocks of the open datagram not looked at yet
    i8  next_seq      sequence number of the block at `at`
    i8  seq           sequence number of the message given last
    i8  recv_ns       receive time of the open packet
    i8  run           rises by one whenever the books must start empty; 0 = nothing heard yet
    i8  stale         1 = messages are missing since this run began
    i8  incomplete    1 = this run was joined after its first message

    i8  payload_at    address of the datagram's payload
    i8  payload_size  its bytes
    i8  line          feed line of the open packet
    i8  mode          MODE_*
    i8  session_high  first 8 bytes of the session
    i8  session_low   its last 2 bytes
    i8  expected      next sequence number
    i8  ended         1 = end of session was seen

    i8  left_high     the session that was left for the present one
    i8  left_low      its last 2 bytes
    i8  candidate_high   session of the packets that may begin a new run
    i8  candidate_low    its last 2 bytes
    i8  candidate_next   sequence number that would agree with them
    i8  candidates    how many agree so far; their datagrams are held
    i8  held_at       address of AGREE_MAX HELD records
    i8  held_next     next held datagram to deliver

    i8  held_left     held datagrams still to deliver
    i8  agree         packets that must agree before a new run is believed
    i8  strict        1 = a wrong checksum is a refusal
    i8  start_at_one  1 = a new session is expected to begin with message 1
    i8  subscriptions rows of the subscription table in use, 0 = take everything
    i8  wrong_run     messages of unknown type or wrong length in a row
    i8  arbiter       address of the ARBITER of a live feed, 0 = a file: nothing can be repaired
    i8  pad           zero

    i8  first_ns      exchange time of the first well-formed message of the datagram in hand, -1 = none
    i8  last_ns       of its last
    i8  newest_ns     newest exchange time delivered in this run, -1 = none
    i8  heard_ns      receive time at which the present session was last alive
    4i8 pad3          zero

    i8  frames        packets offered
    i8  delivered     packets of which at least one message block was handed on
    i8  heartbeats    MoldUDP64 packets with count 0
    i8  session_ends  MoldUDP64 packets with count 0xFFFF
    i8  gaps          times a number was above the expected one
    i8  missing       messages in those gaps
    i8  overlaps      packets that began with known messages and went on with new ones
    i8  sessions      sessions followed so far
    i8  restarts      times the same session began again at a lower number
    i8  unsequenced   messages delivered in file order for want of a session and numbers
    i8  trailing      packets with bytes behind the last block
    i8  ip_checksum_zero  IPv4 headers without a checksum
    i8  ip_checksum_bad   IPv4 headers with a wrong one
    i8  udp_checksum_zero datagrams without a checksum
    i8  udp_checksum_bad  datagrams with a wrong one
    i8  blocks        message blocks in well-framed packets, before sequencing
    i8  empty_blocks  of these: blocks of length 0, which are legal
    i8  wrong_protocol  runs of {WRONG_RUN_MAX} messages that did not fit the table
    6i8 pad2          zero
    24i8 refused      frames by reason, see REASONS
    256i8 types       well-formed messages by type, before sequencing
    256i8 unknown     messages of a type that is not in the table, by first byte
    256i8 wrong       messages of a known type with another length, by first byte
    {SUBSCRIPTIONS_MAX * 4}i8 subscription  SUBSCRIPTION rows
    """,
)
# The counters of FEED that are one word each, in the order they are shown.
COUNTERS: Final = (
    "frames", "delivered", "heartbeats", "session_ends", "gaps", "missing", "overlaps", "sessions",
    "restarts", "unsequenced", "trailing", "ip_checksum_zero", "ip_checksum_bad", "udp_checksum_zero",
    "udp_checksum_bad", "blocks", "empty_blocks", "wrong_protocol",
)  # fmt: skip

_F = FEED.at


@inlined
def bump(counter: int, by: int) -> None:
    """Add `by` to the counter at this address (one writer)."""
    store_i64(counter, load_i64(counter) + by)


@inlined
def refuse(feed: int, reason: int) -> int:
    """Count a frame that is not delivered; return the reason, a negative status."""
    bump(feed + _F.refused - 8 * reason, 1)
    return reason
