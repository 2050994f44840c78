"""Every record that travels between agents, and every cell and table row that several agents read.

Prices are int64 in 1/10,000 of the currency (`_px`), quantities int64 shares (`_qty`), times int64
nanoseconds (`_ns`): Unix UTC, but `exch_ns` is since midnight of the exchange's day.  A record is never
changed after it has been published.  The tables below are the only declaration; docs/messages.md is
generated from them, and a change here raises LAYOUT_VERSION.
"""

from __future__ import annotations

from typing import Final

from ringbuf.records import record

LAYOUT_VERSION: Final = 2

# Sides, as FIX and ITCH spell them.
BUY, SELL = ord("B"), ord("S")

# PACKET.link: how the bytes at frame_at are framed.
LINK_ETHERNET, LINK_COOKED1, LINK_COOKED2, LINK_RAW_IP, LINK_ITCH_FILE = 1, 2, 3, 4, 5
LINK_UDP = 6  # the payload of a UDP datagram, without any header; PACKET.line says the line

LINE_RECOVERY = 2  # PACKET.line of the replies of a rerequest server; 0 = A, 1 = B

# PACKET.stamp: who stamped recv_ns.
STAMP_NONE, STAMP_FILE, STAMP_KERNEL, STAMP_NIC, STAMP_USER = 0, 1, 2, 3, 4

# BOOK_EVENT.flags (bits).
TOP_CHANGED, TRADED, STATE_CHANGED, DEPTH_CHANGED = 1, 2, 4, 8

# Book status (bits; 0 = good). No order is decided on a book whose status is not 0.
BOOK_STALE, BOOK_CROSSED, BOOK_ONE_SIDED, BOOK_HALTED, BOOK_INCOMPLETE, BOOK_FAULTY = 1, 2, 4, 8, 16, 32

# ContradictionEngine tags.
TAG_NONE, TAG_OVERHYPE, TAG_UNDERHYPE = 0, 1, 2
TAG_NAMES: Final = ("none", "overhype", "underhype")

INTENT_NEW, INTENT_CANCEL = 1, 2  # INTENT.kind
TIF_DAY, TIF_IOC = 0, 3  # time in force: the FIX codes as small integers

# FILL.kind: what the orders agent tells the strategy.
FILL_ACCEPTED, FILL_TRADE, FILL_CANCELLED, FILL_REJECTED, FILL_DENIED, FILL_CANCEL_REJECTED = 1, 2, 3, 4, 5, 6

# State words of the daemon (docs/operations.md).
DISARMED, PAPER, LIVE, REDUCING, HALTED, KILLED = 0, 1, 2, 3, 4, 5
STATE_NAMES: Final = ("DISARMED", "PAPER", "LIVE", "REDUCING", "HALTED", "KILLED")

PACKET = record(
    "PACKET",
    """
    i8  frame_at    address of the first byte of the frame
    i8  recv_ns     receive time
    i8  number      frames from this source so far, from 1
    u4  size        bytes at frame_at
    u4  wire_size   bytes the frame had on the wire
    u2  link        LINK_*: what the first byte belongs to
    u1  stamp       STAMP_*: who stamped recv_ns
    u1  line        feed line: 0 = A, 1 = B, 2 = replies of a rerequest server
    28u1 pad        zero
    """,
)

TOP_OF_BOOK = record(
    "TOP_OF_BOOK",
    """
    i8  update      book update number of this symbol, from 1; 0 = nothing yet
    i8  exch_ns     exchange time of the message that caused it
    i8  recv_ns     receive time of its packet
    i8  bid_px      best bid, 0 = side is empty
    i8  ask_px      best ask, 0 = side is empty
    i8  bid_qty     shares at bid_px
    i8  ask_qty     shares at ask_px
    u2  locate      stock locate
    u1  state       trading state: T trading, H halted, P paused, Q quotation only; 0 = not told
    u1  status      BOOK_* bits
    u1  short_sale  Reg SHO price test: 0 none, 1 intraday restriction, 2 still in effect
    u1  cause       ITCH type of the message that caused it
    2u1 pad         zero
    """,
)

