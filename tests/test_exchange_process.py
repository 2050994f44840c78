"""`contrafusion venue` as a process: its feed, rerequests, snapshots, FIX, and what it leaves behind."""

from __future__ import annotations

import ctypes
import gzip
import json
import pathlib
import signal
import socket
import time

import numpy as np
import pytest
from days import ADD as ADD_MESSAGE
from days import OPEN_NS, SYSTEM, directory, framed, make_day, symbol
from market import apply_one
from replays import command
from venue_process import Subscriber, venue

from nimbus.book.owner import Books
from nimbus.book.snapshot import state_hash
from nimbus.feed import soupbin
from nimbus.messages import CHANGE
from ringbuf.segment import Segment

NS = OPEN_NS.to_bytes(6, "big")


def hash_of(messages: list[bytes]) -> str:
    """Return the hash of books that were fed these messages, as the summary writes it."""
    books = Books(Segment.anonymous(1 << 26), symbols_max=64, live_orders_max=65_536, levels_max=16_384)
    change, buffer = np.zeros(1, CHANGE.dtype), ctypes.create_string_buffer(64)
    for seq, message in enumerate(messages, 1):
        ctypes.memmove(buffer, message, len(message))
        apply_one(books.state, ctypes.addressof(buffer), seq, 0, change.ctypes.data)
    return f"{state_hash(books.state) & 0xFFFFFFFFFFFFFFFF:016x}"


def capture_of(folder: pathlib.Path, messages: list[bytes]) -> pathlib.Path:
    path = folder / "flow.itch"
    path.write_bytes(framed(messages))
    return path


def quiet_book(folder: pathlib.Path) -> pathlib.Path:
    """Return a flow of one symbol with a bid of 100 at 10.00 and an ask of 100 at 10.10."""
    at = (1, 0, NS)
    orders = [
        ADD_MESSAGE(b"A", *at, 1, b"B", 100, symbol(1), 100_000),
        ADD_MESSAGE(b"A", *at, 2, b"S", 100, symbol(1), 101_000),
    ]
    return capture_of(folder, [SYSTEM(b"S", 0, 0, NS, b"O"), directory(1, NS), *orders])


def settings(
    folder: pathlib.Path, capture: pathlib.Path, lines: list[Subscriber], *, flow: str = "", more: str = ""
) -> str:
    ports = [line.port for line in lines] or [1]
    group_b = "127.0.0.1" if len(ports) > 1 else ""
    return (
        f'[flow]\nsource = "capture"\ncapture = "{capture}"\npace = "max"\n{flow}\n'
        f'[feed]\ngroup_a = "127.0.0.1"\nport_a = {ports[0]}\ngroup_b = "{group_b}"\nport_b = {ports[-1]}\n'
        f'[run]\nfolder = "{folder / "run"}"\nstatus_ms = 50\n[fix]\nport = 0\n{more}'
    )


@pytest.fixture
def line_a():
    line = Subscriber()
    yield line
    line.close()


@pytest.fixture
def line_b():
    line = Subscriber()
    yield line
    line.close()


def test_a_flow_without_orders_reaches_both_lines_bit_for_bit(tmp_path, line_a, line_b):
    messages = make_day(1, 3_000, 4)
    text = settings(tmp_path, capture_of(tmp_path, messages), [line_a, line_b], flow='at_end = "stop"')
    with venue(tmp_path, text) as process:
        summary = process.finish()
    for line in (line_a, line_b):
        line.until_end()
        assert [line.messages[n] for n in sorted(line.messages)] == messages
        assert {session for session, _, _ in line.packets} == {process.started["session"].encode()}
    assert summary["last_seq"] == len(messages)
    assert summary["book_state_hash"] == summary["recorded_state_hash"] == summary["shadow_state_hash"]
    assert summary["book_state_hash"] == hash_of(messages)


