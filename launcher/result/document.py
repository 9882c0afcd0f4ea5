"""A JSON document of a result: its top level is parsed, each value only on access.

It accepts what the next readers of the file accept (Python's json among them), except an object with a repeated key:
there one value would silently replace another.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launcher.core.reading import LARGEST_RESULT, open_regular, prepare_type

_NOT_FINITE = re.compile(rb'(?:"([^"]{1,80})"\s*:|[\[,])\s*[-+]?(NaN|Infinity)\b')
_DIGITS = frozenset(bytes([byte]) for byte in b"-0123456789")


Element = TypeVar("Element")


class UnusableResult(Exception):
    """A file cannot be used as a result; the message gives the reason."""


class _Key(str):
    """A key of an object in a file. No two are equal, so that repeated keys are all decoded."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


_OBJECT = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=lambda kind, text: kind(text))


class Document:
    """The top level of a JSON object, with unparsed values: `itls` alone can hold twenty million numbers."""

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
                data.decode()  # the next readers read text
            return cls(refuse_repeated_keys([(str(key), value) for key, value in _OBJECT.decode(data).items()]))
        except msgspec.ValidationError:
            raise UnusableResult("it is JSON, but not an object") from None
        except UnicodeDecodeError as error:
            raise UnusableResult(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            if match := _NOT_FINITE.search(data):
                holder = match[1].decode(errors="replace") if match[1] else "an element of a list"
                raise UnusableResult(f"{holder} is {match[2].decode()}") from None
            if b"\\u" in data:
                return cls._with_lone_surrogates(data)
            text = str(error)
            raise UnusableResult("truncated JSON" if "truncated" in text else f"not JSON: {text}") from None

    @classmethod
    def _with_lone_surrogates(cls, data: bytes) -> Document:
        """Reads it with Python's json: a generated text may hold half of a character, which msgspec refuses."""
        try:
            value = json.loads(data, object_pairs_hook=refuse_repeated_keys)
        except (ValueError, RecursionError) as error:
            raise UnusableResult(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise UnusableResult("it is JSON, but not an object")
        return cls({key: msgspec.Raw(json.dumps(part).encode()) for key, part in value.items()})

    def __contains__(self, key: str) -> bool:
        return key in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def value(self, key: str) -> Any:
        """The value of a key; None without the key. Raises UnusableResult."""
        raw = self._parts.get(key)
        try:
            if raw is None or bytes(memoryview(raw)[:1]) != b"{":
                return None if raw is None else msgspec.json.decode(raw)
            return json.loads(bytes(raw), object_pairs_hook=refuse_repeated_keys)
        except (ValueError, RecursionError) as error:
            raise UnusableResult(f"not JSON: {error}") from None

    def number(self, key: str) -> float:
        """The value of a key, which must exist and be a finite number. Raises UnusableResult."""
        if key not in self._parts:
            raise UnusableResult(f"{key} is missing")
        return require_finite(key, self.value(key))

    def number_if_any(self, key: str) -> float | None:
        return self.number(key) if key in self._parts else None

    def numbers(self) -> dict[str, float]:
        """All values that are numbers. Raises UnusableResult for one that is not finite."""
        return {key: self.number(key) for key, raw in self._parts.items() if bytes(memoryview(raw)[:1]) in _DIGITS}

    def list_of_numbers(self, key: str) -> list[float]:
        """A list of numbers; an empty list for any other value."""
        return self._list(key, float)

    def count_filled(self, key: str) -> int:
        """How many elements of a list are not empty: of ``errors``, the requests that have one."""
        values = self._list(key, msgspec.Raw)
        return sum(bytes(memoryview(raw)[:5]) not in (b'""', b"null", b"false", b"{}", b"[]") for raw in values)

    def _list(self, key: str, kind: type[Element]) -> list[Element]:
        if key not in self._parts:
            return []
        try:
            return msgspec.json.decode(self._parts[key], type=prepare_type(list[kind]))  # type: ignore[valid-type]
        except (msgspec.DecodeError, RecursionError):
            return []


def content(path: Path) -> bytes:
    """The bytes of a regular file; a pipe is not opened. Raises UnusableResult."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST_RESULT:
                raise UnusableResult(f"cannot be read: it has {size} bytes, and a result at most {LARGEST_RESULT}")
            return file.read()
    except OSError as error:
        raise UnusableResult(f"cannot be read: {error.strerror}") from None


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises UnusableResult for a repeated key: readers disagree on which value counts."""
    document = dict(pairs)
    if len(document) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise UnusableResult(f"the key {repeated[:80]!r} stands in it more than once")
    return document


def require_finite(key: str, value: Any) -> float:
    """The value of ``key`` as a float. Raises UnusableResult unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableResult(f"{key} is {value!r:.80}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UnusableResult(f"{key} is not finite")
    return number
