"""Reads recipes as srtctl does: a file and a selector give variants. Writes a document back as YAML.

A recipe file is either *plain*, or has the ``base:`` form: ``base:`` and sections ``override_<name>:`` and
``zip_override_<name>:`` that are merged into it. The rules are srtctl's own (`generate_override_configs` in
``src/srtctl/core/config.py``, the same at every ref in use, 517d3c37 to c88ef731). This module opens no file.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
import yaml

from launcher.core.errors import ConfigError, suggest
from launcher.core.lines import count_of
from launcher.core.yaml_source import Key

BASE, OVERRIDE, ZIP = "base", "override_", "zip_override_"

_INDEXED = re.compile(r"(zip_override_[\w-]+)\[(\d+)\]")
_SELECTOR = re.compile(r"base|override_\S+|zip_override_[\w-]+(\[\d+\])?")


class Variant(msgspec.Struct, frozen=True):
    """One configuration that a recipe file holds.

    ``suffix`` is what srtctl appends to the name ("" for a plain recipe), ``selector`` the one that picks only this
    variant (None for a plain recipe), ``keys`` the path of its section in the file. ``document`` is the whole resolved
    recipe. It shares parts with the file's document, so it must not be changed in place (`edit.apply_edits` copies).
    """

    suffix: str
    selector: str | None
    keys: tuple[Key, ...]
    document: Mapping[str, Any]

    def places(self, path: Sequence[Key]) -> tuple[tuple[Key, ...], ...]:
        """The paths in the *file* that can set a value of this document; the one that wins comes first."""
        own = (*self.keys, *path)
        return (own, (BASE, *path)) if self.selector not in (None, BASE) else (own,)


def split_selector(config_file: str) -> tuple[str, str | None]:
    """Split ``path[:selector]`` as `srtctl apply -f` does (`parse_config_arg`): at the last colon.

    Raises ConfigError if the text after the colon is not a selector, as in a path that contains a colon.
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
    """The family file and section that replace a missing file: ``DIR.yaml`` and ``override_NAME`` for
    ``DIR/NAME.yaml``.

    Matrices name one file per variant, and one family file in the ``base:`` form holds them all:
    ``…/8k1k/3p2d-dep4-dep8-8k1k.yaml`` is ``…/8k1k.yaml:override_3p2d-dep4-dep8-8k1k``. The caller must check that
    ``path`` is missing and that the family has that section. None for a path without a directory.
    """
    member = PurePosixPath(path)
    family = member.parent
    if not family.name:
        return None
    return str(family.with_name(family.name + member.suffix)), OVERRIDE + member.stem


def variants(document: Mapping[str, Any], selector: str | None = None, *, where: str | None = None) -> list[Variant]:
    """Resolve a recipe file's document to the variants that ``selector`` picks, as srtctl would submit them.

    Without a selector a plain recipe is one variant; the ``base:`` form gives all overrides and zip groups, sorted by
    name, without the base. Raises ConfigError (at ``where``) when the selector picks nothing, when a zip group cannot
    be zipped, and for a selector on a plain recipe: srtctl would ignore it with a warning in its log, and the benchmark
    would not measure what was requested.

    One quirk is not imitated: srtctl submits zip variants through a second merge (`resolve_override_yaml`), which
    restores a key that a ``null`` in a *zip* section deleted, and drops a ``null`` of the base.
    """
    try:
        return _variants(document, selector)
    except ConfigError as error:
        error.where = where
        raise


def _variants(document: Mapping[str, Any], selector: str | None) -> list[Variant]:
    if BASE not in document:
        if selector is not None:
            raise ConfigError(
                f"selector {selector!r} on a plain recipe, which has no 'base' and so no variants",
                hint="remove the selector",
            )
        return [Variant("", None, (), document)]
    base = _section(document, BASE)
    if selector == BASE:
        return [Variant(BASE, BASE, (BASE,), base)]
    picked = [
        variant
        for key, index in _pick_sections(document, selector)
        for variant in _expand(base, key, _section(document, key), index)
    ]
    for variant in picked:
        override = OVERRIDE + variant.suffix
        if variant.keys != (override,) and override in document:
            raise ConfigError(
                f"{variant.selector!r} and {override!r} have one name for srtctl, which would run the latter for both",
                hint="rename one of them",
            )
    return picked


