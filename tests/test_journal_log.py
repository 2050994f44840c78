"""Appending to the journal's ring: header bytes, groups, full rings, draining to segments."""

import ctypes
import struct

import crc32c as oracle
import numpy as np
import pytest
from feeding import guarded_page

from nimbus.journal import log
from nimbus.journal.log import Stream
from nimbus.journal.segments import BLOCK_RECORDS, JournalError
from nimbus.journal.types import ALARM, PAYLOADS, RUN_START, RecordType
from nimbus.journal.writer import JournalWriter, erase
from nimbus.messages import JOURNAL
from ringbuf.segment import Segment
from ringbuf.spsc import HEADER_SIZE, ring_size

NOW = 1_700_000_000_000_000_000


def streams(*, count=1, capacity=64, epoch=7):
    segment = Segment.anonymous(count * (ring_size(capacity, JOURNAL) + 4096) + 4096)
    return [Stream(segment, number, epoch=epoch, capacity=capacity) for number in range(count)]


def waiting(stream):
    raw = b"".join(bytes(view) for view in stream.waiting())
    return np.frombuffer(raw, JOURNAL.dtype)


def test_the_bytes_of_a_record_are_what_the_layout_says():
    (stream,) = streams()
    stream.set_mono_offset(-1_000)
    assert stream.append(RecordType.LOG, b"hello", NOW)
    body = struct.pack("<BBBBHHIqqq88s", 0xCF, 2, 0, 0x80, 20, 5, 7, 1, NOW - 1_000, NOW, b"hello")
    assert waiting(stream).tobytes() == struct.pack("<I", oracle.crc32c(body)) + body
    assert waiting(stream).tobytes().hex().startswith("8401b15acf02008014000500070000000100000000000000")


def test_type_numbers_and_payload_layouts_never_change():
    numbered = """
        1 RUN_START 3 DENIAL 4 ORDER_OUT 5 CANCEL_OUT 6 EXECUTION 7 RAW 8 FILL 9 DECISION
        10 STATE_CHANGE 11 LIMITS 12 NEWS 13 ALARM 15 ADJUSTMENT 16 CROSS 17 SESSION_IN
        18 SESSION_OUT 19 RUN_END 20 LOG 21 RUNG
    """
    assert " ".join(f"{t.value} {t.name}" for t in RecordType) == " ".join(numbered.split())
    sizes = {RecordType(kind).name: layout.size for kind, layout in PAYLOADS.items()}
    assert sizes == {
        "RUN_START": 88, "FILL": 64, "STATE_CHANGE": 88, "LIMITS": 128, "NEWS": 64,
        "ALARM": 88, "ADJUSTMENT": 88, "RUN_END": 88, "RUNG": 72,
    }  # fmt: skip
    assert RUN_START.at.config_digest == 16
    assert ALARM.at.text == 24


@pytest.mark.parametrize(
    ("size", "parts"), [(0, 1), (1, 1), (88, 1), (89, 2), (176, 2), (177, 3), (1000, 12)]
)
def test_a_payload_is_cut_into_parts_and_the_last_one_is_marked(size, parts):
    (stream,) = streams()
    payload = bytes(i % 251 + 1 for i in range(size))
    assert stream.append(RecordType.RAW, payload, NOW)
    got = waiting(stream)
    assert list(got["part"]) == [*range(parts - 1), (parts - 1) | 0x80]
    assert list(got["seq"]) == list(range(1, parts + 1))
    assert set(got["type"]) == {RecordType.RAW}
    assert sum(got["payload_size"].tolist()) == size
    assert got["payload"].tobytes() == payload.ljust(parts * 88, b"\0")


def test_a_payload_of_any_size_is_copied_and_nothing_behind_it_is_read():
    (stream,) = streams()
    end = guarded_page()
    for size in [*range(180), 263, 264, 265]:
        payload = bytes(i % 251 + 1 for i in range(size))
        ctypes.memmove(end - size, payload, size)
        ctypes.memset(stream.ring + HEADER_SIZE, 0xEE, stream.capacity * JOURNAL.size)
        assert log.append(stream.addr, int(RecordType.RAW), end - size, size, NOW) == 1
        got = waiting(stream)
        assert got["payload"].tobytes() == payload.ljust(len(got) * 88, b"\0")
        assert [int(crc) for crc in got["crc32c"]] == [oracle.crc32c(row.tobytes()[4:]) for row in got]
        stream.release(len(got))


def test_a_reused_slot_keeps_nothing_of_what_lay_there():
    (stream,) = streams(capacity=1)
    stream.append(RecordType.RAW, b"\xff" * 88, NOW)
    stream.release(1)
    stream.append(RecordType.RAW, b"a", NOW)
    assert waiting(stream)["payload"].tobytes() == b"a".ljust(88, b"\0")


def test_a_group_that_does_not_fit_is_refused_whole_and_costs_no_sequence_number():
    (stream,) = streams(capacity=4)
    assert stream.append(RecordType.RAW, b"x" * 88, NOW)
    assert not stream.append(RecordType.RAW, b"y" * (3 * 88 + 1), NOW)
    assert (stream.refused, stream.seq, len(waiting(stream))) == (1, 1, 1)
    assert stream.append(RecordType.RAW, b"y" * (3 * 88), NOW)
    assert log.free_slots(stream.addr) == 0
    assert not stream.append(RecordType.RAW, b"z", NOW)
    stream.release(2)
    assert log.free_slots(stream.addr) == 2
    assert stream.append(RecordType.RAW, b"z", NOW)
    assert list(waiting(stream)["seq"]) == [3, 4, 5]
    assert (stream.appended, stream.refused) == (3, 2)


