"""Read what recipes of one srt-slurm version may say out of that version's own source, without importing it.

srtctl declares its recipe as dataclasses (``src/srtctl/core/schema.py``, ``src/srtctl/backends/*.py``), from which
marshmallow-dataclass builds the schema. The declarations are read as syntax: a checkout's code is never run. Demands
beyond types are made in functions, and of those we only look which demands they make (`DEMANDS`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError

ROOT = "SrtConfig"
"""The class of a whole recipe."""

Classes = Mapping[str, Mapping[str, str]]
"""Class → key of the recipe → type text.

A type text is ``str``, ``int``, ``float``, ``bool``, ``any``, ``path``, ``list[T]``, ``dict[T,T]``, ``T|T``, ``=a,b``
(one of these words), ``@Class``, ``backend`` (the class that its ``type`` names) or ``sweep``; then ``?`` when it may
be null, and ``!`` when it must be there.
"""

PER_NODE = "vllm-per-node"
"""Not a demand but a default: ``backend.dp_launch_mode`` is ``per_node`` where a recipe does not say."""


@dataclass(frozen=True)
class Declared:
    """What one version declares: keys and types, the demands it makes beyond them, the options of its command."""

    classes: Classes
    demands: frozenset[str]
    options: frozenset[str]


SCHEMA_FILE = "src/srtctl/core/schema.py"
BACKENDS = "src/srtctl/backends"
COMMAND_FILE = "src/srtctl/cli/submit.py"

DEMANDS: Mapping[str, tuple[str, str, str]] = {
    "dynamo-one-source": ("DynamoConfig", "__post_init__", "Cannot specify both"),
    "dynamo-wheel-version": ("DynamoConfig", "__post_init__", "not a filename"),
    "dynamo-patches-hash": ("DynamoConfig", "__post_init__", "dynamo.cargo_patches requires"),
    "profiling": ("SrtConfig", "_validate_profiling", ""),
    "profiling-no-torch": ("SrtConfig", "_validate_profiling", "torch profiling is not supported"),
    "profiling-time-trtllm": ("SrtConfig", "_validate_profiling", "only supported for the trtllm"),
    "profiling-time": ("SrtConfig", "_validate_profiling", "required for nsys-time"),
    "profiling-vllm-own": ("SrtConfig", "_validate_vllm_nsys_profiler_config_not_set", ""),
    "scraper": ("SrtConfig", "_validate_telemetry", "telemetry.node_exporter is required"),
    "scraper-image": ("SrtConfig", "_validate_telemetry", "telemetry.container_image is required"),
    "power": ("SrtConfig", "_validate_dcgm_power", ""),
    "tachometer": ("SrtConfig", "_validate_observability", ""),
    "mooncake": ("SrtConfig", "_validate_mooncake_kv_store", ""),
    "mooncake-vllm": ("SrtConfig", "_validate_mooncake_kv_store", "neither vllm_config.prefill"),
    "het": ("SrtConfig", "_validate_het_jobs", ""),
    "het-dedicated": ("SrtConfig", "_validate_het_jobs", "are not supported together"),
    "dedicated": ("SrtConfig", "_validate_dedicated_node_placement", ""),
    "trtllm-serve": ("SrtConfig", "_validate_trtllm_serve", ""),
    "trtllm-serve-disagg": ("SrtConfig", "_validate_trtllm_serve", "requires a disaggregated layout"),
    "vllm-frontend": ("SrtConfig", "_validate_vllm_frontend", ""),
    "vllm-frontend-one-node": ("SrtConfig", "_validate_vllm_frontend", "single-node aggregate jobs only"),
    "vllm-frontend-one-worker": ("SrtConfig", "_validate_vllm_frontend", "exactly one aggregate worker"),
    "vllm-no-headless": ("VLLMProtocol", "__post_init__", "remove headless"),
}
"""Demand → the class, its function, and a text in it by which a version that makes the demand is known."""


def read_checkout(tree: Path) -> Declared:
    """Read a checkout of srt-slurm. Raises ConfigError when its schema is not where, or not as, it has always been."""
    sources = [tree / SCHEMA_FILE, *sorted((tree / BACKENDS).glob("*.py"))]
    command = tree / COMMAND_FILE
    texts = [_text(path) for path in sources]
    try:
        declared = declarations(texts, _text(command) if command.is_file() else "")
    except SyntaxError as error:
        raise ConfigError(f"srtctl's schema cannot be read: {error.msg}", where=str(tree / SCHEMA_FILE)) from None
    if "SrtConfig" not in declared.classes:
        raise ConfigError("srtctl's schema declares no SrtConfig", where=str(tree / SCHEMA_FILE))
    return declared


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None


def declarations(schema: list[str], command: str) -> Declared:
    """What the source texts of the schema and of the command line declare. Raises SyntaxError."""
    modules = [ast.parse(text) for text in schema]
    found = _Found(modules)
    functions = {
        (c.name, f.name): f for m in modules for c in _classes(m) for f in c.body if isinstance(f, ast.FunctionDef)
    }
    demands = {
        demand
        for demand, (owner, name, text) in DEMANDS.items()
        if (function := functions.get((owner, name))) is not None and _mentions(function, text)
    }
    if found.default("VLLMProtocol", "dp_launch_mode") == "per_node":
        demands.add(PER_NODE)
    return Declared(found.fields(), frozenset(demands), frozenset(_options(ast.parse(command))))


def _classes(module: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in module.body if isinstance(node, ast.ClassDef))


def _mentions(function: ast.FunctionDef, text: str) -> bool:
    """Whether a string of the function's code (its docstring apart) holds the text."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    constants = (n.value for part in body for n in ast.walk(part) if isinstance(n, ast.Constant))
    return not text or any(isinstance(value, str) and text in value for value in constants)


