"""The kind of job that srtctl submits: from a pinned srt-slurm tree and a recipe, by `srtctl apply`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace as change

from launcher.benchmark.benchmark import Benchmark, agentic_result_name
from launcher.core.errors import ConfigError, ResultError
from launcher.core.publish import write_text
from launcher.core.reading import sha256_of
from launcher.plan.derive import Context
from launcher.plan.job_environment import KEPT, select_host_variables, variables_left_out
from launcher.plan.plan import SRTCTL, Plan
from launcher.runner.file import RunnerFile
from launcher.srtctl.planned import LOG, SRTSLURM, SrtctlJob
from launcher.srtctl.recipe import dump, variants

if TYPE_CHECKING:  # a dry run pays for nothing that only a run needs
    from launcher.core.process import CommandRunner
    from launcher.result.collect import CollectedResults
    from launcher.run.kind import Earlier, Prepared, Run, Submitted
    from launcher.slurm.client import JobKey, JobState
    from launcher.slurm.logs import EndMarkers

PlanRow = Callable[[Benchmark, RunnerFile, Context], Plan]
Complete = Callable[[Plan, Path], Plan]

SRTCTL_FILES = ("sbatch_script.sh", "config.yaml", "recipe.lock.yaml")
"""Files that srtctl writes beside a job's logs, and that show how the job was made."""

_BEGIN = "srtctl Sweep Orchestrator"
_END = re.compile(
    r"^(?:(?P<good>✓ Sweep completed successfully)|✗ Sweep failed \(exit code: (?P<code>\d+)\))\nEnd: [^\n]*\n=+\n",
    re.MULTILINE,
)
"""The marker of a job's end. The batch script prints it after the orchestrator ended, and exits with the same code (all
versions of srt-slurm from v1.0.0 to v1.0.68, templates/job_script_minimal.j2)."""


