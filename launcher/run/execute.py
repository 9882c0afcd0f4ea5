"""One run, from its plan to its outcome: the stages in order, each written down before the next begins.

`Execution` is driven from outside (`launcher.run.loop`): `prepare` brings the run to a submitted job, `finish` takes
the job's end and collects, `cancel` ends what it holds. Each can be called in another process than the one before,
because everything they need of each other is in the record.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launcher.core.errors import Cancelled, ConfigError, JobError, LauncherError, ResultError, SubmissionError
from launcher.core.publish import write_json
from launcher.core.redact import redact, redacted
from launcher.plan.plan import Plan
from launcher.result.collect import Collected, CollectRequest, collect
from launcher.result.summary import summary
from launcher.result.validate import Point
from launcher.result.workspace import LOGS
from launcher.run import stages
from launcher.run.artifacts import Papers
from launcher.run.evidence import Verdict
from launcher.run.held_job import Hold
from launcher.run.image_import import marking, unmark
from launcher.run.record import RunRecord
from launcher.run.stages import Effects
from launcher.slurm.client import SAME_SECONDS, JobKey, JobState, SchedulerUnreachable
from launcher.slurm.states import Phase
from launcher.srtctl.checkout import Checkout
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.submit import JobsExist, SubmissionUnknown, jobs_of

RESULT_PATIENCE = 60.0
"""Seconds to wait for results that are not there yet: NFS shows another node's files up to a minute late."""

LOOK_FOR_UNWRITTEN = 0.4
"""Seconds between two looks for a job that is being submitted while we are asked to stop."""

Replan = Callable[[Plan, Path], Plan]
"""(plan, checkout's root) → the plan again, with the recipe that the checkout holds."""


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


