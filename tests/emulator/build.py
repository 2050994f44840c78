"""From a CUDA source to a loaded library of the emulator, kept by content in a temporary folder."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import numpy as np
from emulator.translate import translate

from bicep import nvrtc
from bicep.cuda import ENTRIES, FOLDER, SOURCES, TYPES, headers, read_source

HERE = pathlib.Path(__file__).parent
FLAGS = ["-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]
FLAGS += ["-mfma"] if platform.machine() == "x86_64" else []
PTX_ARCHITECTURE = 80


class Launch(ctypes.Structure):
    """struct Launch of runtime.h."""

    _fields_ = (
        ("grid_x", ctypes.c_uint32), ("grid_y", ctypes.c_uint32), ("threads", ctypes.c_uint32),
        ("static_shared", ctypes.c_uint32), ("dynamic_shared", ctypes.c_uint32),
        ("constants", ctypes.c_uint32), ("seed", ctypes.c_uint64),
        ("budget", ctypes.c_int64), ("constant", ctypes.c_void_p),
    )  # fmt: skip


def missing() -> str:
    """Return why kernels cannot be emulated here, or nothing."""
    if not shutil.which("g++"):
        return "g++ is absent"
    return nvrtc.absent()


def cache() -> pathlib.Path:
    """Return the folder of built libraries: the user's alone."""
    folder = pathlib.Path(tempfile.gettempdir()) / f"contrafusion-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        folder = pathlib.Path(tempfile.mkdtemp(prefix="contrafusion-emulator-"))
    return folder


def compile_cpp(name: str, text: str, *flags: str, suffix: str = ".so") -> pathlib.Path:
    """Compile C++ (kept by its text, the headers here and the flags); return the library."""
    digest = hashlib.blake2b(digest_size=12)
    for part in (text, *flags, *FLAGS, *(path.read_text() for path in sorted(HERE.glob("*.h")))):
        digest.update(part.encode() + b"\0")
    target = cache() / f"{name}-{digest.hexdigest()}{suffix}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            source, built = pathlib.Path(folder) / f"{name}.cpp", pathlib.Path(folder) / target.name
            source.write_text(text)
            command = ["g++", *FLAGS, "-O1", f"-I{HERE}", *flags, str(source), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[:4_000])
            with contextlib.suppress(FileExistsError):
                built.rename(target)
    return target


@functools.cache
def runtime() -> ctypes.CDLL:
    """Return the emulator itself; libraries of kernels find its functions in the process."""
    path = compile_cpp("runtime", (HERE / "runtime.cpp").read_text(), "-O2")
    return declare(ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL))


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the emulator's own functions take."""
    word = ctypes.c_uint64
    for name, arguments in (
        ("allocate", (word, word, ctypes.c_uint32)), ("release", (word,)), ("written", (word, word)),
        ("unwritten", (word, word)), ("abort", (ctypes.c_int,)),
    ):  # fmt: skip
        getattr(library, f"emulator_{name}").argtypes = arguments
    library.emulator_unwritten.restype = ctypes.c_int64
    return library


def to_ptx(source: str, changed: dict[str, str], architecture: int = PTX_ARCHITECTURE) -> str:
    """Compile a source to PTX with line numbers; changed: file name -> text in place of its own."""
    text = changed.get(source) or read_source(source)
    included = {**headers(), **changed}
    return nvrtc.compile_source(source, text, included, architecture, lines=True, ptx=True).ptx


def shim_source() -> str:
    """Return C++ with the emulator and every CUDA source, behind the same doors as translated PTX."""
    parts = ['#include "shim.h"', '#include "runtime.cpp"']
    parts += [f'#include "{name}"' for name in SOURCES]
    for entry in ENTRIES.values():
        kinds = {dtype: kind for kind, dtype in TYPES.items()}
        kinds[np.uint8] = "char" if "expert" in entry.name else "u8"
        values = ", ".join(
            f"*({'const ' if a.is_const else ''}{kinds[a.dtype]}{'*' if a.is_pointer else ''}*)arguments[{n}]"
            for n, a in enumerate(entry.arguments)
        )
        parts.append(
            f"static void body_{entry.name}(emulator::Context* context, void** arguments) {{ "
            f"shim::now = context; {entry.name}({values}); }}\n"
            f'extern "C" const char* run_{entry.name}(emulator::Launch* launch, void** arguments) {{ '
            f"return emulator::emulator_run(launch, body_{entry.name}, arguments); }}"
        )
    return "\n".join(parts) + "\n"


def shim_headers() -> pathlib.Path:
    """Write the headers of the CUDA sources to a folder; return it."""
    folder = cache() / f"headers-{hashlib.blake2b(repr(headers()).encode(), digest_size=8).hexdigest()}"
    folder.mkdir(exist_ok=True)
    for name, text in headers().items():
        (folder / name).write_text(text)
    return folder


def shim(*flags: str) -> pathlib.Path:
    """Compile the CUDA sources themselves with g++; return the library."""
    folder = shim_headers()
    sources = "".join(read_source(name) for name in SOURCES) + (HERE / "runtime.cpp").read_text()
    digest = hashlib.blake2b((sources + repr(headers())).encode(), digest_size=8).hexdigest()
    text = f"// {digest}\n{shim_source()}"
    return compile_cpp("shim", text, f"-I{folder}", f"-I{FOLDER}", *flags)


def load(source: str, changed=None, architecture: int = PTX_ARCHITECTURE) -> ctypes.CDLL:
    """Return the library of a source's kernels; changed: see to_ptx."""
    runtime()
    code, _ = translate(to_ptx(source, changed or {}, architecture))
    return ctypes.CDLL(str(compile_cpp(source.removesuffix(".cu"), code)))
