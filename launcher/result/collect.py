"""Copies a job's results into the directory where the workflow looks, under the names that the workflow uses.

The next step of the workflow treats every file there as a result. So files of other jobs and runs are not collected,
files of other runs are not overwritten, and invalid results are not published. All files are checked before the first
one is written.
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
from launcher.core.waiting import retry_until
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

    def target_name(self, folder: str, name: ResultFileName) -> str:
        """The name of a fixed result in the workspace."""
        if self.name is not None:
            return self.name(folder, name)
        return fixed_result_name(self.expected.filename, folder, name.concurrency, name.gpus, name.split)

    def window(self) -> Window:
        """The time in which this run's results were written."""
        return Window(self.started, time.time(), self.expected.limits.clock_skew)


@dataclass(frozen=True)
class Problem:
    """A requested result that is missing or invalid."""

    text: str
    concurrency: int | None = None
    kind: Literal["missing", "invalid"] = "missing"

    def __str__(self) -> str:
        text = one_line(self.text)  # it contains names of a job's files
        return text if self.concurrency is None else f"concurrency {self.concurrency}: {text}"


@dataclass(frozen=True)
class CollectedResults:
    """The points, problems and files of a job.

    ``problems`` make the run fail; ``doubts`` need a person's attention. ``published`` maps names in the workspace to
    sha256, for the run's record.
    """

    points: tuple[MeasuredPoint, ...] = ()
    problems: tuple[Problem, ...] = ()
    doubts: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()

    def raise_if_bad(self, hint: str | None = None) -> None:
        """Raise ResultError that lists the problems, if there are any; ``hint`` says where the job's logs are."""
        if self.problems:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            count = f"{len(self.problems)} of the results asked for {'is' if len(self.problems) == 1 else 'are'}"
            raise ResultError(f"{count} missing or invalid:\n{lines}", hint=hint)


@dataclass
class ResultScan:
    """The state of a job's results at one moment.

    ``files`` are to be published: name in the workspace to source and sha256. ``refused`` are the names of an
    evaluation's invalid files.
    """

    points: dict[int, MeasuredPoint] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    evaluations: tuple[Evaluation, ...] = ()

    def add(self, target: str, source: Path) -> None:
        """Add a file to publish. Raises ResultError when a file of other content has the same target."""
        digest = sha256_of(source)
        first_source, first_digest = self.files.setdefault(target, (source, digest))
        if first_digest != digest:
            raise ResultError(
                f"two results would both be {target}: {first_source} and {source}",
                hint="the job wrote one result twice: correct the recipe",
            )

    def add_evaluation(
        self, files: Mapping[str, Path], expected: Expected, workspace: Path, other_problems: Iterable[str]
    ) -> None:
        """Check the files of an evaluation. If it is invalid, no ``results*.json`` is published.

        After a benchmark an evaluation is an extra, as in srt-slurm (do_sweep.py): then its problems are doubts.
        """
        from launcher.result.evaluations import RESULTS, Thresholds, judge_evaluation  # most jobs have none

        verdict = judge_evaluation(files, expected, Thresholds.below(workspace))
        problems = [*verdict.problems, *other_problems]
        results = {name for name in files if fnmatch.fnmatch(name, RESULTS)}
        self.refused = {*verdict.files, *(results if verdict.problems else ())}
        self.doubts += verdict.doubts
        self.evaluations = verdict.points(problems, expected.evaluated)
        if expected.mode == "eval":
            known = {f"eval: {problem.text}" for problem in self.problems}
            self.problems += [Problem(text, kind="invalid") for text in problems if text not in known]
        else:
            self.doubts += problems


