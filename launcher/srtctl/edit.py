"""Edits of a recipe as data: what the bash launchers did to recipes with `sed -i`, done to the parsed document.

No function changes what it is given. An edit is meant for the whole recipe, whichever variant of its file is submitted:
in a file of the ``base:`` form it is made in the base, and in every override that has the same key.

Runner files ask for most edits. A matrix row asks for those of synthetic speculative acceptance, by
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
from launcher.srtctl.recipe import BASE, OVERRIDE, ZIP, unshared

SWITCH, LENGTH = "SYNTHETIC_ACCEPTANCE", "SYNTHETIC_ACCEPTANCE_LENGTH"

_COMMENT = re.compile(r"[A-Za-z0-9_.:/=@+-]+")
_SGLANG = "SGLANG_SIMULATE_ACC_"


def apply_edits(document: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """A recipe file's document with the edits made, in their order; what no edit touches is the given document's own.

    Sets the key at ``path`` (from the top of a resolved recipe) to ``value``, or removes it. A step with ``*`` stands
    for every key that it matches, so that ``Edit(("backend", "*_environment", "NAME"), "1")`` adds a variable to each
    environment that the recipe has. Mappings that are missing on the way are made, but not for a ``*``.
    ``base_form=False`` leaves files of the ``base:`` form alone, as `sed` did, whose patterns did not match their
    deeper indentation.

    Raises ConfigError when an edit meets something that it cannot change (a value where a mapping must be, a string
    that is not JSON), and for a ``required`` edit that changed nothing.
    """
    result = dict(document)
    for edit in edits:
        if BASE not in result:
            changed = _make(edit, result, adds=True)
        elif edit.base_form:
            changed = 0
            for key, section in result.items():
                if isinstance(section, dict) and (key == BASE or str(key).startswith((OVERRIDE, ZIP))):
                    result[key] = own = dict(section)
                    changed += _make(edit, own, adds=key == BASE, zipped=key.startswith(ZIP))
        else:
            continue
        if edit.required and not changed:
            raise ConfigError(f"the recipe has nothing at {'.'.join(edit.path)} that could be changed")
    return result


def _make(edit: Edit, root: dict[str, Any], *, adds: bool, zipped: bool = False) -> int:
    """Make an edit in one section, which is our copy; how many places changed. Keys that it lacks are added if
    ``adds``."""
    adds = adds and not (edit.remove or edit.only_if_present or edit.into_json)
    *above, last = edit.path
    holders = [root]
    for step in above:
        holders = [found for holder in holders for found in _below(edit, holder, step, adds and edit.beside is None)]
    places = [
        (holder, key)
        for holder in holders
        if edit.beside is None or edit.beside in holder
        for key in _matching(holder, last, adds)
    ]
    for holder, key in places:
        if edit.remove:
            del holder[key]
        else:
            holder[key] = _value(edit, holder.get(key), zipped)
    return len(places)


def _below(edit: Edit, holder: dict[str, Any], step: str, adds: bool) -> Iterator[dict[str, Any]]:
    """The mappings one step below ``holder``, which gets copies of them; a missing one is made if ``adds``."""
    for key in _matching(holder, step, adds):
        found = holder.get(key)
        if isinstance(found, dict) or (found is None and adds and "*" not in step):
            holder[key] = own = dict(found or {})
            yield own
        elif adds and found is not None:
            raise ConfigError(f"{key} on the way to {'.'.join(edit.path)} is {found!r}, not a mapping")


def _matching(holder: dict[str, Any], step: str, add: bool) -> list[str]:
    if "*" in step:
        return [key for key in holder if isinstance(key, str) and fnmatch.fnmatchcase(key, step)]
    return [step] if add or step in holder else []


def _value(edit: Edit, present: Any, zipped: bool) -> Any:
    """The new value in the place of ``present``. In a ``zipped`` section a list holds one value per variant."""
    if zipped and isinstance(present, list):
        # The length stays: it says how many variants there are.
        return [_value(edit, one, False) for one in present]
    if zipped and isinstance(edit.value, list):
        return [_value(edit, present, False)]
    if not edit.into_json:
        return unshared(edit.value)
    try:
        parsed = json.loads(present) if isinstance(present, str) else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{'.'.join(edit.path)} is {present!r}, not a JSON object in a string")
    return json.dumps({**parsed, **edit.value}, separators=(",", ":"), ensure_ascii=False)


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
    holder = document.get(BASE, document)
    if not isinstance(holder, Mapping):
        raise ConfigError("section 'base': expected a mapping")
    directives = holder.get("sbatch_directives") or {}
    if not isinstance(directives, Mapping):
        raise ConfigError(f"sbatch_directives: expected a mapping, not {directives!r}")
    own = {} if "comment" in directives else {"comment": token}
    commented = {**holder, "sbatch_directives": {**directives, **own}}
    return {**document, BASE: commented} if BASE in document else commented


def acceptance_edits(benchmark: Benchmark, document: Mapping[str, Any]) -> list[Edit]:
    """The edits of synthetic acceptance; none for an evaluation, which keeps the real draft model, and none unasked.

    InferenceX edits the recipe's text, in another way for each engine; here the parsed recipe is edited. Raises
    ConfigError for invalid settings, a framework that cannot do it, and a recipe that simulates acceptance already. A
    recipe with nothing to edit is an error when the edits are made (`apply_edits`): a row that asks for synthetic
    acceptance and runs with the real one would publish wrong numbers.
    """
    said = benchmark.settings.get(SWITCH, "false").strip().lower()
    if said not in ("true", "false"):
        raise ConfigError(f"{SWITCH} is {said!r}; expected 'true' or 'false'", where=benchmark.source)
    if said == "false" or benchmark.eval_only:
        return []
    length = _length(benchmark)
    if benchmark.framework == "dynamo-vllm":
        value = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
        path = ("backend", "vllm_config", "*", "speculative*config")
        return [Edit(path, value, into_json=True, required=True)]
    if benchmark.framework == "dynamo-sglang":
        if present := next((key for key in _keys(document) if key.startswith(_SGLANG)), None):
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


def _length(benchmark: Benchmark) -> float:
    said = benchmark.settings.get(LENGTH, "").strip()
    try:
        length = float(said)
    except ValueError:
        length = 0.0
    if not 0 < length < 1000:
        found = f"is {said!r}" if said else "is not set"
        raise ConfigError(
            f"{LENGTH} {found}; expected the mean accepted length, as in 2.49",
            where=benchmark.source,
            hint="set it in the row: InferenceX would look it up in a table that it does not have",
        )
    return length


def _keys(value: Any) -> Iterator[str]:
    below: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        yield from map(str, value)
        below = value.values()
    for item in below:
        yield from _keys(item)
