"""Applies edits to a parsed recipe, in place of the bash launchers' `sed -i`.

No function changes its arguments. An edit applies to the whole recipe, whichever variant of its file is submitted: in a
file of the ``base:`` form it changes the base, and every override that has the same key.

Most edits come from runner files. A matrix row adds those of synthetic speculative acceptance, by
``SYNTHETIC_ACCEPTANCE=true`` and ``SYNTHETIC_ACCEPTANCE_LENGTH=<mean accepted length>``: a throughput row then sets how
many draft tokens are accepted instead of measuring it.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError
from launcher.runner.schema import Edit
from launcher.srtctl.recipe import BASE, OVERRIDE, ZIP, unshared_copy

SWITCH, LENGTH = "SYNTHETIC_ACCEPTANCE", "SYNTHETIC_ACCEPTANCE_LENGTH"

_COMMENT = re.compile(r"[A-Za-z0-9_.:/=@+-]+")
_SGLANG = "SGLANG_SIMULATE_ACC_"


def apply_edits(document: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """Apply edits to a recipe file's document, in order. The result shares with ``document`` what no edit changes.

    An edit sets the key at ``path`` (from the top of a resolved recipe) to ``value``, or removes it. A step with ``*``
    matches keys by glob: ``Edit(("backend", "*_environment", "NAME"), "1")`` adds a variable to each environment of the
    recipe. Missing mappings along the path are added, except for a step with ``*``. ``base_form=False`` skips files of
    the ``base:`` form, as `sed` did, whose patterns did not match their deeper indentation.

    Raises ConfigError when an edit cannot change what it finds (a value where a mapping must be, a string that is not
    JSON), and when a ``required`` edit changed nothing.
    """
    result = dict(document)
    for edit in edits:
        if BASE not in result:
            changed = _apply_edit(edit, result, may_add=True)
        elif edit.base_form:
            changed = 0
            for key, section in result.items():
                if isinstance(section, dict) and (key == BASE or str(key).startswith((OVERRIDE, ZIP))):
                    result[key] = copy = dict(section)
                    changed += _apply_edit(edit, copy, may_add=key == BASE, zipped=key.startswith(ZIP))
        else:
            continue
        if edit.required and not changed:
            raise ConfigError(f"the recipe has nothing at {'.'.join(edit.path)} that could be changed")
    return result


def _apply_edit(edit: Edit, root: dict[str, Any], *, may_add: bool, zipped: bool = False) -> int:
    """Apply an edit to one section, which is our copy, and return the number of changed places. ``may_add``: missing
    keys are added."""
    may_add = may_add and not (edit.remove or edit.only_if_present or edit.into_json)
    *above, last = edit.path
    holders = [root]
    for step in above:
        may_add_mapping = may_add and edit.beside is None
        holders = [child for holder in holders for child in _child_mappings(edit, holder, step, may_add_mapping)]
    places = [
        (holder, key)
        for holder in holders
        if edit.beside is None or edit.beside in holder
        for key in _matching_keys(holder, last, may_add)
    ]
    for holder, key in places:
        if edit.remove:
            del holder[key]
        else:
            holder[key] = _new_value(edit, holder.get(key), zipped)
    return len(places)


def _child_mappings(edit: Edit, holder: dict[str, Any], step: str, may_add: bool) -> Iterator[dict[str, Any]]:
    """Replace the mappings one step below ``holder`` by copies, and yield these; with ``may_add`` add a missing one."""
    for key in _matching_keys(holder, step, may_add):
        value = holder.get(key)
        if isinstance(value, dict) or (value is None and may_add and "*" not in step):
            holder[key] = copy = dict(value or {})
            yield copy
        elif may_add and value is not None:
            raise ConfigError(f"{key} on the way to {'.'.join(edit.path)} is {value!r}, not a mapping")


def _matching_keys(holder: dict[str, Any], step: str, may_add: bool) -> list[str]:
    if "*" in step:
        return [key for key in holder if isinstance(key, str) and fnmatch.fnmatchcase(key, step)]
    return [step] if may_add or step in holder else []


def _new_value(edit: Edit, present: Any, zipped: bool) -> Any:
    """The value that replaces ``present``. In a ``zipped`` section a list has one value per variant."""
    if zipped and isinstance(present, list):
        # The length must stay: it is the number of variants.
        return [_new_value(edit, item, False) for item in present]
    if zipped and isinstance(edit.value, list):
        return [_new_value(edit, present, False)]
    if not edit.into_json:
        return unshared_copy(edit.value)
    try:
        parsed = json.loads(present) if isinstance(present, str) else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{'.'.join(edit.path)} is {present!r}, not a JSON object in a string")
    return json.dumps({**parsed, **edit.value}, separators=(",", ":"), ensure_ascii=False)


def with_comment(document: Mapping[str, Any], token: str) -> dict[str, Any]:
    """The recipe with ``sbatch_directives.comment`` set to ``token``, by which the job can be found in Slurm.

    In the ``base:`` form it is set in the base. A comment that the recipe already has is kept, because it has a meaning
    on the cluster (7 recipes of InferenceX exempt their jobs from an idle-GPU reaper that way); the caller must check
    which one the result has.

    srtctl renders the directives as ``#SBATCH --key=value`` (``src/srtctl/templates/job_script_minimal.j2``), from
    517d3c37 and deb1dfd9 (sa-submission-q2-2026) to c88ef731 (v1.0.68). Since v1.0.25 each component of a heterogeneous
    job has the comment.

    Raises ConfigError for a token that a ``#SBATCH`` line would change (blanks, quotes, ``#``).
    """
    if not _COMMENT.fullmatch(token):
        raise ConfigError(f"{token!r} cannot be a job's comment", hint="letters, digits and _.:/=@+- only")
    holder = document.get(BASE, document)
    if not isinstance(holder, Mapping):
        raise ConfigError("section 'base': expected a mapping")
    directives = holder.get("sbatch_directives") or {}
    if not isinstance(directives, Mapping):
        raise ConfigError(f"sbatch_directives: expected a mapping, not {directives!r}")
    commented = {**holder, "sbatch_directives": {**directives, "comment": directives.get("comment", token)}}
    return {**document, BASE: commented} if BASE in document else commented


def acceptance_edits(benchmark: Benchmark, document: Mapping[str, Any]) -> list[Edit]:
    """The edits of synthetic acceptance, if the row asks for it; an evaluation keeps the real draft model.

    Each engine needs other edits, as in InferenceX. Raises ConfigError for invalid settings, for a framework that does
    not support it, and for a recipe that already simulates acceptance. A recipe with nothing to edit is an error in
    `apply_edits`, because a row that asks for synthetic acceptance must not publish numbers of the real one.
    """
    switch = benchmark.settings.get(SWITCH, "false").strip().lower()
    if switch not in ("true", "false"):
        raise ConfigError(f"{SWITCH} is {switch!r}; expected 'true' or 'false'", where=benchmark.source)
    if switch == "false" or benchmark.eval_only:
        return []
    length = _acceptance_length(benchmark)
    if benchmark.framework == "dynamo-vllm":
        value = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
        path = ("backend", "vllm_config", "*", "speculative*config")
        return [Edit(path, value, into_json=True, required=True)]
    if benchmark.framework == "dynamo-sglang":
        if present := next((key for key in _all_keys(document) if key.startswith(_SGLANG)), None):
            raise ConfigError(
                f"the recipe sets {present} itself, and the row asks for {SWITCH}", where=benchmark.source
            )
        variables = {"LEN": f"{length:g}", "METHOD": "match-expected", "TOKEN_MODE": "real-draft-token"}
        return [
            Edit(("backend", "*_environment", _SGLANG + name), value, required=True)
            for name, value in variables.items()
        ]
    raise ConfigError(
        f"{SWITCH} does not work with framework {benchmark.framework}",
        where=benchmark.source,
        hint="it works with dynamo-vllm and dynamo-sglang",
    )


def _acceptance_length(benchmark: Benchmark) -> float:
    text = benchmark.settings.get(LENGTH, "").strip()
    try:
        length = float(text)
    except ValueError:
        length = 0.0
    if not 0 < length < 1000:
        problem = f"is {text!r}" if text else "is not set"
        raise ConfigError(
            f"{LENGTH} {problem}; expected the mean accepted length, as in 2.49",
            where=benchmark.source,
            hint="set it in the row: InferenceX would look it up in a table that it does not have",
        )
    return length


def _all_keys(value: Any) -> Iterator[str]:
    children: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        yield from map(str, value)
        children = value.values()
    for item in children:
        yield from _all_keys(item)
