"""Check a recipe as one srt-slurm version would: which keys it refuses, and which values.

srtctl loads its recipes with marshmallow, so values are checked as marshmallow does: a whole number may be written as
text or with a fraction, text must be text, and null is accepted only where a version's default is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

from launcher.check.cross_field_rules import unmet_demands
from launcher.core.errors import closest
from launcher.core.yaml_source import Key

ROOT = "SrtConfig"
"""The class of a whole recipe."""

Keys = tuple[Key, ...]

_BOOLEANS = frozenset(
    spelling
    for word in ("t", "true", "on", "y", "yes", "1", "f", "false", "off", "n", "no", "0")
    for spelling in (word, word.capitalize(), word.upper())
)
"""The texts that marshmallow takes for true or false."""


@dataclass(frozen=True)
class Violation:
    """One thing that a version of srt-slurm refuses in a recipe: the keys of the value, and what is wrong with it.

    ``rule`` is the id of the rule of `launcher check` that reports it; ``owner`` is the class that lacks the last key
    when the rule is ``unknown-field``.
    """

    keys: Keys
    message: str
    rule: Literal["unknown-field", "wrong-type", "missing-field", "value-refused"] = "value-refused"
    owner: str = ""


class Type(NamedTuple):
    """A parsed type text (see `Schema`): ``parts`` are the types of a list, mapping or choice, or the words allowed."""

    kind: str
    parts: tuple[Any, ...]
    nullable: bool

    def __str__(self) -> str:
        """The type in words: ``a number``, ``a list of text``, ``nats, tcp or http``."""
        if self.kind in ("one of", "choice"):
            return joined_with_or([str(part) for part in self.parts])
        if self.kind == "list":
            items = {"int": "whole numbers", "float": "numbers"}.get(self.parts[0].kind, str(self.parts[0]))
            return f"a list of {items}"
        if self.kind == "dict":
            return f"a mapping to {self.parts[1]}" if self.parts[1].kind != "any" else "a mapping"
        return _TYPE_WORDS.get(self.kind, "a mapping")


_TYPE_WORDS = {
    "str": "text",
    "path": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "any": "anything",
}


@cache
def parse(text: str) -> Type:
    """Parse a type text; its ``!`` is ignored."""
    text = text.removesuffix("!")
    nullable = text.endswith("?")
    text = text.removesuffix("?")
    if text.startswith("="):
        return Type("one of", tuple(text[1:].split(",")), nullable)
    if len(parts := _split(text, "|")) > 1:
        return Type("choice", tuple(map(parse, parts)), nullable)
    if text.startswith("@"):
        return Type("class", (text[1:],), nullable)
    if text.endswith("]"):
        kind, _, inner = text.partition("[")
        return Type(kind, tuple(map(parse, _split(inner[:-1], ","))), nullable)
    return Type(text, (), nullable)


def _split(text: str, separator: str) -> list[str]:
    """Split a text at the separators that are outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


_PYTHON_TYPES = {"str": str, "path": str, "int": int, "bool": bool}
"""The Python types that need no further check; most values have them."""


