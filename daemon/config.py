"""The configuration: every setting of Contrafusion, with its default, meaning and limits.

Each owner gets exactly its branch.  Units stand last in the key.  `config_hash` is part of the journal,
of summary.json and of the report, so two runs can be told apart.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import ipaddress
import pathlib

import orjson

from daemon.settings import flatten, load, section, setting

YEAR_MIN, YEAR_MAX = 1970, 2099
COMP_ID_MAX = 32


def trading_day(text: str) -> dt.date:
    """Return a trading day; its nanoseconds, and those of every order after it, must fit their words."""
    day = dt.date.fromisoformat(text)
    if not YEAR_MIN <= day.year <= YEAR_MAX:
        msg = f"the year must be between {YEAR_MIN} and {YEAR_MAX}"
        raise ValueError(msg)
    return day


def endpoint(text: str) -> tuple[str, int] | None:
    """Return (IPv4 address, port) of "address:port", None of an empty text; raises ValueError otherwise."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        msg = "give ADDRESS:PORT"
        raise ValueError(msg)
    return str(ipaddress.IPv4Address(host)), int(port)


def comp_id(text: str) -> str:
    """Return a CompID: 1 to 32 printable characters without "=" or space; raises ValueError otherwise."""
    if not 1 <= len(text) <= COMP_ID_MAX or not text.isascii() or any(c in text for c in "= "):
        msg = f"give 1 to {COMP_ID_MAX} ASCII characters without = or space"
        raise ValueError(msg)
    return text


def address(text: str) -> str:
    """Return an IPv4 address, or an empty text as it is; raises ValueError otherwise."""
    return str(ipaddress.IPv4Address(text)) if text else ""


@dataclasses.dataclass(frozen=True, slots=True)
class FeedConfig:
    """Where market data comes from."""

    source: str = setting(
        "capture", "`run`: where packets come from", choices=("capture", "af_packet", "af_xdp", "udp", "dpdk")
    )
    interface: str = setting("", "interface of af_packet and af_xdp")
    address: str = setting("", "own IPv4 address that joins the groups and asks the servers", read=address)
    line_a: str = setting("", "GROUP:PORT of line A", read=endpoint)
    line_b: str = setting("", "the same of line B; empty: there is none", read=endpoint)
    rerequest: str = setting("", "ADDRESS:PORT of the rerequest server; empty: none", read=endpoint)
    snapshot: str = setting("", "ADDRESS:PORT of the snapshot server; empty: none", read=endpoint)
    gap_wait_us: int = setting(500, "a gap is left to the other line so long", low=0, high=1_000_000)
    gap_timeout_ms: int = setting(200, "a gap not repaired by then asks for a snapshot", low=1, high=60_000)
    gap_messages: int = setting(
        65_536, "messages that may wait behind a gap", low=1_024, high=1 << 22, power_of_two=True
    )
    ring_packets: int = setting(
        131_072,
        "packets that the source holds while the loop is busy",
        low=64,
        high=1 << 22,
        power_of_two=True,
    )
    bridge: str = setting("", "segment that the DPDK bridge fills")
    record: bool = setting(default=False, meaning="write a live session's packets beside its journal")
    capture: str = setting("", "capture file that `run` plays at recorded speed")
    speed: float = setting(1.0, "`run`: market seconds per second", low=0.01, high=100_000.0)
    date: str = setting(
        "1970-01-01",
        "trading day of a raw ITCH file, YYYY-MM-DD (UTC midnight)",
        read=trading_day,
    )
    checksums: str = setting("count", "wrong UDP checksums: count or refuse", choices=("count", "refuse"))


@dataclasses.dataclass(frozen=True, slots=True)
class BookConfig:
    """Capacities of the books; at each limit the order is refused and counted, the book marked faulty."""

    symbols_max: int = setting(8_192, "stock locates below this", low=2, high=65_535)
    live_orders_max: int = setting(2_097_152, "orders in all books", low=1_024, high=1 << 27)
    levels_max: int = setting(524_288, "price levels in all books", low=1_024, high=1 << 26)
    paranoid: bool = setting(default=False, meaning="replay: check every book at each drain")


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
        "auto: the trained plan if the folder has one, else the fixed rule; linear: it without samples; off",
        choices=("auto", "fusionnet", "rule", "linear", "off"),
    )
    folder: str = setting("models", "folder of the trained models; its file `pinned` names one")


def rung_density(text: str) -> float | None:
    """Return the density of a pinned rung, None of "auto"; raises ValueError otherwise."""
    if text == "auto":
        return None
    density = float(text)
    if not 0 < density <= 1:
        msg = "give auto, or a density above 0 and up to 1"
        raise ValueError(msg)
    return density


