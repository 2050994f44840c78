"""What `contrafusion check` says about the machine: each finding with what to do when it is not as wanted.

Everything is read from files below a root, /proc and /sys of the machine or a tree that a test made; a file
that is not there is said to be so, and nothing is advised about it.
"""

from __future__ import annotations

import os
import pathlib
import re
from importlib.metadata import packages_distributions
from typing import Final, NamedTuple

ROOT: Final = pathlib.Path("/")
PACKAGES: Final = ("daemon", "ringbuf", "bicep", "strategy", "nimbus")
# Number in linux/capability.h -> name and what wants it.
CAPABILITIES: Final = {
    13: ("CAP_NET_RAW", "packet sources"),
    14: ("CAP_IPC_LOCK", "locked memory"),
    23: ("CAP_SYS_NICE", "real-time priority"),
    39: ("CAP_BPF", "source af_xdp"),
}
CLOCK_SOURCES: Final = ("tsc", "kvm-clock", "arch_sys_counter")  # read without a system call
TIMER_SLACK_NS_MAX: Final = 1_000
ABSENT: Final = "not exposed"

_CPU: Final = "sys/devices/system/cpu"
_CLOCK: Final = "sys/devices/system/clocksource/clocksource0"


class Finding(NamedTuple):
    """One line of the report; `advice` is empty when nothing needs doing."""

    what: str
    value: str
    advice: str = ""


def _text(root: pathlib.Path, path: str) -> str:
    """Return a file's text without blanks around it, empty when it cannot be read."""
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace").strip("\0 \t\n")
    except OSError:
        return ""


def _line(root: pathlib.Path, path: str) -> str:
    """Return a file's text as one line."""
    return " ".join(_text(root, path).split())


