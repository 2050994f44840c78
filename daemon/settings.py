"""Read a TOML file into a tree of frozen dataclasses; find every error at once, each with file and line.

A dataclass field made by `setting()` says what it allows.  Unknown keys, wrong types and values out of
range are errors.  `tomllib` keeps no line numbers, so a small scanner finds the line of each key.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_type_hints

T = TypeVar("T")

_TABLE: Final = re.compile(r"^\s*\[\s*([A-Za-z0-9_.\- ]+?)\s*\]")
_KEY: Final = re.compile(r"^\s*([A-Za-z0-9_\-.]+)\s*=")
_NAMES: Final = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class SettingsError(Exception):
    """The configuration cannot be used; `problems` holds one line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    power_of_two: bool = False,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare one setting: its default, what it means, and the values it allows.

    read: the function its owner reads the value with; what raises ValueError there is not allowed.
    """
    allowed = {"low": low, "high": high, "choices": choices, "power_of_two": power_of_two, "read": read}
    return dataclasses.field(default=default, metadata={"meaning": meaning, **allowed})


def section(kind: type[T]) -> T:
    """Declare a sub-table whose settings all have defaults."""
    return dataclasses.field(default_factory=kind)


def key_lines(text: str) -> dict[str, int]:
    """Return the line number (from 1) of each "table.key" and "table" in a TOML text."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = match[1].replace(" ", "")
            lines.setdefault(table, number)
        elif match := _KEY.match(line):
            lines.setdefault(f"{table}.{match[1]}" if table else match[1], number)
    return lines


def load(kind: type[T], path: pathlib.Path | None) -> T:
    """Return the tree of `kind` read from `path`, or all defaults when path is None.

    Raises SettingsError with every problem found, as "file:line: key: what, allowed, got".
    """
    if path is None:
        return kind()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SettingsError([f"{path}:0: cannot be read: {reason}"]) from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise SettingsError([f"{path}:{at[1] if at else 0}: not TOML: {error}"]) from None
    problems: list[str] = []
    lines = key_lines(text)
    value = _build(kind, tree, "", lambda key: f"{path}:{lines.get(key, 0)}: {key}", problems)
    if problems:
        raise SettingsError(problems)
    return value  # type: ignore[no-any-return]


def _build(kind: type[Any], tree: dict[str, Any], prefix: str, at: Any, problems: list[str]) -> Any:
    hints, known = get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for name, given in tree.items():
        key = f"{prefix}{name}"
        if name not in known:
            close = ", ".join(sorted(known))
            problems.append(f"{at(key)}: unknown key, allowed: {close}")
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(given, dict):
                values[name] = _build(hints[name], given, f"{key}.", at, problems)
            else:
                problems.append(f"{at(key)}: must be a table, got {given!r}")
        else:
            complaint = _complaint(hints[name], known[name].metadata, given)
            if complaint:
                problems.append(f"{at(key)}: {complaint}, got {given!r}")
            else:
                values[name] = float(given) if hints[name] is float else given
    return None if problems else kind(**values)


def _complaint(kind: type[Any], allowed: Any, given: Any) -> str:
    right = isinstance(given, (int, float) if kind is float else kind)
    if not right or (isinstance(given, bool) and kind is not bool):
        return f"must be {_NAMES[kind]}"
    if allowed["choices"] and given not in allowed["choices"]:
        return "must be one of " + ", ".join(map(str, allowed["choices"]))
    if kind is str and not given.isprintable():
        return "must be printable text"
    if kind is float and given != given:  # noqa: PLR0124  NaN
        return "must be a number"
    low, high = allowed["low"], allowed["high"]
    if (low is not None and given < low) or (high is not None and given > high):
        return f"must be between {low} and {high}"
    if allowed["power_of_two"] and given & (given - 1):
        return "must be a power of two"
    if allowed["read"]:
        try:
            allowed["read"](given)
        except ValueError as error:
            return f"cannot be read: {error}"
    return ""


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, meaning) for every setting of a tree, in declaration order."""
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, field.metadata["meaning"]


def to_toml(tree: Any) -> str:
    """Return the tree as a TOML text that `load` reads back to an equal tree, each key with its meaning."""
    lines: list[str] = []
    table = ""
    for key, value, meaning in flatten(tree):
        parent, _, name = key.rpartition(".")
        if parent != table:
            lines += ["", f"[{parent}]"]
            table = parent
        text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        lines.append(f"{f'{name} = {text}':<36}# {meaning}")
    return "\n".join(lines) + "\n"


def adjusted(tree: T, changes: Mapping[str, Any]) -> T:
    """Return a configuration tree with some of its settings changed, each named "table.key" or "key"."""
    for name, value in changes.items():
        table, _, key = name.rpartition(".")
        if table:
            branch = dataclasses.replace(getattr(tree, table), **{key: value})
            tree = dataclasses.replace(tree, **{table: branch})  # type: ignore[type-var]
        else:
            tree = dataclasses.replace(tree, **{key: value})  # type: ignore[type-var]
    return tree