KEPT_FOR_SRTCTL = (
    *("TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "UV_*", "SRTSLURM_*"),
)
"""Host variables, beside `KEPT`, that are read by srtctl and by uv, which its jobs run on their nodes."""


class SrtctlKind:
    """The kind ``srtctl`` (`launcher.run.kind.JobKind`)."""

    name = SRTCTL

    def __init__(self, plan_row: PlanRow, complete: Complete) -> None:
        self.plan = plan_row
        self._complete = complete
        self._resolved: dict[str, tuple[str, list[str]]] = {}

    @cached_property
    def _markers(self) -> EndMarkers:
        return end_markers()

    def describe(self, plan: Plan) -> list[tuple[str, str]]:
        """The recipe, the aliases, the srt-slurm tree, and the submitting command."""
        job = SrtctlJob.of(plan)
        tree = job.srt_slurm
        return [
            ("recipe", f"{job.recipe.path}{':' + job.recipe.selector if job.recipe.selector else ''}"),
            ("", f"from {job.recipe.origin}"),
            *(("alias", f"{alias} → {path}") for alias, path in job.models.items()),
            ("srt-slurm", f"{tree.repository} {tree.ref} ({tree.sha or 'not pinned'})"),
            *(("overlay", f"{o.source} → {o.destination}") for o in tree.overlays),
            ("tree", tree.root),
            ("submit", " ".join(job.submit.argv)),
            *((("passed", ", ".join(plan.passes)),) if plan.passes else ()),
        ]

    def fingerprint(self, plan: Plan) -> dict[str, str]:
        """The submitted variant of the recipe, without values of a single run; and the srt-slurm tree."""
        job = SrtctlJob.of(plan)
        tree, recipe = job.srt_slurm, job.recipe
        patches = "".join(f" with {patch.commit[:12]} of {patch.path}" for patch in tree.patches)
        document = ""
        if recipe.document is not None:
            chosen = variants(recipe.document, recipe.selector)[0].document
            benchmark = {k: v for k, v in (chosen.get("benchmark") or {}).items() if k != "concurrencies"}
            directives = chosen.get("sbatch_directives") or {}
            directives = {k: v for k, v in directives.items() if k not in ("comment", "exclude")}
            slurm = {k: v for k, v in (chosen.get("slurm") or {}).items() if k != "time_limit"}
            common = {**chosen, "benchmark": benchmark, "sbatch_directives": directives, "slurm": slurm}
            text = json.dumps(common, default=str)
            document = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]
        return {"recipe": document, "srt-slurm": f"{tree.sha}{patches}" if tree.sha else ""}

    def is_complete(self, plan: Plan) -> bool:
        """Whether the recipe is known: it decides about images and model."""
        return SrtctlJob.of(plan).recipe.document is not None

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        """The plan again, with the recipe from the checkout."""
        return self._complete(plan, prepared.root)

    def prepare(self, run: Run) -> Prepared:
        """Make the srt-slurm tree of this run, with its overlays."""
        from launcher.run.kind import Prepared
        from launcher.srtctl.checkout import Checkouts

        job, services = SrtctlJob.of(run.plan), run.services
        refuse_other_directives(run)
        overlays = []
        for overlay in job.srt_slurm.overlays:
            if Path(overlay.source).exists():
                overlays.append(overlay)
            elif job.recipe.document is not None:
                run.log(f"overlay {overlay.source} is not in the workspace; the recipe comes from {job.recipe.origin}")
            else:
                raise ConfigError("the lane's overlay is not in the workspace", where=overlay.source)
        tree = change(job.srt_slurm, overlays=tuple(overlays))
        checkouts = Checkouts(
            environ=services.environment,
            setup_environment=services.tools.environment,
            run=services.run,
            sleep=services.stop.sleep,
            resolved=self._resolved,
        )
        checkout = checkouts.prepare(tree)
        for note in checkout.notes:
            run.log(note)
        run.log(f"srt-slurm {tree.ref} ({checkout.sha[:12]}) at {checkout.root}")
        existing = _existing_agentic_results(run.plan)
        facts = {"sha": checkout.sha, "notes": list(checkout.notes), "there_before": existing}
        return Prepared(checkout.root, {"root": str(checkout.root), **facts}, checkout)

    def check_nodes(self, run: Run) -> None:
        """Check images and checkpoint from a node of the partition, if the runner file requires it."""
        if SrtctlJob.of(run.plan).look_from_node and run.plan.scheduler.kind == "slurm":
            from launcher.srtctl.short_job import check_from_node

            state = run.record.directory.parent.parent / "preflight"
            run.log(f"preflight: {check_from_node(run.plan, state, run.services.run, run.services.environment)}")

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """Write recipe and srtslurm.yaml into the tree, and run `srtctl apply`."""
        from launcher.result.collect import refuse_foreign_files
        from launcher.slurm.submission import LOST_ANSWER_MESSAGE, LOST_ANSWER_PAUSES
        from launcher.srtctl.submit import Submission as Apply
        from launcher.srtctl.submit import apply, write_srtslurm

        job, checkout = SrtctlJob.of(run.plan), prepared.own
        refuse_other_directives(run)  # again: `prepare` had no recipe if only the checkout has it
        if job.recipe.document is None:
            raise ConfigError(f"recipe {job.recipe.path} was not found in srt-slurm {job.srt_slurm.ref} either")
        refuse_foreign_files(run.results_directory, run.plan.results)
        recipe = checkout.root / job.recipe.path
        recipe.parent.mkdir(parents=True, exist_ok=True)
        write_text(recipe, dump(job.recipe.document))
        write_srtslurm(checkout.root / SRTSLURM, job.srtslurm, checkout.cluster_keys)
        environ = run.services.environ
        environment = job_environment(job, run.plan.passes, environ, run.services.tools.environment)
        submitted = apply(
            Apply(
                argv=job.submit.argv,
                root=checkout.root,
                environment=environment,
                token=run.id,
                options=checkout.options,
                earlier=earlier,
                hold=self.submits_held(run.plan),
            ),
            scheduler=run.services.scheduler,
            run=start,
            sleep=run.announced_sleep(LOST_ANSWER_MESSAGE, sum(LOST_ANSWER_PAUSES)),
        )
        return replace(submitted, left_out=variables_left_out(environ, environment))

    def submits_held(self, plan: Plan) -> bool:
        """Jobs of Slurm are submitted held, unless recipe, variant or cluster set the directive ``hold`` themselves."""
        return plan.scheduler.kind == "slurm" and not any("hold" in d for d in _directives(SrtctlJob.of(plan)))

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        """``outputs/<job id>`` of the run's tree."""
        return Path(SrtctlJob.of(plan).srt_slurm.root, "outputs", job_id)

    def output_of_log(self, log: Path) -> Path | None:
        """The directory above ``logs``."""
        return log.parent.parent if log.parent.name == "logs" else None

    def log_in(self, output: Path, job_id: str) -> Path:
        """The log of srtctl's orchestrator."""
        return output / LOG.format(job_id)

    def complete_directory(self, run: Run) -> None:
        """Write what srtctl writes into the job's directory after sbatch returned, in case it was interrupted.

        The configuration is a copy of the recipe (srt-slurm c88ef731, cli/submit.py). For a recipe with variants srtctl
        writes another file, which is not replaced here. Raises OSError.
        """
        job, recorded = SrtctlJob.of(run.plan), run.record.job
        assert recorded is not None
        output = Path(recorded.output)
        (output / "logs").mkdir(parents=True, exist_ok=True)
        config, recipe = output / "config.yaml", Path(job.srt_slurm.root, job.recipe.path)
        if job.recipe.selector is None and not config.exists() and recipe.is_file():
            write_text(config, recipe.read_text())

    def end_state_in_log(self, job: JobKey, log: Path) -> JobState | None:
        """Read the last lines of srtctl's script."""
        return self._markers.read(job, log)

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        """Recipe and srtslurm.yaml as submitted, or as planned before that; and the files that srtctl wrote."""
        job, recorded = SrtctlJob.of(run.plan), run.record.job
        tree = Path(job.srt_slurm.root)
        files: dict[str, Path | str] = {}
        for name, path, document in (
            ("recipe.yaml", tree / job.recipe.path, job.recipe.document),
            (SRTSLURM, tree / SRTSLURM, job.srtslurm),
        ):
            files[name] = path if path.is_file() or document is None else dump(document)
        if recorded is not None:
            files |= {name: Path(recorded.output) / name for name in SRTCTL_FILES}
        return files

    def end_leftovers(self, run: Run) -> None:
        """Does nothing: Slurm ends every process of its jobs."""

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Collect results from ``outputs/<job id>/logs``, and agentic ones from the workspace."""
        from launcher.result.collect import CollectRequest, collect

        plan, recorded = run.plan, run.record.job
        assert recorded is not None
        facts = run.record.step("workspace").facts
        stamp_power(plan, facts.get("sha"), run.results_directory)
        request = CollectRequest(
            logs_dir=Path(recorded.output) / "logs",
            workspace=run.results_directory,
            expected=plan.results,
            job_id=recorded.id,
            started=recorded.submitted or run.record.fields.created,
            agentic_source=Path(plan.workspace.shared or plan.workspace.path),
            published=run.record.step("collect").facts.get("published", {}),
            patience=patience,
            there_before=facts.get("there_before", {}),
        )
        return collect(request, sleep=run.services.stop.sleep)

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """The run's tree."""
        return [Path(SrtctlJob.of(plan).srt_slurm.root)]