def test_orders_are_accepted_filled_cancelled_and_booked(tmp_path, line_a):
    text = settings(tmp_path, quiet_book(tmp_path), [line_a])
    with venue(tmp_path, text) as process:
        process.wait_for("flow_ended")
        client = process.client()
        assert client.log_on()[49] == "VENUE"
        client.order("one", "B", 150, "10.10", t1="ACC")
        client.expect("8", t150="0", t11="one", t151=150)
        trade = client.expect("8", t150="F")
        assert (trade[31], trade[32], trade[14], trade[151], trade[6]) == (
            "10.1000", "100", "100", "50", "10.1000",
        )  # fmt: skip
        client.order("two", "S", 20, "10.10")  # meets the rest of our own
        assert client.expect("8", t150="F", t11="one")[32] == "20"
        assert client.expect("8", t150="F", t11="two")[39] == "2"
        client.cancel("cancel", "one")
        cancelled = client.expect("8", t150="4")
        assert (cancelled[11], cancelled[41], cancelled[151]) == ("cancel", "one", "0")
        client.cancel("again", "one")
        assert client.expect("9")[102] == "0"
        client.cancel("unknown", "never")
        assert client.expect("9")[102] == "1"
        summary = process.stop()
    assert summary["positions"] == {
        "ACC": {
            "SYM00001": {"qty": 120, "bought_qty": 120, "sold_qty": 0, "cash_1e4": -12_120_000, "fills": 2}
        },
        "CONTRAFUSION": {
            "SYM00001": {"qty": -20, "bought_qty": 0, "sold_qty": 20, "cash_1e4": 2_020_000, "fills": 1}
        },
    }
    assert (summary["orders"], summary["fills"]) == (2, 3)
    line_a.until_end()
    published = [line_a.messages[n] for n in range(1, summary["last_seq"] + 1)]
    assert hash_of(published) == summary["book_state_hash"]
    ids = [m[17] for m in client.heard if m[35] == "8"]
    assert len(set(ids)) == len(ids)


def test_an_order_that_cannot_be_is_rejected_and_the_session_goes_on(tmp_path, line_a):
    with venue(tmp_path, settings(tmp_path, quiet_book(tmp_path), [line_a])) as process:
        process.wait_for("flow_ended")
        client = process.client()
        client.log_on()
        client.order("a", "B", 100, "10.00", symbol="NOBODY")
        assert client.expect("8", t150="8")[58] == "unknown symbol"
        client.order("b", "B", 0, "10.00")
        assert "OrderQty" in client.expect("8", t150="8")[58]
        client.order("c", "B", 100, "10.00")
        client.expect("8", t150="0")
        client.order("c", "B", 100, "10.00")
        assert client.expect("8", t150="8")[103] == "6"
        client.send("G", (11, "g"), (41, "c"), (54, 1), (55, "SYM00001"))
        assert client.expect("j")[380] == "3"
        client.send("1", (112, "alive"))
        assert client.expect("0")[112] == "alive"
        summary = process.stop()
        assert client.expect("8", t150="4")[11] == "c"  # the end of the session cancels, and says so
        assert client.expect("5")
    assert (summary["orders"], summary["rejected"], summary["open_orders"]) == (4, 3, 0)


@pytest.mark.parametrize("cancels", [True, False])
def test_orders_of_a_lost_connection_are_cancelled_or_go_on(tmp_path, line_a, cancels):
    text = settings(
        tmp_path, quiet_book(tmp_path), [line_a], more=f"cancel_on_disconnect = {str(cancels).lower()}\n"
    )
    with venue(tmp_path, text) as process:
        process.wait_for("flow_ended")
        client = process.client()
        client.log_on()
        client.order("rest", "B", 100, "10.05")
        client.expect("8", t150="0")
        client.close()
        wait_for_status(process.folder, lambda s: s["fix"]["disconnects"] == 1)
        if cancels:
            wait_for_status(process.folder, lambda s: s["open_orders"] == 0)
        again = process.client(seq=client.seq)
        answer = again.log_on()
        expected = 4 if cancels else 3
        assert int(answer[34]) == expected  # Logon, New, the report of the cancel, Logon
        if cancels:
            again.send("2", (7, 3), (16, 0))  # the report went out while nobody was there
            resent = again.expect("8", t43="Y")
            assert (resent[150], resent[58]) == ("4", "cancelled: the session ended")
        else:
            again.cancel("cancel", "rest")
            assert again.expect("8", t150="4")[41] == "rest"
        process.stop()


