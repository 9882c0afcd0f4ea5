"""Stand-ins of this room's tests: what Slurm's programs were seen to answer, and a clock that moves when told to."""

from __future__ import annotations

DOWN = (1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
NOT_KNOWN = (1, "slurm_load_jobs error: Invalid job id specified")
NO_DATABASE = (
    1,
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:vm:17802: "
    "Connection refused\nsacct: error: Problem talking to the database: Connection refused",
)
TIMED_OUT = (None, "")


class Clock:
    """Time that passes only in `wait`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.waits.append(seconds)
        return False
