"""The CUDA sources themselves, through g++ with its address and undefined-behaviour sanitizers."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
SCRIPT = """
import ctypes, sys
from emulator import build
from emulator.device import PtxCpuDevice
from bicep.cuda.cases import cases
from bicep.device import run

library = build.declare(ctypes.CDLL(sys.argv[1]))
for seed in (0, 1):
    for case in cases(seed):
        arguments = case.copy()
        if len(sys.argv) > 2 and case.entry.name == sys.argv[2]:
            arguments["counters"] = arguments["counters"][:-1].copy()  # one row short of what it is told
        device = PtxCpuDevice(seed, load=lambda _: library, runtime=library)
        run(device, case.entry, arguments, sizes=case.sizes)
        case.check(arguments)
print("checked")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="g++ is absent"),
]


@pytest.fixture(scope="module")
def shim():
    from emulator import build

    sanitizer = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not pathlib.Path(sanitizer).is_absolute():
        pytest.skip("the address sanitizer is absent")
    return build.shim(*FLAGS), sanitizer


def sanitized(shim, *words):
    library, sanitizer = shim
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )


def test_the_sources_are_clean_and_right_under_the_sanitizers(shim):
    done = sanitized(shim)
    assert done.returncode == 0, done.stderr[-4_000:]
    assert done.stdout.strip() == "checked"


def test_the_sanitizer_sees_a_read_behind_an_array(shim):
    done = sanitized(shim, "philox_words")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "philox_words" in done.stderr
