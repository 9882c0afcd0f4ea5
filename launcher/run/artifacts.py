"""What a run leaves when it ends: a verdict with its evidence in the record, and the logs where a workflow looks."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from launcher.core.errors import Cancelled, LauncherError
from launcher.core.redact import redact
from launcher.plan.plan import Plan
from launcher.result.bundle import bundle_logs
from launcher.result.collect import TARBALL, keep_logs
from launcher.run import evidence
from launcher.run.evidence import Failure, Verdict
from launcher.run.record import RunRecord
from launcher.run.stages import Effects
from launcher.slurm.client import JobKey, JobState
from launcher.srtctl.config import FILE_NAME
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.recipe import dump

EVIDENCE_SECONDS = 10.0
"""How long logs are searched for what failed first."""

BUNDLE_SECONDS = 2.0
"""How long logs are packed, and how long the scheduler is waited for, when we were asked to stop."""

OF_A_JOB = ("sbatch_script.sh", "config.yaml", "recipe.lock.yaml")
"""What srtctl leaves beside a job's logs."""


class Papers:
    """The papers of one run. Secrets of the environment are in none of them."""

    def __init__(self, record: RunRecord, effects: Effects) -> None:
        self._record = record
        self._effects = effects
        self._environ = effects.environ

    @property
    def directory(self) -> Path:
        return self._record.directory / "evidence"

    def judge(self, plan: Plan, log: Path | None, error: LauncherError | None, state: JobState | None) -> Verdict:
        """The verdict, with what it rests on written down. A workflow's cancel leaves little time for looking."""
        failures: list[Failure] = []
        if error is not None and log is not None and not isinstance(error, Cancelled):
            failures = evidence.first_failures(log.parent, seconds=EVIDENCE_SECONDS)
        ruling = evidence.verdict(error, state, failures)
        ruling = Verdict(ruling.layer, redact(ruling.text, self._environ))
        kept = self._record.get("job") or {}
        with contextlib.suppress(OSError):  # a full disk must not change how the run ends
            evidence.keep(
                self.directory,
                ruling=ruling,
                failures=failures,
                events=self._record.events(),
                log=log,
                papers=self._papers(plan),
                environ=self._environ,
                error=error,
                job=f"job {kept['id']}: {kept['says']}" if "says" in kept else "",
            )
        return ruling

    def _papers(self, plan: Plan) -> dict[str, Path | str]:
        """Recipe and srtslurm.yaml as submitted, before that as planned; and what the job was given."""
        job = SrtctlJob.of(plan)
        tree, kept = Path(job.srt_slurm.root), self._record.get("job")
        found: dict[str, Path | str] = {}
        for name, path, document in (
            ("recipe.yaml", tree / job.recipe.path, job.recipe.document),
            (FILE_NAME, tree / FILE_NAME, job.srtslurm),
        ):
            found[name] = path if path.is_file() or document is None else dump(document)
        return {**found, **({name: Path(kept["output"]) / name for name in OF_A_JOB} if kept else {})}

    def ask(self, job: JobKey, *, soon: bool = False) -> None:
        """Keep what the scheduler says of the job now, and the events until now. With ``soon`` a scheduler that hangs
        is left to itself after a while."""

        def answers() -> None:
            with contextlib.suppress(LauncherError, OSError):
                evidence.keep_answers(self.directory, self._effects.scheduler.describe(job), self._environ)

        if soon:
            asking = threading.Thread(target=answers, daemon=True, name="evidence")
            asking.start()
            asking.join(BUNDLE_SECONDS)
        else:
            answers()
        with contextlib.suppress(OSError):
            evidence.keep_events(self.directory, self._record.events(), self._environ)

    def deliver(self, into: Path, *, soon: bool = False) -> bool:
        """Put the tarball of logs and evidence, and a copy of the logs, into a directory; whether they are all there.

        A run that has no job leaves a tarball of its evidence to a workflow, and nothing to a person, who has the
        record. ``soon`` is for when we were asked to stop: the tarball alone, and of that what can be had in time.
        """
        kept = self._record.get("job")
        if not kept and self._record.get("results") != "workspace":
            return False
        logs = Path(kept["output"]) / "logs" if kept else self.directory / "no logs"
        papers = [(f"{evidence.FOLDER}/{path.name}", path) for path in sorted(self.directory.glob("*"))]
        if soon:
            with contextlib.suppress(OSError):
                bundle_logs(logs, into / TARBALL, seconds=BUNDLE_SECONDS, extra=papers, environ=self._environ)
            return False
        job, began = (kept["id"], kept["submitted"]) if kept else ("", 0.0)
        bundle, doubts = keep_logs(logs, into, job, began, papers=papers, environ=self._environ)
        for doubt in doubts:
            self._record.event("warning", doubt)
        return bundle is not None
