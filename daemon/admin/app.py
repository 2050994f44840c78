"""The admin endpoint of `run`: reads shared memory, answers JSON, never touches the hot plane.

Every answer carries X-Contrafusion-API.  Errors are {"error": {"code", "message"}}; never a traceback.
Only loopback addresses are listened on, and a Host that is no loopback name is refused (DNS rebinding).
Requests beyond the rate limit are answered with 429 and are counted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import orjson
import structlog
from aiohttp import web

from daemon.admin.auth import Operator
from daemon.admin.limit import NS_PER_S, TokenBucket
from daemon.admin.text import metric

API_VERSION: Final = "1"
PAGE_MAX: Final = 500
PAGE_DEFAULT: Final = 100
HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Views(Protocol):
    """What the endpoint shows; each call reads a snapshot and returns plain values."""

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether every agent is alive, and the state."""
        ...

    def positions(self) -> list[dict[str, Any]]:
        """Return one row per symbol traded or held, in the order of the symbols."""
        ...

    def position(self, symbol: str) -> dict[str, Any] | None:
        """Return the row of one known symbol with its orders and last fills, or None."""
        ...

    def orders(self) -> list[dict[str, Any]]:
        """Return every order of the day, oldest first."""
        ...

    def latency(self) -> list[dict[str, Any]]:
        """Return one row per stage."""
        ...

    def bicep(self) -> dict[str, Any]:
        """Return what an inference computes now."""
        ...

    def metrics(self) -> str:
        """Return Prometheus text."""
        ...


_PORT: Final = re.compile(r":\d+$")
VIEWS: Final = web.AppKey("views", object)
OPERATOR: Final = web.AppKey("operator", Operator)
NAME_MAX: Final = 64
LIMIT: Final = web.AppKey("limit", TokenBucket)


