"""YAML files as input: read fast, and when something is wrong in one, say where.

libyaml's loader is seven times faster than PyYAML's own, but its values carry no positions. So a document is loaded
fast, and composed a second time, with positions, only when an error or a finding wants to name a line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Key = str | int
"""One step of a path into a document: a mapping's key or a sequence's index."""


class _StringKeys(_Loader):  # type: ignore[misc]
    """The safe loader, except that a key given twice in one mapping is an error and not a silent loss."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    values: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    if len(values) != len(node.value):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=True)
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
    return values


_StringKeys.add_constructor("tag:yaml.org,2002:map", _mapping)


class Document:
    """A YAML document and where it came from.

    ``data`` is what the file says, as plain dicts, lists and scalars. ``where(path)`` gives ``file:line`` for a path of
    keys into it, or the nearest enclosing place when the path leads nowhere (as for a missing key).
    """

    def __init__(self, path: Path | str, text: str, *, strict: bool = True) -> None:
        self.path = str(path)
        self.text = text
        try:
            self.data: Any = yaml.load(text, _StringKeys if strict else _Loader)
        except yaml.YAMLError as error:
            raise _yaml_error(self.path, error) from None

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
        node: yaml.Node | None = yaml.compose(self.text, _Loader)
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
