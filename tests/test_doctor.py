"""The machine doctor over made trees of /proc and /sys: what it finds, and what it advises when."""

from __future__ import annotations

import pytest

from daemon import doctor
from daemon.doctor import ABSENT, cores_in, machine_name, machine_report
from daemon.main import main

CPU, CLOCK = "sys/devices/system/cpu", "sys/devices/system/clocksource/clocksource0"
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max locked memory         {memlock:<21}unlimited            bytes
"""
STATUS = "Name:\tpython3\nCapEff:\t{mask:016x}\nCpus_allowed:\tf\nCpus_allowed_list:\t{usable}\n"
AMBIENT = "AmbientCapabilities= in the service, where wanted:"
ALL = 1 << 13 | 1 << 14 | 1 << 23 | 1 << 39
WANTED = {
    "proc/self/status": STATUS.format(mask=ALL, usable="0-3"),
    "proc/self/limits": LIMITS.format(memlock="unlimited"),
    "proc/self/autogroup": "/autogroup-6 nice 0\n",
    "proc/self/timerslack_ns": "1\n",
    "proc/meminfo": "MemTotal:  99 kB\nHugePages_Total:     512\nHugePages_Free:      500\n"
    "Hugepagesize:       2048 kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Made For Tests\n",
    "proc/sys/kernel/sched_rt_runtime_us": "-1\n",
    "proc/sys/kernel/sched_rt_period_us": "1000000\n",
    "proc/sys/kernel/sched_autogroup_enabled": "0\n",
    f"{CPU}/isolated": "2-3\n",
    f"{CPU}/nohz_full": "2-3\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "performance\n",
    f"{CLOCK}/current_clocksource": "tsc\n",
    f"{CLOCK}/available_clocksource": "tsc hpet acpi_pm\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}


@pytest.fixture
def machine(tmp_path):
    """Return what finds, by name, in a tree as wanted with these files changed (None: absent)."""

    def look(changes: dict[str, str | None] | None = None) -> dict[str, doctor.Finding]:
        for path, text in (WANTED | (changes or {})).items():
            if text is not None:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(text)
        return {finding.what: finding for finding in machine_report(tmp_path)}

    return look


def test_a_machine_as_wanted_needs_nothing(machine):
    found = machine()
    assert {what: finding.advice for what, finding in found.items() if finding.advice} == {}
    assert {what: finding.value for what, finding in found.items()} == {
        "package names": "ours alone",
        "cores": "usable 0-3, isolated 2-3, nohz_full 2-3",
        "governor": "performance",
        "clock source": "tsc",
        "huge pages": "500 of 512 free, 2048 kB each",
        "transparent": "madvise",
        "memlock": "unlimited",
        "capabilities": "CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_NICE, CAP_BPF",
        "rt runtime": "no limit",
        "autogroup": "off",
        "timer slack": "1 ns",
    }


def test_what_the_machine_does_not_show_is_no_reason_for_advice(tmp_path):
    found = {finding.what: finding for finding in machine_report(tmp_path)}
    assert {what for what, finding in found.items() if finding.advice} == {"cores"}
    assert {what for what, finding in found.items() if finding.value == ABSENT} == set(found) - {
        "cores", "package names",
    }  # fmt: skip
    assert found["cores"].value == f"usable {ABSENT}, isolated none, nohz_full none"


@pytest.mark.parametrize(
    ("what", "changes", "value", "advice"),
    [
        (
            "cores", {f"{CPU}/isolated": "\n", f"{CPU}/nohz_full": None},
            "usable 0-3, isolated none, nohz_full none",
            "boot with isolcpus=LIST nohz_full=LIST rcu_nocbs=LIST, the hot cores",
        ),
        (
            "cores", {f"{CPU}/nohz_full": "3\n"}, "usable 0-3, isolated 2-3, nohz_full 3",
            "boot with nohz_full=2-3 rcu_nocbs=2-3 as well",
        ),
        (
            "cores", {f"{CPU}/nohz_full": "(null)\n"}, "usable 0-3, isolated 2-3, nohz_full none",
            "boot with nohz_full=2-3 rcu_nocbs=2-3 as well",
        ),
        (
            "cores", {"proc/self/status": STATUS.format(mask=ALL, usable="0-1")},
            "usable 0-1, isolated 2-3, nohz_full 2-3", "let the service use them: CPUAffinity= with 2-3",
        ),
        (
            "governor", {f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave\n"}, "performance, powersave",
            "cpupower frequency-set --governor performance",
        ),
        (
            "clock source", {f"{CLOCK}/current_clocksource": "hpet\n"}, "hpet",
            f"echo tsc > /{CLOCK}/current_clocksource",
        ),
        (
            "clock source",
            {f"{CLOCK}/current_clocksource": "hpet\n", f"{CLOCK}/available_clocksource": "hpet acpi_pm\n"},
            "hpet", "reading it is slow; boot with tsc=reliable if the counter is",
        ),
        (
            "huge pages", {"proc/meminfo": "HugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB\n"},
            "0 of 0 free, 2048 kB each", "for the DPDK bridge alone: dpdk-hugepages.py --setup 2G",
        ),
        (
            "transparent", {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n"},
            "never", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        (
            "memlock",
            {
                "proc/self/limits": LIMITS.format(memlock=8_388_608),
                "proc/self/status": STATUS.format(mask=0, usable="0-3"),
            },
            "8,192 KiB", "LimitMEMLOCK=infinity in the service, or ulimit -l unlimited",
        ),
        (
            "memlock", {"proc/self/limits": LIMITS.format(memlock=65_536)},
            "64 KiB, and CAP_IPC_LOCK, for which it does not count", "",
        ),
        (
            "capabilities", {"proc/self/status": STATUS.format(mask=1 << 13 | 1 << 23, usable="0-3")},
            "CAP_NET_RAW, CAP_SYS_NICE",
            f"{AMBIENT} CAP_IPC_LOCK (locked memory), CAP_BPF (source af_xdp)",
        ),
        (
            "rt runtime", {"proc/sys/kernel/sched_rt_runtime_us": "950000\n"}, "950000 of 1000000 us",
            "before real-time priorities: sysctl -w kernel.sched_rt_runtime_us=-1",
        ),
        (
            "autogroup", {"proc/sys/kernel/sched_autogroup_enabled": "1\n"}, "on, this session's nice is 0",
            "sysctl -w kernel.sched_autogroup_enabled=0",
        ),
        (
            "autogroup",
            {"proc/sys/kernel/sched_autogroup_enabled": "1\n", "proc/self/autogroup": "/a-6 nice -20\n"},
            "on, this session's nice is -20", "",
        ),
        (
            "timer slack", {"proc/self/timerslack_ns": "50000\n"}, "50,000 ns",
            "TimerSlackNSec=1 in the service",
        ),
    ],
)  # fmt: skip
def test_what_is_not_as_wanted_is_told_with_what_to_do(machine, what, changes, value, advice):
    found = machine(changes)
    assert found[what] == (what, value, advice)
    others = {name for name, finding in found.items() if finding.advice} - {what}
    assert others <= ({"capabilities"} if "proc/self/status" in changes else set())


def test_every_line_of_the_report_is_one_line(machine):
    broken = {path: "\n\n \0 x\n[y\n" for path in WANTED if not path.endswith("status")}
    for finding in machine(broken).values():
        assert "\n" not in finding.value + finding.advice
        assert finding.value


@pytest.mark.parametrize(
    ("text", "cores"),
    [("", set()), ("3", {3}), ("0-2,5", {0, 1, 2, 5}), ("(null)", set()), ("1-", {1}), ("-1", set()),
     ("2-1", set()), ("a-b", set())],
)  # fmt: skip
def test_lists_of_cores(text, cores):
    assert cores_in(text) == cores


def test_a_foreign_package_of_our_names_is_told(monkeypatch):
    owners = {"daemon": ["contrafusion", "python-daemon"], "nimbus": ["contrafusion"], "ringbuf": ["x", "y"]}
    monkeypatch.setattr(doctor, "packages_distributions", lambda: owners)
    found = doctor.package_clash()
    assert found.value == "daemon also by python-daemon; ringbuf also by x, y"
    assert found.advice == "use a virtual environment without them"


def test_the_machine_is_named(machine, tmp_path):
    machine()
    assert machine_name(tmp_path).startswith("Made For Tests, ")
    assert machine_name(tmp_path / "none").count(", ") == 2


def test_the_command_prints_every_finding_of_this_machine(capsys):
    assert main(["check"]) == 0
    told = capsys.readouterr().out.splitlines()
    for finding in machine_report():
        line = next(line for line in told if line.startswith(f"  {finding.what:<16} "))
        assert line.endswith(f"-> {finding.advice}") == bool(finding.advice)
