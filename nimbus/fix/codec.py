"""The forms of FIX 4.4 messages, and the owner of the templates that template.py patches.

A form is one message shape: NewOrderSingle of a side and time in force, OrderCancelRequest of a side, the
four kinds of ExecutionReport, the two of OrderCancelReject.  Every patched value has a constant width and
Symbol(55) comes last, so the offsets of a form are the same for every symbol and BodyLength(9) is constant
per template.
"""

from __future__ import annotations

from typing import Any, Final, Self

from nimbus.fix.digits import SECOND_NEVER, STAMP, STAMP_SIZES
from nimbus.fix.tags import BODY_LENGTH_MAX, ID_SIZE
from nimbus.messages import TIF_DAY, TIF_IOC, WIRE_BYTES_MAX
from ringbuf.records import record
from ringbuf.segment import Segment

# Forms of the order sender: NEW_ORDER + 2 x (sell) + (IOC), CANCEL + (sell).
NEW_ORDER, CANCEL = 0, 4
# Forms of the venue.  A cancel reject has no symbol, its templates are those of locate 0.
STATUS, TRADE, CANCELLED, REJECTED, CANCEL_REJECT, CANCEL_REJECT_UNKNOWN = 0, 1, 2, 3, 4, 5

TEXT_MAX: Final = 448
SYMBOL_SIZE: Final = 8
_TRAILER: Final = b"\x0110=000\x01"

FORM = record(
    "FORM",
    f"""
    i8  size        bytes of text, up to and with "55="
    i8  body_at     first byte after BodyLength(9)
    i8  tag9        offset of the value of BodyLength
    i8  tag34       offsets of the other values, 0 = not in this form
    i8  tag52       SendingTime
    i8  tag60       TransactTime
    i8  tag11       ClOrdID
    i8  tag41       OrigClOrdID
    i8  tag38       OrderQty
    i8  tag44       Price
    i8  tag37       OrderID
    i8  tag17       ExecID
    i8  tag150      ExecType
    i8  tag39       OrdStatus
    i8  tag54       Side
    i8  tag32       LastQty
    i8  tag31       LastPx
    i8  tag151      LeavesQty
    i8  tag14       CumQty
    i8  tag6        AvgPx
    i8  tag103      OrdRejReason
    i8  tag102      CxlRejReason
    2i8 pad         zero
    {TEXT_MAX}u1 text  the message up to and with "55=", zero bytes for every patched value
    """,
)
TEMPLATE = record(
    "TEMPLATE",
    f"""
    i8  symbol      the symbol it was rendered for, as in the directory; 0 = not rendered
    i8  size        bytes of text
    i8  sum         sum of the bytes that CheckSum(10) counts and nobody patches
    5i8 pad         zero
    {TEXT_MAX}u1 text  a whole message
    """,
)
CODEC = record(
    "CODEC",
    """
    i8  forms       address of the FORM records
    i8  forms_count  how many there are
    i8  templates   address of the TEMPLATE records: forms_count for each locate
    i8  symbols     address of the symbol of locate 0: 8 ASCII bytes, padded with spaces or zeros
    i8  symbols_stride  bytes from one locate's symbol to the next
    i8  symbols_max  locates from here on are refused
    i8  stamp       address of the STAMP
    i8  digits      fraction digits of 52 and 60: 0, 3, 6, 9
    i8  epoch       run number, in OrderID(37) and ExecID(17)
    7i8 pad         zero
    """,
)
REPORT = record(
    "REPORT",
    """
    i8  order_id    the venue's order number, 0 = it has none
    i8  exec_id     number of the execution
    i8  px          limit price of the order
    i8  qty         its shares
    i8  last_px     price of the trade, else 0
    i8  last_qty    shares of the trade, else 0
    i8  leaves_qty  shares open
    i8  cum_qty     shares filled
    i8  cost        sum of qty x px of its fills
    u2  locate      stock locate
    u1  side        B or S
    u1  exec_type   ExecType(150) as its character
    u1  ord_status  OrdStatus(39) as its character
    u1  reason      OrdRejReason(103) or CxlRejReason(102), 0-99
    2u1 pad         zero
    16u1 cl_ord_id  ClOrdID(11)
    16u1 orig_cl_ord_id  OrigClOrdID(41), only where a cancel request is answered
    2i8 pad2        zero
    """,
)


# Shapes: "tag=literal" or "tag:kind"; the header and the symbol are added by _form_text.
_ORDER_SHAPE: Final = "11:id 54={side} 60:stamp 38:qty 40=2 44:px 59={tif}"
_CANCEL_SHAPE: Final = "11:id 41:id 54={side} 60:stamp 38:qty"
_REPORT_SHAPE: Final = (
    "37:id 11:id {more}17:id 150:char 39:char 54:char 38:qty 44:px 151:qty 14:qty 6:px 60:stamp"
)
_REJECT_SHAPE: Final = "{order_id} 11:id 41:id 39:char 434=1 102:pair 60:stamp"

