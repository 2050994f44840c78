"""The one way this project compiles kernels, and the proof that a kernel allocates nothing.

Kernels release the GIL and are cached on disk.  Numba looks only at the file that holds a function when
it decides whether cached machine code is fresh, so a changed constant or callee in another file would
keep running stale code.  The cache folder is therefore named after a digest of every hot source, the
Numba version and the CPU: a change anywhere is a new folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Final, ParamSpec, TypeVar, cast

import llvmlite.binding
import numba
from numba import types
from numba.core import event

P = ParamSpec("P")
R = TypeVar("R")

ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
HOT_SOURCES: Final = (
    "ringbuf", "nimbus", "bicep", "strategy",
    "daemon/pipeline.py", "daemon/loops.py", "daemon/rung_change.py",
)  # fmt: skip
_HEAP_CALL: Final = re.compile(
    r"[@!](NRT_Allocate\w*|NRT_MemInfo_alloc\w*|numba_gil_ensure|PyErr_\w+|numba_exception_output)"
)
_NOT_KERNEL: Final = re.compile(
    r'@"?(_ZN7cpython|cfunc\.|NRT_|numba_)'
)  # wrappers for Python, Numba's runtime
_DIGEST: Final = re.compile(r"[0-9a-f]{16}")


def source_digest() -> str:
    """Return 16 hex digits that change whenever a hot source, Numba or the CPU changes."""
    digest = hashlib.blake2b(digest_size=8)
    cpu = os.environ.get("NUMBA_CPU_NAME") or llvmlite.binding.get_host_cpu_name()
    digest.update(f"{numba.__version__} {cpu}".encode())
    for name in HOT_SOURCES:
        path = ROOT / name
        for source in [path] if path.suffix else sorted(path.rglob("*.py")):
            text = source.read_bytes() if source.exists() else b""
            digest.update(f"{source.relative_to(ROOT)} {len(text)}\n".encode())
            digest.update(text)
    return digest.hexdigest()


def cache_home() -> pathlib.Path:
    """Return the folder that holds one sub-folder of compiled kernels per source digest.

    XDG_CACHE_HOME/contrafusion, else the CacheDirectory of a systemd service, else ~/.cache/contrafusion.
    """
    if home := os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(home) / "contrafusion"
    if service := os.environ.get("CACHE_DIRECTORY"):
        return pathlib.Path(service.split(":")[0])
    return pathlib.Path.home() / ".cache" / "contrafusion"


def _can_hold(folder: pathlib.Path) -> bool:
    """Say whether compiled kernels can be kept in folder (created on the way)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


# A function that is pasted into another has been through code generation before, where LLVM splits
# addresses into a base and an "inbounds" offset and takes either part for the base.  Where that part is 0 in
# the caller, such an address is poison, and the caller loses its whole body.  Plain additions are safe.
llvmlite.binding.set_option("", "-addr-sink-using-gep=false")

CACHE_FOLDER: Final = cache_home() / source_digest()
cast("Any", numba).config.CACHE_DIR = str(CACHE_FOLDER)
# A read-only home means compiling at each start instead of no start at all.
_FLAGS: Final = {
    "nogil": True,
    "no_cfunc_wrapper": True,
    "cache": _can_hold(CACHE_FOLDER),
    "error_model": "numpy",
}


def kernel(fn: Callable[P, R]) -> Callable[P, R]:
    """Compile `fn` in nopython mode, without the GIL, cached on disk; it never raises."""
    return cast("Callable[P, R]", numba.njit(**_FLAGS)(fn))


def inlined(fn: Callable[P, R]) -> Callable[P, R]:
    """Compile like `kernel`, and paste the machine code into every caller."""
    return cast("Callable[P, R]", numba.njit(forceinline=True, **_FLAGS)(fn))


def external(name: str, returns: str, *arguments: str) -> Any:
    """Declare a libc function for use inside kernels: `external` of close, intc, intc.

    Bound by symbol name, so the disk cache stays valid (a ctypes pointer would disable it).
    returns, arguments: names of Numba types: "intc" for int, "intp" for pointers and sizes, "int64".
    """
    signature = getattr(types, returns)(*(getattr(types, a) for a in arguments))
    return types.ExternalFunction(name, signature)


def signature_count(*kernels: Callable[..., Any]) -> int:
    """Return how many compiled signatures these kernels hold; it must not grow after warm-up."""
    return sum(len(cast("Any", fn).signatures) for fn in kernels)


class _CompileListener(event.Listener):  # type: ignore[misc]
    """Passes the name of each kernel on, once it has been compiled (not: loaded from the cache)."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def on_start(self, event: Any) -> None:
        """Ignore the beginning."""

    def on_end(self, event: Any) -> None:
        """Tell the name."""
        self._tell(event.data["dispatcher"].py_func.__name__)


@contextlib.contextmanager
def on_compiled(tell: Callable[[str], None]) -> Iterator[None]:
    """Call tell(name) for each kernel compiled inside the block."""
    with event.install_listener("numba:compile", _CompileListener(tell)):
        yield


def is_warm() -> bool:
    """Say whether compiled kernels of exactly these sources lie on disk."""
    return CACHE_FOLDER.is_dir() and any(CACHE_FOLDER.rglob("*.nbi"))


def drop_stale_caches(keep: int = 3) -> int:
    """Remove all but the `keep` newest cache folders (never the current one); return how many went."""
    folders = [f for f in cache_home().glob("*") if _DIGEST.fullmatch(f.name) and f.is_dir()]
    folders.sort(key=lambda f: f.stat().st_mtime, reverse=True)
    stale = [f for f in folders if f != CACHE_FOLDER][max(keep - 1, 0) :]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return len(stale)


def heap_calls(fn: Callable[..., Any]) -> set[str]:
    """Return the allocation, GIL and exception calls in a compiled kernel and its callees (tests want none).

    Raises RuntimeError for a kernel loaded from the disk cache: it has no IR, and no IR is no proof.
    """
    found: set[str] = set()
    for ir in cast("Any", fn).inspect_llvm().values():
        if "\ndefine " not in ir:
            msg = "no LLVM IR: compile with an empty cache folder"
            raise RuntimeError(msg)
        for body in ir.split("\ndefine ")[1:]:
            if not _NOT_KERNEL.search(body.split("(", 1)[0]):
                found.update(_HEAP_CALL.findall(body))
    return found
