"""House rules that a machine can check (style rules 23 and 11)."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("daemon", "ringbuf", "bicep", "strategy", "nimbus")
NUMBA_DOORS = ("ringbuf/jit.py", "ringbuf/atomics.py", "ringbuf/memory.py", "bicep/plan")
PRINTERS = ("daemon/main.py", "daemon/commands")
FILE_LINES_MAX, FUNCTION_LINES_MAX, COLUMNS_MAX = 400, 70, 110


def _body_length(fn: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = fn.body[1] if ast.get_docstring(fn) and len(fn.body) > 1 else fn.body[0]
    return (fn.end_lineno or fn.lineno) - first.lineno + 1


def _findings(name: str, text: str) -> list[str]:
    lines, tree, found = text.splitlines(), ast.parse(text), []
    if len(lines) > FILE_LINES_MAX:
        found.append(f"{name}:1: {len(lines)} lines, limit {FILE_LINES_MAX}")
    if lines and not ast.get_docstring(tree):
        found.append(f"{name}:1: module docstring missing")
    found += [
        f"{name}:{n}: {len(line)} columns" for n, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX
    ]
    for node in ast.walk(tree):
        at = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = _body_length(node)
            if length > FUNCTION_LINES_MAX:
                found.append(f"{at}: {node.name} has {length} lines, limit {FUNCTION_LINES_MAX}")
        elif isinstance(node, ast.Global):
            found.append(f"{at}: global statement")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if any(n.split(".")[0] == "numba" for n in names) and not name.startswith(NUMBA_DOORS):
                found.append(f"{at}: numba is imported only by {NUMBA_DOORS}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            found += [] if name.startswith(PRINTERS) else [f"{at}: print outside the command line"]
    return found


def _sources() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file_keeps_the_house_rules(path: pathlib.Path) -> None:
    assert not _findings(str(path.relative_to(ROOT)), path.read_text())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "docstring"),
        ('"""D."""\nimport numba', "numba"),
        ('"""D."""\nprint(1)', "print"),
        ('"""D."""\ndef f():\n    global x\n    x = 1', "global"),
        ('"""D."""\n' + "#" * 111, "columns"),
        ('"""D."""\n' * 401, "lines"),
        ('"""D."""\ndef f():\n' + "    x = 1\n" * 71, "f has 71 lines"),
    ],
)
def test_each_rule_can_fail(text: str, complaint: str) -> None:
    assert any(complaint in finding for finding in _findings("nimbus/x.py", text))
