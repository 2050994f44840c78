"""Shared by all benchmarks: the machine at the head of the output, and time for a first compile.

Kernels come from the ordinary cache, as in production; the first run of new sources compiles them.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from bench.results import machine

TIMEOUT_S = 1_800  # a first compile beside busy neighbours


def pytest_report_header() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"machine: {machine()}; load {load}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
