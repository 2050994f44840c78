"""The unit under a real systemd, booted in a container: sandbox, watchdog, restart, orderly stop."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
BOOT_S = 240
DROP_IN = """[Service]
Environment=PYTHONPATH=/opt/code:/opt/site PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/opt/python/lib
StandardOutput=append:/out/service.log
StandardError=append:/out/service.err
"""
PROBE_UNIT = """[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh /out/probe.sh
StandardOutput=append:/out/probe.log
StandardError=append:/out/probe.log
"""
PROBE = """
echo booted
show() {
    systemctl show contrafusion --property=ActiveState,StatusText,NRestarts,Result | sort | tr '\\n' ';'
    echo
}
systemctl start contrafusion || journalctl --no-pager | tail -50
show
for turn in $(seq 600); do
    [ "$(systemctl show contrafusion --property=NRestarts --value)" != 0 ] &&
        [ "$(systemctl is-active contrafusion)" = active ] && break
    sleep 0.1
done
show
systemctl stop contrafusion
show
systemctl poweroff --force --force
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory) -> pathlib.Path:
    """Boot systemd with our unit, let it live through a hang, and return the folder with what was said."""
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("systemd-nspawn is not installed: apt-get install systemd-container")
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    units, out = tmp_path_factory.mktemp("units"), tmp_path_factory.mktemp("out")
    python = f"/opt/python/bin/python3.{sys.version_info.minor}"
    for path in CONFIGS.glob("*.service"):
        program = re.compile(r"^ExecStart=/opt/contrafusion/bin/contrafusion .*$", re.MULTILINE)
        text = program.sub(f"ExecStart={python} /opt/code/tests/service_probe.py", path.read_text())
        (units / path.name).write_text(text)
    (units / "contrafusion.service.d").mkdir()
    (units / "contrafusion.service.d" / "test.conf").write_text(DROP_IN)
    (units / "basic.target.wants").mkdir()
    (units / "probe.service").write_text(PROBE_UNIT)
    (units / "basic.target.wants" / "probe.service").symlink_to("../probe.service")
    (out / "probe.sh").write_text(PROBE)
    binds = {
        units: "/etc/systemd/system",
        CONFIGS / "contrafusion.sysusers": "/etc/sysusers.d/contrafusion.conf",
        sys.base_prefix: "/opt/python",
        sysconfig.get_path("purelib"): "/opt/site",
        ROOT: "/opt/code",
    }
    command = [
        "systemd-nspawn", "--directory=/", "--volatile=yes", "--register=no", "--keep-unit",
        "--private-network", "--capability=all", f"--bind={out}:/out",
        *(f"--bind-ro={here}:{there}" for here, there in binds.items()),
        "--boot", "systemd.unit=basic.target", "systemd.firstboot=off", "quiet",
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=BOOT_S
    )
    if not (out / "probe.log").exists():
        pytest.skip(
            f"no container can be booted here: {(done.stderr.splitlines() or ['no reason given'])[-1]}"
        )
    return out


@pytest.fixture(scope="module")
def said(booted) -> list[dict]:
    """Return what the service printed in its two lives."""
    lines = (booted / "service.log").read_text().splitlines()
    assert len(lines) == 4, (booted / "probe.log").read_text() + (booted / "service.err").read_text()
    return [json.loads(line) for line in lines]


def test_it_starts_hangs_is_ended_by_the_watchdog_started_again_and_stopped(booted, said):
    shown = [line for line in (booted / "probe.log").read_text().splitlines() if "NRestarts=" in line]
    assert shown == [
        "ActiveState=active;NRestarts=0;Result=success;StatusText=life 1;",
        "ActiveState=active;NRestarts=1;Result=success;StatusText=life 2;",
        "ActiveState=inactive;NRestarts=0;Result=success;StatusText=;",
    ]
    assert [line.get("life") for line in said] == [1, None, 2, None], (
        "the runtime directory survived the crash"
    )
    assert said[1]["pings"] >= 3, "it lived longer than the watchdog's period, and was not ended"
    assert said[3] == {"stopped": 15, "heard": True, "failures": 0}


def test_it_runs_as_its_user_with_three_capabilities(said):
    for life in (said[0], said[2]):
        assert life["user"]
        assert int(life["capabilities"], 16) == 1 << 13 | 1 << 14 | 1 << 23
        assert (life["core"], life["umask"], life["slack_ns"]) == (0, 0o077, 1)


def test_it_can_do_its_work_and_nothing_else(said):
    denied, read_only = os.strerror(1), os.strerror(30)
    assert said[0]["sum"] == sum(k * k for k in range(1_000))
    assert said[0]["tries"] == {
        "mount": denied, "ptrace": denied, "namespace": denied, "bpf": denied,
        "write to /usr": read_only, "write to /etc": read_only,
        "vsock": os.strerror(97),  # EAFNOSUPPORT
        "packet socket": "done", "udp socket": "done", "lock memory": "done", "real time": "done",
        "normal again": "done", "write state": "done",
    }  # fmt: skip
