"""Collects the results of a job that runs in the workspace: only this job's files, whole, and where the workflow looks.

The workspace may contain files of earlier jobs: a file that is older than the job belongs to another one. A job on a
copy of the checkout returns its files in an archive, which is unpacked into the workspace first.
"""

from __future__ import annotations

import math
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from launcher.core.errors import ResultError
from launcher.core.publish import publishing
from launcher.core.reading import open_regular, sha256_of
from launcher.plan.plan import OWN, Expected
from launcher.result.collect import CollectedResults, Problem, ResultScan, scan_until_complete
from launcher.result.contradictions import Window
from launcher.result.document import UnusableResult
from launcher.result.evaluations import RESULTS
from launcher.result.logs import log_files
from launcher.result.validate import read_single_result

_BLOCK = 1 << 20


@dataclass(frozen=True)
class JobFiles:
    """Directories and time of a job. It wrote into ``workspace``; results are copied to ``into``, which is the same
    directory for a workflow's run. ``submitted`` is the submit time (Unix seconds), ``gpus`` the number that it used.
    ``there_before`` are the files before the submission (`existing_results`): an unchanged one is not the job's."""

    workspace: Path
    into: Path
    submitted: float
    gpus: int
    there_before: Mapping[str, int] = field(default_factory=dict)

    def window(self, skew: float) -> Window:
        """The time in which the job wrote its results."""
        return Window(self.submitted, time.time(), skew)


def collect(
    expected: Expected, job: JobFiles, *, patience: float, sleep: Callable[[float], None] = time.sleep
) -> CollectedResults:
    """Check the job's results, and copy them to `JobFiles.into`.

    Missing and invalid results are problems. They are checked again for ``patience`` seconds, because NFS can show a
    file, or its end, up to a minute late. Raises ResultError when files cannot be read or written.
    """
    if not job.workspace.is_dir():
        raise ResultError("no such directory", where=str(job.workspace))
    scan = scan_until_complete(lambda: _check_results(expected, job), patience, sleep)
    published = {}
    skew = expected.limits.clock_skew
    invalid = any(problem.kind == "invalid" for problem in scan.problems)
    try:
        for name, path in _files(expected.required, job, skew):
            if not (invalid and fnmatch(name, f"{expected.filename}.json")) and name not in scan.refused:
                published[name] = _copy_whole(path, job.into / name)
        for name, path in (*_files(expected.eval, job, skew), *_files((*expected.logs, *expected.metrics), job)):
            if name not in scan.refused:
                _copy_whole(path, job.into / name)
    except OSError as error:
        raise ResultError(f"a result cannot be kept: {error.strerror}", where=str(error.filename)) from None
    points = tuple(scan.points.values())
    doubts = (*scan.doubts, *(doubt for point in points for doubt in point.doubts))
    return CollectedResults(points, tuple(scan.problems), doubts, published, scan.evaluations)


def _check_results(expected: Expected, job: JobFiles) -> ResultScan:
    scan, window = ResultScan(), job.window(expected.limits.clock_skew)
    concurrency = expected.concurrencies[0] if expected.concurrencies else None
    for pattern in expected.required:
        if any(_files((pattern,), job, window.skew)):
            continue
        if foreign := _foreign_files((pattern,), job, window):
            scan.problems.append(Problem(foreign[0], concurrency, "invalid"))
        else:
            scan.problems.append(Problem(f"no {pattern} in {job.workspace}", concurrency))
    if expected.mode != "eval" and not scan.problems and concurrency is not None:
        path = job.workspace / f"{expected.filename}.json"
        try:
            scan.points[concurrency] = read_single_result(path, concurrency, expected, job.gpus, window)
        except UnusableResult as problem:
            scan.problems.append(Problem(f"{path.name}: {problem}", concurrency, "invalid"))
    if expected.run_eval or expected.mode == "eval":
        _check_evaluations(expected, job, scan, window)
    return scan


def _check_evaluations(expected: Expected, job: JobFiles, scan: ResultScan, window: Window) -> None:
    """Check evaluation files. In a workflow's workspace another job's files are a problem too, because the workflow
    takes every ``results*.json``."""
    files = dict(_files(expected.eval, job, window.skew))
    has_results = any(fnmatch(name, RESULTS) for name in files)
    foreign = _foreign_files((RESULTS,), job, window) if job.into == job.workspace or not has_results else []
    problems = [f"eval: {problem}" for problem in foreign]
    problems += [] if has_results else [f"eval: no {RESULTS} of this job in {job.workspace}"]
    scan.add_evaluation(files, expected, job.workspace, problems)


