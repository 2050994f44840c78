"""Shared by all tests: a fresh compile cache, and where real data may lie."""

from __future__ import annotations

import os
import pathlib
import tempfile

import hypothesis
import pytest

# The first call of a kernel compiles it, and a busy machine is no failure: no test looks at the clock.
hypothesis.settings.register_profile("contrafusion", deadline=None)
hypothesis.settings.load_profile("contrafusion")

# Numba shows the LLVM IR of a kernel only in the process that compiled it, so tests compile afresh.
# A worker of a parallel run shares the folder of the run.
os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="contrafusion-test-"))

# The day that the tests of the whole share: eight symbols, news, about eleven minutes.
DAY_SEED, DAY_MESSAGES, DAY_SYMBOLS = 2, 60_000, 8

SHARED = pathlib.Path(os.environ.get("CONTRAFUSION_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that compile every kernel: one worker does, while others run the rest."""
    items.sort(key=lambda item: item.path.name != "test_purity.py")


@pytest.fixture
def shared_data() -> pathlib.Path:
    """Return the folder of real captures and news, or skip."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def day(tmp_path_factory) -> pathlib.Path:
    """Return a generated capture with its news beside it."""
    from nimbus.venue.generator import generate

    path = tmp_path_factory.mktemp("day") / "day.pcap"
    generate(path, DAY_SEED, DAY_MESSAGES, DAY_SYMBOLS)
    return path


@pytest.fixture(scope="session")
def first_replay(day, tmp_path_factory):
    """Return what a replay of that day left behind; nobody changes it."""
    from replays import replay

    return replay(day, tmp_path_factory.mktemp("first") / "out")


@pytest.fixture
def rig():
    """Return two network namespaces joined by a cable, or skip."""
    from net.rig import Rig

    with Rig() as joined:
        yield joined
