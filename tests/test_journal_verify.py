"""Verification: every kind of damage is found, at the right record, and told from a torn tail."""

import random

import crc32c as oracle
import numpy as np
import pytest
from test_journal_log import NOW, run, streams

from nimbus.journal.segments import BLOCK_RECORDS, HEADER_SIZE, JournalError
from nimbus.journal.show import entries, show
from nimbus.journal.types import ALARM, STATE_CHANGE, RecordType
from nimbus.journal.verify import verify
from nimbus.journal.writer import JournalWriter
from nimbus.messages import JOURNAL
from ringbuf.records import record


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """Return the files of a journal of several segments, by name."""
    folder = tmp_path_factory.mktemp("journal")
    writer = run(folder)
    return writer, {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def damaged(journal, tmp_path):
    """Return a function that writes the journal with one file changed, and verifies it."""

    def make(name, change):
        for other, raw in journal[1].items():
            (tmp_path / other).write_bytes(raw)
        if name:
            (tmp_path / name).write_bytes(change(bytearray(journal[1][name])))
        return verify(tmp_path)

    return make


def resealed(raw, index, field, value):
    """Change a field of one record and give it a checksum that holds."""
    at = HEADER_SIZE + index * JOURNAL.size
    row = np.frombuffer(bytes(raw[at : at + JOURNAL.size]), JOURNAL.dtype).copy()
    row[field] = value
    body = row.tobytes()[4:]
    raw[at : at + JOURNAL.size] = oracle.crc32c(body).to_bytes(4, "little") + body
    return raw


def test_an_undamaged_journal_holds(journal, damaged):
    report = damaged(None, None)
    assert report.ok
    assert report.closed
    assert report.torn is None
    assert (report.journal_hash, report.records) == (journal[0].journal_hash, journal[0].records)
    assert (report.durable, report.segments, report.epochs) == (report.records, len(journal[1]), [7])
    assert report.segments > 2
    assert report.incomplete == 0


def test_every_flipped_bit_is_found_at_its_record(journal, damaged):
    draw, names = random.Random(3), list(journal[1])
    for _ in range(200):
        number = draw.randrange(2)  # full segments
        index, bit = draw.randrange(BLOCK_RECORDS), draw.randrange(JOURNAL.size * 8)

        def flip(raw, index=index, bit=bit):
            raw[HEADER_SIZE + index * JOURNAL.size + bit // 8] ^= 1 << bit % 8
            return raw

        report = damaged(names[number], flip)
        assert not report.ok
        assert (report.finding.file, report.finding.index) == (names[number], index)
        assert report.finding.record == report.records == number * BLOCK_RECORDS + index
        assert report.finding.reason.split(":")[0] in {"crc32c", "magic"}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("version", 9, "version"),
        ("epoch", 6, "epoch"),
        ("seq", 5, "seq"),
        ("part", 0x85, "part"),
        ("payload_size", 89, "payload_size"),
        ("type", 0, "type"),
        ("payload", 1, "chain"),
        ("wall_ns", 1, "chain"),
    ],
)
def test_a_record_with_a_valid_checksum_must_also_follow(damaged, field, value, reason):
    report = damaged("00000001.journal", lambda raw: resealed(raw, 100, field, value))
    assert report.finding is not None
    assert report.finding.reason.startswith(f"{reason}:")
    assert report.finding.index == (0 if reason == "chain" else 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw[: HEADER_SIZE + 1000], "cut: 4096 records were durable"),
        (lambda raw: raw[:100], "header"),
        (lambda raw: raw[:0], "header"),
        (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], "header"),
        (lambda raw: raw[:48] + bytes([raw[48] ^ 1]) + raw[49:], "header"),  # the chain before
        (lambda raw: raw[:-4096] + bytes([raw[-4096] ^ 1]) + raw[-4095:], "chain: the page"),
    ],
)
def test_damage_to_a_file_as_a_whole(damaged, change, reason):
    report = damaged("00000001.journal", lambda raw: change(bytes(raw)))
    assert report.finding.file == "00000001.journal"
    assert report.finding.reason.startswith(reason)


def test_changed_records_of_a_file_without_its_digests_are_found(damaged):
    report = damaged("00000001.journal", lambda raw: resealed(raw, 100, "wall_ns", 1)[:-4096])
    assert (report.finding.file, report.finding.index) == ("00000001.journal", 0)
    assert report.finding.reason.startswith("chain:")


