"""The compile gate: every kernel for every architecture, within its budget, and its code pinned.

The pinned digests are of NVRTC 12.9.  When a source changes on purpose, `python tests/test_cuda_compile.py`
writes them anew, and the change is seen in the diff.
"""

import pathlib
import re

import pytest
from emulator import build
from emulator.translate import ENTRY

from bicep import nvrtc
from bicep.cuda import ENTRIES, SOURCES, headers, read_source
from bicep.cuda.layout import MAILBOX, STRUCTS
from bicep.device import DeviceError, architecture_for

PINNED = pathlib.Path(__file__).parent / "golden" / "ptx.txt"
NVRTC = (12, 9)

pytestmark = pytest.mark.skipif(bool(nvrtc.absent()), reason=nvrtc.absent() or "present")


def digests(source):
    found = {}
    for architecture in nvrtc.ARCHITECTURES:
        program = nvrtc.compile_source(source, read_source(source), headers(), architecture, ptx=True)
        found[f"{source} sm_{architecture}"] = program.digest
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_compiles_without_warning_spill_or_local_memory_within_its_registers(source):
    wanted = {entry.name for entry in ENTRIES.values() if entry.source == source}
    for architecture in nvrtc.ARCHITECTURES:
        program = nvrtc.compile_source(source, read_source(source), headers(), architecture)
        assert set(program.usage) == wanted
        for name, usage in program.usage.items():
            assert (usage.stack, usage.spills) == (0, 0), (name, architecture)
            assert usage.registers <= ENTRIES[name].registers, (name, architecture)


@pytest.mark.parametrize("source", SOURCES)
def test_the_code_of_a_source_is_the_pinned_one(source):
    if nvrtc.version() != NVRTC:
        pytest.skip(f"digests are of NVRTC {NVRTC}, this is {nvrtc.version()}")
    pinned = dict(line.rsplit(" ", 1) for line in PINNED.read_text().splitlines())
    for key, digest in digests(source).items():
        assert pinned[key] == digest, f"{key}: the generated code has changed"


@pytest.mark.parametrize("source", SOURCES)
def test_the_table_says_what_the_kernels_take(source):
    ptx = nvrtc.compile_source(source, read_source(source), headers(), 80, ptx=True).ptx
    code = re.sub(r"//[^\n]*", "", ptx)
    kernels = {
        name: re.findall(r"\.param \.(\w+)", parameters) for name, parameters, _, _ in ENTRY.findall(code)
    }
    for name, kinds in kernels.items():
        sizes = [int(re.sub(r"\D", "", kind)) // 8 for kind in kinds]
        declared = [8 if a.is_pointer else a.dtype().itemsize for a in ENTRIES[name].arguments]
        assert sizes == declared, name
        signature = re.search(rf"void {name}\((.*?)\)", read_source(source), re.DOTALL)[1]
        words = [" ".join(part.split()) for part in signature.split(",")]
        for word, argument in zip(words, ENTRIES[name].arguments, strict=True):
            assert word.endswith(f" {argument.name}"), (name, word)
            assert word.startswith("const ") == argument.is_const, (name, word)
            assert ("*" in word) == argument.is_pointer, (name, word)


def test_a_warning_is_an_error():
    with pytest.raises(nvrtc.NvrtcError, match="never referenced"):
        nvrtc.compile_source("x.cu", 'extern "C" __global__ void k(int* a) { int b; a[0] = 1; }', {}, 80)
    with pytest.raises(nvrtc.NvrtcError, match="error"):
        nvrtc.compile_source("x.cu", "not C", {}, 80)


def test_local_memory_and_registers_are_seen():
    code = (
        'extern "C" __global__ void k(float* a, int n) { float b[64]; '
        "for (int i = 0; i < 64; ++i) b[i] = a[i * n];"
        " for (int i = 0; i < 64; ++i) a[i] = b[(i * n) % 64]; }"
    )
    usage = nvrtc.compile_source("x.cu", code, {}, 80).usage["k"]
    assert usage.stack >= 256
    assert usage.registers > 0


@pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
def test_the_generated_header_holds_every_field_at_its_offset():
    fields = "\n".join(
        f'static_assert(__builtin_offsetof({name}, {field}) == {at}, "{name}.{field}");'
        for name, record in STRUCTS.items()
        for field, at in record.at._asdict().items()
    )
    checks = "\n".join(
        f'static_assert(MAILBOX_{f.upper()} == {at}, "{f}");' for f, at in MAILBOX.at._asdict().items()
    )
    folder = build.shim_headers()
    build.compile_cpp(
        "offsets", f'#include "shim.h"\n#include "common.cuh"\n{fields}\n{checks}', f"-I{folder}"
    )


@pytest.mark.parametrize(
    ("capability", "architecture"), [(80, 80), (89, 80), (90, 90), (103, 100), (121, 120)]
)
def test_a_card_gets_the_newest_code_of_its_major_version(capability, architecture):
    assert architecture_for(capability) == architecture


def test_a_card_that_is_too_old_is_refused():
    with pytest.raises(DeviceError, match=r"7\.5"):
        architecture_for(75)


if __name__ == "__main__":
    PINNED.write_text("".join(f"{k} {v}\n" for source in SOURCES for k, v in digests(source).items()))
