"""Configuration errors are found all at once, each with file, line and key."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from daemon.config import Config, config_hash, read_config
from daemon.exchange_config import ExchangeConfig, read_exchange_config
from daemon.settings import SettingsError, flatten, key_lines, to_toml
from daemon.system import segment_size

ROOT = pathlib.Path(__file__).resolve().parents[1]


def problems_of(tmp_path, text: str) -> list[str]:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    return [p.removeprefix(f"{path}:") for p in caught.value.problems]


def test_every_problem_is_listed_with_line_and_key(tmp_path):
    text = 'seed = "x"\nspeeed = 1\n[risk]\n# a comment\ncollar_bp = 0\nlot_qty = 1.5\n[venue]\nkind = 1\n'
    found = problems_of(tmp_path, text)
    assert [p.split(":")[0] for p in found] == ["1", "2", "5", "6", "8"]
    assert found[0] == "1: seed: must be an integer, got 'x'"
    assert found[1].startswith("2: speeed: unknown key, allowed: admin, bicep, book,")
    assert found[2] == "5: risk.collar_bp: must be between 1 and 10000, got 0"
    assert found[3] == "6: risk.lot_qty: must be an integer, got 1.5"
    assert found[4].startswith("8: venue.kind: must be a string")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = true", "an integer"),
        ('[model]\nkind = "gpt"', "one of auto, fusionnet, rule, linear, off"),
        ("[journal]\nring_records = 1000", "a power of two"),
        ("model = 3", "must be a table"),
        ("[venue]\norder_latency_us = nan", "must be a number"),
        ("[venue]\norder_latency_us = inf", "between 0.0 and"),
        ("seed = ", "not TOML"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, text, words):
    assert words in problems_of(tmp_path, text)[0]


def test_a_missing_file_is_one_problem(tmp_path):
    with pytest.raises(SettingsError, match=r"none.toml:0: cannot be read"):
        read_config(tmp_path / "none.toml")


def test_each_single_setting_can_be_wrong(tmp_path):
    """Every leaf refuses a value of another type: nothing is read unchecked."""
    for key, value, _ in flatten(Config()):
        table, _, name = key.rpartition(".")
        wrong = "1979-05-27"  # a date: no setting takes one
        text = f"[{table}]\n{name} = {wrong}\n" if table else f"{name} = {wrong}\n"
        (found,) = problems_of(tmp_path, text)
        assert f" {key}: must be" in found, value


def test_the_hash_changes_with_any_setting():
    base = Config()
    assert config_hash(base) == config_hash(Config())
    assert config_hash(dataclasses.replace(base, seed=2)) != config_hash(base)
    risk = dataclasses.replace(base.risk, collar_bp=499)
    assert config_hash(dataclasses.replace(base, risk=risk)) != config_hash(base)


def test_key_lines_knows_tables_and_keys():
    assert key_lines("a = 1\n\n[t]\nb=2\n[ t.u ]\nc = 3\n") == {
        "a": 1,
        "t": 3,
        "t.b": 4,
        "t.u": 5,
        "t.u.c": 6,
    }


def test_a_tree_written_as_toml_reads_back_equal(tmp_path):
    path = tmp_path / "all.toml"
    path.write_text(to_toml(Config()))
    assert read_config(path) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_an_example_configuration_names_every_setting(path):
    tree = read_exchange_config(path) if path.name == "venue.toml" else read_config(path)
    named = key_lines(path.read_text())
    assert [key for key, _, _ in flatten(tree) if key not in named] == []


def test_the_example_of_the_exchange_holds_its_defaults():
    assert read_exchange_config(ROOT / "configs" / "venue.toml") == ExchangeConfig()


@pytest.mark.parametrize("text", ["1969-12-31", "2100-01-01", "9999-12-31", "0001-01-01"])
def test_a_day_whose_nanoseconds_do_not_fit_is_refused(text, tmp_path):
    (found,) = problems_of(tmp_path, f'[feed]\ndate = "{text}"\n')
    assert "year must be between 1970 and 2099" in found


def test_the_memory_that_run_reserves_is_that_of_the_tables():
    assert segment_size(Config()) < 2 << 30  # all of it is taken from the machine at the start
