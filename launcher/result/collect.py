"""Collecting: a job's results into the directory where the workflow looks, under the names that the workflow uses.

Nothing is taken from another job or run, nothing of anyone else's is overwritten, and nothing invalid is published: the
next step of the workflow takes a file that exists for a result. Everything is looked at before anything is written.
"""

from __future__ import annotations

import fnmatch
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from launcher.core.errors import ResultError
from launcher.result.bundle import Bundle, bundle_logs, log_files
from launcher.result.validate import FileName, Invalid, Point, read_agentic_result, read_result
from launcher.result.workspace import LOGS, NAME_MAX, check_target, digest_of, publish_file, replace_logs

TARBALL = "multinode_server_logs.tar.gz"
EXPORTER_STAMP, PRODUCER_STAMP = STAMPS = ("exporter-image.sha256", "power-producer-sha.txt")
"""Left in the workspace by the power lane; they travel with the logs, for the audit of power measurements."""

_INTERVAL = 5.0


@dataclass(frozen=True)
class CollectRequest:
    """What to collect.

    ``logs_dir`` is ``outputs/<job id>/logs`` of our job, ``workspace`` the directory where the workflow looks.
    ``started`` is when the run began (Unix seconds): older files are of another run. ``agentic_source`` is where the
    job writes ``<result_filename>_conc<N>.json``, the workspace itself when None. ``published`` is what an earlier
    collection of this run published, name to sha256, from its record. ``patience`` is for how many seconds to wait for
    results that are missing or invalid: NFS can show a file, or its end, up to a minute late.
    """

    logs_dir: Path
    workspace: Path
    result_filename: str
    concurrencies: tuple[int, ...]
    job_id: str
    started: float
    mode: Literal["fixed", "agentic", "eval"] = "fixed"
    isl: int | None = None
    osl: int | None = None
    run_eval: bool = False
    agentic_source: Path | None = None
    published: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    patience: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A result that was asked for and is not there, or is there and not believable."""

    text: str
    concurrency: int | None = None
    kind: Literal["missing", "invalid"] = "missing"

    def __str__(self) -> str:
        return self.text if self.concurrency is None else f"concurrency {self.concurrency}: {self.text}"


@dataclass(frozen=True)
class Collected:
    """What was collected. ``published`` (name in the workspace to sha256) belongs into the run's record."""

    points: tuple[Point, ...] = ()
    problems: tuple[Problem, ...] = ()
    doubts: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def raise_if_bad(self) -> None:
        """Raise ResultError listing every problem, when there is one."""
        if self.problems:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            raise ResultError(
                f"{len(self.problems)} of the results asked for are missing or invalid:\n{listed}",
                hint=f"look into {TARBALL}, or {LOGS}/, of the workspace",
            )


@dataclass
class _Found:
    """What lies there; ``files`` are to be published: target name to source and sha256."""

    points: dict[int, Point] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)

    def add(self, target: str, source: Path) -> None:
        """Take a file. Raises ResultError when another content has that name already."""
        digest = digest_of(source)
        known, other = self.files.setdefault(target, (source, digest))
        if other != digest:
            raise ResultError(
                f"two results would both be {target}: {known} and {source}",
                hint="the job wrote one result twice; correct the recipe",
            )


