"""One built pipeline: every owner in its order, from a configuration and a capture.

The same system serves replay, `run` and training; what differs is who turns the crank (replay.py, live.py).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
from typing import Any, Final, NamedTuple

import numpy as np

from daemon.config import Config, VenueConfig, config_hash
from daemon.errors import CommandError
from daemon.model import load_model
from daemon.pipeline import CONTROL, Pipeline
from daemon.rungs import Rungs
from daemon.wire_input import NoInput, WireInput, live_settings, recorded_settings
from nimbus.book.layout import BOOK
from nimbus.book.owner import Books, table_sizes
from nimbus.feed.capture import CaptureError, CaptureSource
from nimbus.feed.decode import Feed, close_feed
from nimbus.feed.live import table_sizes as live_sizes
from nimbus.feed.state import OK
from nimbus.fix.settings import Reset, Role, SessionSettings
from nimbus.fix.transport_owner import Transport
from nimbus.journal.log import Stream
from nimbus.journal.types import NEWS as NEWS_TAKEN
from nimbus.journal.types import RUN_START, STATE_CHANGE, RecordType
from nimbus.market import Market, renew
from nimbus.messages import DISARMED, JOURNAL, LAYOUT_VERSION, NEWS, ORDER, PAPER, WIRE
from nimbus.orders.agent import Orders
from nimbus.orders.kill_switch import OPERATOR
from nimbus.orders.link import create_transport
from nimbus.orders.pool import LINK
from nimbus.venue.paper import Venue
from nimbus.venue.paper_layout import VENUE_ORDER
from ringbuf.clock import MONOTONIC, TSC, Clock
from ringbuf.histogram import Histogram
from ringbuf.jit import source_digest
from ringbuf.segment import Segment
from ringbuf.seqlock import create_cells
from ringbuf.spsc import create_ring
from strategy.agent import Strategy
from strategy.news import NewsConfig, NewsSchedule, build_schedule
from strategy.news_file import news_path, read_news
from strategy.sentiment import create_provider

STAGES: Final = ("feed", "book", "strategy", "inference", "orders", "tick_to_order")
WIRE_STAGES: Final = ("wire_to_order", "send")  # of a session over a socket
CONTROL_STREAM, STRATEGY_STREAM, ORDERS_STREAM, MARKET_STREAM = 0, 1, 2, 3
_STAGE_WORDS: Final = {
    "feed": "feed_ns", "book": "book_ns", "strategy": "strategy_ns", "orders": "orders_ns",
    "tick_to_order": "tick_ns", "wire_to_order": "wire_ns", "send": "send_ns",
}  # fmt: skip
_SPARE: Final = 128 << 20
_SYMBOL_BYTES: Final = 32 << 10  # features, contradiction, holdings, news, cached news halves, positions
_BUCKET_BYTES: Final = 32  # of the ClOrdIDs, at most, for each order that rests
_ORDER_BYTES: Final = ORDER.size + LINK.size
_PX_SCALE: Final = 10_000


def _limits(config: Config) -> dict[str, Any]:
    risk = config.risk
    return {
        "qty_max": risk.order_qty_max,
        "lot_qty": risk.lot_qty,
        "notional_max": risk.order_notional_max * _PX_SCALE,
        "collar_bp": risk.collar_bp,
        "rate_per_s": risk.orders_per_s,
        "rate_burst": risk.orders_burst,
        "position_max": risk.position_max,
        "open_orders_max": risk.open_orders_max,
        "symbol_open_orders_max": risk.symbol_open_orders_max,
        "stale_after_ns": risk.stale_after_ms * 1_000_000,
        "sigma_max": risk.sigma_max,
    }


def session_settings(config: VenueConfig) -> SessionSettings:
    """Return what is agreed with the venue."""
    return SessionSettings(
        Role.INITIATOR,
        config.sender,
        config.target,
        heartbeat_s=config.heartbeat_s,
        reset=Reset(config.reset),
    )


def map_segment(size: int) -> Segment:
    """Map memory for the tables; raises CommandError when the machine does not give so much."""
    try:
        return Segment.anonymous(size)
    except (OSError, OverflowError) as error:
        msg = f"the configured tables need {size:,} bytes of memory: {error}"
        raise CommandError(msg) from None


def open_capture(path: pathlib.Path, config: Config, segment: Segment) -> CaptureSource:
    """Open a capture; raises CommandError with one line when it cannot be used."""
    try:
        return CaptureSource.open(path, date=dt.date.fromisoformat(config.feed.date), segment=segment)
    except CaptureError as error:
        raise CommandError(str(error)) from None


class Rings(NamedTuple):
    """Records of the rings between the agents."""

    events: int
    decisions: int
    intents: int
    out: int
    inbound: int


DEEP: Final = Rings(events=4_096, decisions=4_096, intents=1_024, out=1_024, inbound=4_096)
SHALLOW: Final = Rings(events=512, decisions=512, intents=64, out=64, inbound=256)


@dataclasses.dataclass(slots=True)
class News:
    """The schedule of a replay's news, and what reading it counted."""

    schedule: NewsSchedule | None
    counts: dict[str, int]


