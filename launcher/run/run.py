"""One run as this process has it: its record, its plan, the kind of its job, and how it reaches the world."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import LauncherError
from launcher.core.process import CommandRunner, clean_environment, run
from launcher.core.redact import redact
from launcher.core.stop import Stop
from launcher.plan.plan import Plan
from launcher.result.logs import LOGS
from launcher.result.validate import Point
from launcher.run.record import RunRecord
from launcher.run.verdict import Verdict
from launcher.slurm.client import Scheduler

if TYPE_CHECKING:
    from launcher.run.kind import JobKind


@dataclass(frozen=True)
class Tools:
    """Which programs a run meets: those of the system, or stand-ins (`launcher.services` decides, and nobody else).

    ``environment`` is what they need of child processes' environment: PATH, and where the embedded scheduler keeps its
    jobs. ``stand_ins`` says that checkpoints and results are not real ones, and are marked so. ``registries`` are the
    hosts whose registries may be asked about images, None for all.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    stand_ins: bool = False
    registries: frozenset[str] | None = None

    def make_inputs(self, plan: Plan) -> None:
        """Make what stand-ins work on; the tools of the system work on what is there. Raises LauncherError."""


@dataclass(frozen=True)
class Services:
    """How runs reach the world, the same for all runs of a command.

    ``environ`` is what child processes and the job get beside what the plan exports. ``run`` starts programs, and ends
    them when ``stop`` is requested.
    """

    scheduler: Scheduler
    environ: Mapping[str, str]
    stop: Stop = field(default_factory=Stop.never)
    tools: Tools = Tools()
    run: CommandRunner = run
    clock: Callable[[], float] = time.time

    @property
    def environment(self) -> dict[str, str]:
        """For child processes: the environment without what would leak into a submission, and with the tools."""
        return {**clean_environment(self.environ), **self.tools.environment}


class Run:
    """One run. What is done already is in its record, so that any process can go on with it."""

    def __init__(self, record: RunRecord, plan: Plan, kind: JobKind, services: Services) -> None:
        self.record = record
        self.plan = plan
        self.kind = kind
        self.services = services
        record.hide = partial(redact, environ=services.environ)

    @property
    def id(self) -> str:
        return self.record.id

    def log(self, text: str) -> None:
        """Tell whoever follows the run."""
        self.record.event("note", text)

    def replan(self, plan: Plan) -> None:
        """Go on with another plan, from here on also for other processes."""
        self.plan = plan
        self.record.replan(plan)

    @property
    def evidence_directory(self) -> Path:
        return self.record.directory / "evidence"

    @property
    def results_directory(self) -> Path:
        """Where results go: the workflow's workspace, or the run's own directory for runs by hand."""
        if self.record.fields.results == "workspace":
            return Path(self.plan.workspace.path)
        own = self.record.directory / "results"
        own.mkdir(exist_ok=True)
        return own


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


def log_path(record: RunRecord) -> Path | None:
    """The log of a run's job, where the job writes it or where it was collected to; None while there is no job."""
    job = record.job
    if job is None:
        return None
    own = Path(job.log)
    if record.fields.results == "workspace" and record.ended and not own.exists():
        return Path(record.plan.workspace.path, LOGS, own.name)
    return own
