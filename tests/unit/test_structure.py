"""Imports point down, as docs/explanation/architecture.md shows, and never in circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support import ROOT

Graph = dict[str, set[str]]

PACKAGE = "wsgateway"
SECTION = (
    (ROOT / "docs/explanation/architecture.md").read_text().partition("## Direction of imports")[2]
)
PICTURE = re.search(r"```text\n(.*?)```", SECTION, re.S)
assert PICTURE is not None
LAYERS = [line.split() for line in reversed(PICTURE[1].splitlines())]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def sources() -> dict[str, str]:
    """Return the source of every module, by dotted name."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Yield the modules that run-time imports below *node* name, and what they take from each."""
    for child in ast.iter_child_nodes(node):
        if is_for_types(child):
            continue
        if isinstance(child, ast.ImportFrom):
            assert not child.level, "relative imports are not used"
            yield child.module or "", [alias.name for alias in child.names]
        elif isinstance(child, ast.Import):
            yield from ((alias.name, []) for alias in child.names)
        yield from imported(child)


def graph_of(modules: Mapping[str, str]) -> Graph:
    """Return what each module imports of the others."""
    graph: Graph = {}
    for name, source in modules.items():
        arrows = graph[name] = set()
        for module, names in imported(ast.parse(source)):
            inner = {f"{module}.{each}" for each in names} & modules.keys()
            is_whole = len(inner) < len(names) or not names
            arrows |= inner | ({module} & modules.keys() if is_whole else set())
    return graph


def unit_of(module: str) -> str | None:
    """Return the name in the picture that stands for *module*."""
    name = module.removeprefix(f"{PACKAGE}.")
    while name not in RANKS and "." in name:
        name = name.rpartition(".")[0]
    return name if name in RANKS else None


def wrong_arrows(graph: Graph) -> list[str]:
    """Return the imports that do not point down."""
    wrong = []
    for module, others in graph.items():
        for other in others - {PACKAGE}:
            here, there = unit_of(module), unit_of(other)
            if here and there and here != there and RANKS[here] <= RANKS[there]:
                wrong.append(f"{module} imports {other}, which is not below it")
    return sorted(wrong)


def circle(graph: Graph) -> str:
    """Return modules that import each other; empty if none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return " <- ".join(exc.args[1])
    return ""


SOURCES = sources()
GRAPH = graph_of(SOURCES)


def test_every_import_points_down() -> None:
    assert wrong_arrows(GRAPH) == []


def test_no_modules_import_each_other() -> None:
    assert circle(GRAPH) == ""


def test_every_module_is_in_the_picture() -> None:
    missing = [module for module in sorted(GRAPH.keys() - {PACKAGE}) if unit_of(module) is None]
    assert not missing, "add these to the picture in docs/explanation/architecture.md"


@pytest.mark.parametrize("name", sorted(RANKS))
def test_every_name_in_the_picture_is_a_module(name: str) -> None:
    assert f"{PACKAGE}.{name}" in GRAPH


def test_the_package_itself_imports_nothing() -> None:
    """Everybody imports it with their first import of the package."""
    assert GRAPH[PACKAGE] == set()


def test_package_imports_neither_the_site_nor_its_tests() -> None:
    for module, source in SOURCES.items():
        names = {name.partition(".")[0] for name, _ in imported(ast.parse(source))}
        assert not names & {"project", "tests"}, module


def test_arrow_that_points_up_is_named_even_inside_a_function() -> None:
    modules = {
        "wsgateway.broker.base": "def f():\n    from wsgateway.gateway import session",
        "wsgateway.gateway.session": "import wsgateway.broker.base",
        "wsgateway.layer.core": "from wsgateway.gateway.session import Hub",
    }
    assert wrong_arrows(graph_of(modules)) == [
        "wsgateway.broker.base imports wsgateway.gateway.session, which is not below it",
        "wsgateway.layer.core imports wsgateway.gateway.session, which is not below it",
    ]
    assert "wsgateway.broker.base <- wsgateway.gateway.session" in circle(graph_of(modules))


def test_import_for_types_does_not_count() -> None:
    modules = {
        "wsgateway.a": "if TYPE_CHECKING:\n    from wsgateway.b import B",
        "wsgateway.b": "from wsgateway import a",
    }
    assert graph_of(modules) == {"wsgateway.a": set(), "wsgateway.b": {"wsgateway.a"}}


def test_only_tracing_imports_opentelemetry() -> None:
    """It is optional: elsewhere, an import would fail where it is not installed."""
    importers = {
        module
        for module, source in SOURCES.items()
        if any(name.startswith("opentelemetry") for name, _ in imported(ast.parse(source)))
    }
    assert importers == {"wsgateway.tracing"}


def bare_tasks(source: str) -> Iterator[str]:
    """Yield the calls in *source* that create a task nobody watches."""
    tree = ast.parse(source)
    groups = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and "TaskGroup" in ast.unparse(item)
    }
    for node in ast.walk(tree):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        owner, _, method = name.rpartition(".")
        if method in ("create_task", "ensure_future") and owner not in groups:
            yield name


def test_only_supervision_creates_tasks() -> None:
    """A task that asyncio alone knows can be collected, or die without a word."""
    bare = {name for name, source in SOURCES.items() if any(bare_tasks(source))}
    assert bare == {"wsgateway.supervision"}, "use wsgateway.supervision"


def test_task_without_an_owner_is_found() -> None:
    source = """
async def f():
    async with asyncio.TaskGroup() as group:
        group.create_task(g())
    asyncio.create_task(g())
    self.loop.create_task(g())
    ensure_future(g())
"""
    assert [*bare_tasks(source)] == [
        "asyncio.create_task",
        "self.loop.create_task",
        "ensure_future",
    ]
