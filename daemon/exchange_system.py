"""Every part of the paper exchange, built in order from its configuration.

flow (capture or generated day) -> engine -> publisher -> lines A and B, store
store -> rerequest server (hot), shadow book -> snapshot server (cold)
FIX acceptor -> gateway -> requests -> engine -> events -> gateway -> FIX acceptor
"""

from __future__ import annotations

import contextlib
import datetime as dt
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Final

from daemon.errors import CommandError, output_folder, writing
from daemon.exchange_config import ExchangeConfig, ImpairConfig
from daemon.progress import bar
from nimbus.book.owner import Books, table_sizes
from nimbus.feed.capture import CaptureError, CaptureSource
from nimbus.feed.decode import Feed
from nimbus.feed.state import AGREE_MAX, FEED, HELD
from nimbus.messages import PACKET
from nimbus.venue.engine import Engine
from nimbus.venue.engine_layout import OWN
from nimbus.venue.exchange_loop import LOOP, PACE_MARKET, PACE_MAX, PACE_PACKETS, Exchange
from nimbus.venue.gateway import Gateway
from nimbus.venue.gateway_text import identifier
from nimbus.venue.generator import generate
from nimbus.venue.ledger import Ledger, LedgerError
from nimbus.venue.lines import Impairment, Lines
from nimbus.venue.publisher import Publisher
from nimbus.venue.rerequests import Rerequests
from nimbus.venue.shadow import PLACES, Shadow
from nimbus.venue.store import SLOT_SIZE, Store
from ringbuf.agent import BACKOFF, BUSY, YIELD, create_idler
from ringbuf.clock import TSC, WALL, Clock
from ringbuf.segment import Segment

