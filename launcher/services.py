"""The composition: which programs, scheduler and kinds of job a command uses.

Nothing else in the launcher checks whether a run is a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ConfigError
from launcher.core.process import stoppable
from launcher.core.stop import Stop
from launcher.plan.plan import Plan
from launcher.run.kind import Run, Services, Tools

if TYPE_CHECKING:  # an import by hand asks for tools alone
    from launcher.project import Project
    from launcher.run.listing import UnreadableRecord
    from launcher.run.record import RunRecord
    from launcher.slurm.client import Scheduler
    from launcher.slurm.poller import Pace

REHEARSAL = "rehearsal"


def open_tools(name: str, scheduler_kind: str, state: Path, environ: Mapping[str, str]) -> Tools:
    """The tools of a runner file: ``system``, or ``rehearsal``."""
    if name != REHEARSAL:
        return Tools()
    from launcher.rehearsal.stand_ins import StandIns

    return StandIns.below(state, scheduler_kind, environ)


def stand_in_programs(name: str) -> tuple[str, ...]:
    """The programs that these tools replace by stand-ins."""
    return () if name != REHEARSAL else ("enroot", "srtctl", "docker", "podman")


def open_scheduler(kind: str, backend: str, jobs: Path, log: Callable[[str], None] = lambda text: None) -> Scheduler:
    """The scheduler of a kind: ``slurm``, or ``local``, the embedded one, whose jobs lie in ``jobs``.

    Slurm is asked by its commands (``backend`` ``commands``), or by pyslurm where that can be used (``pyslurm``,
    ``auto``) and by its commands elsewhere; ``log`` gets which and why. Its programs run on when the launcher was
    asked to stop: scancel is what it then has to run.
    """
    if kind == "local":
        from launcher.slurm.local import LocalScheduler

        return LocalScheduler(jobs)
    from launcher.slurm.commands import SlurmCommands
    from launcher.slurm.native import choose_backend

    native, reason = (None, "as asked for") if backend == "commands" else choose_backend()
    log(f"Slurm is asked by {reason}" if native is not None else f"Slurm is asked by its commands: {reason}")
    return native if native is not None else SlurmCommands()


def open_services(project: Project, plan: Plan, stop: Stop, *, log: Callable[[str], None]) -> Services:
    """The scheduler, tools and stop request for runs of this plan's cluster in this process; ``log`` gets how Slurm is
    asked."""
    planned = plan.scheduler
    backend = project.slurm_backend or planned.backend
    scheduler = open_scheduler(planned.kind, backend, project.state / "jobs", log)
    if planned.kind == "slurm":
        from launcher.slurm.other_jobs import MultiClusterScheduler
        from launcher.slurm.shared import SharedPoller

        scheduler = MultiClusterScheduler(scheduler)
        scheduler = SharedPoller(scheduler, project.state / "poller", cluster=project.environ.get("SLURM_CONF", ""))
    tools = open_tools(plan.tools, planned.kind, project.state, project.environ)
    return Services(scheduler, project.environ, stop, tools, run=stoppable(stop.requested))


def schedulers_for(project: Project, unreadable: UnreadableRecord) -> list[Scheduler]:
    """The schedulers that may have the job of a run whose record cannot be read: the plan's, else all."""
    from launcher.slurm.other_jobs import MultiClusterScheduler

    try:
        kinds = [unreadable.record.plan.scheduler.kind]
    except ConfigError:
        kinds = ["local", "slurm"]
    opened = [open_scheduler(kind, "commands", project.state / "jobs") for kind in kinds]
    return [MultiClusterScheduler(scheduler) for scheduler in opened]  # its job may be another cluster's


def open_run(project: Project, record: RunRecord, services: Services | None = None) -> Run:
    """A recorded run, for this process to go on with, to end or to collect. Raises ConfigError."""
    plan = record.plan
    if services is None:
        services = open_services(project, plan, Stop.never(), log=lambda text: record.event("note", text))
    return Run(record, plan, project.kind(plan.kind), services)


def poll_pace(plan: Plan) -> Pace:
    """A cluster is asked rarely; the embedded scheduler is a few files on this machine."""
    from launcher.slurm.poller import Pace

    return Pace(first=0.2, running=1.0, pending=1.0, tick=0.2) if plan.scheduler.kind == "local" else Pace()
