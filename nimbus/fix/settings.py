"""What is agreed for one FIX session."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nimbus.fix.dialect import FIX44, Dialect
from nimbus.fix.message import NS_PER_S, Address

HEARTBEAT_S_MAX: Final = 3_600


class Role(Enum):
    """Who opens the connection and sends the first Logon."""

    INITIATOR = "initiator"
    ACCEPTOR = "acceptor"


class Reset(Enum):
    """When both numbers go back to 1 (S02, S34).

    NEVER: ResetSeqNumFlag(141) is refused.  AGREED: an acceptor takes 141=Y, an initiator sends it where its
    caller says that a day begins.  ALWAYS: at every Logon, with 141 (initiator) or without (acceptor).
    """

    NEVER = "never"
    AGREED = "agreed"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """One session as our side sees it; times in seconds.

    target: the counterparty; an acceptor takes every one for which it has a store.  resend_chunk: numbers in
    one ResendRequest, 0 = up to the end (S35).  time_limit_s: how far 52 may be off our clock (S19).
    """

    role: Role
    sender: str
    target: str = ""
    dialect: Dialect = FIX44
    heartbeat_s: int = 30
    reset: Reset = Reset.NEVER
    time_limit_s: float = 120.0
    logon_timeout_s: float = 10.0
    logout_timeout_s: float = 10.0
    offence_timeout_s: float = 2.0
    resend_timeout_s: float = 10.0
    resend_tries: int = 3
    resend_chunk: int = 0
    test_req_id: str = "TEST"
    username: str = ""
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Refuse what can never work."""
        names = [self.sender, self.test_req_id, self.target or "ANY"]
        if not all(name.isascii() and name.isprintable() and name and "=" not in name for name in names):
            msg = f"CompIDs and TestReqID are printable ASCII without '=': {names}"
            raise ValueError(msg)
        if self.role is Role.INITIATOR and not self.target:
            msg = "an initiator needs the CompID of its counterparty"
            raise ValueError(msg)
        if not 1 <= self.heartbeat_s <= HEARTBEAT_S_MAX or self.resend_chunk < 0:
            msg = f"heartbeat_s {self.heartbeat_s}, resend_chunk {self.resend_chunk}: out of range"
            raise ValueError(msg)

    def address(self, target: str = "") -> Address:
        """Return what our messages begin with."""
        return Address(self.dialect.begin_string, self.sender, target or self.target)


def to_ns(seconds: float) -> int:
    """Convert seconds of the settings to ns."""
    return int(seconds * NS_PER_S)
