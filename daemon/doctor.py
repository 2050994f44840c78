"""What `contrafusion check` says about the machine: each finding with what to do about it."""

from __future__ import annotations

import os
import pathlib
import resource
from importlib.metadata import packages_distributions
from typing import Final, NamedTuple

PACKAGES: Final = ("daemon", "ringbuf", "bicep", "strategy", "nimbus")
CAPABILITIES: Final = {13: "CAP_NET_RAW", 14: "CAP_IPC_LOCK", 23: "CAP_SYS_NICE"}


class Finding(NamedTuple):
    """One line of the report; `advice` is empty when nothing needs doing."""

    what: str
    value: str
    advice: str = ""


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


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


def cores() -> Finding:
    """Report usable and isolated cores."""
    usable, isolated = len(os.sched_getaffinity(0)), _text("/sys/devices/system/cpu/isolated")
    value = f"{usable} usable, isolated: {isolated or 'none'}"
    if isolated:
        return Finding("cores", value)
    return Finding("cores", value, "boot with isolcpus= nohz_full= rcu_nocbs= for the hot cores")


def governor() -> Finding:
    """Report the frequency governor of core 0."""
    value = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    good = value in {"", "performance"}
    return Finding("governor", value or "not exposed", "" if good else "set it to performance")


def clock_source() -> Finding:
    """Report the kernel's clock source."""
    value = _text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    good = value in {"tsc", "kvm-clock", "arch_sys_counter"}
    return Finding("clock source", value or "unknown", "" if good else "prefer tsc")


def huge_pages() -> Finding:
    """Report transparent huge pages."""
    text = _text("/sys/kernel/mm/transparent_hugepage/enabled")
    value = text[text.find("[") + 1 : text.find("]")] if "[" in text else "not exposed"
    return Finding("huge pages", value, "" if value != "never" else "allow madvise")


def memory_lock() -> Finding:
    """Report how much memory may be locked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    value = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    enough = soft == resource.RLIM_INFINITY or os.geteuid() == 0
    return Finding("memlock", value, "" if enough else "raise LimitMEMLOCK to infinity")


def capabilities() -> Finding:
    """Report the capabilities that live capture and real-time scheduling need."""
    mask = next(
        (int(line.split()[1], 16) for line in _text("/proc/self/status").splitlines() if "CapEff" in line), 0
    )
    held = [name for bit, name in CAPABILITIES.items() if mask >> bit & 1]
    return Finding("capabilities", ", ".join(held) or "none (replay needs none)")


def autogroup() -> Finding:
    """Report whether scheduler autogroups can starve a pinned thread."""
    on = _text("/proc/sys/kernel/sched_autogroup_enabled") == "1"
    advice = "echo -20 > /proc/self/autogroup, or disable it" if on else ""
    return Finding("autogroup", "on" if on else "off", advice)


def machine_report() -> list[Finding]:
    """Return every finding, in the order of the report."""
    return [
        package_clash(), cores(), governor(), clock_source(), huge_pages(), memory_lock(), capabilities(),
        autogroup(),
    ]  # fmt: skip


def machine_name() -> str:
    """Return processor and number of cores, to stand beside figures."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _text("/proc/cpuinfo").splitlines()
            if "model name" in line
        ),
        os.uname().machine,
    )
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}"
