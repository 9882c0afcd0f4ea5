"""Errors of msgspec about a file, turned into ConfigErrors that name the line and the nearest valid key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any, TypeVar

import msgspec

from launcher.core.errors import ConfigError
from launcher.core.suggest import suggest
from launcher.core.yaml_source import Document, Key, reached

_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`")
_MISSING = re.compile(r"missing required field `(?P<key>[^`]+)`")
_ENUM = re.compile(r"Invalid enum value '(?P<word>.*)'")
_NO_DAY, _DAY = "Invalid RFC3339 encoded date", "a date as 2026-01-31"


T = TypeVar("T")


def convert(document: Document, kind: type[T], *, under: Sequence[Key] = ()) -> T:
    """What ``document`` has below the keys ``under``, as a ``kind``. Raises ConfigError as `schema_error` makes it."""
    value: Any = document.mapping()
    for key in under:
        value = value[key]
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
    text = str(error)
    at = _AT.search(text)
    keys = _path_keys(at["path"]) if at else []
    message = text[: at.start()] if at else text
    hint = None
    if unknown := _UNKNOWN.search(message):
        known = _fields_at(root, keys)
        message = f"unknown key {unknown['key']!r}"
        hint = suggest(unknown["key"], known, f"valid keys here: {', '.join(sorted(known))}")
        keys = [*keys, unknown["key"]]
    elif missing := _MISSING.search(message):
        message = f"key {missing['key']!r} is missing"
    elif enum := _ENUM.search(message):
        words = _words_at(root, keys)
        hint = suggest(enum["word"], words, f"one of: {', '.join(words)}" if words else None)
    elif wanted := _DAY if message.startswith(_NO_DAY) else "regex" in message and _wanted_at(root, keys):
        path = [*under, *keys]  # msgspec does not give it in full below a mapping's values (``[...]``)
        whole = reached(document.data, path) == len(path)
        message = f"{reduce(getitem, path, document.data) if whole else None!r} is not {wanted}"
    spot = ".".join(str(k) for k in keys)
    return ConfigError(f"{message} (at {spot})" if spot else message, where=document.where([*under, *keys]), hint=hint)


def _path_keys(path: str) -> list[Key]:
    keys: list[Key] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        keys.append(int(index) if index.isdigit() else name or index)
    return keys


def _types_at(root: type, keys: Sequence[Key]) -> list[Any]:
    """The types that the schema allows at a path: one, or those of a union."""
    info: Any = msgspec.inspect.type_info(root)
    for key in keys:
        kinds = [_bare(kind) for kind in _choices(info)]
        info = next((inner for kind in kinds if (inner := _below(kind, key)) is not None), None)
    return _choices(info)


def _choices(info: Any) -> list[Any]:
    return list(info.types) if isinstance(info, msgspec.inspect.UnionType) else [info]


def _bare(info: Any) -> Any:
    return info.type if isinstance(info, msgspec.inspect.Metadata) else info


def _below(info: Any, key: Key) -> Any:
    if isinstance(info, msgspec.inspect.StructType):
        return next((f.type for f in info.fields if f.encode_name == key), None)
    if isinstance(info, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
        return info.item_type
    return info.value_type if isinstance(info, msgspec.inspect.DictType) else None


def _fields_at(root: type, keys: Sequence[Key]) -> list[str]:
    """The keys that the schema has at a path, as the file spells them."""
    structs = (kind for kind in _types_at(root, keys) if isinstance(kind, msgspec.inspect.StructType))
    return [f.encode_name for struct in structs for f in struct.fields]


def _words_at(root: type, keys: Sequence[Key]) -> list[str]:
    """The words that the schema allows at a path."""
    literals = (kind for kind in map(_bare, _types_at(root, keys)) if isinstance(kind, msgspec.inspect.LiteralType))
    return [str(word) for literal in literals for word in literal.values]


def _wanted_at(root: type, keys: Sequence[Key]) -> str | None:
    """The description, from `msgspec.Meta`, of what a value at a path must be."""
    said = (
        kind.extra_json_schema or {} for kind in _types_at(root, keys) if isinstance(kind, msgspec.inspect.Metadata)
    )
    return next((str(extra["description"]) for extra in said if "description" in extra), None)
