"""Stands in for the daemon in a booted service: heartbeats, the notifier, and tries of what the unit forbids.

The first life hangs after a while, so that the watchdog has to end it; the second ends at SIGTERM.  Prints
JSON lines.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import platform
import resource
import signal
import socket
import sys
import time
from typing import Any

HEALTHY_S = 3.0  # longer than WatchdogSec
RUNTIME = pathlib.Path(os.environ["RUNTIME_DIRECTORY"])
LIBC = ctypes.CDLL(None, use_errno=True)
MCL_CURRENT = 1
SYS_BPF = 280 if platform.machine() == "aarch64" else 321


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def attempt(work: Any) -> str:
    """Return "done", or the name of what the system answered."""
    try:
        result = work()
    except OSError as error:
        return os.strerror(error.errno or 0)
    if isinstance(result, int) and result < 0:
        return os.strerror(ctypes.get_errno())
    if isinstance(result, socket.socket):
        result.close()
    return "done"


def compiled_sum() -> int:
    """Compile a kernel: memory that is written and then run."""
    from ringbuf.jit import CACHE_FOLDER, kernel

    @kernel
    def total(n: int) -> int:
        result = 0
        for k in range(n):
            result += k * k
        return result

    assert str(CACHE_FOLDER).startswith(os.environ["CACHE_DIRECTORY"])
    return total(1_000)


def report(life: int) -> None:
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    tries = {
        "mount": lambda: LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None),
        "ptrace": lambda: LIBC.ptrace(16, os.getppid(), 0, 0),  # PTRACE_ATTACH
        "write to /usr": lambda: os.open("/usr/contrafusion", os.O_CREAT | os.O_WRONLY),
        "write to /etc": lambda: os.open("/etc/contrafusion.new", os.O_CREAT | os.O_WRONLY),
        "namespace": lambda: LIBC.unshare(0x40000000),
        "bpf": lambda: LIBC.syscall(SYS_BPF, 0, 0, 0),
        "vsock": lambda: socket.socket(40, socket.SOCK_STREAM),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
        "udp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "lock memory": lambda: LIBC.mlockall(MCL_CURRENT),
        "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "normal again": lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
        "write state": lambda: os.open(os.environ["STATE_DIRECTORY"] + "/x", os.O_CREAT | os.O_WRONLY),
    }
    say(
        life=life,
        user=os.getuid() != 0,
        capabilities=next(line.split()[1] for line in status if line.startswith("CapEff")),
        core=resource.getrlimit(resource.RLIMIT_CORE)[0],
        umask=os.umask(0o077),
        slack_ns=int(pathlib.Path("/proc/self/timerslack_ns").read_text()),
        tries={name: attempt(work) for name, work in tries.items()},
        sum=compiled_sum(),
    )


def main() -> None:
    from daemon.systemd import Notifier

    marker = RUNTIME / "was-here"  # survives the crash: RuntimeDirectoryPreserve=restart
    life = 2 if marker.exists() else 1
    marker.touch()
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stops.append(number))
    notifier = Notifier.from_environment(os.environ)
    notifier.extend(60)
    report(life)
    notifier.ready(f"life {life}")
    started, beats, hangs = time.monotonic(), 0, False
    while not stops:
        time.sleep(0.01)
        if life == 1 and not hangs and time.monotonic() - started > HEALTHY_S:
            hangs = True
            say(hangs=True, pings=notifier.pings)
        beats += not hangs
        stuck = notifier.watch(time.monotonic_ns(), {"market": beats, "orders": time.monotonic_ns()})
        assert hangs or not stuck
    notifier.stopping("told to")
    say(stopped=stops[0], heard=notifier.is_heard, failures=notifier.failures)


if __name__ == "__main__":
    main()
