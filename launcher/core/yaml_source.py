"""YAML files as input, read fast, with the line of each key and item, so that an error or a finding can name it.

`Document` reads a file, and `convert` makes typed values of it: errors of msgspec become ConfigErrors that name the
line and the nearest valid key.

libyaml parses ten times faster than PyYAML, but the Python code by which PyYAML then builds values costs more than the
parsing. So values are built here, and only the lines are kept beside them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, reduce
from operator import getitem, is_
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import inspect

from launcher.core.errors import ConfigError, suggest
from launcher.core.reading import prepare_type, read_file

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Key = str | int
"""One step of a path into a document: a mapping's key or a sequence's index."""


LARGEST_FILE = 8 * 1024 * 1024
MOST_VALUES = 100_000
"""Keys and values of one file, each alias counted as what it stands for. InferenceX's largest master has 21,000."""
DEEPEST = 100
"""Levels of nesting; recipes have ten. What is built here is walked by functions that call themselves."""
LONGEST_WORD = 200
"""Characters of a number, a date, or whatever else is no text."""

_MAPPING, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Composer(_Loader):  # type: ignore[misc]
    """The safe loader's nodes, and its rules for the type of a plain word, but each word is looked up once."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode:
            return _tag_of_word(value) if implicit[0] else _TEXT  # a quoted word is text
        return _MAPPING if kind is yaml.MappingNode else _SEQUENCE

    # They serve rules that depend on a node's path, and there are none: what is quick, and does nothing.
    descend_resolver: Any = staticmethod(is_)
    ascend_resolver: Any = staticmethod(tuple)


class _CountingComposer(_Composer):
    """The same for a text that may be too much: it stops there, since nodes take a hundred times the memory of text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._left = MOST_VALUES

    def descend_resolver(self, parent: yaml.Node | None, index: object) -> None:
        self._left -= 1
        if self._left < 0:
            mark = parent.start_mark if parent is not None else None
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST_VALUES:,} keys and values", mark)


def _compose(text: str) -> yaml.Node | None:
    """The nodes of a text. Every one of them is beside one of these characters, so that few need no counting."""
    few = text.count("-") + 2 * sum(map(text.count, ":,?[{\n")) < MOST_VALUES
    node: yaml.Node | None = yaml.compose(text, _Composer if few else _CountingComposer)
    return node


_RULES: Any = yaml.resolver.Resolver()


@lru_cache(maxsize=2**16)
def _tag_of_word(value: str) -> str:
    tag: str = _RULES.resolve(yaml.ScalarNode, value, (True, False))
    return tag


@lru_cache(maxsize=2**16)
def _scalar(tag: str, value: str) -> Any:
    return yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(tag, value))


class _ValueBuilder:
    """A node as plain values: the same as SafeConstructor builds, in half the time.

    ``repeated`` are the keys that a mapping has twice (the last one counts), with their lines. ``lines`` has the lines
    (from 0) of each mapping's keys and each sequence's items, in order, by the identity of the value.
    """

    def __init__(self, root: yaml.Node | None) -> None:
        self.repeated: list[tuple[str, yaml.Mark]] = []
        self.lines: dict[int, list[int]] = {}
        self._shared: dict[int, Any] = {}
        self._count = self._depth = 0
        self._sizes: dict[int, int] = {}
        self.value: Any = None if root is None else self._of(root)

    def _of(self, node: yaml.Node) -> Any:
        if node.__class__ is yaml.ScalarNode:
            if node.tag == _TEXT:
                return node.value
            return _value_of(node)
        if id(node) in self._shared:
            if self._shared[id(node)] is _ValueBuilder:
                raise _fault("a node that contains itself", node)
            self._add(self._sizes[id(node)], node)
            return self._shared[id(node)]
        self._shared[id(node)] = _ValueBuilder
        before = self._count
        self._depth += 1
        if self._depth > DEEPEST:
            raise _fault(f"more than {DEEPEST} levels", node)
        self._add(len(node.value), node)
        if node.tag == _MAPPING and isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node)
        elif node.tag == _SEQUENCE and isinstance(node, yaml.SequenceNode):
            value = [self._of(item) for item in node.value]
            self.lines[id(value)] = [item.start_mark.line for item in node.value]
        else:
            value = _of_other_kind(node)
        self._depth -= 1
        self._shared[id(node)] = value
        self._sizes[id(node)] = self._count - before
        return value

    def _add(self, count: int, node: yaml.Node) -> None:
        """Count values. Ten aliases of ten aliases, ten times, are few nodes, and fill any memory when written out."""
        self._count += count
        if self._count > MOST_VALUES:
            raise _fault(f"its aliases stand for more than {MOST_VALUES:,} values", node)

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        pairs = node.value
        if _MERGE in [key.tag for key, _ in pairs]:
            pairs = [*pairs]
            self._add(sum(_merged(held) for key, held in pairs if key.tag == _MERGE), node)
            yaml.constructor.SafeConstructor().flatten_mapping(node)
        values, scalar = {}, yaml.ScalarNode
        for key, held in node.value:
            if key.__class__ is not scalar:
                raise _fault("found unhashable key", key)
            # Most are text: of a text no call is made, since a check reads 150,000 of them.
            name = key.value if key.tag == _TEXT else self._of(key)
            values[name] = held.value if held.tag == _TEXT and held.__class__ is scalar else self._of(held)
        if len(values) == len(node.value):
            self.lines[id(values)] = [key.start_mark.line for key, _ in node.value]
        else:
            # A key is here twice, or once more in a merged mapping: the line is that of the one that counts.
            lines = {self._of(key): key.start_mark.line for key, _ in node.value}
            self.lines[id(values)] = [lines[key] for key in values]
            seen: set[str] = set()
            for key, _ in pairs:
                if key.value in seen and key.tag != _MERGE:
                    self.repeated.append((key.value, key.start_mark))
                seen.add(key.value)
        return values


