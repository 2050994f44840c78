"""The FIX session as a table: (state, event) -> actions and the next state.

Both drivers of the engine use it: the Python session (session.py, both roles) and the coroutine beside the
transport kernel (initiator.py).  The kernel names its events by the numbers below.  A pair that is not in the
table closes the connection.

States: AWAITING_LOGON an acceptor's connection is open; LOGON_SENT an initiator's; ACTIVE logged on;
RECOVERING logged on, a gap in the incoming numbers is open; LOGOUT_SENT we log out, in peace; CLOSING we sent
Logout because of what the peer did, nothing else of it counts; CLOSED the connection is, or is to be, closed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class State(IntEnum):
    """Where a session stands."""

    CLOSED = 0
    AWAITING_LOGON = 1
    LOGON_SENT = 2
    ACTIVE = 3
    RECOVERING = 4
    LOGOUT_SENT = 5
    CLOSING = 6


class Event(IntEnum):
    """What can happen to a session.  The number of a message is the expected one unless it says otherwise."""

    NONE = 0
    # The connection.
    ACCEPTED = 1
    CONNECTED = 2
    DISCONNECTED = 3
    # Messages.
    LOGON = 10
    LOGON_HIGH = 11  # its number is above the expected one
    LOGON_LOW = 12
    LOGON_RESET = 13  # carries ResetSeqNumFlag(141)=Y, as agreed
    LOGON_BAD = 14  # its contents are not what was agreed
    HEARTBEAT = 15
    TEST_REQUEST = 16
    RESEND_REQUEST = 17  # its number is expected, or was used before: it is answered all the same
    RESEND_REQUEST_HIGH = 18
    LOGOUT = 19  # whatever its number
    GAP_FILL = 20
    RESET = 21  # SequenceReset without GapFillFlag, whatever its number
    APPLICATION = 22
    TOO_HIGH = 23
    TOO_LOW = 24
    SEEN = 25  # PossDupFlag(43)=Y, and its number was processed before
    GARBLED = 26
    # Offences.
    BAD_BEGIN_STRING = 30
    BAD_COMP_ID = 31
    BAD_TIME = 32  # SendingTime(52) unreadable or too far from our clock
    BAD_TIME_TAKEN = 33  # the same of an execution, which was processed (S37)
    BAD_MSG_TYPE = 34
    NO_NUMBER = 35  # MsgSeqNum(34) absent or unreadable
    NO_ORIG_TIME = 36  # 43=Y, number below the expected one, no OrigSendingTime(122)
    LATE_ORIG_TIME = 37  # the same, 122 later than 52
    RESET_LOW = 38  # NewSeqNo(36) below the expected number, or unreadable
    OVERSIZED = 39  # an application message too long for a WIRE record
    IN_USE = 40  # Logon for CompIDs that another connection holds
    # Gaps and timers.
    GAP_FILLED = 50
    RESEND_TIMEOUT = 51
    LOGON_TIMEOUT = 52
    LOGOUT_TIMEOUT = 53
    HEARTBEAT_DUE = 54
    SILENCE = 55  # nothing received for 1.2 x HeartBtInt
    DEAD = 56  # nothing received for 2.4 x HeartBtInt
    CHUNK_FILLED = 57  # the range asked for has come, the gap reaches further (S35)
    GAP_LOST = 58  # asked several times, and the gap is still open
    UNSETTLED = 59  # the TestRequest behind our Logon was not answered
    # Ours.
    STOP = 60


class Row(NamedTuple):
    """What to do, and the state afterwards."""

    actions: tuple[str, ...]
    state: State


# "." = nothing to do, or the same state.  A heading names the states that its lines belong to.
GRID: Final = """
CLOSED:
    ACCEPTED             .                         AWAITING_LOGON
    CONNECTED            send_logon                LOGON_SENT
    DISCONNECTED         .                         .
    STOP                 .                         .

AWAITING_LOGON LOGON_SENT:
    LOGON_TIMEOUT        timed_out close           CLOSED

AWAITING_LOGON:
    LOGON                answer_logon              ACTIVE
    LOGON_HIGH           answer_logon ask          RECOVERING
    LOGON_RESET          reset answer_logon        ACTIVE
    LOGON_LOW            log_out                   CLOSING
    STOP                 close                     CLOSED

LOGON_SENT:
    LOGON                establish probe           ACTIVE
    LOGON_HIGH           establish ask probe       RECOVERING
    LOGON_RESET          establish probe           ACTIVE
    LOGON_LOW            hold log_out              CLOSING
    LOGON_BAD            log_out                   CLOSING
    LOGOUT               refused close             CLOSED
    BAD_BEGIN_STRING     log_out                   CLOSING
    BAD_COMP_ID          log_out                   CLOSING
    BAD_TIME             log_out                   CLOSING
    HEARTBEAT            log_out                   CLOSING
    TEST_REQUEST         log_out                   CLOSING
    RESEND_REQUEST       log_out                   CLOSING
    RESEND_REQUEST_HIGH  log_out                   CLOSING
    GAP_FILL             log_out                   CLOSING
    RESET                log_out                   CLOSING
    APPLICATION          log_out                   CLOSING
    TOO_HIGH             log_out                   CLOSING
    STOP                 log_out                   LOGOUT_SENT

