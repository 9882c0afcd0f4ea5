"""Runs of a sweep: planned from the ledger's own data, recorded, or taken over from a driver that is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.stop import Stop
from launcher.image.squash import Sidecar
from launcher.plan.plan import Plan
from launcher.plan.refusing import require_acceptable
from launcher.project import Project
from launcher.run.kind import Run, Services
from launcher.run.record import Listener, RunRecord
from launcher.services import open_services, open_tools
from launcher.sweep.decide import Start
from launcher.sweep.points import differences, fingerprint
from launcher.sweep.retry import TIME_LIMIT
from launcher.sweep.schema import Job, Policy
from launcher.sweep.state import State


def image_digest(plan: Plan) -> str:
    """The digest of the plan's image, by what lies beside its squash file; "" where nothing does."""
    if plan.images and plan.images[0].shared:
        with contextlib.suppress(OSError):
            sidecar = Sidecar.read(Path(plan.images[0].squash))
            return (sidecar.digest if sidecar is not None else None) or ""
    return ""


class RunMaker:
    """Makes the runs of one sweep. All of them ask the same scheduler."""

    def __init__(self, project: Project, stop: Stop, log: Callable[[str], None], policy: Policy) -> None:
        self._project = project
        self._stop = stop
        self._log = log
        self._accept, self._longer = policy.accept, policy.retry_timeout or 1.0
        self._services: dict[tuple[str, str], Services] = {}
        self.listener: Listener = lambda event: None

    def new_id(self, sweep: str, job: Job, number: int) -> str:
        """An id for an attempt, which is given once: also a start whose record was lost does not come again."""
        return f"{sweep}-{job.key}-{number}-{os.urandom(4).hex()}"

    def plan(self, start: Start, run_id: str) -> Plan:
        """The plan of an attempt. Raises ConfigError where it cannot be made any more, or is not what was wanted."""
        job = start.job
        narrow = job.narrow or start.concurrencies != job.concurrencies
        benchmark = replace(job.benchmark, concurrencies=start.concurrencies)
        project = self._project
        longer = self._longer if start.why == TIME_LIMIT else 1.0
        plan = project.plan_by_hand(
            benchmark, job.runner, narrow=narrow, run_id=run_id, exclude=start.exclude, longer=longer
        )
        current = fingerprint(plan, project.kind(plan.kind).fingerprint(plan))
        if changed := differences(job.fingerprint, current):
            raise ConfigError(
                f"what is measured has changed since the sweep was made: {'; '.join(changed)}",
                where=f"job {job.key}",
                hint="a new sweep measures the new one, and may take over other points with --reuse",
            )
        require_acceptable(plan, self._accept)
        return plan

    def any_plan(self, state: State) -> Plan:
        """A plan of any job, by which scheduler and tools are opened: as it would be planned now, else as an
        attempt was planned. Raises ConfigError when there is none."""
        last: ConfigError | None = None
        for job in state.jobs.values():
            try:
                return self._project.plan_by_hand(job.benchmark, job.runner, narrow=True, run_id="sweep")
            except ConfigError as error:
                last = last or error
        for run in state.by_run:
            with contextlib.suppress(ConfigError):
                return RunRecord.load(self._project.runs, run).plan
        raise last or ConfigError("it has no jobs", where=f"sweep {state.sweep.id}")

    def create(self, plan: Plan) -> Run:
        """A run with a new record, driven by this process. Raises LauncherError, OSError."""
        record = RunRecord.create(self._project.runs, plan, accepted=self._accept, results="run")
        return self._run(record, plan, fresh=True)

    def adopt(self, run_id: str) -> Run:
        """The run of an earlier driver, from here on driven by this process. Raises ConfigError, OSError."""
        record = RunRecord.load(self._project.runs, run_id)
        run = self._run(record, record.plan)
        record.acquire()
        return run

    def _run(self, record: RunRecord, plan: Plan, *, fresh: bool = False) -> Run:
        record.listeners.append(self.listener)
        services = self.services(plan).for_run(record)
        return Run(record, plan, self._project.kind(plan.kind), services, fresh=fresh)

    def services(self, plan: Plan) -> Services:
        """How runs of this plan's runner reach the world."""
        key = (plan.tools, plan.scheduler.kind)
        if key not in self._services:
            project = self._project
            if self._services:
                tools = open_tools(plan.tools, plan.scheduler.kind, project.state, project.environ)
                self._services[key] = replace(next(iter(self._services.values())), tools=tools)
            else:
                self._services[key] = open_services(project, plan, self._stop, log=self._log)
        return self._services[key]