def collect(request: CollectRequest, *, sleep: Callable[[float], None] = time.sleep) -> Collected:
    """Collect the results and the eval files. The logs are kept by `keep_logs`, once it is known how the run ended.

    Missing and invalid results are told in ``problems``. Raises ResultError, with nothing written, when the request
    cannot be met as it is: a logs directory of another job, a name longer than 255 bytes, two results of one name, a
    file of another run in the way; and when a result cannot be written.
    """
    from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_attempt, wait_fixed

    def last(state: RetryCallState) -> _Found:
        assert state.outcome is not None
        found: _Found = state.outcome.result()
        return found

    _check(request)
    look = Retrying(
        stop=stop_after_attempt(1 + math.ceil(request.patience / _INTERVAL)),
        wait=wait_fixed(_INTERVAL),
        retry=retry_if_result(lambda found: bool(found.problems)),
        retry_error_callback=last,
        sleep=sleep,
    )
    found = look(_look, request)
    doubts = [*found.doubts, *(f"concurrency {at}: {doubt}" for at, p in found.points.items() for doubt in p.doubts)]
    for name, (_, digest) in found.files.items():
        check_target(request.workspace / name, digest, request.published.get(name))
        if request.mode == "fixed" and len(os.fsencode(f"agg_{name}")) > NAME_MAX:
            doubts.append(f"agg_{name} is longer than {NAME_MAX} bytes: process_result.py cannot write it")
    for name, (source, digest) in found.files.items():
        publish_file(source, request.workspace / name, digest, request.published.get(name))
    return Collected(
        points=tuple(found.points[at] for at in sorted(found.points)),
        problems=tuple(found.problems),
        doubts=tuple(doubts),
        published={**request.published, **{name: digest for name, (_, digest) in found.files.items()}},
    )


def result_name(result_filename: str, directory: str, name: FileName) -> str:
    """The workflow's name for a result of sa-bench: it reads the GPU counts out of it again."""
    split = "" if name.prefill_gpus is None else f"_ctx_{name.prefill_gpus}_gen_{name.decode_gpus}"
    return f"{result_filename}_{directory}_conc{name.concurrency}_gpus_{name.gpus}{split}.json"


def agentic_name(result_filename: str, concurrency: int) -> str:
    """The workflow's name for an agentic result."""
    return f"{result_filename}_conc{concurrency}.json"


def _check(request: CollectRequest) -> None:
    if not request.result_filename or "/" in request.result_filename:
        raise ResultError(f"{request.result_filename!r} cannot begin a file name")
    if request.logs_dir.resolve().parent.name != request.job_id:
        raise ResultError(
            f"these are not the logs of job {request.job_id}",
            where=str(request.logs_dir),
            hint="results are only taken from outputs/<job id>/logs",
        )
    if not request.workspace.is_dir():
        raise ResultError("no such directory", where=str(request.workspace))


def _look(request: CollectRequest) -> _Found:
    found = _Found()
    try:
        if request.mode == "fixed":
            _look_fixed(request, found)
        elif request.mode == "agentic":
            _look_agentic(request, found)
        if request.run_eval or request.mode == "eval":
            _look_eval(request, found)
    except OSError as error:
        found.problems.append(Problem(f"{error.filename} cannot be read: {error.strerror}"))
    return found


def _look_fixed(request: CollectRequest, found: _Found) -> None:
    """Results of sa-bench: every ``results_concurrency_*.json`` below the directories ``*isl*osl*`` of the logs."""
    valid: dict[int, dict[str, Point]] = {}
    rejected: dict[int, list[str]] = {}
    for folder in sorted(request.logs_dir.glob("*isl*osl*")):
        for path, status in () if folder.is_symlink() else log_files(folder):
            if (name := FileName.parse(path.name)) is None:
                continue
            at, shown = name.concurrency, path.relative_to(request.logs_dir)
            point = read_result(path, expected_concurrency=at, isl=request.isl, osl=request.osl)
            if status.st_mtime < request.started:
                rejected.setdefault(at, []).append(f"{shown} is older than this run")
            elif isinstance(point, Invalid):
                rejected.setdefault(at, []).append(f"{shown}: {point.reason}")
            else:
                target = result_name(request.result_filename, folder.name, name)
                found.add(target, path)
                valid.setdefault(at, {}).setdefault(target, point)
    for at in sorted(valid):
        if len(valid[at]) == 1:
            found.points[at] = next(iter(valid[at].values()))
            continue
        for target in valid[at]:
            del found.files[target]
        names = " and ".join(sorted(point.path.name for point in valid[at].values()))
        rejected.setdefault(at, []).append(f"measured twice, {names}: which one counts is not known")
    for at in request.concurrencies:
        if at not in found.points and at in rejected:
            found.problems.append(Problem("; ".join(rejected.pop(at)), at, "invalid"))
        elif at not in found.points:
            found.problems.append(Problem(f"no result below {request.logs_dir}", at))
    found.doubts += [f"concurrency {at} was not asked for" for at in found.points if at not in request.concurrencies]
    found.doubts += [reason for reasons in rejected.values() for reason in reasons]


