"""FIX as a join of strings: the slow twin of nimbus/fix, written from the standard's tag=value rules."""

from __future__ import annotations

import datetime as dt

SOH = "\x01"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUV"


def join(
    msg_type: str, fields: list[tuple[int, str]], *, begin: str = "FIX.4.4", length_digits: int = 0
) -> bytes:
    """Return a whole message: 8, 9, 35, the fields in their order, 10."""
    body = f"35={msg_type}{SOH}" + "".join(f"{tag}={value}{SOH}" for tag, value in fields)
    head = f"8={begin}{SOH}9={len(body.encode('latin-1')):0{length_digits}d}{SOH}"
    text = (head + body).encode("latin-1")
    return text + f"10={sum(text) % 256:03d}{SOH}".encode()


def stamp(now_ns: int, digits: int) -> str:
    """Return a UTCTimestamp with a fraction of 0, 3, 6 or 9 digits, cut."""
    seconds, rest = divmod(now_ns, 10**9)
    text = (EPOCH + dt.timedelta(seconds=seconds)).strftime("%Y%m%d-%H:%M:%S")
    return text + (f".{rest:09d}"[: digits + 1] if digits else "")


def px(value: int) -> str:
    """Return a price of 1/10,000 at the width of the templates."""
    return f"{value // 10_000:06d}.{value % 10_000:04d}"


def identifier(epoch: int, number: int) -> str:
    """Return 4 base-32 characters of epoch and 12 of number."""
    value, text = (epoch << 60) | number, ""
    for _ in range(16):
        text = ALPHABET[value % 32] + text
        value //= 32
    return text
