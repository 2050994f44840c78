"""What the journal can say: record types (append-only) and the payloads that belong to no other part.

A payload longer than one record's 88 bytes travels in continuation records of the same type.  Payloads of
orders and of the strategy stand with their owners; readers get a table {type: record} from the daemon.
Texts ("S") are ASCII, zero-padded; digests are the first 16 bytes of a BLAKE2b-256.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nimbus import messages
from ringbuf.records import Record, record


class RecordType(IntEnum):
    """JOURNAL.type.  Append only: a number is never given to something else.

    2 (INTENT) and 14 (COMMAND) are reserved: nothing writes them.  What an intent said stands in its DECISION
    and its ORDER_OUT, CANCEL_OUT or DENIAL.
    """

    RUN_START = 1
    DENIAL = 3
    ORDER_OUT = 4
    CANCEL_OUT = 5
    EXECUTION = 6
    RAW = 7
    FILL = 8
    DECISION = 9
    STATE_CHANGE = 10
    LIMITS = 11
    NEWS = 12
    ALARM = 13
    ADJUSTMENT = 15
    CROSS = 16
    SESSION_IN = 17
    SESSION_OUT = 18
    RUN_END = 19
    LOG = 20
    RUNG = 21


_WORD: Final = 8  # payloads are multiples of a word, not of a cache line

RUN_START = record(
    "RUN_START",
    """
    i8     seed            seed of every random choice of the run
    u4     epoch           run number
    u4     layout_version  of nimbus/messages.py
    16u1   config_digest   of the whole configuration
    16u1   model_digest    of the model file, zeros = model off
    16u1   code_digest     of the hot sources
    24u1   pad             zero
    """,
    line=_WORD,
)

STATE_CHANGE = record(
    "STATE_CHANGE",
    """
    u1     old     state word before
    u1     new     state word after
    u1     source  who: 0 operator, 1 control loop, 2 risk, 3 journal, 4 watchdog, 5 executions
    5u1    pad     zero
    S16    who     name behind it
    S64    why     reason given
    """,
    line=_WORD,
)

NEWS = record(
    "NEWS_TAKEN",
    """
    i8     version      version of the symbol's news cell once it was written
    i8     item_id      number of the item
    i8     received_ns  receipt of the newest item that counts
    i8     material_ns  receipt of the newest material item
    f8     score        score at received_ns
    16u1   embedding_digest  of the embedding in the cell
    u2     locate       stock locate
    6u1    pad          zero
    """,
    line=_WORD,
)

ALARM = record(
    "ALARM",
    """
    i8     value   what was seen
    i8     limit   what is allowed
    u2     code    number of the alarm
    u2     locate  symbol it concerns, 0 = none
    u1     level   1 warning, 2 alarm, 3 critical
    3u1    pad     zero
    S64    text    one line
    """,
    line=_WORD,
)

ADJUSTMENT = record(
    "ADJUSTMENT",
    """
    i8     position_qty  shares added to the position
    i8     basis         cost added to the position
    u2     locate        stock locate
    6u1    pad           zero
    S16    who           operator
    S48    why           reason given
    """,
    line=_WORD,
)

# How the model is evaluated from a decision on; travels through a ring to the strategy loop, which journals
# it.  A word is a rung and its number of samples in one, as in DECISION.rung.
RUNG = record(
    "RUNG",
    """
    i8     decision     the first decision it holds for, 0 = the next one
    i8     events       BOOK_EVENTs that the strategy loop had taken by then
    i8     now_ns       time at which it took the change
    f8     density      share of weights that the new rung keeps
    f8     old_density  the same of the old one
    f8     gain         measured cost over the cost expected of the old setting
    f8     error        error the new setting is taken to have, in the unit of the manifest
    f8     slo_us       what an inference may cost
    u1     word         new rung and mode
    u1     old_word     old rung and mode
    u1     samples      Monte-Carlo samples of the new setting, 0 = analytic
    u1     old_samples  the same of the old one
    u1     reason       bicep/nanopt.py, Reason
    3u1    pad          zero
    """,
    line=_WORD,
)

RUN_END = record(
    "RUN_END",
    """
    i8     packets          packets read
    i8     messages         market messages applied
    i8     decisions        decisions taken
    i8     orders           orders sent
    i8     fills            executions booked
    i8     denials          intents refused by risk
    i8     refused          journal groups refused for want of room
    i8     book_state_hash  of all books
    i8     position_hash    of all positions (Orders.position_hash)
    i8     realized_pnl     1/10,000 of the currency, before fees
    i8     reason           0 = end of input, else the state that ended the run
    """,
    line=_WORD,
)

PAYLOADS: Final[dict[int, Record]] = {
    RecordType.RUN_START: RUN_START,
    RecordType.FILL: messages.FILL,
    RecordType.STATE_CHANGE: STATE_CHANGE,
    RecordType.LIMITS: messages.LIMITS,
    RecordType.NEWS: NEWS,
    RecordType.ALARM: ALARM,
    RecordType.ADJUSTMENT: ADJUSTMENT,
    RecordType.RUN_END: RUN_END,
    RecordType.RUNG: RUNG,
}