def wait_for_status(folder: pathlib.Path, is_so) -> dict:
    """Return the first status.json that is as wanted."""
    deadline = time.monotonic() + 30
    status = {}
    while time.monotonic() < deadline:
        path = folder / "run" / "status.json"
        if path.exists():
            status = json.loads(path.read_text())
            if is_so(status):
                return status
        time.sleep(0.02)
    pytest.fail(f"status never was as wanted: {status}")


def test_a_second_connection_of_a_live_session_is_closed(tmp_path, line_a):
    with venue(tmp_path, settings(tmp_path, quiet_book(tmp_path), [line_a])) as process:
        client = process.client()
        client.log_on()
        second = process.client()
        second.send("A", (98, 0), (108, 30))
        assert second.read() is None
        stranger = process.client(sender="SOMEBODY")
        stranger.send("A", (98, 0), (108, 30))
        assert stranger.read() is None
        client.send("1", (112, "still"))
        assert client.expect("0")[112] == "still"
        process.stop()


def test_after_a_kill_the_numbers_and_positions_go_on_and_the_session_id_is_new(tmp_path, line_a):
    text = settings(tmp_path, quiet_book(tmp_path), [line_a])
    with venue(tmp_path, text) as process:
        process.wait_for("flow_ended")
        client = process.client()
        client.log_on()
        client.order("open", "B", 7, "9.50")
        client.expect("8", t150="0")
        client.order("one", "B", 40, "10.10")
        client.expect("8", t150="F")
        process.child.send_signal(signal.SIGKILL)
        process.child.wait()
        first, trade_id = process.started, client.heard[-1][17]
    with venue(tmp_path / "again", text) as process:
        assert process.started["epoch"] == first["epoch"] + 1
        assert process.started["session"] != first["session"]
        process.wait_for("flow_ended")
        again = process.client(seq=client.seq)
        assert int(again.log_on()[34]) == 6  # after Logon, New, New, Trade, and what nobody has read yet:
        again.send("2", (7, 5), (16, 0))
        orphan = again.expect("8", t43="Y", t34=5)
        assert (orphan[11], orphan[150], orphan[39], orphan[38], orphan[151]) == ("open", "4", "4", "7", "0")
        assert orphan[17][:5] == f"{trade_id[:3]}2U"
        again.order("two", "B", 10, "10.10")
        trade = again.expect("8", t150="F")
        summary = process.stop()
    assert summary["positions"]["CONTRAFUSION"]["SYM00001"]["qty"] == 50
    assert trade[17][:4] != client.heard[-1][17][:4]
    line_a.drain()
    assert len({session for session, _, _ in line_a.packets}) == 2


def test_a_client_may_ask_for_new_numbers(tmp_path, line_a):
    with venue(tmp_path, settings(tmp_path, quiet_book(tmp_path), [line_a])) as process:
        first = process.client()
        first.log_on()
        first.order("a", "B", 1, "1.00")
        first.expect("8", t150="0")
        first.send("5")
        first.expect("5")
        assert first.read() is None
        second = process.client()
        assert second.log_on(reset=True)[34] == "1"
        process.stop()


def test_the_flow_waits_for_the_first_logon(tmp_path, line_a):
    text = settings(tmp_path, quiet_book(tmp_path), [line_a])
    with venue(tmp_path, text, "--wait-for-session") as process:
        line_a.socket.settimeout(30)
        for _ in range(2):
            assert line_a.take(line_a.socket.recv(2_048))[1:] == (1, 0)  # heartbeats, no message
        process.client().log_on()
        process.wait_for("flow_ended")
        assert process.stop()["last_seq"] == 4


