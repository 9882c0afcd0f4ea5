"""Collecting: a job's results into the directory where the workflow looks, under the names that the workflow uses.

Nothing is taken from another job or run, nothing of anyone else's is overwritten, and nothing invalid is published: the
next step of the workflow takes a file that exists for a result. Everything is looked at before anything is written.
"""

from __future__ import annotations

import errno
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from launcher.errors import ResultError
from launcher.publish import publish_new, publishing, temporary_name
from launcher.result.bundle import Bundle, bundle_logs, copy_logs, log_files
from launcher.result.validate import FileName, Invalid, Point, read_agentic_result, read_result

NAME_MAX = 255
"""Bytes of a file name, on every file system met here."""

LOGS = "LOGS"
TARBALL = "multinode_server_logs.tar.gz"
STAMPS = ("exporter-image.sha256", "power-producer-sha.txt")
"""Left in the workspace by the power lane; they travel with the logs, for the audit of power measurements."""

_OWNER = ".launcher-job"
_AGGREGATE_PREFIX = "agg_"
_INTERVAL = 5.0

Mode = Literal["fixed", "agentic", "eval"]


@dataclass(frozen=True)
class CollectRequest:
    """What to collect.

    ``logs_dir`` is ``outputs/<job id>/logs`` of our job, ``workspace`` the directory where the workflow looks.
    ``started`` is when the run began (Unix seconds): older files are of another run. ``agentic_source`` is where the
    job writes ``<result_filename>_conc<N>.json``, the workspace itself when None. ``published`` is what an earlier
    collection of this run published, name to sha256, from its record. ``patience`` is for how many seconds to wait for
    files that are missing or truncated: NFS can show them up to a minute late.
    """

    logs_dir: Path
    workspace: Path
    result_filename: str
    concurrencies: tuple[int, ...]
    job_id: str
    started: float
    mode: Mode = "fixed"
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
        return self.text


@dataclass(frozen=True)
class Collected:
    """What was collected. ``published`` (name in the workspace to sha256) belongs into the run's record."""

    points: tuple[Point, ...] = ()
    problems: tuple[Problem, ...] = ()
    doubts: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    bundle: Bundle | None = None

    def raise_if_bad(self) -> None:
        """Raise ResultError listing every problem, when there is one."""
        if self.problems:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            count = f"{len(self.problems)} result{'s are' if len(self.problems) > 1 else ' is'}"
            raise ResultError(
                f"{count} missing or invalid:\n{listed}",
                hint=f"look into {TARBALL}, or {LOGS}/, of the workspace",
            )


@dataclass(frozen=True)
class _Found:
    """What lies there: points and problems, and the files to publish, target name to (source, sha256)."""

    points: tuple[Point, ...] = ()
    problems: tuple[Problem, ...] = ()
    doubts: tuple[str, ...] = ()
    files: Mapping[str, tuple[Path, str]] = field(default_factory=dict)


def collect(request: CollectRequest, *, sleep: Callable[[float], None] = time.sleep) -> Collected:
    """Collect the results, the eval files, a copy of the logs (``LOGS/``) and their tarball.

    Missing and invalid results are told in ``problems``. Raises ResultError, with nothing written, when the request
    cannot be met as it is: a logs directory of another job, a name longer than 255 bytes, two results of one name, a
    file of another run in the way; and when a result cannot be written.
    """
    _check_request(request)
    found = _look(request)
    for _ in range(math.ceil(request.patience / _INTERVAL)):
        if not found.problems:
            break
        sleep(_INTERVAL)
        found = _look(request)
    doubts = [*found.doubts, *(f"concurrency {p.concurrency}: {doubt}" for p in found.points for doubt in p.doubts)]
    for name in found.files:
        _check_target(request, name, found.files[name][1], doubts)
    published = {name: _publish(request, name, *found.files[name]) for name in found.files}
    bundle = _keep_logs(request, doubts)
    return Collected(found.points, found.problems, tuple(doubts), {**request.published, **published}, bundle)


def result_name(result_filename: str, directory: str, name: FileName) -> str:
    """The workflow's name for a result of sa-bench: it reads the GPU counts out of it again."""
    split = "" if name.prefill_gpus is None else f"_ctx_{name.prefill_gpus}_gen_{name.decode_gpus}"
    return f"{result_filename}_{directory}_conc{name.concurrency}_gpus_{name.gpus}{split}.json"