def test_a_missing_or_foreign_segment_breaks_the_chain(journal, tmp_path):
    for name, raw in journal[1].items():
        if name != "00000001.journal":
            (tmp_path / name).write_bytes(raw)
    assert "where 1 should be" in verify(tmp_path).finding.reason
    run(tmp_path / "other", groups=9000)  # the same shape, other records
    other = {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()}
    (tmp_path / "00000001.journal").write_bytes(other["00000001.journal"])
    assert verify(tmp_path).ok  # it is the same run up to there
    both = streams(capacity=8192)
    writer = JournalWriter(tmp_path / "third", both, epoch=7, blocks=1, durable=False)
    for number in range(BLOCK_RECORDS + 1):
        both[0].append(RecordType.LOG, number.to_bytes(8, "little"), NOW)
    writer.close()
    (tmp_path / "00000001.journal").write_bytes((tmp_path / "third" / "00000001.journal").read_bytes())
    assert verify(tmp_path).finding.reason.startswith("chain: does not continue")


def unclosed(folder, *, durable_records, more):
    """Write a journal as a process leaves it that was killed after `more` records beyond its last commit."""
    (stream,) = streams(capacity=1024)
    writer = JournalWriter(folder, [stream], epoch=7, blocks=1, durable=True)
    for number in range(durable_records):
        stream.append(RecordType.LOG, number.to_bytes(8, "little"), NOW)
    writer.drain()
    for number in range(more):
        stream.append(RecordType.LOG, number.to_bytes(8, "little"), NOW)
    path = folder / "00000000.journal"
    beyond = b"".join(bytes(view) for view in stream.waiting())
    return path, bytearray(path.read_bytes()), beyond


def test_a_killed_run_ends_at_its_last_whole_record(tmp_path):
    path, raw, beyond = unclosed(tmp_path, durable_records=100, more=50)
    assert (verify(tmp_path).records, verify(tmp_path).torn) == (100, None)
    at = HEADER_SIZE + 100 * JOURNAL.size
    raw[at : at + len(beyond)] = beyond
    raw[at + 20 * JOURNAL.size + 60] ^= 1
    path.write_bytes(raw)
    report = verify(tmp_path)
    assert report.ok
    assert not report.closed
    assert (report.records, report.durable, report.torn.index) == (120, 100, 120)
    assert report.torn.reason.startswith("crc32c")
    raw[HEADER_SIZE + 99 * JOURNAL.size + 60] ^= 1
    path.write_bytes(raw)
    report = verify(tmp_path)
    assert (report.ok, report.finding.index, report.records) == (False, 99, 99)


