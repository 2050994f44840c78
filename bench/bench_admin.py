"""The hot loop beside a busy admin endpoint: phases with 1,000 requests/s against quiet ones of the same run.

Needs network namespaces.  Run: python -m pytest bench/bench_admin.py -s
"""

from __future__ import annotations

import pytest

from bench.results import append_row
from daemon.namespaces import NamespaceError
from daemon.wire.admin_bench import BAR, measure, table
from daemon.wire.bench import Session

REQUESTS_PER_S = 1_000


@pytest.mark.slow
def test_a_busy_admin_endpoint_does_not_slow_the_hot_loop(tmp_path):
    try:
        result = measure(Session(tmp_path), REQUESTS_PER_S, print)
    except NamespaceError as error:
        pytest.skip(str(error))
    print("\n" + table(result))
    for stage, ratio in result["ratio_p50"].items():
        busy = result["busy"][stage]
        append_row(f"admin_busy_{stage}_ns", busy["count"], busy["p50_ns"], busy["p99_ns"], ratio)
    assert result["requests_per_s"] >= 0.95 * REQUESTS_PER_S
    assert result["ratio_p50"]["tick_to_order"] <= BAR
