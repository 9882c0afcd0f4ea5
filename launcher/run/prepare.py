"""From a plan to a submitted job: images, model, what the kind of job needs beside them, submission.

Each step is recorded before the next one begins, and is idempotent: repeated, it reuses what is there.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from launcher.core.errors import (
    Cancelled,
    CheckoutError,
    ConfigError,
    JobsExist,
    LauncherError,
    ModelError,
    SubmissionError,
    as_error,
)
from launcher.core.process import run as run_program
from launcher.core.stop import Stop
from launcher.image.enroot import ImportPolicy
from launcher.image.store import ensure_image
from launcher.model.checkpoint import CheckpointReport, examine
from launcher.model.fingerprint import CONFIGS, fingerprint_of_files
from launcher.model.serving import nearest_sibling, require_servable, sibling_hint
from launcher.plan.refusing import require_acceptable, require_no_secrets
from launcher.run.image_usage import mark_used_by
from launcher.run.kind import CHECK_SECONDS, Prepared, Run, copy_workspace
from launcher.run.record import RecordedJob
from launcher.slurm.client import SUBMIT_TIME_TOLERANCE, JobKey, Phase, SchedulerUnreachable, jobs_with_token

JobOrError = JobKey | LauncherError
"""The result of preparing a run: its job, or why there is none."""


class Gate:
    """Stands before the submission of a prepared run: the loop opens it when there is room for a job, or shuts it for
    good, which also ends the run's preparation. ``reached``: the run is prepared and waits for room."""

    def __init__(self) -> None:
        self.reached = False
        self._answered = threading.Event()
        self._shut: Cancelled | None = None

    @property
    def answered(self) -> bool:
        """Whether it is open or shut."""
        return self._answered.is_set()

    def open(self) -> None:
        self._answered.set()

    def shut(self, why: Cancelled) -> None:
        """Let nobody through, even when it was opened before."""
        self._shut = self._shut or why
        self._answered.set()

    def combined_stop(self, stop: Stop) -> Stop:
        """A request to stop that is made by ``stop``, or by shutting the gate."""
        return stop.or_when(
            lambda: self._shut is not None, lambda: self._shut or Cancelled("not submitted"), CHECK_SECONDS
        )

    def wait(self, stop: Stop) -> None:
        """Wait until it is open. Raises Cancelled when it is shut, or when a stop is requested."""
        self.reached, stop = True, self.combined_stop(stop)
        while not self._answered.wait(CHECK_SECONDS):
            stop.check()
        stop.check()


def prepare_in_thread(run: Run, done: SimpleQueue[tuple[Run, JobOrError]], gate: Gate) -> None:
    """Prepare a run and put the result into ``done``, whatever it is: the loop waits for it."""
    services = run.services
    run.services = services.with_stop(gate.combined_stop(services.stop))
    try:
        answer: JobOrError = prepare(run, gate)
    except BaseException as error:  # noqa: BLE001  # a fault of the launcher in one run must not block the others
        answer = as_error(error, f"run {run.id}")
    finally:
        run.services = services
    done.put((run, answer))


def prepare(run: Run, gate: Gate | None = None) -> JobKey:
    """Prepare the run, and submit its job once the ``gate`` is open. Raises LauncherError; the record then says what
    went wrong."""
    if (job := run.record.job_key) is not None:
        return job
    if run.plan.scheduler.kind == "slurm":
        from launcher.slurm.other_jobs import refuse_other_clusters

        refuse_other_clusters(run.services.environ, {}, run.services.run)
    if run.record.fields.state != "new":  # the first step of a new run records it
        run.record.update(state="preparing")
    run.services.tools.make_stand_in_inputs(run.plan)
    prepared = None
    if not run.kind.is_complete(run.plan):
        # The checkout decides about images and model, so it comes before steps that take long or change shared files.
        prepared = _prepare_workspace(run)
        whole = run.kind.complete(run.plan, prepared)
        require_no_secrets(whole)  # before it is stored
        run.change_plan(whole)
        require_acceptable(run.plan, run.record.fields.accepted)
    _ensure_images(run)
    with run.record.running_step("model") as keep:
        keep(_check_model(run))
    prepared = prepared or _prepare_workspace(run)
    # Not within the submission: a launcher that died there would leave it unclear whether there is a job.
    run.kind.check_nodes(run)
    if gate is not None:
        gate.wait(run.services.stop)
    return _submit(run, prepared)


