"""The orders loop and its FIX connection: one call a duty cycle, and what the end of a connection means.

Here is the seam for the journal: `transport_work` sees each end of a connection with all numbers, before
anyone is told.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.settings import SessionSettings
from nimbus.fix.transport import ENDED, exchange, tell_end
from nimbus.fix.transport_layout import TRANSPORT
from nimbus.fix.transport_owner import Transport
from nimbus.messages import HALTED
from nimbus.orders import kill_switch
from nimbus.orders.agent import Orders
from nimbus.orders.doubt import doubt_open, doubt_pending
from nimbus.orders.risk import SESSION
from nimbus.orders.state import ORDERS
from ringbuf.jit import kernel
from ringbuf.memory import load_i64
from ringbuf.segment import Segment

_ORDERS, _T = ORDERS.at, TRANSPORT.at
_HALTED: Final = HALTED
_RISK: Final = kill_switch.RISK


@kernel
def transport_work(orders: int, transport: int, now_ns: int) -> int:
    """Send and receive what can be now; return how much was done.  Never blocks.

    At the end of a connection every open order is in doubt, after a GapFill of ours those whose requests are
    not answered.  An execution that is too long to be read halts trading: nobody knows what it was.
    """
    oversized, gap_fills = load_i64(transport + _T.oversized), load_i64(transport + _T.gap_fills)
    done = exchange(transport, now_ns)
    if done == ENDED:
        tell_end(transport, doubt_open(orders, now_ns), now_ns)
        done = 1
    if load_i64(transport + _T.gap_fills) != gap_fills:
        doubt_pending(orders, now_ns)
    if load_i64(transport + _T.oversized) != oversized:
        kill_switch.raise_state(load_i64(orders + _ORDERS.kill_switch), _RISK, _HALTED)
    return done


def create_transport(
    segment: Segment,
    orders: Orders,
    settings: SessionSettings,
    *,
    name: str = "transport",
    poll_ns: int = 1_000,
) -> Transport:
    """Allocate the connection of an orders agent, closed; new orders are denied until it is established."""
    return Transport(
        segment, name, settings, poll_ns=poll_ns,
        out=orders.out, inbound=orders.inbound, next_seq=orders.addr + ORDERS.at.next_seq,
        link=orders.session + SESSION.at.link, buffer_used=orders.session + SESSION.at.send_buffer_used,
    )  # fmt: skip
