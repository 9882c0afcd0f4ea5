"""Jobs that run a benchmark's script in a container: a batch job of one node, or a job on the runner's own host.

A run's own directory holds the job's script, and below it one directory a job: its log, and what it wrote down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace as change

from launcher.container.planned import COPY, FACTS, LOG, SCRIPT, ContainerJob
from launcher.container.script_kind import PlanRow, ScriptKind, end_containers, meet_nodes
from launcher.core.errors import CheckoutError
from launcher.plan.plan import OWN, Plan

if TYPE_CHECKING:  # a dry run pays for nothing that only a run needs
    from launcher.core.process import CommandRunner
    from launcher.result.collect import CollectedResults
    from launcher.run.kind import Earlier, Prepared, Run, Submitted

ARCHIVE_TIMEOUT = 1800.0
"""Seconds for packing the checkout."""


class ContainerKind(ScriptKind):
    """The kinds ``container`` and ``docker`` (`launcher.run.kind.JobKind`)."""

    form = ContainerJob

    def __init__(self, name: str, plan_row: PlanRow, jobs: Path) -> None:
        super().__init__(plan_row, jobs)
        self.name = name

    def describe(self, plan: Plan) -> list[tuple[str, str]]:
        """Allocation, engine, image, script, mounts."""
        job = ContainerJob.of(plan)
        pulled = "" if plan.images else f" of {job.container.image}"
        return [
            ("node", _allocation(job)),
            ("container", f"{job.container.engine}{pulled}, in {job.container.workdir}"),
            ("script", f"{job.script.path}{'' if job.script.exists else ' (not there)'}"),
            *(("mount", f"{source} → {target}") for target, source in job.container.mounts.items()),
            *((("copy", f"the checkout at {job.staging.to} on the node"),) if job.staging else ()),
        ]

    def prepare(self, run: Run) -> Prepared:
        """The job's script, and the checkout as an archive where the job runs on a copy."""
        from launcher.container.job_script import render
        from launcher.container.results import lying_there
        from launcher.core.publish import write_text
        from launcher.run.kind import Prepared

        plan, root, job = run.plan, self.own_directory(run.plan), ContainerJob.of(run.plan)
        with self.making(root):
            workspace = self.make_workspace(run, root)
            here = workspace == root / COPY and job.staging is None
            write_text(root / SCRIPT, render(_in(workspace, plan) if here else plan, root))
        if job.staging is not None:
            _pack_checkout(run, root)
        return Prepared(root, {"root": str(root), "there_before": lying_there(plan.results, self._results(plan, root))})

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """sbatch of the script, held; or the embedded scheduler."""
        from launcher.container import submit as submitting
        from launcher.result.collect import refuse_foreign_files

        if run.plan.results.mode == "eval":
            refuse_foreign_files(run.results_directory, run.plan.results)
        plan, job, root = run.plan, ContainerJob.of(run.plan), prepared.root
        log, script = self.log_in(root / "%j", ""), root / SCRIPT
        if job.allocation is not None:
            argv = submitting.sbatch_argv(job.allocation, run.id, root, log, script)
        else:
            argv = submitting.embedded_argv(plan, self._jobs, log, script)
        environment = submitting.environment(job, run.services.environ, run.services.tools.environment)
        return submitting.submit_job(self, run, argv, environment, earlier, start)

    def output_of_log(self, log: Path) -> Path | None:
        """The directory of the log."""
        return log.parent if log.name == LOG else None

    def log_in(self, output: Path, job_id: str) -> Path:
        """What the job's script and the container print."""
        return output / LOG

    def complete_directory(self, run: Run) -> None:
        """The job's own directory: Slurm makes none for a log; there its node meets this host. Raises OSError."""
        meet_nodes(run, 1)

    def end_leftovers(self, run: Run) -> None:
        """End the container of a job on this host whose script was killed: docker and podman go on with it."""
        from launcher.container.engines import own_containers

        job, recorded = ContainerJob.of(run.plan), run.record.job
        if job.allocation is None and recorded is not None:
            owner = run.record.directory.stat().st_uid
            listing = own_containers(job.container.engine, f"{run.plan.run_key}.{recorded.id}", str(owner))
            end_containers(run, job.container.engine, listing, run.services.environment)

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Results of this job alone; what it wrote down goes into the record."""
        from launcher.container import results
        from launcher.container.checkpoint import refuse_another_checkpoint
        from launcher.container.job_script import BACK

        job, recorded, expected = ContainerJob.of(run.plan), run.record.job, run.plan.results
        assert recorded is not None
        own = Path(recorded.output)
        workspace, directory = self.works_in(run.plan, own.parent), self._results(run.plan, own.parent)
        if job.staging is not None and (own / BACK).exists():
            for doubt in results.unpack(own / BACK, workspace):
                run.record.event("warning", f"not brought back: {doubt}")
        _record_facts(run, job, results.facts(own / FACTS))
        refuse_another_checkpoint(run.plan.model, own)
        # Slurm keeps whole seconds.
        submitted = math.floor(recorded.submitted or run.record.fields.created)
        there = run.record.step("workspace").facts.get("there_before", {})
        place = results.Place(directory, run.results_directory, submitted, _gpus(job), there)
        try:
            results.link_logs(expected, place, own)
        except OSError as error:
            run.record.event("warning", f"a log of the benchmark is not kept beside the job's: {error.strerror}")
        return results.collect(expected, place, patience=patience, sleep=run.services.stop.sleep)

    def _results(self, plan: Plan, root: Path) -> Path:
        """Where the job leaves its results."""
        workspace, directory = self.works_in(plan, root), plan.results.directory or "{workspace}"
        whole = directory == plan.workspace.path
        return workspace if whole else Path(directory.replace("{workspace}", str(workspace)))


def _in(workspace: Path, plan: Plan) -> Plan:
    """The plan of a job that works in another directory than the plan's workspace."""
    job, here = ContainerJob.of(plan), str(workspace)
    mounts = {t: here if s in ("{workspace}", plan.workspace.path) else s for t, s in job.container.mounts.items()}
    job = change(job, container=change(job.container, mounts=mounts))
    return replace(plan, details=job, workspace=replace(plan.workspace, path=here))