def _look_agentic(request: CollectRequest, found: _Found) -> None:
    """Agentic results; one that was not asked for makes the workflow's count fail, so it is a problem."""
    source = request.agentic_source or request.workspace
    asked = {agentic_name(request.result_filename, concurrency): concurrency for concurrency in request.concurrencies}
    for name, concurrency in asked.items():
        path = source / name
        if not path.exists():
            found.problems.append(Problem(f"no result at {path}", concurrency))
            continue
        point = read_agentic_result(path, expected_concurrency=concurrency)
        if path.stat().st_mtime < request.started:
            found.problems.append(Problem(f"{path} is older than this run", concurrency, "invalid"))
        elif isinstance(point, Invalid):
            found.problems.append(Problem(f"{path}: {point.reason}", concurrency, "invalid"))
        else:
            found.points[concurrency] = point
            found.add(name, path)
    counted = [path.name for path in request.workspace.iterdir()]
    pattern = _literally(request.result_filename) + "_conc*.json"
    for name in sorted(set(fnmatch.filter(counted, pattern)) - asked.keys()):
        found.problems.append(
            Problem(f"{name} is in the workspace, was not asked for, and the workflow would count it")
        )


def _look_eval(request: CollectRequest, found: _Found) -> None:
    """Eval files. After a benchmark they are extra, as srt-slurm has it (do_sweep.py): a missing one is a doubt."""
    folder = request.logs_dir / "eval_results"
    files = [] if folder.is_symlink() else [entry for entry in log_files(folder) if entry[0].parent == folder]
    bad: list[str] = []
    results = 0
    for path in sorted(path for path, status in files if status.st_mtime >= request.started):
        is_result = fnmatch.fnmatch(path.name, "results*.json")
        if (is_result or path.name == "meta_env.json") and not _is_json(path):
            bad.append(f"eval: {path.name} is not a JSON object")
            continue
        results += is_result
        found.add(path.name, path)
    if not results:
        bad.append(f"eval: no results*.json in {folder}")
    if request.mode == "eval":
        found.problems += [Problem(text) for text in bad]
    else:
        found.doubts += bad


def _literally(text: str) -> str:
    """``text`` as a glob that matches itself only."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _is_json(path: Path) -> bool:
    try:
        msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def keep_logs(
    logs_dir: Path,
    workspace: Path,
    job_id: str,
    started: float,
    *,
    papers: Sequence[tuple[str, Path]] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[Bundle | None, list[str]]:
    """A copy of a job's logs (``LOGS/``), and their tarball, in which ``papers`` lie too; and what went wrong there.

    They are evidence: what goes wrong is a doubt, not a failure. Secrets of ``environ`` are in neither.
    """
    stamps = [(f"power/{path.name}", path) for path in (workspace / name for name in STAMPS) if path.is_file()]
    fresh = [(name, path) for name, path in stamps if path.stat().st_mtime >= started]
    try:
        bundle = bundle_logs(logs_dir, workspace / TARBALL, extra=[*fresh, *papers], environ=environ)
        if bundle is None:
            return None, []
        doubts = [f"{TARBALL}: {line}" for line in bundle.left_out]
        if logs_dir.is_dir():
            doubts += replace_logs(logs_dir, workspace, job_id, fresh, environ or {})
    except OSError as error:
        return None, [f"the logs could not be kept: {error.strerror}"]
    return bundle, doubts
