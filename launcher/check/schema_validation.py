"""Judge a recipe as one srt-slurm version would: which keys it refuses, and which values.

srtctl loads its recipes with marshmallow, so values are judged as marshmallow does: a whole number may be written as
text or with a fraction, text must be text, and null is accepted only where a version's default is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
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
    """One thing that a version refuses in a recipe: the keys that it is about, and what is wrong.

    ``rule`` is the id of the rule of `launcher check` that reports it; ``owner`` is the class that lacks the last key
    when the rule is ``unknown-field``.
    """

    keys: Keys
    message: str
    rule: Literal["unknown-field", "wrong-type", "missing-field", "value-refused"] = "value-refused"
    owner: str = ""


class Type(NamedTuple):
    """A type text (`Schema`), taken apart: ``of`` are the parts of a list or a choice, or the words."""

    kind: str
    of: tuple[Any, ...]
    nullable: bool

    def __str__(self) -> str:
        """As a person would say it: ``a number``, ``a list of text``, ``nats, tcp or http``."""
        if self.kind in ("one of", "choice"):
            return in_words([str(part) for part in self.of])
        if self.kind == "list":
            items = {"int": "whole numbers", "float": "numbers"}.get(self.of[0].kind, str(self.of[0]))
            return f"a list of {items}"
        if self.kind == "dict":
            return f"a mapping to {self.of[1]}" if self.of[1].kind != "any" else "a mapping"
        return _SAID.get(self.kind, "a mapping")


_SAID = {
    "str": "text",
    "path": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "any": "anything",
}


@cache
def parse(text: str) -> Type:
    """Read a type text, whose ``!`` does not matter here."""
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
    """The parts between separators that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


_USUAL = {"str": str, "path": str, "int": int, "bool": bool}
"""Values that need no further look, and most are such."""


