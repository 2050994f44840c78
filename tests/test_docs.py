"""Generated pages equal their tables, what the docs name exists, and what exists is in the docs."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def _render():
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    return render


def _section(heading: str) -> str:
    """Return what stands under a heading of operations.md, up to the next of its level or above."""
    level = heading.split(" ", 1)[0]
    _, found, rest = OPERATIONS.partition(f"\n{heading}\n")
    assert found, f"operations.md has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def _first_texts(path: pathlib.Path, methods: set[str]) -> Iterator[str]:
    """Yield the first argument of each call of one of these methods in a source, where it is a text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _constant(path: pathlib.Path, name: str) -> object:
    """Return the literal that a module assigns to a name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            return ast.literal_eval(node.value)
    msg = f"{path.name} has no {name}"
    raise AssertionError(msg)


def _keys(path: pathlib.Path, function: str) -> list[str]:
    """Return the keys of the dictionary that a function returns, outermost level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
            return [key.value for key in returned[-1].keys]
    msg = f"{path.name} has no {function}"
    raise AssertionError(msg)


COMMANDS = _constant(ROOT / "daemon" / "main.py", "COMMANDS")


@pytest.mark.parametrize("page", sorted(_render().PAGES))
def test_a_generated_page_is_up_to_date(page):
    assert (DOCS / page).read_text() == _render().PAGES[page](), "run `make docs`"


def test_every_file_that_the_docs_link_to_exists():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_heading_that_the_docs_link_to_exists():
    for page in sorted(DOCS.glob("*.md")):
        for name, anchor in re.findall(r"\]\(([a-z]*(?:\.md)?)#([^)]+)\)", page.read_text()):
            headings = re.findall(r"^#+ (.+)$", (DOCS / (name or page.name)).read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name} links to {name}#{anchor}"


def test_every_make_target_that_the_docs_name_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]:
        assert set(re.findall(r"`make ([a-z]+)`", page.read_text())) <= targets, page.name


def test_every_command_has_a_section_and_no_other():
    assert re.findall(r"^### `([a-z-]+)`$", OPERATIONS, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_in_the_section_of_its_command(command):
    source = ROOT / "daemon" / "commands" / f"{command}.py"
    if not source.exists():
        pytest.skip("the command has no module")
    options = {text for text in _first_texts(source, {"add_argument"}) if text.startswith("--")}
    told = set(re.findall(r"^\| `(--[a-z-]+)", _section(f"### `{command}`"), re.MULTILINE))
    assert told == options


def test_every_log_event_has_a_line_and_no_other():
    events = {name for path in (ROOT / "daemon").rglob("*.py") for name in _first_texts(path, LEVELS)}
    assert set(re.findall(r"^\| `(\w+)` \|", _section("## Log events"), re.MULTILINE)) == events


def test_every_route_of_the_endpoint_has_a_line_and_no_other():
    routes = set(_first_texts(ROOT / "daemon" / "admin" / "app.py", {"get", "post"}))
    routes = {route for route in routes if route.startswith("/")}
    assert set(re.findall(r"^\| `(/[^`]*)` \|", _section("## Admin endpoint"), re.MULTILINE)) == routes


def test_every_metric_is_named():
    named = set(re.findall(r"`(\w+)(?:\{\w+\})?`", _section("## Admin endpoint")))
    source = (ROOT / "daemon" / "admin" / "views.py").read_text()
    assert set(re.findall(r'_metric\(\s*"(\w+)"', source)) <= named


def test_every_field_of_the_results_is_named():
    outcome = ROOT / "daemon" / "outcome.py"
    fields = [*_constant(outcome, "ORDER_FIELDS"), *_constant(outcome, "FILL_FIELDS")]
    fields += _keys(outcome, "summarise")
    named = set(re.findall(r"`(\w+)`", _section("## Results")))
    assert [field for field in fields if field not in named] == []


def test_every_reason_for_refusing_a_frame_is_named():
    reasons = _constant(ROOT / "nimbus" / "feed" / "state.py", "REASONS")[1:]
    named = set(re.findall(r"`(\w+)`", _section("## Refused and counted")))
    assert [reason for reason in reasons if reason not in named] == []


def test_both_example_configurations_are_linked():
    for path in (ROOT / "configs").glob("*.toml"):  # test_settings.py: each names every setting
        assert f"(../configs/{path.name})" in _section("## Configuration")