def _options(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            for argument in node.args:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("--"):
                    yield str(argument.value)


class _Found:
    """The dataclasses, enums and named literals of some modules."""

    def __init__(self, modules: list[ast.Module]) -> None:
        every = [node for module in modules for node in _classes(module)]
        self.dataclasses = {c.name: c for c in every if any("dataclass" in ast.unparse(d) for d in c.decorator_list)}
        self.enums = {c.name: _members(c) for c in every if any(ast.unparse(b) == "Enum" for b in c.bases)}
        self.literals = {
            node.targets[0].id: node.value
            for module in modules
            for node in module.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and ast.unparse(node.value).startswith("Literal[")
        }

    def fields(self) -> dict[str, dict[str, str]]:
        """Every class's keys and type texts."""
        return {name: dict(self._keys(node)) for name, node in self.dataclasses.items()}

    def default(self, owner: str, name: str) -> object:
        """The constant that a field has by default, or None."""
        node = self.dataclasses.get(owner)
        for part in node.body if node is not None else ():
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id == name:
                return part.value.value if isinstance(part.value, ast.Constant) else None
        return None

    def _keys(self, node: ast.ClassDef) -> Iterator[tuple[str, str]]:
        chosen = {
            part.target.id: part.value
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None
        }
        for part in node.body:
            if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
                continue
            if ast.unparse(part.annotation).startswith("ClassVar"):
                continue
            name, text = part.target.id, self._type(part.annotation)
            # DynamoConfig keeps the words that it accepts in a class variable, and refuses others by itself
            words = chosen.get(f"_VALID_{name.upper()}S")
            if isinstance(words, ast.Tuple):
                text = "=" + ",".join(_strings(words)) + ("?" if text.endswith("?") else "")
            own = _own_field(part.value)
            if own is not None:
                key = next((_constant(k.value) for k in own.keywords if k.arg == "data_key"), name)
                name, text = key, f"{_MARSHMALLOW.get(_last(own.func), 'any')}?"
            elif part.value is None or _no_default(part.value):
                text += "!"
            elif isinstance(part.value, ast.Constant) and part.value.value is None and not text.endswith("?"):
                text += "?"
            yield name, text

    def _type(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return "None" if node.value is None else self._type(ast.parse(str(node.value), mode="eval").body)
        if isinstance(node, ast.BinOp):
            parts = [self._type(p) for p in _alternatives(node)]
            text = "|".join(p for p in parts if p != "None")
            return f"{text}?" if "None" in parts and not text.endswith("?") else text
        if isinstance(node, ast.Subscript):
            return self._subscript(_last(node.value), node.slice)
        name = _last(node)
        if name in self.dataclasses:
            return f"@{name}"
        if name in self.enums:
            return "=" + ",".join(self.enums[name])  # by its members' names: marshmallow-dataclass's own rule
        if name in self.literals:
            return self._type(self.literals[name])
        return _PLAIN.get(name, name)

    def _subscript(self, name: str, inner: ast.expr) -> str:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if name == "Annotated":
            return self._annotated(parts[0], parts[1])
        if name == "Literal":
            return "=" + ",".join(_strings(inner))
        if name == "Optional":
            return f"{self._type(parts[0])}?"
        if name in ("list", "tuple"):
            return f"list[{self._type(parts[0])}]"
        return f"dict[{','.join(self._type(p) for p in parts)}]"

    def _annotated(self, kind: ast.expr, field: ast.expr) -> str:
        call = field if isinstance(field, ast.Call) else None
        maker = _last(call.func) if call is not None else ""
        if maker == "FormattablePathField":
            return "path"
        if maker == "SweepConfigField":
            null = call is not None and any(k.arg == "allow_none" for k in call.keywords)
            return "sweep?" if null else "sweep"
        if maker == "Enum" and call is not None and any(k.arg == "by_value" for k in call.keywords):
            return "=" + ",".join(self.enums.get(_last(kind), {}).values())
        return self._type(kind)


_PLAIN = {"dict": "dict[any,any?]", "list": "list[any?]", "Any": "any?", "BackendConfig": "backend"}
_MARSHMALLOW = {"Integer": "int", "String": "str", "Boolean": "bool", "Float": "float"}


def _members(node: ast.ClassDef) -> dict[str, str]:
    return {
        part.targets[0].id: _constant(part.value)
        for part in node.body
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name)
    }


def _own_field(value: ast.expr | None) -> ast.Call | None:
    """The marshmallow field that a dataclass field brings along in its metadata."""
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, held in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "marshmallow_field" and isinstance(held, ast.Call):
                    return held
    return None


def _no_default(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and _last(value.func) == "field"
        and not any(k.arg in ("default", "default_factory") for k in value.keywords)
    )


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _strings(node: ast.expr) -> list[str]:
    return [str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)]


def _constant(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _last(node: ast.expr) -> str:
    """The last name of a dotted one: ``fields.Integer`` is ``Integer``."""
    return ast.unparse(node).rpartition(".")[2]