DEPTH_LEVELS: Final = 10
DEPTH_LEVEL = record(
    "DEPTH_LEVEL",
    """
    i8  px          price, 0 = no such level
    i8  qty         shares at the price
    i8  count       orders at the price
    i8  pad         zero
    """,
    line=32,
)
DEPTH = record(
    "DEPTH",
    f"""
    i8  update      update number of the TOP_OF_BOOK of the same state
    i8  exch_ns     exchange time of the last message applied
    i8  recv_ns     receive time of its packet
    u2  locate      stock locate
    u1  state       trading state
    u1  status      BOOK_* bits
    36u1 pad        zero
    {DEPTH_LEVELS * 4}i8  bids  best first: px, qty, count, 0 of each level
    {DEPTH_LEVELS * 4}i8  asks  best first
    """,
)

BOOK_EVENT = record(
    "BOOK_EVENT",
    """
    i8  seq         MoldUDP64 sequence number of the message
    i8  exch_ns     exchange time
    i8  recv_ns     receive time of the packet
    i8  update      update number of the symbol's top of book
    i8  bid_px      best bid after the message, 0 = empty
    i8  ask_px      best ask
    i8  bid_qty     shares at bid_px
    i8  ask_qty     shares at ask_px
    i8  bid_depth_qty  shares on the five best bid levels
    i8  ask_depth_qty  shares on the five best ask levels
    i8  trade_px    price of the print, 0 = no trade
    i8  trade_qty   shares of the print
    i8  order_ref   order reference of the message, 0 = none
    u2  locate      stock locate
    u1  cause       ITCH type
    u1  flags       TOP_CHANGED, TRADED, STATE_CHANGED, DEPTH_CHANGED
    u1  state       trading state
    u1  status      BOOK_* bits
    u1  short_sale  as in TOP_OF_BOOK
    u1  resting_side  side of the resting order that traded (B, S), 0 = not known; the aggressor is the other
    i8  run         times the books had begun anew; what was known of a symbol is void when it rises
    i8  pad         zero
    """,
)

CHANGE = record(
    "CHANGE",
    """
    i8  seq         MoldUDP64 sequence number
    i8  exch_ns     exchange time
    i8  order_ref   reference of the order that was added, executed, cancelled, deleted or replaced
    i8  px          its price
    i8  qty         shares taken away (executed, cancelled, deleted, replaced) or added
    i8  left_qty    shares of that order that remain
    i8  stamp       arrival stamp of that order: smaller = earlier in the queue of its price
    i8  new_ref     replace: the new reference
    i8  new_px      replace: the new price
    i8  new_qty     replace: the new shares
    i8  new_stamp   add, replace: the stamp given
    i8  trade_px    price of the print (execute, trade, cross), 0 = no print
    i8  trade_qty   shares of the print
    u2  locate      stock locate
    u1  cause       ITCH type
    u1  side        B or S, of the resting order
    u1  flags       as in BOOK_EVENT
    u1  printable   1 when the execution prints
    u1  status      status of the book after it
    17u1 pad        zero
    """,
)

NEWS_DIMENSIONS: Final = 768
NEWS = record(
    "NEWS",
    f"""
    i8  received_ns    receipt of the newest item that counts, 0 = no news ever
    i8  material_ns    receipt of the newest material item
    i8  item_id        number of that material item
    i8  items          items folded into this record so far
    f8  score          decayed, relevance-weighted score at received_ns, -1 .. 1
    f8  mean           the symbol's own history of scores: mean
    f8  deviation      and standard deviation (> 0)
    i8  half_life_ns   the score halves in this time
    {NEWS_DIMENSIONS}f4 embedding   weighted embedding
    """,
)

INTENT = record(
    "INTENT",
    """
    i8  decision    decision number, from 1; 0 = an operator's
    i8  cause_seq   sequence number of the market message behind it
    i8  exch_ns     exchange time of that message
    i8  recv_ns     receive time of its packet
    i8  px          limit price
    i8  qty         shares
    f8  mean        expected return behind it, NaN is refused by R24
    f8  sigma       its uncertainty (standard deviation)
    i8  order       cancel: order number to cancel
    i8  book_update update number of the top of book it was decided on
    u2  locate      stock locate
    u2  strategy    strategy id
    u1  kind        INTENT_NEW, INTENT_CANCEL
    u1  side        B or S
    u1  tif         TIF_DAY, TIF_IOC
    u1  tag         TAG_*
    5i8 pad         zero
    """,
)

