"""Recipes as srtctl reads them: a file and a selector give variants; edits are data; the result is written back.

A recipe file is either *plain*, or has the ``base:`` form: ``base:`` and sections ``override_<name>:`` and
``zip_override_<name>:`` that are merged into it. The rules are srtctl's own (`generate_override_configs` in
``src/srtctl/core/config.py``, the same at every ref in use, 517d3c37 to c88ef731). Nothing here touches a file.

This module is the room's door: `facts` and `apply_edits` live in modules of their own and are reached through it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from launcher.core.errors import ConfigError
from launcher.core.suggest import suggest
from launcher.core.yaml_source import Key
from launcher.srtctl.edit import Edit, apply_edits, unshared, with_comment
from launcher.srtctl.facts import ContainerUse, Parallelism, RecipeFacts, RoleFacts, facts

__all__ = [
    "ContainerUse",
    "Edit",
    "Parallelism",
    "RecipeFacts",
    "RoleFacts",
    "Variant",
    "apply_edits",
    "dump",
    "facts",
    "family_member",
    "split_selector",
    "variants",
    "with_comment",
]

BASE, OVERRIDE, ZIP = "base", "override_", "zip_override_"

_INDEXED = re.compile(r"(zip_override_[\w-]+)\[(\d+)\]")
_SELECTOR = re.compile(r"base|override_\S+|zip_override_[\w-]+(\[\d+\])?")


@dataclass(frozen=True)
class Variant:
    """One configuration that a recipe file holds.

    ``suffix`` is what srtctl appends to the name ("" for a plain recipe), ``selector`` the one that picks this variant
    alone (None for a plain recipe), ``keys`` where its section stands in the file. ``document`` is the whole resolved
    recipe; it may share parts with the file's document, so treat it as read-only (`apply_edits` copies).
    """

    suffix: str
    selector: str | None
    keys: tuple[Key, ...]
    document: Mapping[str, Any]

    def places(self, path: Sequence[Key]) -> tuple[tuple[Key, ...], ...]:
        """Where in the *file* a value of this document may be said, the place that wins first."""
        here = (*self.keys, *path)
        return (here, (BASE, *path)) if self.selector not in (None, BASE) else (here,)


def split_selector(config_file: str) -> tuple[str, str | None]:
    """Split ``path[:selector]`` as `srtctl apply -f` does (`parse_config_arg`): at the last colon.

    Raises ConfigError when what follows the colon is no selector, which is also what a path with a colon runs into.
    """
    path, colon, selector = config_file.rpartition(":")
    if not colon:
        return config_file, None
    if not path.strip():
        raise ConfigError(f"recipe {config_file!r} names no file before the colon", where="CONFIG_FILE")
    if not _SELECTOR.fullmatch(selector) and not _is_glob(selector):
        raise ConfigError(
            f"recipe {config_file!r}: {selector!r} is not a selector",
            where="CONFIG_FILE",
            hint="base, override_NAME, zip_override_NAME, zip_override_NAME[N], or a glob like '*mtp*'",
        )
    return path, selector


def family_member(path: str) -> tuple[str, str] | None:
    """Where a recipe lies when no file has its name: ``DIR/NAME.yaml`` is variant ``override_NAME`` of ``DIR.yaml``.

    So one family file in the ``base:`` form answers for the one-file-per-variant paths that matrices name:
    ``…/8k1k/3p2d-dep4-dep8-8k1k.yaml`` is ``…/8k1k.yaml:override_3p2d-dep4-dep8-8k1k``. A rule about names only: the
    caller looks whether ``path`` is absent, and whether the family is there and has that section. None for a path
    without a directory.
    """
    member = PurePosixPath(path)
    family = member.parent
    if not family.name:
        return None
    return str(family.with_name(family.name + member.suffix)), OVERRIDE + member.stem


def variants(document: Mapping[str, Any], selector: str | None = None, *, where: str | None = None) -> list[Variant]:
    """Resolve a recipe file's document to the variants that ``selector`` picks, as srtctl would submit them.

    Without a selector: a plain recipe is one variant; of the ``base:`` form, all overrides and zip groups, sorted by
    name, without the base. Raises ConfigError (at ``where``) listing what there is when the selector picks nothing,
    when a zip group cannot be zipped, and when a plain recipe is given a selector: srtctl ignores it there with a
    warning in its log, and the benchmark would measure something else than was asked for.

    One quirk is not imitated: srtctl submits zip variants through a second merge (`resolve_override_yaml`), which
    brings a key back that a ``null`` in a *zip* section had deleted, and drops a ``null`` of the base.
    """
    if BASE not in document:
        if selector is not None:
            raise ConfigError(
                f"selector {selector!r} on a plain recipe: it has no 'base', hence no variants",
                where=where,
                hint="drop the selector",
            )
        return [Variant("", None, (), document)]
    sections = _Sections(document, where)
    if selector == BASE:
        return [Variant(BASE, BASE, (BASE,), sections.base)]
    picked = [variant for key, index in sections.pick(selector) for variant in sections.expand(key, index)]
    return sections.without_collision(picked)


class _Sections:
    def __init__(self, document: Mapping[str, Any], where: str | None) -> None:
        self.document = document
        self.where = where
        self.base = self._section(BASE)
        self.overrides = sorted(k for k in document if isinstance(k, str) and k.startswith(OVERRIDE))
        self.zips = sorted(k for k in document if isinstance(k, str) and k.startswith(ZIP))

    def _section(self, key: str) -> Mapping[str, Any]:
        section = self.document[key]
        if not isinstance(section, Mapping):
            raise ConfigError(f"section {key!r} must be a mapping, not {section!r}", where=self.where)
        return section

    def pick(self, selector: str | None) -> Iterator[tuple[str, int | None]]:
        """The keys of the sections that a selector means, each with an index into it or None for all of it."""
        every = sorted(self.overrides + self.zips)
        if selector is None:
            yield from ((key, None) for key in self.overrides + self.zips)
        elif indexed := _INDEXED.fullmatch(selector):
            if indexed[1] not in self.zips:
                raise self._nothing(selector)
            yield indexed[1], int(indexed[2])
        elif _is_glob(selector):
            matching = [key for key in every if fnmatch.fnmatch(key, selector)]
            if not matching:
                raise self._nothing(selector)
            yield from ((key, None) for key in matching)
        elif selector in every:
            yield selector, None
        else:
            raise self._nothing(selector)

    def _nothing(self, selector: str) -> ConfigError:
        available = [*self.overrides, *(f"{key}[i]" for key in self.zips)]
        return ConfigError(
            f"no variant {selector!r}; available: {', '.join(available) or '(only base)'}",
            where=self.where,
            hint=suggest(selector, [*self.overrides, *self.zips]),
        )

    def expand(self, key: str, index: int | None) -> Iterator[Variant]:
        section = self._section(key)
        if key.startswith(OVERRIDE):
            name = key[len(OVERRIDE) :]
            merged = deep_merge(self.base, section)
            if "name" not in section:
                merged["name"] = f"{self.base.get('name', 'unnamed')}_{name}"
            yield Variant(name, key, (key,), merged)
            return
        group, count = key[len(ZIP) :], self._zip_length(key, section)
        if index is not None and index >= count:
            raise ConfigError(
                f"index [{index}] is out of range: {key!r} has {count} variants, 0 to {count - 1}", where=self.where
            )
        for i in range(count) if index is None else (index,):
            merged = deep_merge(self.base, _zip_slice(section, i))
            if not isinstance(section.get("name"), list):  # one name for all would not tell them apart
                merged["name"] = f"{self.base.get('name', 'unnamed')}_{group}_{i}"
            yield Variant(f"{group}_{i}", f"{key}[{i}]", (key,), merged)

    def _zip_length(self, key: str, section: Mapping[str, Any]) -> int:
        lengths = set(_list_lengths(section))
        if not lengths or 0 in lengths:
            raise ConfigError(f"{key!r} holds {'an empty list' if lengths else 'no list'} to zip", where=self.where)
        longer = sorted(lengths - {1})
        if len(longer) > 1:
            raise ConfigError(
                f"{key!r} holds lists of different lengths {longer}; one length, or 1 (taken for all), is possible",
                where=self.where,
            )
        return longer[0] if longer else 1

    def without_collision(self, picked: list[Variant]) -> list[Variant]:
        """Refuse ``zip_override_x[0]`` beside ``override_x_0``: srtctl takes the latter's content for both."""
        for variant in picked:
            twin = OVERRIDE + variant.suffix
            if variant.keys != (twin,) and twin in self.overrides:
                raise ConfigError(
                    f"{variant.selector!r} and {twin!r} have one name for srtctl, which would run {twin!r} for both",
                    where=self.where,
                    hint="rename one of them",
                )
        return picked


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as srtctl does: mappings by key, a ``null`` deletes the key, anything else (lists too) replaces.

    The result shares no mapping or list with either side.
    """
    merged: dict[str, Any] = {}
    for key, value in {**base, **override}.items():  # the base's order, then what is new
        below = base.get(key)
        if key not in override:
            merged[key] = unshared(value)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = deep_merge(below, value)
        elif value is not None:
            merged[key] = unshared(value)
    return merged


def _list_lengths(section: Mapping[str, Any]) -> Iterator[int]:
    for value in section.values():
        if isinstance(value, list):
            yield len(value)
        elif isinstance(value, Mapping):
            yield from _list_lengths(value)


def _zip_slice(section: Mapping[str, Any], index: int) -> dict[str, Any]:
    sliced: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, list):
            sliced[key] = value[0 if len(value) == 1 else index]
        else:
            sliced[key] = _zip_slice(value, index) if isinstance(value, Mapping) else value
    return sliced


def _is_glob(selector: str) -> bool:
    return "*" in selector or "?" in selector


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan", "infinity"])
"""Words that some YAML (1.1, 1.2, or a reader between them) takes for a boolean, null or number."""

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _RecipeDumper(_Dumper):  # type: ignore[misc]
    """The safe dumper, with strings quoted by our own rule."""


def _represent_text(dumper: Any, text: str) -> Any:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _RESERVED
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_RecipeDumper.add_representer(str, _represent_text)


def dump(document: Mapping[str, Any]) -> str:
    """The document as YAML that YAML 1.1 (PyYAML) and 1.2 (ruamel, which srtctl uses as well) read alike.

    Every string but a plain word is quoted: bare, ``4:00:00`` is 14400, ``1e3`` a number to one of them and ``y`` true
    to another. Keys keep their order; no anchors. Raises ConfigError for a value that YAML has no word for.
    """
    try:
        text: str = yaml.dump(
            unshared(document), Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=2**20
        )
    except yaml.representer.RepresenterError as error:
        raise ConfigError(f"the recipe cannot be written as YAML: {error.args}") from None
    return text
