"""The admin endpoint: shapes, paging, errors without tracebacks, and who may ask."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from daemon.admin.app import LIMIT, build
from daemon.admin.limit import NS_PER_S, TokenBucket
from daemon.admin.text import average_px, money, time_text


class FixedViews:
    alive = True

    def health(self):
        return self.alive, {"state": "PAPER"}

    def positions(self):
        return [{"symbol": f"S{n:03d}", "qty": n} for n in range(250)]

    def position(self, symbol):
        return {"symbol": symbol, "qty": 7} if symbol == "AAPL" else None

    def orders(self):
        return [{"cl_ord_id": str(n), "symbol": "AB"[n % 2], "state": "filled"} for n in range(5)]

    def latency(self):
        raise RuntimeError("planted")

    def metrics(self):
        return "contrafusion_up 1\n"


@pytest.fixture
async def client():
    async with TestClient(TestServer(build(FixedViews(), 1_000))) as client:
        yield client


async def test_pages_follow_each_other_without_loss(client):
    seen, after = [], "0"
    while after is not None:
        answer = await client.get(f"/positions?limit=100&after={after}")
        body = await answer.json()
        seen += [row["qty"] for row in body["items"]]
        after = body["next"]
    assert seen == list(range(250))


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "after=-1"])
async def test_a_wrong_page_is_refused(client, query):
    answer = await client.get(f"/orders?{query}")
    assert answer.status == 400
    assert (await answer.json())["error"]["code"] == "bad_query"


async def test_one_symbol_is_found_in_any_case_and_an_unknown_one_is_404(client):
    assert (await (await client.get("/positions/aapl")).json())["qty"] == 7
    missing = await client.get("/positions/NONE")
    assert missing.status == 404
    assert "error" in await missing.json()


async def test_orders_are_filtered(client):
    body = await (await client.get("/orders?symbol=A")).json()
    assert [row["cl_ord_id"] for row in body["items"]] == ["0", "2", "4"]


async def test_a_fault_is_500_without_a_traceback(client):
    answer = await client.get("/latency")
    text = await answer.text()
    assert answer.status == 500
    assert "planted" not in text
    assert "Traceback" not in text


async def test_unknown_paths_and_methods_keep_the_error_shape(client):
    for answer, status in ((await client.get("/nope"), 404), (await client.post("/health"), 405)):
        assert answer.status == status
        assert answer.headers["X-Contrafusion-API"] == "1"
        assert (await answer.json())["error"]["code"]


@pytest.mark.parametrize(("host", "status"), [("evil.example", 421), ("localhost:80", 200), ("[::1]", 200)])
async def test_only_loopback_names_are_answered(client, host, status):
    assert (await client.get("/health", headers={"Host": host})).status == status


async def test_health_is_503_when_an_agent_is_stale(client):
    assert (await client.get("/health")).status == 200
    client.app[next(iter(client.app))].alive = False
    assert (await client.get("/health")).status == 503


async def test_metrics_are_plain_text(client):
    answer = await client.get("/metrics")
    assert answer.content_type == "text/plain"
    text = await answer.text()
    assert text.startswith("contrafusion_up 1\n")
    assert "contrafusion_admin_requests_total 1\n" in text
    assert "contrafusion_admin_limited_total 0\n" in text


async def test_requests_beyond_the_rate_are_429_and_counted():
    async with TestClient(TestServer(build(FixedViews(), 1))) as client:
        assert (await client.get("/health")).status == 200
        refused = await client.get("/health")
        assert refused.status == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["X-Contrafusion-API"] == "1"
        assert (await refused.json())["error"]["code"] == "too_many_requests"
        foreign = await client.get("/health", headers={"Host": "evil.example"})
        assert foreign.status == 421  # and takes no token
        bucket = client.app[LIMIT]
        assert (bucket.answered, bucket.limited) == (1, 1)


@given(st.integers(1, 5_000), st.lists(st.integers(0, NS_PER_S // 2), min_size=1, max_size=200))
def test_no_second_has_more_than_twice_the_rate_and_a_wait_that_was_kept_is_enough(per_s, pauses):
    """A second of silence saves up a second's worth, so a window that follows it sees at most both."""
    bucket, now_ns, taken = TokenBucket(per_s), 1, []
    for pause_ns in pauses:
        now_ns += pause_ns
        wait_ns = bucket.take(now_ns)
        if wait_ns:
            assert wait_ns <= NS_PER_S // per_s
            now_ns += wait_ns
            assert bucket.take(now_ns) == 0
        taken.append(now_ns)
    assert bucket.answered == len(pauses)
    for index, last_ns in enumerate(taken):
        assert sum(last_ns - NS_PER_S < at_ns for at_ns in taken[: index + 1]) <= 2 * per_s


def test_a_burst_is_one_second_of_the_rate():
    bucket = TokenBucket(50)
    assert [bucket.take(0) == 0 for _ in range(60)] == [True] * 50 + [False] * 10
    assert (bucket.answered, bucket.limited) == (50, 10)


def test_money_is_exact_text():
    assert [money(v) for v in (0, 1, -1, 1_874_200, -10_000)] == [
        "0.0000", "0.0001", "-0.0001", "187.4200", "-1.0000",
    ]  # fmt: skip
    assert average_px(-3_000_001, -3) == "100.0000"
    assert average_px(0, 0) == "0.0000"


def test_times_have_nine_digits():
    assert time_text(1_340_286_600_000_000_007) == "2012-06-21T13:50:00.000000007Z"
    assert time_text(0) is None
