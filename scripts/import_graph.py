"""The modules of launcher/ and which of them imports which, read as syntax: for scripts/single_importers and tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "launcher"


@dataclass(frozen=True)
class Module:
    """One file: its dotted name, its text as syntax, and the modules of the package that it imports anywhere in it."""

    name: str
    path: Path
    tree: ast.Module
    lines: int
    imports: frozenset[str]

    @property
    def room(self) -> str:
        """The folder below the package; the module's own name for a file that lies loose."""
        return ".".join(self.name.split(".")[:2])


def modules() -> dict[str, Module]:
    """All modules by name. Imports within functions and under TYPE_CHECKING count too: they are knowledge as well."""
    paths = {_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    found = {}
    for name, path in paths.items():
        text = path.read_text()
        tree = ast.parse(text)
        imports = frozenset(i for i in _imports(tree, name, path, paths) if i in paths and i != name)
        found[name] = Module(name, path, tree, len(text.splitlines()), imports)
    return found


def single_importers(found: Mapping[str, Module]) -> dict[str, str]:
    """Modules that exactly one other module imports, and that one. Packages themselves are left out."""
    importers: dict[str, list[str]] = {name: [] for name in found}
    for module in found.values():
        for imported in module.imports:
            importers[imported].append(module.name)
    return {
        name: by[0]
        for name, by in importers.items()
        if len(by) == 1 and found[name].path.name not in ("__init__.py", "__main__.py")
    }


def unexplained(found: Mapping[str, Module]) -> list[str]:
    """Modules with one importer, in their own room, that the docstring of the room does not name."""
    missing = []
    for name, importer in single_importers(found).items():
        room, short = found[name].room, name.rpartition(".")[2]
        docstring = (ast.get_docstring(found[room].tree) or "") if room in found else ""
        if found[importer].room == room and not re.search(rf"\b{short}\b", docstring):
            missing.append(name)
    return missing


def circles(edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of names that reach each other, in a graph of names; [] for none."""
    reached = {name: _reach(name, edges) for name in edges}
    groups = {
        tuple(sorted({name, *(other for other in reach if name in reached.get(other, ()))}))
        for name, reach in reached.items()
        if name in reach
    }
    return [list(group) for group in sorted(groups)]


def between_rooms(found: Mapping[str, Module]) -> dict[str, set[str]]:
    """Which folder imports which other one; the package itself is not among them."""
    edges: dict[str, set[str]] = {module.room: set() for module in found.values() if module.room != PACKAGE}
    for module in found.values():
        for imported in module.imports:
            other = found[imported].room
            if PACKAGE not in (module.room, other) and other != module.room:
                edges[module.room].add(other)
    return edges


def _reach(start: str, edges: Mapping[str, Collection[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in edges.get(todo.pop(), ()):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return seen


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, name: str, path: Path, known: Collection[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in known else base
