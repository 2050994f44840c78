"""The table of order states: complete, and the machine code reads it as it stands."""

import pytest

from nimbus.orders.states import STATUS_NAMES, action, create_table, is_final, is_status, transitions
from ringbuf.segment import Segment

SEGMENT = Segment.anonymous(1 << 16)
TABLE = create_table(SEGMENT, "states")


def test_every_status_has_a_cell_for_every_event():
    statuses, events = ({key[i] for key in transitions()} for i in (0, 1))
    assert statuses == set(STATUS_NAMES)
    assert events == set("A0F48C6")
    assert len(transitions()) == len(statuses) * len(events)


def test_the_kernel_reads_exactly_the_table():
    table = transitions()
    for status in range(128):
        for event in range(128):
            assert action(TABLE, status, event) == table.get((chr(status), chr(event)), 0)


@pytest.mark.parametrize(
    ("status", "event"), [(-1, 48), (48, -1), (128, 48), (48, 128), (255, 255), (2**40, 0)]
)
def test_a_character_outside_ascii_is_refused(status, event):
    assert action(TABLE, status, event) == 0


def test_only_a_trade_books_and_nothing_that_ended_opens_again():
    for (status, event), bits in transitions().items():
        assert bool(bits & 4) == (event == "F")
        if status in "248C":
            assert not bits & 16  # the status shown stays


def test_which_statuses_end_an_order():
    assert {chr(c) for c in range(128) if is_status(c)} == set(STATUS_NAMES)
    assert {chr(c) for c in range(128) if is_final(c)} == set("248C")
