"""YAML files as input: read fast, and when something is wrong in one, say where.

libyaml parses ten times faster than PyYAML, but what PyYAML then makes of it in Python costs more than the parsing. So
values are built here, without positions, and a document is composed a second time only when an error or a finding wants
to name a line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Key = str | int
"""One step of a path into a document: a mapping's key or a sequence's index."""


_MAPPING, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Composer(_Loader):  # type: ignore[misc]
    """The safe loader's nodes, and its own rules for what a word means, but each word looked up once."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode:
            return _meant(value, implicit)
        return _MAPPING if kind is yaml.MappingNode else _SEQUENCE


_RULES: Any = yaml.resolver.Resolver()


@lru_cache(maxsize=2**16)
def _meant(value: str, implicit: tuple[bool, bool]) -> str:
    tag: str = _RULES.resolve(yaml.ScalarNode, value, implicit)
    return tag


@lru_cache(maxsize=2**16)
def _scalar(tag: str, value: str) -> Any:
    return yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(tag, value))


class _Built:
    """A node as plain values: what SafeConstructor makes of it, in half its time.

    ``repeated`` are the keys that stand twice in one mapping, the last of which counts, with their lines.
    """

    def __init__(self, root: yaml.Node | None) -> None:
        self.repeated: list[tuple[str, yaml.Mark]] = []
        self._shared: dict[int, Any] = {}
        self.value: Any = None if root is None else self._of(root)

    def _of(self, node: yaml.Node) -> Any:
        if node.__class__ is yaml.ScalarNode:
            if node.tag == _TEXT:
                return node.value
            try:
                return _scalar(node.tag, node.value)
            except yaml.constructor.ConstructorError as error:
                raise yaml.constructor.ConstructorError(None, None, error.problem, node.start_mark) from None
        if id(node) in self._shared:
            if self._shared[id(node)] is _Built:
                raise _wrong("a node that holds itself", node)
            return self._shared[id(node)]
        self._shared[id(node)] = _Built
        if node.tag == _MAPPING and isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node)
        elif node.tag == _SEQUENCE:
            value = [self._of(item) for item in node.value]
        else:
            value = yaml.constructor.SafeConstructor().construct_document(node)
        self._shared[id(node)] = value
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        pairs = node.value
        if any(key.tag == _MERGE for key, _ in pairs):
            pairs = [*pairs]
            yaml.constructor.SafeConstructor().flatten_mapping(node)
        values = {}
        for key, held in node.value:
            if key.__class__ is not yaml.ScalarNode:
                raise _wrong("found unhashable key", key)
            values[self._of(key)] = self._of(held)
        if len(values) != len(node.value):
            seen: set[str] = set()
            for key, _ in pairs:
                if key.value in seen and key.tag != _MERGE:
                    self.repeated.append((key.value, key.start_mark))
                seen.add(key.value)
        return values


def _wrong(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class Document:
    """A YAML document and where it came from.

    ``data`` is what the file says, as plain dicts, lists and scalars. ``where(path)`` gives ``file:line`` for a path of
    keys into it, or the nearest enclosing place when the path leads nowhere (as for a missing key). ``repeated`` are
    the keys that are given twice in one mapping, with their lines; a strict document has none.
    """

    def __init__(self, path: Path | str, text: str, *, strict: bool = True) -> None:
        self.path = str(path)
        self.text = text
        try:
            built = _Built(yaml.compose(text, _Composer))
            if strict and built.repeated:
                key, mark = built.repeated[0]
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", mark)
        except yaml.YAMLError as error:
            raise _yaml_error(self.path, error) from None
        self.data: Any = built.value
        self.repeated = [(key, mark.line + 1) for key, mark in built.repeated]

    @classmethod
    def read(cls, path: Path, *, strict: bool = True) -> Document:
        """Read a file. Raises ConfigError when it cannot be read or is not YAML.

        ``strict=False`` lets a key stand twice, the last one winning: as srtctl reads recipes of others.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot be read: {reason}", where=str(path)) from None
        return cls(path, text, strict=strict)

    def mapping(self) -> dict[str, Any]:
        """The document, which must be a mapping. Raises ConfigError when it is not."""
        if not isinstance(self.data, dict):
            kind = "empty" if self.data is None else f"a {type(self.data).__name__}"
            raise ConfigError(f"a mapping is expected here, and the document is {kind}", where=f"{self.path}:1")
        return self.data

    @cached_property
    def _root(self) -> yaml.Node | None:
        node: yaml.Node | None = yaml.compose(self.text, _Composer)
        return node

    def where(self, keys: Sequence[Key] = ()) -> str:
        """``file:line`` (lines from 1) of the value under ``keys``, as near as the document allows."""
        node, line = self._root, 1
        for key in keys:
            step = _step(node, key)
            if step is None:
                break
            node, line = step
        return f"{self.path}:{line}"


class Place:
    """A place in a document; its line is looked up only when somebody asks, because that costs a second parse."""

    def __init__(self, document: Document, *keys: Key) -> None:
        self.document = document
        self.keys = keys

    def __str__(self) -> str:
        return self.document.where(self.keys)


def _step(node: yaml.Node | None, key: Key) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        merged: list[tuple[yaml.Node, int]] = []
        for key_node, value in node.value:
            if key_node.value == str(key):
                return value, key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                merged += [found for source in sources if (found := _step(source, key))]
        return merged[0] if merged else None
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        value = node.value[key]
        return value, value.start_mark.line + 1
    return None


def _yaml_error(path: str, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    message = f"not valid YAML: {problem}" + (f" ({context})" if context else "")
    return ConfigError(message, where=f"{path}:{mark.line + 1}" if mark else path)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was most likely meant to be, or None."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
