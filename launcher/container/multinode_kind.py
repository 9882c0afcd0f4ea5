"""Jobs that run one container on each of several nodes: a batch job, whose script runs a step on each node.

A run's own directory contains the job's script and one directory per job: its facts, and in ``logs`` its output and the
files that were gathered from its nodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.benchmark.benchmark import agentic_result_name
from launcher.container.planned import FACTS, LABEL, LOG, SCRIPT, MultinodeJob
from launcher.container.script_kind import ScriptKind, attend_nodes, end_containers
from launcher.core.lines import count_of
from launcher.core.reading import read_file
from launcher.plan.plan import Plan

if TYPE_CHECKING:  # a dry run pays for nothing that only a run needs
    from launcher.core.process import CommandRunner
    from launcher.result.collect import CollectedResults
    from launcher.run.kind import Earlier, Prepared, Run, Submitted

OWNER_FILE = ".launcher-run"
"""The file with the run's id in the directory of logs. An earlier job's directory has another id, or no such file."""


class MultinodeKind(ScriptKind):
    """The kinds ``amd-multinode``, ``llm-d`` and ``tilert`` (`launcher.run.kind.JobKind`)."""

    name = "multinode"
    form = MultinodeJob

    def describe(self, plan: Plan) -> list[tuple[str, str]]:
        """Allocation, containers, script, checks, mounts."""
        job = MultinodeJob.of(plan)
        containers = [
            ("container", f"{c.engine} of {c.image}" + (f", {c.role}" if c.role else "")) for c in job.job.containers
        ]
        first = job.job.containers[0]
        return [
            ("nodes", f"{job.job.nodes}, {count_of(job.allocation.gpus, 'GPU')} each, for this job alone"),
            *containers,
            ("script", job.script.path),
            ("checks", ", ".join(job.job.checks)),
            *(("mount", f"{source} → {target}") for target, source in first.mounts.items()),
            ("submit", " ".join(("sbatch", *job.submit.argv))),
        ]

    def prepare(self, run: Run) -> Prepared:
        """Make the job's script, the directory of its logs, and for a manual run a copy of the checkout."""
        from launcher.container.multinode_job_script import render
        from launcher.core.publish import write_text
        from launcher.result.collect import modification_times
        from launcher.run.kind import Prepared

        plan, root, directory = run.plan, self.own_directory(run.plan), MultinodeJob.of(run.plan).files.directory
        with self.creating_own_directory(root):
            workspace = self.make_workspace(run, root, (directory,))
            logs = workspace / directory
            if not logs.exists():
                logs.mkdir(parents=True)
                write_text(logs / OWNER_FILE, f"{plan.run_key}\n")
            write_text(root / SCRIPT, render(plan, root, str(workspace)))
        names = [agentic_result_name(plan.results.filename, at) for at in plan.results.concurrencies]
        return Prepared(root, {"root": str(root), "there_before": modification_times(workspace, names)})

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """Submit the script with sbatch, held; or to the embedded scheduler, whose nodes are processes of this host."""
        from launcher.container.submit import embedded_argv, environment, submit_job
        from launcher.result.collect import refuse_foreign_files

        plan, job, root = run.plan, MultinodeJob.of(run.plan), prepared.root
        refuse_foreign_files(run.results_directory, plan.results)
        workspace = str(self.job_workspace(plan, root))
        options = [option.replace("{workspace}", workspace) for option in job.submit.argv]
        argv = ["sbatch", *options, f"--chdir={root}", str(root / SCRIPT)]
        if not self.submits_held(plan):
            argv = embedded_argv(plan, self._jobs, self.log_in(root / "%j", ""), root / SCRIPT)
        return submit_job(
            self, run, argv, environment(job, run.services.environ, run.services.tools.environment), earlier, start
        )

    def output_of_log(self, log: Path) -> Path | None:
        """The directory above ``logs``."""
        return log.parent.parent if log.parent.name == "logs" and log.name == LOG else None

    def log_in(self, output: Path, job_id: str) -> Path:
        """The output of the job's script and of the containers."""
        return output / "logs" / LOG

    def complete_directory(self, run: Run) -> None:
        """Make the job's own directory with a link to its output, which has the path of the bash launchers, beside
        files of other jobs; and attend to its nodes. Raises OSError."""
        assert run.record.job is not None
        log, job = Path(run.record.job.log), run.record.job
        log.parent.mkdir(parents=True, exist_ok=True)
        files = MultinodeJob.of(run.plan).files
        output = (
            self.job_workspace(run.plan, self.own_directory(run.plan)) / files.directory / f"slurm_job-{job.id}.out"
        )
        output.touch()
        if not log.exists():
            try:
                log.hardlink_to(output)  # Slurm truncates this file, and does not replace it
            except OSError:
                log.symlink_to(output)
        attend_nodes(run, MultinodeJob.of(run.plan).job.nodes)

    def end_leftovers(self, run: Run) -> None:
        """End the containers of nodes that were killed, if the nodes are processes of this host. A node of Slurm ends
        its own containers, and its engine cannot be reached from here."""
        job, recorded = MultinodeJob.of(run.plan), run.record.job
        if self.submits_held(run.plan) or recorded is None or job.job.containers[0].engine != "docker":
            return
        label = f"--filter=label={LABEL}={run.plan.run_key}.{recorded.id}"
        for rank in range(job.job.nodes):
            node = {**run.services.environment, "SLURMD_NODENAME": f"node{rank}"}
            end_containers(run, "docker", ["docker", "ps", "--all", "--quiet", label], node)

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Gather the nodes' files, and collect the results of this job only."""
        from launcher.container.multinode_results import NodeFiles
        from launcher.container.results import facts
        from launcher.result.collect import CollectRequest, collect
        from launcher.result.contradictions import Window

        plan, recorded = run.plan, run.record.job
        assert recorded is not None
        own, started = Path(recorded.output), int(recorded.submitted or run.record.fields.created)
        workspace = self.job_workspace(plan, own.parent)
        node_files = NodeFiles(plan, workspace, own, recorded.id, Window(started, time.time() + 86400))
        for name, value in facts(own / FACTS).items():
            run.log(f"the job: {name.replace('_', ' ')} {value}")

        def gather() -> None:
            try:
                node_files.gather()
            except OSError as error:
                run.record.event("warning", f"what the nodes left cannot all be taken: {error}")

        def sleep(seconds: float) -> None:
            run.services.stop.sleep(seconds)
            gather()  # NFS shows some files late

        gather()
        request = CollectRequest(
            logs_dir=node_files.logs,
            workspace=run.results_directory,
            expected=plan.results,
            job_id=recorded.id,
            started=started,
            agentic_source=workspace,
            name=node_files.result_name,
            published=run.record.step("collect").facts.get("published", {}),
            patience=patience,
            there_before=run.record.step("workspace").facts.get("there_before", {}),
        )
        return collect(request, sleep=sleep)

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """As for other kinds, and the directory of logs in the plan's workspace if this run made it."""
        job, directories = MultinodeJob.of(plan), super().own_directories(plan)
        logs = self.job_workspace(plan, self.own_directory(plan)) / job.files.directory
        try:
            is_ours = read_file(logs / OWNER_FILE, 4096).decode(errors="replace").strip() == plan.run_key
        except OSError:
            is_ours = False
        return [*directories, *([logs] if is_ours and job.own_workspace is None else [])]