@dataclasses.dataclass(frozen=True, slots=True)
class BicepConfig:
    """How much of the model an inference computes."""

    rung: str = setting("1.0", "density of the rung that serves; auto: NANopt chooses", read=rung_density)
    uncertainty: str = setting(
        "mc",
        "mc: from samples; analytic: computed; any: auto chooses among both",
        choices=("mc", "analytic", "any"),
    )
    slo_us: float = setting(20.0, "auto: what nine of ten inferences may take", low=0.1, high=1e6)
    error_budget: float = setting(
        0.25,
        "auto: largest error of a setting, as a share of the model's own answers",
        low=0.0001,
        high=100.0,
    )
    dwell_ms: int = setting(1_000, "auto: at most one change in so long", low=1, high=10**7)
    period_ms: int = setting(100, "auto: NANopt looks so often", low=1, high=60_000)
    shadow_every: int = setting(64, "auto: one decision in so many is checked; 0 = none", low=0, high=10**9)
    volatility_high: float = setting(
        0.0,
        "auto: beyond it errors are taken to grow; return per square root of a second, 0 = off",
        low=0.0,
        high=1.0,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class StrategyConfig:
    """When and how the trading model acts."""

    interval_ms: int = setting(0, "a symbol is decided at most so often; 0 = each change", low=0, high=10**7)
    capital: int = setting(1_000_000, "dollars that weights refer to", low=1, high=10**11)
    weight_max: float = setting(0.1, "largest share of the capital in one position", low=0.0, high=1.0)
    exposure_max: int = setting(1_000_000, "dollars held and working, all symbols", low=1, high=10**11)
    lot_qty: int = setting(1, "entries are multiples of it", low=1, high=1_000_000)
    order_qty_max: int = setting(200, "shares in one entry", low=1, high=9_999_999)
    position_qty_max: int = setting(1_000, "shares held and working in a symbol", low=1, high=10**8)
    fee_bp: float = setting(0.2, "cost of a round trip", low=0.0, high=1_000.0)
    margin_bp: float = setting(0.2, "what must be left beyond fee and spread", low=0.0, high=1_000.0)
    cross_edge_bp: float = setting(4.0, "edge from which an entry takes liquidity", low=0.0, high=10_000.0)
    agreement_min: float = setting(0.8, "share of samples that agree in sign", low=0.5, high=1.0)
    sigma_max: float = setting(0.05, "largest deviation of a return that may enter", low=0.0, high=1.0)
    risk_aversion: float = setting(5.0, "lambda of the size", low=0.0001, high=1e6)
    stop_bp: float = setting(100.0, "loss that closes a position; 0 = off", low=0.0, high=10_000.0)
    target_bp: float = setting(300.0, "gain that closes it; 0 = off", low=0.0, high=100_000.0)
    trailing_bp: float = setting(80.0, "fall from the best that closes it; 0 = off", low=0.0, high=10_000.0)
    hold_max_s: float = setting(300.0, "time that closes it; 0 = off", low=0.0, high=1e6)
    cooldown_ms: int = setting(1_000, "after a reject or an unfilled order", low=0, high=10**9)
    working_max_s: float = setting(10.0, "a working order older than this is cancelled", low=0.001, high=1e6)
    stale_after_ms: int = setting(5_000, "market data older than this decides nothing", low=1, high=10**9)
    news_max_s: float = setting(14_400.0, "contradiction experts need news so fresh", low=0.0, high=1e7)
    short_allowed: bool = setting(default=True, meaning="positions below zero are allowed")
    sentiment_k: float = setting(1.0, "class of sentiment: deviations from its mean", low=0.01, high=100.0)
    response_k: float = setting(1.0, "class of price response: units of volatility", low=0.01, high=100.0)
    react_s: float = setting(60.0, "news is fresh so long", low=0.001, high=1e7)
    history_min: int = setting(30, "mids seen before a tag is given", low=1, high=10**6)

    def trading(self) -> dict[str, float]:
        """Return the parameters of TradingModel."""
        bp, second_ns = 1e-4, 10**9
        return {
            "fee": self.fee_bp * bp, "margin": self.margin_bp * bp, "cross_edge": self.cross_edge_bp * bp,
            "agreement_min": self.agreement_min, "sigma_max": self.sigma_max,
            "risk_aversion": self.risk_aversion, "weight_max": self.weight_max,
            "capital_px": self.capital * 10_000, "exposure_px_max": self.exposure_max * 10_000,
            "lot_qty": self.lot_qty, "order_qty_max": self.order_qty_max,
            "position_qty_max": self.position_qty_max, "stop": self.stop_bp * bp,
            "target": self.target_bp * bp, "trailing": self.trailing_bp * bp,
            "hold_max_ns": int(self.hold_max_s * second_ns), "cooldown_ns": self.cooldown_ms * 1_000_000,
            "working_max_ns": int(self.working_max_s * second_ns),
            "stale_after_ns": self.stale_after_ms * 1_000_000, "news_max_ms": int(self.news_max_s * 1_000),
            "short_allowed": int(self.short_allowed),
        }  # fmt: skip

    def contradiction(self) -> dict[str, float]:
        """Return the parameters of ContradictionEngine."""
        return {
            "sentiment_k": self.sentiment_k, "response_k": self.response_k,
            "react_ns": int(self.react_s * 1e9), "history_min": self.history_min,
        }  # fmt: skip


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

    day_orders_max: int = setting(
        1_048_576, "orders of one day; no slot is re-used", low=64, high=(1 << 24) - 1
    )
    timestamp_digits: int = setting(6, "fraction digits of FIX times: 0, 3, 6, 9", choices=(0, 3, 6, 9))


@dataclasses.dataclass(frozen=True, slots=True)
class VenueConfig:
    """Where orders go."""

    kind: str = setting(
        "paper",
        "paper: the exchange inside this process; fix: a session to host:port",
        choices=("paper", "fix"),
    )
    host: str = setting("127.0.0.1", "address of the FIX acceptor")
    port: int = setting(26_481, "its TCP port", low=1, high=65_535)
    sender: str = setting("CONTRAFUSION", "our CompID", read=comp_id)
    target: str = setting("VENUE", "the venue's CompID", read=comp_id)
    heartbeat_s: int = setting(10, "HeartBtInt", low=1, high=3_600)
    reset: str = setting(
        "never", "numbers go back to 1: never, or always, at each Logon", choices=("never", "always")
    )
    is_paper: bool = setting(default=True, meaning="no real money: armed at the start")
    poll_us: float = setting(20.0, "the socket is looked at so often for reports", low=0.0, high=10_000.0)
    order_latency_us: float = setting(50.0, "order sent to order at the book", low=0.0, high=1e7)
    report_latency_us: float = setting(50.0, "execution to report received", low=0.0, high=1e7)
    resting_orders_max: int = setting(4_096, "our orders in its books", low=1, high=1 << 20)


@dataclasses.dataclass(frozen=True, slots=True)
class JournalConfig:
    """The audit trail."""

    decisions: str = setting("all", "decisions to keep", choices=("all", "actions"))
    ring_records: int = setting(65_536, "ring of each loop", low=256, high=1 << 24, power_of_two=True)
    segment_mib: int = setting(64, "records of one segment", low=1, high=64)
    durable: bool = setting(default=False, meaning="sync to disk at each group commit")


@dataclasses.dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin endpoint of `run`."""

    host: str = setting("127.0.0.1", "address to listen on", choices=("127.0.0.1", "::1", "localhost"))
    port: int = setting(8_080, "TCP port, 0 = any free one", low=0, high=65_535)
    requests_per_s: int = setting(50, "more are answered with 429", low=1, high=1_000_000)


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """The daemon."""

    folder: str = setting("run", "where the journal and, at the stop, the results go")
    placement: str = setting(
        "auto",
        "inline: captures; compact: one hot thread; dedicated: three; auto: inline or compact",
        choices=("auto", "inline", "compact", "dedicated"),
    )
    core: int = setting(-1, "core of the (market) hot thread; -1 = the last usable one", low=-1, high=4_095)
    strategy_core: int = setting(
        -1, "dedicated: core of the strategy; -1 = one to the left", low=-1, high=4_095
    )
    orders_core: int = setting(-1, "dedicated: core of the orders; -1 = two to the left", low=-1, high=4_095)
    idle: str = setting(
        "auto",
        "hot loops without work; auto: busy, but yield when they share cores",
        choices=("auto", "busy", "yield", "backoff"),
    )
    fifo: bool = setting(default=False, meaning="hot threads under SCHED_FIFO, when permitted")
    lock_memory: bool = setting(
        default=False, meaning="touch all memory and mlockall at the start, if permitted"
    )
    rehearse: bool = setting(
        default=True,
        meaning="compact: an idle loop plays made-up ticks, so that a real one finds caches warm",
    )
    cancel_wait_ms: int = setting(2_000, "at the stop: cancels are awaited so long", low=0, high=60_000)
    drain_ms: int = setting(5, "the journal is written so often", low=1, high=1_000)
    heartbeat_max_ms: int = setting(2_000, "a hot loop silent for longer is not healthy", low=10, high=60_000)


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
    bicep: BicepConfig = section(BicepConfig)
    strategy: StrategyConfig = section(StrategyConfig)
    risk: RiskConfig = section(RiskConfig)
    orders: OrdersConfig = section(OrdersConfig)
    venue: VenueConfig = section(VenueConfig)
    journal: JournalConfig = section(JournalConfig)
    admin: AdminConfig = section(AdminConfig)
    run: RunConfig = section(RunConfig)


def read_config(path: pathlib.Path | None) -> Config:
    """Read the configuration file, or the defaults; raises SettingsError with every problem."""
    return load(Config, path)


def config_hash(config: Config) -> str:
    """Return BLAKE2b-128 of the effective configuration in canonical form."""
    canonical = orjson.dumps([(key, value) for key, value, _ in flatten(config)])
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()
