"""ARBITER: the state of a live feed beside FEED: lines, window, gap, snapshot; its settings and counters.

Written by the loop that calls open_packet, next_message and feed_timers; everybody else only reads.  Numbers
from FEED.expected on and below `high` are either in the window or missing.  At all times

    frames of FEED = delivered + kept + heartbeats + session_ends + sum(refused)
    missing = by_line + by_rerequest + by_snapshot + lost + absent
    gaps = gaps_by_line + gaps_by_rerequest + gaps_by_snapshot + gaps_lost + open
"""

from __future__ import annotations

from typing import Final

from ringbuf.records import record

# ARBITER.phase: what is being done about the numbers that are missing.
PHASE_LIVE, PHASE_WAITING, PHASE_REREQUEST, PHASE_SNAPSHOT = 0, 1, 2, 3
PHASE_NAMES: Final = ("live", "waiting", "rerequest", "snapshot")

# ARBITER.level: the most that an open gap has needed so far.
LEVEL_LINE, LEVEL_REREQUEST, LEVEL_SNAPSHOT, LEVEL_LOST = 0, 1, 2, 3

LINES_MAX: Final = 4  # A, B, recovery, and one to spare
GAP_MESSAGES_MAX: Final = 65_536  # messages in the window, unless configured otherwise
WINDOW_MIN, WINDOW_MAX = 1_024, 1 << 22
SERVERS_MAX: Final = 4
LIVE_SEQ_MAX: Final = 1 << 48  # nine years at a message a microsecond; sums of such numbers do not overflow
SCAN_MAX: Final = 4_096  # numbers looked at for a request in one duty cycle
ROWS_MAX: Final = 64  # snapshot rows without messages that are taken in one duty cycle
BACKOFF_MAX: Final = 6  # doublings of a waiting time

LINE = record(
    "LINE",
    """
    i8  datagrams   datagrams of the session with messages
    i8  won         messages that came first on this line
    i8  lost        messages that another line had brought before
    i8  repeats     messages that this line had brought before
    i8  late        messages that came when their number was given up or forgotten
    i8  missing     numbers that this line left out, as far as it did not bring them later
    i8  leads       copies on other lines of what this line had won
    i8  lead_ns     sum of the times by which it was ahead of them
    i8  lead_ns_max largest of these
    i8  heard_ns    time of the duty cycle that saw its last datagram, heartbeats included
    i8  next        number expected next on this line, 0 = not heard in this run
    5i8 pad         zero
    """,
)

MESSAGE_BYTES_MAX: Final = 52
SLOT = record(
    "SLOT",
    f"""
    i8  seq       number of the message, 0 = empty
    i8  recv_ns   receive time of its packet
    i8  seen_ns   time of the duty cycle that stored it
    u4  size      bytes, 0 = not well-formed: takes a number and is passed over
    {MESSAGE_BYTES_MAX}u1 bytes  the message
    """,
    line=8,
)

COPY = record(
    "COPY",
    """
    i8  recv_ns  receive time of the first copy of a number
    u4  digest   of its bytes
    u2  lines    bit = line that has brought it
    u2  first    line that brought it first
    """,
    line=16,
)

SERVER = record(
    "SERVER",
    """
    16u1 address   struct sockaddr_in
    i8  requests   requests sent
    i8  failures   requests that the system refused to send
    4i8 pad        zero
    """,
)

# SNAPSHOT_ROW.kind.
ROW_BEGIN, ROW_MESSAGES, ROW_END, ROW_ABORT = 1, 2, 3, 4
ROW_BYTES_MAX: Final = 960
ROWS_CAPACITY: Final = 1_024
SNAPSHOT_ROW = record(
    "SNAPSHOT_ROW",
    f"""
    i8  kind          ROW_*
    i8  wanted        number of the wanted snapshot that this one answers
    i8  seq           end: number of the first message that is not in it
    i8  session_high  begin: the session of FEED it was found to belong to, first 8 bytes
    i8  session_low   begin: its last 2 bytes
    u4  size          messages: bytes in use
    u4  count         messages: how many
    2i8 pad           zero
    {ROW_BYTES_MAX}u1 bytes  messages, each behind its 2-byte length
    """,
)