# DECISION.expert when no expert answered: not asked (model off), or refused (then rung is minus the status).
EXPERT_OFF, EXPERT_FAULT = 255, 254

DECISION = record(
    "DECISION",
    """
    i8  decision    decision number, from 1
    i8  cause_seq   sequence number of the market message behind it
    i8  exch_ns     exchange time of that message
    i8  now_ns      time of the duty cycle
    i8  book_update update number of the top of book it was decided on, 0 = on time alone
    i8  news_item   newest material news item, 0 = none
    i8  news_version  version of the news cell that was read, 0 = no news yet
    i8  features_digest  CRC32C of the even (low half) and odd of the 32 raw features, not complemented
    f8  mean        expected return, NaN = no answer
    f8  epistemic   variance of the samples' means
    f8  aleatoric   mean of the samples' variances
    i8  px          limit price of the order, 0 = none
    i8  qty         shares of the order, 0 = none
    u4  warm        bit = feature is warm
    u4  news_age_ms age of the newest material item, cut at 2^32 - 1; that = no news
    u2  locate      stock locate
    u2  mask_index  row of the mask bank
    u2  bank        number of the mask bank, its low 16 bits
    u1  tag         TAG_*
    u1  tag_reason  strategy/contradiction.py, REASONS
    u1  expert      tag whose expert answered, or EXPERT_*
    u1  agree       samples whose sign is the mean's, of 32
    u1  action      0 = none, else INTENT_*
    u1  reason      strategy/trading_model, REASONS
    u1  side        B or S of the order, 0 = none
    u1  status      BOOK_* bits
    u1  state       trading state
    u1  rung        rung of the ladder
    """,
)

FILL = record(
    "FILL",
    """
    i8  decision    decision number of the order
    i8  order       order number (slot of the pool)
    i8  now_ns      time of the event
    i8  last_px     price of the trade
    i8  last_qty    shares of the trade
    i8  leaves_qty  shares still open
    i8  position_qty  signed position of the symbol afterwards
    u2  locate      stock locate
    u1  kind        FILL_*
    u1  side        B or S
    u2  reason      risk reason of a denial, 0 = none
    u2  strategy    strategy id
    """,
)

LIMITS = record(
    "LIMITS",
    """
    i8  version         number of this set of limits, from 1
    i8  qty_max         R3: shares in one order
    i8  lot_qty         R3: shares are a multiple of this, but for an order that closes all that is held
    i8  notional_max    R4: px x qty of one order
    i8  collar_bp       R5: distance from the reference price, basis points
    i8  rate_per_s      R9: orders a second
    i8  rate_burst      R9: size of the token bucket
    i8  position_max    R11: absolute position with open orders, shares
    i8  open_orders_max R15: live and in-flight orders, all symbols
    i8  symbol_open_orders_max  R15: the same for one symbol
    i8  stale_after_ns  R19: age of the last book update
    f8  sigma_max       R24: largest uncertainty allowed
    4i8 pad             zero
    """,
)

POSITION = record(
    "POSITION",
    """
    i8  position_qty   signed shares held
    i8  cash           - sum(side x qty x px) of all fills, 1/10,000 of the currency
    i8  basis          cost of the open position, same sign as it
    i8  open_buy_qty   leaves of live buy orders
    i8  open_sell_qty  leaves of live sell orders
    i8  bought_qty     shares bought so far
    i8  sold_qty       shares sold so far
    i8  mark_px2       twice the mark price, 0 = none yet
    i8  fills          number of fills
    i8  open_orders    live orders of the symbol
    i8  last_ns        time of the last change
    5i8 pad            zero
    """,
)

# Order states: the last OrdStatus(39) of the venue as its FIX character, plus pending flags.
ORDER_FREE = 0
PENDING_NEW, PENDING_CANCEL, IN_DOUBT = 1, 2, 4

