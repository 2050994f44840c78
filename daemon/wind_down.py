"""Cancelling what works once the hot loop has ended before its time."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from daemon.pipeline import settle
from daemon.system import System
from nimbus.orders.send import cancel_all

STEPS_MAX: Final = 8_192  # as many as there can be open orders, answered a batch at a time, and more
POLL_S: Final = 0.002
IDLE_STEPS_MAX: Final = 8  # steps in a row after which no order has ended


def cancel_working(system: System) -> int:
    """Ask the venue to cancel every working order and take its answers; return how many orders are left open.

    Only after the hot thread has ended: this thread then is the orders loop.  The journal is not drained
    here, since it may be what failed: cancels and answers use the part of its rings that is kept for them.
    """
    latency_us = system.config.venue.order_latency_us + system.config.venue.report_latency_us
    now_ns, step_ns = system.now_ns, int(latency_us * 1_000) + 1_000
    pool, idle = system.orders.pool, 0
    for _ in range(STEPS_MAX):
        before = pool.open_count
        if not before or idle == IDLE_STEPS_MAX:
            break
        now_ns += step_ns
        cancel_all(system.orders.addr, 0, now_ns)
        settle(system.pipeline, now_ns)
        idle = idle + 1 if pool.open_count == before else 0
    system.control["now_ns"] = now_ns
    return pool.open_count


async def cancel_at_venue(system: System, wait_s: float) -> int:
    """Do the same over the session's socket, by the machine's clock, for at most wait_s seconds."""
    until = time.monotonic() + wait_s
    while system.orders.pool.open_count and time.monotonic() < until:
        now_ns = time.time_ns()
        cancel_all(system.orders.addr, 0, now_ns)
        settle(system.pipeline, now_ns)
        await asyncio.sleep(POLL_S)
    return system.orders.pool.open_count
