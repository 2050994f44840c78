"""Changes of rung are part of what a journal replays: every decision again, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from replays import Outcome
from rung_rig import DENSITIES, config_of, make_model

from bicep.nanopt import Reason
from bicep.plan import INFERENCE, MODE_SAMPLES, OK, RUNGS_MAX, infer
from daemon.main import main
from daemon.pipeline import NEED_INPUT, run_inline
from daemon.registry import PAYLOADS
from daemon.run_journal import RunJournal
from daemon.rungs import blank_row, word_of
from daemon.settings import to_toml
from daemon.system import System, close_input
from nimbus.journal.log import LAST_PART
from nimbus.journal.show import show
from nimbus.journal.types import RecordType
from nimbus.journal.verify import verify
from nimbus.messages import DECISION, JOURNAL
from nimbus.venue.generator import generate
from ringbuf.spsc import pop_into
from strategy.shadows import SHADOW

MESSAGES = 8_000
PIECE = 500  # messages between two looks of the scripted control loop
SCRIPT = {2: word_of(2, 32), 3: word_of(1, 8), 6: word_of(0, 32), 7: word_of(1, 0), 11: word_of(2, 16)}
STATED = ("decision", "mean", "epistemic", "aleatoric", "rung", "mask_index", "bank", "agree", "action", "px")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder)
    return folder


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("rungs") / "day.pcap"
    generate(path, 9, MESSAGES, 4)
    return path


def turn(capture, config, folder, script=None, *, rungs=None) -> tuple[Outcome, str]:
    """Run a capture in pieces, with changes pushed between them as a control loop would; drain after each."""
    with contextlib.closing(System(config, capture, rungs=rungs)) as system:
        journal = RunJournal(system, folder)
        system.control["drain_below"] = 0
        journal.arm("test", "a scripted run")
        piece, ended = 0, False
        while True:
            status = run_inline(system.pipeline, PIECE)
            if status == NEED_INPUT:
                if system.refill():
                    continue
                if ended:
                    break
                close_input(system.market)
                ended = True
                continue
            journal.drain()
            piece += 1
            if script and piece in script:
                assert system.rungs.push(blank_row(system.model, script[piece], Reason.LATENCY))
        journal.finish()
        return Outcome(folder), journal.journal_hash


def stated(outcome: Outcome) -> list[str]:
    """Return what each decision says, NaN included, as text."""
    return [json.dumps([row[name] for name in STATED]) for row in outcome.records("DECISION")]


@pytest.fixture(scope="module")
def scripted(models, capture, tmp_path_factory):
    return turn(capture, config_of(models, bicep__rung="auto"), tmp_path_factory.mktemp("one"), SCRIPT)


def test_a_replay_from_the_journal_is_the_run_again_bit_for_bit(models, capture, scripted, tmp_path):
    outcome, journal_hash = scripted
    config = config_of(models, bicep__rung="auto")
    again, again_hash = turn(capture, config, tmp_path / "two", rungs=outcome.folder / "journal")
    assert stated(again) == stated(outcome)
    assert again.records("RUNG") == outcome.records("RUNG")
    assert again_hash == journal_hash
    dense, dense_hash = turn(capture, config, tmp_path / "three")
    assert stated(dense) != stated(outcome)
    assert dense_hash != journal_hash


def test_each_change_stands_before_the_first_decision_that_it_governs(scripted):
    outcome, _ = scripted
    kinds = [RecordType.RUNG, RecordType.DECISION]
    rows = list(show(outcome.folder / "journal", PAYLOADS, types=kinds))
    rows.sort(key=lambda row: row["seq"])
    word, changes, following = 0, [], 1
    for row in rows:
        if row["type"] == "RUNG":
            assert (row["old_word"], row["decision"]) == (word, following)
            word = row["word"]
            changes.append(word)
        else:
            following = row["decision"] + 1
            if row["expert"] < len(DENSITIES):
                assert row["rung"] == word
    assert changes == list(SCRIPT.values())
    assert len({row["rung"] for row in rows if row["type"] == "DECISION"}) == len(set(SCRIPT.values()))


def test_journal_verify_and_show_know_the_record(scripted, capsys):
    folder = str(scripted[0].folder / "journal")
    assert verify(scripted[0].folder / "journal").ok
    assert main(["journal", "show", folder, "--type", "rung", "--limit", "1"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert (row["type"], row["density"], row["samples"], row["reason"]) == ("RUNG", 0.2, 32, Reason.LATENCY)


def test_a_decision_can_be_computed_again_alone(models, capture):
    """From the features that it saw, its rung, its symbol and its market sequence number."""
    config = config_of(models, bicep__rung="auto", bicep__shadow_every=1, model__kind="fusionnet")
    with contextlib.closing(System(config, capture, is_live=True)) as system:
        assert system.rungs.push(blank_row(system.model, word_of(2, 16), Reason.LATENCY))
        rows, found = np.zeros(64, SHADOW.dtype), []
        for _ in range(6):
            run_inline(system.pipeline, 40)
            found += [row.copy() for row in rows[: pop_into(system.rungs.sampler.ring, rows.ctypes.data, 64)]]
        decided = {int(row["decision"]): row for row in journal_of(system)}
        twin, out = system.model.plan.twin("again"), np.zeros(1, INFERENCE.dtype)
        same = 0
        for row in found:
            held = np.array([row])
            twin.set_rung(int(row["word"]) % RUNGS_MAX, int(row["word"]) // RUNGS_MAX)
            locate, sequence = int(row["locate"]), int(row["sequence"])
            if infer(twin.state, int(row["tag"]), held.ctypes.data, locate, sequence, out.ctypes.data) != OK:
                continue
            decision = decided[int(row["decision"])]
            if int(out["news_version"][0]) != int(row["news_version"]):
                continue
            for name in ("mean", "epistemic", "aleatoric", "mask_index", "rung"):
                assert out[name][0] == decision[name], name
            same += 1
        assert same > 20
        assert {decision["rung"] for decision in decided.values()} == {word_of(2, 16)}


def journal_of(system: System) -> list[Any]:
    """Return the DECISION payloads that wait in the strategy stream."""
    records = np.concatenate([np.frombuffer(v, JOURNAL.dtype) for v in system.streams[1].waiting()])
    payload, found = b"", []
    for row in records[records["type"] == RecordType.DECISION]:
        payload += row["payload"].tobytes()[: row["payload_size"]]
        if row["part"] & LAST_PART:
            found.append(np.frombuffer(payload, DECISION.dtype)[0])
            payload = b""
    return found


# ---------------------------------------------------------------- the command line


def replayed(capture, config, folder, *words, capsys) -> tuple[Outcome, Any]:
    folder.mkdir()
    path = folder / "replay.toml"
    path.write_text(to_toml(config))
    code = main(["replay", str(capture), "--config", str(path), "--out", str(folder), *words])
    assert code == 0
    return Outcome(folder), capsys.readouterr()


def test_the_command_replays_the_rungs_of_a_journal_and_names_them(
    models, capture, scripted, tmp_path, capsys
):
    config = config_of(models, bicep__rung="auto")
    words = ("--rungs", str(scripted[0].folder / "journal"))
    outcome, told = replayed(capture, config, tmp_path / "one", *words, capsys=capsys)
    assert stated(outcome) == stated(scripted[0])
    names = {(row["density"], row["samples"]) for row in outcome.summary["rungs"]}
    assert names == {(DENSITIES[w % RUNGS_MAX], MODE_SAMPLES[w // RUNGS_MAX]) for w in SCRIPT.values()} | {
        (1.0, 32)
    }
    assert sum(row["decisions"] for row in outcome.summary["rungs"]) == len(stated(outcome))
    assert "rungs 1 x 32: " in told.out
    assert "Decisions by rung" in (outcome.folder / "report.html").read_text()
    again, _ = replayed(capture, config, tmp_path / "two", "--rungs", str(outcome.folder / "journal"),
                        capsys=capsys)  # fmt: skip
    assert again.summary["journal_hash"] == outcome.summary["journal_hash"]


def test_without_a_journal_auto_serves_the_dense_rung_and_says_so(models, capture, tmp_path, capsys):
    outcome, told = replayed(capture, config_of(models, bicep__rung="auto"), tmp_path / "one", capsys=capsys)
    assert told.err.count("the dense rung served throughout") == 1
    assert {row["rung"] for row in outcome.records("DECISION")} == {0}
    assert outcome.records("RUNG") == []
    pinned, _ = replayed(capture, config_of(models), tmp_path / "two", capsys=capsys)
    assert stated(pinned) == stated(outcome)


def test_a_pinned_rung_answers_from_the_first_decision_and_is_journalled(models, capture, tmp_path, capsys):
    config = config_of(models, bicep__rung="0.2")
    outcome, told = replayed(capture, config, tmp_path / "one", capsys=capsys)
    [row] = outcome.records("RUNG")
    assert (row["decision"], row["density"], row["reason"]) == (1, 0.2, Reason.START)
    assert {row["rung"] for row in outcome.records("DECISION")} == {2}
    assert "rungs 0.2 x 32: " in told.out


@pytest.mark.parametrize("fault", ["no_journal", "another_model", "another_seed"])
def test_a_journal_that_does_not_belong_is_refused_with_one_line(
    models, capture, scripted, tmp_path, capsys, fault
):
    config, journal = config_of(models, bicep__rung="auto"), scripted[0].folder / "journal"
    if fault == "no_journal":
        journal = tmp_path / "none"
    elif fault == "another_model":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, kind="rule"))
        config = dataclasses.replace(config, bicep=dataclasses.replace(config.bicep, rung="1.0"))
    else:
        config = dataclasses.replace(config, seed=77)
    path = tmp_path / "c.toml"
    path.write_text(to_toml(config))
    words = ["replay", str(capture), "--config", str(path), "--out", str(tmp_path / "o")]
    assert main([*words, "--rungs", str(journal)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--rungs" in error
