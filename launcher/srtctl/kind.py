"""Jobs that srtctl submits, as a kind of job: a pinned srt-slurm tree, a recipe, `srtctl apply`."""

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
from launcher.plan.job_environment import KEPT, from_host, left_out
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

FROM_SRTCTL = ("sbatch_script.sh", "config.yaml", "recipe.lock.yaml")
"""What srtctl leaves beside a job's logs, and what tells how the job was made."""

_BEGIN = "srtctl Sweep Orchestrator"
_END = re.compile(
    r"^(?:(?P<good>✓ Sweep completed successfully)|✗ Sweep failed \(exit code: (?P<code>\d+)\))\nEnd: [^\n]*\n=+\n",
    re.MULTILINE,
)
"""The marker. The batch script prints it after the orchestrator ended, and exits with the same code (every srt-slurm
from v1.0.0 to v1.0.68, templates/job_script_minimal.j2)."""


KEPT_FOR_SRTCTL = (
    *("TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "UV_*", "SRTSLURM_*"),
)
"""What srtctl, and the uv that its jobs call on their nodes, read of the host beside `KEPT`."""


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
        """The recipe, the aliases, the srt-slurm tree, and the command that submits."""
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
        """The variant of the recipe that is submitted, without what a run has of its own; and the srt-slurm tree."""
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
            own = {"benchmark": benchmark, "sbatch_directives": directives, "slurm": slurm}
            text = json.dumps({**chosen, **own}, default=str)
            document = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]
        return {"recipe": document, "srt-slurm": f"{tree.sha}{patches}" if tree.sha else ""}

    def is_complete(self, plan: Plan) -> bool:
        """Whether the recipe was at hand: it decides about images and model."""
        return SrtctlJob.of(plan).recipe.document is not None

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        """The plan again, with the recipe that the checkout holds."""
        return self._complete(plan, prepared.root)

    def prepare(self, run: Run) -> Prepared:
        """The srt-slurm tree of this run, with its overlays."""
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
        wanted = change(job.srt_slurm, overlays=tuple(overlays))
        checkouts = Checkouts(
            environ=services.environment,
            setup_environment=services.tools.environment,
            run=services.run,
            sleep=services.stop.sleep,
            resolved=self._resolved,
        )
        checkout = checkouts.prepare(wanted)
        for note in checkout.notes:
            run.log(note)
        run.log(f"srt-slurm {wanted.ref} ({checkout.sha[:12]}) at {checkout.root}")
        facts = {"root": str(checkout.root), "sha": checkout.sha, "notes": list(checkout.notes)}
        there = _agentic_results_there(run.plan)
        return Prepared(checkout.root, {**facts, "there_before": there}, checkout)

    def look(self, run: Run) -> None:
        """From a node of the partition, where the runner file asks for it."""
        if SrtctlJob.of(run.plan).look_from_node and run.plan.scheduler.kind == "slurm":
            from launcher.srtctl.short_job import look_from_a_node

            state = run.record.directory.parent.parent / "preflight"
            run.log(f"preflight: {look_from_a_node(run.plan, state, run.services.run, run.services.environment)}")

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        """Write recipe and srtslurm.yaml into the tree, and run `srtctl apply`."""
        from launcher.result.collect import refuse_foreign_files
        from launcher.slurm.submission import IN_DOUBT_TOLD, PAUSES
        from launcher.srtctl.submit import Submission as Apply
        from launcher.srtctl.submit import apply, write_srtslurm

        job, checkout = SrtctlJob.of(run.plan), prepared.own
        refuse_other_directives(run)  # again: the recipe may have been in the checkout alone
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
                hold=self.holds(run.plan),
            ),
            scheduler=run.services.scheduler,
            run=start,
            sleep=run.waits(IN_DOUBT_TOLD, sum(PAUSES)),
        )
        return replace(submitted, left_out=left_out(environ, environment))

    def holds(self, plan: Plan) -> bool:
        """Slurm's jobs are submitted held, unless recipe, variant or cluster ask for a hold of their own."""
        asked = any("hold" in table for table in _directives(SrtctlJob.of(plan)))
        return plan.scheduler.kind == "slurm" and not asked

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        """``outputs/<job id>`` of the run's tree."""
        return Path(SrtctlJob.of(plan).srt_slurm.root, "outputs", job_id)

    def output_of_log(self, log: Path) -> Path | None:
        """The directory above ``logs``."""
        return log.parent.parent if log.parent.name == "logs" else None

    def log_in(self, output: Path, job_id: str) -> Path:
        """What srtctl's orchestrator writes."""
        return output / LOG.format(job_id)

    def make_whole(self, run: Run) -> None:
        """Give the job's directory what srtctl writes into it after sbatch returned, when it had no time to.

        The configuration is a copy of the recipe (srt-slurm c88ef731, cli/submit.py); of a recipe with variants srtctl
        makes another file, which is not made up for. Raises OSError.
        """
        job, recorded = SrtctlJob.of(run.plan), run.record.job
        assert recorded is not None
        output = Path(recorded.output)
        (output / "logs").mkdir(parents=True, exist_ok=True)
        config, recipe = output / "config.yaml", Path(job.srt_slurm.root, job.recipe.path)
        if job.recipe.selector is None and not config.exists() and recipe.is_file():
            write_text(config, recipe.read_text())

    def end_by_log(self, job: JobKey, log: Path) -> JobState | None:
        """By the lines that srtctl's script writes last."""
        return self._markers.read(job, log)

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        """Recipe and srtslurm.yaml as submitted, before that as planned; and what srtctl gave to the job."""
        job, recorded = SrtctlJob.of(run.plan), run.record.job
        tree = Path(job.srt_slurm.root)
        found: dict[str, Path | str] = {}
        for name, path, document in (
            ("recipe.yaml", tree / job.recipe.path, job.recipe.document),
            (SRTSLURM, tree / SRTSLURM, job.srtslurm),
        ):
            found[name] = path if path.is_file() or document is None else dump(document)
        if recorded is not None:
            found.update({name: Path(recorded.output) / name for name in FROM_SRTCTL})
        return found

    def end_leftovers(self, run: Run) -> None:
        """Does nothing: Slurm ends all that its jobs began."""

    def collect(self, run: Run, patience: float) -> CollectedResults:
        """Results below ``outputs/<job id>/logs``; agentic ones where the job writes them, in the workspace."""
        from launcher.result.collect import CollectRequest, collect

        plan, recorded = run.plan, run.record.job
        assert recorded is not None
        expected, into = plan.results, run.results_directory
        stamp_power(plan, run.record.step("workspace").facts.get("sha"), into)
        request = CollectRequest(
            logs_dir=Path(recorded.output) / "logs",
            workspace=into,
            expected=expected,
            job_id=recorded.id,
            started=recorded.submitted or run.record.fields.created,
            agentic_source=Path(plan.workspace.shared or plan.workspace.path),
            published=run.record.step("collect").facts.get("published", {}),
            patience=patience,
            there_before=run.record.step("workspace").facts.get("there_before", {}),
        )
        return collect(request, sleep=run.services.stop.sleep)

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        """The run's tree."""
        return [Path(SrtctlJob.of(plan).srt_slurm.root)]


