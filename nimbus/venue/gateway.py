"""The gateway: FIX 4.4 application messages to engine requests, engine events to FIX bodies.  No I/O.

    gateway.take(client, message)    a message of a logged-on client; what can be answered at once is answered
    gateway.drain()                  what the engine has said since
    gateway.cancel_all(client)       its connection is gone: every order that may still work is cancelled
    gateway.replies()                what to send: (client, MsgType, body)

| message | answer |
|---|---|
| D NewOrderSingle | New and what follows, or Rejected with a text |
| F OrderCancelRequest | Canceled, or OrderCancelReject |
| H OrderStatusRequest | ExecutionReport of type I |
| AF OrderMassStatusRequest (585=7) | one of type I for each open order of the client, or for none |
| others | BusinessMessageReject: unsupported |

ClOrdIDs of a client are unique as long as the process lives.  OrderID and ExecID are 16 characters: four for
the run epoch, twelve for a number.  Each trade is in the ledger before its report is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from nimbus.book.owner import symbol_word
from nimbus.fix import tags
from nimbus.fix.message import Message, fields, stamp
from nimbus.venue import engine_layout as layout
from nimbus.venue import gateway_text as text
from nimbus.venue.engine import Engine
from nimbus.venue.engine_layout import CANCEL_ORDER, NEW_ORDER, ORDER_EVENT, REASONS, REQUEST
from nimbus.venue.gateway_text import NewOrder, Pairs, Refusal, identifier
from nimbus.venue.ledger import Ledger
from ringbuf.jit import kernel
from ringbuf.spsc import pop_into, try_push

EVENTS_BATCH: Final = 512
ACCOUNT_TAG, MASS_STATUS_REQ_ID, MASS_STATUS_REQ_TYPE, ALL_ORDERS = 1, 584, 585, "7"
_CLOSED_STATUS: Final = "248"  # filled, cancelled, rejected


class Reply(NamedTuple):
    """A message for a client, without its header."""

    client: str
    msg_type: str
    body: bytes


@dataclass(slots=True)
class Order:
    """An order as its client knows it."""

    number: int
    client: str
    wanted: NewOrder
    status: str = "A"  # pending new, until the engine has answered
    leaves_qty: int = 0
    cum_qty: int = 0
    cost: int = 0
    reason: str = ""
    is_sent: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it may still trade."""
        return self.is_sent and self.status not in _CLOSED_STATUS


@dataclass(slots=True)
class Counts:
    """What the gateway saw."""

    orders: int = 0
    cancels: int = 0
    status_requests: int = 0
    rejected: int = 0  # here, before the engine saw them
    unsupported: int = 0
    disconnect_cancels: int = 0


@dataclass(slots=True)
class _Client:
    """What is known of one counterparty: its ClOrdIDs and what they stand for."""

    orders: dict[str, Order] = field(default_factory=dict)
    requests: set[str] = field(default_factory=set)


@kernel
def push_request(ring: int, request: int) -> int:
    """Push one REQUEST (0 = none); return 1, or 0 when the ring is full."""
    return 1 if request != 0 and try_push(ring, request) else 0


