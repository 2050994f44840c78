"""The one door to Numba: the cache folder's name, the proof of purity, libc by name."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringbuf import agent, clock, histogram, jit, seqlock, spsc
from ringbuf.jit import external, heap_calls, inlined, kernel

ROOT = pathlib.Path(__file__).resolve().parents[1]
_getpid = external("getpid", "intc")
_strnlen = external("strnlen", "intp", "intp", "intp")


@pytest.fixture
def hot_tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    for name in ("ringbuf/a.py", "nimbus/book/b.py", "daemon/pipeline.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(jit, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["ringbuf/a.py", "nimbus/book/b.py", "daemon/pipeline.py"])
def test_the_digest_follows_every_hot_source(hot_tree: pathlib.Path, name: str) -> None:
    before = jit.source_digest()
    assert before == jit.source_digest()
    (hot_tree / name).write_text("x = 2\n")
    assert jit.source_digest() != before
    (hot_tree / name).write_text("x = 1\n")
    assert jit.source_digest() == before


def test_the_digest_follows_moved_files_and_the_processor_and_not_cold_ones(
    hot_tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jit.source_digest()
    (hot_tree / "daemon" / "main.py").write_text("cold = True\n")
    assert jit.source_digest() == before
    (hot_tree / "nimbus" / "feed").mkdir()
    (hot_tree / "nimbus/book/b.py").rename(hot_tree / "nimbus/feed/b.py")
    moved = jit.source_digest()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert len({before, moved, jit.source_digest()}) == 3


def test_the_cache_lies_where_the_service_manager_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/one")
    monkeypatch.setenv("CACHE_DIRECTORY", "/two:/three")
    assert jit.cache_home() == pathlib.Path("/one/contrafusion")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert jit.cache_home() == pathlib.Path("/two")
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setenv("HOME", "/four")
    assert jit.cache_home() == pathlib.Path("/four/.cache/contrafusion")


def test_only_old_cache_folders_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:016x}" for number in range(5)]
    for age, name in enumerate([*names, "models"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    monkeypatch.setattr(jit, "cache_home", lambda: tmp_path)
    monkeypatch.setattr(jit, "CACHE_FOLDER", tmp_path / names[4])  # the present one is the oldest
    assert jit.drop_stale_caches(keep=3) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([names[0], names[1], names[4], "models"])


def _run(code: str, cache: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_kernels_are_cached_and_a_cached_kernel_is_no_proof(tmp_path: pathlib.Path) -> None:
    code = """
from ringbuf import jit, spsc, memory
import numpy as np
print(jit.is_warm())
ring = np.zeros(64, np.int64)
spsc.recover_producer(ring.ctypes.data)
try: print(jit.heap_calls(spsc.recover_producer))
except RuntimeError as error: print(error)
print(jit.is_warm())
"""
    assert _run(code, tmp_path).stdout.splitlines() == ["False", "set()", "True"]
    assert _run(code, tmp_path).stdout.splitlines() == [
        "True",
        "no LLVM IR: compile with an empty cache folder",
        "True",
    ]


def test_a_home_that_cannot_be_written_only_costs_the_cache(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    code = "from ringbuf import spsc; import numpy as np; x = np.zeros(64, np.int64)\n"
    code += "print(spsc.recover_producer(x.ctypes.data))"
    assert _run(code, tmp_path / "file").stdout == "0\n"


@kernel
def _libc(text: int, limit: int) -> int:
    return _getpid() * 1_000 + _strnlen(text, limit)


def test_libc_functions_are_called_by_name_and_allocate_nothing() -> None:
    text = np.frombuffer(b"seven c\0", np.uint8)
    assert _libc(text.ctypes.data, 99) == os.getpid() * 1_000 + 7
    assert heap_calls(_libc) == set()


@kernel
def _leaky(count: int) -> float:
    return np.zeros(count).sum()


@kernel
def _calls_leaky(count: int) -> float:
    total = 0.0
    for number in range(count):
        total += _recursive(number, number)
    return total


@kernel
def _recursive(depth: int, count: int) -> float:
    if depth <= 0:
        return np.zeros(count).sum()
    return _recursive(depth - 1, count) + 1.0


def test_the_purity_check_can_fail() -> None:
    _leaky(3)
    assert any(name.startswith("NRT_") for name in heap_calls(_leaky))


def test_the_purity_check_looks_into_callees() -> None:
    assert _calls_leaky(3) == 3.0
    assert heap_calls(_calls_leaky)


@inlined
def _twice(number: int) -> int:
    return 2 * number


@kernel
def _four_times(number: int) -> int:
    return _twice(_twice(number))


def test_signatures_are_counted_and_do_not_grow_for_the_same_types() -> None:
    assert jit.signature_count(_four_times) == 0
    assert _four_times(4) == 16
    _four_times(5)
    assert jit.signature_count(_four_times) == 1
    _four_times(1.5)  # type: ignore[arg-type]
    assert jit.signature_count(_four_times) == 2


def _kernels() -> list[tuple[str, Callable[..., Any]]]:
    modules = (agent, clock, histogram, seqlock, spsc)
    return [
        (f"{module.__name__}.{name}", fn)
        for module in modules
        for name, fn in vars(module).items()
        if hasattr(fn, "inspect_llvm") and fn.py_func.__module__ == module.__name__
    ]


@pytest.mark.parametrize(("name", "fn"), _kernels(), ids=[name for name, _ in _kernels()])
def test_every_kernel_of_the_ground_compiles_for_plain_ints(name: str, fn: Any) -> None:
    assert name
    arguments = ", ".join("int64" for _ in fn.py_func.__code__.co_varnames[: fn.py_func.__code__.co_argcount])
    fn.compile(f"({arguments})" if arguments.count(",") else f"({arguments},)")
    assert jit.signature_count(fn) >= 1
