"""Edits of a recipe as data: what the bash launchers did to recipes with `sed -i`, done to the parsed document.

Pure: no function changes what it is given. An edit means the recipe, whichever variant of its file is submitted: in a
file of the ``base:`` form it reaches the base and every override that says the same key.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.core.errors import ConfigError

_COMMENT = re.compile(r"[A-Za-z0-9_.:/=@+-]+")


@dataclass(frozen=True, slots=True)
class Edit:
    """Set the key at ``path`` (from the top of a resolved recipe) to ``value``, or ``remove`` it.

    A step with ``*`` stands for every key that it matches, so that
    ``Edit(("backend", "*_environment", "NAME"), "1")`` adds a variable to each environment that the recipe has. Missing
    mappings on the way are made, but not for a ``*``. Variations of setting:

    - ``only_if_present``: only where the key is said already;
    - ``beside``: only in mappings that have that key as well;
    - ``into_json``: where the key is said, as a string that holds a JSON object, merge the mapping ``value`` into it.

    ``base_form=False`` leaves files of the ``base:`` form alone, as line-based `sed` did, whose patterns did not match
    their deeper indentation. With ``required``, changing nothing is an error.
    """

    path: tuple[str, ...]
    value: Any = None
    remove: bool = False
    only_if_present: bool = False
    beside: str | None = None
    into_json: bool = False
    base_form: bool = True
    required: bool = False

    @property
    def needs_key(self) -> bool:
        """Whether the edit can only change what is there."""
        return self.remove or self.only_if_present or self.into_json


_PLAIN = frozenset({str, int, float, bool, type(None)})


def unshared(value: Any) -> Any:
    """A deep copy in which no two places are one object, as `copy.deepcopy` would keep YAML aliases (``*name``)."""
    # Most values are plain, and a recipe is copied for every row: hence the looks before the calls.
    if isinstance(value, Mapping):
        return {key: item if type(item) in _PLAIN else unshared(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _PLAIN else unshared(item) for item in value]
    return value


def apply_edits(document: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """A deep copy of a recipe file's document with the edits made, in their order.

    Raises ConfigError when an edit meets something that it cannot change (a value where a mapping must be, a string
    that is not JSON), and for a ``required`` edit that changed nothing.
    """
    result: dict[str, Any] = unshared(document)
    for edit in edits:
        if "base" not in result:
            changed = _Site(result).make(edit)
        elif edit.base_form:
            changed = sum(site.make(edit) for site in _sites(result))
        else:
            continue
        if edit.required and not changed:
            raise ConfigError(f"the recipe has nothing at {'.'.join(edit.path)} that could be changed")
    return result


def with_comment(document: Mapping[str, Any], token: str) -> dict[str, Any]:
    """The recipe with ``sbatch_directives.comment`` set to ``token``: by it Slurm can be asked whether it has the job.

    In the ``base:`` form it is set in the base. A comment that the recipe has stays, for it means something to the
    cluster (7 recipes of InferenceX exempt their jobs from an idle-GPU reaper that way): look at the result.

    srtctl renders the directives as ``#SBATCH --key=value`` (``src/srtctl/templates/job_script_minimal.j2``) at every
    ref looked at; none lacks it: 517d3c37, 758becd9, deb1dfd9 (sa-submission-q2-2026), a98738de, c1fb6989, v1.0.25 to
    v1.0.53, c180328b (v1.0.38), c88ef731 (v1.0.68). From v1.0.25 on, it stands once per component of a heterogeneous
    job.

    Raises ConfigError for a token that a ``#SBATCH`` line would not carry as it is (blanks, quotes, ``#``).
    """
    if not _COMMENT.fullmatch(token):
        raise ConfigError(f"{token!r} cannot be a job's comment", hint="letters, digits and _.:/=@+- only")
    if "base" not in document:
        return _commented(document, token)
    if not isinstance(document["base"], Mapping):
        raise ConfigError("section 'base' must be a mapping")
    return {**document, "base": _commented(document["base"], token)}


def _commented(holder: Mapping[str, Any], token: str) -> dict[str, Any]:
    directives = holder.get("sbatch_directives") or {}
    if not isinstance(directives, Mapping):
        raise ConfigError(f"sbatch_directives must be a mapping, not {directives!r}")
    own = {} if "comment" in directives else {"comment": token}
    return {**holder, "sbatch_directives": {**directives, **own}}


def _sites(document: dict[str, Any]) -> Iterator[_Site]:
    for key, section in document.items():
        if isinstance(section, dict) and (key == "base" or str(key).startswith(("override_", "zip_override_"))):
            yield _Site(section, zipped=str(key).startswith("zip_"), first=key == "base")


@dataclass(frozen=True, slots=True)
class _Site:
    """A mapping in which an edit is made. Only the first (a plain recipe, or the base) gets keys it did not have."""

    root: dict[str, Any]
    zipped: bool = False
    first: bool = True

    def make(self, edit: Edit) -> int:
        """Make the edit here; how many places changed."""
        add = self.first and not edit.needs_key
        *above, last = edit.path
        changed = 0
        for holder in self._mappings(self.root, above, add and edit.beside is None, edit.path):
            if edit.beside is not None and edit.beside not in holder:
                continue
            for key in _matching(holder, last, add):
                self._change(edit, holder, key)
                changed += 1
        return changed

    def _mappings(
        self, holder: dict[str, Any], steps: list[str], add: bool, path: tuple[str, ...]
    ) -> Iterator[dict[str, Any]]:
        if not steps:
            yield holder
            return
        for key in _matching(holder, steps[0], add):
            below = holder.get(key)
            if below is None and add and "*" not in steps[0]:
                below = holder[key] = {}
            if isinstance(below, dict):
                yield from self._mappings(below, steps[1:], add, path)
            elif add and below is not None:
                raise ConfigError(f"{key} on the way to {'.'.join(path)} is {below!r}, not a mapping")

    def _change(self, edit: Edit, holder: dict[str, Any], key: str) -> None:
        present: Any = holder.get(key)
        if edit.remove:
            del holder[key]
        elif edit.into_json:
            several = self.zipped and isinstance(present, list)
            holder[key] = [_updated(one, edit) for one in present] if several else _updated(present, edit)
        elif self.zipped and isinstance(present, list):
            # a list of a zip group is one value per variant: its length says how many there are
            holder[key] = [unshared(edit.value) for _ in present]
        else:
            wrapped = self.zipped and isinstance(edit.value, list)
            holder[key] = [unshared(edit.value)] if wrapped else unshared(edit.value)


def _matching(holder: dict[str, Any], step: str, add: bool) -> list[str]:
    if "*" in step:
        return [key for key in holder if isinstance(key, str) and fnmatch.fnmatchcase(key, step)]
    return [step] if add or step in holder else []


def _updated(said: Any, edit: Edit) -> str:
    try:
        parsed = json.loads(said) if isinstance(said, str) else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{'.'.join(edit.path)} is {said!r}, not a JSON object in a string")
    return json.dumps({**parsed, **edit.value}, separators=(",", ":"), ensure_ascii=False)
