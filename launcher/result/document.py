"""A JSON document of a result: its top level, whose values are taken apart when they are asked for.

It is taken as those who read it next take it, Python's json among them, except where that would let one value replace
another unseen.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.reading import LARGEST_RESULT, open_regular

_NOT_FINITE = re.compile(rb'(?:"([^"]{1,80})"\s*:|[\[,])\s*[-+]?(NaN|Infinity)\b')
_DIGITS = frozenset(bytes([byte]) for byte in b"-0123456789")


class UnusableResult(Exception):
    """A file cannot be used as a result; the message says why."""


class _Key(str):
    """A key of an object as it stands in a file: no two are equal, so that none replaces another unseen."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


_OBJECT = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=lambda kind, text: kind(text))


class Document:
    """The top level of a JSON object by its keys, its values unparsed: `itls` alone can hold twenty million numbers."""

    def __init__(self, parts: Mapping[str, msgspec.Raw]) -> None:
        self._parts = parts

    @classmethod
    def read(cls, path: Path) -> Document:
        """The document of a file. Raises UnusableResult."""
        data = content(path)
        if not data.strip():
            raise UnusableResult("the file is empty")
        try:
            if not data.isascii():
                data.decode()  # whoever reads it next reads text
            return cls(each_once([(str(key), value) for key, value in _OBJECT.decode(data).items()]))
        except msgspec.ValidationError:
            raise UnusableResult("it is JSON, but not an object") from None
        except UnicodeDecodeError as error:
            raise UnusableResult(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            if found := _NOT_FINITE.search(data):
                holder = found[1].decode(errors="replace") if found[1] else "an element of a list"
                raise UnusableResult(f"{holder} is {found[2].decode()}") from None
            if b"\\u" in data:
                return cls._with_lone_surrogates(data)
            text = str(error)
            raise UnusableResult("truncated JSON" if "truncated" in text else f"not JSON: {text}") from None

    @classmethod
    def _with_lone_surrogates(cls, data: bytes) -> Document:
        """As Python's json reads it: a generated text may hold half of a character."""
        try:
            found = json.loads(data, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise UnusableResult(f"not JSON: {error}") from None
        if not isinstance(found, dict):
            raise UnusableResult("it is JSON, but not an object")
        return cls({key: msgspec.Raw(json.dumps(value).encode()) for key, value in found.items()})

    def __contains__(self, key: str) -> bool:
        return key in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def value(self, key: str) -> Any:
        """A value; None where there is none. Raises UnusableResult."""
        raw = self._parts.get(key)
        try:
            if raw is None or bytes(memoryview(raw)[:1]) != b"{":
                return None if raw is None else msgspec.json.decode(raw)
            return json.loads(bytes(raw), object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise UnusableResult(f"not JSON: {error}") from None

    def number(self, key: str) -> float:
        """A number that must be there, and finite. Raises UnusableResult."""
        if key not in self._parts:
            raise UnusableResult(f"{key} is missing")
        return finite(key, self.value(key))

    def number_if_any(self, key: str) -> float | None:
        return self.number(key) if key in self._parts else None

    def numbers(self) -> dict[str, float]:
        """All values that are numbers. Raises UnusableResult for one that is not finite."""
        return {key: self.number(key) for key, raw in self._parts.items() if bytes(memoryview(raw)[:1]) in _DIGITS}

    def list_of_numbers(self, key: str) -> list[float]:
        """A list of numbers; nothing when it is none. It says no more than what is published says already."""
        try:
            return msgspec.json.decode(self._parts[key], type=list[float]) if key in self._parts else []
        except (msgspec.DecodeError, RecursionError):
            return []

    def count_filled(self, key: str) -> int:
        """How many elements of a list say anything: of errors, the requests that have one."""
        try:
            found = msgspec.json.decode(self._parts[key], type=list[msgspec.Raw]) if key in self._parts else []
        except (msgspec.DecodeError, RecursionError):
            return 0
        return sum(bytes(memoryview(raw)[:5]) not in (b'""', b"null", b"false", b"{}", b"[]") for raw in found)


def content(path: Path) -> bytes:
    """What a file holds. Raises UnusableResult; of what is no file, a pipe perhaps, nothing is read."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST_RESULT:
                raise UnusableResult(f"cannot be read: it has {size} bytes, and a result at most {LARGEST_RESULT}")
            return file.read()
    except OSError as error:
        raise UnusableResult(f"cannot be read: {error.strerror}") from None


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its keys and values. Readers disagree on which of two values of one key counts."""
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UnusableResult(f"the key {twice[:80]!r} stands in it more than once")
    return document


def finite(key: str, value: Any) -> float:
    """A value that has to be a finite number. Raises UnusableResult."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableResult(f"{key} is {value!r:.80}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UnusableResult(f"{key} is not finite")
    return number