ARBITER = record(
    "ARBITER",
    f"""
    i8  high          first number that nobody has sent or announced
    i8  absent        numbers below it that are missing now
    i8  phase         PHASE_*
    i8  busy          1 = something has to be settled when the window is drained
    i8  now_ns        time of the duty cycle
    i8  recent        first number of this run whose copies can be compared
    i8  mask          slots of the window - 1
    i8  slots         address of the window, SLOT by number & mask

    i8  copies        address of COPY rows by number & copies_mask
    i8  copies_mask   rows - 1: twice the window
    i8  open          1 = a gap is open
    i8  level         LEVEL_* it has needed
    i8  hole_first    lowest missing number, where the feed stands
    i8  hole_end      end of the range that is missing there
    i8  hole_ns       when it was seen
    i8  tail_ns       when a heartbeat, or a packet that found no room, announced the numbers before `high`
    i8  settled_ns    when the last snapshot ended: nothing is older

    i8  asked         numbers below it were requested in this round
    i8  round_ns      when the lowest hole was requested, or came nearer
    i8  next_ns       earliest time of the next request
    i8  retries       rounds without a reply that helped
    i8  progress      1 = a reply has helped in this round
    i8  server        server whose turn it is
    i8  servers       SERVER rows in use
    i8  fd            socket that sends requests, -1 = none

    i8  ring          address of the ring of SNAPSHOT_ROWs, 0 = no snapshot server
    i8  wanted        snapshots wanted so far; moves when the next one is (others read it with phase)
    i8  due_ns        when the next one will be, 0 = no delay
    i8  loading       1 = a snapshot has begun
    i8  heard_ns      when a row came last, or the snapshot was wanted
    i8  attempts      snapshots wanted since the feed was whole
    i8  row_open      1 = the messages of the front row are being delivered
    i8  hollow        1 = the books lack what came before FEED.expected: only a snapshot helps

    i8  lossy         1 = numbers were given up in this run
    i8  conflict_seq  first number of which two copies differ, 0 = none: trading must halt
    i8  gap_wait_ns   how long the other line may take
    i8  gap_timeout_ns   age at which a hole is given up
    i8  request_max   messages asked for in one request
    i8  retries_max   rounds without help after which a gap is given up
    i8  round_timeout_ns   time for a reply; doubles with each round without help
    i8  interval_ns   time between requests

    i8  snapshot_timeout_ns   silence after which a snapshot has failed
    i8  snapshot_hold_ns      delay of the second snapshot in a row; doubles
    i8  doubts        packets in a row with numbers beyond the window
    4i8 pad           zero

    i8  kept          datagrams copied into the window
    i8  missing       numbers that were not there when their successors were, each time
    i8  by_line       of these: brought by a line after all
    i8  by_rerequest  brought by a reply
    i8  by_snapshot   covered by a snapshot
    i8  lost          given up
    i8  gaps          times that a gap opened
    i8  gaps_by_line  closed by the lines alone
    i8  gaps_by_rerequest   closed with the help of replies
    i8  gaps_by_snapshot    closed with the help of a snapshot
    i8  gaps_lost     closed by giving numbers up
    i8  overflow      messages pushed out of a full window
    i8  superseded    messages in the window that a snapshot had covered
    i8  requests      requests sent
    i8  unsent        requests that could not be sent
    i8  retried       rounds begun again
    i8  replies       datagrams on the recovery line
    i8  snapshots     snapshots loaded
    i8  snapshots_failed   begun or wanted, and not ended
    i8  snapshot_messages  messages of snapshots
    i8  cancelled     snapshots that were not needed any more
    i8  stale_rows    rows of a snapshot that nobody waits for
    i8  conflicts     copies of a number that differ from the first
    i8  pad2          zero

    {LINES_MAX * LINE.size}u1 lines      LINE rows
    {SERVERS_MAX * SERVER.size}u1 server_rows  SERVER rows
    i8  request_first    request that is due: first number, 0 = none
    i8  request_count    its messages
    6i8 pad3          zero
    64u1 request      its MoldUDP64 packet
    """,
)
# The counters of ARBITER, in the order they are shown.
LIVE_COUNTERS: Final = ARBITER.at._fields[ARBITER.at._fields.index("kept") : ARBITER.at._fields.index("pad2")]
LINE_COUNTERS: Final = LINE.at._fields[:-3]  # without heard_ns, next, pad
