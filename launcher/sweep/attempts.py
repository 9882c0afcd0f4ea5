"""What the records of a sweep's runs say: the state of each attempt, which concurrencies have a valid result, its cost.

Only digests of images are remembered between two reads: the first attempt that ended well decides which image a tag
means in this sweep, and a result that was measured with another image does not count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from launcher.core.errors import ConfigError, JobError, ResultError
from launcher.core.reading import prepare_type
from launcher.result.summary_file import Summary, read_document, read_summary
from launcher.run.fields import WHOLE, RecordedJob, RunFields, Verdict, read_fields
from launcher.sweep.estimate import EarlierRun
from launcher.sweep.schema import Job
from launcher.sweep.state import NONE, Facts, Phase, State

if TYPE_CHECKING:  # `sweep status` is asked often
    from launcher.run.finish import Outcome


class _Measured(msgspec.Struct):
    model: str
    topology: str
    concurrencies: list[int]
    scenario: str
    isl: int | None = None
    osl: int | None = None


def earlier_runs(runs: Path, most: int = 1000) -> Iterator[EarlierRun]:
    """The earlier runs below ``runs`` whose results were good, of the latest so many records."""
    with contextlib.suppress(OSError):
        latest = sorted((e for e in os.scandir(runs) if not e.name.startswith(".")), key=lambda e: -e.stat().st_mtime)
        for entry in latest[:most]:
            with contextlib.suppress(OSError, ConfigError, ResultError, msgspec.ValidationError):
                fields = read_fields(f"{entry.path}/run.json", entry.name, facts=False)
                job = fields.job
                if fields.state == "succeeded" and job is not None and job.started and job.ended:
                    benchmark = msgspec.convert(
                        (read_document(entry.path) or {}).get("benchmark"), prepare_type(_Measured)
                    )
                    measures = benchmark.scenario if benchmark.isl is None else f"{benchmark.isl}/{benchmark.osl}"
                    measured = tuple(benchmark.concurrencies)
                    key = fields.runner, benchmark.model, benchmark.topology, measures
                    yield EarlierRun(key, measured, job.ended - job.started)


class Records:
    """The records of one sweep's runs, below ``runs``."""

    def __init__(self, runs: Path, state: State) -> None:
        self._runs = runs
        self._state = state
        self._digests: dict[str, str] = {}

    def facts(self, run: str) -> Facts:
        """The state of an attempt, or of a reused run, by its record."""
        attempt = self._state.by_run.get(run)
        key = attempt.event.job if attempt is not None else self._state.reused_runs.get(run)
        if key is None or (job := self._state.jobs.get(key)) is None:
            return NONE
        directory = f"{self._runs}/{run}"
        try:
            fields = read_fields(f"{directory}/run.json", run, facts=False)
        except (FileNotFoundError, NotADirectoryError):
            return NONE
        except ConfigError as error:
            phase: Phase = "unknown" if attempt is not None and attempt.open else "over"
            return Facts(phase, state="failed", says=error.message, layer="launcher", text=error.message, exit_code=1)
        facts = facts_of_record(fields)
        if fields.ended is None and not facts.state:
            return facts
        concurrencies = attempt.event.concurrencies if attempt is not None else job.concurrencies
        return self._with_results(facts, job, concurrencies, directory)

    def _with_results(self, facts: Facts, job: Job, concurrencies: tuple[int, ...], directory: str) -> Facts:
        """The facts, completed by the points in the run's summary."""
        summary = Summary()
        with contextlib.suppress(ResultError):
            summary = read_summary(directory) or summary
        digest = next((i.digest for i in summary.images if i.reference == job.fingerprint.get("image")), None) or ""
        if not summary.points and facts.state == "succeeded":  # an evaluation alone has no points
            return replace(facts, ok=frozenset(concurrencies))
        ok, bad = set(), {}
        for point in summary.points:
            if point.concurrency is None:
                continue
            if point.state != "ok":
                bad[point.concurrency] = point.reason or point.state
            elif point.path and not (os.path.lexists(point.path) or _has_copy(point.path, directory)):
                bad[point.concurrency] = f"its result was removed: {point.path}"
            else:
                ok.add(point.concurrency)
        if ok and facts.layer not in WHOLE:
            bad.update(dict.fromkeys(ok, f"its job failed ({facts.layer}), so that none of its results is believed"))
            ok.clear()
        if ok and (reason := self._other_image(job, digest)):
            bad.update(dict.fromkeys(ok, reason))
            ok.clear()
        return replace(facts, ok=frozenset(ok), bad=bad)

    def _other_image(self, job: Job, digest: str) -> str:
        """Why results of an image with this digest do not count; "" when they do."""
        if not digest:
            return ""
        image = f"{job.runner} {job.kind} {job.fingerprint['image']}"  # of a squash file, or as docker has it
        expected = job.fingerprint.get("image digest") or self._digests.setdefault(image, digest)
        return "" if expected == digest else f"image digest is {digest}, not {expected}"


def facts_of_record(fields: RunFields) -> Facts:
    """The state of a run by its record, without its results."""
    job = fields.job
    word, says = (job.state, job.says) if job is not None else ("", fields.state)
    phase: Phase
    if fields.has_ended:
        phase = "over" if fields.settled else "unknown"
        says = says if fields.settled else "it ended, and its job may live"
    elif job is None:
        phase = "unknown" if fields.submission_in_doubt else "preparing"
        says = "whether it has a job is not known" if fields.submission_in_doubt else fields.state
    else:
        phase, word = "alive", "COLLECTING" if job.over else word
    verdict, recorded = fields.verdict or Verdict("", ""), job or RecordedJob("")
    return Facts(
        phase=phase,
        word=word,
        says=says,
        state=fields.state if fields.has_ended else "",
        layer=verdict.layer,
        text=verdict.text,
        exit_code=fields.exit_code or 0,
        job=recorded.id,
        log=recorded.log,
        nodes=recorded.nodes,
        submitted=recorded.submitted,
        started=recorded.started,
        ended=(recorded.ended or fields.ended) if recorded.over else None,
    )


def is_over(runs: Path, run: str) -> bool:
    """Whether no job of a run can live. When its record cannot be read, one may."""
    directory = f"{runs}/{run}"
    try:
        return facts_of_record(read_fields(f"{directory}/run.json", run, facts=False)).phase == "over"
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (ConfigError, OSError):
        return False


def with_first_cause(facts: Facts, first: Facts) -> Facts:
    """A job that we had cancelled after it was given up: the first outcome says why."""
    return replace(facts, layer=first.layer, text=first.text, state=first.state, exit_code=first.exit_code)


def _has_copy(path: str, directory: str) -> bool:
    """Whether a result whose job's tree `launcher cleanup` removed has a copy in the run's record, under the name that
    `launcher.benchmark.benchmark` gives it there."""
    end = Path(path).name.replace("results_concurrency_", "_conc")
    try:
        names = [path_there.name for path_there in Path(directory, "results").iterdir()]
    except OSError:
        return False
    return any(name.endswith(end) and not name.startswith(("agg_", "power_")) for name in names)


def facts_of_outcome(outcome: Outcome, job: RecordedJob | None) -> Facts:
    """The facts about an attempt whose record was removed while it ran. A JobError of a run with a job means that the
    job was given up, and may live."""
    verdict = outcome.verdict or Verdict("", "its record was removed")
    return Facts(
        "unknown" if isinstance(outcome.error, JobError) and job is not None else "over",
        state=outcome.state,
        layer=verdict.layer,
        text=verdict.text,
        exit_code=outcome.exit_code,
        job="?",
    )
