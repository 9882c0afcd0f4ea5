"""A kind of job: what it plans, prepares, submits and collects; and a run, which is of one kind.

Everything else in this room is the same for all kinds. A runner file names the kind of each lane, and a plan has it as
``kind``; `launcher.project` knows which kinds there are. The first one is srtctl's (`launcher.srtctl.kind`).
`Services` is how runs reach the world.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launcher.core.process import CommandRunner, clean_environment, run, stoppable
from launcher.core.stop import Stop
from launcher.plan.plan import OWN, Plan

if TYPE_CHECKING:
    from launcher.benchmark.benchmark import Benchmark
    from launcher.plan.derive import Context
    from launcher.result.collect import CollectedResults
    from launcher.run.record import RunRecord
    from launcher.runner.file import RunnerFile
    from launcher.slurm.client import JobKey, JobState, Scheduler


CHECK_SECONDS = 0.5
"""Seconds between two checks for a request to cancel one run, while the run waits."""


@dataclass(frozen=True)
class Tools:
    """Which programs a run uses: those of the system, or stand-ins. Only `launcher.services` decides that.

    ``environment`` is what child processes need for them: PATH, and where the embedded scheduler keeps its jobs. With
    ``stand_ins`` checkpoints and results are not real, and are marked so. ``registries`` are the hosts whose registries
    may be queried about images, None for all.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    stand_ins: bool = False
    registries: frozenset[str] | None = None

    def make_stand_in_inputs(self, plan: Plan) -> None:
        """Make the inputs of stand-ins; the tools of the system need none. Raises LauncherError."""


@dataclass(frozen=True)
class Services:
    """What runs use of the system, the same for all runs of a command.

    ``environ`` is this process's environment; `launcher.plan.job_environment` selects what a job gets of it. ``run``
    starts programs, and ends them when ``stop`` is requested.
    """

    scheduler: Scheduler
    environ: Mapping[str, str]
    stop: Stop = field(default_factory=Stop.never)
    tools: Tools = Tools()
    run: CommandRunner = run

    def with_stop(self, stop: Stop) -> Services:
        """The same services with this ``stop``, which ends their waits and programs."""
        return replace(self, stop=stop, run=stoppable(stop.requested))

    def for_run(self, record: RunRecord) -> Services:
        """The same services for one run: its waits and programs also end when somebody asks to cancel the run."""
        return self.with_stop(self.stop.or_when(record.cancel_requested, record.cancel_reason, CHECK_SECONDS))

    @property
    def environment(self) -> dict[str, str]:
        """For child processes: the environment with the tools, and without variables that change a submission."""
        return {**clean_environment(self.environ), **self.tools.environment}


@dataclass(frozen=True)
class Prepared:
    """What a kind of job made for a submission, beside images and model. ``facts`` go into the record, ``own`` is for
    the kind itself."""

    root: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    own: Any = None


Earlier = frozenset[str] | None
"""Ids of finished jobs that carry the run's id; None where no such job can exist, because this process made the id: the
scheduler is not asked then."""


@dataclass(frozen=True)
class Submitted:
    """The one job of a submission.

    ``submitted`` is its submit time in seconds since the epoch when the scheduler told it, ``output`` its own directory
    and ``log`` its log. With ``held`` it starts once the launcher releases it. ``adopted``: the submitting program
    failed, and the scheduler had the job nevertheless. ``printed`` is all output of the program. ``left_out`` are the
    names of this process's environment that the job did not get. ``cluster`` names another cluster that took the job.
    """

    job_id: str
    submitted: float | None
    output: Path
    log: Path
    held: bool = False
    adopted: bool = False
    printed: str = ""
    notes: tuple[str, ...] = ()
    left_out: Sequence[str] = ()
    cluster: str = ""


_NOT_COPIED = (".git", OWN, "LOGS", "outputs", "results", "srt-slurm*", "*.sqsh")


def copy_workspace(source: str, copy: Path, without: Sequence[str] = ()) -> None:
    """Copy a workspace for jobs, except for what earlier jobs left at its top and the patterns of ``without``. Raises
    OSError, shutil.Error."""
    unwanted = shutil.ignore_patterns(*_NOT_COPIED, *without)
    ignore = lambda directory, names: unwanted(directory, names) if directory == source else set()  # noqa: E731
    shutil.copytree(source, copy, symlinks=True, dirs_exist_ok=True, ignore=ignore)