def _directives(job: SrtctlJob) -> list[dict[str, object]]:
    """What recipe, variants and cluster ask of sbatch."""
    recipe = job.recipe.document or {}
    sections = [recipe, *(section for section in recipe.values() if isinstance(section, dict))]
    tables = [s.get("sbatch_directives") for s in sections] + [job.srtslurm.get("default_sbatch_directives")]
    return [table for table in tables if isinstance(table, dict)]


def refuse_other_directives(run: Run) -> None:
    """Raise ConfigError when recipe or cluster send the job to another cluster."""
    from launcher.slurm.other_jobs import refuse_other_clusters

    if run.plan.scheduler.kind == "slurm":
        for table in _directives(SrtctlJob.of(run.plan)):
            refuse_other_clusters(run.services.environment, table, run.services.run)


def job_environment(
    job: SrtctlJob, passes: Sequence[str] | None, environ: Mapping[str, str], tools: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of srtctl and of the job, which gets all of it: what programs need, what the plan passes
    of the host's variables, and what the plan exports."""
    return {**from_host(environ, (*KEPT, *KEPT_FOR_SRTCTL), passes), **tools, **job.submit.environment}


def _agentic_results_there(plan: Plan) -> dict[str, int]:
    """Results that lie where this run's job will write its own: those of an earlier run, by their times."""
    from launcher.result.collect import modification_times

    expected, directory = plan.results, Path(plan.workspace.shared or plan.workspace.path)
    names = [agentic_result_name(expected.filename, at) for at in expected.concurrencies]
    return modification_times(directory, names) if expected.mode == "agentic" else {}


def stamp_power(plan: Plan, sha: str | None, directory: Path) -> None:
    """Leave what the workflow's audit of a power measurement reads: which exporter, and which commit of srt-slurm.

    Names and formats are InferenceX's. Nothing for a run without power telemetry. Raises ResultError.
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
    """Reads what srtctl's script writes last."""
    from launcher.slurm.logs import EndMarkers

    return EndMarkers(_END, begin=_BEGIN)
