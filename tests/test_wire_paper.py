"""`make paper`: a session of venue and daemon with a live report, and what can go wrong, in one line each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pair_rig import wire

from daemon.errors import CommandError
from daemon.wire import paper

__all__ = ["wire"]


def told(capsys, *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and its only line on stderr."""
    code = paper.main(list(arguments))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return code, error


def test_a_machine_without_iproute2_is_told_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    code = paper.main(["--out", str(tmp_path)])
    assert (code, capsys.readouterr().err) == (1, "the command `ip` is missing: install iproute2\n")


def test_a_machine_that_forbids_namespaces_is_told_what_is_needed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("os.geteuid", lambda: 1_000)
    code, error = told(capsys, "--out", str(tmp_path))
    assert code == 1
    assert "need root" in error


def test_a_folder_that_cannot_be_written_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "file").write_text("")
    code, error = told(capsys, "--out", str(tmp_path / "file" / "folder"))
    assert code == 1
    assert error.startswith("cannot write ")


def test_wrong_settings_are_told_before_anything_is_made(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    code, _ = told(capsys, "--config", "/nonexistent.toml", "--out", str(tmp_path))
    assert code == 78
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--seconds", "--speed", "--model"])
@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "x"])
def test_values_that_cannot_be_are_wrong_usage(option, value):
    with pytest.raises(SystemExit, match="2"):
        paper.main([option, value])


def test_a_side_that_left_nothing_and_sides_that_differ_are_failures(tmp_path):
    assert paper.summary_of(tmp_path) == b""
    with pytest.raises(CommandError, match=r"see venue\.log"):
        paper.read_summary("venue", b"")
    row = {"orders": 1, "fills": 1, "positions": {}}
    assert paper.read_summary("venue", json.dumps(row).encode()) == row
    paper.compare("US", row, row)
    with pytest.raises(CommandError, match="do not agree"):
        paper.compare("US", row | {"positions": {"US": {"AAPL": {"qty": 3}}}}, row)


@pytest.mark.alone
@pytest.mark.usefixtures("wire")  # which skips where there are no namespaces; the command makes its own
def test_a_session_reports_each_second_and_both_sides_agree(tmp_path):
    command = [sys.executable, "-m", "daemon.wire.paper", "--seconds", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("venue and daemon are joined by ")
    assert len([line for line in lines if line.endswith("  PAPER")]) == 3
    assert any(line.startswith("orders  venue ") for line in lines)
    assert "starting" in done.stderr