@dataclass(frozen=True)
class Schema:
    """What one version, called ``name``, declares: keys and types, its demands beyond them, options of its command.

    ``classes`` are class → key of the recipe → type text. A type text is ``str``, ``int``, ``float``, ``bool``,
    ``any``, ``path``, ``list[T]``, ``dict[T,T]``, ``T|T``, ``=a,b`` (one of these words), ``@Class``, ``backend`` (the
    class that its ``type`` names) or ``sweep``; then ``?`` when it may be null, and ``!`` when it must be there.
    ``benchmarks`` are the types that its jobs know, which srtctl itself does not look at; empty when that is not known.
    """

    name: str
    classes: Mapping[str, Mapping[str, str]]
    demands: frozenset[str]
    options: frozenset[str]
    benchmarks: frozenset[str] = frozenset()
    _judged: dict[tuple[str, ...], list[Violation]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def backends(self) -> Mapping[str, str]:
        """``backend.type`` → the class of that backend."""
        return {
            keys["type"].strip("=?!"): name
            for name, keys in self.classes.items()
            if name.endswith("Protocol") and "type" in keys
        }

    def violations(self, recipe: Mapping[str, Any], said_in: tuple[str, ...] = ()) -> list[Violation]:
        """What the version refuses in one resolved recipe (a variant's document); empty when it takes it.

        ``said_in`` identifies the recipe (file, section, selector): one that many rows run is judged once. As in
        srtctl, what a version demands of values together is looked at only when the values by themselves are right.
        """
        if said_in in self._judged:
            return self._judged[said_in]
        recipe = {key: value for key, value in recipe.items() if key != "lock"}  # srtctl's own record of an earlier run
        found = list(self._mapping(ROOT, recipe, ()))
        found = found or [Violation(keys, message) for keys, message in unmet_demands(self.demands, recipe)]
        if said_in:
            self._judged[said_in] = found
        return found

    # Below, ``at`` is always where in the recipe a value is.

    def _mapping(self, owner: str, value: Mapping[str, Any], at: Keys) -> Iterator[Violation]:
        """What is wrong with a mapping that has to have the keys of the class ``owner``."""
        known = self.classes[owner]
        for key, held in value.items():
            if key not in known:
                near = closest(str(key), known, 0.75)
                hint = f" (near: {near})" if near else ""
                yield Violation((*at, key), f"{_dotted((*at, key))} is an unknown key{hint}", "unknown-field", owner)
            else:
                yield from self._value(parse(known[key]), held, (*at, key))
        for key, text in known.items():
            if text.endswith("!") and key not in value:
                yield Violation(at, f"{_dotted((*at, key))} is missing", "missing-field")

    def _value(self, kind: Type, value: Any, at: Keys) -> Iterator[Violation]:
        """What is wrong with a value that has to be of a type."""
        if type(value) is _USUAL.get(kind.kind):
            return
        if value is None:
            if not kind.nullable and kind.kind != "any":
                yield _wrong(at, value, kind)
        elif kind.kind == "class" and isinstance(value, dict):
            yield from self._mapping(kind.of[0], value, at)
        elif kind.kind == "backend" and isinstance(value, dict):
            yield from self._backend(value, at)
        elif kind.kind == "list" and isinstance(value, list):
            for i, item in enumerate(value):
                yield from self._value(kind.of[0], item, (*at, i))
        elif kind.kind == "dict" and isinstance(value, dict):
            if kind.of[1].kind == "any" and set(map(type, value)) <= {str}:
                return
            for key, held in value.items():
                if not accepts(kind.of[0], key):
                    message = f"key {key!r} of {_dotted(at)} is of the wrong type; expected {kind.of[0]}"
                    yield Violation((*at, key), message, "wrong-type")
                yield from self._value(kind.of[1], held, (*at, key))
        elif kind.kind == "sweep" and isinstance(value, dict):
            parameters = value.get("parameters", {k: v for k, v in value.items() if k != "mode"})
            for key, held in parameters.items() if isinstance(parameters, dict) else ():
                if not isinstance(held, list):
                    yield _wrong((*at, key), held, "a list")
        elif kind.kind == "choice":
            if all(any(self._value(one, value, at)) for one in kind.of):
                yield _wrong(at, value, kind)
        elif not accepts(kind, value):
            yield _wrong(at, value, kind, "value-refused" if kind.kind == "one of" else "wrong-type")

    def _backend(self, value: Mapping[str, Any], at: Keys) -> Iterator[Violation]:
        """What is wrong with ``backend``, whose class depends on its ``type``."""
        name = value.get("type", "sglang")
        owner = self.backends.get(name) if isinstance(name, str) else None
        if owner is None:
            yield _wrong((*at, "type"), name, f"one of {', '.join(self.backends)}", "value-refused")
        else:
            yield from self._mapping(owner, value, at)


def accepts(kind: Type, value: Any) -> bool:
    """Whether marshmallow's field of a plain type takes a value that is not null."""
    if kind.kind in ("str", "path"):
        return isinstance(value, str)
    if kind.kind in ("int", "float"):
        return _is_number(value, whole=kind.kind == "int")
    if kind.kind == "bool":
        return value in _BOOLEANS if isinstance(value, str) else isinstance(value, (int, float)) and value in (0, 1)
    return kind.kind == "any" or (kind.kind == "one of" and isinstance(value, str) and value in kind.of)


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, (bool, date)) or not isinstance(value, (int, float, str)):
        return False
    try:
        number = int(value) if whole else float(value)
    except (ValueError, OverflowError):
        return False
    return whole or math.isfinite(number)


def _wrong(
    at: Keys, value: Any, wanted: Type | str, rule: Literal["wrong-type", "value-refused"] = "wrong-type"
) -> Violation:
    shown = {type(None): "null", dict: "a mapping", list: "a list"}.get(type(value)) or repr(value)
    return Violation(at, f"{_dotted(at)} is {shown}; expected {wanted}", rule)


def _dotted(at: Keys) -> str:
    return ".".join(map(str, at)) or "the recipe"


def in_words(words: list[str]) -> str:
    """``a, b or c``."""
    return " or ".join(([", ".join(words[:-1])] if words[1:] else []) + words[-1:])
