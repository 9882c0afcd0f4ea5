"""Whether the files of an evaluation can be believed: lm-eval's ``results*.json`` and InferenceX's ``meta_env.json``.

They are read as those who collect them read them, by Python's json: NaN is taken, since a standard error of one sample
is none. A score that is NaN is none either, and is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import ResultError
from launcher.core.reading import built
from launcher.plan.plan import Expected
from launcher.result.contradictions import model_contradictions, row_contradictions, stand_in_contradictions
from launcher.result.document import UnusableResult, content, refuse_repeated_keys
from launcher.result.evaluation_rows import META, concurrency_of, main_score, refuse_unknown_form, task_scores
from launcher.result.row_fields import finite
from launcher.result.summary_file import Evaluation

RESULTS = "results*.json"
OWN_THRESHOLDS = "utils/evals/thresholds.yaml"
"""Below the workspace: what the workflow's own check reads (InferenceX, utils/evals/validate_scores.py)."""

_OTHERWISE = 0.85
"""The least score of a task that no threshold is about."""

_SHARES = frozenset({"exact_match", "acc", "acc_norm", "accuracy", "resolved"})
"""Metrics that are shares of the samples."""

_NUMBERS = ("score", "score_se", "em_strict", "em_flexible", "n_eff")

_NO_SCORES = frozenset({"alias", "name", "sample_len", "samples", "sample_count"})


class Thresholds(msgspec.Struct, frozen=True):
    """The least scores by task: of a model prefix, and of all. ``origin`` is the file."""

    default: dict[str, float] = {}
    models: dict[str, dict[str, float]] = {}
    origin: str = ""

    @classmethod
    def below(cls, workspace: Path) -> Thresholds:
        """Those of the workspace, else those that are known here."""
        for path in (workspace / OWN_THRESHOLDS, Path(__file__).with_name("thresholds.yaml")):
            try:
                if path.is_file() and path.stat().st_size < 1 << 16:
                    found = msgspec.yaml.decode(path.read_bytes(), type=built(cls))
                    return msgspec.structs.replace(found, origin=OWN_THRESHOLDS)
            except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
                continue
        return cls()

    def tasks(self) -> set[str]:
        """Every task that it is about."""
        return {*self.default, *(task for tasks in self.models.values() for task in tasks)}

    def least(self, prefix: str, task: str) -> tuple[float, str]:
        """The threshold of a task, and which entry it is."""
        if task in (own := self.models.get(prefix, {})):
            return own[task], f"models.{prefix}.{task}"
        return (self.default[task], f"default.{task}") if task in self.default else (_OTHERWISE, "of any other task")


@dataclass
class EvaluationVerdict:
    """What is wrong with an evaluation: by the name of a file, and with the whole; and what a person should see.
    ``evaluations`` are what its files measured."""

    files: dict[str, list[str]] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def refuse(self, name: str, *wrong: str) -> bool:
        """Refuse a file where anything is wrong with it; whether it was."""
        if wrong:
            self.files[name] = [f"cannot be believed: {wrong[0]}", *wrong[1:4]]
        return bool(wrong)

    @property
    def wrong(self) -> list[str]:
        """Everything that is wrong, in sentences."""
        return [*(f"eval: {name} {'; '.join(said)}" for name, said in self.files.items()), *self.whole]

    def points(self, wrong: Sequence[str], asked: Sequence[int]) -> tuple[Evaluation, ...]:
        """What was evaluated, and what was asked for and was not: where anything is ``wrong``, nothing is good."""
        first = wrong[0].removeprefix("eval: ") if wrong else None
        found = [replace(one, state="invalid", reason=first) if wrong and one.state == "ok" else one
                 for one in self.evaluations]  # fmt: skip
        there = {one.concurrency for one in found}
        missing = [one for one in asked if one not in there] if asked else [] if found else [None]
        reason = first or "there is no result"
        return (*found, *(Evaluation(one, state="missing", reason=reason) for one in missing))


