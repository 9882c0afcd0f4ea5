"""The stages of a run: each takes its part of the plan, does it, and says what it kept for the record.

A stage is idempotent: done again it finds what is there and does nothing twice. `execute` gives them their order.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from launcher.core.errors import Cancelled, ConfigError, ModelError, ResultError, SubmissionError
from launcher.core.process import CommandRunner, clean_environment, run
from launcher.core.publish import write_text
from launcher.image.store import unmarked
from launcher.model.checkpoint import examine, require
from launcher.plan.plan import Plan, PlannedImage
from launcher.result.collect import EXPORTER_STAMP, PRODUCER_STAMP
from launcher.run.image_import import Importing, have_image
from launcher.slurm.client import Scheduler
from launcher.srtctl.checkout import Checkout, Checkouts, CommitPatch, Pin
from launcher.srtctl.config import FILE_NAME, write_srtslurm
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.recipe import dump
from launcher.srtctl.sbatch_wrapper import asks_for_hold
from launcher.srtctl.submit import Submission, Submitted, apply
from launcher.srtctl.tree import Overlay

_NOT_COPIED = (".git", "srt-slurm*", "outputs", "LOGS", "*.sqsh")
"""What the compute nodes' copy of the workspace leaves out."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Effects:
    """How a run reaches the world. ``environ`` is what child processes and the job get beside what the plan exports.

    ``stopping`` answers whether somebody asked to stop; long stages look at it. ``sleep`` raises Cancelled then.
    """

    scheduler: Scheduler
    environ: Mapping[str, str]
    say: Callable[[str], None] = lambda text: None
    stopping: Callable[[], bool] = _never
    run: CommandRunner = run
    clock: Callable[[], float] = time.time
    tools: Mapping[str, str] = field(default_factory=dict)
    """What rehearsal tools need in their environment: PATH, and where the embedded scheduler keeps its jobs."""

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.stopping():
                raise Cancelled("stopped while waiting")
            time.sleep(min(left, 0.2))

    @property
    def environment(self) -> dict[str, str]:
        """For child processes: clean, with the rehearsal's tools when they are meant."""
        return {**clean_environment(self.environ), **self.tools}


def images(plan: Plan, effects: Effects, mark: Callable[[Path], None] = unmarked) -> dict[str, Any]:
    """Have every image of the plan as a whole squash file; ``mark`` is told of each before it is looked for."""
    return {"images": [_image(plan, image, effects, mark) for image in plan.images]}


def _image(plan: Plan, image: PlannedImage, effects: Effects, mark: Callable[[Path], None]) -> dict[str, Any]:
    how = Importing(plan.tools, plan.scheduler.kind, plan.scheduler.partition, plan.scheduler.account)
    record = have_image(image, how, plan.run_key, effects, job_name=plan.job_name, mark=mark)
    return {
        "reference": record.reference,
        "planned": image.squash,
        "squash": str(record.squash),
        "how": record.how,
        "bytes": record.size,
        "digest": record.digest,
        "seconds": round(record.seconds, 3),
        "facts": list(record.facts),
    }


def model(plan: Plan, effects: Effects) -> dict[str, Any]:
    """Look at the checkpoint from here, or say why that cannot be."""
    planned = plan.model
    if planned.path.startswith("hf:"):
        effects.say(f"model {planned.path}: from the Hugging Face hub, on the compute nodes")
        return {"path": planned.path, "checked": False, "why": "from the Hugging Face hub"}
    if "login" not in planned.seen_by:
        why = f"{planned.storage} storage that the login node does not see (runner {plan.runner})"
        effects.say(f"model {planned.path}: not checked from here: {why}")
        return {"path": planned.path, "checked": False, "why": why}
    path = Path(planned.path)
    rehearsal = plan.tools == "rehearsal"
    if rehearsal:
        from launcher.rehearsal.model import ensure_model

        ensure_model(path, planned.precision)
    staged = _stage(plan, path, effects) if planned.source else {}
    if not path.is_dir():
        from launcher.model.checkpoint import nearest_sibling

        near = nearest_sibling(path)
        hint = f"there is {near}: is that the one?" if near else "stage it, or correct the path in the runner file"
        raise ModelError("the checkpoint is not there", where=planned.path, hint=hint)
    verdict = require(examine(path, precision=planned.precision), rehearsal=rehearsal, precision=planned.precision)
    said = verdict.identity if verdict.identity_reason is None else f"{verdict.identity} ({verdict.identity_reason})"
    effects.say(f"model {planned.path}: whole, {verdict.shards} shards, {verdict.quantisation}; declared one: {said}")
    return {"checked": True, **verdict.as_dict(), **staged}


