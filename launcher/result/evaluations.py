"""Checks the files of an evaluation: lm-eval's ``results*.json`` and InferenceX's ``meta_env.json``.

They are read with Python's json, as the workflow's collector reads them. It accepts NaN, which is the standard error of
a single sample. A score of NaN is refused.
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
from launcher.core.reading import prepare_type
from launcher.plan.plan import Expected
from launcher.result.contradictions import model_contradictions, row_contradictions, stand_in_contradictions
from launcher.result.document import UnusableResult, content, refuse_repeated_keys
from launcher.result.evaluation_rows import META, concurrency_of, main_score, refuse_unknown_form, task_scores
from launcher.result.row_fields import finite
from launcher.result.summary_file import Evaluation

RESULTS = "results*.json"
OWN_THRESHOLDS = "utils/evals/thresholds.yaml"
"""Below the workspace: the file that the workflow's own check reads (InferenceX, utils/evals/validate_scores.py)."""

_DEFAULT_THRESHOLD = 0.85
"""The minimum score of a task that has no threshold."""

_SHARES = frozenset({"exact_match", "acc", "acc_norm", "accuracy", "resolved"})
"""Metrics that are shares of the samples, from 0 to 1."""

_NUMBERS = ("score", "score_se", "em_strict", "em_flexible", "n_eff")

_NO_SCORES = frozenset({"alias", "name", "sample_len", "samples", "sample_count"})


class Thresholds(msgspec.Struct, frozen=True):
    """The minimum scores by task: those of a model prefix, and those of all models. ``origin`` is the file."""

    default: dict[str, float] = {}
    models: dict[str, dict[str, float]] = {}
    origin: str = ""

    @classmethod
    def below(cls, workspace: Path) -> Thresholds:
        """The thresholds of the workspace, otherwise those that come with the launcher."""
        for path in (workspace / OWN_THRESHOLDS, Path(__file__).with_name("thresholds.yaml")):
            try:
                if path.is_file() and path.stat().st_size < 1 << 16:
                    thresholds = msgspec.yaml.decode(path.read_bytes(), type=prepare_type(cls))
                    return msgspec.structs.replace(thresholds, origin=OWN_THRESHOLDS)
            except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
                continue
        return cls()

    def tasks(self) -> set[str]:
        """Every task that has a threshold."""
        return {*self.default, *(task for tasks in self.models.values() for task in tasks)}

    def minimum(self, prefix: str, task: str) -> tuple[float, str]:
        """The threshold of a task, and the name of its entry."""
        if task in (of_model := self.models.get(prefix, {})):
            return of_model[task], f"models.{prefix}.{task}"
        if task in self.default:
            return self.default[task], f"default.{task}"
        return _DEFAULT_THRESHOLD, "of any other task"


@dataclass
class EvaluationVerdict:
    """The problems of an evaluation, by file name and of the whole; doubts, which need a person's attention; and the
    scores that its files contain."""

    files: dict[str, list[str]] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def refuse(self, name: str, *problems: str) -> bool:
        """Record the problems of a file, at most four; returns whether there are any."""
        if problems:
            self.files[name] = [f"cannot be believed: {problems[0]}", *problems[1:4]]
        return bool(problems)

    @property
    def problems(self) -> list[str]:
        """All problems, a sentence each."""
        return [*(f"eval: {name} {'; '.join(reasons)}" for name, reasons in self.files.items()), *self.whole]

    def points(self, problems: Sequence[str], requested: Sequence[int]) -> tuple[Evaluation, ...]:
        """The evaluations, and a missing one for each ``requested`` concurrency without any. Where there are
        ``problems``, no evaluation is ok."""
        first = problems[0].removeprefix("eval: ") if problems else None
        points = self.evaluations
        if problems:
            points = [replace(e, state="invalid", reason=first) if e.state == "ok" else e for e in points]
        evaluated = {point.concurrency for point in points}
        missing = [c for c in requested if c not in evaluated] if requested else [] if points else [None]
        reason = first or "there is no result"
        return (*points, *(Evaluation(concurrency, state="missing", reason=reason) for concurrency in missing))


def judge_evaluation(files: Mapping[str, Path], expected: Expected, thresholds: Thresholds) -> EvaluationVerdict:
    """Check the files of one evaluation, by their names. Files of other names are ignored."""
    verdict = EvaluationVerdict()
    documents: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        if name != META and not fnmatch(name, RESULTS):
            continue
        try:
            documents[name] = _read_object(path)
        except UnusableResult as error:
            verdict.files[name] = [str(error)]
    if meta := documents.pop(META, {}):
        stand_ins, row = stand_in_contradictions(meta, expected), row_contradictions(meta, expected, META)
        verdict.refuse(META, *stand_ins, *model_contradictions(meta.get("model"), expected, "model"), *row)
    minimum = partial(thresholds.minimum, str(expected.row.get("infmax_model_prefix", "")))
    of_meta = meta["conc"] if isinstance(meta.get("conc"), int) else None
    for name, document in documents.items():
        stand_ins = stand_in_contradictions(document, expected)
        if not verdict.refuse(name, *stand_ins, *_score_problems(document, expected, thresholds)):
            verdict.doubts += _low_scores(name, document, thresholds.origin, minimum)
        of_name, reason = concurrency_of(name), "; ".join(verdict.files.get(name, ()))
        verdict.evaluations += _evaluations(document, of_meta if of_name is None else of_name, reason, minimum)
    results = [name for name in files if fnmatch(name, RESULTS)]
    verdict.doubts += _repeated_tasks(documents)
    if results and META not in files:
        verdict.doubts.append(f"eval: no {META}, which the workflow's next step reads")
    verdict.whole += [f"eval: {text}" for text in _concurrency_problems(results, meta, expected)]
    return verdict


