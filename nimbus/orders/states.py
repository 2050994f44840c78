"""Order states as a table: what an ExecutionReport of a type does to an order that shows a status.

A status is shown; quantities are booked, and only from an execution with an unseen ExecID.  Cells:

    .      nothing changes
    ack    the order is acknowledged: pending-new ends, the reported status is shown
    book   LastQty at LastPx is booked, the reported status is shown
    end    nothing stays open, the reported status is shown
    show   the reported status is shown
    late   booked, and an alarm: the order had ended (X4), or is filled (X6)
    -      refused: journaled, counted, alarm; nothing changes

A type that has no column (replace, bust, correction, restatement, status answers: Appendix D, later) is
refused in the same way.
"""

from __future__ import annotations

from typing import Final

from ringbuf.jit import inlined
from ringbuf.memory import load_u8
from ringbuf.segment import Segment

# OrdStatus(39), and ExecType(150) where the character is the same.
NEW, PARTIALLY_FILLED, FILLED, CANCELED = ord("0"), ord("1"), ord("2"), ord("4")
PENDING_CANCEL_STATUS, REJECTED, PENDING_NEW_STATUS, EXPIRED = ord("6"), ord("8"), ord("A"), ord("C")
EXEC_TRADE: Final = ord("F")

KNOWN_CELL, ACK, BOOK, END, SHOW, ALARM = 1, 2, 4, 8, 16, 32  # bits of an action; 0 = refused
_ACTIONS: Final = {
    ".": KNOWN_CELL,
    "ack": KNOWN_CELL | ACK | SHOW,
    "book": KNOWN_CELL | BOOK | SHOW,
    "end": KNOWN_CELL | END | SHOW,
    "show": KNOWN_CELL | SHOW,
    "late": KNOWN_CELL | BOOK | ALARM,
    "-": 0,
}

# Rows: the status shown.  Columns: ExecType of the report.
GRID: Final = """
     A     0     F     4     8     C     6
A    .     ack   book  end   end   end   show
0    .     .     book  end   end   end   show
1    .     .     book  end   -     end   show
6    .     ack   book  end   end   end   .
2    .     .     late  -     -     -     .
4    .     .     late  .     -     -     .
8    .     -     late  -     .     -     .
C    .     .     late  -     -     .     .
"""

STATUS_NAMES: Final = {
    "0": "new", "1": "partially_filled", "2": "filled", "4": "canceled", "6": "pending_cancel",
    "8": "rejected", "A": "pending_new", "C": "expired",
}  # fmt: skip
_WIDTH: Final = 128  # characters are ASCII


def transitions() -> dict[tuple[str, str], int]:
    """Return {(status, exec_type): action bits} as the grid says."""
    head, *rows = (line.split() for line in GRID.strip().splitlines())
    return {
        (row[0], column): _ACTIONS[cell] for row in rows for column, cell in zip(head, row[1:], strict=True)
    }


def create_table(segment: Segment, name: str) -> int:
    """Write the transitions into a table of bytes that `action` reads; return its address."""
    addr = segment.allocate(name, _WIDTH * _WIDTH)
    table = segment.words(addr, _WIDTH * _WIDTH // 8).view("u1")
    for (status, exec_type), bits in transitions().items():
        table[ord(status) * _WIDTH + ord(exec_type)] = bits
    return addr


@inlined
def action(table: int, status: int, exec_type: int) -> int:
    """Return the action bits of a report of exec_type on an order that shows status; 0 = refused."""
    if status < 0 or status >= _WIDTH or exec_type < 0 or exec_type >= _WIDTH:
        return 0
    return load_u8(table + status * _WIDTH + exec_type)


@inlined
def is_status(status: int) -> bool:
    """Say whether an OrdStatus is one that the table knows."""
    return status in (
        NEW, PARTIALLY_FILLED, FILLED, CANCELED, PENDING_CANCEL_STATUS, REJECTED, PENDING_NEW_STATUS, EXPIRED,
    )  # fmt: skip


@inlined
def is_final(status: int) -> bool:
    """Say whether an order that shows this status has ended: nothing of it is open."""
    return status in (FILLED, CANCELED, REJECTED, EXPIRED)
