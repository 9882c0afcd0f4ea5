"""An emulated cluster: a stand-in controller whose jobs are files, and a kind of job that measures at once.

Ledger, driver, loop, records, ends and verdicts are the launcher's own. What is emulated is Slurm (a job is a file that
says when it ends), planning (a plan is copied from one template), and the job itself. The files outlive a killed
driver, as Slurm's jobs do. ``python -m scripts.measure_sweeps.emulation ROOT SWEEP`` is one driver.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import time as clock
from typing import Any

from msgspec import structs

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import JobError, LauncherError, SubmissionError
from launcher.core.process import CommandRunner
from launcher.core.stop import Stop
from launcher.plan.plan import Plan, SchedulerPlan
from launcher.result.collect import CollectedResults, Problem
from launcher.result.validate import MeasuredPoint
from launcher.run.kind import Earlier, Prepared, Run, Services, Submitted
from launcher.run.loop import run_feed
from launcher.run.record import RunRecord
from launcher.runner.cluster_schema import Limits
from launcher.slurm.client import JobKey, JobState, Phase, has_token, may_have_job
from launcher.slurm.poller import Pace
from launcher.sweep.driver import Driver, DriverSetting
from launcher.sweep.ledger import Ledger
from launcher.sweep.making import RunMaker
from launcher.sweep.points import job_of
from launcher.sweep.schema import Job, Policy, Sweep

PACE = Pace(first=0.05, running=0.2, pending=0.2, tick=1.0, release_at_once=True)

COST = {"nodes": 2, "gpus": 8, "seconds": 3600.0}
"""What one emulated job holds: 8 GPU-hours are reserved for it."""


class StandInController:
    """The `Scheduler` of the emulation. ``calls`` counts questions and requests of this process by their kind."""

    name = "stand-in controller"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.calls: dict[str, int] = {}
        self._guard = threading.Lock()

    def _count(self, what: str) -> None:
        self.calls[what] = self.calls.get(what, 0) + 1

    def submit(self, token: str, seconds: float, end: str) -> str:
        """A new job, held, which ends as ``end`` says ``seconds`` after its release."""
        self._count("submit")
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            counter = self._directory / "last"
            number = int(counter.read_text()) + 1 if counter.exists() else 1
            whole = counter.with_suffix(f".{os.getpid()}")  # whoever submits may be killed here
            whole.write_text(str(number))
            whole.replace(counter)
            self._write(str(number), {"token": token, "submitted": clock(), "seconds": seconds, "end": end})
        return str(number)

    def _write(self, job: str, value: Mapping[str, Any]) -> None:
        path = self._directory / f"{job}.json"
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        temporary.write_text(json.dumps(value))
        temporary.replace(path)

    def _read(self, job: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads((self._directory / f"{job}.json").read_text())
            return value
        except (OSError, ValueError):
            return None

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs that there ever were."""
        found = {path.stem: self._read(path.stem) for path in self._directory.glob("[0-9]*.json")}
        return {job: value for job, value in found.items() if value is not None}

    def state(self, job: str, now: float | None = None) -> JobState:
        now = clock() if now is None else now
        value = self._read(job)
        if value is None:
            return JobState(Phase.UNKNOWN, reason="no such job")
        began = value.get("released")
        ends = value.get("cancelled") or (began + value["seconds"] if began is not None else None)
        if ends is not None and ends <= now:
            word = "CANCELLED" if "cancelled" in value else value["end"]
            code = (0, 0) if word == "COMPLETED" else (1, 0)
            at = {"submitted": value["submitted"], "started": began, "ended": ends}
            return JobState(Phase.TERMINAL, word, exit_code=code, nodes="n[1-2]", source="stand-in", **at)
        if began is None:
            return JobState(Phase.ALIVE, "PENDING", reason="JobHeldUser", submitted=value["submitted"])
        return JobState(Phase.ALIVE, "RUNNING", submitted=value["submitted"], started=began, nodes="n[1-2]")

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self._count("poll")
        return {job: self.state(job.id) for job in jobs}

    def find(self, token: str) -> list[JobKey]:
        self._count("find")
        ours = [(job, v) for job, v in self.jobs().items() if has_token(v["token"], token)]
        return [JobKey(job, value["submitted"], token) for job, value in ours]

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        self._count("cancel")
        for job in jobs:
            if (value := self._read(job.id)) is not None and self.state(job.id).phase is Phase.ALIVE:
                self._write(job.id, {**value, "cancelled": clock()})

    def release(self, job: JobKey) -> None:
        self._count("release")
        if (value := self._read(job.id)) is None:
            raise JobError("no such job", where=str(job))
        self._write(job.id, {"released": clock(), **value})

    def describe(self, job: JobKey) -> dict[str, str]:
        self._count("describe")
        return {"stand-in": str(self.state(job.id))}


