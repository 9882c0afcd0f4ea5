"""What a job of srtctl says of its own end, in the last lines of its log.

The batch script prints them after the orchestrator ended, and exits with the same code (srt-slurm, every release from
v1.0.0 to v1.0.68, templates/job_script_minimal.j2): ``✓ Sweep completed successfully`` or ``✗ Sweep failed (exit code:
N)``, then ``End: …`` and a rule.
"""

from __future__ import annotations

import re
from pathlib import Path

from launcher.slurm.client import JobKey, JobState
from launcher.slurm.states import LOST, Phase

TAIL = 4096
"""Bytes of the log's end that are read: what Slurm's own daemons say of a job's end comes after the marker."""

SLACK = 60.0
"""Seconds by which the clock of a node that writes may be behind ours."""

_BEGIN = "srtctl Sweep Orchestrator"
_END = re.compile(
    r"^(?:(?P<good>✓ Sweep completed successfully)|✗ Sweep failed \(exit code: (?P<code>\d+)\))\nEnd: [^\n]*\n=+\n",
    re.MULTILINE,
)


class Markers:
    """Reads the logs of some jobs again only when they have changed."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int], JobState | None]] = {}

    def read(self, job: JobKey, log: Path) -> JobState | None:
        """The job's end by its own word, as a state that is LOST; None while its log does not tell it.

        A log that was last written before the job was submitted is another's.
        """
        try:
            status = log.stat()
            mark = status.st_mtime_ns, status.st_size
            known = self._seen.get(log)
            if known is None or known[0] != mark:
                late = job.submitted is None or status.st_mtime >= job.submitted - SLACK
                known = self._seen[log] = mark, _state(log, status.st_size, status.st_mtime) if late else None
        except OSError:
            return None
        return known[1]


def _state(log: Path, size: int, written: float) -> JobState | None:
    with log.open("rb") as file:
        file.seek(max(0, size - TAIL))
        text = file.read(TAIL).decode(errors="replace")
    found = list(_END.finditer(text))
    if not found or _BEGIN in text[found[-1].end() :]:  # it was requeued, and has begun again
        return None
    code = 0 if found[-1]["good"] else int(found[-1]["code"])
    return JobState(
        Phase.TERMINAL,
        LOST,
        exit_code=(code, 0),
        reason=f"Slurm does not say how it ended; by its own log it did, with exit code {code}",
        ended=written,
        source=log.name,
    )
