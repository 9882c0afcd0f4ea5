"""The tools of a rehearsal: stand-ins in the place of enroot and srtctl, and inputs that they can work on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launcher.plan.plan import Plan
from launcher.rehearsal.checkpoint_stand_in import ensure_model
from launcher.rehearsal.srt_slurm_stand_in import ensure_repository
from launcher.rehearsal.tools import REGISTRIES, environment
from launcher.run.kind import Tools
from launcher.srtctl.planned import SrtctlJob


class StandIns(Tools):
    """Stand-ins below the launcher's state directory, for a scheduler of this kind."""

    @classmethod
    def below(cls, state: Path, scheduler_kind: str, environ: Mapping[str, str]) -> StandIns:
        """Make the programs, and have them found first."""
        return cls(environment(state, scheduler_kind, environ), stand_ins=True, registries=REGISTRIES)

    def make_inputs(self, plan: Plan) -> None:
        """A checkpoint of some kilobytes, and a repository in the place of srt-slurm. Raises LauncherError."""
        if not plan.model.path.startswith("hf:") and "login" in plan.model.seen_by:
            ensure_model(Path(plan.model.path), plan.model.precision)
        ensure_repository(Path(SrtctlJob.of(plan).srt_slurm.repository).parent)
