"""YAML files as input, read fast, with the line of each key and item, so that an error or a finding can name it.

`Document` reads a file, and `convert` makes typed values of it: errors of msgspec become ConfigErrors that name the
line and the nearest valid key.

libyaml parses ten times faster than PyYAML. A file is parsed a second time, for its lines, only when one is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import inspect

from launcher.core.errors import ConfigError, suggest

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"

Key = str | int
"""One step of a path into a document: a mapping's key or a sequence's index."""


class _Loader(_SafeLoader):  # type: ignore[misc]
    """The safe loader. ``repeated`` are the keys that a mapping has twice (the last one counts), with their places."""

    # What a plain word is depends on nothing else, and few words make up a file: each is looked up once.
    resolve = staticmethod(lru_cache(maxsize=2**16)(yaml.resolver.Resolver().resolve))

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[tuple[str, yaml.Mark]] = []
        self._seen: set[yaml.Node] = set()

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Of text, which is most of a file, the node has it already."""
        is_text = node.tag == _TEXT and node.__class__ is yaml.ScalarNode
        return node.value if is_text else super().construct_object(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what is merged into a mapping beside its own keys; called before anything else is done with it."""
        if node not in self._seen:
            self._seen.add(node)
            names = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                    if key.value in names:
                        self.repeated.append((key.value, key.start_mark))
                    names.add(key.value)
        super().flatten_mapping(node)


# PyYAML's own constructors of these are generators, which allow a value that contains itself.
_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))
_Loader.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))


class Document:
    """A YAML document and where it came from.

    ``data`` is the content as plain dicts, lists and scalars. ``location(path)`` gives ``file:line`` for a path of keys
    into it, or of the nearest enclosing value when the path leads nowhere (as for a missing key). ``repeated`` are the
    keys that a mapping has twice, with their lines; a strict document has none.
    """

    def __init__(self, path: Path | str, text: str, *, strict: bool = True) -> None:
        self.path = str(path)
        self.text = text
        try:
            loader = _Loader(text)
            self.data: Any = loader.get_single_data()
            if strict and loader.repeated:
                key, mark = loader.repeated[0]
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", mark)
        except yaml.YAMLError as error:
            problem, context = getattr(error, "problem", None) or str(error), getattr(error, "context", None)
            at = getattr(error, "problem_mark", None)
            message = f"not valid YAML: {problem}" + (f" ({context})" if context else "")
            raise ConfigError(message, where=f"{self.path}:{at.line + 1}" if at else self.path) from None
        self.repeated = [(key, mark.line + 1) for key, mark in loader.repeated]

    @classmethod
    def read(cls, path: Path, *, strict: bool = True) -> Document:
        """Read a file. Raises ConfigError when it cannot be read or is not YAML.

        ``strict=False`` allows a key twice in a mapping, and the last one counts: srtctl reads recipes like that.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot be read: {reason}", where=str(path)) from None
        return cls(path, text, strict=strict)

    def mapping(self) -> dict[str, Any]:
        """The document as a mapping. Raises ConfigError when it is something else."""
        if not isinstance(self.data, dict):
            kind = "an empty document" if self.data is None else f"a {type(self.data).__name__}"
            raise ConfigError(f"expected a mapping, found {kind}", where=f"{self.path}:1")
        return self.data

    @cached_property
    def _root(self) -> yaml.Node | None:
        return yaml.compose(self.text, _SafeLoader)

    def location(self, keys: Sequence[Key] = ()) -> str:
        """``file:line`` (lines from 1) of the value under ``keys``, or of the nearest value around it."""
        node, line = self._root, 0
        for key in keys:
            step = _step(node, key)
            if step is None:
                break
            line, node = step
        return f"{self.path}:{line + 1}"


class SourceLocation:
    """A place in a document; its line is looked up only when somebody asks."""

    def __init__(self, document: Document, *keys: Key) -> None:
        self.document = document
        self.keys = keys

    def __str__(self) -> str:
        return self.document.location(self.keys)


def _step(node: yaml.Node | None, key: Key) -> tuple[int, yaml.Node] | None:
    """The line (from 0) of a key or an item, and its value; keys of a mapping are compared as text."""
    if isinstance(node, yaml.MappingNode):
        yaml.constructor.SafeConstructor().flatten_mapping(node)  # what is merged comes first, and the last one counts
        pairs = ((name.start_mark.line, held) for name, held in reversed(node.value) if name.value == str(key))
        return next(pairs, None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line, node.value[key]
    return None


def reached(data: Any, keys: Sequence[Key]) -> int:
    """How many steps of a path lead somewhere in a document."""
    for depth, key in enumerate(keys):
        in_list = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not in_list and not (isinstance(data, dict) and key in data):
            return depth
        data = data[key]
    return len(keys)


_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`")
_MISSING = re.compile(r"missing required field `(?P<key>[^`]+)`")
_ENUM = re.compile(r"Invalid enum value '(?P<word>.*)'")
_NO_DAY, _DAY = "Invalid RFC3339 encoded date", "a date as 2026-01-31"

T = TypeVar("T")


def convert(document: Document, kind: type[T], *, under: Sequence[Key] = ()) -> T:
    """What ``document`` has below the keys ``under``, as a ``kind``. Raises ConfigError as `schema_error` makes it."""
    value: Any = reduce(getitem, under, document.mapping())  # type: ignore[arg-type]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise schema_error(document, error, kind, under=under) from None


def schema_error(
    document: Document, error: msgspec.ValidationError, root: type, *, under: Sequence[Key] = ()
) -> ConfigError:
    """Turn msgspec's error about ``document`` into one that names file, line and the nearest valid key.

    ``root`` is the type to which the value below the keys ``under`` was to be converted.
    """
    text, hint = str(error), None
    keys: list[Key] = []
    at = _AT.search(text)
    message = text[: at.start()] if at else text
    for name, index in _STEP.findall(at["path"]) if at else ():
        keys.append(int(index) if index.isdigit() else name or index)
    kinds = _types_at(root, keys)
    if unknown := _UNKNOWN.search(message):
        known = [f.encode_name for kind in kinds if isinstance(kind, inspect.StructType) for f in kind.fields]
        message = f"unknown key {unknown['key']!r}"
        hint = suggest(unknown["key"], known, f"valid keys here: {', '.join(sorted(known))}")
        keys.append(unknown["key"])
    elif missing := _MISSING.search(message):
        message = f"key {missing['key']!r} is missing"
    elif enum := _ENUM.search(message):
        literals = (kind for kind in map(_bare, kinds) if isinstance(kind, inspect.LiteralType))
        words = [str(word) for literal in literals for word in literal.values]
        hint = suggest(enum["word"], words, f"one of: {', '.join(words)}" if words else "")
    elif wanted := _DAY if message.startswith(_NO_DAY) else "regex" in message and _description(kinds):
        path = [*under, *keys]  # msgspec does not give it in full below a mapping's values (``[...]``)
        whole = reached(document.data, path) == len(path)
        message = f"{reduce(getitem, path, document.data) if whole else None!r} is not {wanted}"
    spot = ".".join(str(k) for k in keys)
    return ConfigError(
        f"{message} (at {spot})" if spot else message, where=document.location([*under, *keys]), hint=hint
    )


def _types_at(root: type, keys: Sequence[Key]) -> list[Any]:
    """The types that the schema allows at a path: one, or those of a union."""
    info: Any = inspect.type_info(root)
    for key in keys:
        kinds = [_bare(kind) for kind in _choices(info)]
        info = next((inner for kind in kinds if (inner := _below(kind, key)) is not None), None)
    return _choices(info)


def _choices(info: Any) -> list[Any]:
    return list(info.types) if isinstance(info, inspect.UnionType) else [info]


def _bare(info: Any) -> Any:
    return info.type if isinstance(info, inspect.Metadata) else info


def _below(info: Any, key: Key) -> Any:
    if isinstance(info, inspect.StructType):
        return next((f.type for f in info.fields if f.encode_name == key), None)
    if isinstance(info, (inspect.ListType, inspect.VarTupleType)):
        return info.item_type
    return info.value_type if isinstance(info, inspect.DictType) else None


def _description(kinds: Sequence[Any]) -> str | None:
    """What a value must be, as `msgspec.Meta` describes it."""
    said = (kind.extra_json_schema or {} for kind in kinds if isinstance(kind, inspect.Metadata))
    return next((str(extra["description"]) for extra in said if "description" in extra), None)