def close_input(market: Market) -> bool:
    """At the end of a capture, let go of what the feed still holds back; False when there is nothing more.

    The crank must be turned after it, and this be called again.
    """
    held = close_feed(market.feed.addr) == OK
    if held:
        renew(market.state)
    return held


def read_schedule(capture: pathlib.Path | None, config: Config) -> News:
    """Read and score the news of a capture; none when there is no file and none was asked for."""
    asked = config.news.file
    path = pathlib.Path(asked) if asked else (news_path(capture) if capture else None)
    if path is None or (not asked and not path.exists()):
        return News(None, {})
    try:
        items = read_news(path)
    except OSError as error:
        msg = f"news {path}: {error.strerror or error}"
        raise CommandError(msg) from None
    settings = NewsConfig(half_life_ns=int(config.news.half_life_s * 1e9))
    provider = create_provider(config.news.provider)
    schedule, counts = build_schedule(items.items, provider, settings, config.book.symbols_max)
    return News(schedule, counts | {"malformed": items.counts["malformed"]})


class System:
    """Own every agent of one run; `pipeline` goes to the loop kernels.

    capture: what is played; None = `source`, or the live sources of the configuration.
    recorder: address of a feature recorder for training, 0 = none.  is_live: NANopt may run beside it.
    rungs: journal whose changes of rung are applied again, None = the configuration says.
    """

    def __init__(
        self,
        config: Config,
        capture: pathlib.Path | None,
        *,
        segment: Segment | None = None,
        source: NoInput | None = None,
        recorder: int = 0,
        rungs: pathlib.Path | None = None,
        is_live: bool = False,
    ) -> None:
        self._recorded, self._is_live = rungs, is_live
        self.config, self.capture = config, capture
        self.segment = segment or map_segment(segment_size(config))
        self.source: CaptureSource | WireInput | NoInput = (
            open_capture(capture, config, self.segment)
            if capture
            else source or WireInput(config.feed, self.segment)
        )
        try:
            self._build(recorder)
        except MemoryError as error:
            self.close()
            msg = f"the capacities of the configuration do not fit: {error}"
            raise CommandError(msg) from None
        except BaseException:
            self.close()
            raise

    def _build(self, recorder: int) -> None:
        config, symbols_max = self.config, self.config.book.symbols_max
        self.news = read_schedule(self.capture, config)
        self.feed = self._feed()
        self.books = Books(
            self.segment,
            symbols_max=symbols_max,
            live_orders_max=config.book.live_orders_max,
            levels_max=config.book.levels_max,
        )
        rings = self._rings()
        self.market = Market(self.segment, self.feed, self.books, events_capacity=rings.events)
        self.streams = [
            Stream(self.segment, number, epoch=config.epoch, capacity=config.journal.ring_records)
            for number in (CONTROL_STREAM, STRATEGY_STREAM, ORDERS_STREAM, MARKET_STREAM)
        ]
        self.orders = self._orders(rings)
        is_paper = config.venue.kind == "paper"
        self.venue = self._venue() if is_paper else None
        self.transport = None if is_paper else self._transport()
        self.news_cells = create_cells(self.segment, "news", symbols_max, NEWS)
        self.model = load_model(config, self.segment, symbols_max)
        self.rungs = Rungs(config, self.model, self.segment, recorded=self._recorded, live=self._is_live)
        self.strategy = self._strategy(recorder, rings)
        stages = STAGES if is_paper else STAGES + WIRE_STAGES
        self.histograms = {stage: Histogram.create(self.segment, f"latency.{stage}") for stage in stages}
        self.clock = Clock(self.segment, "clock", TSC, origin=MONOTONIC)
        self._control()
        self.pipeline = Pipeline(
            source=self.source.state,
            market=self.market.state,
            venue=self.venue.addr if self.venue else 0,
            transport=self.transport.addr if self.transport else 0,
            schedule=self.news.schedule.addr if self.news.schedule else 0,
            news=self.news_cells,
            strategy=self.strategy.addr,
            intents=self.strategy.intents,
            decisions=self.strategy.decisions,
            orders=self.orders.addr,
            market_stream=self.streams[MARKET_STREAM].addr,
            strategy_stream=self.streams[STRATEGY_STREAM].addr,
            orders_stream=self.streams[ORDERS_STREAM].addr,
            news_taken=self.segment.allocate("news.taken", NEWS_TAKEN.size),
            control=self.control_addr,
            rungs=self.rungs.ring,
        )

    def _rings(self) -> Rings:
        """One live thread empties each ring at once: few records, so that they stay in its caches."""
        is_compact = self.capture is None and self.config.run.placement != "dedicated"
        return SHALLOW if is_compact else DEEP

    def _orders(self, rings: Rings) -> Orders:
        config, books = self.config, self.books.state
        orders = Orders(
            self.segment,
            symbols=books.books + BOOK.at.symbol,
            symbols_stride=BOOK.size,
            symbols_max=config.book.symbols_max,
            tops=books.tops,
            stream=self.streams[ORDERS_STREAM],
            day_orders_max=config.orders.day_orders_max,
            open_orders_max=config.risk.open_orders_max,
            timestamp_digits=config.orders.timestamp_digits,
            limits=_limits(config),
            out=create_ring(self.segment, "orders.out", rings.out, WIRE),
            inbound=create_ring(self.segment, "orders.in", rings.inbound, WIRE),
            comp_ids=(config.venue.sender, config.venue.target),
        )
        if config.venue.kind == "paper":
            orders.log_on()
        return orders

    def _feed(self) -> Feed:
        feed, strict = self.config.feed, self.config.feed.checksums == "refuse"
        if isinstance(self.source, CaptureSource):
            ordered = recorded_settings(feed) if self.source.is_recording else None
            return Feed(self.segment, strict=strict, live=ordered)
        taken = Feed(
            self.segment,
            strict=strict,
            subscriptions=self.source.subscriptions,
            live=live_settings(feed),
        )
        if taken.live and self.source.requests_fd >= 0:
            taken.live.use_socket(self.source.requests_fd)
        return taken

    def _transport(self) -> Transport:
        venue = self.config.venue
        poll_ns = int(venue.poll_us * 1_000)
        return create_transport(self.segment, self.orders, session_settings(venue), poll_ns=poll_ns)

    def _venue(self) -> Venue:
        config = self.config
        return Venue(
            self.segment,
            orders_ring=self.orders.out,
            reports_ring=self.orders.inbound,
            symbols_max=config.book.symbols_max,
            live_orders_max=config.book.live_orders_max,
            orders_max=config.venue.resting_orders_max,
            order_latency_ns=int(config.venue.order_latency_us * 1_000),
            report_latency_ns=int(config.venue.report_latency_us * 1_000),
            epoch=config.epoch,
        )

    def _strategy(self, recorder: int, rings: Rings) -> Strategy:
        config = self.config
        strategy = Strategy(
            self.segment,
            config.book.symbols_max,
            events=self.market.events,
            fills=self.orders.fills,
            news=self.news_cells if self.news.schedule else 0,
            plan=self.model.state,
            rule=self.model.rule_addr,
            recorder=recorder,
            intents_capacity=rings.intents,
            decisions_capacity=rings.decisions,
            interval_ns=config.strategy.interval_ms * 1_000_000,
            journal_decisions=config.journal.decisions,
            trading=config.strategy.trading(),
            contradiction=config.strategy.contradiction(),
        )
        self.model.apply(strategy.normalisation)
        return strategy

    def _control(self) -> None:
        self.control_addr = self.segment.allocate("control", CONTROL.size)
        self.control: Any = self.segment.array("control", CONTROL)[0]
        self.control["clock"] = self.clock.addr
        for stage, word in _STAGE_WORDS.items():
            self.control[word] = self.histograms[stage].addr if stage in self.histograms else 0
        self.strategy.head["clock"] = self.clock.addr
        self.strategy.head["sampler"] = self.rungs.sampler.addr if self.rungs.sampler else 0
        self.strategy.head["inference_ns"] = self.histograms["inference"].addr

    def refill(self) -> bool:
        """Bring the next chunk of the capture; False at its end.  Raises CaptureError."""
        return isinstance(self.source, CaptureSource) and self.source.refill()

    def close(self) -> None:
        """Close the capture; nothing may turn the crank any more, everything else can still be read."""
        self.source.close()

    def input_counters(self) -> dict[str, int]:
        """Return what the sources and, live, the sequencing counted."""
        live = self.feed.live.counters() if self.feed.live else {}
        if isinstance(self.source, WireInput):
            return self.source.counters() | live
        if isinstance(self.source, CaptureSource):
            return {"packets": self.source.packets, "backwards": self.source.backwards} | live
        return live

    @property
    def now_ns(self) -> int:
        """The logical clock."""
        return int(self.control["now_ns"])

    def announce(self) -> None:
        """Journal the start of the run."""
        start = np.zeros(1, RUN_START.dtype)[0]
        start["seed"], start["epoch"] = self.config.seed, self.config.epoch
        start["layout_version"] = LAYOUT_VERSION
        start["config_digest"] = np.frombuffer(bytes.fromhex(config_hash(self.config)), np.uint8)
        start["model_digest"] = np.frombuffer(self.model.digest, np.uint8)
        start["code_digest"][:8] = np.frombuffer(bytes.fromhex(source_digest()), np.uint8)
        self.streams[CONTROL_STREAM].append(RecordType.RUN_START, start, self.now_ns)

    def arm(self, who: str, why: str) -> None:
        """Journal the start of the run and enter PAPER (replay and the paper venue arm themselves)."""
        self.announce()
        change = np.zeros(1, STATE_CHANGE.dtype)[0]
        change["old"], change["new"], change["who"], change["why"] = DISARMED, PAPER, who, why
        self.streams[CONTROL_STREAM].append(RecordType.STATE_CHANGE, change, self.now_ns)
        self.orders.kill_switch.set(OPERATOR, PAPER)


def segment_size(config: Config) -> int:
    """Return the bytes to map for a system: its tables, and room for the small areas between them.

    Untouched pages cost nothing, so this is generous; one that does not fit stops the start.
    """
    book, orders = config.book, config.orders
    symbols = book.symbols_max * _SYMBOL_BYTES
    journal_rings = MARKET_STREAM + 1
    tables = sum(table_sizes(book.symbols_max, book.live_orders_max, book.levels_max).values())
    pool = (orders.day_orders_max + 1) * _ORDER_BYTES
    journal = journal_rings * config.journal.ring_records * JOURNAL.size
    venue = (config.venue.resting_orders_max + 1) * (
        VENUE_ORDER.size + _BUCKET_BYTES
    ) + 16 * book.live_orders_max
    live = sum(live_sizes(live_settings(config.feed)).values())  # a capture may be a recording
    return tables + symbols + pool + journal + venue + live + _SPARE
