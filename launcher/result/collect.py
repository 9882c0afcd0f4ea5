"""Collecting: a job's results into the directory where the workflow looks, under the names that the workflow uses.

The next step of the workflow takes every file that exists for a result. So nothing is taken from another job or run,
no file of another run is overwritten, and no invalid result is published. Everything is checked before anything is
written.
"""

from __future__ import annotations

import fnmatch
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.benchmark.benchmark import agentic_result_name, fixed_result_name, is_counted
from launcher.core.errors import ResultError
from launcher.core.publish import NAME_MAX, publish_new, temporary_name
from launcher.core.reading import sha256_of
from launcher.core.terminal import one_line
from launcher.core.waiting import until
from launcher.plan.plan import Expected
from launcher.result.contradictions import Window
from launcher.result.document import UnusableResult
from launcher.result.logs import log_files
from launcher.result.validate import MeasuredPoint, ResultFileName, read_agentic_result, read_result

if TYPE_CHECKING:
    from launcher.result.summary_file import Evaluation

_RETRY_INTERVAL = 5.0


@dataclass(frozen=True)
class CollectRequest:
    """What to collect.

    ``logs_dir`` is ``outputs/<job id>/logs`` of our job, ``workspace`` the directory where the workflow looks.
    ``expected`` says what was requested; results are checked against it. ``started`` is when the run began (Unix
    seconds): older files belong to another run. ``agentic_source`` is where the job writes
    ``<result_filename>_conc<N>.json``; None means the workspace. ``published`` maps the names of files that an earlier
    collection of this run published to their sha256, as its record has them. ``patience`` is the number of seconds to
    wait for results that are missing or invalid: NFS can show a file, or its end, up to a minute late.
    ``there_before`` maps files of the source that existed before the job was submitted to their times
    (`modification_times`): a file that has not changed since is not this job's. ``name`` computes the name of a fixed
    result in the workspace from its directory and file name; None means the names of srtctl's jobs.
    """

    logs_dir: Path
    workspace: Path
    expected: Expected
    job_id: str
    started: float
    agentic_source: Path | None = None
    published: Mapping[str, str] = field(default_factory=dict)
    patience: float = 0.0
    there_before: Mapping[str, int] = field(default_factory=dict)
    name: Callable[[str, ResultFileName], str] | None = None

    def named(self, folder: str, name: ResultFileName) -> str:
        """What a fixed result is called in the workspace."""
        if self.name is not None:
            return self.name(folder, name)
        return fixed_result_name(self.expected.filename, folder, name.concurrency, name.gpus, name.split)

    def window(self) -> Window:
        """The time in which results were made."""
        return Window(self.started, time.time(), self.expected.limits.clock_skew)


@dataclass(frozen=True)
class Problem:
    """A result that was asked for, and is missing or not believable."""

    text: str
    concurrency: int | None = None
    kind: Literal["missing", "invalid"] = "missing"

    def __str__(self) -> str:
        text = one_line(self.text)  # names of a job's files are in it
        return text if self.concurrency is None else f"concurrency {self.concurrency}: {text}"


@dataclass(frozen=True)
class CollectedResults:
    """What was collected. ``published`` (name in the workspace to sha256) belongs into the run's record.

    ``problems`` make the run fail; ``doubts`` are for a person to look at.
    """

    points: tuple[MeasuredPoint, ...] = ()
    problems: tuple[Problem, ...] = ()
    doubts: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()

    def raise_if_bad(self, hint: str | None = None) -> None:
        """Raise ResultError listing every problem, when there is one; ``hint`` says where the job's logs are."""
        if self.problems:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            are = "is" if len(self.problems) == 1 else "are"
            count = len(self.problems)
            raise ResultError(f"{count} of the results asked for {are} missing or invalid:\n{listed}", hint=hint)