class JobKind(Protocol):
    """One way of running a benchmark as a job."""

    @property
    def name(self) -> str:
        """As runner files and plans name it."""

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> Plan:
        """Decide everything that a run will do, with findings. Opens no socket and starts no process.

        Raises ConfigError when the runner serves no such benchmark.
        """

    def describe(self, plan: Plan) -> list[tuple[str, str]]:
        """The kind's part of a plan for a person: a name and a value for each line."""

    def fingerprint(self, plan: Plan) -> Mapping[str, str]:
        """The values of the kind's part of a plan that must agree for two results to be comparable, by name; "" for one
        that is not known. None of them depends on the run, its concurrencies, its nodes or its directories.
        """

    def is_complete(self, plan: Plan) -> bool:
        """Whether the plan can be carried out as it is; otherwise `complete` completes it after `prepare`."""

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        """The complete plan, made with what was prepared. Raises ConfigError."""

    def prepare(self, run: Run) -> Prepared:
        """Prepare what the job needs beside images and model. Idempotent. Raises LauncherError."""

    def check_nodes(self, run: Run) -> None:
        """Check what the job needs from the nodes where it will run. That takes minutes, and may be interrupted at any
        time. Raises LauncherError when something is wrong."""

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """Submit exactly one job, which carries the run's id as its comment, so that it can be found again.

        ``start`` runs the submitting program, which holds the run's lock while it lives. A request to stop does not
        end it: a submission takes seconds, and after an interrupted one nobody knows whether there is a job.
        Raises SubmissionError when there is no job, SubmissionUnknown when that cannot be told, JobsExist when there
        are jobs that have to go.
        """

    def submits_held(self, plan: Plan) -> bool:
        """Whether `submit` submits the job of this plan held, for the launcher to release."""

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        """The own directory of a job that `submit` made."""

    def output_of_log(self, log: Path) -> Path | None:
        """The own directory of the job with this log; None when this kind of job writes no log there."""

    def log_in(self, output: Path, job_id: str) -> Path:
        """The log of the job with this own directory."""

    def complete_directory(self, run: Run) -> None:
        """Give the directory of a held job what it needs, before the job is released. Raises LauncherError, OSError."""

    def end_state_in_log(self, job: JobKey, log: Path) -> JobState | None:
        """How a job ended by the last lines of its own log; None while it does not say."""

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        """Files or texts, by name, that show how the job was made. Files that do not exist are left out."""

    def end_leftovers(self, run: Run) -> None:
        """End what the run's job, which is over, left running where its scheduler does not reach: containers of a
        daemon. The record says what could not be ended."""

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Collect the results of the run's job into `Run.results_directory`; wait up to ``patience`` seconds for
        missing ones. Raises ResultError when that cannot be done."""

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """The directories that `prepare` made for this run alone, which are removed once its logs are delivered."""


class Run:
    """One run. Its record says what is done already, so that any process can continue it."""

    def __init__(
        self, record: RunRecord, plan: Plan, kind: JobKind, services: Services, *, fresh: bool = False
    ) -> None:
        """``fresh``: this process made the record, under an id that nobody can have used before."""
        self.id = record.id
        self.fresh = fresh
        self.record = record
        self.plan = plan
        self.kind = kind
        self.services = services
        record.environ = services.environ

    def log(self, text: str) -> None:
        """Record a note, which also goes to whoever follows the run."""
        self.record.event("note", text)

    def announced_sleep(self, text: str, at_most: float) -> Callable[[float], None]:
        """A sleep that records once what the run waits for, and for how many seconds at most. A request to stop does
        not interrupt it."""
        announced: list[str] = []

        def sleep(seconds: float) -> None:
            if not announced:
                announced.append(text)
                self.record.event("wait", text, at_most=at_most)
            time.sleep(seconds)

        return sleep

    def change_plan(self, plan: Plan) -> None:
        """Continue with another plan, and store it for other processes."""
        self.plan = plan
        self.record.write("plan.json", plan.as_dict())

    @property
    def results_directory(self) -> Path:
        """Where results go: the workflow's workspace, or the run's own directory for runs by hand."""
        if self.record.fields.results == "workspace":
            return Path(self.plan.workspace.path)
        directory = self.record.directory / "results"
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory
