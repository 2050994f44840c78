"""The service: what the notifier says and when it keeps silent; what systemd's own tools say of the unit."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import socket
import subprocess

import pytest

from daemon.systemd import PINGS_A_PERIOD, STATUS_SIZE_MAX, Notifier

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
WATCHDOG_NS = 3_000
STEP_NS = WATCHDOG_NS // PINGS_A_PERIOD


class Wire:
    """A manager in memory: what it was told, and an error to give instead."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.error: OSError | None = None

    def __call__(self, datagram: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(datagram)


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def notifier(wire):
    return Notifier(wire, WATCHDOG_NS)


# ---------------------------------------------------------------- notices


def test_each_notice_is_one_datagram(notifier, wire):
    notifier.extend(1.5)
    notifier.ready("DISARMED")
    notifier.status("PAPER: armed by the operator")
    notifier.stopping("SIGTERM")
    assert wire.told == [
        b"EXTEND_TIMEOUT_USEC=1500000",
        b"READY=1\nSTATUS=DISARMED",
        b"STATUS=PAPER: armed by the operator",
        b"STOPPING=1\nSTATUS=SIGTERM",
    ]


def test_a_status_that_has_not_changed_is_not_sent_again(notifier, wire):
    notifier.ready("DISARMED")
    notifier.status("DISARMED")
    notifier.status("")
    notifier.stopping()
    assert wire.told == [b"READY=1\nSTATUS=DISARMED", b"STOPPING=1"]


def test_a_status_cannot_smuggle_another_field(notifier, wire):
    notifier.status("fine\nMAINPID=1\r\n WATCHDOG=trigger" + "x" * 9_999)
    assert wire.told[0].startswith(b"STATUS=fine MAINPID=1 WATCHDOG=trigger")
    assert b"\n" not in wire.told[0]
    assert len(wire.told[0]) == len("STATUS=") + STATUS_SIZE_MAX


def test_without_a_manager_nothing_is_sent_and_nothing_fails():
    notifier = Notifier(None, WATCHDOG_NS)
    notifier.ready("x")
    notifier.extend(1)
    notifier.stopping()
    assert notifier.watch(1, {"market": 1}) == []
    assert (notifier.is_heard, notifier.pings, notifier.failures) == (False, 0, 0)


def test_a_notice_that_cannot_be_sent_is_counted_and_told(notifier, wire):
    wire.error = OSError(errno.ECONNREFUSED, "Connection refused")
    notifier.ready()
    assert (notifier.failures, notifier.trouble) == (1, "Connection refused")
    wire.error = None
    notifier.ready()
    assert wire.told == [b"READY=1"]


# ---------------------------------------------------------------- watchdog


def test_a_ping_wants_every_heartbeat_to_have_moved(notifier, wire):
    assert notifier.watch(0, {"market": 1, "orders": 1}) == []
    assert notifier.watch(STEP_NS, {"market": 2, "orders": 1}) == ["orders"]
    assert notifier.watch(2 * STEP_NS, {"market": 9, "orders": 1}) == ["orders"]
    assert wire.told == [b"WATCHDOG=1"]
    assert notifier.watch(2 * STEP_NS + 1, {"market": 9, "orders": 2}) == []
    assert wire.told == [b"WATCHDOG=1"] * 2
    assert notifier.pings == 2


def test_a_beat_is_compared_with_that_of_the_last_ping_not_of_the_last_look(notifier, wire):
    notifier.watch(0, {"market": 1})
    notifier.watch(STEP_NS // 2, {"market": 2})  # too early for a ping: not remembered
    assert notifier.watch(STEP_NS, {"market": 2}) == []
    assert len(wire.told) == 2


def test_pings_come_several_times_in_a_period_and_not_more_often(notifier, wire):
    for now_ns in range(0, WATCHDOG_NS, 10):
        notifier.watch(now_ns, {"market": now_ns})
    assert len(wire.told) == PINGS_A_PERIOD >= 2


def test_without_an_agent_there_is_no_ping(notifier, wire):
    for now_ns in range(0, WATCHDOG_NS * 3, STEP_NS):
        assert notifier.watch(now_ns, {}) == []
    assert wire.told == []


def test_a_beat_that_goes_back_has_moved(notifier, wire):
    notifier.watch(0, {"market": 7})
    assert notifier.watch(STEP_NS, {"market": 1}) == []  # a restarted loop counts from the beginning
    assert len(wire.told) == 2


def test_agents_may_come_and_go(notifier, wire):
    notifier.watch(0, {"market": 1, "gpu": 1})
    assert notifier.watch(STEP_NS, {"market": 2, "news": 0}) == []
    assert notifier.watch(2 * STEP_NS, {"market": 3, "news": 0}) == ["news"]
    assert len(wire.told) == 2


def test_a_ping_that_was_not_taken_is_tried_again(notifier, wire):
    wire.error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    notifier.watch(0, {"market": 1})
    wire.error = None
    notifier.watch(1, {"market": 1})
    assert wire.told == [b"WATCHDOG=1"]
    assert notifier.failures == 1


def test_without_a_watchdog_there_is_no_ping(wire):
    assert Notifier(wire).watch(10**12, {"market": 1}) == []
    assert wire.told == []


# ---------------------------------------------------------------- the environment and a real socket


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """Return a real datagram socket as systemd has it, and its name as NOTIFY_SOCKET gives it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@contrafusion-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(10)
        yield sock, name


def test_a_real_socket_takes_the_datagrams_and_the_variables_are_gone(manager):
    sock, name = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier.from_environment(environment)
    assert environment == {"HOME": "/"}
    assert notifier.is_heard
    notifier.ready("DISARMED")
    notifier.watch(0, {"market": 1})
    notifier.watch(STEP_NS, {"market": 2})
    notifier.stopping()
    told = [sock.recv(4_096) for _ in range(4)]
    assert told == [b"READY=1\nSTATUS=DISARMED", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_manager_that_is_gone_or_does_not_read_is_no_error(manager):
    sock, name = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name})
    for number in range(5_000):  # more than its queue holds
        notifier.status(f"{number}")
    assert notifier.failures > 0
    assert notifier.trouble == os.strerror(errno.EAGAIN)
    sock.close()
    failures = notifier.failures
    notifier.ready()
    assert notifier.failures == failures + 1


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "3"}])
def test_no_manager(environment):
    notifier = Notifier.from_environment(environment)
    assert not notifier.is_heard
    assert notifier.trouble == ""
    assert environment == {}


def test_an_address_of_another_kind_is_told():
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"})
    assert not notifier.is_heard
    assert notifier.trouble == "NOTIFY_SOCKET vsock:2:1234: neither a path nor an abstract name"


@pytest.mark.parametrize(
    ("variables", "pings"),
    [
        ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "77"}, 1),
        ({"WATCHDOG_USEC": "3"}, 1),
        ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "78"}, 0),
        ({"WATCHDOG_USEC": "soon", "WATCHDOG_PID": "77"}, 0),
        ({"WATCHDOG_PID": "77"}, 0),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(tmp_path, variables, pings):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "none")} | variables, pid=77)
    notifier.watch(0, {"market": 1})
    assert notifier.failures == pings


# ---------------------------------------------------------------- the units, by systemd's own tools

UNITS = sorted(path.name for path in CONFIGS.glob("*.service"))
EXPOSURE_MAX = {"contrafusion.service": 2.1, "contrafusion-dpdk.service": 2.1}  # the tool's 0 (best) to 10


@pytest.fixture
def installed(tmp_path):
    """Return a folder with the units, their programs replaced by one that exists, or skip."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    for name in UNITS:
        text = (CONFIGS / name).read_text().replace("/opt/contrafusion/bin/", "/bin/true ")
        (tmp_path / name).write_text(text.replace("/usr/bin/logger", "/bin/true"))
    return tmp_path


def analyze(folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *words], cwd=folder, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


def test_systemd_finds_nothing_wrong_with_the_units(installed):
    done = analyze(installed, "verify", "--man=no", "--recursive-errors=no", *(f"./{name}" for name in UNITS))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("contrafusion-*.conf")), ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_drop_in(installed, path):
    folder = installed / "contrafusion.service.d"
    folder.mkdir()
    words = ("verify", "--man=no", "--recursive-errors=no", "./contrafusion.service")
    shutil.copy(path, folder)
    done = analyze(installed, *words)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (folder / path.name).write_text(path.read_text().replace("CapabilityBoundingSet", "CapabilitySet"))
    assert "'CapabilitySet'" in analyze(installed, *words).stderr, "it was looked at"


def test_systemd_would_find_a_word_it_does_not_know(installed):
    unit = installed / "contrafusion.service"
    unit.write_text(unit.read_text().replace("RestrictNamespaces=yes", "RestrictNamespace=yes"))
    done = analyze(installed, "verify", "--man=no", "--recursive-errors=no", "./contrafusion.service")
    assert "'RestrictNamespace'" in done.stderr


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_the_exposure_of_the_service_stays_low(installed, name):
    done = analyze(installed, "security", "--offline=true", str(installed / name))
    if "offline" in done.stderr:
        pytest.skip("systemd-analyze is too old for --offline")
    found = re.search(r"Overall exposure level for .*: ([0-9.]+) ", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX[name], done.stdout


def test_the_service_says_what_the_notifier_speaks():
    text = (CONFIGS / "contrafusion.service").read_text()
    fixed = {"Type": "notify", "NotifyAccess": "main", "WatchdogSec": "2", "MemoryDenyWriteExecute": "no",
             "RuntimeDirectoryPreserve": "restart", "UMask": "0077", "LimitCORE": "0"}  # fmt: skip
    for key, value in fixed.items():
        assert re.findall(rf"^{key}=(.*)$", text, re.MULTILINE) == [value]
    for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert f"\n{key}=CAP_NET_RAW CAP_IPC_LOCK CAP_SYS_NICE\n" in text


def test_every_unit_that_a_unit_names_is_there():
    for name in UNITS:
        named = re.findall(r"contrafusion[a-z-]*@?(?:%n)?\.service", (CONFIGS / name).read_text())
        assert {word.replace("%n", "") for word in named} <= set(UNITS), name
