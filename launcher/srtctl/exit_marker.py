"""How a job of srtctl ended by its own word: the marker in the last lines of its log.

The batch script prints the marker after the orchestrator ended, and exits with the same code (every srt-slurm from
v1.0.0 to v1.0.68, templates/job_script_minimal.j2): ``✓ Sweep completed successfully`` or ``✗ Sweep failed (exit code:
N)``, then ``End: …`` and a line of ``=``.
"""

from __future__ import annotations

import re
from pathlib import Path

from launcher.slurm.client import LOST, JobKey, JobState, Phase

TAIL = 4096
"""Bytes of the log's end that are read: lines of Slurm's own daemons about the job's end follow the marker."""

SLACK = 60.0
"""Seconds by which the clock of the node that writes the log may be behind that of Slurm."""

_BEGIN = "srtctl Sweep Orchestrator"
_END = re.compile(
    r"^(?:(?P<good>✓ Sweep completed successfully)|✗ Sweep failed \(exit code: (?P<code>\d+)\))\nEnd: [^\n]*\n=+\n",
    re.MULTILINE,
)


class Markers:
    """Reads jobs' logs for the marker; a log is read again only when it has changed."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int], JobState | None]] = {}

    def read(self, job: JobKey, log: Path) -> JobState | None:
        """The job's end by its own word, as a state that is LOST; None while its log does not tell it.

        A log that was last written before the job was submitted belongs to another job.
        """
        try:
            status = log.stat()
            version = status.st_mtime_ns, status.st_size
            known = self._seen.get(log)
            if known is None or known[0] != version:
                is_ours = job.submitted is None or status.st_mtime >= job.submitted - SLACK
                known = self._seen[log] = version, _state(log, status.st_size, status.st_mtime) if is_ours else None
        except OSError:
            return None
        return known[1]


def _state(log: Path, size: int, written: float) -> JobState | None:
    with log.open("rb") as file:
        file.seek(max(0, size - TAIL))
        text = file.read(TAIL).decode(errors="replace")
    found = list(_END.finditer(text))
    if not found or _BEGIN in text[found[-1].end() :]:  # the job was requeued and has begun again
        return None
    code = 0 if found[-1]["good"] else int(found[-1]["code"])
    return JobState(
        Phase.TERMINAL,
        LOST,
        exit_code=(code, 0),
        reason=f"Slurm does not tell how the job ended; its log says that it ended with exit code {code}",
        ended=written,
        source=log.name,
    )