def agentic_name(result_filename: str, concurrency: int) -> str:
    """The workflow's name for an agentic result."""
    return f"{result_filename}_conc{concurrency}.json"


def _check_request(request: CollectRequest) -> None:
    if not request.result_filename or "/" in request.result_filename:
        raise ResultError(f"{request.result_filename!r} cannot begin a file name")
    if request.logs_dir.absolute().parent.name != request.job_id:
        raise ResultError(
            f"these are not the logs of job {request.job_id}",
            where=str(request.logs_dir),
            hint="results are only taken from outputs/<job id>/logs",
        )
    if not request.workspace.is_dir():
        raise ResultError("no such directory", where=str(request.workspace))


def _look(request: CollectRequest) -> _Found:
    found = {"fixed": _look_fixed, "agentic": _look_agentic, "eval": lambda _: _Found()}[request.mode](request)
    return _look_eval(request, found) if request.run_eval or request.mode == "eval" else found


def _look_fixed(request: CollectRequest) -> _Found:
    """Results of sa-bench: every ``results_concurrency_*.json`` below the directories ``*isl*osl*`` of the logs."""
    points: dict[int, Point] = {}
    problems: dict[int, Problem] = {}
    doubts: list[str] = []
    files: dict[str, tuple[Path, str]] = {}
    for path, status in sorted(log_files(request.logs_dir)):
        name = FileName.parse(path.name)
        folder = path.relative_to(request.logs_dir).parts[0]
        if name is None or folder == path.name or "isl" not in folder.partition("osl")[0]:
            continue
        shown = path.relative_to(request.logs_dir)
        if status.st_mtime < request.started:
            problems[name.concurrency] = _invalid(name.concurrency, f"{shown} is older than this run")
            continue
        point = read_result(path, expected_concurrency=name.concurrency, isl=request.isl, osl=request.osl)
        if isinstance(point, Invalid):
            problems[name.concurrency] = _invalid(name.concurrency, f"{shown}: {point.reason}")
            continue
        target, digest = result_name(request.result_filename, folder, name), _digest(path)
        if (other := files.get(target)) and other[1] != digest:
            raise ResultError(
                f"two results would both be {target}: {other[0]} and {path}",
                hint="the job measured one concurrency twice; correct the recipe",
            )
        if target in files:
            continue
        if (first := points.get(name.concurrency)) is not None:
            problems[name.concurrency] = _invalid(
                name.concurrency, f"measured twice, {first.path.name} and {path.name}: which one counts is not known"
            )
        points.setdefault(name.concurrency, point)
        files[target] = path, digest
        if name.concurrency not in request.concurrencies:
            doubts.append(f"{shown} was not asked for")
    for concurrency in request.concurrencies:
        if concurrency not in points and concurrency not in problems:
            problems[concurrency] = Problem(f"concurrency {concurrency}: no result in {request.logs_dir}", concurrency)
    return _Found(
        tuple(points[key] for key in sorted(points)),
        tuple(problems[key] for key in sorted(problems)),
        tuple(doubts),
        files,
    )


def _look_agentic(request: CollectRequest) -> _Found:
    """Agentic results; one that was not asked for makes the workflow's count fail, so it is a problem."""
    source = request.agentic_source or request.workspace
    asked = {agentic_name(request.result_filename, concurrency): concurrency for concurrency in request.concurrencies}
    points: list[Point] = []
    problems: list[Problem] = []
    files: dict[str, tuple[Path, str]] = {}
    for name, concurrency in asked.items():
        path = source / name
        try:
            modified = path.stat().st_mtime
        except OSError as error:
            why = "no result" if error.errno == errno.ENOENT else str(error.strerror)
            problems.append(Problem(f"concurrency {concurrency}: {why}: {path}", concurrency))
            continue
        if modified < request.started:
            problems.append(_invalid(concurrency, f"{path} is older than this run"))
            continue
        point = read_agentic_result(path, expected_concurrency=concurrency)
        if isinstance(point, Invalid):
            problems.append(_invalid(concurrency, f"{path}: {point.reason}"))
            continue
        points.append(point)
        files[name] = path, _digest(path)
    there = {path.name for path in request.workspace.glob("*_conc*.json")}
    for name in sorted(each for each in there if each.startswith(f"{request.result_filename}_conc")):
        if name not in asked:
            problems.append(Problem(f"{name} in the workspace is not of this run, and the workflow would count it"))
    return _Found(tuple(points), tuple(problems), (), files)