def existing_results(expected: Expected, directory: Path) -> dict[str, int]:
    """Files under the names of results before the job that will write these: name → modification time (ns)."""
    files = _files((*expected.required, *expected.eval), JobFiles(directory, directory, -math.inf, 0))
    return {name: path.stat().st_mtime_ns for name, path in files}


def _foreign_files(patterns: Sequence[str], job: JobFiles, window: Window) -> list[str]:
    """A sentence for each file that matches and is not this job's."""
    problems = []
    for name, path in _files(patterns, job, window.skew, fresh=False):
        when = window.time_problem(path.stat().st_mtime, name) or f"{name} lay there before this job was submitted"
        problems.append(f"{when.replace('this run', 'this job')}: another job left it in {job.workspace}")
    return problems


def _files(
    patterns: Sequence[str], job: JobFiles, skew: float = 0.0, *, fresh: bool = True
) -> Iterator[tuple[str, Path]]:
    """The matching files below the workspace, with their names: this job's, or without ``fresh`` all others.

    The job's files were written after its submission (minus ``skew`` seconds) and not in the future. No symlink out of
    the workspace is followed.
    """
    root, window, seen = job.workspace.resolve(), job.window(skew), set()
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise ResultError(f"{pattern!r} is not a name below the workspace")
        for path in _matching_paths(job.workspace, pattern):
            name = path.relative_to(job.workspace).as_posix()
            if name in seen or name.startswith(f"{OWN}/") or not path.resolve().is_relative_to(root):
                continue
            try:
                status = path.stat()
                is_fresh = window.time_problem(status.st_mtime, name) is None
                is_fresh = is_fresh and job.there_before.get(name) != status.st_mtime_ns
            except OSError:
                continue
            if path.is_file() and is_fresh == fresh:
                seen.add(name)
                yield name, path


def _matching_paths(workspace: Path, pattern: str) -> Iterator[Path]:
    """The paths that match; ``results/**`` means every file below ``results``."""
    base, is_tree = pattern.removesuffix("/**"), pattern.endswith("/**")
    for path in sorted(workspace.glob(base)):
        if not is_tree:
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from (file for file, _ in log_files(path))


def _copy_whole(source: Path, target: Path) -> str:
    """Copy a file atomically, unless it is already at ``target``; return its sha256. Raises OSError."""
    if source != target and not (target.exists() and source.samefile(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with publishing(target) as temporary:
            shutil.copy2(source, temporary)
    return sha256_of(target)


def link_logs(expected: Expected, job: JobFiles, own: Path) -> None:
    """Link the job's logs into its own directory, where the first failure is searched for. Raises OSError."""
    for name, path in _files(expected.logs, job):
        target = own / name
        if path.suffix in (".log", ".out", ".err") and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(path)
            except OSError:  # another file system
                shutil.copyfile(path, target)


def unpack(archive: Path, workspace: Path) -> list[str]:
    """Unpack a job's archive into the workspace, each file atomically. Return what was left out, and why.

    The archive is read to its end before anything is written, so that nothing is taken from a truncated one. Raises
    ResultError.
    """
    left_out: list[str] = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = list(tar)
            for member in members:
                if member.isfile() and (file := tar.extractfile(member)) is not None:
                    while file.read(_BLOCK):
                        pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ResultError(
            f"what the job brought back is not whole, and nothing of it was taken: {error}",
            where=str(archive),
            hint="was the file system full? The job's copy on the node is gone",
        ) from None
    root = workspace.resolve()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                target = workspace / member.name
                inside = target.parent.resolve().is_relative_to(root) and ".." not in Path(member.name).parts
                if member.isdir():
                    continue
                if not member.isfile() or not inside or Path(member.name).is_absolute():
                    left_out.append(f"{member.name[:200]!r}: not a plain file below the workspace")
                    continue
                _extract(tar, member, target)
    except (OSError, tarfile.TarError) as error:
        raise ResultError(f"what the job brought back cannot be unpacked: {error}", where=str(workspace)) from None
    return left_out


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with publishing(target) as temporary:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
        os.utime(temporary, (member.mtime, member.mtime))


def facts(path: Path) -> Mapping[str, str]:
    """The facts that the job wrote (`planned.FACTS`): name → value; empty when they cannot be read."""
    try:
        with open_regular(path) as file:
            lines = file.read(1 << 16).decode(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
