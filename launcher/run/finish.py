"""The end of a run: its job's state, its results, its verdict, and the evidence and logs for people and workflows.

Neither evidence nor logs hold a secret of the environment, or a text with the shape of one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import Cancelled, JobError, LauncherError, ResultError
from launcher.core.publish import remove_tree
from launcher.core.reading import open_regular
from launcher.core.terminal import one_line
from launcher.core.waiting import start_in_thread
from launcher.plan.plan import Plan
from launcher.result.collect import CollectedResults
from launcher.result.logs import LOGS, TARBALL, bundle_logs, keep_logs
from launcher.result.summary import Provenance, summary
from launcher.result.validate import MeasuredPoint
from launcher.run.fields import Verdict
from launcher.run.image_usage import unmark
from launcher.run.kind import JobKind, Run
from launcher.run.log_lines import tail
from launcher.run.record import MAX_EVIDENCE_BYTES, RecordedError, RecordedJob, RunRecord
from launcher.run.verdict import verdict
from launcher.slurm.client import BY_USER, JobState, Phase

if TYPE_CHECKING:  # only a failed run imports it
    from launcher.run.log_failure import Failure

RESULT_PATIENCE = 60.0
"""Seconds to wait for results that are not there yet: NFS shows another node's files up to a minute late."""

FOLDER = "launcher-evidence"
"""The folder of the evidence in a tarball of logs: workflows take no file below it for a result."""

SEARCH_SECONDS = 10.0
"""Seconds to search logs for the first failure."""

STOP_SECONDS = 1.0
"""After a request to stop: seconds to pack logs, and seconds to wait for the scheduler."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``state`` is ``succeeded``, ``failed`` or ``cancelled``; ``error`` is why it did not succeed."""

    run: str
    state: str
    points: tuple[MeasuredPoint, ...] = ()
    error: LauncherError | None = None
    verdict: Verdict | None = None

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error is not None else 0


def record_state(run: Run, state: JobState) -> None:
    """Record the job's state."""
    job, running = _job_in(run, state), state.word == "RUNNING"
    run.record.update(state="running" if running else run.record.fields.state, job=job)
    limit = run.plan.scheduler.seconds if running else None
    run.record.event("job", _described(run, state), job=job.id, state=state.word, at_most=limit)


def record_state_after_cancel(run: Run, state: JobState) -> None:
    """Record the state of a job after a request to cancel it."""
    job = _job_in(run, state)
    run.record.update(job=job)
    run.record.event("job", f"after cancelling: {state.describe()}", job=job.id, state=state.word)
    if state.phase is Phase.TERMINAL:  # a scheduler that does not answer would only cost time
        keep_scheduler_answers(run, state, soon=True)
        unmark(run.record)


def _job_in(run: Run, state: JobState) -> RecordedJob:
    """The recorded job with its state; once Slurm has said that it is ``over``, it stays so."""
    job = run.record.job
    assert job is not None
    over = job.over or state.phase is Phase.TERMINAL
    return replace(
        job,
        state=state.word,
        says=_described(run, state),
        over=over,
        held=job.held and not over,
        started=state.started or job.started,
        ended=state.ended or job.ended,
        nodes=state.nodes or job.nodes,
    )


def _described(run: Run, state: JobState) -> str:
    """The job's state for a person, without the reason JobHeldUser while the launcher itself holds the job."""
    job = run.record.job
    held_by_us = job is not None and job.held and state.reason == BY_USER
    return (replace(state, reason="") if held_by_us else state).describe()


