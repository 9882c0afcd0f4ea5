"""Runs `srtctl apply` once, and finds out which job is ours.

A submission that failed or timed out may have reached Slurm nevertheless: sbatch can lose the answer after the
controller took the job, and srtctl does more work after sbatch returned. So before a submission counts as failed, the
scheduler is asked for a job with our token. Nothing here ever submits twice.

srtctl validates srtslurm.yaml as a whole. When one key is unknown or one value has the wrong type, it logs a warning,
drops the *whole* file and submits without any default or alias (`load_cluster_config` in srt-slurm's
``src/srtctl/core/config.py``, the same from sa-submission-q2-2026 to v1.0.68). So the known keys are read from the
checkout before the file is written, and srtctl's output is searched for the warning afterwards.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import ConfigError, JobsExist, SubmissionError, suggest
from launcher.core.process import CommandRunner, Completed, run
from launcher.core.publish import write_text
from launcher.run.kind import Submitted
from launcher.slurm.client import Scheduler
from launcher.slurm.other_jobs import foreign_cluster
from launcher.slurm.submission import HINTS as SBATCH_HINTS
from launcher.slurm.submission import LOST_ANSWER_PAUSES, find_job, refusal_hint
from launcher.srtctl import recipe
from launcher.srtctl.planned import LOG, SRTSLURM
from launcher.srtctl.sbatch_wrapper import reported_cluster, wrapper_on_path

STRING_MAPS = ("model_paths", "containers", "default_mounts", "default_sbatch_directives", "cloud")
"""Keys of srtslurm.yaml whose values map strings to strings: marshmallow refuses a number ("Not a valid string")."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_JOB = re.compile(r"\bJob\s+(\S+)\s+submitted!")
_OUTPUT = re.compile(r"Logs: (?P<directory>/.*)/logs\s*$", re.MULTILINE)

_SUMMARY = re.compile(r"^Running:\n(?:(?!🚀|❌|Error|Traceback|\d{4}-).*\n?)*", re.MULTILINE)
"""srtctl's summary after a submission: the services that run, and advice about identity blocks."""

_DROPPED = re.compile(
    r"(?:Failed to load or validate srtslurm\.yaml: |(?=SRTSLURM_CONFIG set but file not found: ))(?P<why>.*)"
)


@dataclass(frozen=True)
class Submission:
    """One `srtctl apply`.

    ``argv`` begins with ``srtctl apply``. An option that this srtctl lacks is left out, and ``--json`` is added if it
    exists (``options``: see `checkout.Checkout`). ``root`` is the work tree, the working directory of the command.
    ``environment`` is complete and clean (`process.clean_environment`): all of it reaches the job. ``token`` is the
    job's comment by the recipe; ``earlier`` are the ids of jobs that had it before. With ``hold`` the job is submitted
    held, and the caller must release it. ``timeout`` is in seconds.
    """

    argv: tuple[str, ...]
    root: Path
    environment: Mapping[str, str]
    token: str
    options: frozenset[str]
    timeout: float = 300.0
    earlier: frozenset[str] | None = frozenset()
    hold: bool = False


@dataclass(frozen=True)
class _Printed:
    """The output of one run of srtctl.

    ``ids`` are job ids in order, ``error`` is srtctl's own error and ``output_dir`` the job's directory (both may be
    ""), ``submissions`` is the number of submissions that it began, ``text`` the whole output.
    """

    ids: tuple[str, ...]
    error: str
    output_dir: str
    submissions: int
    text: str