def answer(body: Any, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def failure(status: int, code: str, message: str) -> web.Response:
    """Return an error in the one shape that all routes use."""
    return answer({"error": {"code": code, "message": message}}, status)


def over_limit(wait_ns: int) -> web.Response:
    """Return the answer to a request beyond the rate limit; Retry-After is in whole seconds."""
    response = failure(429, "too_many_requests", "the rate limit admin.requests_per_s is reached")
    response.headers["Retry-After"] = str(-(-wait_ns // NS_PER_S))
    return response


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check the Host and the rate, give errors their shape, add the headers of every answer."""
    given = request.headers.getall("Host", [])
    if len(given) != 1 or _PORT.sub("", given[0]) not in HOSTS:
        response: web.StreamResponse = failure(421, "wrong_host", "this endpoint answers on loopback names")
    elif wait_ns := request.app[LIMIT].take(time.monotonic_ns()):
        response = over_limit(wait_ns)
    else:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = failure(error.status, error.reason.lower().replace(" ", "_"), error.reason)
        except Exception as error:  # noqa: BLE001  the one place that catches everything: logged, not shown
            structlog.get_logger(agent="admin").exception("admin_fault", path=request.path, error=str(error))
            response = failure(500, "fault", "the request failed; see the log")
    response.headers["X-Contrafusion-API"] = API_VERSION
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _views(request: web.Request) -> Views:
    return request.app[VIEWS]  # type: ignore[return-value]


def _page(request: web.Request, rows: list[dict[str, Any]]) -> web.Response:
    """Answer one page: ?limit= up to PAGE_MAX, ?after= the cursor of the page before."""
    try:
        limit = int(request.query.get("limit", PAGE_DEFAULT))
        after = int(request.query.get("after", 0))
    except ValueError:
        return failure(400, "bad_query", "limit and after are integers")
    if not 1 <= limit <= PAGE_MAX or after < 0:
        return failure(400, "bad_query", f"limit is 1 to {PAGE_MAX}, after is a cursor of this endpoint")
    page = rows[after : after + limit]
    more = after + limit < len(rows)
    return answer({"items": page, "next": str(after + limit) if more else None})


async def health(request: web.Request) -> web.Response:
    """State, hashes, agents; 503 when an agent's heartbeat is stale."""
    alive, body = _views(request).health()
    return answer(body, 200 if alive else 503)


async def positions(request: web.Request) -> web.Response:
    """Positions of all symbols."""
    return _page(request, _views(request).positions())


async def position(request: web.Request) -> web.Response:
    """Answer for one symbol: what is our position in it."""
    found = _views(request).position(request.match_info["symbol"].upper())
    return answer(found) if found else failure(404, "not_found", "no such symbol in this session")


async def orders(request: web.Request) -> web.Response:
    """Orders of the day; ?symbol= and ?state= filter."""
    rows = _views(request).orders()
    for name in ("symbol", "state"):
        if name in request.query:
            rows = [row for row in rows if row[name] == request.query[name]]
    return _page(request, rows)


async def latency(request: web.Request) -> web.Response:
    """Percentiles of each stage."""
    return answer({"stages": _views(request).latency()})


async def bicep(request: web.Request) -> web.Response:
    """Rung, samples, gain, SLO."""
    return answer(_views(request).bicep())


def _operator(request: web.Request) -> Operator | web.Response:
    """Return who carries out a command, or the refusal: no token, or nothing to command."""
    operator = request.app.get(OPERATOR)
    if operator is None:
        return failure(
            409, "not_adaptive", 'the rung is fixed by the configuration: bicep.rung is not "auto"'
        )
    if not operator.allows(request.headers.get("Authorization", "")):
        return failure(401, "no_token", f"Authorization: Bearer TOKEN, as in the file {operator.path.name}")
    return operator


async def _body(request: web.Request) -> dict[str, Any]:
    """Return the JSON object of a request; raises ValueError for anything else."""
    body = orjson.loads(await request.read() or b"{}")
    if not isinstance(body, dict):
        msg = "the body is a JSON object"
        raise ValueError(msg)  # noqa: TRY004  one kind of complaint for all that a body may lack
    return body


def _who(body: dict[str, Any]) -> str:
    who = body.get("who", "operator")
    if not isinstance(who, str) or not 0 < len(who) <= NAME_MAX or not who.isprintable():
        msg = f"who is a name of 1 to {NAME_MAX} printable characters"
        raise ValueError(msg)
    return who


async def pin(request: web.Request) -> web.Response:
    """Hold a setting: {"density", "samples"} and, if you like, {"who"}."""
    operator = _operator(request)
    if isinstance(operator, web.Response):
        return operator
    try:
        body = await _body(request)
        density, samples = body.get("density"), body.get("samples", 32)
        if isinstance(density, bool) or not isinstance(density, int | float) or type(samples) is not int:
            msg = "density is a number, samples an integer"
            raise ValueError(msg)  # noqa: TRY301
        who = _who(body)
    except ValueError as error:
        return failure(400, "bad_body", str(error))
    try:
        operator.rungs.pin(float(density), samples, who)
    except ValueError as error:
        return failure(409, "refused", str(error))
    return answer(operator.rungs.status())


async def unpin(request: web.Request) -> web.Response:
    """Let NANopt choose again."""
    operator = _operator(request)
    if isinstance(operator, web.Response):
        return operator
    try:
        who = _who(await _body(request))
    except ValueError as error:
        return failure(400, "bad_body", str(error))
    operator.rungs.unpin(who)
    return answer(operator.rungs.status())


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text, the endpoint's own counters at its end."""
    limit = request.app[LIMIT]
    own = metric("admin_requests_total", "counter", {"": limit.answered})
    own += metric("admin_limited_total", "counter", {"": limit.limited})
    text = _views(request).metrics() + own
    return web.Response(text=text, content_type="text/plain", charset="utf-8")


def build(views: Views, requests_per_s: int, operator: Operator | None = None) -> web.Application:
    """Return the application over `views`, which answers so many requests a second.

    operator: who carries out commands, None = there are none.
    """
    app = web.Application(middlewares=[guard], client_max_size=65_536)
    app[VIEWS], app[LIMIT] = views, TokenBucket(requests_per_s)
    if operator is not None:
        app[OPERATOR] = operator
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/positions", positions),
            web.get("/positions/{symbol}", position),
            web.get("/orders", orders),
            web.get("/latency", latency),
            web.get("/metrics", metrics),
            web.get("/bicep", bicep),
            web.post("/bicep/pin", pin),
            web.post("/bicep/unpin", unpin),
        ]
    )
    return app
