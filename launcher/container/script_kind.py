"""The base of all kinds in this room: their job is one script of ours, in a run's own directory.

Below that directory each job has one by its id, with its log and its facts.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.benchmark.benchmark import Benchmark
from launcher.container.planned import COPY, FACTS, SCRIPT, ContainerJob, MultinodeJob
from launcher.core.errors import CheckoutError
from launcher.core.reading import sha256_of
from launcher.plan.derive import Context
from launcher.plan.plan import OWN, Plan
from launcher.runner.file import RunnerFile

if TYPE_CHECKING:  # a dry run pays for nothing that only a run needs
    from launcher.run.kind import Prepared, Run
    from launcher.slurm.client import JobKey, JobState
    from launcher.slurm.logs import EndMarkers

PlanRow = Callable[[Benchmark, RunnerFile, Context], Plan]

_BEGIN, _END = "launcher: job ", re.compile(r"^launcher: the job ends with exit code (?P<code>\d+)\n", re.MULTILINE)
"""The first and the last line of the job's script."""


ENGINE_TIMEOUT = 60.0
"""Seconds for one command of docker or podman."""

_ID = re.compile(r"[0-9A-Za-z]{6,64}")
"""A container's id, as docker and podman list it."""


class ScriptKind:
    """The common part of `launcher.run.kind.JobKind`. ``form`` is the type of the kind's part of a plan, ``jobs`` the
    directory of the embedded scheduler."""

    form: type[ContainerJob] | type[MultinodeJob]

    def __init__(self, plan_row: PlanRow, jobs: Path = Path()) -> None:
        self.plan = plan_row
        self._jobs = jobs

    @cached_property
    def _markers(self) -> EndMarkers:
        from launcher.slurm.logs import EndMarkers

        return EndMarkers(_END, begin=_BEGIN)

    def fingerprint(self, plan: Plan) -> dict[str, str]:
        """The current content of the script that runs in containers; "" if it cannot be read."""
        job = self.form.of(plan)
        own = job.own_workspace
        checkout = Path(plan.workspace.path) if own is None else Path(own.benchmarks).parent
        with contextlib.suppress(OSError):
            return {"script": sha256_of(checkout / job.script.path)[:12]}
        return {"script": ""}

    def is_complete(self, plan: Plan) -> bool:
        """Always: the plan needs nothing that is prepared."""
        return True

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        """The plan itself."""
        return plan

    def check_nodes(self, run: Run) -> None:
        """Does nothing: the job's nodes check for themselves when it begins."""

    def submits_held(self, plan: Plan) -> bool:
        """Jobs of Slurm are submitted held."""
        return plan.scheduler.kind == "slurm"

    def own_directory(self, plan: Plan) -> Path:
        """The directory of a run's own files: below the job's workspace, if compute nodes see that; else in the
        directory through which the copy is transferred."""
        job = self.form.of(plan)
        if job.staging is not None:
            return Path(job.staging.through.replace("$HOME", str(Path.home())), plan.run_key)
        return Path(job.workspace_of(plan), OWN, plan.run_key)

    def job_workspace(self, plan: Plan, root: Path) -> Path:
        """The directory that the job works in: the copy in the run's own directory ``root``, if there is one."""
        copy = root / COPY
        return copy if copy.is_dir() else Path(self.form.of(plan).workspace_of(plan))

    def make_workspace(self, run: Run, root: Path, without: Sequence[str] = ()) -> Path:
        """Make the directory that the job works in, and return it: its own workspace, or for a manual run a copy of the
        checkout ``without`` files of earlier jobs. Raises OSError, shutil.Error.

        A workflow's job has its own checkout. Manual jobs may share one, and all write server.log, gpu_metrics.csv and
        evaluation files under the same names, so that they would count each other's files. If the job's node has a
        copy, the copy here is empty at first and receives the returned files.
        """
        from launcher.run.kind import copy_workspace

        plan, job, copy = run.plan, self.form.of(run.plan), root / COPY
        if (own := job.own_workspace) is not None:
            shutil.copytree(own.benchmarks, Path(own.path, "benchmarks"), dirs_exist_ok=True)
        elif run.record.fields.results != "workspace" and plan.workspace.shared is None:
            copy.mkdir(parents=True, exist_ok=True)
            if job.staging is None:
                copy_workspace(plan.workspace.path, copy, without)
                run.log(f"the job works on a copy of the checkout: {copy}")
        return self.job_workspace(plan, root)

    @contextlib.contextmanager
    def creating_own_directory(self, root: Path) -> Iterator[None]:
        """Make a run's own directory; the block makes its files. Raises CheckoutError for an OSError."""
        from launcher.core.publish import write_text

        try:
            root.mkdir(parents=True, exist_ok=True)
            if root.parent.name == OWN:  # hidden from `git status` of the checkout
                write_text(root.parent / ".gitignore", "*\n")
            yield
        except (OSError, shutil.Error) as error:
            raise CheckoutError(f"the job's script cannot be written: {error}", where=str(root)) from None

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """The run's own directory, and the workspace that was made for it."""
        own = self.form.of(plan).own_workspace
        return [self.own_directory(plan), *([Path(own.path)] if own is not None else [])]

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        """The directory with the job's id, below the run's own directory."""
        return self.own_directory(plan) / job_id

    def end_state_in_log(self, job: JobKey, log: Path) -> JobState | None:
        """Read the last line of the job's script."""
        return self._markers.read(job, log)

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        """The job's script and its facts."""
        files: dict[str, Path | str] = {SCRIPT: self.own_directory(run.plan) / SCRIPT}
        if run.record.job is not None:
            files[FACTS] = Path(run.record.job.output) / FACTS
        return files


def attend_nodes(run: Run, nodes: int) -> None:
    """Let the job's nodes compare their clock and locks with this host's, through files in the job's own directory,
    until all have done so or the run is over. Raises OSError when the directory cannot be made."""
    from launcher.core.node_partner import answer_nodes

    record = run.record
    assert record.job is not None
    own = Path(record.job.output)
    own.mkdir(parents=True, exist_ok=True)
    try:
        answer_nodes(own, nodes, lambda: record.fields.settled or run.services.stop.requested())
    except OSError as error:
        record.event("warning", f"clock and locks are not compared with the nodes': {error}", job=record.job.id)


def end_containers(run: Run, engine: str, listing: Sequence[str], environment: Mapping[str, str]) -> None:
    """End the containers that an engine of this host lists; an event of the record reports each."""
    call = partial(run.services.run, timeout=ENGINE_TIMEOUT, env=environment)
    listed = call(listing)
    if not listed.ok:
        run.record.event("warning", f"whether the job left a container is not known: {listed}")
    for container in [word for word in listed.stdout.split() if _ID.fullmatch(word)]:
        call([engine, "kill", container])  # podman's rm alone waits ten seconds for a program that ignores TERM
        done = call([engine, "rm", "--force", container])
        result = "was ended" if done.ok else f"could not be ended, `{engine} rm --force {container}` does: {done}"
        run.record.event("note" if done.ok else "warning", f"the job left its container {container}, which {result}")