def _evaluations(
    document: Mapping[str, Any], concurrency: int | None, reason: str, minimum: Callable[[str], tuple[float, str]]
) -> Iterator[Evaluation]:
    """The evaluations in one ``results*.json``; ``reason`` is why they are invalid, "" if they are not."""
    try:
        with refuse_unknown_form(""):
            tasks = [(str(scores["task"]), main_score(scores)) for scores in task_scores(document)]
    except ResultError as error:
        tasks, reason = [], reason or error.message
    for task, scores in tasks:
        numbers = {key: value if finite(value) else None for key, value in scores.items() if key in _NUMBERS}
        yield Evaluation(
            concurrency,
            task,
            "invalid" if reason else "ok",
            reason or None,
            **numbers,
            score_name=scores["score_name"],
            threshold=minimum(task)[0],
            rehearsal=bool(document.get("rehearsal")),
        )
    if not tasks:
        yield Evaluation(concurrency, state="invalid", reason=reason or "it names no task")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content(path), object_pairs_hook=refuse_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise UnusableResult(f"is not a JSON object: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise UnusableResult("is not a JSON object")
    return value


def _tasks(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    results = document.get("results")
    tasks = results.items() if isinstance(results, dict) else ()
    return {str(task): values for task, values in tasks if isinstance(values, dict)}


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one task: ``exact_match,strict-match`` and the like, without their standard errors."""
    names = {key: key.partition(",")[0] for key in values}
    return {
        key: float(values[key])
        for key, name in names.items()
        if name not in _NO_SCORES and not name.endswith("_stderr")
        if isinstance(values[key], int | float) and not isinstance(values[key], bool)
    }


def _score_problems(document: Mapping[str, Any], expected: Expected, thresholds: Thresholds) -> Iterator[str]:
    """The problems of one ``results*.json``."""
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
            yield from _sample_problems(task, samples, values.get("sample_len"), expected)
    for task in configs if isinstance(configs, dict) else ():
        if task not in tasks:
            yield f"it is partial: {task} was configured, and results has nothing of it"
    config = document.get("config")
    limit = config.get("limit") if isinstance(config, dict) else None
    if limit and not expected.part:
        yield f"it is partial: config.limit is {limit!r}, and the plan has no EVAL_LIMIT"


def _models(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The model's names in lm-eval's document, each with its place."""
    yield "model_name", document.get("model_name")
    config = document.get("config")
    arguments = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(arguments, str):
        arguments = dict(pair.partition("=")[::2] for pair in arguments.split(","))
    yield "model of config.model_args", arguments.get("model") if isinstance(arguments, dict) else None


def _repeated_tasks(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each task that several files of one concurrency contain."""
    files: dict[tuple[int | None, str], list[str]] = {}
    for name, document in documents.items():
        for task in _tasks(document):
            files.setdefault((concurrency_of(name), task), []).append(name)
    for (_, task), names in files.items():
        if len(names) > 1:
            yield f"eval: {task} stands in {' and '.join(sorted(names)[:5])}: the workflow counts the newest"


def _sample_problems(task: str, samples: Mapping[str, Any], length: Any, expected: Expected) -> Iterator[str]:
    original, used = samples.get("original"), samples.get("effective")
    if not isinstance(used, int):
        return
    if isinstance(original, int) and used > original:
        yield f"n-samples.{task}.effective is {used}, more than original, which is {original}"
    elif isinstance(length, int) and length != used:
        yield f"n-samples.{task}.effective is {used}, and results.{task}.sample_len is {length}"
    elif used < 1:
        yield f"{task} is empty: n-samples.{task}.effective is {used}"
    elif isinstance(original, int) and used < original and not expected.part:
        yield f"{task} is partial: {used} of {original} samples (n-samples), and the plan has no EVAL_LIMIT"


def _low_scores(
    name: str, document: Mapping[str, Any], origin: str, minimum: Callable[[str], tuple[float, str]]
) -> Iterator[str]:
    """Scores with which the workflow's own check fails. They are doubts: a low score is a valid measurement."""
    for task, values in _tasks(document).items():
        threshold, entry = minimum(task)
        for key, score in _scores(values).items():
            if key.partition(",")[0] in ("exact_match", "resolved") and score < threshold:
                below = f"below {threshold:g} ({entry} in {origin})"
                yield f"eval: {task} {key} is {score:.4g} in {name}, {below}: the workflow's own check fails"


def _concurrency_problems(results: Sequence[str], meta: Mapping[str, Any], expected: Expected) -> Iterator[str]:
    """Concurrencies that were requested and not evaluated, or evaluated and not requested."""
    if failed := meta.get("failed_eval_concs"):
        yield f"failed_eval_concs is {failed!r} in {META}"
    requested: Any = meta.get("eval_concs")
    completed: Any = meta.get("completed_eval_concs")
    lists = isinstance(requested, list) and isinstance(completed, list)
    if lists and (missing := [concurrency for concurrency in requested if concurrency not in completed]):
        text = f"{missing!r} is not in completed_eval_concs ({META})"
        yield f"it is partial: eval_concs is {requested!r}, and {text}"
    if not expected.evaluated or not results:
        return
    of_names = {concurrency for name in results if (concurrency := concurrency_of(name)) is not None}
    of_meta = meta.get("conc")
    evaluated = of_names or ({of_meta} if isinstance(of_meta, int) else set(expected.evaluated))
    for concurrency in sorted(set(expected.evaluated) - evaluated):
        yield f"it is partial: concurrency {concurrency} was asked for, and has no {RESULTS}"
    for concurrency in sorted(evaluated - set(expected.evaluated)):
        planned = " ".join(map(str, expected.evaluated))
        yield f"concurrency {concurrency} was evaluated, and the plan asks for {planned}"