def _look_eval(request: CollectRequest, found: _Found) -> _Found:
    """Eval files. After a benchmark they are extra, as srt-slurm sees it (do_sweep.py): missing ones are a doubt."""
    folder = request.logs_dir / "eval_results"
    files = {path.name: path for path, _ in log_files(folder) if path.parent == folder}
    bad = [
        f"{name} is not a JSON object" for name, path in files.items() if name.endswith(".json") and not _is_json(path)
    ]
    if not any(name.startswith("results") and name.endswith(".json") for name in files):
        bad.append(f"eval: no results*.json in {folder}")
    problems = tuple(Problem(text) for text in bad) if request.mode == "eval" else ()
    return _Found(
        found.points,
        found.problems + problems,
        found.doubts if problems else (*found.doubts, *bad),
        {**found.files, **{name: (path, _digest(path)) for name, path in sorted(files.items())}},
    )


def _invalid(concurrency: int, text: str) -> Problem:
    return Problem(f"concurrency {concurrency}: {text}", concurrency, "invalid")


def _is_json(path: Path) -> bool:
    try:
        msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_target(request: CollectRequest, name: str, digest: str, doubts: list[str]) -> None:
    """Refuse a name that cannot be, and a file in the way that is not ours."""
    length = len(name.encode(errors="surrogateescape"))
    if length > NAME_MAX:
        raise ResultError(
            f"the name of a result is {length} bytes long, and a file name may have {NAME_MAX}: {name}",
            hint="shorten EXP_NAME or the runner's name, of which the workflow makes RESULT_FILENAME",
        )
    if request.mode == "fixed" and length + len(_AGGREGATE_PREFIX) > NAME_MAX:
        doubts.append(f"{_AGGREGATE_PREFIX}{name} is too long for a file name: process_result.py will fail")
    target = request.workspace / name
    if not target.exists() or (there := _digest(target)) == digest or there == request.published.get(name):
        return
    raise ResultError(
        f"a file of another run is in the way: {name}",
        where=str(target),
        hint="remove it, or collect into an empty workspace",
    )


def _publish(request: CollectRequest, name: str, source: Path, digest: str) -> str:
    """Publish a copy of ``source``, which must still be what was looked at, in place of nothing or of our own."""
    target = request.workspace / name
    try:
        if target.exists() and _digest(target) == digest:
            return digest
        temporary = temporary_name(target)
        shutil.copyfile(source, temporary)
        try:
            if _digest(temporary) != digest:
                raise ResultError(
                    "a result changed while it was collected", where=str(source), hint="is the job still running?"
                )
            if name in request.published:
                temporary.replace(target)
            elif not publish_new(temporary, target):
                raise ResultError("a file of another run came in the way", where=str(target))
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"a result cannot be published: {error.strerror}", where=str(target)) from None
    return digest


def _keep_logs(request: CollectRequest, doubts: list[str]) -> Bundle | None:
    """``LOGS/`` and the tarball. They are evidence: what goes wrong with them is a doubt, not a failure."""
    stamps = [
        (f"power/{name}", path) for name in STAMPS if _is_fresh(path := request.workspace / name, request.started)
    ]
    try:
        bundle = bundle_logs(request.logs_dir, request.workspace / TARBALL, extra=stamps)
        if bundle is not None:
            doubts += [f"{TARBALL}: {line}" for line in bundle.left_out]
            doubts += _replace_logs(request, stamps)
    except OSError as error:
        doubts.append(f"the logs could not be kept: {error.strerror}")
        return None
    return bundle


def _replace_logs(request: CollectRequest, stamps: list[tuple[str, Path]]) -> list[str]:
    """Put a copy of the logs at ``LOGS/``, in place of nothing or of an earlier copy of a launcher's."""
    final = request.workspace / LOGS
    if final.exists() and not (final / _OWNER).is_file():
        return [f"{LOGS}/ was there and is not a launcher's: the logs are only in {TARBALL}"]
    temporary, old = temporary_name(final), temporary_name(final)
    try:
        failed = copy_logs(request.logs_dir, temporary)
        for name, path in stamps:
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, temporary / name)
        (temporary / _OWNER).write_text(f"{request.job_id}\n", encoding="utf-8")
        if final.exists():
            final.rename(old)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return [f"{LOGS}/{line}" for line in failed]


def _is_fresh(path: Path, started: float) -> bool:
    try:
        return path.stat().st_mtime >= started
    except OSError:
        return False