class EmulatedKind:
    """Jobs that measure at once. How they end is in the row's settings: ``END`` (a state of Slurm, by default
    COMPLETED), ``LOST`` (concurrencies without a result), ``SECONDS``; ``END_FIRST`` is for a job's first attempt."""

    name = "emulated"

    def __init__(self, controller: StandInController) -> None:
        self._controller = controller

    def fingerprint(self, plan: Plan) -> dict[str, str]:
        return {"script": plan.benchmark.settings.get("SCRIPT", "1")}

    def is_complete(self, plan: Plan) -> bool:
        return True

    def check_nodes(self, run: Run) -> None:
        pass

    def prepare(self, run: Run) -> Prepared:
        return Prepared(run.record.directory)

    def submits_held(self, plan: Plan) -> bool:
        return True

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        said = run.plan.benchmark.settings
        if "REFUSED" in said:
            raise SubmissionError(said["REFUSED"])
        first = run.id.split("-")[-2] == "1"
        end = said.get("END_FIRST", "COMPLETED") if first and "END_FIRST" in said else said.get("END", "COMPLETED")
        job = self._controller.submit(run.id, float(said.get("SECONDS", "0")), end)
        output = self.output_directory(run.plan, job)
        output.mkdir(parents=True, exist_ok=True)
        log = self.log_in(output, job)
        log.write_text(said.get("LOG", "measured\n"))
        return Submitted(job, clock(), output, log, held=True)

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        return Path(plan.workspace.path, "outputs", job_id)

    def output_of_log(self, log: Path) -> Path | None:
        return log.parent

    def log_in(self, output: Path, job_id: str) -> Path:
        return output / "job.log"

    def complete_directory(self, run: Run) -> None:
        pass

    def end_state_in_log(self, job: JobKey, log: Path) -> JobState | None:
        return None

    def evidence(self, run: Run) -> dict[str, Path | str]:
        return {}

    def end_leftovers(self, run: Run) -> None:
        pass

    def collect(self, run: Run, patience: float) -> CollectedResults:
        lost = {int(c) for c in run.plan.benchmark.settings.get("LOST", "").split()}
        assert run.record.job is not None
        if self._controller.state(run.record.job.id).word != "COMPLETED":
            lost = set(run.plan.benchmark.concurrencies)
        points, problems = [], []
        for concurrency in run.plan.benchmark.concurrencies:
            path = run.results_directory / f"c{concurrency}.json"
            if concurrency in lost:
                problems.append(Problem(f"concurrency {concurrency} is not there", concurrency))
            else:
                path.write_text("{}")
                points.append(MeasuredPoint(concurrency, 10, path, requests=10, rehearsal=True))
        return CollectedResults(tuple(points), tuple(problems))

    def own_directories(self, plan: Plan) -> list[Path]:
        return []


@dataclass
class EmulatedProject:
    """What of a `launcher.project.Project` a driver asks: plans are copies of one template."""

    state: Path
    template: Plan
    controller: StandInController
    environ: Mapping[str, str]

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    def kind(self, name: str) -> EmulatedKind:
        return EmulatedKind(self.controller)

    def plan_by_hand(self, benchmark: Benchmark, runner: str | None, **chosen: Any) -> Plan:
        t = self.template
        results = structs.replace(t.results, concurrencies=benchmark.concurrencies)
        change = {"benchmark": benchmark, "runner": runner or "emulated", "results": results}
        own = {"run_key": chosen.get("run_id", "x"), "exclude": tuple(chosen.get("exclude", ()))}
        return replace(t, **own, **change)


