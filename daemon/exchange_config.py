"""The configuration of `contrafusion venue`: a tree of its own, read as that of the daemon is."""

from __future__ import annotations

import dataclasses
import ipaddress
import pathlib

from daemon.config import trading_day
from daemon.settings import load, section, setting
from nimbus.venue.lines import DATAGRAM_MAX, HELD_MAX
from nimbus.venue.publisher import BYTES_MIN

PORT_MAX = 65_535


def ipv4(text: str) -> str:
    """Return an IPv4 address as it was written."""
    return str(ipaddress.IPv4Address(text))


def group(text: str) -> str:
    """Return the IPv4 address of a line, "" = the line is not there."""
    return ipv4(text) if text else ""


def session_id(text: str) -> str:
    """Return a MoldUDP64 session id, "" = made of epoch and time."""
    if text and not (text.isascii() and text.isprintable() and len(text) <= 10 and text.strip() == text):
        msg = "at most 10 printable ASCII characters, no blanks at the ends"
        raise ValueError(msg)
    return text


def comp_ids(text: str) -> tuple[str, ...]:
    """Return the CompIDs in a list separated by commas; each once, at least one."""
    names = tuple(name.strip() for name in text.split(","))
    good = all(name and name.isascii() and name.isprintable() and "=" not in name for name in names)
    if not good or len(set(names)) != len(names):
        msg = "CompIDs are printable ASCII without '=', separated by commas, each once"
        raise ValueError(msg)
    return names


def comp_id(text: str) -> str:
    """Return one CompID."""
    if len(comp_ids(text)) != 1:
        msg = "one CompID"
        raise ValueError(msg)
    return text.strip()


@dataclasses.dataclass(frozen=True, slots=True)
class FlowConfig:
    """The background flow: whose orders ours meet."""

    source: str = setting("generator", "where it comes from", choices=("generator", "capture", "none"))
    capture: str = setting("", "capture file of any kind, for source = capture")
    date: str = setting("1970-01-01", "trading day of a raw ITCH file, YYYY-MM-DD", read=trading_day)
    pace: str = setting(
        "market",
        "market: recorded times, max: as fast as it goes, packets: a fixed rate",
        choices=("market", "max", "packets"),
    )
    speed: float = setting(1.0, "pace = market: market seconds per second", low=0.01, high=100_000.0)
    packets_per_s: int = setting(1_000, "pace = packets: packets a second on each line", low=1, high=10**7)
    start: str = setting(
        "at_once", "when it begins; on_logon: at the first Logon", choices=("at_once", "on_logon")
    )
    at_end: str = setting("stay", "after its last message: stay or stop", choices=("stay", "stop"))