@pytest.mark.parametrize(
    ("kind", "size"), [(0, 1), (65536, 1), (-1, 1), (7, -1), (7, log.GROUP_SIZE_MAX + 1)]
)
def test_a_bad_type_or_size_is_refused(kind, size):
    (stream,) = streams(capacity=256)
    buffer = ctypes.create_string_buffer(log.GROUP_SIZE_MAX + 1)
    assert log.append(stream.addr, kind, ctypes.addressof(buffer), size, NOW) == 0
    assert (stream.refused, len(waiting(stream))) == (1, 0)


def run(folder, *, blocks=1, capacity=512, durable=False, groups=6000, every=100):
    """Append groups of varying length to two streams, draining now and then; return the writer, closed."""
    both = streams(count=2, capacity=capacity)
    writer = JournalWriter(folder, both, epoch=7, blocks=blocks, durable=durable)
    for number in range(groups):
        payload = number.to_bytes(8, "little") * (1 + number % 30)
        assert both[number % 2].append(
            RecordType.RAW if number % 3 else RecordType.LOG, payload, NOW + number
        )
        if number % every == every - 1:
            writer.drain()
    writer.close()
    return writer


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = (run(tmp_path / name) for name in "ab")
    assert first.journal_hash == second.journal_hash
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) > 1
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_hash_depends_on_the_records_and_not_on_commits_segments_or_durability(tmp_path):
    (one,) = streams(capacity=8192)
    (two,) = streams(capacity=8192)
    large = JournalWriter(tmp_path / "a", [one], epoch=7, blocks=2, durable=False)
    small = JournalWriter(tmp_path / "b", [two], epoch=7, blocks=1, durable=True)
    for number in range(BLOCK_RECORDS + 77):
        one.append(RecordType.LOG, number.to_bytes(8, "little"), NOW)
        two.append(RecordType.LOG, number.to_bytes(8, "little"), NOW)
        if number % 1000 == 0:
            small.drain()
    large.close()
    small.close()
    assert large.records == small.records == BLOCK_RECORDS + 77
    assert large.journal_hash == small.journal_hash
    (three,) = streams(capacity=8192)
    other = JournalWriter(tmp_path / "c", [three], epoch=7, durable=False)
    three.append(RecordType.LOG, b"x", NOW)
    other.close()
    assert other.journal_hash not in {large.journal_hash, "00" * 32}


def test_slots_are_given_back_only_after_the_write(tmp_path):
    (stream,) = streams(capacity=4)
    writer = JournalWriter(tmp_path, [stream], epoch=7, durable=False)
    for _ in range(4):
        stream.append(RecordType.LOG, b"x", NOW)
    assert writer.drain() == 4
    assert (writer.drain(), log.free_slots(stream.addr)) == (0, 4)
    writer.close()


def test_the_first_error_is_final_and_nothing_is_given_back(tmp_path, monkeypatch):
    (stream,) = streams(capacity=4)
    writer = JournalWriter(tmp_path, [stream], epoch=7, durable=False)
    stream.append(RecordType.LOG, b"x", NOW)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", lambda _fd, buffer, _at: len(buffer) - 1)
        with pytest.raises(JournalError, match="short write"):
            writer.drain()
    with pytest.raises(JournalError, match="short write"):
        writer.drain()
    assert len(waiting(stream)) == 1
    writer.close()
    with pytest.raises(JournalError):
        writer.drain()


def test_a_durable_journal_prepares_segments_ahead_and_leaves_none_behind(tmp_path):
    (stream,) = streams(capacity=64)
    writer = JournalWriter(tmp_path, [stream], epoch=7, blocks=1, durable=True)
    stream.append(RecordType.LOG, b"x", NOW)
    for _ in range(4):
        writer.drain()
    assert writer.segments_ahead == 2
    assert len(list(tmp_path.glob("*.free"))) == 2
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["00000000.journal"]


def test_a_folder_that_holds_a_journal_is_refused_until_it_is_erased(tmp_path):
    run(tmp_path, groups=1)
    with pytest.raises(JournalError, match="holds a journal already"):
        JournalWriter(tmp_path, [], epoch=8, durable=False)
    assert erase(tmp_path) == 1
    JournalWriter(tmp_path, [], epoch=8, durable=False).close()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"journal .*file") as error:
        JournalWriter(tmp_path / "file", [], epoch=8, durable=False)
    assert "\n" not in str(error.value)


def test_closing_after_a_failed_change_of_segments_closes_nothing_twice(tmp_path, monkeypatch):
    (stream,) = streams(capacity=BLOCK_RECORDS)
    writer = JournalWriter(tmp_path, [stream], epoch=7, blocks=1, durable=False)
    for _ in range(BLOCK_RECORDS):
        stream.append(RecordType.LOG, b"x", NOW)
    writer.drain()
    stream.append(RecordType.LOG, b"y", NOW)

    def refuse(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_new_segment", refuse)
    with pytest.raises(JournalError, match="No space left"):
        writer.drain()
    writer.close()
