"""The end of a run: how its job stands, its results, its verdict, and what is left for people and workflows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from launcher.core.errors import Cancelled, JobError, LauncherError, ResultError
from launcher.core.publish import write_json
from launcher.core.redact import redact
from launcher.result.collect import Collected
from launcher.result.logs import LOGS
from launcher.result.summary import Used, summary
from launcher.result.validate import Point
from launcher.run import evidence
from launcher.run.image_usage import unmark
from launcher.run.kind import Run
from launcher.run.record_fields import RecordedError, RecordedJob
from launcher.run.verdict import Verdict
from launcher.slurm.client import JobState, Phase

RESULT_PATIENCE = 60.0
"""Seconds to wait for results that are not there yet: NFS shows another node's files up to a minute late."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``state`` is ``succeeded``, ``failed`` or ``cancelled``; ``error`` says what was wrong."""

    run: str
    state: str
    points: tuple[Point, ...] = ()
    error: LauncherError | None = None
    verdict: Verdict | None = None

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error is not None else 0


def note_state(run: Run, state: JobState) -> None:
    """Write down how the job stands."""
    running = state.word == "RUNNING"
    run.record.update(state="running" if running else run.record.fields.state, job=_job_in(run, state))
    run.record.event("job", state.describe(), job=_job_id(run), state=state.word)


def note_after_cancel(run: Run, state: JobState) -> None:
    """Write down what became of the job that we asked to end."""
    run.record.update(job=_job_in(run, state))
    run.record.event("job", f"after cancelling: {state.describe()}", job=_job_id(run), state=state.word)
    if state.phase is Phase.TERMINAL:  # who does not answer now would only cost the time that is left
        evidence.keep_answers(run, soon=True)
        unmark(run.record)


def _job_id(run: Run) -> str:
    return run.record.job.id if run.record.job is not None else ""


def _job_in(run: Run, state: JobState) -> RecordedJob:
    """The recorded job with how it stands; it is ``over`` once Slurm has said so, whatever Slurm says later."""
    job = run.record.job
    assert job is not None
    over = job.over or state.phase is Phase.TERMINAL
    return replace(job, state=state.word, says=state.describe(), over=over, held=job.held and not over)


def finish(run: Run, state: JobState) -> Outcome:
    """Collect and judge: good is a job that COMPLETED with 0:0 *and* every result that was asked for."""
    run.record.update(state="collecting", job=_job_in(run, state))
    job_error = None if state.succeeded else _job_error(run, state)
    if state.succeeded and state.failed_step:
        run.record.event("warning", f"the job COMPLETED, but {state.failed_step}")
    evidence.keep_answers(run)
    collected, error, taken = Collected(), None, False
    try:
        collected = collect(run, patience=_result_patience(run) if state.succeeded else 0.0)
        taken = True
        collected.raise_if_bad()
    except ResultError as trouble:
        error = trouble
        run.record.event("error", str(trouble))
    outcome, delivered = _end(run, job_error or error, collected, state)
    if taken and delivered:
        _remove_own_directories(run)
    return outcome


def cancelled(run: Run, why: Cancelled) -> Outcome:
    """End as cancelled: bundle what there is, within the seconds that a workflow leaves."""
    return _end(run, why, Collected(), None)[0]


def failed(run: Run, error: LauncherError) -> Outcome:
    """End as failed for a reason that is not the job's or its results'."""
    run.record.event("error", str(error))
    return _end(run, error, Collected(), None)[0]


def collect(run: Run, patience: float = 0.0) -> Collected:
    """Collect the results of the run's job. Raises ResultError when that cannot be done."""
    if run.record.job is None:
        raise ResultError("this run has no job, hence no results", where=f"run {run.id}")
    with run.record.doing("collect") as keep:
        collected = run.kind.collect(run, patience)
        keep({"published": dict(collected.published), "problems": [str(p) for p in collected.problems]})
    for doubt in collected.doubts:
        run.record.event("warning", doubt)
    return collected


def _result_patience(run: Run) -> float:
    """Jobs of the embedded scheduler write to this machine's own disk: what is not there will not come."""
    return 0.0 if run.plan.scheduler.kind == "local" else RESULT_PATIENCE


def _job_error(run: Run, state: JobState) -> JobError:
    job = run.record.job
    assert job is not None
    log = Path(job.log)
    if run.record.fields.results == "workspace":
        log = Path(run.plan.workspace.path, LOGS, log.name)  # the job's own directory goes with its tree
    return JobError(f"the job ended as {state.describe()}", where=f"job {job.id}", hint=f"its log: {log}")


def _end(run: Run, error: LauncherError | None, collected: Collected, state: JobState | None) -> tuple[Outcome, bool]:
    """The outcome, written down; and whether logs and evidence are where the workflow looks."""
    name = "succeeded" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
    verdict = evidence.judge(run, error, state)
    delivered = evidence.deliver(run, soon=isinstance(error, Cancelled))
    outcome = Outcome(run.id, name, collected.points, error, verdict)
    recorded = None
    if error is not None:
        hide = partial(redact, environ=run.services.environ)
        recorded = RecordedError(
            error.layer,
            hide(error.message),
            hide(error.where) if error.where is not None else None,
            hide(error.hint) if error.hint is not None else None,
        )
    run.record.update(
        state=name, ended=run.services.clock(), exit_code=outcome.exit_code, verdict=verdict, error=recorded
    )
    write_json(run.record.directory / "summary.json", _summary(run, collected, state))
    run.record.event("end", name if error is None else f"{name}: {error.layer}: {error.message}")
    run.record.event("verdict", str(verdict))
    unmark(run.record)
    return outcome, delivered


def _summary(run: Run, collected: Collected, state: JobState | None) -> dict[str, Any]:
    fields = run.record.fields
    job, error = fields.job, fields.error
    return summary(
        run.plan,
        collected,
        state=state.word if state is not None else fields.state,
        job_id=job.id if job is not None else None,
        used=Used(
            srt_slurm_sha=run.record.step("workspace").facts.get("sha"),
            images=run.record.step("images").facts.get("images", ()),
            model=dict(run.record.step("model").facts) or None,
        ),
        times={"started": fields.created, "submitted": job.submitted if job else None, "ended": fields.ended},
        problems=[f"{error.layer}: {error.message}"] if error and error.layer != "results" else [],
    )


def _remove_own_directories(run: Run) -> None:
    """Remove the run's tree and its copy of the workspace once their logs are in the workflow's hands.

    On a shared file system nobody else ever would, and leftovers of NFS in a workspace block the next checkout. A run
    by hand keeps its tree, to be looked at.
    """
    if run.record.fields.results != "workspace":
        return
    shared = run.plan.workspace.shared
    for path in (*run.kind.own_directories(run.plan), *([Path(shared)] if shared else [])):
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            run.record.event("warning", f"{path} could not be removed whole")