def _directives(job: SrtctlJob) -> list[dict[str, object]]:
    """The sbatch directives of recipe, variants and cluster."""
    recipe = job.recipe.document or {}
    sections = [recipe, *(section for section in recipe.values() if isinstance(section, dict))]
    tables = [s.get("sbatch_directives") for s in sections] + [job.srtslurm.get("default_sbatch_directives")]
    return [table for table in tables if isinstance(table, dict)]


def refuse_other_directives(run: Run) -> None:
    """Raise ConfigError when a directive sends the job to another cluster."""
    from launcher.slurm.other_jobs import refuse_other_clusters

    if run.plan.scheduler.kind == "slurm":
        for table in _directives(SrtctlJob.of(run.plan)):
            refuse_other_clusters(run.services.environment, table, run.services.run)


def job_environment(
    job: SrtctlJob, passes: Sequence[str] | None, environ: Mapping[str, str], tools: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of srtctl, which is also the job's: variables that programs need, the host's variables that
    the plan passes, and those that the plan exports."""
    return {**select_host_variables(environ, (*KEPT, *KEPT_FOR_SRTCTL), passes), **tools, **job.submit.environment}


def _existing_agentic_results(plan: Plan) -> dict[str, int]:
    """Results of an earlier run under the names that this run's job will write: name → modification time."""
    from launcher.result.collect import modification_times

    expected, directory = plan.results, Path(plan.workspace.shared or plan.workspace.path)
    names = [agentic_result_name(expected.filename, at) for at in expected.concurrencies]
    return modification_times(directory, names) if expected.mode == "agentic" else {}


def stamp_power(plan: Plan, sha: str | None, directory: Path) -> None:
    """Write the stamps that the workflow's audit of power measurements reads: the exporter, and srt-slurm's commit.

    Names and formats are InferenceX's. A run without power telemetry has none. Raises ResultError.
    """
    from launcher.result.logs import EXPORTER_STAMP, PRODUCER_STAMP

    exporter = next((image for image in plan.images if image.role == "telemetry"), None)
    if not SrtctlJob.of(plan).power or exporter is None or sha is None:
        return
    try:
        write_text(directory / EXPORTER_STAMP, f"{sha256_of(Path(exporter.squash))}  {exporter.squash}\n")
        write_text(directory / PRODUCER_STAMP, f"{sha}\n")
    except OSError as error:
        raise ResultError(f"the power stamps cannot be written: {error}", where=str(directory)) from None


def end_markers() -> EndMarkers:
    """A reader of the last lines of srtctl's script."""
    from launcher.slurm.logs import EndMarkers

    return EndMarkers(_END, begin=_BEGIN)