class Execution:
    """The doing of one run. ``record`` holds what is done already; nothing that is done is done again."""

    def __init__(self, record: RunRecord, plan: Plan, effects: Effects, replan: Replan) -> None:
        self.record = record
        self.plan = plan
        self.effects = effects
        self._replan = replan
        self.hold = Hold(record)
        self.papers = Papers(record, effects)
        record.hide = partial(redact, environ=effects.environ)

    def take_over(self) -> None:
        """Write down that this process drives the run from now on. Raises ConfigError when another one does."""
        self.record.take()

    @property
    def job(self) -> JobKey | None:
        """The job of this run, once there is one."""
        kept = self.record.get("job")
        return JobKey(kept["id"], kept.get("submitted"), self.record.id) if kept else None

    @property
    def log(self) -> Path | None:
        """The job's log; it may not exist yet."""
        return log_of(self.record)

    def prepare(self) -> JobKey:
        """Bring the run to a submitted job. Raises LauncherError; what went wrong is in the record then."""
        if (job := self.job) is not None:
            return job
        self.record.update(state="preparing")
        if SrtctlJob.of(self.plan).recipe.document is None:
            # The recipe decides images and model: it is read before anything that takes long or is shared.
            checkout = self._workspace()
            self.plan = self._replan(self.plan, checkout.root)
            self.record.replan(self.plan)
            refuse(self.plan, self.record.get("accepted", ()))
            self._images()
            self._stage("model", stages.model)
        else:
            self._images()
            self._stage("model", stages.model)
            checkout = self._workspace()
        return self._submit(checkout)

    def _stage(self, name: str, stage: Callable[[Plan, Effects], dict[str, Any]]) -> None:
        with self._recorded(name) as keep:
            keep(stage(self.plan, self.effects))

    def _images(self) -> None:
        """Have the images; one that was refreshed lies elsewhere than planned, and the plan is to say so."""
        self._stage("images", partial(stages.images, mark=marking(self.record)))
        images = self.record.stage("images").get("images", ())
        used = {i["planned"]: i["squash"] for i in images if i["planned"] != i["squash"]}
        if used:
            self.plan = self.plan.with_squash(used)
            self.record.replan(self.plan)

    def _workspace(self) -> Checkout:
        with self._recorded("workspace") as keep:
            checkout, kept = stages.workspace(self.plan, self.effects)
            keep(kept)
        return checkout

    def _submit(self, checkout: Checkout) -> JobKey:
        if self.effects.stopping():
            raise Cancelled("stopped before the submission")
        with self.record.submitting(self.effects.sleep) as handle:
            return self._submit_alone(checkout, handle)

    def _submit_alone(self, checkout: Checkout, handle: int) -> JobKey:
        earlier = self._jobs_before()
        if self.effects.stopping() and not isinstance(earlier, JobKey):
            raise Cancelled("stopped before the submission")
        if isinstance(earlier, JobKey):
            return self._submitted(earlier, None, ["found by its token: an earlier launcher submitted it"])
        with self._recorded("submit") as keep:
            stages.write_inputs(self.plan, checkout)
            try:
                done = stages.submit(self.plan, checkout, self.effects, earlier, [handle])
            except JobsExist as error:
                self._cancel_strays(error.job_ids)
                raise
            keep({"notes": [self.record.hide(note) for note in done.notes], "adopted": done.adopted})
            write_json(self.record.directory / "srtctl.json", {"said": self.record.hide(done.said)})
            return self._submitted(JobKey(done.job_id, done.submitted, self.record.id), done.output_dir, done.notes)

    def _jobs_before(self) -> JobKey | frozenset[str]:
        """The job that an earlier launcher of this run submitted and had no time to write down; or the ids that carry
        our token already and are over, for it to be told from theirs.

        Raises SubmissionError when a job of another record with the same id is alive, and SchedulerUnreachable when
        there may be a job of ours and nobody can be asked.
        """
        stage = self.record.stage("submit")
        interrupted = self.record.in_doubt
        try:
            found = jobs_of(self.record.id, self.effects.scheduler)
        except SchedulerUnreachable:
            if interrupted:
                raise
            return frozenset()
        ours = [job for job in found if interrupted and (job.submitted or 0) >= stage["began"] - SAME_SECONDS]
        if len(ours) == 1:
            return ours[0]
        states = self.effects.scheduler.poll(found) if found else {}
        if alive := [job for job, state in states.items() if state.phase is not Phase.TERMINAL]:
            raise SubmissionError(
                f"{', '.join(map(str, alive))} already carries this run's id",
                where=f"run {self.record.id}",
                hint="another launcher has this run; choose another --run-id",
            )
        return frozenset(job.id for job in found)

    def _submitted(self, job: JobKey, output: Path | None, notes: Any) -> JobKey:
        """The job's id is on disk before anybody waits for it."""
        root = Path(SrtctlJob.of(self.plan).srt_slurm.root)
        output = output or root / "outputs" / job.id
        self.record.update(
            state="submitted",
            job={
                "id": job.id,
                "submitted": job.submitted or self.effects.clock(),
                "output": str(output),
                "held": stages.holds(self.plan),
            },
        )
        for note in notes:
            self.record.event("note", note)
        self.record.event("job", f"job {job.id} submitted", job=job.id)
        return JobKey(job.id, self.record.get("job")["submitted"], self.record.id)

    def _cancel_strays(self, ids: tuple[str, ...]) -> None:
        with contextlib.suppress(LauncherError):
            self.effects.scheduler.cancel([JobKey(i, None, self.record.id) for i in ids])
            self.record.event("note", f"cancelled {', '.join(ids)}: not what was asked for")

    def saw(self, state: JobState) -> None:
        """Write down how the job stands."""
        told = "running" if state.word == "RUNNING" else self.record.get("state")
        self.record.update(state=told, job=self._job_as(state))
        self.record.event("job", state.describe(), job=self.record.get("job")["id"], state=state.word)

    def saw_after_cancel(self, state: JobState) -> None:
        """Write down what became of the job that we asked to end."""
        kept = self._job_as(state)
        self.record.update(job=kept)
        self.record.event("job", f"after cancelling: {state.describe()}", job=kept["id"], state=state.word)
        if state.phase is Phase.TERMINAL:  # who does not answer now would only cost the time that is left
            self.papers.ask(JobKey(kept["id"], kept.get("submitted"), self.record.id), soon=True)
            unmark(self.record)

    def _job_as(self, state: JobState) -> dict[str, Any]:
        """The record's ``job`` with how it stands; ``over`` once Slurm has said so, whatever it says later."""
        kept = self.record.get("job")
        over = kept.get("over", False) or state.phase is Phase.TERMINAL
        held = kept.get("held", False) and not over
        return {**kept, "state": state.word, "says": state.describe(), "over": over, "held": held}

    def finish(self, state: JobState) -> Outcome:
        """Collect and judge: good is a job that COMPLETED with 0:0 *and* every result that was asked for."""
        self.record.update(state="collecting", job=self._job_as(state))
        job_error = None if state.succeeded else self._job_error(state)
        if state.succeeded and state.failed_step:
            self.record.event("warning", f"the job COMPLETED, but {state.failed_step}")
        if self.job is not None:
            self.papers.ask(self.job)
        collected, error = Collected(), None
        taken = False
        try:
            collected = self.collect(patience=self._result_patience if state.succeeded else 0.0)
            taken = True
            collected.raise_if_bad()
        except ResultError as trouble:
            error = trouble
            self.record.event("error", str(trouble))
        outcome, delivered = self._end(job_error or error, collected, state)
        if taken and delivered:
            self._tidy()
        return outcome

    def collect(self, patience: float = 0.0) -> Collected:
        """Collect the results of our job into the workspace. Raises ResultError when that cannot be done."""
        expected, kept = self.plan.results, self.record.get("job")
        if not kept:
            raise ResultError("this run has no job, hence no results", where=f"run {self.record.id}")
        workspace = Path(self.plan.workspace.path)
        shared = self.plan.workspace.shared
        with self._recorded("collect") as keep:
            stages.stamp_power(self.plan, self.record.stage("workspace").get("sha"), self.results_directory)
            collected = collect(
                CollectRequest(
                    logs_dir=Path(kept["output"]) / "logs",
                    workspace=self.results_directory,
                    result_filename=expected.filename,
                    concurrencies=expected.concurrencies,
                    job_id=kept["id"],
                    started=kept["submitted"],
                    mode=expected.mode,
                    isl=expected.isl,
                    osl=expected.osl,
                    run_eval=expected.run_eval,
                    agentic_source=Path(shared) if shared else workspace,
                    published=self.record.stage("collect").get("published", {}),
                    patience=patience,
                ),
                sleep=self.effects.sleep,
            )
            keep({"published": dict(collected.published), "problems": [str(p) for p in collected.problems]})
        for doubt in collected.doubts:
            self.record.event("warning", doubt)
        return collected

    @property
    def _result_patience(self) -> float:
        """Jobs of the embedded scheduler write to this machine's own disk: what is not there will not come."""
        return 0.0 if self.plan.scheduler.kind == "local" else RESULT_PATIENCE

    @property
    def results_directory(self) -> Path:
        """Where results go: the workflow's workspace, or the run's own directory for runs by hand."""
        if self.record.get("results") == "workspace":
            return Path(self.plan.workspace.path)
        own = self.record.directory / "results"
        own.mkdir(exist_ok=True)
        return own

    def _tidy(self) -> None:
        """Remove the run's tree and its copy of the workspace once their logs are in the workflow's hands.

        On a shared file system nobody else ever would, and leftovers of NFS in a workspace block the next checkout. A
        run by hand keeps its tree, to be looked at.
        """
        if self.record.get("results") != "workspace":
            return
        for path in (SrtctlJob.of(self.plan).srt_slurm.root, self.plan.workspace.shared):
            if path:
                shutil.rmtree(path, ignore_errors=True)
                if Path(path).exists():
                    self.record.event("warning", f"{path} could not be removed whole")

    def cancel(self) -> bool:
        """Ask for the job's end, by id; True when the request was taken or there is no job. Says what it did."""
        job = self.job
        if job is None:
            return True
        try:
            self.effects.scheduler.cancel([job])
        except LauncherError as error:
            self.asked_to_end(error)
            return False
        self.asked_to_end()
        return True

    def cancel_unwritten(self, done: threading.Event) -> None:
        """While a submission goes on, and until ``done``, end the job that it makes as soon as Slurm shows it."""
        while not done.wait(LOOK_FOR_UNWRITTEN):
            with contextlib.suppress(LauncherError):
                if (job := self.job) is not None:
                    self.effects.scheduler.cancel([job])
                    return
                if self.record.in_doubt and (jobs := self.effects.scheduler.find(self.record.id)):
                    self.effects.scheduler.cancel(jobs)  # leaves out what is over

    def asked_to_end(self, error: LauncherError | None = None) -> None:
        """Write down that the job's end was asked for, or why it could not be."""
        job = self.job
        if error is not None:
            self.record.event("error", f"cancelling {job} failed: {error}")
        elif job is not None:
            self.record.event("job", f"asked for the end of {job}", job=job.id)

    def cancelled(self, why: Cancelled) -> Outcome:
        """End as cancelled: bundle what there is, within the seconds that a workflow leaves."""
        return self._end(why, Collected(), None)[0]

    def failed(self, error: LauncherError) -> Outcome:
        """End as failed for a reason that is not the job's or its results'."""
        self.record.event("error", str(error))
        return self._end(error, Collected(), None)[0]

    def _end(self, error: LauncherError | None, collected: Collected, state: JobState | None) -> tuple[Outcome, bool]:
        """The outcome, written down; and whether logs and evidence are where the workflow looks."""
        name = "succeeded" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
        ruling = self.papers.judge(self.plan, self.log, error, state)
        delivered = self.papers.deliver(self.results_directory, soon=isinstance(error, Cancelled))
        outcome = Outcome(self.record.id, name, collected.points, error, ruling)
        fields: dict[str, Any] = {"state": name, "ended": self.effects.clock(), "exit_code": outcome.exit_code}
        fields["verdict"] = {"layer": ruling.layer, "text": ruling.text}
        if error is not None:
            said = {"layer": error.layer, "message": error.message, "where": error.where, "hint": error.hint}
            fields["error"] = redacted(said, self.effects.environ)
        self.record.update(**fields)
        write_json(self.record.directory / "summary.json", self._summary(collected, state))
        self.record.event("end", f"{name}" if error is None else f"{name}: {error.layer}: {error.message}")
        self.record.event("verdict", str(ruling))
        unmark(self.record)
        return outcome, delivered

    def _summary(self, collected: Collected, state: JobState | None) -> dict[str, Any]:
        record, job, error = self.record, self.record.get("job") or {}, self.record.get("error")
        return summary(
            run_id=record.id,
            runner=self.plan.runner,
            benchmark=self.plan.benchmark,
            state=state.word if state is not None else record.get("state"),
            job_id=job.get("id"),
            srt_slurm_sha=record.stage("workspace").get("sha"),
            images=record.stage("images").get("images", ()),
            model={k: v for k, v in record.stage("model").items() if k not in ("began", "at", "state")} or None,
            collected=collected,
            times={
                "started": record.get("created"),
                "submitted": job.get("submitted"),
                "ended": record.get("ended"),
            },
            rehearsal=self.plan.tools == "rehearsal",
            problems=[f"{error['layer']}: {error['message']}"] if error and error["layer"] != "results" else [],
        )

    def _job_error(self, state: JobState) -> JobError:
        kept = self.record.get("job")
        log = self.log
        if log is not None and self.record.get("results") == "workspace":
            log = Path(self.plan.workspace.path, LOGS, log.name)  # the job's own directory goes with its tree
        return JobError(f"the job ended as {state.describe()}", where=f"job {kept['id']}", hint=f"its log: {log}")

    @contextlib.contextmanager
    def _recorded(self, name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Write a stage's beginning and end, whatever the end is."""
        kept: dict[str, Any] = {}
        self.record.set_stage(name, "running")
        self.record.event("stage", f"{name} …", stage=name, state="running")
        try:
            yield kept.update
        except LauncherError as error:
            unknown = isinstance(error, SubmissionUnknown)
            state = "unknown" if unknown else "failed"
            self.record.set_stage(name, state, error=self.record.hide(error.message))
            raise
        self.record.set_stage(name, "done", **kept)
        self.record.event("stage", f"{name} done", stage=name, state="done")


def log_of(record: RunRecord) -> Path | None:
    """The log of a run's job, where the job writes it or where it was collected to; None while there is no job."""
    kept = record.get("job")
    if not kept:
        return None
    name = f"sweep_{kept['id']}.log"
    own = Path(kept["output"], "logs", name)
    if record.get("results") == "workspace" and record.ended and not own.exists():
        return Path(record.plan.workspace.path, LOGS, name)
    return own


def refuse(plan: Plan, accepted: Any = ()) -> None:
    """Raise ConfigError when the plan has errors among its findings that nobody accepted."""
    bad = [f for f in plan.errors if f.rule not in accepted]
    if bad:
        listed = "\n".join(f"  {f.where}: {f.message} [{f.rule}]" for f in bad)
        raise ConfigError(
            f"the plan would fail or mismeasure:\n{listed}",
            where=f"run {plan.run_key}",
            hint="mend it, or go on with --accept RULE",
        )
