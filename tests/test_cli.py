"""The command line: exit codes, and reasons in one line each, for everything a user can get wrong."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from replays import ROOT, command, environment, replay, write_config

from daemon.main import COMMANDS, main

BUILT = [name for name in COMMANDS if (ROOT / f"daemon/commands/{name}.py").exists()]
BAD_TOML = "seed = 'x'\nspeeed = 1\n\n[risk]\ncollar_bp = 0\n[journal]\nring_records = 1000\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Work in an empty folder, so that nothing is found or left anywhere else."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *words: str, code: int = 1, says: str = "") -> str:
    """Expect one line of reason on stderr, nothing on stdout, and the exit code; return the line."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith(f"contrafusion {words[0]}: ")
    assert says in lines[0]
    return lines[0]


# Usage.


def test_every_command_of_the_usage_is_built():
    assert set(COMMANDS) == set(BUILT)


def test_without_words_the_usage_is_an_error_and_with_help_it_is_not(capsys):
    assert main([]) == 2
    told = capsys.readouterr()
    assert "usage: contrafusion" in told.err
    assert told.out == ""
    assert main(["--help"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert all(name in told.out for name in COMMANDS)


def test_an_unknown_command_is_named(capsys):
    assert main(["replai"]) == 2
    assert "unknown command 'replai'" in capsys.readouterr().err


@pytest.mark.parametrize("name", BUILT)
def test_help_of_every_command_exits_0(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: contrafusion {name}" in told


@pytest.mark.parametrize(
    "words",
    [
        ["replay"], ["replay", "a", "b"], ["replay", "a", "--fast"], ["book", "a", "--levels", "ten"],
        ["generate", "a", "--seed", "x"], ["generate"], ["journal"], ["journal", "prove", "a"],
        ["train"], ["check", "now"], ["run", "now"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_exits_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    told = capsys.readouterr()
    assert "usage: contrafusion" in told.err
    assert told.out == ""


# Captures that are none.


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.pcap", None, "No such file"),
        ("empty.pcap", b"", "empty file"),
        ("text.pcap", b"hello, this is no capture at all\n" * 9, "not a capture"),
        ("short.pcap", bytes.fromhex("d4c3b2a1"), "cut"),
        ("broken.gz", bytes.fromhex("1f8b0800") + b"garbage" * 9, ""),
        (".", None, "directory"),
    ],
)
@pytest.mark.parametrize("name_of", ["replay", "book"])
def test_what_is_no_capture_is_one_line(name_of, name, content, says, folder, capsys):
    if content is not None:
        (folder / name).write_bytes(content)
    words = ["--stats"] if name_of == "book" else []
    refused(capsys, name_of, name, *words, says=says)


def test_a_capture_that_may_not_be_read_is_one_line(folder, capsys):
    path = folder / "secret.pcap"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused(capsys, "replay", path, says="Permission denied")


def test_training_on_what_is_no_capture_is_one_line(capsys):
    refused(capsys, "train", "--data", "none.pcap", says="No such file")


def test_a_news_file_that_is_asked_for_and_missing_is_one_line(small, folder, capsys):
    config = write_config(folder / "c.toml", '[news]\nfile = "none.jsonl"\n')
    refused(capsys, "replay", small, "--config", config, says="none.jsonl: No such file")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    """Make a little capture."""
    path = tmp_path_factory.mktemp("cli") / "small.pcap"
    assert main(["generate", "--seed", "3", "--messages", "4000", "--symbols", "2", str(path), "--json"]) == 0
    return path


# Outputs that cannot be written.


def _taken(folder: pathlib.Path) -> pathlib.Path:
    """Return a path below a plain file: nobody, not even root, can write there."""
    (folder / "file").write_text("")
    return folder / "file/out"


def test_an_output_that_cannot_be_written_is_one_line(small, folder, capsys):
    out = _taken(folder)
    refused(capsys, "replay", small, "--out", out, says="cannot write")
    refused(capsys, "book", small, "--bbo", out, says="cannot write")
    refused(capsys, "book", small, "--bbo", folder / "none/out.csv", says="cannot write")
    refused(capsys, "book", small, "--depth", folder, says="cannot write")
    refused(capsys, "generate", out / "day.pcap", says="cannot write")
    refused(capsys, "generate", folder, "--messages", "2000", says="cannot write")
    refused(capsys, "train", "--data", small, "--out", out, says="cannot write")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(small, capsys):
    refused(capsys, "book", small, "--bbo", "/dev/full", says="No space left")
    refused(capsys, "generate", "/dev/full", "--messages", "2000", says="No space left")


# Configuration.


@pytest.mark.parametrize("words", [["replay", "x.pcap"], ["book", "x.pcap", "--stats"], ["run"], ["check"],
                                   ["train", "--data", "x.pcap"]], ids=" ".join)  # fmt: skip
def test_configuration_errors_exit_78_and_are_all_listed(words, folder, capsys):
    path = folder / "bad.toml"
    path.write_text(BAD_TOML)
    assert main([*words, "--config", str(path)]) == 78
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{path}:{number}", key]
        for number, key in ((1, "seed"), (2, "speeed"), (5, "risk.collar_bp"), (7, "journal.ring_records"))
    ]
    assert "Traceback" not in told.err


def test_a_missing_configuration_exits_78(capsys):
    assert main(["replay", "x.pcap", "--config", "none.toml"]) == 78
    assert capsys.readouterr().err.startswith("none.toml:0: ")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[feed]\ndate = "yesterday"\n', "feed.date"),
        ("[orders]\ntimestamp_digits = 4\n", "orders.timestamp_digits"),
        ('[book]\nsymbols_max = 8192\n[model]\nkind = "gpt"\n', "model.kind"),
    ],
)
def test_a_value_that_nothing_can_use_is_a_configuration_error(text, key, small, folder, capsys):
    path = folder / "c.toml"
    path.write_text(text)
    assert main(["replay", str(small), "--config", str(path)]) == 78
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f": {key}: " in told[0]


@pytest.mark.parametrize("speed", ["fast", "0x", "-1x", "1", "x", "1e400x", "nanx", ""])
def test_a_wrong_speed_is_one_line(speed, small, capsys):
    refused(capsys, "replay", small, f"--speed={speed}", says="--speed")


def test_a_model_that_is_asked_for_and_missing_is_one_line(small, folder, capsys):
    (folder / "c.toml").write_text('[model]\nkind = "fusionnet"\n')
    refused(capsys, "replay", small, "--config", "c.toml", says="has no pinned model")


def test_a_pinned_model_that_is_gone_or_damaged_is_one_line(small, folder, capsys):
    (folder / "models").mkdir()
    (folder / "models/pinned").write_text("nothing\n")
    refused(capsys, "replay", small)
    (folder / "models/nothing").mkdir()
    (folder / "models/nothing/manifest.json").write_text("{")
    (folder / "models/nothing/plan.bin").write_bytes(b"x")
    refused(capsys, "replay", small)


@pytest.mark.parametrize("words", [["--messages", "0"], ["--messages", "-5"], ["--symbols", "0"],
                                   ["--symbols", "100000"]], ids=" ".join)  # fmt: skip
def test_wrong_arguments_of_generate_are_one_line_and_leave_nothing(words, folder, capsys):
    refused(capsys, "generate", "day.pcap", *words)
    assert list(folder.iterdir()) == []


# book, journal, check.


def test_book_with_nothing_to_do_says_so(small, capsys):
    refused(capsys, "book", small, says="nothing to do")


@pytest.mark.parametrize("levels", ["0", "-1", "1001", "1000000000"])
def test_book_refuses_a_wrong_number_of_levels(levels, small, capsys):
    refused(capsys, "book", small, "--depth", "d.csv", f"--levels={levels}", says="between 1 and 1000")


def test_book_refuses_a_symbol_that_the_capture_does_not_have(small, capsys):
    refused(capsys, "book", small, "--bbo", "b.csv", "--symbol", "NONE", says="'NONE' is not in")


def test_book_has_a_symbol_column_for_several_symbols_and_none_for_one(small, folder, capsys):
    assert main(["book", str(small), "--bbo", "all.csv", "--depth", "deep.csv", "--levels", "2"]) == 0
    lines = (folder / "all.csv").read_text().splitlines()
    assert lines[0] == "symbol,mold_seq,ts_ns_since_midnight,ask_px_1e4,ask_sz,bid_px_1e4,bid_sz"
    symbols = {line.split(",")[0] for line in lines[1:]}
    assert len(symbols) == 2
    assert (folder / "deep.csv").read_text().startswith("symbol,mold_seq,ts_ns,a1p,a1q,b1p,b1q,a2p,a2q,")
    name = min(symbols)
    assert main(["book", str(small), "--bbo", "one.csv", "--symbol", name]) == 0
    one = (folder / "one.csv").read_text().splitlines()
    assert one[1:] == [line.split(",", 1)[1] for line in lines[1:] if line.startswith(f"{name},")]
    assert one[0] == lines[0].removeprefix("symbol,")
    assert capsys.readouterr().err == ""


def test_book_counts_odd_things_as_warnings_and_exits_0(small, folder, capsys):
    (folder / "cut.pcap").write_bytes(small.read_bytes()[:-7])
    assert main(["book", "cut.pcap", "--stats"]) == 0
    told = capsys.readouterr()
    counts = json.loads(told.out)
    assert counts["truncated"]
    assert told.err.splitlines()[-1] == f"warnings: {len(counts['warnings'])}"


def test_a_journal_that_is_missing_or_none_is_one_line(folder, capsys):
    (folder / "empty").mkdir()
    for name in ("none", "empty"):
        for verb in ("verify", "show"):
            refused(capsys, "journal", verb, folder / name)


@pytest.fixture(scope="module")
def kept(small, tmp_path_factory):
    """Replay the little capture, for its journal."""
    return replay(small, tmp_path_factory.mktemp("kept"))


def test_a_changed_byte_in_the_journal_is_found_and_exits_1(kept, folder, capsys):
    (folder / "journal").mkdir()
    (segment,) = (kept.folder / "journal").glob("*.journal")
    data = bytearray(segment.read_bytes())
    data[4_096 + 50 * 128 + 60] ^= 1
    (folder / "journal" / segment.name).write_bytes(data)
    assert "record 50" in refused(capsys, "journal", "verify", folder / "journal", says="corrupt")
    assert main(["journal", "verify", str(folder / "journal"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["finding"]["record"] == 50


def test_journal_show_prints_one_json_object_a_line(kept, capfdbinary):
    words = ["journal", "show", str(kept.folder / "journal"), "--type", "fill", "--limit", "3"]
    assert main(words) == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [row["type"] for row in rows] == ["FILL"] * 3
    order = next(row["order"] for row in rows)
    assert main([*words[:3], "--trace", kept.orders[order - 1]["cl_ord_id"]]) == 0
    story = [json.loads(line)["type"] for line in capfdbinary.readouterr().out.splitlines()]
    assert {"DECISION", "ORDER_OUT", "EXECUTION"} <= set(story)


def test_journal_show_refuses_unknown_types_and_negative_limits(kept, capsys):
    refused(capsys, "journal", "show", kept.folder / "journal", "--type", "gossip", says="GOSSIP")
    refused(capsys, "journal", "show", kept.folder / "journal", "--limit=-1", says="--limit")


def test_check_lists_every_setting_with_its_origin(folder, capsys):
    write_config(folder / "c.toml")
    assert main(["check", "--config", "c.toml"]) == 0
    told = capsys.readouterr().out
    assert "risk.collar_bp" in told
    assert next(line for line in told.splitlines() if "model.kind" in line).endswith("c.toml")


def test_json_is_the_only_thing_on_stdout(small, folder, capsys):
    assert main(["generate", "g.pcap", "--messages", "3000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbols"] == 16
    assert main(["replay", str(small), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == json.loads((folder / "out/summary.json").read_text())
    assert main(["journal", "verify", "out/journal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finding"] is None


def test_generate_writes_the_same_bytes_for_the_same_seed(folder):
    for name in ("a", "b"):
        words = [f"{name}.pcap", "--seed", "9", "--messages", "3000", "--json"]
        assert main(["generate", *words]) == 0
    assert (folder / "a.pcap").read_bytes() == (folder / "b.pcap").read_bytes()
    assert (folder / "a.news.jsonl").read_bytes() == (folder / "b.news.jsonl").read_bytes()


# In a process of its own.


def test_a_process_says_one_line_without_a_traceback_and_exits_with_the_code():
    done = command("replay", "none.pcap")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "contrafusion replay: none.pcap: No such file or directory\n"


def test_a_replay_imports_neither_torch_nor_the_endpoint(small, folder):
    script = (
        "import sys; from daemon.main import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'aiohttp', 'structlog', 'cupy'} & set(sys.modules)))"
    )
    words = ["replay", str(small), "--out", str(folder / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment(), text=True, capture_output=True, check=True,
        timeout=250,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []"


def heed_interrupts() -> None:
    """Undo what a shell does to its background jobs, which pass on that they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_replay_exits_130_with_one_line(small, folder):
    words = ["replay", str(small), "--speed", "1x", "--out", str(folder / "out")]
    child = subprocess.Popen(
        [sys.executable, "-m", "daemon.main", *words], env=environment(), text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, preexec_fn=heed_interrupts,  # noqa: PLW1509  no other thread here
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not (folder / "out/journal").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        out, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert told.splitlines()[-1:] == ["contrafusion replay: interrupted"]
    assert "Traceback" not in told
    assert out == ""
    assert main(["journal", "verify", str(folder / "out/journal")]) == 0


def test_a_reader_that_goes_away_is_no_traceback(kept):
    words = [sys.executable, "-m", "daemon.main", "journal", "show", str(kept.folder / "journal")]
    child = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.readline()
    child.stdout.close()
    assert b"Traceback" not in child.stderr.read()
    child.stderr.close()
    assert child.wait(60) in (0, 1)


def test_commands_leave_no_temporary_files(small, folder, monkeypatch):
    temporary = folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    for words in (
        ["replay", str(small), "--out", str(folder / "out")], ["book", str(small), "--stats"],
        ["check", "--warm"], ["generate", str(folder / "d.pcap"), "--messages", "2000"],
    ):  # fmt: skip
        assert command(*words).returncode == 0
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == ["d.news.jsonl", "d.pcap", "out", "tmp"]
    names = {"fills.csv", "orders.csv", "report.html", "summary.json", "journal"}
    assert {path.name for path in (folder / "out").iterdir()} == names
