"""NVRTC through ctypes: CUDA source to PTX or machine code, with no GPU and no driver.

The library comes with `pip install contrafusion[gpu]` (nvidia-cuda-nvrtc-cu12, 90 MB to fetch, 217 MB on
disk) or with a CUDA toolkit.  One way to compile serves the device, the compile gate and the emulator, so
what is tested is what runs.  A warning is an error.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

NAME: Final = "libnvrtc.so.12"
ARCHITECTURES: Final = (80, 90, 100, 120)
_USAGE: Final = re.compile(
    r"Compiling entry function '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


class NvrtcError(Exception):
    """NVRTC is absent, or refused a source; the message is its log."""


@dataclass(slots=True, frozen=True)
class Usage:
    """What the assembler says of one kernel."""

    registers: int
    stack: int  # bytes of local memory
    spills: int  # bytes stored and loaded


@dataclass(slots=True, frozen=True)
class Program:
    """A compiled source: PTX text or a cubin, the log, and the kernels' use of the machine (cubin only)."""

    image: bytes
    log: str
    usage: Mapping[str, Usage]

    @property
    def ptx(self) -> str:
        """The image as text."""
        return self.image.decode()

    @property
    def digest(self) -> str:
        """16 hex digits of the PTX without its comments: they name the compiler's build."""
        code = re.sub(r"//[^\n]*", "", self.ptx)
        lines = [line.rstrip() for line in code.splitlines() if line.strip()]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _candidates() -> list[str]:
    found: list[str] = []
    specification = importlib.util.find_spec("nvidia")
    for folder in (specification.submodule_search_locations or []) if specification else []:
        found += [str(path) for path in pathlib.Path(folder).glob(f"cuda_nvrtc/lib/{NAME}")]
    return [*found, NAME, "libnvrtc.so"]


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library.  Raises NvrtcError when there is none."""
    for path in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    msg = f"{NAME} is absent: pip install nvidia-cuda-nvrtc-cu12"
    raise NvrtcError(msg)


def version() -> tuple[int, int]:
    """Return NVRTC's version, as (12, 9)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def absent() -> str:
    """Return why sources cannot be compiled here, or nothing."""
    try:
        library()
    except NvrtcError as error:
        return str(error)
    return ""


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, text)
    return text.raw


def _array(values: list[bytes]) -> Any:
    return (ctypes.c_char_p * len(values))(*values)


def _log(program: ctypes.c_void_p) -> str:
    return _text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")


def _usage(log: str) -> dict[str, Usage]:
    return {
        name: Usage(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in _USAGE.findall(log)
    }


def compile_source(
    name: str,
    source: str,
    headers: Mapping[str, str],
    architecture: int,
    *,
    lines: bool = False,
    ptx: bool = False,
) -> Program:
    """Compile a source for an architecture (80 = sm_80) to machine code, or to PTX.

    headers: file name -> text of what it includes.  lines: keep source lines in the PTX, for messages.
    Raises NvrtcError with the log when there is an error or a warning.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    names, texts = [k.encode() for k in headers], [v.encode() for v in headers.values()]
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), len(names), _array(texts), _array(names)
    )
    flags = [f"--gpu-architecture={'compute' if ptx else 'sm'}_{architecture}", "-std=c++17"]
    flags += ["--generate-line-info"] if lines else []
    flags += [] if ptx else ["--ptxas-options=-v"]
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(flags), _array([flag.encode() for flag in flags]))
        log = _log(program)
        if status or "warning" in log:
            msg = f"{name} for sm_{architecture}: {log}"
            raise NvrtcError(msg)
        image = _text(program, "PTX" if ptx else "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return Program(image.rstrip(b"\0") if ptx else image, log, _usage(log))