@dataclass(frozen=True)
class Schema:
    """What the srt-slurm version ``name`` declares: keys and types, demands on values, options of `srtctl apply`.

    ``classes`` are class → key of the recipe → type text. A type text is ``str``, ``int``, ``float``, ``bool``,
    ``any``, ``path``, ``list[T]``, ``dict[T,T]``, ``T|T``, ``=a,b`` (one of these words), ``@Class``, ``backend`` (the
    class that its ``type`` names) or ``sweep``; then ``?`` when it may be null, and ``!`` when it is required.
    ``benchmarks`` are the benchmark types that its jobs know; srtctl itself does not check them. Empty when unknown.
    """

    name: str
    classes: Mapping[str, Mapping[str, str]]
    demands: frozenset[str]
    options: frozenset[str]
    benchmarks: frozenset[str] = frozenset()
    _known_violations: dict[tuple[str, ...], list[Violation]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def backends(self) -> Mapping[str, str]:
        """``backend.type`` → the class of that backend."""
        return {
            keys["type"].strip("=?!"): name
            for name, keys in self.classes.items()
            if name.endswith("Protocol") and "type" in keys
        }

    def violations(self, recipe: Mapping[str, Any], identity: tuple[str, ...] = ()) -> list[Violation]:
        """What the version refuses in one resolved recipe (a variant's document); empty when it takes it.

        ``identity`` is the recipe's file, section and selector: a recipe that many rows run is checked once. As in
        srtctl, demands on several values together are checked only when each value by itself is right.
        """
        if identity in self._known_violations:
            return self._known_violations[identity]
        recipe = {key: value for key, value in recipe.items() if key != "lock"}  # srtctl's own record of an earlier run
        violations = list(self._check_mapping(ROOT, recipe, ()))
        violations = violations or [Violation(keys, message) for keys, message in unmet_demands(self.demands, recipe)]
        if identity:
            self._known_violations[identity] = violations
        return violations

    def _check_mapping(self, owner: str, value: Mapping[str, Any], path: Keys) -> Iterator[Violation]:
        """The violations of a mapping whose keys are those of the class ``owner``."""
        known = self.classes[owner]
        for key, item in value.items():
            if key not in known:
                near = closest(str(key), known, 0.75)
                hint = f" (near: {near})" if near else ""
                message = f"{_dotted_path((*path, key))} is an unknown key{hint}"
                yield Violation((*path, key), message, "unknown-field", owner)
            else:
                yield from self._check_value(parse(known[key]), item, (*path, key))
        for key, text in known.items():
            if text.endswith("!") and key not in value:
                yield Violation(path, f"{_dotted_path((*path, key))} is missing", "missing-field")

    def _check_value(self, kind: Type, value: Any, path: Keys) -> Iterator[Violation]:
        """The violations of a value that must have a type."""
        if type(value) is _PYTHON_TYPES.get(kind.kind):
            return
        if value is None:
            if not kind.nullable and kind.kind != "any":
                yield _type_violation(path, value, kind)
        elif kind.kind == "class" and isinstance(value, dict):
            yield from self._check_mapping(kind.parts[0], value, path)
        elif kind.kind == "backend" and isinstance(value, dict):
            yield from self._check_backend(value, path)
        elif kind.kind == "list" and isinstance(value, list):
            for i, item in enumerate(value):
                yield from self._check_value(kind.parts[0], item, (*path, i))
        elif kind.kind == "dict" and isinstance(value, dict):
            for key, item in value.items():
                if not accepts(kind.parts[0], key):
                    message = f"key {key!r} of {_dotted_path(path)} is of the wrong type; expected {kind.parts[0]}"
                    yield Violation((*path, key), message, "wrong-type")
                yield from self._check_value(kind.parts[1], item, (*path, key))
        elif kind.kind == "sweep" and isinstance(value, dict):
            parameters = value.get("parameters", {k: v for k, v in value.items() if k != "mode"})
            for key, item in parameters.items() if isinstance(parameters, dict) else ():
                if not isinstance(item, list):
                    yield _type_violation((*path, key), item, "a list")
        elif kind.kind == "choice":
            if all(any(self._check_value(choice, value, path)) for choice in kind.parts):
                yield _type_violation(path, value, kind)
        elif not accepts(kind, value):
            yield _type_violation(path, value, kind, "value-refused" if kind.kind == "one of" else "wrong-type")

    def _check_backend(self, value: Mapping[str, Any], path: Keys) -> Iterator[Violation]:
        """The violations of ``backend``, whose class depends on its ``type``."""
        name = value.get("type", "sglang")
        owner = self.backends.get(name) if isinstance(name, str) else None
        if owner is None:
            yield _type_violation((*path, "type"), name, f"one of {', '.join(self.backends)}", "value-refused")
        else:
            yield from self._check_mapping(owner, value, path)


def accepts(kind: Type, value: Any) -> bool:
    """Whether marshmallow's field of a plain type accepts a value that is not null."""
    if kind.kind in ("str", "path"):
        return isinstance(value, str)
    if kind.kind in ("int", "float"):
        if type(value) not in (int, float, str):
            return False
        try:
            number = int(value) if kind.kind == "int" else float(value)
        except (ValueError, OverflowError):
            return False
        return kind.kind == "int" or math.isfinite(number)
    if kind.kind == "bool":
        return value in _BOOLEANS if isinstance(value, str) else isinstance(value, (int, float)) and value in (0, 1)
    return kind.kind == "any" or (kind.kind == "one of" and isinstance(value, str) and value in kind.parts)


def _type_violation(
    path: Keys, value: Any, wanted: Type | str, rule: Literal["wrong-type", "value-refused"] = "wrong-type"
) -> Violation:
    shown = {type(None): "null", dict: "a mapping", list: "a list"}.get(type(value)) or repr(value)
    return Violation(path, f"{_dotted_path(path)} is {shown}; expected {wanted}", rule)


def _dotted_path(path: Keys) -> str:
    return ".".join(map(str, path)) or "the recipe"


def joined_with_or(words: list[str]) -> str:
    """``a, b or c``."""
    return " or ".join(([", ".join(words[:-1])] if words[1:] else []) + words[-1:])
