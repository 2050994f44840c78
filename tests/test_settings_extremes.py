"""Whatever the configuration allows can be run, or is refused in one line: nothing in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.config import Config
from daemon.errors import CommandError
from daemon.replay import Replay
from daemon.settings import flatten
from daemon.system import System

ITCH = b"\x00\x0cS" + bytes(10) + b"O"  # one message: start of messages


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def with_value(tree: Any, key: str, value: Any) -> Any:
    """Return the tree with one setting changed."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(
        tree, **{name: with_value(getattr(tree, name), rest, value) if rest else value}
    )


def cases() -> list[tuple[str, Any]]:
    """Return (setting, value) for the least and the largest value, and for every choice."""
    found = []
    for key, field in leaves(Config()):
        allowed = field.metadata
        values = list(allowed["choices"]) or [v for v in (allowed["low"], allowed["high"]) if v is not None]
        if isinstance(field.default, bool):
            values = [True, False]
        kind = type(field.default)
        found += [(key, kind(value)) for value in values]
    return found


def test_there_are_cases_for_most_settings():
    assert len({key for key, _ in cases()}) > 0.8 * len(list(flatten(Config())))


@pytest.mark.parametrize(("key", "value"), cases(), ids=str)
def test_an_extreme_value_runs_or_is_refused_in_one_line(key, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capture = tmp_path / "one.itch"
    capture.write_bytes(ITCH)
    config = with_value(Config(), key, value)
    try:
        system = System(config, capture)
        try:
            replay = Replay(system, tmp_path)
            replay.run()
        finally:
            system.close()
    except CommandError as refusal:
        told = str(refusal)
    else:
        told = "it ran" if int(system.control["heartbeat"]) == 1 else "it ran\nand did nothing"
    assert len(told.splitlines()) == 1