def collect(request: CollectRequest, *, sleep: Callable[[float], None] = time.sleep) -> CollectedResults:
    """Collect the results and the eval files; `launcher.result.logs.keep_logs` keeps the logs.

    Missing and invalid results are reported in ``problems``. Raises ResultError before anything is written if the logs
    directory is another job's, a name is longer than 255 bytes, two results have one name, or a file of another run has
    that name; also if a result cannot be written.
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
    scan = scan_until_complete(lambda: _scan(request), request.patience, sleep)
    doubts = [
        *scan.doubts,
        *(f"concurrency {c}: {doubt}" for c, point in scan.points.items() for doubt in point.doubts),
    ]
    for name, (_, digest) in scan.files.items():
        _check_target(request.workspace / name, digest, request.published.get(name))
        if request.expected.mode == "fixed" and len(os.fsencode(f"agg_{name}")) > NAME_MAX:
            doubts.append(f"agg_{name} is longer than {NAME_MAX} bytes: process_result.py cannot write it")
    for name, (source, digest) in scan.files.items():
        _publish(source, request.workspace / name, digest, request.published.get(name))
    return CollectedResults(
        points=tuple(scan.points[concurrency] for concurrency in sorted(scan.points)),
        problems=tuple(scan.problems),
        doubts=tuple(doubts),
        published={**request.published, **{name: digest for name, (_, digest) in scan.files.items()}},
        evaluations=scan.evaluations,
    )


def scan_until_complete(scan: Callable[[], ResultScan], patience: float, sleep: Callable[[float], None]) -> ResultScan:
    """Scan again while there are problems, for ``patience`` seconds: NFS can show a file, or its end, late."""
    pauses = [_RETRY_INTERVAL] * math.ceil(patience / _RETRY_INTERVAL)
    return retry_until(lambda result: not result.problems, scan, pauses, sleep=sleep)


def _scan(request: CollectRequest) -> ResultScan:
    scan, expected = ResultScan(), request.expected
    try:
        if expected.mode == "fixed":
            _scan_fixed(request, scan)
        elif expected.mode == "agentic":
            _scan_agentic(request, scan)
        if expected.run_eval or expected.mode == "eval":
            _scan_evaluation(request, scan)
        # The job itself writes agentic results into the workspace; an invalid one is a problem already.
        requested = (agentic_result_name(expected.filename, concurrency) for concurrency in expected.concurrencies)
        ours = {*scan.files, *request.published, *requested}
        foreign = foreign_files(request.workspace, expected.filename, expected.mode, ours, request.started)
        scan.problems += [Problem(text) for text in foreign]
    except OSError as error:
        scan.problems.append(Problem(f"{error.filename} cannot be read: {error.strerror}"))
    return scan


def _scan_fixed(request: CollectRequest, scan: ResultScan) -> None:
    """Results of sa-bench: every ``results_concurrency_*.json`` below the directories ``*isl*osl*`` of the logs."""
    valid: dict[int, dict[str, MeasuredPoint]] = {}
    rejected: dict[int, list[str]] = {}
    window, expected = request.window(), request.expected
    for folder in sorted(request.logs_dir.glob("*isl*osl*")):
        for path, status in () if folder.is_symlink() else log_files(folder):
            if (name := ResultFileName.parse(path.name)) is None:
                continue
            concurrency, shown = name.concurrency, path.relative_to(request.logs_dir)
            if (problem := window.time_problem(status.st_mtime, str(shown))) is None:
                try:
                    point = read_result(path, concurrency, expected, window)
                except UnusableResult as error:
                    problem = f"{shown}: {error}"
            if problem is not None:
                rejected.setdefault(concurrency, []).append(problem)
                continue
            target = request.target_name(folder.name, name)
            scan.add(target, path)
            valid.setdefault(concurrency, {}).setdefault(target, point)
    for concurrency, points in sorted(valid.items()):
        if len(points) == 1:
            scan.points[concurrency] = next(iter(points.values()))
            continue
        for target in points:
            del scan.files[target]
        names = " and ".join(sorted(point.path.name for point in points.values()))
        rejected.setdefault(concurrency, []).append(f"measured twice, {names}: it is not known which one counts")
    for concurrency in expected.concurrencies:
        if concurrency not in scan.points and concurrency in rejected:
            scan.problems.append(Problem("; ".join(rejected.pop(concurrency)), concurrency, "invalid"))
        elif concurrency not in scan.points:
            scan.problems.append(Problem(f"no result below {request.logs_dir}", concurrency))
    scan.doubts += [f"concurrency {c} was not asked for" for c in scan.points if c not in expected.concurrencies]
    scan.doubts += [reason for reasons in rejected.values() for reason in reasons]


def _scan_agentic(request: CollectRequest, scan: ResultScan) -> None:
    """Agentic results, which the job itself writes under the names of the workflow."""
    window, expected = request.window(), request.expected
    if expected.gpus is not None and expected.held not in (None, sum(expected.gpus)):
        counts = f"the row counts {sum(expected.gpus)} GPUs, by which tokens/s/GPU is divided"
        scan.doubts.append(f"{counts}, and the recipe's workers have {expected.held}")
    source = request.agentic_source or request.workspace
    for concurrency in expected.concurrencies:
        path = source / agentic_result_name(expected.filename, concurrency)
        if not path.exists():
            scan.problems.append(Problem(f"no result at {path}", concurrency))
            continue
        modified, problem = path.stat(), None
        if not path.resolve().is_relative_to(source.resolve()):
            problem = f"{path} leads to {path.resolve()}, out of it"
        elif request.there_before.get(path.name) == modified.st_mtime_ns:
            problem = f"{path} lay there before this run's job was submitted, and has not changed since"
        elif (problem := window.time_problem(modified.st_mtime, str(path))) is None:
            try:
                scan.points[concurrency] = read_agentic_result(path, concurrency, expected, window)
                scan.add(path.name, path)
            except UnusableResult as error:
                problem = f"{path}: {error}"
        if problem is not None:
            scan.problems.append(Problem(problem, concurrency, "invalid"))


def foreign_files(workspace: Path, stem: str, mode: str, ours: Collection[str], since: float) -> list[str]:
    """A sentence for each file that is not ``ours`` and that the workflow's next steps would take for a result of this
    run. Files that those steps wrote after ``since`` (Unix seconds) are left out. Raises OSError.

    Nobody knows here whose such a file is, so it is neither moved nor removed. The measured results are kept: once a
    person has dealt with the file, `launcher collect` completes the run.
    """
    sentences = []
    for path in sorted(workspace.iterdir()):
        if path.name in ours or not is_counted(path.name, stem, mode):
            continue
        if not path.name.startswith("agg_") or path.lstat().st_mtime < since:
            text = "is in the workspace, is no result that this run was asked for, and the workflow would count it"
            sentences.append(f"{path.name} {text}")
    return sentences


def refuse_foreign_files(workspace: Path, expected: Expected) -> None:
    """Raise ResultError for `foreign_files` before a job is submitted, so that it does not occupy GPUs in vain.

    Files that the job itself will overwrite are allowed.
    """
    ours = {agentic_result_name(expected.filename, concurrency) for concurrency in expected.concurrencies}
    try:
        foreign = foreign_files(workspace, expected.filename, expected.mode, ours, math.inf)
    except OSError as error:
        raise ResultError(f"the workspace cannot be read: {error.strerror}", where=str(workspace)) from None
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        hint = "move it away: it is of another row, job or run"
        raise ResultError(f"{foreign[0]}{more}", where=str(workspace), hint=hint)


def modification_times(directory: Path, names: Iterable[str]) -> dict[str, int]:
    """The modification times (nanoseconds) of the files of these names, for `CollectRequest.there_before`."""
    return {name: path.stat().st_mtime_ns for name in names if (path := directory / name).is_file()}


def _scan_evaluation(request: CollectRequest, scan: ResultScan) -> None:
    """Eval files, at the place where srt-slurm writes them."""
    from launcher.result.evaluations import RESULTS

    folder, window, expected = request.logs_dir / "eval_results", request.window(), request.expected
    files = [] if folder.is_symlink() else [entry for entry in log_files(folder) if entry[0].parent == folder]
    stale = {path.name: window.time_problem(status.st_mtime, path.name) for path, status in files}
    fresh = {path.name: path for path, _ in sorted(files) if stale[path.name] is None}
    problems = []
    if not any(fnmatch.fnmatch(name, RESULTS) for name in fresh):
        reason = next((text for name, text in stale.items() if text and fnmatch.fnmatch(name, RESULTS)), None)
        problems.append(f"eval: no {RESULTS} in {folder}" + (f": {reason}" if reason else ""))
    scan.add_evaluation(fresh, expected, request.workspace, problems)
    for name, path in fresh.items():
        if name not in scan.refused:
            scan.add(name, path)
    if expected.mode != "eval":
        ours = scan.files.keys() | request.published.keys()
        scan.doubts += foreign_files(request.workspace, expected.filename, "eval", ours, request.started)


def _check_target(target: Path, digest: str, ours: str | None) -> None:
    """Check that a file of sha256 ``digest`` may be published as ``target``. Raises ResultError if its name is too long
    or another run's file has it. ``ours`` is the sha256 of what this run published there before."""
    if (length := len(os.fsencode(target.name))) > NAME_MAX:
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
    """Publish a copy of ``source`` as ``target``.

    Raises ResultError if ``source`` no longer has the checked ``digest``, if another run's file has appeared at
    ``target``, and if the copy cannot be written.
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