class Gateway:
    """The order entry side of one exchange, for all its clients."""

    def __init__(self, engine: Engine, ledger: Ledger, *, epoch: int) -> None:
        self._engine, self._ledger, self.epoch = engine, ledger, epoch
        self._clients: dict[str, _Client] = {}
        self._orders: dict[int, Order] = {}
        self._cancels: dict[int, str] = {}  # request number -> ClOrdID of the cancel request
        self._requests = self._executions = 0
        self._request = np.zeros(1, REQUEST.dtype)
        self._events = np.zeros(EVENTS_BATCH, ORDER_EVENT.dtype)
        self._replies: deque[Reply] = deque()
        self.counts = Counts()

    def warm(self) -> None:
        """Compile what the gateway calls, or load it from the cache, without a request."""
        push_request(self._engine.requests, 0)
        self.drain()

    def replies(self) -> list[Reply]:
        """Return the messages to send, oldest first, once."""
        found = list(self._replies)
        self._replies.clear()
        return found

    def open_orders(self, client: str) -> list[Order]:
        """Return the orders of a client that may still trade, oldest first."""
        known = self._clients.get(client)
        return [order for order in known.orders.values() if order.is_open] if known else []

    # ---------------------------------------------------------------- from the client

    def take(self, client: str, message: Message, now_ns: int) -> None:
        """Handle an application message."""
        handlers = {"D": self._new, "F": self._cancel, "H": self._status, "AF": self._mass_status}
        handler = handlers.get(message.msg_type)
        if handler is None:
            if message.msg_type in {"3", "j"}:  # the client rejects something: nothing to answer
                return
            self.counts.unsupported += 1
            self._say(client, "j", text.unsupported(message))
            return
        missing = text.missing_tag(message)
        if missing:
            self.counts.rejected += 1
            self._say(client, "3", text.tag_missing(message, missing))
            return
        handler(client, message, now_ns)

    def _client(self, client: str) -> _Client:
        return self._clients.setdefault(client, _Client())

    def _is_fresh(self, client: str, cl_ord_id: str) -> bool:
        """Say whether a ClOrdID was never used, and remember it."""
        known = self._client(client)
        if cl_ord_id in known.orders or cl_ord_id in known.requests:
            return False
        known.requests.add(cl_ord_id)
        return True

    def _new(self, client: str, message: Message, now_ns: int) -> None:
        self.counts.orders += 1
        wanted = text.read_order(message, client)
        refusal = wanted.refusal
        if not self._is_fresh(client, wanted.cl_ord_id):
            refusal = Refusal.DUPLICATE
        order = Order(len(self._orders) + 1, client, wanted)
        if refusal is None and order.number > self._engine.orders_max:
            refusal = Refusal.NO_MORE
        if refusal is None and not self._send_new(order):
            refusal = Refusal.BUSY
        if refusal is not None:
            self.counts.rejected += 1
            order.status, order.reason = "8", refusal.value.text
            self._report(order, "8", now_ns, reject_reason=refusal.value.reason)
            return
        order.is_sent = True
        self._orders[order.number] = order
        self._client(client).orders[wanted.cl_ord_id] = order

    def _send(self, values: dict[str, int]) -> int:
        """Push a request; return its number, 0 = the ring is full."""
        self._request.view(np.uint8)[:] = 0
        for name, value in values.items():
            self._request[name][0] = value
        self._request["request"][0] = self._requests + 1
        if not push_request(self._engine.requests, self._request.ctypes.data):
            return 0
        self._requests += 1
        return self._requests

    def _send_new(self, order: Order) -> int:
        wanted = order.wanted
        return self._send({
            "number": order.number, "kind": NEW_ORDER, "side": ord(wanted.side), "px": wanted.px,
            "qty": wanted.qty, "tif": wanted.tif, "symbol": symbol_word(wanted.symbol),
        })  # fmt: skip

    def _cancel(self, client: str, message: Message, now_ns: int) -> None:
        self.counts.cancels += 1
        cl_ord_id, orig = message.text(tags.CL_ORD_ID), message.text(tags.ORIG_CL_ORD_ID)
        order = self._client(client).orders.get(orig)
        if order is None:
            self._refuse_cancel(client, cl_ord_id, orig, None, Refusal.UNKNOWN_ORDER, now_ns)
        elif not self._is_fresh(client, cl_ord_id):
            self._refuse_cancel(client, cl_ord_id, orig, order, Refusal.DUPLICATE, now_ns)
        else:
            number = self._send({"number": order.number, "kind": CANCEL_ORDER})
            if number == 0:
                self._refuse_cancel(client, cl_ord_id, orig, order, Refusal.BUSY, now_ns)
            else:
                self._cancels[number] = cl_ord_id

    def cancel_all(self, client: str) -> int:
        """Cancel every order of a client that may still work; return how many could not be asked for."""
        left = 0
        for order in self.open_orders(client):
            if self._send({"number": order.number, "kind": CANCEL_ORDER}):
                self.counts.disconnect_cancels += 1
            else:
                left += 1
        return left

    def _status(self, client: str, message: Message, now_ns: int) -> None:
        self.counts.status_requests += 1
        cl_ord_id = message.text(tags.CL_ORD_ID)
        order = self._client(client).orders.get(cl_ord_id)
        if order is None:
            wanted = text.read_order(message, client)
            order = Order(0, client, wanted, status="8", reason=Refusal.UNKNOWN_ORDER.value.text)
        self._report(order, "I", now_ns)

    def _mass_status(self, client: str, message: Message, now_ns: int) -> None:
        self.counts.status_requests += 1
        request = message.get(MASS_STATUS_REQ_ID) or b""
        if message.text(MASS_STATUS_REQ_TYPE) != ALL_ORDERS:
            self._say(client, "j", text.unsupported(message))
            return
        orders = self.open_orders(client)
        for place, order in enumerate(orders, 1):
            counted: Pairs = [(911, len(orders)), (912, "Y" if place == len(orders) else "N")]
            self._report(order, "I", now_ns, more=[(584, request), *counted])
        if not orders:
            none = Order(0, client, text.nothing_open(client), status="8", reason="no open order")
            counted = [(911, 0), (912, "Y")]
            self._report(none, "I", now_ns, more=[(584, request), *counted])

    # ---------------------------------------------------------------- from the engine

    def drain(self) -> int:
        """Turn what the engine has said since into replies and ledger entries; return how many events.

        Raises LedgerError.
        """
        total = 0
        while True:
            count = pop_into(self._engine.events, self._events.ctypes.data, EVENTS_BATCH)
            for row in self._events[:count]:
                self._take_event(row)
            total += count
            if count < EVENTS_BATCH:
                return total

    def _take_event(self, row: Any) -> None:
        order, kind = self._orders[int(row["number"])], int(row["kind"])
        now_ns, request = int(row["now_ns"]), int(row["request"])
        reason = REASONS[int(row["reason"])]
        if kind == layout.CANCEL_REJECTED:
            cl_ord_id = self._cancels.pop(request, "")
            if cl_ord_id:  # else it was cancelled because its client went away, and is gone already
                orig = order.wanted.cl_ord_id
                self._refuse_cancel(order.client, cl_ord_id, orig, order, Refusal.TOO_LATE, now_ns)
            return
        order.status, order.reason = chr(row["status"]), reason
        order.leaves_qty, order.cum_qty = int(row["leaves_qty"]), int(row["cum_qty"])
        order.cost = int(row["cost"])
        exec_id = identifier(self.epoch, int(row["exec"]))
        if kind == layout.TRADED:
            self._trade(order, row, exec_id)
            return
        exec_type = {layout.ACCEPTED: "0", layout.CANCELED: "4", layout.REJECTED: "8"}[kind]
        cancel = self._cancels.pop(request, "") if kind == layout.CANCELED else ""
        if kind == layout.CANCELED and not cancel and not reason:
            order.reason = "cancelled: the session ended"
        code = text.reject_reason(int(row["reason"])) if kind == layout.REJECTED else -1
        self._report(order, exec_type, now_ns, exec_id=exec_id, cancel=cancel, reject_reason=code)

    def _trade(self, order: Order, row: Any, exec_id: str) -> None:
        wanted, last_px, last_qty = order.wanted, int(row["last_px"]), int(row["last_qty"])
        self._ledger.trade({
            "ts_ns": int(row["now_ns"]), "exec_id": exec_id, "order_id": identifier(self.epoch, order.number),
            "cl_ord_id": wanted.cl_ord_id, "client": order.client, "account": wanted.account,
            "symbol": wanted.symbol, "side": wanted.side, "qty": last_qty, "px_1e4": last_px,
            "seq": int(row["seq"]), "match": int(row["match"]),
        })  # fmt: skip
        last = (last_qty, last_px, int(row["liquidity"]))
        self._report(order, "F", int(row["now_ns"]), exec_id=exec_id, last=last)

    # ---------------------------------------------------------------- to the client

    def _say(self, client: str, msg_type: str, body: bytes) -> None:
        self._replies.append(Reply(client, msg_type, body))

    def _own_id(self) -> str:
        """Return an ExecID for a report that the engine knows nothing of."""
        self._executions += 1
        return identifier(self.epoch, text.GATEWAY_IDS + self._executions)

    def _report(
        self, order: Order, exec_type: str, now_ns: int, *, exec_id: str = "", cancel: str = "",
        reject_reason: int = -1, last: tuple[int, int, int] | None = None,
        more: Pairs | None = None,
    ) -> None:  # fmt: skip
        wanted, pairs = order.wanted, list(more or [])
        pairs += [
            (ACCOUNT_TAG, wanted.account), (tags.AVG_PX, text.average(order.cost, order.cum_qty)),
            (tags.CL_ORD_ID, cancel or wanted.cl_ord_id), (tags.CUM_QTY, order.cum_qty),
            (tags.EXEC_ID, exec_id or self._own_id()),
            (tags.ORDER_ID, identifier(self.epoch, order.number) if order.is_sent else "NONE"),
            (tags.ORDER_QTY, wanted.qty), (tags.ORD_STATUS, order.status), (tags.SIDE, wanted.side_code),
            (tags.SYMBOL, wanted.symbol), (tags.TRANSACT_TIME, stamp(now_ns)), (tags.EXEC_TYPE, exec_type),
            (tags.LEAVES_QTY, order.leaves_qty),
        ]  # fmt: skip
        if wanted.px > 0:
            pairs.append((tags.PRICE, text.decimal(wanted.px)))
        if last is not None:
            pairs += [(tags.LAST_PX, text.decimal(last[1])), (tags.LAST_QTY, last[0])]
            pairs.append((text.LAST_LIQUIDITY, last[2]))
        if cancel:
            pairs.append((tags.ORIG_CL_ORD_ID, wanted.cl_ord_id))
        if order.reason:
            pairs.append((tags.TEXT, order.reason))
        if reject_reason >= 0:
            pairs.append((tags.ORD_REJ_REASON, reject_reason))
        self._say(order.client, "8", fields(sorted(pairs, key=lambda pair: pair[0])))

    def _refuse_cancel(
        self, client: str, cl_ord_id: str, orig: str, order: Order | None, why: Refusal, now_ns: int
    ) -> None:
        pairs: Pairs = [
            (tags.CL_ORD_ID, cl_ord_id),
            (tags.ORDER_ID, identifier(self.epoch, order.number) if order else "NONE"),
            (tags.ORD_STATUS, order.status if order else "8"), (tags.ORIG_CL_ORD_ID, orig),
            (tags.TEXT, why.value.text), (tags.TRANSACT_TIME, stamp(now_ns)),
            (tags.CXL_REJ_REASON, why.value.cancel_reason), (tags.CXL_REJ_RESPONSE_TO, 1),
        ]  # fmt: skip
        self._say(client, "9", fields(pairs))