def apply(
    submission: Submission,
    *,
    scheduler: Scheduler,
    run: CommandRunner = run,
    sleep: Callable[[float], None] = time.sleep,
) -> Submitted:
    """Submit exactly one job.

    Raises SubmissionError when there is no job; SubmissionUnknown when that is not certain; JobsExist when there are
    jobs that must be cancelled: several, or one that srtctl submitted after it had dropped srtslurm.yaml.
    """
    argv, notes = _argv(submission)
    with _environment(submission) as environment:
        done = run(argv, timeout=submission.timeout, cwd=submission.root, env=environment)
        cluster = foreign_cluster(reported_cluster(environment), submission.environment)
    printed = _read(done)
    one = len(printed.ids) == 1 and printed.ids[0].isdecimal() and printed.submissions <= 1
    failed = not done.ok or printed.error != "" or not one
    problem = _problem(done, printed, submission.timeout) if failed else ""
    # Once sbatch was reached, a job can still appear.
    may_come = done.timed_out or (done.returncode or 0) < 0 or printed.submissions > 0
    pauses = LOST_ANSWER_PAUSES if may_come else ()
    job = find_job(printed.ids, problem, submission.token, submission.earlier, scheduler, pauses, sleep)
    dropped = dropped_warning(printed.text)
    if job is None:
        hints = msgspec.yaml.decode(Path(__file__).with_name("srtctl_faults.yaml").read_bytes(), type=dict[str, str])
        also = f"\nsrtctl had dropped srtslurm.yaml: {dropped}" if dropped else ""
        hint = refusal_hint(" ".join(problem.split()), {**hints, **SBATCH_HINTS})
        raise SubmissionError(problem + also, where=_recipe(argv), hint=hint)
    job_id, key = job
    if printed.submissions > 1:
        raise JobsExist(
            f"one job was asked for, and srtctl submitted more than job {job_id}.\n{problem}",
            job_ids=(job_id,),
            hint="cancel it",
        )
    cluster = cluster if key is None else key.cluster  # where our token was found counts more than what was printed
    if dropped:
        raise JobsExist(
            f"the job was submitted without srtslurm.yaml, hence without aliases and defaults: {dropped}",
            job_ids=(job_id,),
            hint="cancel it and correct the runner file's `srtslurm` table",
            cluster=cluster,
        )
    output = submission.root / "outputs" / job_id
    if Path(printed.output_dir).name == job_id:
        output = submission.root / printed.output_dir  # srtctl prints a relative ``-o`` as it was given
    return Submitted(
        job_id=job_id,
        submitted=None if key is None else key.submitted,
        output=output,
        log=output / LOG.format(job_id),
        held=submission.hold,
        cluster=cluster,
        adopted=failed,
        printed=printed.text,
        notes=(*notes, f"srtctl failed, and the job exists: {problem}") if failed else tuple(notes),
    )


def _argv(submission: Submission) -> tuple[list[str], list[str]]:
    """The argv with the options that this srtctl accepts, and notes about the changes."""
    argv, notes = list(submission.argv), []
    if not _recipe(argv):
        raise SubmissionError(
            "no recipe is given", hint="srtctl takes an empty -f for the current directory and submits all of it"
        )
    if "--no-preflight" in argv and "--no-preflight" not in submission.options:
        argv.remove("--no-preflight")
        notes.append("--no-preflight is left out: this srtctl has no preflight checks and no such option")
    if "--json" in submission.options and "--json" not in argv:
        argv.append("--json")
    if unknown := [word for word in argv if word.startswith("--") and word not in submission.options]:
        raise SubmissionError(f"this srtctl's apply has no option {unknown[0]}", where=_recipe(argv))
    return argv, notes


def _recipe(argv: Sequence[str]) -> str:
    """The value of ``-f``; "" when it is missing."""
    return argv[argv.index("-f") + 1] if "-f" in argv[:-1] else ""