def finish(run: Run, state: JobState) -> Outcome:
    """Collect and judge: a run is good when its job COMPLETED with 0:0 *and* every requested result is valid."""
    job = _job_in(run, state)
    run.record.update(state="collecting", job=job)
    error: LauncherError | None = None
    patience = 0.0
    if not state.succeeded:
        log = Path(job.log)
        if run.record.fields.results == "workspace":
            log = Path(run.plan.workspace.path, LOGS, log.name)  # the job's own directory is removed with its tree
        error = JobError(f"the job ended as {state.describe()}", where=f"job {job.id}", hint=f"its log: {log}")
        if state.word == "CANCELLED" and run.record.cancel_requested():
            message = f"{run.record.cancel_reason().message}: the job ended as {state.describe()}"
            # 130 is the code of a process that was asked to stop; here only the job was cancelled.
            error = Cancelled(message, exit_code=JobError.exit_code)
    elif run.plan.scheduler.kind != "local":  # local jobs write to this machine's disk, where nothing appears late
        patience = RESULT_PATIENCE
    if state.succeeded and state.failed_step:
        run.record.event("warning", f"the job COMPLETED, but {state.failed_step}")
    keep_scheduler_answers(run, state)
    run.kind.end_leftovers(run)
    collected, were_collected = CollectedResults(), False
    try:
        collected = collect(run, patience)
        were_collected = True
        collected.raise_if_bad(logs_hint(run))
    except ResultError as problem:
        error = error or problem
        run.record.event("error", str(problem))
    outcome, delivered = _record_outcome(run, error, collected, state)
    if were_collected and delivered:
        # Nobody else removes them from a shared file system, and NFS leftovers in a workspace block the next checkout.
        # A run by hand keeps its tree for inspection until `launcher cleanup` (`deliver_and_remove`).
        if run.record.fields.results == "workspace":
            remove_directories(run.record, run.kind, run.plan)
    elif isinstance(error, Cancelled):  # by a person, not by a signal, so there is time
        deliver_and_remove(run)
    return outcome


def end_early(run: Run, error: LauncherError) -> Outcome:
    """End without results, as failed or as cancelled, quickly: GitHub kills the step soon."""
    if not isinstance(error, Cancelled):
        run.record.event("error", str(error))
    return _record_outcome(run, error, CollectedResults(), None)[0]


def collect(run: Run, patience: float = 0.0) -> CollectedResults:
    """Collect the results of the run's job. Raises ResultError when that cannot be done."""
    if run.record.job is None:
        raise ResultError("this run has no job, hence no results", where=f"run {run.id}")
    with run.record.running_step("collect", patience or None) as keep:
        collected = run.kind.collect(run, patience)
        keep({"published": dict(collected.published), "problems": [str(p) for p in collected.problems]})
    for doubt in (*collected.doubts, *_aggregate(run, collected)):
        run.record.event("warning", one_line(doubt))
    return collected


def logs_hint(run: Run) -> str:
    """Where a person finds the logs of the run's job."""
    if run.record.fields.results == "workspace":
        return f"see the job's logs in {TARBALL}, or in {LOGS}/, of the workspace"
    return f"launcher logs {run.id}"


def _aggregate(run: Run, collected: CollectedResults) -> list[str]:
    """Write what InferenceX publishes of these results beside them, as a workflow's next step does; returns the reasons
    for results without such a file."""
    from launcher.result.aggregates import aggregate_run

    job, expected = run.record.job, run.plan.results
    logs = Path(job.output, "logs") if job is not None else None
    names = [name for name in collected.published if name.startswith(expected.filename)]
    return aggregate_run(run.results_directory, run.plan.benchmark, names, logs)