_SIDES: Final = ("1", "2")  # Side(54): buy, sell
ORDER_SHAPES: Final = (
    *(("D", _ORDER_SHAPE.format(side=side, tif=tif)) for side in _SIDES for tif in (TIF_DAY, TIF_IOC)),
    *(("F", _CANCEL_SHAPE.format(side=side)) for side in _SIDES),
)
REPORT_SHAPES: Final = (
    *(("8", _REPORT_SHAPE.format(more=more)) for more in ("", "32:qty 31:px ", "41:id ", "103:pair ")),
    *(("9", _REJECT_SHAPE.format(order_id=order_id)) for order_id in ("37:id", "37=NONE")),
)


def _form_text(
    msg_type: str, shape: str, comp_ids: tuple[str, str], digits: int
) -> tuple[bytes, dict[str, int]]:
    """Return a form's text up to and with "55=", and the offset of each value to patch."""
    sender, target = comp_ids
    widths = {
        "seq": 9, "stamp": STAMP_SIZES[digits], "id": ID_SIZE, "qty": 7, "px": 11, "char": 1, "pair": 2,
    }  # fmt: skip
    text, offsets = "8=FIX.4.4\x019=0000\x01", {"tag9": 12}
    header = f"35={msg_type} 34:seq 49={sender} 52:stamp 56={target}"
    for field in f"{header} {shape}".split():
        if ":" in field:
            tag, kind = field.split(":")
            offsets[f"tag{tag}"] = len(text) + len(tag) + 1
            field = f"{tag}=" + "\0" * widths[kind]  # noqa: PLW2901
        text += f"{field}\x01"
    return text.encode("ascii"), offsets | {"body_at": 17}


class Codec:
    """Owns the forms and templates of one sender of FIX messages; `addr` goes to the encode kernels.

    shapes: ORDER_SHAPES or REPORT_SHAPES.  symbols: address of the symbol of locate 0, 8 bytes each
    `symbols_stride` apart, read at every message.  Raises ValueError when a message could outgrow its slot.
    """

    def __init__(
        self, segment: Segment, name: str, shapes: tuple[tuple[str, str], ...], *, comp_ids: tuple[str, str],
        symbols: int, symbols_max: int, symbols_stride: int = SYMBOL_SIZE, epoch: int = 1,
        timestamp_digits: int = 3,
    ) -> None:  # fmt: skip
        self.addr = segment.allocate(name, CODEC.size)
        forms = segment.allocate(f"{name}.forms", len(shapes) * FORM.size)
        stamp = segment.allocate(f"{name}.stamp", STAMP.size)
        templates = segment.allocate(f"{name}.templates", symbols_max * len(shapes) * TEMPLATE.size)
        segment.array(f"{name}.stamp", STAMP)[0]["second_ns"] = SECOND_NEVER
        for row, (msg_type, shape) in zip(segment.array(f"{name}.forms", FORM), shapes, strict=True):
            self._declare(
                row, *_form_text(msg_type, shape, comp_ids, timestamp_digits), has_symbol=msg_type != "9"
            )
        state: dict[str, int] = {
            "forms": forms, "forms_count": len(shapes), "templates": templates, "stamp": stamp,
            "symbols": symbols, "symbols_stride": symbols_stride, "symbols_max": symbols_max,
            "digits": timestamp_digits, "epoch": epoch,
        }  # fmt: skip
        for field, value in state.items():
            segment.array(name, CODEC)[0][field] = value
        unsigned = segment.array(f"{name}.templates", TEMPLATE)[: len(shapes)]
        for form, template in zip(segment.array(f"{name}.forms", FORM), unsigned, strict=True):
            self._render_without_symbol(form, template)
        self.epoch, self.timestamp_digits = epoch, timestamp_digits

    @classmethod
    def for_orders(cls, segment: Segment, name: str, **settings: Any) -> Self:
        """Build the order sender's codec: encode_new_order, encode_cancel."""
        return cls(segment, name, ORDER_SHAPES, **settings)

    @classmethod
    def for_venue(cls, segment: Segment, name: str, **settings: Any) -> Self:
        """Build the venue's codec: encode_report, encode_cancel_reject."""
        return cls(segment, name, REPORT_SHAPES, **settings)

    @staticmethod
    def _declare(row: Any, text: bytes, offsets: dict[str, int], *, has_symbol: bool) -> None:
        text += b"55=" if has_symbol else b""
        whole = len(text) + SYMBOL_SIZE + len(_TRAILER)
        if whole > min(TEXT_MAX, WIRE_BYTES_MAX, BODY_LENGTH_MAX):
            msg = f"a message of {whole} bytes does not fit: shorten the CompIDs"
            raise ValueError(msg)
        row["text"][: len(text)] = list(text)
        row["size"] = len(text)
        for field, offset in offsets.items():
            row[field] = offset

    @staticmethod
    def _render_without_symbol(form: Any, template: Any) -> None:
        """Render the templates of locate 0, the place of the forms that name no symbol."""
        text = bytes(form["text"][: form["size"]])
        length = len(text) - int(form["body_at"])
        text = text.replace(b"9=0000\x01", b"9=%04d\x01" % length, 1) + _TRAILER[1:]
        template["text"][: len(text)] = list(text)
        template["size"] = len(text)
        template["sum"] = sum(text[: 1 - len(_TRAILER)])
