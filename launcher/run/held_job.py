"""Our hold on a job: jobs are submitted held, and released once the run's record has the job's id.

Whoever drives the run releases the job, also where the launcher that submitted it was killed: the record says ``held``
from the same write that gives the job's id. A crash of slurmctld can lose the release of its last seconds, so the
release is repeated until squeue no longer shows the hold.
"""

from __future__ import annotations

from launcher.core.errors import LauncherError
from launcher.run.kind import Run
from launcher.slurm.client import JobState, Phase

BY_USER, BY_ADMIN = "JobHeldUser", "JobHeldAdmin"
"""Slurm's reasons why a held job waits."""


def is_ours(run: Run) -> bool:
    """Whether the job was submitted held and has not been seen released since."""
    return run.record.job is not None and run.record.job.held


def should_release(run: Run, state: JobState) -> bool:
    """Whether to release the job now; first makes its directory whole, without which it would fail.

    A hold that somebody set after our release, and an administrator's hold, are not ours to lift.
    """
    job = run.record.job
    if job is None or not job.held or state.phase is not Phase.ALIVE:
        return False
    still_held = state.word == "PENDING" and (state.reason == BY_USER or not job.released)
    if not still_held or state.reason == BY_ADMIN:
        run.record.update_job(held=False)
        if not job.released:
            run.record.event("job", f"job {job.id}: the hold is not ours: {state.describe()}", job=job.id)
        return False
    try:
        run.kind.make_whole(run)
    except (LauncherError, OSError) as error:
        run.record.event("warning", f"not released yet, its directory is not whole: {error}", job=job.id)
        return False
    return True


def released(run: Run, error: LauncherError | None = None) -> None:
    """Write down that Slurm was told to release the job, or why it could not be told."""
    job = run.record.job
    assert job is not None
    if error is None:
        run.record.update_job(released=True)
        run.record.event("job", f"job {job.id} released{' again' if job.released else ''}", job=job.id)
    else:
        run.record.event("warning", f"job {job.id} is still held: {error}", job=job.id)