def _field(root: pathlib.Path, path: str, name: str) -> str:
    """Return what follows `name` and a colon in a file of such lines, empty when there is none."""
    for line in _text(root, path).splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def cores_in(text: str) -> set[int]:
    """Return the cores of a list as Linux writes it: 0-2,5 (empty, or what is no such list: none)."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return set()
        found.update(range(int(first), int(last or first) + 1))
    return found


def package_clash() -> Finding:
    """Find other distributions that claim our package names (PyPI's python-daemon does)."""
    owners = packages_distributions()
    foreign = {
        package: sorted(others)
        for package in PACKAGES
        if (others := set(owners.get(package, [])) - {"contrafusion"})
    }
    if not foreign:
        return Finding("package names", "ours alone")
    clash = "; ".join(f"{package} also by {', '.join(names)}" for package, names in foreign.items())
    return Finding("package names", clash, "use a virtual environment without them")


def isolation(root: pathlib.Path) -> Finding:
    """Report the cores we may use, those the scheduler leaves alone, and those without a tick."""
    usable = _field(root, "proc/self/status", "Cpus_allowed_list")
    isolated, ticking_less = _line(root, f"{_CPU}/isolated"), _line(root, f"{_CPU}/nohz_full")
    tickless = "" if ticking_less == "(null)" else ticking_less
    value = f"usable {usable or ABSENT}, isolated {isolated or 'none'}, nohz_full {tickless or 'none'}"
    if not isolated:
        return Finding("cores", value, "boot with isolcpus=LIST nohz_full=LIST rcu_nocbs=LIST, the hot cores")
    if not cores_in(isolated) <= cores_in(tickless):
        return Finding("cores", value, f"boot with nohz_full={isolated} rcu_nocbs={isolated} as well")
    if usable and not cores_in(isolated) & cores_in(usable):
        return Finding("cores", value, f"let the service use them: CPUAffinity= with {isolated}")
    return Finding("cores", value)


def governor(root: pathlib.Path) -> Finding:
    """Report the frequency governors of all cores."""
    paths = sorted((root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_governor"))
    names = sorted({_line(root, str(path.relative_to(root))) for path in paths} - {""})
    wrong = names not in ([], ["performance"])
    advice = "cpupower frequency-set --governor performance" if wrong else ""
    return Finding("governor", ", ".join(names) or ABSENT, advice)


def clock_source(root: pathlib.Path) -> Finding:
    """Report what Linux reads the time from; all but a few make each reading a system call."""
    current = _line(root, f"{_CLOCK}/current_clocksource")
    if current in {"", *CLOCK_SOURCES}:
        return Finding("clock source", current or ABSENT)
    others = [
        name for name in CLOCK_SOURCES if name in _text(root, f"{_CLOCK}/available_clocksource").split()
    ]
    if others:
        return Finding("clock source", current, f"echo {others[0]} > /{_CLOCK}/current_clocksource")
    return Finding("clock source", current, "reading it is slow; boot with tsc=reliable if the counter is")


def huge_pages(root: pathlib.Path) -> Finding:
    """Report reserved huge pages, which only the DPDK bridge wants."""
    total, free = (_field(root, "proc/meminfo", f"HugePages_{kind}") for kind in ("Total", "Free"))
    if not total:
        return Finding("huge pages", ABSENT)
    value = f"{free} of {total} free, {_field(root, 'proc/meminfo', 'Hugepagesize')} each"
    advice = "for the DPDK bridge alone: dpdk-hugepages.py --setup 2G" if total == "0" else ""
    return Finding("huge pages", value, advice)


def transparent_huge_pages(root: pathlib.Path) -> Finding:
    """Report transparent huge pages."""
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    chosen = re.search(r"\[(\w+)\]", _line(root, path))
    value = chosen[1] if chosen else ABSENT
    return Finding("transparent", value, f"echo madvise > /{path}" if value in {"never", "always"} else "")


def _limit(root: pathlib.Path, name: str) -> str:
    """Return the soft limit of this process, as Linux writes it."""
    for line in _text(root, "proc/self/limits").splitlines():
        if line.startswith(name):
            return line[len(name) :].split()[0]
    return ""


def memory_lock(root: pathlib.Path) -> Finding:
    """Report how much memory may be locked."""
    soft = _limit(root, "Max locked memory")
    if not soft.isdecimal():
        return Finding("memlock", soft or ABSENT)
    value = f"{int(soft) >> 10:,} KiB"
    if _holds(root, 14):
        return Finding("memlock", f"{value}, and CAP_IPC_LOCK, for which it does not count")
    return Finding("memlock", value, "LimitMEMLOCK=infinity in the service, or ulimit -l unlimited")


def _holds(root: pathlib.Path, number: int) -> bool:
    mask = _field(root, "proc/self/status", "CapEff") or "0"
    return bool(int(mask, 16) >> number & 1)


def capabilities(root: pathlib.Path) -> Finding:
    """Report the capabilities that live capture and real-time scheduling need; replay needs none."""
    if not _field(root, "proc/self/status", "CapEff"):
        return Finding("capabilities", ABSENT)
    held = [name for number, (name, _) in CAPABILITIES.items() if _holds(root, number)]
    missing = [f"{name} ({use})" for number, (name, use) in CAPABILITIES.items() if not _holds(root, number)]
    advice = f"AmbientCapabilities= in the service, where wanted: {', '.join(missing)}" if missing else ""
    return Finding("capabilities", ", ".join(held) or "none", advice)


def real_time(root: pathlib.Path) -> Finding:
    """Report how much of each second real-time threads may take: a spinning one loses the rest."""
    runtime = _line(root, "proc/sys/kernel/sched_rt_runtime_us")
    if runtime in {"", "-1"}:
        return Finding("rt runtime", "no limit" if runtime else ABSENT)
    period = _line(root, "proc/sys/kernel/sched_rt_period_us") or "1000000"
    value = f"{runtime} of {period} us"
    return Finding(
        "rt runtime", value, "before real-time priorities: sysctl -w kernel.sched_rt_runtime_us=-1"
    )


def autogroup(root: pathlib.Path) -> Finding:
    """Report whether scheduler autogroups can starve a pinned thread."""
    text = _line(root, "proc/sys/kernel/sched_autogroup_enabled")
    if not text:
        return Finding("autogroup", ABSENT)
    nice = _line(root, "proc/self/autogroup").rpartition("nice ")[2]
    if text == "0" or nice == "-20":
        return Finding("autogroup", "off" if text == "0" else "on, this session's nice is -20")
    value = f"on, this session's nice is {nice}" if nice else "on"
    return Finding("autogroup", value, "sysctl -w kernel.sched_autogroup_enabled=0")


def timer_slack(root: pathlib.Path) -> Finding:
    """Report by how much Linux may delay the timers of the cold loops to save wake-ups."""
    text = _line(root, "proc/self/timerslack_ns")
    if not text.isdecimal():
        return Finding("timer slack", ABSENT)
    late = int(text) > TIMER_SLACK_NS_MAX
    return Finding("timer slack", f"{int(text):,} ns", "TimerSlackNSec=1 in the service" if late else "")


def machine_report(root: pathlib.Path = ROOT) -> list[Finding]:
    """Return every finding, in the order of the report; root: of the tree that is looked at."""
    looks = (
        isolation, governor, clock_source, huge_pages, transparent_huge_pages, memory_lock, capabilities,
        real_time, autogroup, timer_slack,
    )  # fmt: skip
    return [package_clash(), *(look(root) for look in looks)]


def machine_name(root: pathlib.Path = ROOT) -> str:
    """Return processor and number of cores, to stand beside figures."""
    model = _field(root, "proc/cpuinfo", "model name") or os.uname().machine
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}"
