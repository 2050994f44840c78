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

SHARED = pathlib.Path(os.environ.get("CONTRAFUSION_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture
def shared_data() -> pathlib.Path:
    """Return the folder of real captures and news, or skip."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder}")
    return folder