ACTIVE RECOVERING:
    LOGON_RESET          reset answer_logon        ACTIVE
    LOGON_BAD            log_out                   CLOSING
    HEARTBEAT            settle                    .
    TEST_REQUEST         answer_test               .
    RESEND_REQUEST       resend                    .
    LOGOUT               answer_logout close       CLOSED
    GAP_FILL             .                         .
    RESET                .                         .
    APPLICATION          deliver                   .
    TOO_LOW              log_out                   CLOSING
    SEEN                 .                         .
    GARBLED              .                         .
    BAD_BEGIN_STRING     log_out                   CLOSING
    BAD_COMP_ID          reject log_out            CLOSING
    BAD_TIME             reject log_out            CLOSING
    BAD_TIME_TAKEN       log_out                   CLOSING
    BAD_MSG_TYPE         reject                    .
    NO_NUMBER            log_out                   CLOSING
    NO_ORIG_TIME         reject                    .
    LATE_ORIG_TIME       reject log_out            CLOSING
    RESET_LOW            reject                    .
    OVERSIZED            alarm                     .
    HEARTBEAT_DUE        heartbeat                 .
    SILENCE              test                      .
    DEAD                 timed_out close           CLOSED
    UNSETTLED            timed_out log_out         CLOSING
    STOP                 log_out                   LOGOUT_SENT

ACTIVE:
    TOO_HIGH             ask                       RECOVERING
    RESEND_REQUEST_HIGH  resend ask                RECOVERING

RECOVERING:
    TOO_HIGH             .                         .
    RESEND_REQUEST_HIGH  resend                    .
    GAP_FILLED           recovered probe           ACTIVE
    CHUNK_FILLED         ask                       .
    RESEND_TIMEOUT       ask                       .
    GAP_LOST             log_out                   CLOSING

LOGOUT_SENT:
    LOGON_HIGH           .                         .
    HEARTBEAT            .                         .
    TEST_REQUEST         .                         .
    RESEND_REQUEST       resend                    .
    RESEND_REQUEST_HIGH  resend                    .
    GAP_FILL             .                         .
    RESET                .                         .
    APPLICATION          deliver                   .
    TOO_HIGH             .                         .
    SEEN                 .                         .
    GARBLED              .                         .
    BAD_MSG_TYPE         .                         .
    OVERSIZED            alarm                     .
    GAP_FILLED           .                         .

CLOSING:
    LOGON                .                         .
    LOGON_HIGH           .                         .
    LOGON_LOW            .                         .
    LOGON_BAD            .                         .
    HEARTBEAT            .                         .
    TEST_REQUEST         .                         .
    RESEND_REQUEST       .                         .
    RESEND_REQUEST_HIGH  .                         .
    GAP_FILL             .                         .
    RESET                .                         .
    APPLICATION          .                         .
    TOO_HIGH             .                         .
    TOO_LOW              .                         .
    SEEN                 .                         .
    GARBLED              .                         .
    BAD_BEGIN_STRING     .                         .
    BAD_COMP_ID          .                         .
    BAD_TIME             .                         .
    BAD_TIME_TAKEN       .                         .
    BAD_MSG_TYPE         .                         .
    NO_NUMBER            .                         .
    NO_ORIG_TIME         .                         .
    LATE_ORIG_TIME       .                         .
    RESET_LOW            .                         .
    OVERSIZED            alarm                     .
    GAP_FILLED           .                         .

LOGOUT_SENT CLOSING:
    STOP                 .                         .
    LOGOUT               close                     CLOSED
    LOGOUT_TIMEOUT       close                     CLOSED

AWAITING_LOGON LOGON_SENT ACTIVE RECOVERING LOGOUT_SENT CLOSING:
    DISCONNECTED         lost                      CLOSED
"""


def _table() -> dict[tuple[State, Event], Row]:
    table: dict[tuple[State, Event], Row] = {}
    states: list[State] = []
    for line in filter(str.strip, GRID.splitlines()):
        if line.endswith(":"):
            states = [State[name] for name in line[:-1].split()]
            continue
        name, *actions, after = line.split()
        for state in states:
            pair = (state, Event[name])
            assert pair not in table, f"twice in the table: {pair}"
            done = () if actions == ["."] else tuple(actions)
            table[pair] = Row(done, state if after == "." else State[after])
    return table


TABLE: Final = _table()
REFUSED: Final = Row(("fault", "close"), State.CLOSED)  # a pair that is not in the table


def row_of(state: State, event: Event) -> Row:
    """Return what an event does in a state."""
    return TABLE.get((state, event), REFUSED)
