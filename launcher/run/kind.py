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
"""Seconds between two looks for a request to end one run, while something is waited for."""


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

    ``environ`` is this process's environment: of it the job gets what `launcher.plan.job_environment` lets through.
    ``run`` starts programs, and ends them when ``stop`` is requested.
    """

    scheduler: Scheduler
    environ: Mapping[str, str]
    stop: Stop = field(default_factory=Stop.never)
    tools: Tools = Tools()
    run: CommandRunner = run

    def with_stop(self, stop: Stop) -> Services:
        """The same, whose waits and programs end when ``stop`` is requested."""
        return replace(self, stop=stop, run=stoppable(stop.requested))

    def for_run(self, record: RunRecord) -> Services:
        """The same for one run of a command: what it waits for and what it runs ends when the run is to end, too."""
        return self.with_stop(self.stop.or_when(record.cancel_requested, record.cancel_reason, CHECK_SECONDS))

    @property
    def environment(self) -> dict[str, str]:
        """For child processes: the environment without what would leak into a submission, and with the tools."""
        return {**clean_environment(self.environ), **self.tools.environment}


@dataclass(frozen=True)
class Prepared:
    """What a run needs beside images and model, ready to be submitted. ``facts`` belong into the record, ``own`` is
    the kind's own."""

    root: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    own: Any = None


Earlier = frozenset[str] | None
"""Ids of jobs that carried a run's id before and are over; None where there can be none, because the id was made for
this run alone: then nobody has to be asked."""


@dataclass(frozen=True)
class Submitted:
    """The one job of a submission.

    ``submitted`` is its submit time in seconds since the epoch when the scheduler told it, ``output`` its own directory
    and ``log`` its log. With ``held`` it starts once the launcher releases it. ``adopted``: the submitting program
    failed, and the scheduler had the job nevertheless. ``printed`` is everything the program said. ``left_out`` are the
    names of this process's environment that the job did not get. ``cluster`` is another one that took the job.
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
    """What jobs need of a workspace: neither what earlier ones left at its top, nor ``without``. Raises OSError,
    shutil.Error."""
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
        """The kind's part of a plan for a person: a name and a value a line."""

    def fingerprint(self, plan: Plan) -> Mapping[str, str]:
        """What the kind's own part of a plan adds to what makes two results comparable, by name; "" is not known.

        Nothing in it depends on the run, its concurrencies, its nodes or its directories.
        """

    def is_complete(self, plan: Plan) -> bool:
        """Whether the plan can be carried out as it is; else `complete` needs what `prepare` made."""

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        """The whole plan, by what was prepared. Raises ConfigError."""

    def prepare(self, run: Run) -> Prepared:
        """Make ready what the job needs beside images and model. Idempotent. Raises LauncherError."""

    def check_nodes(self, run: Run) -> None:
        """Have what the job needs looked at from where it will run: that takes minutes, and can be cut off at any time.
        Raises LauncherError when something is wrong."""

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """Submit exactly one job, which carries the run's id as its comment, so that it can be found again.

        ``start`` runs the submitting program, which holds the run's lock as long as it lives. It is not ended when we
        are asked to stop: a submission takes seconds, and one that is cut off leaves open whether there is a job.
        Raises SubmissionError when there is no job, SubmissionUnknown when that cannot be told, JobsExist when there
        are jobs that have to go.
        """

    def submits_held(self, plan: Plan) -> bool:
        """Whether `submit` submits the job of this plan held, for the launcher to release."""

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        """The own directory of a job that `submit` made."""

    def output_of_log(self, log: Path) -> Path | None:
        """The own directory of a job by its log; None when this kind of job has no log there."""

    def log_in(self, output: Path, job_id: str) -> Path:
        """The log of the job whose own directory this is."""

    def complete_directory(self, run: Run) -> None:
        """Give the directory of a held job what it needs, before the job is released. Raises LauncherError, OSError."""

    def end_state_in_log(self, job: JobKey, log: Path) -> JobState | None:
        """How a job ended by the last lines of its own log; None while it does not say."""

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        """What tells how the job was made, by name: files, or texts. Files that are not there are left out."""

    def end_leftovers(self, run: Run) -> None:
        """End what the run's job, which is over, has left running where its scheduler does not reach: what a daemon
        began for a job that was killed. What cannot be ended is told in the record."""

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Collect the results of the run's job into `Run.results_directory`, waiting ``patience`` seconds for those
        that are missing. Raises ResultError when that cannot be done."""

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """What `prepare` made for this run alone, to be removed once its logs are delivered."""


class Run:
    """One run. What is done already is in its record, so that any process can go on with it."""

    def __init__(
        self, record: RunRecord, plan: Plan, kind: JobKind, services: Services, *, fresh: bool = False
    ) -> None:
        """``fresh``: the record was made by this process, under an id that nobody can have given before."""
        self.id = record.id
        self.fresh = fresh
        self.record = record
        self.plan = plan
        self.kind = kind
        self.services = services
        record.environ = services.environ

    def log(self, text: str) -> None:
        """Tell whoever follows the run."""
        self.record.event("note", text)

    def announced_sleep(self, text: str, at_most: float) -> Callable[[float], None]:
        """A sleep that tells once what is waited for, and for how many seconds at most. No request to stop ends it."""
        announced: list[str] = []

        def sleep(seconds: float) -> None:
            if not announced:
                announced.append(text)
                self.record.event("wait", text, at_most=at_most)
            time.sleep(seconds)

        return sleep

    def change_plan(self, plan: Plan) -> None:
        """Go on with another plan, from here on also for other processes."""
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
