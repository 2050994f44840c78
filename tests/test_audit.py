"""What the control loop journals of the orders agent: limits, alarms, and the hash of the positions."""

from __future__ import annotations

from orders_rig import NOW, Rig
from test_orders_agent import as_record, journal

from daemon.audit import Audit
from nimbus.journal.log import Stream
from nimbus.journal.types import ALARM, RecordType
from nimbus.messages import LIMITS
from nimbus.orders.state import ALARM_TEXTS, ALARMS


class Watched(Rig):
    """An armed agent with an audit that writes to stream 0; read it as `rig.journal()`."""

    def __init__(self, *, room: int = 64, **settings):
        super().__init__(**settings)
        self.arm()
        self.control = Stream(self.segment, 0, epoch=7, capacity=room)
        self.audit = Audit(self.orders, self.control)

    def told(self) -> list[tuple[RecordType, bytes]]:
        """Look, and return the control stream so far."""
        self.audit.look(NOW)
        return journal(_Of(self.control))

    def repeat_conflict(self) -> None:
        self.reports(1, "F", "1", qty=11, px=1_000_100, exec_id=1)


class _Of:
    """What journal() asks of a rig: its stream."""

    def __init__(self, stream):
        self.stream = stream


def test_each_set_of_limits_that_comes_into_force_is_journaled_once():
    rig = Watched(limits={"qty_max": 70})
    ((kind, payload),) = rig.told()
    first = as_record(payload, LIMITS)
    assert (kind, first["version"], first["qty_max"]) == (RecordType.LIMITS, 1, 70)
    assert len(rig.told()) == 1
    rig.orders.limits.set(qty_max=71)
    rig.orders.limits.set(qty_max=72)  # the one between was never looked at
    second = as_record(rig.told()[1][1], LIMITS)
    assert (second["version"], second["qty_max"]) == (3, 72)


def test_an_alarm_is_journaled_when_it_first_rises_and_once_for_each_kind():
    rig = Watched()
    rig.send()
    rig.reports(1, "F", "1", qty=10, px=1_000_100)
    assert [kind for kind, _ in rig.told()] == [RecordType.LIMITS]
    rig.repeat_conflict()
    rig.repeat_conflict()
    kind, payload = rig.told()[-1]
    alarm = as_record(payload, ALARM)
    assert (kind, alarm["value"], alarm["level"]) == (RecordType.ALARM, 2, 2)
    assert ALARMS[alarm["code"] - 1] == "conflicts"
    assert alarm["text"].decode() == ALARM_TEXTS["conflicts"]
    rig.repeat_conflict()
    assert len(rig.told()) == 2
    rig.reports(1, "F", "2", qty=190, px=1_000_100)
    assert ALARMS[as_record(rig.told()[-1][1], ALARM)["code"] - 1] == "overfills"
    assert len(rig.told()) == 3


def test_what_the_ring_has_no_room_for_is_told_at_a_later_look():
    rig = Watched(room=2)
    rig.audit.look(NOW)  # the limits fill both records
    rig.send()
    rig.reports(1, "F", "1", qty=10, px=1_000_100)
    rig.repeat_conflict()
    assert [kind for kind, _ in rig.told()] == [RecordType.LIMITS]
    rig.control.release(2)
    assert [kind for kind, _ in rig.told()] == [RecordType.ALARM]


def test_every_alarm_has_a_text_that_fits_its_record():
    assert list(ALARM_TEXTS) == list(ALARMS)
    assert {len(text) <= ALARM.dtype["text"].itemsize for text in ALARM_TEXTS.values()} == {True}


# The hash of the positions.


def test_the_hash_of_the_positions_tells_every_field_and_locate_and_no_capacity():
    hashes = [Rig().orders.position_hash()]
    for field in ("position_qty", "cash", "basis", "open_sell_qty", "mark_px2", "fills", "last_ns"):
        for locate in (1, 2):
            rig = Rig()
            rig.position(locate)[field] = 7
            hashes.append(rig.orders.position_hash())
            assert rig.orders.position_hash() == hashes[-1]
    assert len(set(hashes)) == len(hashes) == 15


def test_the_same_orders_and_reports_give_the_same_hash_of_the_positions():
    hashes = set()
    for settings in ({}, {"day_orders_max": 64, "open_orders_max": 8}):
        rig = Rig(**settings)
        rig.arm()
        rig.send()
        rig.reports(1, "F", "2", qty=100, px=1_000_100)
        hashes.add(rig.orders.position_hash())
    assert len(hashes) == 1
    assert hashes != {Rig().orders.position_hash()}
