"""Our hold on a job: it was submitted held, and starts when the run's record has its id and its directory is whole.

Whoever drives the run releases it (`launcher.run.loop`), also where the launcher that submitted it was killed: the
record says that its job is ``held`` from the same write that gives the job's id, until Slurm, asked after the release,
shows it held no more. A controller that is killed forgets what it was told in its last seconds.
"""

from __future__ import annotations

from pathlib import Path

from launcher.core.errors import LauncherError
from launcher.run import stages
from launcher.run.record import RunRecord
from launcher.slurm.client import JobState
from launcher.slurm.states import Phase

BY_USER, BY_ADMIN = "JobHeldUser", "JobHeldAdmin"
"""Why a job waits that is held."""


class Hold:
    """The hold on the job of one run, by the run's record."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    @property
    def ours(self) -> bool:
        """Whether the job was submitted held, and was not seen released since."""
        return bool((self._record.get("job") or {}).get("held"))

    def may_end(self, state: JobState) -> bool:
        """Whether the hold is to be lifted now; makes the job's directory whole, without which it would fail.

        A hold that somebody set after our release, and an administrator's, are not ours to lift.
        """
        if not self.ours or state.phase is not Phase.ALIVE:
            return False
        kept = self._record.get("job")
        held_yet = state.word == "PENDING" and (state.reason == BY_USER or not kept.get("released"))
        if not held_yet or state.reason == BY_ADMIN:
            self._record.update(job={**kept, "held": False})
            if not kept.get("released"):
                self._record.event("job", f"job {kept['id']}: the hold is not ours: {state.describe()}", job=kept["id"])
            return False
        try:
            stages.complete(self._record.plan, Path(kept["output"]))
        except (LauncherError, OSError) as error:
            self._record.event("warning", f"not released yet, its directory is not whole: {error}", job=kept["id"])
            return False
        return True

    def ended(self, error: LauncherError | None = None) -> None:
        """Write down that Slurm was told to release the job, or why it could not be told."""
        kept = self._record.get("job")
        if error is None:
            again = " again" if kept.get("released") else ""
            self._record.update(job={**kept, "released": True})
            self._record.event("job", f"job {kept['id']} released{again}", job=kept["id"])
        else:
            self._record.event("warning", f"job {kept['id']} is still held: {error}", job=kept["id"])
