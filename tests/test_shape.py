"""The shape of launcher/: how many rooms, how long files and functions, who imports whom, what rooms say of themselves.

The bounds are what a reader can hold in mind, and are to be kept.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from scripts.import_graph import PACKAGE, ROOT, Module, between_rooms, circles, modules, single_importers, unexplained

FOLDERS, LOOSE_FILES = 18, 4
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
DOCSTRING_LINES = 3


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return modules()


def functions(house: dict[str, Module]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method, also nested ones, with where it is."""
    for module in house.values():
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module.path.relative_to(ROOT)}: {node.name}", node


def test_rooms_are_few_and_little_lies_loose() -> None:
    top = ROOT / PACKAGE
    assert len([path for path in top.iterdir() if (path / "__init__.py").is_file()]) <= FOLDERS
    assert len(list(top.glob("*.py"))) <= LOOSE_FILES


def test_modules_are_short(house: dict[str, Module]) -> None:
    assert {name: module.lines for name, module in house.items() if module.lines > MODULE_LINES} == {}


def test_functions_are_short_and_take_few_parameters(house: dict[str, Module]) -> None:
    long, many = {}, set()
    for where, node in functions(house):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            long[where] = lines
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if len(names) - (names[:1] in (["self"], ["cls"])) + len(node.args.kwonlyargs) > PARAMETERS:
            many.add(where)
    assert long == {}
    assert many == set()


def test_nothing_imports_in_circles(house: dict[str, Module]) -> None:
    assert circles({name: module.imports for name, module in house.items()}) == []
    assert circles(between_rooms(house)) == []


def test_rooms_say_what_they_are(house: dict[str, Module]) -> None:
    rooms = [module for name, module in house.items() if name.count(".") == 1 and module.path.name == "__init__.py"]
    assert rooms
    docstrings = {module.name: ast.get_docstring(module.tree) or "" for module in rooms}
    short = {name for name, text in docstrings.items() if len(text.splitlines()) < DOCSTRING_LINES}
    assert short == set()


def test_a_module_with_one_importer_is_explained_by_its_room(house: dict[str, Module]) -> None:
    assert set(unexplained(house)) == set()


def test_circles_and_single_importers_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}) == [["a", "b", "c"], ["e"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": ()}) == []
    empty = ast.parse("")

    def module(name: str, *imports: str) -> Module:
        return Module(name, ROOT / f"{name.replace('.', '/')}.py", empty, 1, frozenset(imports))

    house = {m.name: m for m in (module("p.r.a", "p.r.b", "p.r.c"), module("p.r.b", "p.r.c"), module("p.r.c"))}
    assert single_importers(house) == {"p.r.b": "p.r.a"}
    assert unexplained(house) == ["p.r.b"]
