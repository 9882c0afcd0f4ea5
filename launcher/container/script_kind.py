"""What both kinds in this room have alike: their job is one script of ours, in a run's own directory.

Below that directory each job has one by its id: its log, and what it wrote down.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.benchmark.benchmark import Benchmark
from launcher.container.planned import COPY, FACTS, SCRIPT
from launcher.core.reading import sha256_of
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.runner.file import RunnerFile

if TYPE_CHECKING:  # a dry run pays for nothing that only a run needs
    from launcher.run.kind import Prepared, Run
    from launcher.slurm.client import JobKey, JobState
    from launcher.slurm.logs import EndMarkers

PlanRow = Callable[[Benchmark, RunnerFile, Context], Plan]

_BEGIN, _END = "launcher: job ", re.compile(r"^launcher: the job ends with exit code (?P<code>\d+)\n", re.MULTILINE)
"""The first and the last line of the job's script."""


ENGINE_TIMEOUT = 60.0
"""Seconds for one question to docker or podman."""

_ID = re.compile(r"[0-9A-Za-z]{6,64}")
"""An id as they list it."""


class ScriptKind:
    """`launcher.run.kind.JobKind` as far as the kinds agree. ``own_directory`` says where a run's own files lie."""

    def __init__(self, plan_row: PlanRow, own_directory: Callable[[Plan], Path]) -> None:
        self.plan = plan_row
        self._own_directory = own_directory

    @cached_property
    def _markers(self) -> EndMarkers:
        from launcher.slurm.logs import EndMarkers

        return EndMarkers(_END, begin=_BEGIN)

    def is_complete(self, plan: Plan) -> bool:
        """Always: nothing that is prepared decides about it."""
        return True

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        """The plan itself."""
        return plan

    def look(self, run: Run) -> None:
        """Does nothing: the job's nodes look for themselves, when it begins."""

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        """By the job's id, below the run's own directory."""
        return self._own_directory(plan) / job_id

    def end_by_log(self, job: JobKey, log: Path) -> JobState | None:
        """By the line that the job's script writes last."""
        return self._markers.read(job, log)

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        """The job's script, and what the job wrote down."""
        found: dict[str, Path | str] = {SCRIPT: self._own_directory(run.plan) / SCRIPT}
        if run.record.job is not None:
            found[FACTS] = Path(run.record.job.output) / FACTS
        return found


def meet_nodes(run: Run, nodes: int) -> None:
    """Be there for the job's nodes when they look: this host's clock and locks, in the job's own directory, until they
    have compared theirs or the run is over. Raises OSError when the directory cannot be made."""
    from launcher.core.node_partner import attend

    record = run.record
    assert record.job is not None
    own = Path(record.job.output)
    own.mkdir(parents=True, exist_ok=True)
    try:
        attend(own, nodes, lambda: record.settled or run.services.stop.requested())
    except OSError as error:
        record.event("warning", f"clock and locks are not compared with the nodes': {error}", job=record.job.id)


def end_containers(run: Run, engine: str, listing: Sequence[str], environment: Mapping[str, str]) -> None:
    """End the containers that an engine of this host lists; what came of each is told in the record."""
    asked = partial(run.services.run, timeout=ENGINE_TIMEOUT, env=environment)
    listed = asked(listing)
    if not listed.ok:
        run.record.event("warning", f"whether the job left a container is not known: {listed}")
    for container in [word for word in listed.stdout.split() if _ID.fullmatch(word)]:
        asked([engine, "kill", container])  # podman's rm alone would wait ten seconds for what heeds no TERM
        done = asked([engine, "rm", "--force", container])
        said = "was ended" if done.ok else f"could not be ended, `{engine} rm --force {container}` does: {done}"
        run.record.event("note" if done.ok else "warning", f"the job left its container {container}, which {said}")


def fingerprint_of(script: Path) -> dict[str, str]:
    """The script that runs in containers, as it is now; "" where it cannot be read."""
    with contextlib.suppress(OSError):
        return {"script": sha256_of(script)[:12]}
    return {"script": ""}


def works_in(root: Path, workspace: str) -> Path:
    """The directory that the job works in: the run's own copy, where its own directory ``root`` has one."""
    copy = root / COPY
    return copy if copy.is_dir() else Path(workspace)