def _ensure_images(run: Run) -> None:
    """Ensure that every image of the plan is there; the plan then says where."""
    services, plan = run.services, run.plan
    facts: list[dict[str, Any]] = []
    policy = ImportPolicy(
        scheduler=plan.scheduler.kind,
        partition=plan.scheduler.partition,
        account=plan.scheduler.account,
        job_name=plan.job_name,
        token=plan.run_key,
        registries=services.tools.registries,
        make_directory=services.tools.stand_ins,
    )
    first = next((image.reference for image in plan.images if image.shared), "")
    with run.record.running_step("images", last=first) as keep:
        for planned in plan.images:
            if not planned.shared:
                run.log(f"image {planned.reference}: each node has a directory of its own, so the job imports it")
                where = {"planned": planned.squash, "squash": planned.squash}
                facts.append({"reference": planned.reference, **where, "how": "by the job"})
                continue
            if planned.reference != first:
                run.record.add_step_facts("images", last=planned.reference)  # what a cancel interrupts
            image = ensure_image(
                planned,
                policy,
                services.environment,
                run=services.run,
                log=run.log,
                sleep=services.stop.sleep,
                mark=mark_used_by(run.record),
            )
            facts.append(
                {
                    "reference": planned.reference,
                    "planned": planned.squash,
                    "squash": str(image.squash),
                    "how": image.how,
                    "bytes": image.sidecar.size,
                    "digest": image.sidecar.digest,
                    "seconds": round(image.seconds, 3),
                    "facts": list(image.notes),
                }
            )
        keep({"images": facts})
    used = {str(image["planned"]): str(image["squash"]) for image in facts if image["planned"] != image["squash"]}
    if used:  # a refreshed image has another path than planned
        run.change_plan(plan.with_squash(used))


def _check_model(run: Run) -> dict[str, Any]:
    """Check the checkpoint from here, after staging it where the plan says so; or record why that is not possible."""
    planned = run.plan.model
    if planned.path is None:
        run.log(f"model {planned.id}: the benchmark's script has it, from its cache or the Hugging Face hub")
        return {"path": None, "checked": False, "why": "the benchmark's script has it"}
    if planned.path.startswith("hf:"):
        run.log(f"model {planned.path}: from the Hugging Face hub, on the compute nodes")
        return {"path": planned.path, "checked": False, "why": "from the Hugging Face hub"}
    if "login" not in planned.seen_by:
        why = f"{planned.storage} storage that the login node does not see (runner {run.plan.runner})"
        run.log(f"model {planned.path}: not checked from here: {why}")
        return {"path": planned.path, "checked": False, "why": why}
    path = Path(planned.path)
    if planned.downloads and not path.is_dir():
        run.log(f"model {path}: is not there; the benchmark's script downloads it")
        return {"path": planned.path, "checked": False, "why": "the benchmark's script downloads it"}
    staged = _stage_model(run, path)
    if not path.is_dir():
        hint = sibling_hint(nearest_sibling(path), "stage it, or correct the path in the runner file")
        raise ModelError("the checkpoint is not there", where=planned.path, hint=hint)
    report = examine(path, precision=planned.precision, mounted=planned.mounted)
    why_not_compared = ""
    if not report.rehearsal:  # a stand-in belongs to no model
        report = report.compared_with(planned.fingerprint, f"the runner file ({run.plan.runner})")
    if (
        report.whole
        and not report.rehearsal
        and not report.known_by
        and report.identity != "mismatch"
        and planned.pinned
    ):
        report, why_not_compared = _compared_with_hub(report, planned.pinned, run)
    report = require_servable(report, precision=planned.precision, accept_stand_in=run.services.tools.stand_ins)
    identity = report.identity + (f" ({report.identity_reason})" if report.identity_reason is not None else "")
    run.log(f"model {path}: whole, {report.shards} shards, {report.quantisation}; declared one: {identity}")
    if report.known_by:
        run.log(f"model {path}: architecture, sizes and quantisation agree with {' and '.join(report.known_by)}")
    elif not report.rehearsal:
        why = why_not_compared or "no fingerprint is declared (models.fingerprint of the runner file), learnt or pinned"
        run.record.event("warning", f"whether {path} is {planned.id or 'the right model'} is not known: {why}")
    return {"checked": True, **report.as_dict(), **staged}


def _compared_with_hub(report: CheckpointReport, pinned: str, run: Run) -> tuple[CheckpointReport, str]:
    """The report compared with the hub's files of the pinned commit; and why that was not possible, if so."""
    from launcher.model.source import pinned_files

    try:
        found = pinned_files(pinned, CONFIGS, stop=run.services.stop)
        return report.compared_with(fingerprint_of_files(found), pinned), ""
    except (ModelError, ConfigError) as error:
        return report, f"{pinned}: {error.message}"