def _merged(node: yaml.Node) -> int:
    """How many pairs a merge of this node brings, those of aliases included."""
    if isinstance(node, yaml.SequenceNode):
        return sum(len(each.value) for each in node.value)
    return len(node.value)


def _value_of(node: yaml.ScalarNode) -> Any:
    """The value of a word that is no text. Raises ConstructorError for one that has none."""
    word: str = node.value
    try:
        if len(word) <= LONGEST_WORD or node.tag.endswith(":binary"):
            return _scalar(node.tag, word)
    except yaml.constructor.ConstructorError as error:
        raise _fault(str(error.problem), node) from None
    except _NO_VALUE as error:
        raise _fault(f"{word!r} is no {node.tag.rpartition(':')[2]}: {error}; in quotes it is text", node) from None
    kind = node.tag.rpartition(":")[2]
    raise _fault(f"a word of {len(word)} characters that is of type {kind}; in quotes it is text", node)


def _of_other_kind(node: yaml.Node) -> Any:
    """The value of a collection that is no mapping and no list."""
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except _NO_VALUE as error:
        raise _fault(f"no {node.tag.rpartition(':')[2]}: {error}", node) from None


_NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""What PyYAML raises for words that match a type's pattern and have no value: the 45th of a month, ``!!float x``."""


def _fault(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class Document:
    """A YAML document and where it came from.

    ``data`` is the content as plain dicts, lists and scalars. ``where(path)`` gives ``file:line`` for a path of keys
    into it, or of the nearest enclosing value when the path leads nowhere (as for a missing key). ``repeated`` are the
    keys that a mapping has twice, with their lines; a strict document has none.
    """

    def __init__(self, path: Path | str, text: str, *, strict: bool = True) -> None:
        self.path = str(path)
        self.text = text
        try:
            built = _ValueBuilder(_compose(text))
            if strict and built.repeated:
                key, mark = built.repeated[0]
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", mark)
            if _NUL.search(text) and _has_nul(built.value):
                raise yaml.constructor.ConstructorError(
                    None, None, "a text with a NUL, which no path or name has", None
                )
        except yaml.YAMLError as error:
            problem, context = getattr(error, "problem", None) or str(error), getattr(error, "context", None)
            at = getattr(error, "problem_mark", None)
            message = f"not valid YAML: {problem}" + (f" ({context})" if context else "")
            raise ConfigError(message, where=f"{self.path}:{at.line + 1}" if at else self.path) from None
        self.data: Any = built.value
        self._lines = built.lines
        self.repeated = [(key, mark.line + 1) for key, mark in built.repeated]

    @classmethod
    def read(cls, path: Path, *, strict: bool = True) -> Document:
        """Read a file. Raises ConfigError when it cannot be read or is not YAML.

        ``strict=False`` allows a key twice in a mapping, and the last one counts: srtctl reads recipes like that.
        """
        try:
            text = read_file(path, LARGEST_FILE).decode("utf-8")
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

    def location(self, keys: Sequence[Key] = ()) -> str:
        """``file:line`` (lines from 1) of the value under ``keys``, or of the nearest value around it.

        Lines are found by the identity of values, so ``data`` must not have been changed.
        """
        value, line = self.data, 0
        for key in keys:
            step = _position(value, key)
            if step is None or id(value) not in self._lines:
                break
            line = self._lines[id(value)][step[0]]
            value = step[1]
        return f"{self.path}:{line + 1}"


class SourceLocation:
    """A place in a document; its line is looked up only when somebody asks."""

    def __init__(self, document: Document, *keys: Key) -> None:
        self.document = document
        self.keys = keys

    def __str__(self) -> str:
        return self.document.location(self.keys)


_NUL = re.compile(r"\\(0|x00|u0000|U00000000)")
"""How a NUL is written; YAML takes none as it is."""


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(held) for key, held in value.items())
    return any(map(_has_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def _position(value: Any, key: Key) -> tuple[int, Any] | None:
    """The position and the value of a key or index; keys of a mapping are compared as text."""
    if isinstance(value, dict):
        names = [*value]
        if key not in value:
            key = next((name for name in names if str(name) == str(key)), key)
        return (names.index(key), value[key]) if key in value else None
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return key, value[key]
    return None


def depth_reached(data: Any, keys: Sequence[Key]) -> int:
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
        return msgspec.convert(value, prepare_type(kind))
    except msgspec.ValidationError as error:
        raise schema_error(document, error, kind, under=under) from None


def error_path(error: msgspec.ValidationError) -> list[Key]:
    """The keys and indices that lead to what msgspec refuses, as far as it says them."""
    at = _AT.search(str(error))
    steps = _STEP.findall(at["path"]) if at else ()
    return [int(index) if index.isdigit() else name or index for name, index in steps]


def schema_error(
    document: Document, error: msgspec.ValidationError, root: type, *, under: Sequence[Key] = ()
) -> ConfigError:
    """Turn msgspec's error about ``document`` into one that names file, line and the nearest valid key.

    ``root`` is the type to which the value below the keys ``under`` was to be converted.
    """
    text, hint = str(error), None
    keys = error_path(error)
    at = _AT.search(text)
    message = text[: at.start()] if at else text
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
        whole = depth_reached(document.data, path) == len(path)
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
