"""The configuration: every setting of Contrafusion, with its default, meaning and limits.

Each owner gets exactly its branch.  Units stand last in the key.  `config_hash` is part of the journal,
of summary.json and of the report, so two runs can be told apart.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import orjson

from daemon.settings import flatten, load, section, setting


@dataclasses.dataclass(frozen=True, slots=True)
class FeedConfig:
    """Where market data comes from."""

    capture: str = setting("", "capture file that `run` plays at recorded speed")
    speed: float = setting(1.0, "`run`: market seconds per second", low=0.01, high=100_000.0)
    date: str = setting("1970-01-01", "trading day of a raw ITCH file, YYYY-MM-DD (UTC midnight)")
    checksums: str = setting("count", "wrong UDP checksums: count or refuse", choices=("count", "refuse"))


@dataclasses.dataclass(frozen=True, slots=True)
class BookConfig:
    """Capacities of the books; at each limit the order is refused and counted, the book marked faulty."""

    symbols_max: int = setting(8_192, "stock locates below this", low=2, high=65_536)
    live_orders_max: int = setting(2_097_152, "orders in all books", low=1_024, high=1 << 27)
    levels_max: int = setting(524_288, "price levels in all books", low=1_024, high=1 << 26)
    paranoid: bool = setting(default=False, meaning="check every book after each drain of the journal")


@dataclasses.dataclass(frozen=True, slots=True)
class NewsConfig:
    """News of the replay or of the live session."""

    file: str = setting("", "news file (JSON lines); empty: CAPTURE.news.jsonl when it is there")
    provider: str = setting("hashed", "sentiment provider", choices=("hashed", "file"))
    half_life_s: float = setting(1_800.0, "the weight of an item halves in this time", low=1.0, high=1e7)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model answers."""

    kind: str = setting(
        "auto",
        "auto: the trained plan if the folder has one, else the fixed rule; off: features only",
        choices=("auto", "fusionnet", "rule", "off"),
    )
    folder: str = setting("models/default", "folder of the trained plan")


@dataclasses.dataclass(frozen=True, slots=True)
class RiskConfig:
    """Pre-trade limits; the R numbers are the reasons of a denial."""

    order_qty_max: int = setting(1_000, "R3: shares in one order", low=1, high=9_999_999)
    lot_qty: int = setting(1, "R3: shares are a multiple of this", low=1, high=1_000_000)
    order_notional_max: int = setting(1_000_000, "R4: dollars of one order", low=1, high=10**11)
    collar_bp: int = setting(500, "R5: distance from the reference price", low=1, high=10_000)
    orders_per_s: int = setting(200, "R9: refill of the token bucket", low=1, high=1_000_000)
    orders_burst: int = setting(400, "R9: size of the token bucket", low=1, high=1_000_000)
    position_max: int = setting(5_000, "R11: shares, open orders counted", low=1, high=400_000_000)
    open_orders_max: int = setting(1_024, "R15: live and in-flight orders", low=1, high=1_048_576)
    symbol_open_orders_max: int = setting(8, "R15: the same, one symbol", low=1, high=1_048_576)
    stale_after_ms: int = setting(60_000, "R19: age of the last book update", low=1, high=86_400_000)
    sigma_max: float = setting(0.05, "R24: largest uncertainty of a return", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class OrdersConfig:
    """The order pool and its FIX session."""

    day_orders_max: int = setting(1_048_576, "orders of one day; no slot is re-used", low=64, high=1 << 24)
    timestamp_digits: int = setting(6, "fraction digits of FIX times: 0, 3, 6, 9", low=0, high=9)


@dataclasses.dataclass(frozen=True, slots=True)
class VenueConfig:
    """The paper exchange."""

    order_latency_us: float = setting(50.0, "order sent to order at the book", low=0.0, high=1e7)
    report_latency_us: float = setting(50.0, "execution to report received", low=0.0, high=1e7)
    resting_orders_max: int = setting(4_096, "our orders in its books", low=1, high=1 << 20)


@dataclasses.dataclass(frozen=True, slots=True)
class JournalConfig:
    """The audit trail."""

    decisions: str = setting("all", "decisions to keep", choices=("all", "actions"))
    ring_records: int = setting(65_536, "ring of each loop", low=256, high=1 << 24, power_of_two=True)
    segment_mib: int = setting(64, "records of one segment", low=1, high=1_024)
    durable: bool = setting(default=False, meaning="sync to disk at each group commit")


@dataclasses.dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin endpoint of `run`."""

    host: str = setting("127.0.0.1", "address to listen on", choices=("127.0.0.1", "::1", "localhost"))
    port: int = setting(8_080, "TCP port, 0 = any free one", low=0, high=65_535)


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """The whole tree."""

    seed: int = setting(1, "key of every random number", low=0, high=2**62)
    epoch: int = setting(1, "run number in ClOrdIDs and journal (replay)", low=1, high=32**4 - 1)
    segment_directory: str = setting("/dev/shm", "where `run` keeps its shared memory")  # noqa: S108
    feed: FeedConfig = section(FeedConfig)
    book: BookConfig = section(BookConfig)
    news: NewsConfig = section(NewsConfig)
    model: ModelConfig = section(ModelConfig)
    risk: RiskConfig = section(RiskConfig)
    orders: OrdersConfig = section(OrdersConfig)
    venue: VenueConfig = section(VenueConfig)
    journal: JournalConfig = section(JournalConfig)
    admin: AdminConfig = section(AdminConfig)


def read_config(path: pathlib.Path | None) -> Config:
    """Read the configuration file, or the defaults; raises SettingsError with every problem."""
    return load(Config, path)


def config_hash(config: Config) -> str:
    """Return BLAKE2b-128 of the effective configuration in canonical form."""
    canonical = orjson.dumps([(key, value) for key, value, _ in flatten(config)])
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()
