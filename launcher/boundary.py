"""Validation at the boundary: msgspec's complaints about a file, turned into ours with a line and the nearest key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.document import Document, Key, nearest
from launcher.errors import ConfigError

_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`")
_MISSING = re.compile(r"missing required field `(?P<key>[^`]+)`")


def schema_error(
    document: Document, error: msgspec.ValidationError, root: type, *, under: Sequence[Key] = ()
) -> ConfigError:
    """Turn msgspec's complaint about ``document`` into one that names file, line and the nearest valid key.

    ``root`` is the type that the value below the keys ``under`` was converted to.
    """
    text = str(error)
    at = _AT.search(text)
    keys = _path_keys(at["path"]) if at else []
    message = text[: at.start()] if at else text
    hint = None
    if unknown := _UNKNOWN.search(message):
        known = _fields_at(root, keys)
        near = nearest(unknown["key"], known)
        message = f"unknown key {unknown['key']!r}"
        hint = f"did you mean {near!r}?" if near else f"valid keys here: {', '.join(sorted(known))}"
        keys = [*keys, unknown["key"]]
    elif missing := _MISSING.search(message):
        message = f"key {missing['key']!r} is missing"
    spot = ".".join(str(k) for k in keys)
    return ConfigError(f"{message} (at {spot})" if spot else message, where=document.where([*under, *keys]), hint=hint)


def _path_keys(path: str) -> list[Key]:
    keys: list[Key] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        keys.append(int(index) if index.isdigit() else name or index)
    return keys


def _fields_at(root: type, keys: Sequence[Key]) -> list[str]:
    """The keys that the schema knows at a path, as the file spells them."""
    info: Any = msgspec.inspect.type_info(root)
    for key in keys:
        if isinstance(info, msgspec.inspect.StructType):
            info = next((f.type for f in info.fields if f.encode_name == key), None)
        elif isinstance(info, msgspec.inspect.ListType):
            info = info.item_type
        elif isinstance(info, msgspec.inspect.DictType):
            info = info.value_type
        if isinstance(info, msgspec.inspect.UnionType):
            info = next((t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)), info)
    return [f.encode_name for f in info.fields] if isinstance(info, msgspec.inspect.StructType) else []