def _section(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = document[key]
    if not isinstance(section, Mapping):
        raise ConfigError(f"section {key!r}: expected a mapping, not {section!r}")
    return section


def _pick_sections(document: Mapping[str, Any], selector: str | None) -> list[tuple[str, int | None]]:
    """The keys of the sections that a selector picks, each with an index into a zip group, or None for all of it."""
    overrides, zips = (sorted(k for k in document if isinstance(k, str) and k.startswith(p)) for p in (OVERRIDE, ZIP))
    sections = [*overrides, *zips]
    if selector is None:
        return [(key, None) for key in sections]
    indexed = _INDEXED.fullmatch(selector)
    if indexed and indexed[1] in zips:
        return [(indexed[1], int(indexed[2]))]
    is_glob = not indexed and _is_glob(selector)
    picked = [key for key in sections if (fnmatch.fnmatch(key, selector) if is_glob else key == selector)]
    if not picked:
        available = [*overrides, *(f"{key}[i]" for key in zips)]
        raise ConfigError(
            f"no variant {selector!r}; available: {', '.join(available) or '(only base)'}",
            hint=suggest(selector, sections),
        )
    return [(key, None) for key in sorted(picked)]


def _expand(base: Mapping[str, Any], key: str, section: Mapping[str, Any], index: int | None) -> Iterator[Variant]:
    """The variants of one section; with ``index`` only that one of a zip group."""
    prefix = base.get("name", "unnamed")
    if key.startswith(OVERRIDE):
        name = key[len(OVERRIDE) :]
        merged = deep_merge(base, section)
        if "name" not in section:
            merged["name"] = f"{prefix}_{name}"
        yield Variant(name, key, (key,), merged)
        return
    group, count = key[len(ZIP) :], _zip_length(key, section)
    if index is not None and index >= count:
        variants = count_of(count, "variant")
        raise ConfigError(f"index [{index}] is out of range: {key!r} has {variants}, 0 to {count - 1}")
    for i in range(count) if index is None else (index,):
        merged = deep_merge(base, _zip_slice(section, i))
        if not isinstance(section.get("name"), list):  # variants need different names
            merged["name"] = f"{prefix}_{group}_{i}"
        yield Variant(f"{group}_{i}", f"{key}[{i}]", (key,), merged)


def _zip_length(key: str, section: Mapping[str, Any]) -> int:
    lengths = set(_list_lengths(section))
    if not lengths or 0 in lengths:
        raise ConfigError(f"{key!r} holds {'an empty list' if lengths else 'no list'} to zip")
    longer = sorted(lengths - {1})
    if len(longer) > 1:
        raise ConfigError(
            f"{key!r} holds lists of different lengths {longer}; expected one length, or 1 (used for all variants)"
        )
    return longer[0] if longer else 1


_SCALARS = frozenset({str, int, float, bool, type(None)})


def unshared_copy(value: Any) -> Any:
    """A deep copy in which no two places share an object; `copy.deepcopy` keeps those of a YAML alias (``*name``)."""
    # A recipe is copied for every row, and most of its values are scalars: no call is made for these.
    if isinstance(value, Mapping):
        return {key: item if type(item) in _SCALARS else unshared_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _SCALARS else unshared_copy(item) for item in value]
    return value


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as srtctl does: mappings by key, a ``null`` deletes the key, anything else (lists too) replaces.

    The result shares values with both arguments.
    """
    merged: dict[str, Any] = {}
    for key, value in {**base, **override}.items():  # keys of the base come first, in their order
        base_value = base.get(key)
        if key in override and isinstance(value, Mapping) and isinstance(base_value, Mapping):
            merged[key] = deep_merge(base_value, value)
        elif key not in override or value is not None:
            merged[key] = value
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


_PLAIN_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan", "infinity"])
"""Words that some YAML reader (1.1, 1.2 or a mixture) takes for a boolean, null or number."""

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _RecipeDumper(_Dumper):  # type: ignore[misc]
    """The safe dumper, with strings quoted by `_represent_text`."""


def _represent_text(dumper: Any, text: str) -> Any:
    plain = _PLAIN_WORD.fullmatch(text) and text.lower() not in _RESERVED
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_RecipeDumper.add_representer(str, _represent_text)


def dump(document: Mapping[str, Any]) -> str:
    """The document as text that YAML 1.1 (PyYAML) and 1.2 (ruamel, which srtctl also uses) read alike.

    Every string except a plain word is quoted: unquoted, ``4:00:00`` is 14400, ``1e3`` a number to one of them, and
    ``y`` true to another. Keys keep their order; no anchors. Raises ConfigError for a value that YAML cannot express.
    """
    try:
        text: str = yaml.dump(
            unshared_copy(document), Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=2**20
        )
    except yaml.representer.RepresenterError as error:
        raise ConfigError(f"cannot be written as YAML: {error.args}") from None
    return text