def _stage(plan: Plan, path: Path, effects: Effects) -> dict[str, Any]:
    """Bring the checkpoint from its source, when what is at its path is not whole."""
    from launcher.model.source import source_of
    from launcher.model.stage import stage
    from launcher.model.striping import DEFAULT, Stripe, striping

    planned = plan.model
    if planned.source is None or examine(path, precision=planned.precision).whole:
        return {}
    policy = DEFAULT if planned.striping is None else [Stripe(*layout) for layout in planned.striping]
    effects.say(f"model {planned.path}: staging from {planned.source}")
    done = stage(
        source_of(planned.source, sleep=effects.sleep),
        path,
        say=effects.say,
        should_stop=effects.stopping,
        stripe=striping(policy, say=effects.say, run=effects.run) if planned.storage == "lustre" else None,
        sleep=effects.sleep,
    )
    effects.say(f"model {planned.path}: {done.how}, {done.copied / 1e9:.1f} GB in {done.seconds:.0f} s")
    return {"staged": {"how": done.how, "from": planned.source, "copied": done.copied, "resumed": done.resumed}}


def workspace(plan: Plan, effects: Effects) -> tuple[Checkout, dict[str, Any]]:
    """The srt-slurm tree of this run, with its overlays; and the compute nodes' copy of the workspace."""
    job = SrtctlJob.of(plan)
    wanted = job.srt_slurm
    if plan.tools == "rehearsal":
        from launcher.rehearsal.checkout import ensure_repository

        ensure_repository(Path(wanted.repository).parent)
    pin = Pin(wanted.repository, wanted.ref, wanted.sha, tuple(CommitPatch(p.commit, p.path) for p in wanted.patches))
    overlays = []
    for overlay in wanted.overlays:
        source = Path(overlay.source)
        if source.exists():
            overlays.append(Overlay(source, overlay.destination))
        elif job.recipe.document is not None:
            effects.say(f"overlay {source} is not in the workspace; the recipe comes from {job.recipe.origin}")
        else:
            raise ConfigError("the lane's overlay is not in the workspace", where=overlay.source)
    checkout = Checkouts(Path(wanted.cache), run=effects.run, environ=effects.environment, sleep=effects.sleep).prepare(
        pin,
        into=Path(wanted.root),
        setup=wanted.setup,
        setup_environment=effects.tools,
        setup_timeout=wanted.setup_timeout,
        overlays=overlays,
    )
    for note in checkout.notes:
        effects.say(note)
    if plan.workspace.shared:
        _copy_workspace(Path(plan.workspace.path), Path(plan.workspace.shared), effects)
    effects.say(f"srt-slurm {wanted.ref} ({checkout.sha[:12]}) at {checkout.root}")
    return checkout, {"root": str(checkout.root), "sha": checkout.sha, "notes": list(checkout.notes)}


def _copy_workspace(source: Path, destination: Path, effects: Effects) -> None:
    """Copy what jobs need of the workspace to where compute nodes see it."""
    if effects.stopping():
        raise Cancelled("stopped before the workspace was copied")
    try:
        shutil.copytree(
            source, destination, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_COPIED)
        )
    except (OSError, shutil.Error) as error:
        raise SubmissionError(
            f"the workspace cannot be copied for the compute nodes: {error}", where=str(destination)
        ) from None
    effects.say(f"workspace copied to {destination}")


