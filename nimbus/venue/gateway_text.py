"""The words of the gateway: orders read from FIX text, identifiers, decimals, reasons."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

from nimbus.book.layout import PX_MAX
from nimbus.fix import tags
from nimbus.fix.digits import ALPHABET
from nimbus.fix.message import Message, fields
from nimbus.fix.tags import QTY_MAX
from nimbus.messages import TIF_DAY, TIF_IOC
from nimbus.venue import engine_layout as layout

LAST_LIQUIDITY: Final = 851
ACCOUNT: Final = 1
CL_ORD_ID_MAX: Final = 32
ACCOUNT_MAX: Final = 32
UNIT: Final = 10_000  # prices are 1/10,000
# ExecIDs of reports that the engine knows nothing of: their numbers begin with V and U.
GATEWAY_IDS, ORPHAN_IDS = 31 << 55, 30 << 55
Pairs = list[tuple[int, bytes | str | int]]
_DECIMAL: Final = re.compile(r"(\d{1,12})(?:\.(\d{0,12}))?", re.ASCII)
_SIDES: Final = {"1": "B", "2": "S"}
_TIFS: Final = {"": TIF_DAY, "0": TIF_DAY, "3": TIF_IOC}
# Tags without which a message cannot be answered for what it is.
_REQUIRED: Final = {
    "D": (tags.CL_ORD_ID, tags.SYMBOL, tags.SIDE, tags.ORDER_QTY, tags.ORD_TYPE),
    "F": (tags.CL_ORD_ID, tags.ORIG_CL_ORD_ID),
    "H": (tags.CL_ORD_ID,),
    "AF": (584, 585),
}


class Words(NamedTuple):
    """A refusal in words, as OrdRejReason(103) and as CxlRejReason(102) of FIX 4.4."""

    text: str
    reason: int
    cancel_reason: int = 99


class Refusal(Enum):
    """Why a message is refused before the engine sees it, or a cancel after."""

    DUPLICATE = Words("ClOrdID was used before", 6, 6)
    BUSY = Words("the exchange is busy: try again", 99, 99)
    NO_MORE = Words("the exchange takes no more orders today", 3)
    BAD_ID = Words(f"ClOrdID and Account have at most {CL_ORD_ID_MAX} printable characters", 99)
    BAD_SYMBOL = Words("unknown symbol", 1)
    BAD_SIDE = Words("Side must be 1 (buy) or 2 (sell)", 99)
    BAD_TYPE = Words("OrdType must be 2 (limit)", 11)
    BAD_TIF = Words("TimeInForce must be 0 (day) or 3 (immediate or cancel)", 11)
    BAD_QTY = Words(f"OrderQty must be a whole number from 1 to {QTY_MAX}", 13)
    BAD_PX = Words(
        f"Price must be from 0.0001 to {PX_MAX // UNIT}.{PX_MAX % UNIT:04d}, at most 4 digits after the dot",
        99,
    )
    UNKNOWN_ORDER = Words("unknown order", 5, 1)
    TOO_LATE = Words("too late to cancel", 99, 0)


class NewOrder(NamedTuple):
    """A NewOrderSingle as the gateway understood it; refusal: why it cannot be an order."""

    cl_ord_id: str
    account: str
    symbol: str
    side: str  # B or S
    side_code: str  # as it was sent
    qty: int
    px: int
    tif: int
    refusal: Refusal | None


def parse_decimal(value: str, scale: int) -> int:
    """Return an unsigned decimal times `scale` (a power of ten), exactly; -1 when it is none."""
    match = _DECIMAL.fullmatch(value)
    if match is None:
        return -1
    digits, fraction = len(str(scale)) - 1, match[2] or ""
    if fraction[digits:].strip("0"):
        return -1
    return int(match[1]) * scale + int((fraction[:digits] or "0").ljust(digits, "0")[:digits] or "0")


def _refusal(order: NewOrder, ord_type: str) -> Refusal | None:
    """Return the first reason for which an order cannot be."""
    checks = (
        (_is_printable(order.cl_ord_id) and _is_printable(order.account), Refusal.BAD_ID),
        (_is_printable(order.symbol) and len(order.symbol) <= 8, Refusal.BAD_SYMBOL),
        (order.side in {"B", "S"}, Refusal.BAD_SIDE),
        (ord_type == "2", Refusal.BAD_TYPE),
        (order.tif >= 0, Refusal.BAD_TIF),
        (1 <= order.qty <= QTY_MAX, Refusal.BAD_QTY),
        (1 <= order.px <= PX_MAX, Refusal.BAD_PX),
    )
    return next((refusal for is_good, refusal in checks if not is_good), None)


def _is_printable(value: str) -> bool:
    return value.isascii() and value.isprintable() and 0 < len(value) <= CL_ORD_ID_MAX


def read_order(message: Message, client: str) -> NewOrder:
    """Read a NewOrderSingle; the account is Account(1), or the client's CompID."""
    side_code = message.text(tags.SIDE)
    order = NewOrder(
        cl_ord_id=message.text(tags.CL_ORD_ID),
        account=message.text(ACCOUNT) or client,
        symbol=message.text(tags.SYMBOL),
        side=_SIDES.get(side_code, "?"),
        side_code=side_code or "7",  # 7 = undisclosed: a status request need not say
        qty=parse_decimal(message.text(tags.ORDER_QTY), 1),
        px=parse_decimal(message.text(tags.PRICE), UNIT),
        tif=_TIFS.get(message.text(tags.TIME_IN_FORCE), -1),
        refusal=None,
    )
    refusal = _refusal(order, message.text(tags.ORD_TYPE))
    return order._replace(refusal=refusal, qty=max(order.qty, 0), px=max(order.px, 0))