def judge_evaluation(files: Mapping[str, Path], expected: Expected, thresholds: Thresholds) -> EvaluationVerdict:
    """Judge the files of one evaluation, by their names; those that it has no word for are let through."""
    judged = EvaluationVerdict()
    documents: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        if name != META and not fnmatch(name, RESULTS):
            continue
        try:
            documents[name] = _object(path)
        except UnusableResult as error:
            judged.files[name] = [str(error)]
    if meta := documents.pop(META, {}):
        marks, row = (
            stand_in_contradictions(meta, expected),
            row_contradictions(meta, expected, META),
        )
        judged.refuse(META, *marks, *model_contradictions(meta.get("model"), expected, "model"), *row)
    least = partial(thresholds.least, str(expected.row.get("infmax_model_prefix", "")))
    said = meta["conc"] if isinstance(meta.get("conc"), int) else None
    for name, document in documents.items():
        marks = stand_in_contradictions(document, expected)
        if not judged.refuse(name, *marks, *_wrong_scores(document, expected, thresholds)):
            judged.doubts += _low_scores(name, document, thresholds.origin, least)
        named, reason = concurrency_of(name), "; ".join(judged.files.get(name, ()))
        judged.evaluations += _evaluations(document, said if named is None else named, reason, least)
    results = [name for name in files if fnmatch(name, RESULTS)]
    judged.doubts += _twice(documents)
    if results and META not in files:
        judged.doubts.append(f"eval: no {META}, which the workflow's next step reads")
    judged.whole += [f"eval: {text}" for text in _wrong_concurrencies(results, meta, expected)]
    return judged