ORDER = record(
    "ORDER",
    """
    i8  number        order number = slot of the pool, from 1
    i8  decision      decision behind it
    i8  cause_seq     market message behind it
    i8  px            limit price
    i8  qty           shares ordered
    i8  cum_qty       shares filled
    i8  leaves_qty    shares open
    i8  cost          sum of qty x px of its fills
    i8  created_ns    when the intent was taken
    i8  sent_ns       when the bytes were handed over
    i8  updated_ns    when the last report changed it
    i8  venue_id      hash of the venue's OrderID, 0 = none yet
    u2  locate        stock locate
    u2  strategy      strategy id
    u1  side          B or S
    u1  tif           TIF_*
    u1  status        OrdStatus(39) as its character, 0 = slot never used
    u1  pending       PENDING_NEW, PENDING_CANCEL, IN_DOUBT bits
    u1  tag           TAG_* of the decision
    7u1 pad           zero
    16u1 cl_ord_id    ClOrdID(11)
    16u1 cancel_id    ClOrdID of the cancel request, zeros = none
    i8  book_update   update number it was decided on
    5i8 pad2          zero
    """,
)

WIRE_BYTES_MAX: Final = 480
WIRE = record(
    "WIRE",
    f"""
    i8  due_ns      earliest time at which the other side may read it
    i8  order       order number it belongs to, 0 = none
    u4  size        bytes used
    u4  pad         zero
    i8  pad2        zero
    {WIRE_BYTES_MAX}u1 bytes  one FIX message
    """,
)

# SESSION_OUT.command: what the control loop wants of the connection.
OUT_NUMBERS, OUT_OPEN, OUT_SEND, OUT_ESTABLISH, OUT_RELEASE, OUT_CLOSE = 1, 2, 3, 4, 5, 6

SESSION_BYTES_MAX: Final = 960
SESSION_IN = record(
    "SESSION_IN",
    f"""
    i8  event       Event of nimbus/fix/table.py
    i8  now_ns      time of the duty cycle
    i8  seq         MsgSeqNum of the message, -1 = none
    i8  next_in     number expected once this message has been handled
    i8  highest     highest number received so far
    i8  value       DISCONNECTED: errno, 0 = closed by the peer or by us; else 0
    u4  size        bytes of the message
    u4  kept_size   how many of them stand in bytes
    i8  pad         zero
    {SESSION_BYTES_MAX}u1 bytes  one FIX message
    """,
)
SESSION_OUT = record(
    "SESSION_OUT",
    f"""
    i8  command     OUT_NUMBERS, OUT_OPEN, OUT_SEND, OUT_ESTABLISH, OUT_RELEASE, OUT_CLOSE
    i8  fd          OUT_OPEN: the connected socket
    i8  next_in     OUT_NUMBERS: next incoming number
    i8  next_out    OUT_NUMBERS: next outgoing number
    i8  seq         OUT_SEND: number of a message sent again (GapFill), 0 = the next number
    i8  new_seq     OUT_SEND of a GapFill: NewSeqNo, 0 = the next number at the time of sending
    u4  msg_type    OUT_SEND: one or two characters, the first in the lowest byte
    u4  size        bytes of body
    i8  pad         zero
    {SESSION_BYTES_MAX}u1 body  fields after the header, each with its SOH
    """,
)

JOURNAL_PAYLOAD_SIZE: Final = 88
JOURNAL = record(
    "JOURNAL",
    f"""
    u4  crc32c      over bytes 4-127, written last
    u1  magic       0xCF
    u1  version     layout version
    u1  stream      producing loop
    u1  part        continuation number; top bit = last of its group
    u2  type        journal record type, append-only
    u2  payload_size  bytes of the payload in use
    u4  epoch       run number
    i8  seq         dense per stream, from 1
    i8  mono_ns     monotonic time; in replay the packet's
    i8  wall_ns     Unix time; in replay the packet's
    {JOURNAL_PAYLOAD_SIZE}u1 payload  by type, zero-padded
    """,
)

RECORDS: Final = (
    PACKET, TOP_OF_BOOK, DEPTH_LEVEL, DEPTH, BOOK_EVENT, CHANGE, NEWS, INTENT, DECISION, FILL, LIMITS,
    POSITION, ORDER, WIRE, SESSION_IN, SESSION_OUT, JOURNAL,
)  # fmt: skip