@contextlib.contextmanager
def _environment(submission: Submission) -> Iterator[dict[str, str]]:
    """The environment of srtctl: wide lines, no colours, the tree's own Python first on PATH, then our sbatch."""
    # srtctl prints through rich, which wraps lines at COLUMNS (15 broke the line with the job's id) and prints colours
    # if FORCE_COLOR is set.
    kept = {k: v for k, v in submission.environment.items() if k not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    programs = submission.root / ".venv/bin"
    path = kept.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    with wrapper_on_path(submission.token, submission.earlier or frozenset(), path, hold=submission.hold) as sbatch:
        path = f"{programs}:{sbatch['PATH']}" if programs.is_dir() else sbatch["PATH"]
        yield {**kept, **sbatch, "COLUMNS": "500", "NO_COLOR": "1", "PATH": path}


def _read(done: Completed) -> _Printed:
    """Read srtctl's records (with ``--json``, one JSON object per line) and its other text."""
    out, err = _ANSI.sub("", done.stdout), _ANSI.sub("", done.stderr)
    records: list[dict[str, Any]] = []
    for line in out.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    submitted = [r for r in records if r.get("status") == "submitted"]
    errors = [str(r.get("error") or "no reason given") for r in records if r.get("status") == "error"]
    errors += ["no-submissions: there was nothing to submit" for r in records if r.get("status") == "no-submissions"]
    text = "\n".join(part.strip() for part in (out, err) if part.strip())
    logs = _OUTPUT.search(text)
    directory = submitted[0].get("output_dir") if submitted else ""
    return _Printed(
        ids=tuple(dict.fromkeys([*(str(r.get("slurm_job_id")) for r in submitted), *_JOB.findall(text)])),
        error="\n".join(errors),
        output_dir=str(directory or (logs["directory"] if logs else "")),
        submissions=text.count("Submitting: "),
        text=text,
    )


def _problem(done: Completed, printed: _Printed, timeout: float) -> str:
    """How the submission failed: srtctl's own error, and its other text without log lines and advice."""
    if done.timed_out:
        first = f"srtctl apply did not end within {timeout:.0f} s and was stopped"
    elif done.ok:
        first = f"srtctl apply exited with 0 and named {', '.join(printed.ids) or 'no job'}"
    else:
        first = f"srtctl apply exited with {done.returncode}"
    other_lines = [
        line
        for line in _SUMMARY.sub("", printed.text).splitlines()
        if line.strip() and " | INFO | " not in line and not line.startswith("{")
    ]
    if len(printed.ids) > 1 or printed.submissions > 1:
        first += "; the selector must name exactly one variant"
    return "\n".join(filter(None, [first, printed.error, *other_lines]))


def dump_srtslurm(document: Mapping[str, Any]) -> str:
    """A document of srtslurm.yaml as text, keys in the given order.

    Raises ConfigError for a value that srtctl would refuse (a number in a map of strings) or that YAML cannot hold.
    """
    for key in STRING_MAPS:
        entries = {} if document.get(key) is None else document[key]
        if not isinstance(entries, Mapping):
            raise ConfigError(f"{key}: expected a map of strings, not a {type(entries).__name__}", where=SRTSLURM)
        if wrong := [pair for pair in entries.items() if set(map(type, pair)) != {str}]:
            raise ConfigError(f"{key}: expected strings, not {wrong[0][0]!r} and {wrong[0][1]!r}", where=SRTSLURM)
    try:
        return recipe.dump(document)
    except ConfigError as error:
        raise ConfigError(error.message, where=SRTSLURM) from error


def write_srtslurm(path: Path, document: Mapping[str, Any], known: Collection[str]) -> None:
    """Write srtslurm.yaml atomically. Raises OSError, and ConfigError for a key that this srtctl does not know."""
    if unknown := [key for key in document if key not in known]:
        raise ConfigError(
            f"the pinned srt-slurm does not know {', '.join(map(repr, unknown))}; it would drop the whole file",
            where=SRTSLURM,
            hint=suggest(unknown[0], known, f"it knows {', '.join(sorted(known))}"),
        )
    write_text(path, dump_srtslurm(document))


def dropped_warning(text: str) -> str | None:
    """Why srtctl dropped its srtslurm.yaml, by its output; None when it did not.

    srtctl continues without the file, submits and exits with 0.
    """
    match = _DROPPED.search(text)
    return match["why"].strip() if match else None
