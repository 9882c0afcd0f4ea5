"""What a command works with: the fleet, the recipes, the state directory; by flag, environment, workspace.

A directory given by flag comes first, then one of the environment (LAUNCHER_RUNNERS, LAUNCHER_RECIPES), then the
workspace's own, then what is shipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import GithubJob, benchmark_from_environment, github_job
from launcher.core.errors import ConfigError, closest
from launcher.core.lines import count_of
from launcher.core.shipped import shipped
from launcher.core.state import state_directory
from launcher.plan.derive import Context, Resolved, run_key
from launcher.plan.plan import SRTCTL, Plan, check_run_id
from launcher.runner.container_schema import CONTAINER, DOCKER
from launcher.runner.container_schema import KINDS as OF_SEVERAL_NODES
from launcher.runner.file import RunnerFile
from launcher.runner.fleet import Fleet

if TYPE_CHECKING:  # matrices, planners and rules are for those who plan: an import of an image waits for none of them
    from launcher.benchmark.matrix import Matrix
    from launcher.check.srtctl_schema import Schemas
    from launcher.container.multinode_resolve import MultinodePlanner
    from launcher.container.resolve import ContainerPlanner
    from launcher.run.kind import JobKind
    from launcher.srtctl.locate import RecipeFinder


@dataclass(frozen=True)
class Project:
    """``workspace`` is the InferenceX checkout or the current directory; ``state`` holds records and caches."""

    workspace: Path
    state: Path
    environ: Mapping[str, str]
    srt_slurm: Path | None = None
    runners: Path | None = None
    recipes: Path | None = None
    look: bool = False
    """Whether paths of runner files are looked up on this machine: true when it will run, false for a dry run."""
    slurm_backend: str | None = None
    """How Slurm is asked, when not as the runner file says."""

    @classmethod
    def open(
        cls,
        environ: Mapping[str, str],
        *,
        workspace: str | None = None,
        state: str | None = None,
        srt_slurm: str | None = None,
        runners: str | None = None,
        recipes: str | None = None,
        look: bool = False,
    ) -> Project:
        """Settle where things are. Raises ConfigError for a directory that was named and is not there."""
        named = {
            "--workspace": workspace,
            "--srt-slurm": srt_slurm,
            "--runners": runners or environ.get("LAUNCHER_RUNNERS"),
            "--recipes": recipes or environ.get("LAUNCHER_RECIPES"),
        }
        directories: dict[str, Path | None] = {}
        for flag, text in named.items():
            directories[flag] = Path(text).resolve() if text else None
            if text and not Path(text).is_dir():
                raise ConfigError(f"{text} is not a directory", where=flag)
        return cls(
            workspace=directories["--workspace"] or Path(environ.get("GITHUB_WORKSPACE") or ".").resolve(),
            state=state_directory(environ, state),
            environ=dict(environ),  # os.environ decodes a variable each time
            srt_slurm=directories["--srt-slurm"],
            runners=directories["--runners"],
            recipes=directories["--recipes"],
            look=look,
        )

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    @property
    def sweeps(self) -> Path:
        """Where the ledgers lie."""
        return self.state / "sweeps"

    @cached_property
    def fleet(self) -> Fleet:
        ours = [self.runners] if self.runners else []
        return Fleet([*ours, self.workspace / "runners", shipped("runners")])

    @cached_property
    def finder(self) -> RecipeFinder:
        from launcher.srtctl.locate import RecipeFinder

        ours = [self.recipes] if self.recipes else []
        trees = [self.srt_slurm] if self.srt_slurm else []
        return RecipeFinder(self.workspace, [*ours, shipped("recipes")], trees)

    @property
    def caches(self) -> list[Path]:
        """Where the runner files keep mirrors of srt-slurm; most lie on other machines."""
        caches = dict.fromkeys(file.runner.checkout.cache for file in self.fleet.readable())
        workspace, state = str(self.workspace), str(self.state)
        return [Path(text.replace("{workspace}", workspace).replace("{state}", state)) for text in caches]

    @cached_property
    def _kinds(self) -> dict[str, JobKind]:
        return {}

    def kind(self, name: str) -> JobKind:
        """A kind of job by its name in runner files and plans. Raises ConfigError."""
        if name not in KINDS:
            match = closest(name, KINDS)
            hint = f"did you mean {match}?" if match else f"there are: {', '.join(KINDS)}"
            raise ConfigError(f"no kind of job is called {name}", hint=hint)
        if name not in self._kinds:
            self._kinds[name] = KINDS[name](self)
        return self._kinds[name]

    @cached_property
    def schemas(self) -> Schemas:
        from launcher.check.srtctl_schema import Schemas

        return Schemas(self.finder.trees)

    def matrix(self, files: Sequence[str] = (), keys: Sequence[str] = ()) -> Matrix:
        """The matrix of the files named, else of this repository together with the workspace's masters.

        ``keys`` are the globs of the rows that will be selected. Errors are raised for selected rows only
        (`Matrix.entries`). Raises ConfigError when there is no file.
        """
        from launcher.benchmark.matrix import load_matrix

        masters = self.workspace / "configs"
        hardware = masters / "runners.yaml"
        if files:
            paths = [Path(f) for f in files]
        else:
            own = [d / "matrix.yaml" for d in self.finder.repository]
            paths = [p for p in [*own, *sorted(masters.glob("*-master.yaml"))] if p.is_file()]
        if not paths:
            raise ConfigError("no matrix file was found", hint="--matrix FILE, or --workspace INFERENCEX_CHECKOUT")
        return load_matrix(paths, hardware if hardware.is_file() else None, strict=False, keys=keys)

    def runner_for(self, benchmark: Benchmark, name: str | None) -> RunnerFile:
        """The cluster by name, else the only one that serves the benchmark's label. Raises ConfigError."""
        if name is not None:
            return self.fleet.get(name)
        serving = self.fleet.by_label.get(benchmark.runner, ())
        if claimed := self.fleet.broken_file_with("labels", benchmark.runner):
            raise claimed  # it may be the only one, or one of several
        if len(serving) == 1:
            return serving[0]
        if serving:
            names = ", ".join(file.runner.name for file in serving)
            message = f"several clusters serve the label {benchmark.runner!r}: {names}"
            raise ConfigError(message, where=benchmark.source, hint="--runner NAME says which one is meant")
        broken = self.fleet.broken
        unread = f"; {count_of(len(broken), 'runner file')} cannot be read, the first: {broken[0]}" if broken else ""
        raise ConfigError(
            f"no runner file serves the label {benchmark.runner!r}{unread}",
            where=benchmark.source,
            hint=f"--runner NAME, or one of the labels {', '.join(self.fleet.by_label)}",
        )

    def plan_by_hand(
        self,
        benchmark: Benchmark,
        runner: str | None,
        *,
        narrow: bool = False,
        run_id: str | None = None,
        exclude: Sequence[str] = (),
        longer: float = 1.0,
    ) -> Plan:
        """Plan a benchmark that was chosen by hand, as the GitHub job of the same row would be planned.

        ``exclude`` are nodes that the job must not get beside the runner file's, ``longer`` multiplies its time limit.
        """
        file = self.runner_for(benchmark, runner)
        job = GithubJob(runner_name=f"{file.runner.name}_manual")
        return self._plan(benchmark, file, job, run_id, narrow=narrow, exclude=tuple(exclude), longer=longer)

    def plan_from_environment(self, run_id: str | None = None) -> Plan:
        """Plan what this GitHub job's environment asks for."""
        from launcher.check.plan_rules import unknown_settings_of

        job = github_job(self.environ)
        file = self.fleet.for_runner_name(job.runner_name)
        plan = self._plan(benchmark_from_environment(self.environ), file, job, run_id)
        findings = unknown_settings_of(self.environ)  # in a plan by hand they are errors
        return dataclasses.replace(plan, findings=(*plan.findings, *findings)) if findings else plan

    def plan_srtctl(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> Plan:
        """Plan a benchmark that srtctl runs."""
        return plan_benchmark(benchmark, file, self.finder, context, self.schemas)

    @cached_property
    def _in_container(self) -> ContainerPlanner:
        from launcher.container.resolve import ContainerPlanner

        return ContainerPlanner(shipped("recipes"))

    def plan_in_container(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> Plan:
        """Plan a benchmark of one node that runs in a container."""
        resolved = self._in_container.plan(benchmark, file, context)
        return _with_findings(resolved, self.schemas)

    @cached_property
    def _on_nodes(self) -> MultinodePlanner:
        from launcher.container.multinode_resolve import MultinodePlanner

        return MultinodePlanner(pwd.getpwuid(os.geteuid()).pw_name, shipped("recipes"))

    def plan_on_nodes(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> Plan:
        """Plan a benchmark that runs in one container on each of several nodes."""
        return _with_findings(self._on_nodes.plan(benchmark, file, context), self.schemas)

    def change_plan(self, plan: Plan, tree: Path) -> Plan:
        """The plan again, now that the checkout at ``tree`` is there and its recipe can be read."""
        from launcher.srtctl.locate import RecipeFinder

        finder = RecipeFinder(self.workspace, self.finder.repository, checkout=tree)
        context = self._context(plan.runner_name, plan.run_key, narrow=plan.narrow, exclude=plan.exclude)
        return plan_benchmark(plan.benchmark, self.fleet.get(plan.runner), finder, context, self.schemas)

    def run_id_from_environment(self) -> str:
        """The id that `plan_from_environment` gives its run: what the clean-up step of the same job looks for."""
        job = github_job(self.environ)
        return run_key(benchmark_from_environment(self.environ), job.runner_name, job.run_id, job.attempt)

    def _plan(self, benchmark: Benchmark, file: RunnerFile, job: GithubJob, run_id: str | None, **chosen: Any) -> Plan:
        key = check_run_id(run_id or run_key(benchmark, job.runner_name, job.run_id, job.attempt))
        kind = self.kind(_kind_of_lane(benchmark, file))
        return kind.plan(benchmark, file, self._context(job.runner_name, key, **chosen))

    def context(self, key: str) -> Context:
        """What paths of runner files depend on, for a command that is about no run."""
        return self._context("launcher", key)

    def _context(self, runner_name: str, key: str, **chosen: Any) -> Context:
        """``chosen`` is what a person chose for this plan: ``narrow``, ``exclude``, ``longer`` of a `Context`."""
        return Context(
            workspace=str(self.workspace),
            runner_name=runner_name,
            run_key=key,
            today="{}{:02}{:02}".format(*time.gmtime()),
            host=self.environ,
            is_directory=_is_directory if self.look else lambda path, holding: False,
            state=str(self.state),
            **chosen,
        )


def _srtctl(project: Project) -> JobKind:
    from launcher.srtctl.kind import SrtctlKind

    return SrtctlKind(project.plan_srtctl, project.change_plan)


def _in_container(name: str, project: Project) -> JobKind:
    from launcher.container.kind import ContainerKind

    return ContainerKind(name, project.plan_in_container, project.state / "jobs")


def _on_nodes(project: Project) -> JobKind:
    from launcher.container.multinode_kind import MultinodeKind

    return MultinodeKind(project.plan_on_nodes, project.state / "jobs")


KINDS: dict[str, Callable[[Project], JobKind]] = {
    SRTCTL: _srtctl,
    CONTAINER: partial(_in_container, CONTAINER),
    DOCKER: partial(_in_container, DOCKER),
    **dict.fromkeys(OF_SEVERAL_NODES, _on_nodes),
}
"""The kinds of job that there are."""


def plan_benchmark(
    benchmark: Benchmark,
    file: RunnerFile,
    finder: RecipeFinder,
    context: Context,
    schemas: Schemas | None = None,
) -> Plan:
    """Plan a benchmark on a runner, and check the plan. Raises ConfigError when it cannot be planned."""
    from launcher.check.srtctl_schema import Schemas
    from launcher.srtctl.resolve import SrtctlPlanner

    schemas = schemas or Schemas()
    resolved = SrtctlPlanner(finder, schemas.has_file).plan(benchmark, file, context)
    return _with_findings(resolved, schemas)


def _with_findings(resolved: Resolved, schemas: Schemas) -> Plan:
    from launcher.check.plan_rules import check_plan

    findings = check_plan(resolved, schemas)
    return dataclasses.replace(resolved.plan, findings=findings) if findings else resolved.plan


def _kind_of_lane(benchmark: Benchmark, file: RunnerFile) -> str:
    """The kind of job that serves a benchmark. Raises ConfigError where no lane does.

    For a benchmark of several nodes the first kind says what is supported: a recipe decides about its lane as well.
    """
    for power in (False, True):  # a recipe that asks for power telemetry can have a lane of its own
        with contextlib.suppress(ConfigError):
            return file.lane(benchmark, power=power).rule.kind
    return SRTCTL if benchmark.multinode else file.lane(benchmark).rule.kind


def _is_directory(path: str, holding: str | None) -> bool:
    directory = Path(path)
    return directory.is_dir() and (holding is None or any(directory.glob(holding)))


def new_run_id(benchmark: Benchmark, now: float) -> str:
    """An id for a run by hand: readable, sortable, and one of its kind."""
    stamp = time.strftime("%m%d-%H%M%S", time.localtime(now))
    name = f"{benchmark.exp_name}-{benchmark.topology}".lower()
    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    return f"{stamp}-{slug[:60]}-{os.urandom(2).hex()}"