def _record_outcome(
    run: Run, error: LauncherError | None, collected: CollectedResults, state: JobState | None
) -> tuple[Outcome, bool]:
    """Record the outcome; returns it, and whether logs and evidence are where the workflow expects them."""
    name = "succeeded" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
    final_verdict = judge(run, error, state)
    delivered = deliver(run, soon=isinstance(error, Cancelled))
    outcome = Outcome(run.id, name, collected.points, error, final_verdict)
    recorded = None
    if error is not None:
        where, hint = (
            run.record.without_secrets(text) if text is not None else None for text in (error.where, error.hint)
        )
        recorded = RecordedError(error.layer, run.record.without_secrets(error.message), where, hint)
    now, code = time.time(), outcome.exit_code
    fields, job = run.record.fields, run.record.job
    document = summary(
        run.plan,
        collected,
        state=state.word if state is not None else name,
        job_id=job.id if job is not None else None,
        used=Provenance(
            srt_slurm_sha=run.record.step("workspace").facts.get("sha"),
            images=run.record.images,
            model=dict(run.record.step("model").facts) or None,
            stand_ins=run.services.tools.stand_ins,
        ),
        times={"started": fields.created, "submitted": job.submitted if job else None, "ended": now},
        problems=[f"{recorded.layer}: {recorded.message}"] if recorded and recorded.layer != "results" else [],
    )
    try:
        # Before the record says that the run is over: nobody repairs a run that is.
        run.record.write("summary.json", document)
    finally:
        run.record.update(state=name, ended=now, exit_code=code, verdict=final_verdict, error=recorded)
    layer = "" if error is None or isinstance(error, Cancelled) else f" {error.layer}:"
    run.record.event("end", name if error is None else f"{name}:{layer} {error.message}", layer=final_verdict.layer)
    run.record.event("verdict", str(final_verdict))
    unmark(run.record)
    return outcome, delivered


def deliver_and_remove(run: Run) -> None:
    """Deliver the logs that an ended run left in its own directories, and remove these.

    Does so for a workflow's run that was cancelled, whose launcher had no time for it, and for a run by hand that
    succeeded, once all its results are with its record.
    """
    record, step = run.record, run.record.step("collect")
    by_workflow, state = record.fields.results == "workspace", record.fields.state
    is_complete = state == "succeeded" and step.state == "done" and not step.facts.get("problems")
    if not record.fields.settled or not (state == "cancelled" if by_workflow else is_complete):
        return
    try:
        if any(path.exists() for path in run.kind.own_directories(run.plan)) and deliver(run):
            remove_directories(record, run.kind, run.plan)
    except (LauncherError, OSError) as error:
        record.event("warning", f"the run's own directories stay, with its logs: {error}")


def remove_directories(record: RunRecord, kind: JobKind, plan: Plan) -> None:
    """Remove the directories that belong to this run alone: its tree, and its copy of the workspace."""
    shared = plan.workspace.shared
    for path in (*kind.own_directories(plan), *([Path(shared)] if shared else [])):
        if path.exists():
            remove_tree(path)
            if path.exists():
                record.event("warning", f"{path} could not be removed whole")
            else:
                record.event("note", f"removed {path}")


def judge(run: Run, error: LauncherError | None, state: JobState | None) -> Verdict:
    """The verdict on a run's end; writes its evidence. ``state`` is how the job ended, if it did.

    After a request to stop the logs are not searched: a workflow's cancel leaves little time.
    """
    failures: list[Failure] = []
    job = run.record.job
    if error is not None and job is not None and not isinstance(error, Cancelled):
        from launcher.run.failures import first_failures

        during = (state.started, state.ended) if state is not None else (None, None)
        failures = first_failures(Path(job.log).parent, seconds=SEARCH_SECONDS, during=during)
    result = verdict(error, state, failures, stage=_step_under_way(run) if job is None else "")
    result = Verdict(result.layer, run.record.without_secrets(result.text))
    with contextlib.suppress(LauncherError, OSError):  # a full disk or a damaged plan must not change the outcome
        _write_evidence(run, result, failures, error)
    return result


def _step_under_way(run: Run) -> str:
    """The step that was under way when a run ended before its submission, in words; "" for none."""
    open_steps = [(step.began, name) for name, step in run.record.fields.steps.items() if step.state != "done"]
    name = max(open_steps, default=(0.0, ""))[1]
    last = run.record.step("images").facts.get("last") if name == "images" else None
    return _STEP_PHRASES.get(name, "").format(last or "the images")


_STEP_PHRASES = {
    "images": "while importing {}",
    "model": "while looking at the checkpoint",
    "workspace": "while preparing the checkout",
}