EPOCH_MAX: Final = 32**4 - 1
_SPARE: Final = 16 << 20
_IDLE: Final = {"busy": BUSY, "yield": YIELD, "backoff": BACKOFF}
_PACES: Final = {"max": PACE_MAX, "market": PACE_MARKET, "packets": PACE_PACKETS}
_SECOND_NS: Final = 1_000_000_000


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn an error of the system, or of a value that does not fit, into one line."""
    try:
        yield
    except OSError as error:
        msg = f"{what}: {error.strerror or error}"
        raise CommandError(msg) from None
    except (ValueError, MemoryError, OverflowError) as error:
        msg = f"{what}: {error}"
        raise CommandError(msg) from None


def next_epoch(folder: pathlib.Path) -> int:
    """Take the next run number of the exchange from its folder."""
    path = folder / "epoch"
    with writing(path):
        text = path.read_text(encoding="ascii").strip() if path.exists() else "0"
        if not text.isdigit() or int(text) >= EPOCH_MAX:
            msg = f"{path}: not a run number below {EPOCH_MAX}: {text[:20]!r}"
            raise CommandError(msg)
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{int(text) + 1}\n", encoding="ascii")
        fresh.replace(path)
    return int(text) + 1


def generated_day(config: ExchangeConfig, folder: pathlib.Path) -> pathlib.Path:
    """Write the synthetic day of the configuration, unless it is there already; return its path."""
    wanted = config.generator
    path = folder / f"day-{wanted.seed}-{wanted.messages}-{wanted.symbols}.pcap"
    if path.exists():
        return path
    half = folder / f"half-{path.name}"
    try:
        with writing(half), bar(wanted.messages, "messages", "generate") as progress:
            generate(half, wanted.seed, wanted.messages, wanted.symbols, progress.update)
            half.with_suffix(".news.jsonl").replace(path.with_suffix(".news.jsonl"))
            half.replace(path)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return path


def _impairment(config: ImpairConfig, seed: int) -> Impairment:
    return Impairment(
        config.lost_ppm, config.duplicated_ppm, config.reordered_ppm, config.reorder_max, seed & (2**31 - 1)
    )


class ExchangeSystem:
    """Own every part of one exchange; `exchange` goes to the loop kernel.

    Raises CommandError with one line when the machine or the configuration does not allow it.
    """

    def __init__(self, config: ExchangeConfig) -> None:
        self.config = config
        self.folder = output_folder(pathlib.Path(config.run.folder))
        self._closing = contextlib.ExitStack()
        try:
            self.capture = self._capture()
            self.epoch = next_epoch(self.folder)
            self.session = config.feed.session or self._new_session()
            self._build()
        except BaseException:
            self.close()
            raise

    def _capture(self) -> pathlib.Path | None:
        flow = self.config.flow
        if flow.source == "none":
            return None
        if flow.source == "generator":
            return generated_day(self.config, self.folder)
        if not flow.capture:
            msg = "flow.capture is empty: flow.source = capture needs a file"
            raise CommandError(msg)
        return pathlib.Path(flow.capture)

    def _new_session(self) -> str:
        """Return 10 characters: 4 for the epoch, 6 for the time; another at each start of the exchange."""
        return (
            identifier(self.epoch, time.time_ns() // 1_000_000 & (2**30 - 1))[:4]
            + identifier(0, time.time_ns() // 1_000_000 & (2**30 - 1))[-6:]
        )

    def _books(self, live_orders_max: int) -> Books:
        book = self.config.book
        sizes = table_sizes(book.symbols_max, live_orders_max, book.levels_max)
        return Books(
            Segment.anonymous(sum(sizes.values()) + _SPARE),
            symbols_max=book.symbols_max,
            live_orders_max=live_orders_max,
            levels_max=book.levels_max,
        )

    def _build(self) -> None:
        config, book = self.config, self.config.book
        with telling("the configured tables do not fit"):
            with_ours = book.live_orders_max + config.fix.orders_max
            self.recorded = self._books(book.live_orders_max)
            self.books, self.shadow_books = self._books(with_ours), self._books(with_ours)
            self.segment = Segment.anonymous(self._segment_size())
            self.store = Store(self.segment, config.feed.store_messages, followed=True)
        self._build_feed()
        with telling("fix.orders_max"):
            self.engine = Engine(
                self.segment, self.books, self.recorded, self.publisher, orders_max=config.fix.orders_max
            )
        self.shadow = Shadow(self.segment, self.store, self.shadow_books)
        try:
            self.ledger = Ledger(self.folder / "fills.jsonl")
        except LedgerError as error:
            raise CommandError(str(error)) from None
        self._closing.callback(self.ledger.close)
        self.gateway = Gateway(self.engine, self.ledger, epoch=self.epoch)
        self._build_flow()
        self._build_loop()

    def _segment_size(self) -> int:
        config = self.config
        size = config.feed.store_messages * SLOT_SIZE + (config.fix.orders_max + 1) * OWN.size
        size += config.book.symbols_max * PLACES * SLOT_SIZE + FEED.size + AGREE_MAX * HELD.size
        return size + _SPARE

    def _build_feed(self) -> None:
        config, feed = self.config, self.config.feed
        targets = [
            (group, port) if group else None
            for group, port in ((feed.group_a, feed.port_a), (feed.group_b, feed.port_b))
        ]
        bad = [_impairment(config.impair_a, config.seed), _impairment(config.impair_b, config.seed + 1)]
        with telling(f"lines {feed.group_a}:{feed.port_a}, {feed.group_b}:{feed.port_b}"):
            self.lines = Lines(
                self.segment, targets, interface=feed.interface, ttl=feed.ttl, loop=feed.loop, impairments=bad
            )
        self._closing.callback(self.lines.close)
        self.publisher = Publisher(
            self.segment, self.store, self.lines, session=self.session, messages_max=feed.messages_max,
            bytes_max=feed.bytes_max, heartbeat_ns=feed.heartbeat_ms * 1_000_000,
        )  # fmt: skip
        served = config.rerequest
        with telling(f"rerequest server {served.host}:{served.port}"):
            self.rerequests = Rerequests(
                self.segment, self.store, self.publisher, (served.host, served.port),
                messages_max=served.messages_max, lost_ppm=served.lost_ppm, seed=config.seed & (2**31 - 1),
            )  # fmt: skip
        self._closing.callback(self.rerequests.close)

    def _build_flow(self) -> None:
        self.source: CaptureSource | None = None
        self.feed = Feed(self.segment)
        if self.capture is None:
            return
        try:
            date = dt.date.fromisoformat(self.config.flow.date)
            self.source = CaptureSource.open(self.capture, date=date, segment=self.segment)
        except CaptureError as error:
            raise CommandError(str(error)) from None
        self._closing.callback(self.source.close)

    def _build_loop(self) -> None:
        config, segment = self.config, self.segment
        self.loop_addr = segment.allocate("loop", LOOP.size)
        self.loop: Any = segment.array("loop", LOOP)[0]
        kind = _IDLE[config.run.idle]
        state = {
            "clock": Clock(segment, "clock", TSC, origin=WALL).addr,
            "idler": create_idler(segment, "idler", kind, sleep_ns_max=config.run.sleep_us_max * 1_000),
            "source": self.source.state if self.source else 0, "feed": self.feed.addr,
            "packet": segment.allocate("packet", PACKET.size), "store": self.store.addr,
            "rerequests": self.rerequests.addr, "pace_kind": _PACES[config.flow.pace],
            "pace": 1.0 / config.flow.speed, "interval_ns": _SECOND_NS // config.flow.packets_per_s,
            "burst_max": config.feed.messages_max,
        }  # fmt: skip
        for field, value in state.items():
            self.loop[field] = value
        self.exchange = Exchange(loop=self.loop_addr, engine=self.engine.state)

    def close(self) -> None:
        """Close files and sockets; no kernel may run any more."""
        self._closing.close()