def _allocation(job: ContainerJob) -> str:
    a = job.allocation
    if a is None:
        return "this host"
    return f"one, {a.gpus} {a.gpu_type + ' ' if a.gpu_type else ''}GPUs" + (
        ", for this job alone" if a.exclusive else ""
    )


def _gpus(job: ContainerJob) -> int:
    """How many GPUs the benchmark uses: the workflow counts TP, PP and PCP, not DCP and EP."""
    if job.allocation is not None:
        return job.allocation.gpus
    sizes = [job.environment.get(name, "") for name in ("TP", "PP_SIZE", "PCP_SIZE")]
    return math.prod(int(size) for size in sizes if size.isdigit())


def _pack_checkout(run: Run, root: Path) -> None:
    """The checkout as an archive that compute nodes see. Raises CheckoutError."""
    from launcher.container.job_script import CHECKOUT
    from launcher.core.publish import temporary_name

    job = ContainerJob.of(run.plan)
    staging = job.staging
    workspace = job.own_workspace.path if job.own_workspace is not None else run.plan.workspace.path
    assert staging is not None
    excluded = [f"--exclude={name}" for name in (".git", OWN, *staging.exclude)]
    part = temporary_name(root / CHECKOUT)
    try:
        argv = ["tar", "--create", "--gzip", f"--file={part}", *excluded, f"--directory={workspace}", "."]
        done = run.services.run(argv, timeout=ARCHIVE_TIMEOUT, env=run.services.environment)
        if done.returncode not in (0, 1):  # 1: a file changed while it was read
            raise CheckoutError(f"the checkout cannot be packed for the node: {done}", where=workspace)
        part.replace(root / CHECKOUT)
    except OSError as error:
        raise CheckoutError(f"the checkout cannot be packed for the node: {error.strerror}", where=workspace) from None
    finally:
        part.unlink(missing_ok=True)


def _record_facts(run: Run, job: ContainerJob, facts: Mapping[str, str]) -> None:
    """Put what the job wrote down into the record, and a pulled image with its digest among the images."""
    if not facts:
        return
    step = run.record.step("images")
    images = list(run.record.images)
    if (image := facts.get("image")) and not images:
        digest = image.rpartition("@")[2]
        images = [{"reference": job.container.image, "squash": None, "how": "pulled", "bytes": None, "digest": digest}]
    run.record.set_step("images", step.state or "done", images=images, job=dict(facts))
    for name, value in facts.items():
        run.log(f"the job: {name.replace('_', ' ')} {value}")
