"""What recipes may contain, by srt-slurm version: from the tables of srtctl_fields.json, or from a checkout's source.

The tables hold facts about released versions; the schema of a version is built when the first recipe is checked for it.
srtctl_files.json lists the files of each version; it is read only when a recipe or a set-up script is in no tree here.

srtctl declares its recipe as dataclasses (``src/srtctl/core/schema.py``, ``src/srtctl/backends/*.py``), from which
marshmallow-dataclass builds the schema. The declarations are parsed; a checkout's code is never run. Demands beyond
types are made in functions; we only recognise which of the known demands they make (srtctl_demands.json).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import msgspec

from launcher.check.cross_field_rules import table
from launcher.check.schema_validation import ROOT, Schema, Violation, joined_with_or
from launcher.core.errors import ConfigError
from launcher.core.reading import prepare_type

Versions = str
"""Versions as the tables write them: ``v1.0.3..v1.0.9 some-branch``."""


class _Tables(msgspec.Struct):
    """The tables of srtctl_fields.json. A key of a class has one type text, or one by the versions that have it."""

    versions: dict[str, str]
    moving: dict[str, str]
    classes: dict[str, dict[str, str | dict[str, Versions]]]
    demands: dict[str, Versions]
    options: dict[str, Versions]
    benchmarks: dict[str, Versions]


class _Files(msgspec.Struct):
    """The table of srtctl_files.json: the recipes and set-up scripts that versions have."""

    files: dict[Versions, list[str]]


@cache
def _tables() -> _Tables:
    return msgspec.json.decode(Path(__file__).with_name("srtctl_fields.json").read_bytes(), type=prepare_type(_Tables))


@cache
def _files() -> _Files:
    return msgspec.json.decode(Path(__file__).with_name("srtctl_files.json").read_bytes(), type=prepare_type(_Files))


@dataclass
class Schemas:
    """The schemas of all known versions: from the tables, and from srt-slurm trees on this machine.

    ``trees`` are directories that hold checkouts named by ref or sha.
    """

    trees: tuple[Path, ...] = ()
    _schemas: dict[str, Schema | None] = field(default_factory=dict)

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Ref or sha → the version's name in the tables."""
        versions = _tables().versions
        return {sha: name for name, sha in versions.items()} | {n: n for n in versions} | _tables().moving

    @property
    def versions(self) -> list[str]:
        """All versions of the tables, the newest first."""
        return list(_tables().versions)[::-1]

    def sha(self, ref: str) -> str | None:
        """The commit of a released version, or of a branch when the tables were made; None when they lack it."""
        return _tables().versions.get(self._names.get(ref, ""))

    def name(self, ref: str, sha: str | None) -> str | None:
        """The name of a lane's version; None when the tables lack it. When there is a sha, the ref is ignored."""
        return self._names.get(sha if sha is not None else ref)

    def get(self, ref: str, sha: str | None) -> Schema | None:
        """The schema of a lane's srt-slurm; None when neither the tables nor a tree on this machine has it."""
        key = sha or ref
        if key not in self._schemas:
            name = self.name(ref, sha)
            if name is not None:
                self._schemas[key] = self._schema_from_tables(ref, name)
            else:
                named = (tree / name for tree in self.trees for name in (sha, ref) if name)
                tree = next((tree for tree in named if (tree / "src/srtctl").is_dir()), None)
                self._schemas[key] = None if tree is None else read_checkout(tree, ref)
        return self._schemas[key]

    def _schema_from_tables(self, ref: str, name: str) -> Schema:
        classes = {
            owner: {
                key: text
                for key, type_text in keys.items()
                for text, versions in ({type_text: None} if isinstance(type_text, str) else type_text).items()
                if versions is None or self._includes(versions, name)
            }
            for owner, keys in _tables().classes.items()
        }
        demands, options, benchmarks = (
            frozenset(word for word, versions in words.items() if self._includes(versions, name))
            for words in (_tables().demands, _tables().options, _tables().benchmarks)
        )
        return Schema(ref, classes, demands, options, benchmarks)

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(_tables().versions)}

    def _includes(self, versions: Versions, name: str) -> bool:
        position = self._positions
        ranges = (part.partition("..") for part in versions.split(" "))
        return any(position[first] <= position[name] <= position[last or first] for first, _, last in ranges)

    def has_file(self, ref: str, sha: str | None, path: str) -> bool | None:
        """Whether a lane's srt-slurm has a recipe or a set-up script; None when the tables lack the version.

        The tables do not answer for a branch, which may have gained or lost the file since they were made.
        """
        name = self.name(ref, sha) if sha is not None or is_tag(ref) else None
        if name is None:
            return None
        return any(path in paths and self._includes(versions, name) for versions, paths in _files().files.items())