class EmulatedMaker(RunMaker):
    """Runs that meet the stand-in controller."""

    def services(self, plan: Plan) -> Services:
        project: Any = self._project
        return Services(project.controller, project.environ, self._stop)


def project_in(root: Path) -> EmulatedProject:
    """The emulated cluster below a directory."""
    from tests.run.runs import plan_on

    template = plan_on("local", root / "workspace")
    scheduler = SchedulerPlan("local", None, None, time_limit="1:00:00", nodes=2, gpus=8)
    own = {"kind": "emulated", "scheduler": scheduler, "images": (), "details": {}, "findings": ()}
    model = replace(template.model, path=None)
    template = replace(
        template, **own, model=model, workspace=replace(template.workspace, path=str(root / "workspace"))
    )
    return EmulatedProject(root / "state", template, StandInController(root / "controller"), dict(os.environ))


def make_sweep(
    root: Path, name: str, benchmarks: Sequence[Benchmark], policy: Policy, runner: str = "emulated"
) -> Ledger:
    """A sweep of these benchmarks."""
    project = project_in(root)
    kind = project.kind("emulated")
    plans = (project.plan_by_hand(benchmark, runner) for benchmark in benchmarks)
    jobs: tuple[Job, ...] = tuple(job_of(plan, kind.fingerprint(plan)) for plan in plans)
    sweep = Sweep(id=name, created=clock(), launcher="emulation", selection=(), policy=policy, jobs=jobs)
    return Ledger.create(root / "state" / "sweeps", sweep)


def drive(root: Path, name: str, stop: Stop | None = None, *, pace: Pace = PACE, **begin: Any) -> Driver:
    """One driver of a sweep, to its end; the driver as it then is. Raises LauncherError when another one drives it."""
    project = project_in(root)
    ledger = Ledger.load(root / "state" / "sweeps", name)
    limits: dict[str, Limits] = begin.pop("limits", {})
    say = begin.pop("say", lambda kind, text: None)
    leaving = threading.Event()

    def may_live(run: str) -> bool:
        return may_have_job(run, project.controller)

    lock = ledger.lock()
    with lock as held:
        if not held.acquired:
            raise LauncherError(f"another one drives it: {held.owner}")
        of: Any = project
        maker = EmulatedMaker(of, stop or Stop.never(), lambda text: None, ledger.sweep.policy)
        driver = Driver(ledger, lock, maker, DriverSetting(project.runs, limits, may_live=may_live), say, leaving)
        policy = begin.pop("policy", driver.state.policy)
        driver.begin("emulation", policy, **begin)
        try:
            run_feed(driver, project.controller, stop or Stop.never(), pace)
        finally:
            driver.skip_rest()
            driver.leave("finished", 0)
    return driver


def die_at(point: str) -> None:
    """End this process without a word, as SIGKILL would, when it comes to a point: ``after:start`` is when the event is
    on the disk; ``before:`` and ``after:`` of record, submit, job, release and collect are what a run does."""
    when, _, what = point.partition(":")
    places: dict[str, tuple[Any, str]] = {
        "record": (EmulatedMaker, "create"),
        "submit": (StandInController, "submit"),
        "job": (RunRecord, "update"),
        "release": (StandInController, "release"),
        "collect": (EmulatedKind, "collect"),
        "cancel": (StandInController, "cancel"),
    }
    owner, name = places.get(what, (Ledger, "append"))
    real = getattr(owner, name)

    def dying(*given: Any, **more: Any) -> Any:
        if what == "job":
            hit = more.get("state") == "submitted"
        else:
            hit = what in places or type(given[1]).__struct_config__.tag == what
        if hit and when == "before":
            os._exit(9)
        answer = real(*given, **more)
        if hit:
            os._exit(9)
        return answer

    setattr(owner, name, dying)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        die_at(sys.argv[3])
    with contextlib.suppress(LauncherError):
        drive(Path(sys.argv[1]), sys.argv[2])
