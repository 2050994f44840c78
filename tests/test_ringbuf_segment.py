"""Segments: layout, files, attaching, refusals, owners and orphans."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys

import numpy as np
import pytest

from ringbuf import segment as seg
from ringbuf.process import Process, is_alive, this_process
from ringbuf.records import record
from ringbuf.segment import Segment, SegmentError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAIR = record("PAIR", "i8 first a number\n7i8 rest more numbers")


def _python(code: str, *arguments: str | pathlib.Path) -> str:
    """Run code in a process of its own, with this tree's ringbuf; return what it prints."""
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def _edit(path: pathlib.Path, field: str, value: int) -> None:
    at = int(seg.SEGMENT_HEADER.dtype.fields[field][1])
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value.to_bytes(8, "little", signed=True))


def test_the_layout_is_pinned() -> None:
    header, area = seg.SEGMENT_HEADER, seg.AREA
    assert (header.size, area.size, seg.HEADER_SIZE) == (128, 64, 32_768)
    order = "magic header_version layout_version size epoch owner_pid owner_start owner_boot used area_count"
    assert [header.at._asdict()[name] for name in order.split()] == list(range(0, 80, 8))
    assert (area.at.name, area.at.offset, area.at.size) == (0, 48, 56)
    assert seg.MAGIC.to_bytes(8, "little") == b"CFUSESEG"


@pytest.fixture(params=["anonymous", "file"])
def any_segment(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Segment:
    if request.param == "anonymous":
        return Segment.anonymous(8_192)
    return Segment.create(tmp_path / "s", 8_192, epoch=1)


def test_areas_are_zero_aligned_apart_and_live(any_segment: Segment) -> None:
    first, second = any_segment.allocate("first", 65), any_segment.allocate("second", 1)
    assert first % 64 == second % 64 == 0
    assert second - first == 128
    assert any_segment.areas == {"first": (first, 128), "second": (second, 64)}
    view = any_segment.array("first", PAIR)
    assert (len(view), view["rest"].any()) == (2, np.False_)
    view["first"][1] = -5
    assert any_segment.words(first + 64, 1)[0] == -5


def test_a_segment_holds_the_size_it_was_made_for_and_says_when_it_is_full(any_segment: Segment) -> None:
    any_segment.allocate("all", 8_192)
    left = any_segment.free_size
    with pytest.raises(MemoryError, match=f"'more' needs {left + 64} bytes, {left} are left"):
        any_segment.allocate("more", left + 64)


@pytest.mark.parametrize(("name", "size"), [("taken", 1), ("", 1), ("x" * 49, 1), ("né", 1), ("minus", -1)])
def test_unfit_areas_are_refused(any_segment: Segment, name: str, size: int) -> None:
    any_segment.allocate("taken", 1)
    with pytest.raises(ValueError, match="area"):
        any_segment.allocate(name, size)


def test_the_directory_has_an_end(any_segment: Segment) -> None:
    roomy = Segment.anonymous(64 * (seg.AREAS_MAX + 2))
    for number in range(seg.AREAS_MAX):
        roomy.allocate(f"area-{number}", 64)
    with pytest.raises(MemoryError, match="directory"):
        roomy.allocate("one more", 64)
    assert len(any_segment.areas) == 0


def test_close_is_refused_while_an_array_lives_and_is_repeatable(any_segment: Segment) -> None:
    any_segment.allocate("table", 64)
    view = any_segment.array("table", PAIR)[:1]["rest"]  # an array made of the array counts too
    with pytest.raises(SegmentError, match="in use: table"):
        any_segment.close()
    assert view.sum() == 0
    del view
    any_segment.close()
    any_segment.close()


def test_another_process_reads_the_areas_and_its_exit_deletes_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    owner = Segment.create(path, 4_096, epoch=77)
    owner.words(owner.allocate("table", 64), 2)[:] = (41, 42)
    code = """
from ringbuf.segment import Segment
s = Segment.attach(sys.argv[1], writable=True)
at = s.areas["table"][0]
print(s.epoch, s.is_orphan, sorted(s.areas), s.words(at, 2).tolist())
s.words(at, 1)[0] = 43
if len(sys.argv) > 2: s.close()
"""
    for arguments in ([path], [path, "close"]):
        assert _python(code, *arguments).split(maxsplit=2)[:2] == ["77", "False"]
        assert path.exists()
    assert owner.words(owner.areas["table"][0], 2).tolist() == [43, 42]


def test_attach_is_read_only_unless_asked(tmp_path: pathlib.Path) -> None:
    owner = Segment.create(tmp_path / "s", 64, epoch=1)
    owner.allocate("table", 64)
    reader = Segment.attach(tmp_path / "s")
    with pytest.raises(ValueError, match="read-only"):
        reader.array("table", PAIR)["first"] = 1


def test_an_attacher_sees_later_areas_after_a_refresh(tmp_path: pathlib.Path) -> None:
    owner = Segment.create(tmp_path / "s", 4_096, epoch=1)
    reader = Segment.attach(tmp_path / "s")
    owner.allocate("late", 64)
    assert "late" not in reader.areas
    reader.refresh()
    assert reader.areas["late"][1] == 64


def test_a_file_is_private_to_its_user_and_complete(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        Segment.create(path, 1 << 20, epoch=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size >= (1 << 20) + seg.HEADER_SIZE
    assert path.stat().st_blocks * 512 >= 1 << 20  # reserved, not sparse: no SIGBUS on a full disk
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SegmentError, match=r"cannot reserve \d+ bytes: (No space left|File too large)"):
        Segment.create(tmp_path / "s", 1 << 50, epoch=1)
    with pytest.raises(SegmentError, match="No such file or directory"):
        Segment.create(tmp_path / "absent" / "s", 64, epoch=1)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_and_the_owner_named(tmp_path: pathlib.Path) -> None:
    path, foreign = tmp_path / "s", tmp_path / "foreign"
    Segment.create(path, 64, epoch=1)
    with pytest.raises(SegmentError, match=f"its owner {os.getpid()} is alive"):
        Segment.create(path, 64, epoch=2)
    foreign.write_text("a text")
    with pytest.raises(SegmentError, match="not a segment of ours"):
        Segment.create(foreign, 64, epoch=2)
    assert foreign.read_text() == "a text"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("magic", 1, "not a segment"),
        ("header_version", 2, "header version 2, expected 1"),
        ("layout_version", 9, "layout version 9, expected 1"),
        ("size", 1 << 30, "truncated"),
        ("size", 64, "truncated"),
    ],
)
def test_a_header_we_do_not_know_is_refused_with_one_line(
    tmp_path: pathlib.Path, field: str, value: int, complaint: str
) -> None:
    path = tmp_path / "s"
    Segment.create(path, 64, epoch=1)
    _edit(path, field, value)
    with pytest.raises(SegmentError, match=complaint) as caught:
        Segment.attach(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 32_767, 32_768])