def write_inputs(plan: Plan, checkout: Checkout) -> None:
    """Write the recipe and srtslurm.yaml into the tree. Raises ConfigError for keys that this srtctl does not know."""
    job = SrtctlJob.of(plan)
    if job.recipe.document is None:
        raise ConfigError(f"recipe {job.recipe.path} was not found in srt-slurm {job.srt_slurm.ref} either")
    recipe = checkout.root / job.recipe.path
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, dump(job.recipe.document))
    write_srtslurm(checkout.root / FILE_NAME, job.srtslurm, checkout.cluster_keys)


def submit(
    plan: Plan, checkout: Checkout, effects: Effects, earlier: frozenset[str], held: Sequence[int] = ()
) -> Submitted:
    """Submit the job, exactly one; ``earlier`` are jobs that carry this run's id and are not of this submission.
    ``held`` are descriptors that srtctl keeps open as long as it lives.

    Not stoppable: a submission that is cut off leaves the question whether a job exists, and takes seconds at most.
    """
    job = SrtctlJob.of(plan)
    submission = Submission(
        argv=job.submit.argv,
        root=checkout.root,
        environment={**effects.environment, **job.submit.environment},
        token=plan.run_key,
        options=checkout.options,
        earlier=earlier,
        hold=holds(plan),
    )
    return apply(submission, scheduler=effects.scheduler, run=partial(run, pass_fds=held), sleep=time.sleep)


def holds(plan: Plan) -> bool:
    """Whether the job of this plan is submitted held, for the launcher to release."""
    job = SrtctlJob.of(plan)
    return plan.scheduler.kind == "slurm" and not asks_for_hold(job.recipe.document, job.srtslurm)


def complete(plan: Plan, output: Path) -> None:
    """Give a job's directory what srtctl writes into it after sbatch returned, when it had no time to. Raises OSError.

    The configuration is a copy of the recipe (srt-slurm c88ef731, cli/submit.py); of a recipe with variants srtctl
    makes another file, which is not made up for.
    """
    (output / "logs").mkdir(parents=True, exist_ok=True)
    job = SrtctlJob.of(plan)
    config, recipe = output / "config.yaml", Path(job.srt_slurm.root, job.recipe.path)
    if job.recipe.selector is None and not config.exists() and recipe.is_file():
        write_text(config, recipe.read_text())


def stamp_power(plan: Plan, sha: str | None, directory: Path) -> None:
    """Leave in ``directory`` what the workflow's audit of a power measurement reads: which exporter, which srt-slurm.

    InferenceX's names and formats. Nothing for a run without power telemetry. Raises ResultError.
    """
    exporter = next((image for image in plan.images if image.role == "telemetry"), None)
    if not SrtctlJob.of(plan).power or exporter is None or sha is None:
        return
    try:
        with Path(exporter.squash).open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        write_text(directory / EXPORTER_STAMP, f"{digest.hexdigest()}  {exporter.squash}\n")
        write_text(directory / PRODUCER_STAMP, f"{sha}\n")
    except OSError as error:
        raise ResultError(f"the power stamps cannot be written: {error}", where=str(directory)) from None


def rehearsal_tools(state: Path, scheduler_kind: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What has to be in the environment for the stand-ins to be found in the place of enroot and srtctl."""
    from launcher.rehearsal.tools import tools_directory

    path = f"{tools_directory(state / 'rehearsal/bin')}{os.pathsep}{environ.get('PATH', os.defpath)}"
    jobs = {"LAUNCHER_LOCAL_JOBS": str(state / "jobs")} if scheduler_kind == "local" else {}
    return {"PATH": path, **jobs}