def test_lost_messages_are_had_from_the_rerequest_server_while_the_flow_goes_on(tmp_path, line_a):
    messages = make_day(4, 20_000, 4)
    bad = "[impair_a]\nlost_ppm = 50000\nduplicated_ppm = 20000\nreordered_ppm = 50000\n"
    capture = capture_of(tmp_path, messages)
    text = settings(tmp_path, capture, [line_a], flow="packets_per_s = 20000", more=bad)
    text = text.replace('pace = "max"', 'pace = "packets"').replace("[feed]", "[feed]\nmessages_max = 1")
    with venue(tmp_path, text) as process, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(5)
        session = process.started["session"].encode().ljust(10)
        asked = 0
        while len(line_a.messages) < len(messages):
            line_a.drain(0.002)
            highest = max(line_a.messages, default=0)
            if process.events()[-1]["event"] == "flow_ended":
                highest = len(messages)
            missing = [n for n in range(1, highest + 1) if n not in line_a.messages]
            for first in missing[:20]:
                asker.sendto(
                    soupbin.mold_request(session, first, 1), ("127.0.0.1", process.started["rerequest_port"])
                )
                line_a.take(asker.recv(2_048))
                asked += 1
        summary = process.stop()
    assert [line_a.messages[n] for n in sorted(line_a.messages)] == messages
    assert asked > 100
    assert summary["rerequests"]["replies"] == asked
    assert summary["lines"][0]["lost"] > 500


