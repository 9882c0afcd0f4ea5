"""How runs reach the world: the scheduler, child processes, the request to stop, and which tools they meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from launcher.core.process import CommandRunner, clean_environment, run
from launcher.core.stop import Stop
from launcher.plan.plan import Plan
from launcher.slurm.client import Scheduler


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