def versions_with_key(violation: Violation) -> str | None:
    """The versions that have a key which one version refused as unknown, in words; None when no version has it."""
    type_texts = _tables().classes.get(violation.owner, {}).get(str(violation.keys[-1])) if violation.owner else None
    if type_texts is None or isinstance(type_texts, str):
        return type_texts and "other versions"
    ranges, newest = [], list(_tables().versions)[-1]
    for part in " ".join(type_texts.values()).split():
        first, _, last = part.partition("..")
        ranges.append(f"{first} and later" if last == newest else f"{first} to {last}" if last else first)
    return joined_with_or(ranges)


def is_tag(ref: str) -> bool:
    """Whether a ref is named as releases are (``v1.0.45``), which do not move."""
    return re.fullmatch(r"v\d+(\.\d+)+", ref) is not None


def read_checkout(tree: Path, name: str = "") -> Schema:
    """Read a checkout of srt-slurm. Raises ConfigError when its schema is not at its place, or has another form."""
    package = tree / "src/srtctl"
    schema, command = package / "core/schema.py", package / "cli/submit.py"
    try:
        modules = [_syntax(path) for path in (schema, *sorted((package / "backends").glob("*.py")))]
        arguments = _call_arguments(_syntax(command), "add_argument") if command.is_file() else ()
        # Each benchmark registers its type: @register_benchmark("sa-bench").
        benchmarks = frozenset(
            argument
            for path in sorted((package / "benchmarks").glob("*.py"))
            for argument in _call_arguments(_syntax(path), "register_benchmark")
        )
    except SyntaxError as error:
        raise ConfigError(f"srtctl's schema cannot be read: {error.msg}", where=str(schema)) from None
    source = _Source(modules)
    classes = {name: dict(source.key_types(node)) for name, node in source.dataclasses.items()}
    if ROOT not in classes:
        raise ConfigError("srtctl's schema declares no SrtConfig", where=str(schema))
    options = frozenset(argument for argument in arguments if argument.startswith("--"))
    # The orchestrator handles "manual" by itself (cli/mixins/benchmark_stage.py).
    return Schema(name, classes, frozenset(source.demand_ids()), options, benchmarks and benchmarks | {"manual"})


