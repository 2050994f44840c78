"""What a configuration may say is what the owners of the memory can do: no setting ends in a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.config import Config, trading_day
from daemon.errors import CommandError
from daemon.settings import SettingsError, load, to_toml
from daemon.system import System, map_memory, segment_size
from nimbus.messages import ORDER
from nimbus.orders.pool import LINK

ONE_MESSAGE = b"\x00\x0cS" + bytes(10) + b"O"


def bounds() -> Iterator[tuple[str, str, Any]]:
    """Yield (table, key, value) of both ends of the range of every setting of the pipeline."""
    for table in dataclasses.fields(Config):
        if dataclasses.is_dataclass(table.type) or not callable(table.default_factory):
            continue
        for field in dataclasses.fields(table.default_factory()):
            for end in ("low", "high"):
                if field.metadata[end] is not None:
                    yield table.name, field.name, field.metadata[end]


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> pathlib.Path:
    """Return a capture of one message."""
    path = tmp_path_factory.mktemp("one") / "one.itch"
    path.write_bytes(ONE_MESSAGE)
    return path


def with_setting(table: str, key: str, value: Any) -> Config:
    section = dataclasses.replace(getattr(Config(), table), **{key: value})
    return dataclasses.replace(Config(), **{table: section})


@pytest.mark.parametrize(("table", "key", "value"), list(bounds()), ids=str)
def test_every_bound_of_a_setting_is_a_value_its_owner_can_use(table, key, value, capture):
    with contextlib.suppress(CommandError):  # one line: the machine is too small for it
        System(with_setting(table, key, value), capture).close()


def test_capacities_that_no_machine_has_are_one_line():
    with pytest.raises(CommandError, match="cannot map"):
        map_memory(1 << 62)


def test_the_pool_is_counted_at_what_an_order_takes():
    size = segment_size(Config())
    assert size < 2 << 30  # `run` reserves it all: what is never used must not be much
    more = dataclasses.replace(Config().orders, day_orders_max=Config().orders.day_orders_max * 2)
    grown = segment_size(dataclasses.replace(Config(), orders=more)) - size
    assert grown == Config().orders.day_orders_max * (ORDER.size + LINK.size)


@pytest.mark.parametrize("text", ["1969-12-31", "2100-01-01", "9999-12-31", "0001-01-01"])
def test_a_day_whose_nanoseconds_do_not_fit_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="year must be between 1970 and 2099"):
        trading_day(text)
    path = tmp_path / "c.toml"
    path.write_text(to_toml(Config()).replace('"1970-01-01"', f'"{text}"'))
    with pytest.raises(SettingsError, match=r"feed\.date"):
        load(Config, path)