def _stage_model(run: Run, path: Path) -> dict[str, Any]:
    """Stage the checkpoint from the plan's source, if it has one and the checkpoint at the path is not complete."""
    planned = run.plan.model
    if planned.source is None or examine(path, precision=planned.precision).whole:
        return {}
    from launcher.model.source import source_of
    from launcher.model.stage import stage, striping

    run.log(f"model {path}: staging from {planned.source}")
    lustre = striping(planned.striping, log=run.log, run=run.services.run)
    done = stage(
        source_of(planned.source, stop=run.services.stop),
        path,
        log=run.log,
        stop=run.services.stop,
        set_layout=lustre if planned.storage == "lustre" else None,
    )
    run.log(f"model {path}: {done.how}, {done.copied / 1e9:.1f} GB in {done.seconds:.0f} s")
    return {"staged": {"how": done.how, "from": planned.source, "copied": done.copied, "resumed": done.resumed}}


def _prepare_workspace(run: Run) -> Prepared:
    """Prepare what the kind of job needs, and copy the workspace to where compute nodes see it."""
    workspace = run.plan.workspace
    with run.record.running_step("workspace") as keep:
        try:
            prepared = run.kind.prepare(run)
        except OSError as error:
            raise CheckoutError(f"it cannot be made: {error.strerror}", where=str(error.filename)) from None
        if workspace.shared:
            run.services.stop.check()
            try:
                copy_workspace(workspace.path, Path(workspace.shared))
            except (OSError, shutil.Error) as error:
                message = f"the workspace cannot be copied for the compute nodes: {error}"
                raise CheckoutError(message, where=workspace.shared) from None
            run.log(f"workspace copied to {workspace.shared}")
        keep(prepared.facts)
    return prepared


def _submit(run: Run, prepared: Prepared) -> JobKey:
    """Submit the job, unless an earlier launcher of this run did. Raises SubmissionError, Cancelled."""
    run.services.stop.check()
    with run.record.submitting(run.services.stop.sleep) as lock:
        earlier = _jobs_before(run)
        if isinstance(earlier, JobKey):
            output = run.kind.output_directory(run.plan, earlier.id)
            log, held = run.kind.log_in(output, earlier.id), run.kind.submits_held(run.plan)
            submitted = earlier.submitted or time.time()
            job = RecordedJob(earlier.id, submitted, str(output), str(log), held=held, cluster=earlier.cluster)
            return _record(run, job, ["found by its token: an earlier launcher submitted it"])
        run.services.stop.check()
        if run.record.fields.has_ended:
            raise Cancelled("its job was not submitted: the run was ended meanwhile")
        with run.record.running_step("submit") as keep:
            try:
                done = run.kind.submit(run, prepared, earlier, partial(run_program, pass_fds=[lock]))
            except JobsExist as error:
                with contextlib.suppress(LauncherError):
                    wrong = [JobKey(job_id, None, run.id, error.cluster) for job_id in error.job_ids]
                    run.services.scheduler.cancel(wrong)
                    run.log(f"cancelled {', '.join(error.job_ids)}: not what was asked for")
                raise
            hide = run.record.without_secrets
            notes = [hide(note) for note in done.notes]
            keep({"notes": notes, "adopted": done.adopted, "left_out": list(done.left_out)})
            submitted = done.submitted or time.time()
            where = str(done.output), str(done.log)
            job = RecordedJob(done.job_id, submitted, *where, held=done.held, cluster=done.cluster)
            key = _record(run, job, done.notes)
            run.record.write("submission.json", {"said": hide(done.printed)})
            return key


def _jobs_before(run: Run) -> JobKey | frozenset[str] | None:
    """The job that an earlier launcher of this run submitted and could not record; else the ids of finished jobs with
    this run's token, so that a new job can be told from them; None where neither can exist.

    Raises SubmissionError when a job of another record with the same id is alive, and SchedulerUnreachable when this
    run may have a job and no scheduler answers.
    """
    step, interrupted, scheduler = (
        run.record.step("submit"),
        run.record.fields.submission_in_doubt,
        run.services.scheduler,
    )
    if run.fresh and not step.state:
        return None
    try:
        found = jobs_with_token(run.id, scheduler)
    except SchedulerUnreachable:
        if interrupted:
            raise
        return frozenset()
    ours = [job for job in found if interrupted and (job.submitted or 0) >= step.began - SUBMIT_TIME_TOLERANCE]
    if len(ours) == 1:
        return ours[0]
    states = scheduler.poll(found) if found else {}
    if alive := [job for job, state in states.items() if state.phase is not Phase.TERMINAL]:
        raise SubmissionError(
            f"{', '.join(map(str, alive))} already carries this run's id",
            where=f"run {run.id}",
            hint="another launcher has this run; choose another --run-id",
        )
    return frozenset(job.id for job in found)


def _record(run: Run, job: RecordedJob, notes: Sequence[str]) -> JobKey:
    """Record the job's id on disk, before anything waits for the job."""
    run.record.update(state="submitted", job=job)
    for note in notes:
        run.record.event("warning", note)
    key = JobKey(job.id, job.submitted, run.id, job.cluster)
    run.record.event("job", f"{key} submitted", job=job.id)
    return key