def snapshot_of(port: int) -> tuple[int, list[bytes]]:
    """Log in to the snapshot server; return the number it continues with and the messages."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(soupbin.login_request("", ""))
        whole = b""
        while piece := link.recv(1 << 20):
            whole += piece
    packets = soupbin.Framer(soupbin.FROM_SERVER).feed(whole)
    return soupbin.parse_snapshot_end(packets[-2].payload), [p.payload for p in packets[1:-2]]


def test_a_snapshot_while_the_feed_goes_on_and_what_follows_it_are_the_books(tmp_path, line_a):
    messages = make_day(5, 30_000, 6)
    text = settings(tmp_path, capture_of(tmp_path, messages), [line_a], flow="packets_per_s = 500")
    text = text.replace('pace = "max"', 'pace = "packets"')
    with venue(tmp_path, text) as process:
        client = process.client()
        client.log_on()
        wait_for_status(tmp_path, lambda s: s["flow_messages"] > 3_000)
        price = int.from_bytes(next(m for m in messages if m[:1] == b"A" and m[1:3] == b"\0\1")[32:36], "big")
        client.order("own", "B", 50, f"{price // 10_000 + 5}.00")
        client.expect("8", t11="own", t150="0")
        number, image = snapshot_of(process.started["snapshot_port"])
        assert 3_000 < number < len(messages)
        process.wait_for("flow_ended")
        summary = process.stop()
    line_a.until_end()
    later = [line_a.messages[n] for n in range(number, summary["last_seq"] + 1)]
    assert hash_of([*image, *later]) == summary["book_state_hash"] == summary["shadow_state_hash"]
    assert summary["fills"] > 0


def test_the_generated_day_is_written_once_and_multicast_on_loopback(tmp_path):
    line = Subscriber("239.192.7.78", 0)
    text = (
        '[flow]\npace = "max"\nat_end = "stop"\n[generator]\nmessages = 2000\nsymbols = 2\n'
        f'[feed]\ngroup_a = "239.192.7.78"\nport_a = {line.port}\ngroup_b = ""\n'
        f'[fix]\nport = 0\n[run]\nfolder = "{tmp_path / "run"}"\n'
    )
    hashes = []
    for turn in ("first", "second"):
        with venue(tmp_path / turn, text) as process:
            hashes.append(process.finish()["book_state_hash"])
        line.until_end()
        line.ended = False
    line.close()
    assert hashes[0] == hashes[1] == hash_of([line.messages[n] for n in range(1, 2_001)])
    assert len(list((tmp_path / "run").glob("day-*.pcap"))) == 1
    assert len(list((tmp_path / "run").glob("day-*.news.jsonl"))) == 1


def test_progress_is_told_and_status_is_always_whole(tmp_path, line_a):
    text = settings(
        tmp_path, capture_of(tmp_path, make_day(1, 500, 2)), [line_a], more="[generator]\nseed = 2\n"
    )
    text = text.replace("[run]", "[run]\nprogress_s = 0.1").replace('pace = "max"', 'pace = "packets"')
    with venue(tmp_path, text) as process:
        process.wait_for("venue_progress")
        for _ in range(50):
            status = wait_for_status(tmp_path, lambda _: True)
            assert status["session"] == process.started["session"]
        process.stop(signal.SIGINT)


# ---------------------------------------------------------------- what is refused


def refused(tmp_path, text: str, *options: str) -> tuple[int, str]:
    """Run a venue that cannot start; return exit code and stderr."""
    config = tmp_path / "bad.toml"
    config.write_text(f'[run]\nfolder = "{tmp_path / "run"}"\n' + text)
    done = command("venue", "--config", str(config), *options, cwd=tmp_path)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_bad_configuration_is_told_line_by_line(tmp_path):
    text = '[feed]\ngroup_a = "nowhere"\nport_b = 0\nbytes_max = 9000\n[fix]\nclients = "A,,B"\nspeed = 1\n'
    code, errors = refused(tmp_path, text)
    assert code == 78
    lines = errors.splitlines()
    assert [line.split(":")[1] for line in lines] == ["4", "5", "6", "8", "9"]
    assert "feed.group_a: cannot be read" in lines[0]
    assert "fix.clients: cannot be read: CompIDs" in lines[3]
    assert "fix.speed: unknown key" in lines[4]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ('[flow]\nsource = "capture"\n', (), "flow.capture is empty"),
        ("", ("--capture", "none.pcap"), "none.pcap"),
        ("", ("--speed", "fast"), "--speed fast"),
        ("", ("--speed", "0x"), "--speed 0x"),
        (
            '[flow]\nsource = "none"\n[rerequest]\nhost = "192.0.2.1"\n',
            (),
            "rerequest server 192.0.2.1:26479",
        ),
        ('[flow]\nsource = "none"\n[feed]\ninterface = "192.0.2.1"\n', (), "lines 239.192.7.1"),
        ("[generator]\nmessages = 200\nsymbols = 100\n", (), "too few"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, text, options, words):
    code, errors = refused(tmp_path, text, *options)
    assert code == 1
    lines = [line for line in errors.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert words in lines[0]


def test_a_folder_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    code, errors = refused(tmp_path, '[flow]\nsource = "none"\n')
    assert code == 1
    assert errors.count("\n") == 1


def test_a_port_in_use_is_one_line(tmp_path, line_a):
    text = settings(tmp_path, quiet_book(tmp_path), [line_a])
    with venue(tmp_path, text) as process:
        taken = process.started["fix_port"]
        more = (
            f'[flow]\nsource = "none"\n[fix]\nport = {taken}\n[rerequest]\nport = 0\n[snapshot]\nport = 0\n'
        )
        (tmp_path / "other").mkdir()
        code, errors = refused(tmp_path / "other", more)
        assert code == 1
        assert f"FIX acceptor 127.0.0.1:{taken}" in errors
        process.stop()


def test_a_capture_at_fault_ends_the_exchange_with_a_line(tmp_path, line_a):
    capture = capture_of(tmp_path, make_day(1, 100, 2))
    capture.write_bytes(capture.read_bytes() + b"\0\0" + bytes(40))
    text = settings(tmp_path, capture, [line_a])
    with venue(tmp_path, text) as process:
        out, _ = process.child.communicate(timeout=60)
    assert process.child.returncode == 1
    assert out == ""
    assert "message length 0" in (tmp_path / "stderr.log").read_text().splitlines()[-1]


def test_a_real_morning_passes_bit_for_bit(tmp_path, line_a, shared_data):
    folder = shared_data / "itch" / "lobster_aapl"
    raw, messages = gzip.decompress((folder / "aapl_20120621_0930_0940.itch50.bin.gz").read_bytes()), []
    while raw:
        size = int.from_bytes(raw[:2], "big")
        messages.append(raw[2 : 2 + size])
        raw = raw[2 + size :]
    text = settings(tmp_path, tmp_path / "unused", [line_a], flow='at_end = "stop"')
    capture = folder / "aapl_20120621_0930_0940.pcap.gz"
    with venue(tmp_path, text, "--capture", str(capture), "--speed", "100000x") as process:
        summary = process.finish()
    line_a.until_end()
    assert [line_a.messages[n] for n in sorted(line_a.messages)] == messages
    assert summary["book_state_hash"] == summary["recorded_state_hash"] == hash_of(messages)