def test_sectors_of_the_unsynced_tail_may_survive_in_any_order(tmp_path):
    path, raw, beyond = unclosed(tmp_path, durable_records=10, more=64)
    draw, at = random.Random(4), HEADER_SIZE + 10 * JOURNAL.size
    for _ in range(50):
        torn = bytearray(raw)
        survived = [draw.random() < 0.8 for _ in range(1 + len(beyond) // 512)]
        for sector in range(at // 512, (at + len(beyond)) // 512 + 1):
            for byte in range(max(sector * 512, at), min(sector * 512 + 512, at + len(beyond))):
                if survived[(sector - at // 512) % len(survived)]:
                    torn[byte] = beyond[byte - at]
        path.write_bytes(torn)
        report = verify(tmp_path)
        assert report.ok
        good = report.records - 10
        assert torn[at : at + good * 128] == beyond[: good * 128]
        assert good == 64 or not any(torn[at + good * 128 : at + good * 128 + 128])


def test_old_records_behind_the_end_are_not_taken_for_new_ones(tmp_path):
    """They have valid checksums and the sequence that would follow: only their epoch gives them away."""
    path, raw, _ = unclosed(tmp_path, durable_records=20, more=0)
    (old,) = streams(capacity=64, epoch=6)
    for number in range(30):
        old.append(RecordType.LOG, number.to_bytes(8, "little"), NOW)
    stale = b"".join(bytes(view) for view in old.waiting())[20 * 128 :]
    raw[HEADER_SIZE + 20 * 128 : HEADER_SIZE + 20 * 128 + len(stale)] = stale
    path.write_bytes(raw)
    report = verify(tmp_path)
    assert (report.ok, report.records, report.torn.index) == (True, 20, 20)
    assert report.torn.reason.startswith("epoch")
    raw[HEADER_SIZE + 20 * 128 : HEADER_SIZE + 21 * 128] = bytes(128)  # now behind a hole
    path.write_bytes(raw)
    report = verify(tmp_path)
    assert (report.records, report.torn.reason.split(":")[0]) == (20, "empty")


def test_a_group_whose_end_is_missing_is_dropped_as_a_whole(tmp_path):
    path, raw, _ = unclosed(tmp_path, durable_records=3, more=0)
    (stream,) = streams()
    for _ in range(3):
        stream.append(RecordType.LOG, b"", NOW)
    stream.append(RecordType.RAW, b"x" * 200, NOW)
    begun = b"".join(bytes(view) for view in stream.waiting())[3 * 128 : 5 * 128]
    raw[HEADER_SIZE + 3 * 128 : HEADER_SIZE + 5 * 128] = begun
    path.write_bytes(raw)
    report = verify(tmp_path)
    assert (report.ok, report.records, report.incomplete) == (True, 5, 2)
    assert [entry.kind for entry in entries(tmp_path)] == [RecordType.LOG] * 3


def test_no_journal_is_one_line(tmp_path):
    with pytest.raises(JournalError, match="holds no journal"):
        verify(tmp_path)
    with pytest.raises(JournalError, match="holds no journal"):
        list(show(tmp_path))


def test_groups_come_back_whole_across_segments_and_streams(journal, tmp_path):
    for name, raw in journal[1].items():
        (tmp_path / name).write_bytes(raw)
    found = list(entries(tmp_path))
    numbers = sorted(int.from_bytes(entry.payload[:8], "little") for entry in found)
    assert numbers == list(range(6000))
    for entry in found:
        number = int.from_bytes(entry.payload[:8], "little")
        assert entry.payload == number.to_bytes(8, "little") * (1 + number % 30)
        assert (entry.stream, entry.wall_ns) == (number % 2, NOW + number)
    logs = list(entries(tmp_path, {RecordType.LOG}))
    assert logs == [entry for entry in found if entry.kind == RecordType.LOG]


ORDER_OUT = record("ORDER_OUT", "i8 decision d\ni8 order o\n16u1 cl_ord_id c", line=8)
EXECUTION = record("EXECUTION", "i8 order o\n16u1 exec_id e", line=8)


def test_show_decodes_filters_and_follows_a_story(tmp_path):
    (stream,) = streams()
    writer = JournalWriter(tmp_path, [stream], epoch=7, durable=False)
    for number in (1, 2):
        order = np.zeros((), ORDER_OUT.dtype)
        order["decision"], order["order"] = number + 40, number
        order["cl_ord_id"] = np.frombuffer(b"000700001000000%d" % number, np.uint8)
        execution = np.zeros((), EXECUTION.dtype)
        execution["order"] = number
        execution["exec_id"] = np.frombuffer(b"E%d" % number + bytes(14), np.uint8)
        stream.append(RecordType.ORDER_OUT, order, NOW)
        raw = b"8=FIX.4.4\x0117=X%d\x01" % number
        stream.append(RecordType.EXECUTION, execution.tobytes() + raw, NOW + 1)
    change = np.zeros((), STATE_CHANGE.dtype)
    change["new"], change["who"], change["why"] = 1, b"someone", b"a test"
    alarm = np.zeros((), ALARM.dtype)
    alarm["code"], alarm["text"] = 3, b"journal ring is low"
    stream.append(RecordType.STATE_CHANGE, change, NOW)
    stream.append(RecordType.ALARM, alarm, NOW)
    stream.append(RecordType.RAW, b"8=FIX.4.4\x0135=8\x01", NOW)
    stream.append(RecordType.SESSION_IN, b"\x00\x01", NOW)
    writer.close()

    registry = {RecordType.ORDER_OUT: ORDER_OUT, RecordType.EXECUTION: EXECUTION}
    rows = list(show(tmp_path, registry))
    assert [row["record"] for row in rows] == list(range(8))
    assert rows[0] == {
        "record": 0, "type": "ORDER_OUT", "stream": 0, "seq": 1, "epoch": 7, "mono_ns": NOW, "wall_ns": NOW,
        "decision": 41, "order": 1, "cl_ord_id": "0007000010000001",
    }  # fmt: skip
    assert (rows[1]["exec_id"], rows[1]["text"]) == ("E1", "8=FIX.4.4|17=X1|")
    assert (rows[4]["new"], rows[4]["who"], rows[4]["why"]) == (1, "someone", "a test")
    assert (rows[5]["code"], rows[5]["text"]) == (3, "journal ring is low")
    assert (rows[6]["text"], rows[7]["hex"]) == ("8=FIX.4.4|35=8|", "0001")
    assert [row["order"] for row in show(tmp_path, registry, types={RecordType.EXECUTION})] == [1, 2]
    assert len(list(show(tmp_path, registry, limit=3))) == 3
    for trace in ("E2", "42", "X2", "0007000010000002"):
        assert [row["record"] for row in show(tmp_path, registry, trace=trace)] == [2, 3]
    assert list(show(tmp_path, registry, trace="E3")) == []
