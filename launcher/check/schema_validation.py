"""Judge a recipe as one srt-slurm version would: which keys it refuses, and which values.

srtctl loads its recipes with marshmallow, so values are judged as marshmallow does: a whole number may be written as
text or with a fraction, text must be text, and null is accepted only where a version's default is null.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Any, NamedTuple

from launcher.check.cross_field_rules import unmet_demands
from launcher.check.srtctl_schema import ROOT, Schema, Schemas, Violation, in_words
from launcher.core.yaml_source import Key

Keys = tuple[Key, ...]

_BOOLEANS = frozenset(
    spelling
    for word in ("t", "true", "on", "y", "yes", "1", "f", "false", "off", "n", "no", "0")
    for spelling in (word, word.capitalize(), word.upper())
)
"""The texts that marshmallow takes for true or false."""


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


@dataclass
class RecipeValidator:
    """Judges recipes, each once for a version, however many rows run it."""

    schemas: Schemas = field(default_factory=Schemas)
    _validated: dict[tuple[int, tuple[str, ...]], list[Violation]] = field(default_factory=dict)

    def violations(self, schema: Schema, said_in: tuple[str, ...], recipe: Mapping[str, Any]) -> list[Violation]:
        """What a version refuses in a resolved recipe. ``said_in`` identifies the recipe: file, section, selector."""
        key = (id(schema), said_in)
        if key not in self._validated:
            self._validated[key] = validate(schema, recipe)
        return self._validated[key]


def validate(schema: Schema, recipe: Mapping[str, Any]) -> list[Violation]:
    """What a version refuses in one resolved recipe (a variant's document); empty when it takes it.

    As in srtctl, what a version demands of values together is looked at only when the values by themselves are right.
    """
    recipe = {key: value for key, value in recipe.items() if key != "lock"}  # srtctl's own record of an earlier run
    found = list(_Validation(schema).mapping(ROOT, recipe, ()))
    return found or [Violation(keys, message) for keys, message in unmet_demands(schema.demands, recipe)]


class _Validation:
    """Walks through a recipe beside the classes of one version. ``at`` is always where in the recipe it is."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def mapping(self, owner: str, value: Mapping[str, Any], at: Keys) -> Iterator[Violation]:
        """What is wrong with a mapping that has to have the keys of the class ``owner``."""
        known = self.schema.classes[owner]
        for key, held in value.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.75)
                hint = f" (near: {near[0]})" if near else ""
                yield Violation((*at, key), f"{_dotted((*at, key))} is an unknown key{hint}", "unknown-field", owner)
            else:
                yield from self.value(parse(known[key]), held, (*at, key))
        for key, text in known.items():
            if text.endswith("!") and key not in value:
                yield Violation(at, f"{_dotted((*at, key))} is missing", "missing-field")

    def value(self, kind: Type, value: Any, at: Keys) -> Iterator[Violation]:
        """What is wrong with a value that has to be of a type."""
        if kind.kind == "str" and isinstance(value, str):
            return
        if value is None:
            if not kind.nullable and kind.kind != "any":
                yield _wrong(at, value, str(kind))
        elif kind.kind == "class" and isinstance(value, dict):
            yield from self.mapping(kind.of[0], value, at)
        elif kind.kind == "backend" and isinstance(value, dict):
            yield from self.backend(value, at)
        elif kind.kind == "list" and isinstance(value, list):
            for i, item in enumerate(value):
                yield from self.value(kind.of[0], item, (*at, i))
        elif kind.kind == "dict" and isinstance(value, dict):
            if kind.of[1].kind == "any" and set(map(type, value)) <= {str}:
                return
            for key, held in value.items():
                if not _accepts(kind.of[0], key):
                    message = f"key {key!r} of {_dotted(at)} is of the wrong type; expected {kind.of[0]}"
                    yield Violation((*at, key), message, "wrong-type")
                yield from self.value(kind.of[1], held, (*at, key))
        elif kind.kind == "sweep" and isinstance(value, dict):
            yield from _sweep(value, at)
        elif not _accepts(kind, value):
            if kind.kind == "one of":
                yield Violation(at, f"{_dotted(at)} is {value!r}; expected {kind}")
            else:
                yield _wrong(at, value, str(kind))

    def backend(self, value: Mapping[str, Any], at: Keys) -> Iterator[Violation]:
        """What is wrong with ``backend``, whose class depends on its ``type``."""
        name = value.get("type", "sglang")
        owner = self.schema.backends.get(name) if isinstance(name, str) else None
        if owner is None:
            words = ", ".join(self.schema.backends)
            yield Violation((*at, "type"), f"{_dotted((*at, 'type'))} is {name!r}; expected one of {words}")
        else:
            yield from self.mapping(owner, value, at)


def _accepts(kind: Type, value: Any) -> bool:
    """Whether marshmallow's field of a type takes a value that is not null."""
    if kind.kind in ("str", "path"):
        return isinstance(value, str)
    if kind.kind in ("int", "float"):
        return _is_number(value, whole=kind.kind == "int")
    if kind.kind == "bool":
        if isinstance(value, str):
            return value in _BOOLEANS
        return isinstance(value, (bool, int, float)) and value in (0, 1)
    if kind.kind == "one of":
        return isinstance(value, str) and value in kind.of
    if kind.kind == "choice":
        return any(_accepts(t, value) for t in kind.of)
    if kind.kind == "list":
        return isinstance(value, list) and all(v is not None and _accepts(kind.of[0], v) for v in value)
    if kind.kind == "dict":
        return isinstance(value, dict) and all(_accepts(kind.of[0], k) for k in value)
    return kind.kind == "any"


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, (bool, date)) or not isinstance(value, (int, float, str)):
        return False
    try:
        number = int(value) if whole else float(value)
    except (ValueError, OverflowError):
        return False
    return whole or (number == number and abs(number) != float("inf"))


def _sweep(value: Mapping[str, Any], at: Keys) -> Iterator[Violation]:
    parameters = value.get("parameters", {k: v for k, v in value.items() if k != "mode"})
    for key, held in parameters.items() if isinstance(parameters, dict) else ():
        if not isinstance(held, list):
            yield _wrong((*at, key), held, "a list")


def _wrong(at: Keys, value: Any, wanted: str) -> Violation:
    shown = {type(None): "null", dict: "a mapping", list: "a list"}.get(type(value)) or repr(value)
    return Violation(at, f"{_dotted(at)} is {shown}; expected {wanted}", "wrong-type")


def _dotted(at: Keys) -> str:
    return ".".join(map(str, at)) or "the recipe"