def _evaluations(
    document: Mapping[str, Any], concurrency: int | None, reason: str, least: Callable[[str], tuple[float, str]]
) -> Iterator[Evaluation]:
    """What one ``results*.json`` measured; ``reason`` is why it cannot be believed."""
    try:
        with refuse_unknown_form(""):
            found = [(str(scores["task"]), main_score(scores)) for scores in task_scores(document)]
    except ResultError as error:
        found, reason = [], reason or error.message
    for task, scores in found:
        numbers = {key: value if finite(value) else None for key, value in scores.items() if key in _NUMBERS}
        yield Evaluation(
            concurrency,
            task,
            "invalid" if reason else "ok",
            reason or None,
            **numbers,
            score_name=scores["score_name"],
            threshold=least(task)[0],
            rehearsal=bool(document.get("rehearsal")),
        )
    if not found:
        yield Evaluation(concurrency, state="invalid", reason=reason or "it names no task")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content(path), object_pairs_hook=refuse_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise UnusableResult(f"is not a JSON object: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise UnusableResult("is not a JSON object")
    return found


def _tasks(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = document.get("results")
    tasks = found.items() if isinstance(found, dict) else ()
    return {str(task): value for task, value in tasks if isinstance(value, dict)}


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one task: ``exact_match,strict-match`` and the like, without their standard errors."""
    names = {key: key.partition(",")[0] for key in values}
    return {
        key: float(values[key])
        for key, name in names.items()
        if name not in _NO_SCORES and not name.endswith("_stderr")
        if isinstance(values[key], int | float) and not isinstance(values[key], bool)
    }


def _wrong_scores(document: Mapping[str, Any], expected: Expected, thresholds: Thresholds) -> Iterator[str]:
    """What is wrong with one ``results*.json``."""
    for key, name in _models(document):
        yield from model_contradictions(name, expected, key)
    if not (tasks := _tasks(document)):
        yield "it is empty: results names no task"
        return
    groups, counts, configs = (document.get(key) for key in ("group_subtasks", "n-samples", "configs"))
    known = {*thresholds.tasks(), *expected.tasks}
    if known and not known & tasks.keys():
        yield f"its task is {', '.join(sorted(tasks))[:200]}, and the workflow evaluates {', '.join(sorted(known))}"
    for task, values in tasks.items():
        scores, is_group = _scores(values), isinstance(groups, dict) and bool(groups.get(task))
        if not scores and not is_group:
            yield f"{task} has no score"
        for key, score in scores.items():
            if not math.isfinite(score):
                yield f"{task} {key} is {score}, and no score"
            elif key.partition(",")[0] in _SHARES and not 0 <= score <= 1:
                yield f"{task} {key} is {score:g}, and a share is from 0 to 1"
        samples = counts.get(task) if isinstance(counts, dict) else None
        if isinstance(samples, dict):
            yield from _wrong_samples(task, samples, values.get("sample_len"), expected)
    for task in configs if isinstance(configs, dict) else ():
        if task not in tasks:
            yield f"it is partial: {task} was configured, and results has nothing of it"
    config = document.get("config")
    limit = config.get("limit") if isinstance(config, dict) else None
    if limit and not expected.part:
        yield f"it is partial: config.limit is {limit!r}, and the plan has no EVAL_LIMIT"


def _models(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What lm-eval calls the model, by where it says so."""
    yield "model_name", document.get("model_name")
    config = document.get("config")
    given = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(given, str):
        given = dict(pair.partition("=")[::2] for pair in given.split(","))
    yield "model of config.model_args", given.get("model") if isinstance(given, dict) else None


def _twice(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Tasks that several files of one concurrency have."""
    files: dict[tuple[int | None, str], list[str]] = {}
    for name, document in documents.items():
        for task in _tasks(document):
            files.setdefault((concurrency_of(name), task), []).append(name)
    for (_, task), names in files.items():
        if len(names) > 1:
            yield f"eval: {task} stands in {' and '.join(sorted(names)[:5])}: the workflow counts the newest"


def _wrong_samples(task: str, samples: Mapping[str, Any], length: Any, expected: Expected) -> Iterator[str]:
    whole, used = samples.get("original"), samples.get("effective")
    if not isinstance(used, int):
        return
    if isinstance(whole, int) and used > whole:
        yield f"n-samples.{task}.effective is {used}, more than original, which is {whole}"
    elif isinstance(length, int) and length != used:
        yield f"n-samples.{task}.effective is {used}, and results.{task}.sample_len is {length}"
    elif used < 1:
        yield f"{task} is empty: n-samples.{task}.effective is {used}"
    elif isinstance(whole, int) and used < whole and not expected.part:
        yield f"{task} is partial: {used} of {whole} samples (n-samples), and the plan has no EVAL_LIMIT"


def _low_scores(
    name: str, document: Mapping[str, Any], origin: str, bound: Callable[[str], tuple[float, str]]
) -> Iterator[str]:
    """Scores with which the workflow's own check fails. A low score is a measurement, and that check decides."""
    for task, values in _tasks(document).items():
        least, entry = bound(task)
        for key, score in _scores(values).items():
            if key.partition(",")[0] in ("exact_match", "resolved") and score < least:
                said = f"{least:g} ({entry} in {origin})"
                yield f"eval: {task} {key} is {score:.4g} in {name}, below {said}: the workflow's own check fails"


def _wrong_concurrencies(results: Sequence[str], meta: Mapping[str, Any], expected: Expected) -> Iterator[str]:
    """Concurrencies that were asked for and not evaluated, or evaluated and not asked for."""
    if failed := meta.get("failed_eval_concs"):
        yield f"failed_eval_concs is {failed!r} in {META}"
    asked, done = meta.get("eval_concs"), meta.get("completed_eval_concs")
    if isinstance(asked, list) and isinstance(done, list) and (missing := [c for c in asked if c not in done]):
        yield f"it is partial: eval_concs is {asked!r}, and {missing!r} is not in completed_eval_concs ({META})"
    if not expected.evaluated or not results:
        return
    named = {at for name in results if (at := concurrency_of(name)) is not None}
    said = meta.get("conc")
    evaluated = named or ({said} if isinstance(said, int) else set(expected.evaluated))
    for concurrency in sorted(set(expected.evaluated) - evaluated):
        yield f"it is partial: concurrency {concurrency} was asked for, and has no {RESULTS}"
    for concurrency in sorted(evaluated - set(expected.evaluated)):
        asked_for = " ".join(map(str, expected.evaluated))
        yield f"concurrency {concurrency} was evaluated, and the plan asks for {asked_for}"
