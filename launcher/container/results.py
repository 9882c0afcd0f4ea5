"""The results of a job that runs in the workspace: from this job alone, whole, and where the workflow looks.

The job writes into the workspace, where files of earlier jobs may lie: a file that is older than the job is not its
own. A job on a copy of the checkout brings its files back in an archive, which is unpacked into the workspace first.
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
class Place:
    """Where a job's files are. ``workspace`` is the directory that the job wrote into, ``into`` where results go, the
    same for a workflow's run. ``submitted`` is when the job was (Unix seconds), ``gpus`` how many it used,
    ``there_before`` what lay there before it was (`lying_there`): what has not changed since is not the job's."""

    workspace: Path
    into: Path
    submitted: float
    gpus: int
    there_before: Mapping[str, int] = field(default_factory=dict)

    def window(self, skew: float) -> Window:
        """The time in which the job wrote its results."""
        return Window(self.submitted, time.time(), skew)


def collect(
    expected: Expected, place: Place, *, patience: float, sleep: Callable[[float], None] = time.sleep
) -> CollectedResults:
    """Judge what the job left, and copy it where results go.

    Missing and invalid results are problems; they are waited for ``patience`` seconds, since NFS can show a file, or
    its end, up to a minute late. Raises ResultError when nothing can be read or written.
    """
    if not place.workspace.is_dir():
        raise ResultError("no such directory", where=str(place.workspace))
    found = scan_until_complete(lambda: _look(expected, place), patience, sleep)
    published = {}
    skew = expected.limits.clock_skew
    try:
        wrong = {problem.kind for problem in found.problems}
        for name, path in _files(expected.required, place, skew):
            if not ("invalid" in wrong and fnmatch(name, f"{expected.filename}.json")) and name not in found.refused:
                published[name] = _deliver(path, place.into / name)
        for name, path in (*_files(expected.eval, place, skew), *_files((*expected.logs, *expected.metrics), place)):
            if name not in found.refused:
                _deliver(path, place.into / name)
    except OSError as error:
        raise ResultError(f"a result cannot be kept: {error.strerror}", where=str(error.filename)) from None
    points = tuple(found.points.values())
    doubts = (*found.doubts, *(doubt for point in points for doubt in point.doubts))
    return CollectedResults(points, tuple(found.problems), doubts, published, found.evaluations)


def _look(expected: Expected, place: Place) -> ResultScan:
    found, window = ResultScan(), place.window(expected.limits.clock_skew)
    concurrency = expected.concurrencies[0] if expected.concurrencies else None
    for pattern in expected.required:
        if any(_files((pattern,), place, window.skew)):
            continue
        if others := _of_others((pattern,), place, window):
            found.problems.append(Problem(others[0], concurrency, "invalid"))
        else:
            found.problems.append(Problem(f"no {pattern} in {place.workspace}", concurrency))
    if expected.mode != "eval" and not found.problems and concurrency is not None:
        path = place.workspace / f"{expected.filename}.json"
        try:
            found.points[concurrency] = read_single_result(path, concurrency, expected, place.gpus, window)
        except UnusableResult as wrong:
            found.problems.append(Problem(f"{path.name}: {wrong}", concurrency, "invalid"))
    if expected.run_eval or expected.mode == "eval":
        _look_eval(expected, place, found, window)
    return found


def _look_eval(expected: Expected, place: Place, found: ResultScan, window: Window) -> None:
    """Eval files. Another job's results beside this one's are wrong as well where the workflow looks, since it takes
    every ``results*.json``."""
    files = dict(_files(expected.eval, place, window.skew))
    results = any(fnmatch(name, RESULTS) for name in files)
    others = _of_others((RESULTS,), place, window) if place.into == place.workspace or not results else []
    wrong = [f"eval: {said}" for said in others]
    wrong += [] if results else [f"eval: no {RESULTS} of this job in {place.workspace}"]
    found.add_evaluation(files, expected, place.workspace, wrong)


def lying_there(expected: Expected, directory: Path) -> dict[str, int]:
    """What lies where results are to come, before the job that writes them: names, and times in nanoseconds."""
    place = Place(directory, directory, -math.inf, 0)
    return {name: path.stat().st_mtime_ns for name, path in _files((*expected.required, *expected.eval), place)}


def _of_others(patterns: Sequence[str], place: Place, window: Window) -> list[str]:
    """What lies there and matches, and is not this job's; a sentence each."""
    said = []
    for name, path in _files(patterns, place, window.skew, fresh=False):
        when = window.time_problem(path.stat().st_mtime, name) or f"{name} lay there before this job was submitted"
        said.append(f"{when.replace('this run', 'this job')}: another job left it in {place.workspace}")
    return said


def _files(
    patterns: Sequence[str], place: Place, skew: float = 0.0, *, fresh: bool = True
) -> Iterator[tuple[str, Path]]:
    """The files below the workspace that match, by name: this job's, or with ``fresh`` false the others.

    Those of the job were written since it was submitted, give or take ``skew`` seconds, and not in the future. Nothing
    that leads out of the workspace is followed.
    """
    root, window, seen = place.workspace.resolve(), place.window(skew), set()
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise ResultError(f"{pattern!r} is not a name below the workspace")
        for path in _matching(place.workspace, pattern):
            name = path.relative_to(place.workspace).as_posix()
            if name in seen or name.startswith(f"{OWN}/") or not path.resolve().is_relative_to(root):
                continue
            try:
                status = path.stat()
                is_fresh = window.time_problem(status.st_mtime, name) is None
                is_fresh = is_fresh and place.there_before.get(name) != status.st_mtime_ns
            except OSError:
                continue
            if path.is_file() and is_fresh == fresh:
                seen.add(name)
                yield name, path


def _matching(workspace: Path, pattern: str) -> Iterator[Path]:
    """What matches; ``results/**`` is every file below ``results``."""
    base, everything = pattern.removesuffix("/**"), pattern.endswith("/**")
    for path in sorted(workspace.glob(base)):
        if not everything:
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from (file for file, _ in log_files(path))


def _deliver(source: Path, target: Path) -> str:
    """Copy a file whole, unless it is where it belongs already; its sha256. Raises OSError."""
    if source != target and not (target.exists() and source.samefile(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with publishing(target) as temporary:
            shutil.copyfile(source, temporary)
            shutil.copystat(source, temporary)
    return sha256_of(target)


def link_logs(expected: Expected, place: Place, own: Path) -> None:
    """Have the job's logs beside its own, where what failed first is looked for. Raises OSError."""
    for name, path in _files(expected.logs, place):
        target = own / name
        if path.suffix in (".log", ".out", ".err") and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(path)
            except OSError:  # another file system
                shutil.copyfile(path, target)


def unpack(archive: Path, workspace: Path) -> list[str]:
    """Put what a job brought back into the workspace, file by file and each whole; what was left out, and why.

    The archive is read to its end before anything is written: of one that was cut nothing is taken. Raises ResultError.
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
    """What the job wrote down (`planned.FACTS`); nothing when it cannot be read."""
    try:
        with open_regular(path) as file:
            lines = file.read(1 << 16).decode(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
