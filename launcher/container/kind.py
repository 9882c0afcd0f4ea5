"""Jobs that run a benchmark's script in a container: a batch job of one node, or a job on the runner's own host.

A run's own directory contains the job's script and one directory per job, with its log and its facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace as change

from launcher.container.planned import COPY, FACTS, LOG, SCRIPT, ContainerJob
from launcher.container.script_kind import PlanRow, ScriptKind, attend_nodes, end_containers
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
        node = "this host"
        if (a := job.allocation) is not None:
            node = f"one, {a.gpus} {f'{a.gpu_type} ' if a.gpu_type else ''}GPUs"
            node += ", for this job alone" if a.exclusive else ""
        return [
            ("node", node),
            ("container", f"{job.container.engine}{pulled}, in {job.container.workdir}"),
            ("script", f"{job.script.path}{'' if job.script.exists else ' (not there)'}"),
            *(("mount", f"{source} → {target}") for target, source in job.container.mounts.items()),
            *((("copy", f"the checkout at {job.staging.to} on the node"),) if job.staging else ()),
        ]

    def prepare(self, run: Run) -> Prepared:
        """Write the job's script; also pack the checkout if the job runs on a copy."""
        from launcher.container.job_script import render
        from launcher.container.results import existing_results
        from launcher.core.publish import write_text
        from launcher.run.kind import Prepared

        plan, root, job = run.plan, self.own_directory(run.plan), ContainerJob.of(run.plan)
        with self.creating_own_directory(root):
            workspace = self.make_workspace(run, root)
            is_copy = workspace == root / COPY and job.staging is None
            write_text(root / SCRIPT, render(_with_workspace(workspace, plan) if is_copy else plan, root))
        if job.staging is not None:
            _pack_checkout(run, root)
        existing = existing_results(plan.results, self._results_directory(plan, root))
        return Prepared(root, {"root": str(root), "there_before": existing})

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """Submit the script with sbatch, held; or to the embedded scheduler."""
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
        """The output of the job's script and of the container."""
        return output / LOG

    def complete_directory(self, run: Run) -> None:
        """Make the job's own directory, because Slurm makes none for a log, and attend to its node. Raises OSError."""
        attend_nodes(run, 1)

    def end_leftovers(self, run: Run) -> None:
        """End the container of a killed job on this host: docker and podman keep it running."""
        from launcher.container.engines import list_containers_command

        job, recorded = ContainerJob.of(run.plan), run.record.job
        if job.allocation is None and recorded is not None:
            owner = run.record.directory.stat().st_uid
            listing = list_containers_command(job.container.engine, f"{run.plan.run_key}.{recorded.id}", str(owner))
            end_containers(run, job.container.engine, listing, run.services.environment)

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Collect the results of this job only, and put its facts into the record."""
        from launcher.container import results
        from launcher.container.checkpoint import refuse_another_checkpoint
        from launcher.container.job_script import BACK

        job, recorded, expected = ContainerJob.of(run.plan), run.record.job, run.plan.results
        assert recorded is not None
        own = Path(recorded.output)
        if job.staging is not None and (own / BACK).exists():
            for problem in results.unpack(own / BACK, self.job_workspace(run.plan, own.parent)):
                run.record.event("warning", f"not brought back: {problem}")
        _record_facts(run, job, results.facts(own / FACTS))
        refuse_another_checkpoint(run.plan.model, own)
        files = results.JobFiles(
            self._results_directory(run.plan, own.parent),
            run.results_directory,
            math.floor(recorded.submitted or run.record.fields.created),  # Slurm keeps whole seconds
            _gpus_used(job),
            run.record.step("workspace").facts.get("there_before", {}),
        )
        try:
            results.link_logs(expected, files, own)
        except OSError as error:
            run.record.event("warning", f"a log of the benchmark is not kept beside the job's: {error.strerror}")
        return results.collect(expected, files, patience=patience, sleep=run.services.stop.sleep)

    def _results_directory(self, plan: Plan, root: Path) -> Path:
        """The directory of the job's results."""
        workspace, directory = self.job_workspace(plan, root), plan.results.directory or "{workspace}"
        is_workspace = directory == plan.workspace.path
        return workspace if is_workspace else Path(directory.replace("{workspace}", str(workspace)))


def _with_workspace(workspace: Path, plan: Plan) -> Plan:
    """The plan with another workspace, which the container mounts in its place."""
    job, path = ContainerJob.of(plan), str(workspace)
    mounts = {t: path if s in ("{workspace}", plan.workspace.path) else s for t, s in job.container.mounts.items()}
    job = change(job, container=change(job.container, mounts=mounts))
    return replace(plan, details=job, workspace=replace(plan.workspace, path=path))


def _gpus_used(job: ContainerJob) -> int:
    """The number of GPUs that the benchmark uses; like the workflow it counts TP, PP and PCP, not DCP and EP."""
    if job.allocation is not None:
        return job.allocation.gpus
    sizes = [job.environment.get(name, "") for name in ("TP", "PP_SIZE", "PCP_SIZE")]
    return math.prod(int(size) for size in sizes if size.isdigit())


def _pack_checkout(run: Run, root: Path) -> None:
    """Pack the checkout into an archive that compute nodes can read. Raises CheckoutError."""
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
    """Put the job's facts into the record, and a pulled image with its digest among the images."""
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