def test_a_cut_file_is_refused(tmp_path: pathlib.Path, size: int) -> None:
    path = tmp_path / "s"
    Segment.create(path, 64, epoch=1)
    os.truncate(path, size)
    with pytest.raises(SegmentError, match=r"truncated|no magic"):
        Segment.attach(path)


def test_absent_files_links_and_folders_are_refused(tmp_path: pathlib.Path) -> None:
    Segment.create(tmp_path / "s", 64, epoch=1)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for name in ("absent", "link", "."):
        with pytest.raises(SegmentError, match="cannot attach"):
            Segment.attach(tmp_path / name)


@pytest.mark.parametrize(
    ("field", "value"), [("offset", 64), ("offset", 1 << 40), ("size", -64), ("offset", 32_769)]
)
def test_a_directory_that_points_outside_is_refused(tmp_path: pathlib.Path, field: str, value: int) -> None:
    owner = Segment.create(tmp_path / "s", 4_096, epoch=1)
    owner.allocate("table", 64)
    at = seg.SEGMENT_HEADER.size + int(seg.AREA.dtype.fields[field][1])
    with (tmp_path / "s").open("r+b") as file:
        file.seek(at)
        file.write(value.to_bytes(8, "little", signed=True))
    with pytest.raises(SegmentError, match="'table' lies outside"):
        Segment.attach(tmp_path / "s")


def test_the_owner_removes_the_file_and_nobody_else_can(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    owner = Segment.create(path, 64, epoch=1)
    code = """
from ringbuf.segment import Segment, SegmentError
try: Segment.attach(sys.argv[1]).unlink()
except SegmentError as error: print(error)
"""
    assert f"only its owner {os.getpid()} removes a segment" in _python(code, path)
    owner.unlink()
    assert not path.exists()
    owner.unlink()
    Segment.anonymous(64).unlink()


def test_orphans_are_found_and_removed_and_the_living_stay(tmp_path: pathlib.Path) -> None:
    code = """
import os
from ringbuf.segment import Segment
Segment.create(sys.argv[1], 64, epoch=1)
os._exit(0)
"""
    _python(code, tmp_path / "left")
    Segment.create(tmp_path / "living", 64, epoch=1)
    (tmp_path / "note.txt").write_text("not ours")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "left")
    assert Segment.attach(tmp_path / "left").is_orphan
    with pytest.raises(SegmentError, match="is dead"):
        Segment.create(tmp_path / "left", 64, epoch=2)
    assert seg.orphans(tmp_path) == [tmp_path / "left"]
    assert seg.remove_orphans(tmp_path) == [tmp_path / "left"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link", "living", "note.txt", "pipe"]


@pytest.mark.parametrize("field", ["owner_start", "owner_boot"])
def test_a_reused_pid_is_not_mistaken_for_the_owner(tmp_path: pathlib.Path, field: str) -> None:
    owner = Segment.create(tmp_path / "s", 64, epoch=1)
    assert not owner.is_orphan
    _edit(tmp_path / "s", field, 12345)
    assert owner.is_orphan
    assert seg.orphans(tmp_path) == [tmp_path / "s"]


def test_a_zombie_is_dead_and_odd_pids_are_no_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, nobody has collected it
    me = this_process()
    start = int(pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert not is_alive(Process(child.pid, start, me.boot))
    child.wait()
    assert is_alive(me)
    for pid in (0, -1, 1 << 40):
        assert not is_alive(Process(pid, me.start, me.boot))
