"""PTX, the compiler's real output, as C++ that runs on the emulator.

One C++ function per kernel.  Every load and store goes through the emulator's check, and every backward
branch takes from the launch's budget.
"""

from __future__ import annotations

import re
from typing import Final

from emulator.instructions import WIDTH, Kernel, instruction, unsigned

ENTRY: Final = re.compile(
    r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)\s*((?:\.\w+[^{]*)?)\{(.*?)\n\}", re.DOTALL
)
STATEMENT: Final = re.compile(
    r"\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)[^\n]*|(?P<label>\$?\w+):|(?P<code>[^\s;{}][^;{}]*(?:\{[^}]*\}[^;{}]*)*);"
)


def _shared_symbols(kernel: Kernel, module: str, body: str) -> None:
    """Lay out static shared memory, then the dynamic part, which begins on 16 bytes."""
    end = 0
    for text in (module, body):
        for align, kind, name, count in re.findall(
            r"(?<!\.extern )\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+(\w+)(?:\[(\d+)\])?\s*;", text
        ):
            if re.search(rf"\b{name}\b", body):
                end = -(-end // int(align)) * int(align)
                kernel.shared[name] = end
                end += int(count or 1) * WIDTH[kind] // 8
    kernel.static_shared = -(-end // 16) * 16
    for name in re.findall(r"\.extern\s+\.shared[^;]*?(\w+)\[\];", module):
        kernel.shared[name] = kernel.static_shared


def _body(kernel: Kernel, text: str, files: dict[str, str]) -> str:
    declared, lines, seen, where = [], [], set(), '"?"'
    for match in STATEMENT.finditer(text):
        if match["file"]:
            where = f'"{files.get(match["file"], "?")}:{match["line"]}"' if match["line"] != "0" else where
            continue
        if match["label"]:
            label = match["label"].replace("$", "")
            seen.add(label)
            lines.append(f"{label}:;")
            continue
        code = " ".join(match["code"].split())
        if not code or code.startswith((".pragma", ".shared", ".loc")):
            continue
        if code.startswith(".reg"):
            kind, prefix, count = re.findall(r"\.reg \.(\w+) %(\w+?)<(\d+)>", code)[0]
            kernel.widths[prefix] = WIDTH[kind]
            type_ = "bool" if kind == "pred" else f"u{WIDTH[kind]}"
            declared.append(f"{type_} " + ", ".join(f"R{prefix}{n} = 0" for n in range(int(count))) + ";")
            continue
        lines.append(f"{instruction(kernel, code, where, seen)}  // {code}")
    return "\n    ".join([*declared, "const u32 thread = C->thread; (void)thread;", *lines])


def translate(ptx: str) -> tuple[str, dict[str, Kernel]]:
    """Return the C++ of all kernels in a PTX module, and what they are called with."""
    files = {n: path.rsplit("/", 1)[-1] for n, path in re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', ptx)}
    ptx = re.sub(r"//[^\n]*", "", ptx)
    kernels, code = {}, ['#include "values.h"\nusing namespace emulator;\n']
    module = ENTRY.sub("", ptx)
    for name, parameters, _, body in ENTRY.findall(ptx):
        found = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr[^,\n]*\s)?(\w+)", parameters)
        kernel = Kernel(name, found)
        _shared_symbols(kernel, module, body)
        # labels are per kernel in PTX and per function in C++, so they need no new names
        inside = _body(kernel, body, files)
        reads = "".join(
            f"    {unsigned(t)} {n} = *({unsigned(t)}*)arguments[{i}]; (void){n};\n"
            for i, (t, n) in enumerate(found)
        )
        kernel.code = f"static void body_{name}(Context* C, void** arguments) {{\n{reads}    {inside}\n}}\n"
        kernel.code += (
            f'extern "C" const char* run_{name}(Launch* launch, void** arguments) {{\n'
            f"    launch->static_shared = {kernel.static_shared};\n"
            f"    return emulator_run(launch, body_{name}, arguments);\n}}\n"
        )
        code.append(kernel.code)
        kernels[name] = kernel
    return "\n".join(code), kernels