def nothing_open(client: str) -> NewOrder:
    """Return what the answer to a mass status request speaks of when nothing is open."""
    return NewOrder("NONE", client, "[N/A]", "B", "7", 0, 0, TIF_DAY, None)


def identifier(epoch: int, number: int) -> str:
    """Return 16 characters: 4 for the run epoch, 12 for a number, in base 32."""
    word = (epoch << 60) | number
    return "".join(ALPHABET[(word >> (5 * place)) & 31] for place in range(15, -1, -1))


def decimal(px: int) -> str:
    """Return a price as text with four digits after the dot."""
    return f"{px // UNIT}.{px % UNIT:04d}"


def average(cost: int, qty: int) -> str:
    """Return the average price of fills, cut to 1/10,000."""
    return decimal(cost // qty) if qty else "0"


def reject_reason(reason: int) -> int:
    """Return OrdRejReason(103) for a reason of the engine."""
    known = {layout.UNKNOWN_SYMBOL: 1, layout.CLOSED: 2, layout.FULL: 3, layout.BAD_QTY: 13}
    return known.get(reason, 99)


def missing_tag(message: Message) -> int:
    """Return a required tag that a message does not have, 0 = all are there."""
    return next((tag for tag in _REQUIRED.get(message.msg_type, ()) if not message.get(tag)), 0)


def tag_missing(message: Message, tag: int) -> bytes:
    """Return the body of a session Reject: a required tag is missing."""
    pairs: Pairs = [
        (tags.REF_SEQ_NUM, message.seq), (tags.TEXT, "Required tag missing"), (tags.REF_TAG_ID, tag),
        (tags.REF_MSG_TYPE, message.msg_type), (tags.SESSION_REJECT_REASON, 1),
    ]  # fmt: skip
    return fields(pairs)


def unsupported(message: Message) -> bytes:
    """Return the body of a BusinessMessageReject: this kind of message is not handled here."""
    pairs: Pairs = [
        (tags.REF_SEQ_NUM, message.seq), (tags.TEXT, "unsupported message type"),
        (tags.REF_MSG_TYPE, message.msg_type), (tags.BUSINESS_REJECT_REASON, 3),
    ]  # fmt: skip
    return fields(pairs)