@dataclass
class ResultScan:
    """What one look found; ``files`` are to be published: name in the workspace to source and sha256."""

    points: dict[int, MeasuredPoint] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Files of evaluations that cannot be believed."""
    evaluations: tuple[Evaluation, ...] = ()

    def add(self, target: str, source: Path) -> None:
        """Take a file. Raises ResultError when a file of other content has that name already."""
        digest = sha256_of(source)
        known, other = self.files.setdefault(target, (source, digest))
        if other != digest:
            raise ResultError(
                f"two results would both be {target}: {known} and {source}",
                hint="the job wrote one result twice: correct the recipe",
            )

    def evaluate(self, files: Mapping[str, Path], expected: Expected, workspace: Path, others: Iterable[str]) -> None:
        """Judge the files of an evaluation; ``others`` is what else is wrong with it. After a benchmark they are extra,
        as in srt-slurm (do_sweep.py): what is wrong is then a doubt. Of an evaluation that cannot be believed no
        ``results*.json`` is published."""
        from launcher.result.evaluations import RESULTS, Thresholds, judge_evaluation  # most jobs have none

        judged = judge_evaluation(files, expected, Thresholds.below(workspace))
        bad = [*judged.wrong, *others]
        results = {name for name in files if fnmatch.fnmatch(name, RESULTS)}
        self.refused = {*judged.files, *(results if judged.wrong else ())}
        self.doubts += judged.doubts
        self.evaluations = judged.points(bad, expected.evaluated)
        if expected.mode == "eval":
            known = {f"eval: {problem.text}" for problem in self.problems}
            self.problems += [Problem(text, kind="invalid") for text in bad if text not in known]
        else:
            self.doubts += bad


def collect(request: CollectRequest, *, sleep: Callable[[float], None] = time.sleep) -> CollectedResults:
    """Collect the results and the eval files; `launcher.result.logs.keep_logs` keeps the logs.

    Missing and invalid results are reported in ``problems``. Raises ResultError, with nothing written, when the request
    cannot be met as it is: a logs directory of another job, a name longer than 255 bytes, two results of one name, a
    file of another run in the way; and when a result cannot be written.
    """
    if not request.expected.filename or "/" in request.expected.filename:
        raise ResultError(f"{request.expected.filename!r} cannot begin a file name")
    if request.logs_dir.resolve().parent.name != request.job_id:
        raise ResultError(
            f"these are not the logs of job {request.job_id}",
            where=str(request.logs_dir),
            hint="results are only taken from outputs/<job id>/logs",
        )
    if not request.workspace.is_dir():
        raise ResultError("no such directory", where=str(request.workspace))
    found = scan_until_complete(lambda: _look(request), request.patience, sleep)
    doubts = [*found.doubts, *(f"concurrency {at}: {doubt}" for at, p in found.points.items() for doubt in p.doubts)]
    for name, (_, digest) in found.files.items():
        _check_target(request.workspace / name, digest, request.published.get(name))
        if request.expected.mode == "fixed" and len(os.fsencode(f"agg_{name}")) > NAME_MAX:
            doubts.append(f"agg_{name} is longer than {NAME_MAX} bytes: process_result.py cannot write it")
    for name, (source, digest) in found.files.items():
        _publish(source, request.workspace / name, digest, request.published.get(name))
    return CollectedResults(
        points=tuple(found.points[at] for at in sorted(found.points)),
        problems=tuple(found.problems),
        doubts=tuple(doubts),
        published={**request.published, **{name: digest for name, (_, digest) in found.files.items()}},
        evaluations=found.evaluations,
    )


def scan_until_complete(look: Callable[[], ResultScan], patience: float, sleep: Callable[[float], None]) -> ResultScan:
    """Look, and while there are problems again for ``patience`` seconds: NFS can show a file, or its end, late."""
    pauses = [_RETRY_INTERVAL] * math.ceil(patience / _RETRY_INTERVAL)
    return until(lambda found: not found.problems, look, pauses, sleep=sleep)


def _look(request: CollectRequest) -> ResultScan:
    found, expected = ResultScan(), request.expected
    try:
        if expected.mode == "fixed":
            _look_fixed(request, found)
        elif expected.mode == "agentic":
            _look_agentic(request, found)
        if expected.run_eval or expected.mode == "eval":
            _look_eval(request, found)
        # What is asked for where the job itself gives it: one that is not good is a problem already.
        asked = (agentic_result_name(expected.filename, at) for at in expected.concurrencies)
        ours = {*found.files, *request.published, *asked}
        others = foreign_files(request.workspace, expected.filename, expected.mode, ours, request.started)
        found.problems += [Problem(text) for text in others]
    except OSError as error:
        found.problems.append(Problem(f"{error.filename} cannot be read: {error.strerror}"))
    return found


def _look_fixed(request: CollectRequest, found: ResultScan) -> None:
    """Results of sa-bench: every ``results_concurrency_*.json`` below the directories ``*isl*osl*`` of the logs."""
    valid: dict[int, dict[str, MeasuredPoint]] = {}
    rejected: dict[int, list[str]] = {}
    window, expected = request.window(), request.expected
    for folder in sorted(request.logs_dir.glob("*isl*osl*")):
        for path, status in () if folder.is_symlink() else log_files(folder):
            if (name := ResultFileName.parse(path.name)) is None:
                continue
            at, shown = name.concurrency, path.relative_to(request.logs_dir)
            if (said := window.time_problem(status.st_mtime, str(shown))) is None:
                try:
                    point = read_result(path, at, expected, window)
                except UnusableResult as wrong:
                    said = f"{shown}: {wrong}"
            if said is not None:
                rejected.setdefault(at, []).append(said)
                continue
            target = request.named(folder.name, name)
            found.add(target, path)
            valid.setdefault(at, {}).setdefault(target, point)
    for at in sorted(valid):
        if len(valid[at]) == 1:
            found.points[at] = next(iter(valid[at].values()))
            continue
        for target in valid[at]:
            del found.files[target]
        names = " and ".join(sorted(point.path.name for point in valid[at].values()))
        rejected.setdefault(at, []).append(f"measured twice, {names}: it is not known which one counts")
    for at in expected.concurrencies:
        if at not in found.points and at in rejected:
            found.problems.append(Problem("; ".join(rejected.pop(at)), at, "invalid"))
        elif at not in found.points:
            found.problems.append(Problem(f"no result below {request.logs_dir}", at))
    found.doubts += [f"concurrency {at} was not asked for" for at in found.points if at not in expected.concurrencies]
    found.doubts += [reason for reasons in rejected.values() for reason in reasons]


def _look_agentic(request: CollectRequest, found: ResultScan) -> None:
    """Agentic results, which the job itself leaves under the names of the workflow."""
    window, expected = request.window(), request.expected
    if expected.gpus is not None and expected.held not in (None, sum(expected.gpus)):
        counts = f"the row counts {sum(expected.gpus)} GPUs, by which tokens/s/GPU is divided"
        found.doubts.append(f"{counts}, and the recipe's workers have {expected.held}")
    source = request.agentic_source or request.workspace
    for at in expected.concurrencies:
        path = source / agentic_result_name(expected.filename, at)
        if not path.exists():
            found.problems.append(Problem(f"no result at {path}", at))
            continue
        status, said = path.stat(), None
        if not path.resolve().is_relative_to(source.resolve()):
            said = f"{path} leads to {path.resolve()}, out of it"
        elif request.there_before.get(path.name) == status.st_mtime_ns:
            said = f"{path} lay there before this run's job was submitted, and has not changed since"
        elif (said := window.time_problem(status.st_mtime, str(path))) is None:
            try:
                found.points[at] = read_agentic_result(path, at, expected, window)
                found.add(path.name, path)
            except UnusableResult as wrong:
                said = f"{path}: {wrong}"
        if said is not None:
            found.problems.append(Problem(said, at, "invalid"))


def foreign_files(workspace: Path, stem: str, mode: str, ours: Collection[str], since: float) -> list[str]:
    """Files that the workflow's next steps would count as results of this run, and that are not ``ours``; a sentence
    each. What those steps made themselves, after ``since``, is none. Raises OSError.

    Such a file is refused, and neither moved nor removed: whose it is and what it is worth is not known here. What was
    measured is kept, so that `launcher collect` makes the run whole once somebody has looked.
    """
    found = []
    for path in sorted(workspace.iterdir()):
        if path.name in ours or not is_counted(path.name, stem, mode):
            continue
        if not path.name.startswith("agg_") or path.lstat().st_mtime < since:
            text = "is in the workspace, is no result that this run was asked for, and the workflow would count it"
            found.append(f"{path.name} {text}")
    return found


def refuse_foreign_files(workspace: Path, expected: Expected) -> None:
    """The same before a job is submitted, when nothing there is this run's: its GPUs would be held for nothing.

    Raises ResultError. What the job itself will write anew is let through.
    """
    names = {agentic_result_name(expected.filename, at) for at in expected.concurrencies}
    try:
        others = foreign_files(workspace, expected.filename, expected.mode, names, math.inf)
    except OSError as error:
        raise ResultError(f"the workspace cannot be read: {error.strerror}", where=str(workspace)) from None
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        hint = "move it away: it is of another row, job or run"
        raise ResultError(f"{others[0]}{more}", where=str(workspace), hint=hint)


def modification_times(directory: Path, names: Iterable[str]) -> dict[str, int]:
    """The files of these names with their times (nanoseconds), for `CollectRequest.there_before`."""
    return {name: path.stat().st_mtime_ns for name in names if (path := directory / name).is_file()}


def _look_eval(request: CollectRequest, found: ResultScan) -> None:
    """Eval files, where srt-slurm leaves them."""
    from launcher.result.evaluations import RESULTS

    folder, window, expected = request.logs_dir / "eval_results", request.window(), request.expected
    files = [] if folder.is_symlink() else [entry for entry in log_files(folder) if entry[0].parent == folder]
    times = {path.name: window.time_problem(status.st_mtime, path.name) for path, status in files}
    fresh = {path.name: path for path, _ in sorted(files) if times[path.name] is None}
    wrong = []
    if not any(fnmatch.fnmatch(name, RESULTS) for name in fresh):
        stale = next((said for name, said in times.items() if said and fnmatch.fnmatch(name, RESULTS)), None)
        wrong.append(f"eval: no {RESULTS} in {folder}" + (f": {stale}" if stale else ""))
    found.evaluate(fresh, expected, request.workspace, wrong)
    for name, path in fresh.items():
        if name not in found.refused:
            found.add(name, path)
    if expected.mode != "eval":
        ours = found.files.keys() | request.published.keys()
        found.doubts += foreign_files(request.workspace, expected.filename, "eval", ours, request.started)


def _check_target(target: Path, digest: str, ours: str | None) -> None:
    """Check that a file of sha256 ``digest`` may be published as ``target``; ``ours`` is the sha256 of what this run
    published there before. Raises ResultError when the name is too long or another run's file has it."""
    length = len(os.fsencode(target.name))
    if length > NAME_MAX:
        raise ResultError(
            f"the name of a result is {length} bytes long, and a file name may have {NAME_MAX}: {target.name}",
            hint="shorten EXP_NAME or the runner's name, of which the workflow makes RESULT_FILENAME",
        )
    if not target.is_symlink() and not target.exists():
        return
    try:
        same = target.is_file() and sha256_of(target) in (digest, ours)
    except OSError as error:
        raise ResultError(f"the file of this name cannot be read: {error.strerror}", where=str(target)) from None
    if not same:
        raise ResultError(
            f"a file of another run is in the way: {target.name}",
            where=str(target),
            hint="remove it, or collect into an empty workspace",
        )


def _publish(source: Path, target: Path, digest: str, ours: str | None) -> None:
    """Publish a copy of ``source``, which must still have the ``digest`` that was checked, as ``target``.

    Raises ResultError when it changed, when another run's file came in the way, and when it cannot be written.
    """
    _check_target(target, digest, ours)
    temporary, replaces = temporary_name(target), target.exists()
    try:
        if replaces and sha256_of(target) == digest:
            return
        shutil.copyfile(source, temporary)
        if sha256_of(temporary) != digest:
            hint = "does the job still run?"
            raise ResultError("a result changed while it was collected", where=str(source), hint=hint)
        if not publish_new(temporary, target, whole=lambda path: not replaces and os.path.lexists(path)):
            raise ResultError("a file of another run came in the way", where=str(target))
    except OSError as error:
        raise ResultError(f"a result cannot be published: {error.strerror}", where=str(target)) from None
    finally:
        temporary.unlink(missing_ok=True)
