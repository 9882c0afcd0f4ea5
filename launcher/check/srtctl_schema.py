"""What recipes may say, by srt-slurm version: the tables of srtctl_fields.json, or a checkout's own source.

The tables hold facts about released versions; the schema of a version is built when the first recipe is checked for it.
srtctl_files.json holds the files of each version; it is read only when a recipe or a set-up script is in no tree here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from launcher.check.schema_reader import Declared, read_checkout
from launcher.core.yaml_source import Key


class Type(NamedTuple):
    """A type text (`schema_reader.Classes`), taken apart: ``of`` are the parts of a list or a choice, or the words."""

    kind: str
    of: tuple[Any, ...]
    nullable: bool
    required: bool

    def __str__(self) -> str:
        """As a person would say it: ``a number``, ``a list of text``, ``nats, tcp or http``."""
        if self.kind == "one of":
            return _or([str(w) for w in self.of])
        if self.kind == "choice":
            return _or([str(t) for t in self.of])
        if self.kind == "list":
            return f"a list of {_plural(self.of[0])}"
        if self.kind == "dict":
            return f"a mapping to {self.of[1]}" if self.of[1].kind != "any" else "a mapping"
        return _SAID.get(self.kind, "a mapping")


_SAID = {"str": "text", "path": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_SAID["any"] = "anything"


def _or(words: list[str]) -> str:
    return " or ".join(([", ".join(words[:-1])] if words[1:] else []) + words[-1:])


def _plural(kind: Type) -> str:
    return {"int": "whole numbers", "float": "numbers"}.get(kind.kind, str(kind))


@cache
def parse(text: str) -> Type:
    """Read a type text."""
    required = text.endswith("!")
    text = text.removesuffix("!")
    nullable = text.endswith("?")
    text = text.removesuffix("?")
    if text.startswith("="):
        return Type("one of", tuple(text[1:].split(",")), nullable, required)
    if len(parts := _split(text, "|")) > 1:
        return Type("choice", tuple(map(parse, parts)), nullable, required)
    if text.startswith("@"):
        return Type("class", (text[1:],), nullable, required)
    if text.endswith("]"):
        kind, _, inner = text.partition("[")
        return Type(kind, tuple(map(parse, _split(inner[:-1], ","))), nullable, required)
    return Type(text, (), nullable, required)


def _split(text: str, separator: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@dataclass(frozen=True)
class Schema:
    """What recipes may say at one version, called ``name``."""

    name: str
    classes: Mapping[str, Mapping[str, Type]]
    demands: frozenset[str]
    options: frozenset[str]

    @classmethod
    def of(cls, name: str, declared: Declared) -> Schema:
        classes = {c: {key: parse(text) for key, text in keys.items()} for c, keys in declared.classes.items()}
        return cls(name, classes, declared.demands, declared.options)

    @cached_property
    def backends(self) -> Mapping[str, str]:
        """``backend.type`` → the class of that backend."""
        return {
            str(keys["type"].of[0]): name
            for name, keys in self.classes.items()
            if name.endswith("Protocol") and "type" in keys
        }


@dataclass(frozen=True)
class Violation:
    """One thing that a version refuses in a recipe: the keys that it is about, and what is wrong.

    ``rule`` is the id of the rule of `launcher check` that reports it; ``owner`` is the class that lacks the last key
    when the rule is ``unknown-field``.
    """

    keys: tuple[Key, ...]
    message: str
    rule: Literal["unknown-field", "wrong-type", "missing-field", "value-refused"] = "value-refused"
    owner: str = ""


@dataclass
class Schemas:
    """The schemas of all versions that are known: from the tables, and from srt-slurm trees at hand.

    ``trees`` are directories of checkouts named by ref or sha.
    """

    trees: tuple[Path, ...] = ()
    _known: dict[str, Schema | None] = field(default_factory=dict)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(Path(__file__).with_name("srtctl_fields.json").read_text())
        return data

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Ref or sha → the version's name in the tables."""
        versions: dict[str, str] = self._tables["versions"]
        moving: dict[str, str] = self._tables["moving"]
        return {sha: name for name, sha in versions.items()} | {n: n for n in versions} | moving

    @property
    def versions(self) -> list[str]:
        """All versions of the tables, the newest first."""
        return list(self._tables["versions"])[::-1]

    def sha(self, ref: str) -> str | None:
        """The commit of a released version, or of a branch when the tables were made; None when they lack it."""
        name = self._names.get(ref)
        return None if name is None else str(self._tables["versions"][name])

    def name(self, ref: str, sha: str | None) -> str | None:
        """What people call the version of a lane; None when the tables lack it. A sha decides alone."""
        return self._names.get(sha if sha is not None else ref)

    def get(self, ref: str, sha: str | None) -> Schema | None:
        """The schema of a lane's srt-slurm, or None when neither the tables nor a tree at hand tell it."""
        key = sha or ref
        if key not in self._known:
            name = self.name(ref, sha)
            self._known[key] = self._of_tree(ref, sha) if name is None else Schema.of(ref, self._declared(name))
        return self._known[key]

    def _of_tree(self, ref: str, sha: str | None) -> Schema | None:
        found = (t / name for t in self.trees for name in (sha, ref) if name and (t / name / "src/srtctl").is_dir())
        tree = next(found, None)
        if tree is None:
            return None
        return Schema.of(ref, read_checkout(tree))

    def _declared(self, name: str) -> Declared:
        tables, order = self._tables, self._order
        classes = {
            c: {
                key: text
                for key, said in keys.items()
                if (text := said if isinstance(said, str) else _at(said, name, order)) is not None
            }
            for c, keys in tables["classes"].items()
        }
        there = {
            kind: frozenset(word for word, where in tables[kind].items() if _holds(where, name, order))
            for kind in ("demands", "options")
        }
        return Declared(classes, there["demands"], there["options"])

    @cached_property
    def _order(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self._tables["versions"])}

    def has_file(self, ref: str, sha: str | None, path: str) -> bool | None:
        """Whether a lane's srt-slurm has a recipe or a set-up script; None when the tables lack the version.

        A branch that is followed may have got or lost it since they were made.
        """
        name = self.name(ref, sha) if sha is not None or is_tag(ref) else None
        if name is None:
            return None
        return any(_holds(where, name, self._order) for where in self._files.get(path, ()))

    @cached_property
    def _files(self) -> Mapping[str, Sequence[str]]:
        """Recipe or set-up script → the versions that have it (srtctl_files.json)."""
        files: dict[str, list[str]] = json.loads(Path(__file__).with_name("srtctl_files.json").read_text())["files"]
        found: dict[str, list[str]] = {}
        for where, paths in files.items():
            for path in paths:
                found.setdefault(path, []).append(where)
        return found

    def known_at(self, unknown: Violation) -> str | None:
        """The versions that know a key which one refused as unknown, as people would say it; None when none does."""
        said = self._tables["classes"].get(unknown.owner, {}).get(str(unknown.keys[-1]))
        if said is None:
            return None
        return "other versions" if isinstance(said, str) else _spoken(" ".join(said.values()).split(), self.versions[0])


def _at(said: Mapping[str, str], name: str, order: Mapping[str, int]) -> str | None:
    return next((text for text, where in said.items() if _holds(where, name, order)), None)


def _holds(where: str, name: str, order: Mapping[str, int]) -> bool:
    """Whether ``v1.0.3..v1.0.9 some-branch`` holds a version."""
    at = order[name]
    for part in where.split(" "):
        first, _, last = part.partition("..")
        if order[first] <= at <= order[last or first]:
            return True
    return False


def _spoken(ranges: Iterable[str], newest: str) -> str:
    said = []
    for part in ranges:
        first, _, last = part.partition("..")
        said.append(f"{first} and later" if last == newest else f"{first} to {last}" if last else first)
    return _or(said)


def is_tag(ref: str) -> bool:
    """Whether a ref is named as releases are (``v1.0.45``), which do not move."""
    return re.fullmatch(r"v\d+(\.\d+)+", ref) is not None
