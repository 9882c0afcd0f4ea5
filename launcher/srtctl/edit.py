"""Edits of a recipe as data: what the bash launchers did to recipes with `sed -i`, done to the parsed document.

No function changes what it is given. An edit is meant for the whole recipe, whichever variant of its file is submitted:
in a file of the ``base:`` form it is made in the base, and in every override that has the same key.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.core.errors import ConfigError
from launcher.runner.schema import Edit as Edit
from launcher.srtctl.recipe import BASE, OVERRIDE, ZIP, unshared

_COMMENT = re.compile(r"[A-Za-z0-9_.:/=@+-]+")


def apply_edits(document: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """A deep copy of a recipe file's document with the edits made, in their order.

    Sets the key at ``path`` (from the top of a resolved recipe) to ``value``, or removes it. A step with ``*`` stands
    for every key that it matches, so that ``Edit(("backend", "*_environment", "NAME"), "1")`` adds a variable to each
    environment that the recipe has. Mappings that are missing on the way are made, but not for a ``*``.
    ``base_form=False`` leaves files of the ``base:`` form alone, as `sed` did, whose patterns did not match their
    deeper indentation.

    Raises ConfigError when an edit meets something that it cannot change (a value where a mapping must be, a string
    that is not JSON), and for a ``required`` edit that changed nothing.
    """
    result: dict[str, Any] = unshared(document)
    for edit in edits:
        if BASE not in result:
            changed = _make(edit, result, adds=True)
        elif edit.base_form:
            changed = sum(
                _make(edit, result[key], adds=key == BASE, zipped=key.startswith(ZIP)) for key in _sections(result)
            )
        else:
            continue
        if edit.required and not changed:
            raise ConfigError(f"the recipe has nothing at {'.'.join(edit.path)} that could be changed")
    return result


def with_comment(document: Mapping[str, Any], token: str) -> dict[str, Any]:
    """The recipe with ``sbatch_directives.comment`` set to ``token``: by it Slurm can be asked whether it has the job.

    In the ``base:`` form it is set in the base. A comment that the recipe has already stays, because it means something
    to the cluster (7 recipes of InferenceX exempt their jobs from an idle-GPU reaper that way); the caller has to look
    which one the result has.

    srtctl renders the directives as ``#SBATCH --key=value`` (``src/srtctl/templates/job_script_minimal.j2``), from
    517d3c37 and deb1dfd9 (sa-submission-q2-2026) to c88ef731 (v1.0.68). From v1.0.25 on, the comment stands once per
    component of a heterogeneous job.

    Raises ConfigError for a token that a ``#SBATCH`` line would not carry as it is (blanks, quotes, ``#``).
    """
    if not _COMMENT.fullmatch(token):
        raise ConfigError(f"{token!r} cannot be a job's comment", hint="letters, digits and _.:/=@+- only")
    if BASE not in document:
        return _commented(document, token)
    if not isinstance(document[BASE], Mapping):
        raise ConfigError("section 'base': expected a mapping")
    return {**document, BASE: _commented(document[BASE], token)}


def _commented(holder: Mapping[str, Any], token: str) -> dict[str, Any]:
    directives = holder.get("sbatch_directives") or {}
    if not isinstance(directives, Mapping):
        raise ConfigError(f"sbatch_directives: expected a mapping, not {directives!r}")
    own = {} if "comment" in directives else {"comment": token}
    return {**holder, "sbatch_directives": {**directives, **own}}


def _sections(document: Mapping[str, Any]) -> list[str]:
    """The keys of the sections of a file of the ``base:`` form."""
    return [
        key
        for key, value in document.items()
        if isinstance(value, dict) and isinstance(key, str) and (key == BASE or key.startswith((OVERRIDE, ZIP)))
    ]


def _make(edit: Edit, root: dict[str, Any], *, adds: bool, zipped: bool = False) -> int:
    """Make an edit in one section; how many places changed. Keys that the section lacks are added if ``adds``.

    In a ``zipped`` section a list holds one value per variant.
    """
    adds = adds and not (edit.remove or edit.only_if_present or edit.into_json)
    *above, last = edit.path
    holders = [root]
    for step in above:
        holders = [found for holder in holders for found in _below(edit, holder, step, adds and edit.beside is None)]
    changed = 0
    for holder in holders:
        if edit.beside is None or edit.beside in holder:
            for key in _matching(holder, last, adds):
                _change(edit, holder, key, zipped)
                changed += 1
    return changed


def _below(edit: Edit, holder: dict[str, Any], step: str, adds: bool) -> Iterator[dict[str, Any]]:
    """The mappings one step below ``holder``; a missing one is made if ``adds``."""
    for key in _matching(holder, step, adds):
        found = holder.get(key)
        if found is None and adds and "*" not in step:
            found = holder[key] = {}
        if isinstance(found, dict):
            yield found
        elif adds and found is not None:
            raise ConfigError(f"{key} on the way to {'.'.join(edit.path)} is {found!r}, not a mapping")


def _change(edit: Edit, holder: dict[str, Any], key: str, zipped: bool) -> None:
    if edit.remove:
        del holder[key]
        return
    present = holder.get(key)
    if zipped and isinstance(present, list):
        # The length stays: it says how many variants there are.
        holder[key] = [_changed(edit, one) for one in present]
    elif zipped and isinstance(edit.value, list):
        holder[key] = [_changed(edit, present)]
    else:
        holder[key] = _changed(edit, present)


def _matching(holder: dict[str, Any], step: str, add: bool) -> list[str]:
    if "*" in step:
        return [key for key in holder if isinstance(key, str) and fnmatch.fnmatchcase(key, step)]
    return [step] if add or step in holder else []


def _changed(edit: Edit, present: Any) -> Any:
    """The new value in the place of ``present``."""
    if not edit.into_json:
        return unshared(edit.value)
    try:
        parsed = json.loads(present) if isinstance(present, str) else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{'.'.join(edit.path)} is {present!r}, not a JSON object in a string")
    return json.dumps({**parsed, **edit.value}, separators=(",", ":"), ensure_ascii=False)