def _syntax(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None


def _call_arguments(module: ast.Module, function: str) -> Iterator[str]:
    """The positional arguments of all calls of a function or method."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and _last_name(node.func) == function:
            yield from map(_constant, node.args)


class _Source:
    """The dataclasses, enums and named literals of some modules."""

    def __init__(self, modules: list[ast.Module]) -> None:
        self.classes = [node for module in modules for node in module.body if isinstance(node, ast.ClassDef)]
        self.dataclasses = {
            c.name: c for c in self.classes if any("dataclass" in ast.unparse(d) for d in c.decorator_list)
        }
        self.enums = {
            c.name: {name: _constant(value) for name, value in _assigned(c.body)}
            for c in self.classes
            if any(ast.unparse(b) == "Enum" for b in c.bases)
        }
        self.literals = {
            name: value
            for module in modules
            for name, value in _assigned(module.body)
            if ast.unparse(value).startswith("Literal[")
        }

    def demand_ids(self) -> Iterator[str]:
        """The ids of the demands that functions of the classes make, or that defaults of their fields imply."""
        nodes_by_name: dict[tuple[str, str], Sequence[ast.AST | None]] = {}
        for owner in self.classes:
            nodes_by_name |= {(owner.name, name): [part.value] for name, part in _fields(owner).items()}
            functions = [part for part in owner.body if isinstance(part, ast.FunctionDef)]
            nodes_by_name |= {(owner.name, f.name): f.body[ast.get_docstring(f) is not None :] for f in functions}
        for demand_id, (owner_name, name, *texts) in table().sources.items():
            nodes = nodes_by_name.get((owner_name, name))
            if nodes is not None and (not texts or any(texts[0] in text for text in _strings_in(nodes))):
                yield demand_id

    def key_types(self, node: ast.ClassDef) -> Iterator[tuple[str, str]]:
        """A dataclass's keys and type texts."""
        fields = _fields(node)
        for name, part in fields.items():
            if ast.unparse(part.annotation).startswith("ClassVar"):
                continue
            text = self._type(part.annotation)
            # DynamoConfig has the words that it accepts in a class variable, and refuses others in its own code.
            words = fields.get(f"_VALID_{name.upper()}S")
            if words is not None and isinstance(words.value, ast.Tuple):
                text = _one_of(words.value) + ("?" if text.endswith("?") else "")
            field_call = _marshmallow_field(part.value)
            if field_call is not None:
                key = next((_constant(k.value) for k in field_call.keywords if k.arg == "data_key"), name)
                yield key, f"{_MARSHMALLOW.get(_last_name(field_call.func), 'any')}?"
                continue
            if part.value is None or _has_no_default(part.value):
                text += "!"
            elif isinstance(part.value, ast.Constant) and part.value.value is None and not text.endswith("?"):
                text += "?"
            yield name, text

    def _type(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return "None" if node.value is None else self._type(ast.parse(str(node.value), mode="eval").body)
        if isinstance(node, ast.BinOp):
            parts = [self._type(node.left), self._type(node.right)]
            text = "|".join(part.removesuffix("?") for part in parts if part != "None")
            return f"{text}?" if any(part == "None" or part.endswith("?") for part in parts) else text
        if isinstance(node, ast.Subscript):
            return self._subscript(_last_name(node.value), node.slice)
        name = _last_name(node)
        if name in self.dataclasses:
            return f"@{name}"
        if name in self.enums:
            return "=" + ",".join(self.enums[name])  # by its members' names: marshmallow-dataclass's own rule
        if name in self.literals:
            return self._type(self.literals[name])
        return _TYPE_TEXTS.get(name, name)

    def _subscript(self, name: str, inner: ast.expr) -> str:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if name == "Annotated":
            return self._annotated(parts[0], parts[1])
        if name == "Literal":
            return _one_of(inner)
        if name == "Optional":
            return f"{self._type(parts[0])}?"
        if name in ("list", "tuple"):
            return f"list[{self._type(parts[0])}]"
        return f"dict[{','.join(self._type(p) for p in parts)}]"

    def _annotated(self, kind: ast.expr, field: ast.expr) -> str:
        source = ast.unparse(field)
        if "FormattablePathField(" in source:
            return "path"
        if "SweepConfigField(" in source:
            return "sweep?" if "allow_none=" in source else "sweep"
        if "Enum(" in source and "by_value=" in source:
            return "=" + ",".join(self.enums.get(_last_name(kind), {}).values())
        return self._type(kind)


_TYPE_TEXTS = {"dict": "dict[any,any?]", "list": "list[any?]", "Any": "any?", "BackendConfig": "backend"}
_MARSHMALLOW = {"Integer": "int", "String": "str", "Boolean": "bool", "Float": "float"}


def _fields(node: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    """The annotated names of a class."""
    parts = (part for part in node.body if isinstance(part, ast.AnnAssign))
    return {part.target.id: part for part in parts if isinstance(part.target, ast.Name)}


def _assigned(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for part in body:
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            yield part.targets[0].id, part.value


def _strings_in(nodes: Sequence[ast.AST | None]) -> Iterator[str]:
    """The strings in some parts of the source."""
    children = (node for part in nodes if part is not None for node in ast.walk(part))
    return (str(node.value) for node in children if isinstance(node, ast.Constant))


def _marshmallow_field(value: ast.expr | None) -> ast.Call | None:
    """The marshmallow field in the metadata of a dataclass field."""
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, call in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "marshmallow_field" and isinstance(call, ast.Call):
                    return call
    return None


def _has_no_default(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and _last_name(value.func) == "field"
        and not any(k.arg in ("default", "default_factory") for k in value.keywords)
    )


def _one_of(words: ast.expr) -> str:
    return "=" + ",".join(str(n.value) for n in ast.walk(words) if isinstance(n, ast.Constant))


def _constant(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _last_name(node: ast.expr) -> str:
    """The last part of a dotted name: ``Integer`` of ``fields.Integer``."""
    return ast.unparse(node).rpartition(".")[2]
