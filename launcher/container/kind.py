"""Jobs that run a benchmark's script in a container: a batch job of one node, or a job on the runner's own host.

A run's own directory holds the job's script, and below it one directory a job: its log, and what it wrote down.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace as change

from launcher.container.planned import COPY, FACTS, LOG, SCRIPT, ContainerJob
from launcher.container.script_kind import PlanRow, ScriptKind, end_containers, fingerprint_of, meet_nodes, works_in
from launcher.core.errors import CheckoutError
from launcher.plan.plan import OWN, Plan

if TYPE_CHECKING:  # a dry run pays for nothing that only a run needs
    from launcher.result.collect import Collected
    from launcher.run.kind import Prepared, Run, Submission, Submitted

ARCHIVE_TIMEOUT = 1800.0
"""Seconds for packing the checkout."""


class ContainerKind(ScriptKind):
    """The kinds ``container`` and ``docker`` (`launcher.run.kind.JobKind`). ``jobs`` is the embedded scheduler's
    directory, where jobs on the runner's own host are."""

    def __init__(self, name: str, plan_row: PlanRow, jobs: Path) -> None:
        super().__init__(plan_row, own_directory)
        self.name = name
        self._jobs = jobs

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

    def fingerprint(self, plan: Plan) -> dict[str, str]:
        """The benchmark's script as it is now."""
        job = ContainerJob.of(plan)
        own = job.own_workspace
        top = Path(plan.workspace.path) if own is None else Path(own.benchmarks).parent
        return fingerprint_of(top / job.script.path)

    def prepare(self, run: Run) -> Prepared:
        """The job's script, and the checkout as an archive where the job runs on a copy."""
        from launcher.container.job_script import render
        from launcher.container.results import lying_there
        from launcher.core.publish import write_text
        from launcher.run.kind import Prepared

        root, job = own_directory(run.plan), ContainerJob.of(run.plan)
        own, copies = job.own_workspace, _works_on_a_copy(run)
        text = render(_in(root / COPY, run.plan) if copies and job.staging is None else run.plan, root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            if copies:
                _copy_checkout(run, root / COPY)
            if own is not None:
                shutil.copytree(own.benchmarks, Path(own.path, "benchmarks"), dirs_exist_ok=True)
            if root.parent.name == OWN:  # whoever looks at the checkout's status need not see it
                write_text(root.parent / ".gitignore", "*\n")
            write_text(root / SCRIPT, text)
        except (OSError, shutil.Error) as error:
            raise CheckoutError(f"the job's script cannot be written: {error}", where=str(root)) from None
        if job.staging is not None:
            _pack_checkout(run, root)
        there = lying_there(run.plan.results, _results_in(run.plan, root))
        return Prepared(root, {"root": str(root), "there_before": there})

    def submit(self, run: Run, prepared: Prepared, submission: Submission) -> Submitted:
        """sbatch of the script, held; or the embedded scheduler."""
        from launcher.container import submit as submitting
        from launcher.result.collect import refuse_strangers

        if run.plan.results.mode == "eval":
            refuse_strangers(run.results_directory, run.plan.results)
        plan, job, root = run.plan, ContainerJob.of(run.plan), prepared.root
        log, script = self.log_in(root / "%j", ""), root / SCRIPT
        if job.allocation is not None:
            argv = submitting.sbatch_argv(job.allocation, run.id, root, log, script)
        else:
            argv = submitting.embedded_argv(plan, self._jobs, log, script)
        environ = run.services.environ
        environment = submitting.environment(job, environ, run.services.tools.environment)
        return submitting.submit_job(self, run, argv, environment, submission)

    def holds(self, plan: Plan) -> bool:
        """Slurm's jobs are submitted held."""
        return ContainerJob.of(plan).allocation is not None

    def output_of_log(self, log: Path) -> Path | None:
        """The directory of the log."""
        return log.parent if log.name == LOG else None

    def log_in(self, output: Path, job_id: str) -> Path:
        """What the job's script and the container print."""
        return output / LOG

    def make_whole(self, run: Run) -> None:
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

    def collect(self, run: Run, patience: float) -> Collected:
        """Results of this job alone; what it wrote down goes into the record."""
        from launcher.container import results
        from launcher.container.checkpoint import refuse_another_checkpoint
        from launcher.container.job_script import BACK

        job, recorded, expected = ContainerJob.of(run.plan), run.record.job, run.plan.results
        assert recorded is not None
        own = Path(recorded.output)
        workspace, directory = works_in(own.parent, job.workspace_of(run.plan)), _results_in(run.plan, own.parent)
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

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """The run's own directory, and the workspace that was made for it."""
        own = ContainerJob.of(plan).own_workspace
        return [own_directory(plan), *([Path(own.path)] if own is not None else [])]


def own_directory(plan: Plan) -> Path:
    """Where a run's own files lie: below the workspace that the job works in, which compute nodes see. Where they do
    not, in the directory that the copy goes through."""
    job = ContainerJob.of(plan)
    if job.staging is not None:
        return Path(job.staging.through.replace("$HOME", str(Path.home())), plan.run_key)
    return Path(job.workspace_of(plan), OWN, plan.run_key)


def _results_in(plan: Plan, root: Path) -> Path:
    """Where the job leaves its results."""
    directory = plan.results.directory or "{workspace}"
    workspace = str(works_in(root, ContainerJob.of(plan).workspace_of(plan)))
    return Path(workspace if directory == plan.workspace.path else directory.replace("{workspace}", workspace))


def _works_on_a_copy(run: Run) -> bool:
    """Whether the job gets a checkout of its own: a workflow's job has one, and jobs by hand may share theirs.

    All write server.log, gpu_metrics.csv and the evaluations' files under the same names, and would count each other's.
    """
    job, plan = ContainerJob.of(run.plan), run.plan
    return run.record.fields.results != "workspace" and job.own_workspace is None and plan.workspace.shared is None


def _in(workspace: Path, plan: Plan) -> Plan:
    """The plan of a job that works in another directory than the plan's workspace."""
    job, here = ContainerJob.of(plan), str(workspace)
    mounts = {t: here if s in ("{workspace}", plan.workspace.path) else s for t, s in job.container.mounts.items()}
    details = change(job, container=change(job.container, mounts=mounts)).as_details()
    return replace(plan, details=details, workspace=replace(plan.workspace, path=here))


def _copy_checkout(run: Run, copy: Path) -> None:
    """The checkout for this job alone; empty where the job's node has a copy, which comes back here. Raises OSError,
    shutil.Error."""
    from launcher.run.kind import copy_workspace

    copy.mkdir(parents=True, exist_ok=True)
    if ContainerJob.of(run.plan).staging is None:
        copy_workspace(run.plan.workspace.path, copy)
        run.log(f"the job works on a copy of the checkout: {copy}")


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