def _write_evidence(run: Run, result: Verdict, failures: Sequence[Failure], error: LauncherError | None) -> None:
    """Write verdict.txt, first-failure.txt, job.log (its end), events.txt and the job's own files. Raises OSError."""
    job = run.record.job
    ended = f"job {job.id}: {job.says}" if job is not None and job.says else ""
    texts = {"verdict.txt": "".join(f"{line}\n" for line in (str(result), ended) if line)}
    if failures:
        first = [f"{failures[0].file}:", *failures[0].lines, ""]
        others = [f"then {f.file}: {f.text} ({f.standing})" for f in failures[1:20]]
        texts["first-failure.txt"] = "\n".join([*first, *others, ""])
    elif error is not None:
        texts["first-failure.txt"] = f"{error}\n"
    if job is not None and (lines := tail(Path(job.log))):
        texts["job.log"] = "\n".join([*lines, ""])
    for name, text in texts.items():
        run.record.keep_evidence(name, text)
    _write_events(run)
    for name, source in run.kind.evidence(run).items():
        content = _beginning(source) if isinstance(source, Path) else source.encode()
        if content is not None:
            run.record.keep_evidence(name, content)


def _write_events(run: Run) -> None:
    """Write events.txt: the events of the run and its job, a line each, with local times; at most the last
    MAX_EVIDENCE_BYTES characters. Raises OSError."""
    lines = []
    for event in run.record.events():
        if event.get("kind") in ("job", "stage", "warning", "error"):
            when = datetime.fromtimestamp(float(event["time"])).isoformat(sep=" ", timespec="milliseconds")
            lines.append(f"{when}  {one_line(event.get('text', ''))}\n")
    text = "".join(lines)
    if len(text) > MAX_EVIDENCE_BYTES:
        text = text[-MAX_EVIDENCE_BYTES:].partition("\n")[2]
    run.record.keep_evidence("events.txt", text)


def _beginning(path: Path) -> bytes | None:
    """A file up to its last whole line within MAX_EVIDENCE_BYTES bytes; None when it cannot be read."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_EVIDENCE_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= MAX_EVIDENCE_BYTES else content[: content.rfind(b"\n", 0, MAX_EVIDENCE_BYTES) + 1]


def keep_scheduler_answers(run: Run, state: JobState, *, soon: bool = False) -> None:
    """Keep the scheduler's answers about the job that ended, by their source, and the events until now.

    The scheduler is not asked again about a job that ended well, so that the jobs of a sweep cost no question each.
    With ``soon`` a scheduler that hangs is not waited for.
    """
    job = run.record.job_key
    if job is None:
        return
    is_known = state.succeeded and not state.failed_step

    def answers() -> None:
        with contextlib.suppress(LauncherError, OSError):
            texts = {state.source: str(state)} if is_known else run.services.scheduler.describe(job)
            run.record.keep_evidence("scheduler.json", texts)

    if soon:
        wait([start_in_thread(answers, "evidence")], STOP_SECONDS)
    else:
        answers()
    with contextlib.suppress(OSError):
        _write_events(run)


def deliver(run: Run, *, soon: bool = False) -> bool:
    """Put the tarball of logs and evidence, and a copy of the logs, where results go; returns whether all are there.

    For a run without a job a workflow gets a tarball of the evidence; a person has the record and gets nothing.
    ``soon``, after a request to stop: only the tarball, with what can be packed in time.
    """
    job, into, environ = run.record.job, run.results_directory, run.services.environ
    if job is None and run.record.fields.results != "workspace":
        return False
    logs = Path(job.log).parent if job is not None else run.record.evidence / "no logs"
    files = [(f"{FOLDER}/{path.name}", path) for path in sorted(run.record.evidence.glob("*"))]
    if soon:
        with contextlib.suppress(OSError):
            bundle_logs(logs, into / TARBALL, seconds=STOP_SECONDS, extra=files, environ=environ)
        return False
    job_id, began = (job.id, job.submitted or 0.0) if job is not None else ("", 0.0)
    bundle, doubts = keep_logs(logs, into, job_id, began, evidence=files, environ=environ)
    for doubt in doubts:
        run.record.event("warning", doubt)
    if bundle is not None and bundle.cut:
        run.record.event("warning", f"the logs were not kept whole; they lie in {logs}")
    return bundle is not None and not bundle.cut