@dataclasses.dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The synthetic day, for source = generator."""

    seed: int = setting(1, "same seed, same day", low=0, high=2**62)
    messages: int = setting(300_000, "ITCH messages", low=108, high=10**9)
    symbols: int = setting(16, "symbols", low=1, high=8_191)


@dataclasses.dataclass(frozen=True, slots=True)
class BookConfig:
    """Capacities of the books, of which there are three; at each limit a message is refused and counted."""

    symbols_max: int = setting(8_192, "stock locates below this", low=2, high=65_535)
    live_orders_max: int = setting(1_048_576, "orders in all books", low=1_024, high=1 << 27)
    levels_max: int = setting(524_288, "price levels in all books", low=1_024, high=1 << 26)


@dataclasses.dataclass(frozen=True, slots=True)
class FeedConfig:
    """The published feed: MoldUDP64 on two lines."""

    session: str = setting(
        "", "session id; empty: made of epoch and time, new at each start", read=session_id
    )
    group_a: str = setting("239.192.7.1", "IPv4 address of line A; empty: no line A", read=group)
    port_a: int = setting(26_477, "UDP port of line A", low=1, high=PORT_MAX)
    group_b: str = setting("239.192.7.2", "IPv4 address of line B; empty: no line B", read=group)
    port_b: int = setting(26_478, "UDP port of line B", low=1, high=PORT_MAX)
    interface: str = setting("127.0.0.1", "IPv4 address of the interface multicast leaves by", read=ipv4)
    ttl: int = setting(1, "time to live of multicast", low=0, high=255)
    loop: bool = setting(default=True, meaning="multicast is seen on this machine too")
    messages_max: int = setting(64, "messages in one packet", low=1, high=1_000)
    bytes_max: int = setting(DATAGRAM_MAX, "bytes of one packet", low=BYTES_MIN, high=DATAGRAM_MAX)
    heartbeat_ms: int = setting(1_000, "silence that brings a heartbeat", low=1, high=60_000)
    store_messages: int = setting(
        4_194_304, "messages kept for rerequests; older ones are gone", low=1_024, high=1 << 27,
        power_of_two=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ImpairConfig:
    """What is done to the datagrams of a line, in parts of a million, for tests."""

    lost_ppm: int = setting(0, "lost", low=0, high=1_000_000)
    duplicated_ppm: int = setting(0, "sent twice", low=0, high=1_000_000)
    reordered_ppm: int = setting(0, "held back", low=0, high=1_000_000)
    reorder_max: int = setting(8, "and passed by at most so many others", low=1, high=HELD_MAX)


@dataclasses.dataclass(frozen=True, slots=True)
class RerequestConfig:
    """The rerequest server (UDP)."""

    host: str = setting("127.0.0.1", "IPv4 address to listen on", read=ipv4)
    port: int = setting(26_479, "UDP port, 0 = any free one", low=0, high=PORT_MAX)
    messages_max: int = setting(64, "messages in one reply", low=1, high=1_000)
    lost_ppm: int = setting(0, "replies lost, parts of a million, for tests", low=0, high=1_000_000)


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotConfig:
    """The snapshot server (TCP, SoupBinTCP)."""

    host: str = setting("127.0.0.1", "IPv4 address to listen on", read=ipv4)
    port: int = setting(26_480, "TCP port, 0 = any free one", low=0, high=PORT_MAX)
    user: str = setting("", "user that may log in; with an empty password: anybody")
    password: str = setting("", "its password")


@dataclasses.dataclass(frozen=True, slots=True)
class FixConfig:
    """The FIX 4.4 acceptor (TCP)."""

    host: str = setting("127.0.0.1", "IPv4 address to listen on", read=ipv4)
    port: int = setting(26_481, "TCP port, 0 = any free one", low=0, high=PORT_MAX)
    sender: str = setting("VENUE", "our CompID", read=comp_id)
    clients: str = setting("CONTRAFUSION", "CompIDs that may log on, separated by commas", read=comp_ids)
    heartbeat_s: int = setting(30, "HeartBtInt expected", low=1, high=3_600)
    reset: str = setting(
        "agreed", "numbers: reset asked for by 141=Y is taken, never, or at each Logon",
        choices=("agreed", "never", "always"),
    )  # fmt: skip
    cancel_on_disconnect: bool = setting(default=True, meaning="orders of a client whose session ends go")
    orders_max: int = setting(1_048_576, "orders in the life of the process", low=64, high=(1 << 24) - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """The process."""

    folder: str = setting("exchange", "FIX numbers, ledger, status, the generated day")
    core: int = setting(-1, "core of the hot thread; -1 = not pinned", low=-1, high=4_095)
    idle: str = setting("backoff", "what it does without work", choices=("busy", "yield", "backoff"))
    sleep_us_max: int = setting(50, "idle = backoff: longest sleep", low=1, high=100_000)
    status_ms: int = setting(1_000, "status.json is written so often", low=10, high=60_000)
    progress_s: float = setting(10.0, "the flow's progress is logged so often", low=0.1, high=3_600.0)
    ends: int = setting(3, "end-of-session packets", low=1, high=100)


@dataclasses.dataclass(frozen=True, slots=True)
class ExchangeConfig:
    """The whole tree."""

    seed: int = setting(1, "key of every random number", low=0, high=2**62)
    flow: FlowConfig = section(FlowConfig)
    generator: GeneratorConfig = section(GeneratorConfig)
    book: BookConfig = section(BookConfig)
    feed: FeedConfig = section(FeedConfig)
    impair_a: ImpairConfig = section(ImpairConfig)
    impair_b: ImpairConfig = section(ImpairConfig)
    rerequest: RerequestConfig = section(RerequestConfig)
    snapshot: SnapshotConfig = section(SnapshotConfig)
    fix: FixConfig = section(FixConfig)
    run: RunConfig = section(RunConfig)


def read_exchange_config(path: pathlib.Path | None) -> ExchangeConfig:
    """Read the configuration file, or the defaults; raises SettingsError with every problem."""
    return load(ExchangeConfig, path)
