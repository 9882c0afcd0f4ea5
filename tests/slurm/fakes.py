"""Stand-ins of this room's tests: a runner that replays recorded answers, and a clock that moves when told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.core.process import Completed

Reply = str | tuple[int | None, str]
"""Stdout of an exit 0, or (exit code, stderr); exit code None is a time-out."""

DOWN = (1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
NOT_KNOWN = (1, "slurm_load_jobs error: Invalid job id specified")
NO_DATABASE = (
    1,
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:vm:17802: "
    "Connection refused\nsacct: error: Problem talking to the database: Connection refused",
)
TIMED_OUT = (None, "")


class Replay:
    """A CommandRunner that answers each program with its reply, or with what its function makes of the argv."""

    def __init__(self, **replies: Reply | Callable[[Sequence[str]], Reply]) -> None:
        self.replies = replies
        self.calls: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str] | None] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed:
        self.calls.append(tuple(argv))
        self.environments.append(env)
        reply = self.replies[argv[0]]
        if callable(reply):
            reply = reply(argv)
        if isinstance(reply, str):
            return Completed(tuple(argv), 0, reply, "", 0.01)
        return Completed(tuple(argv), reply[0], "", reply[1], 9.0)

    def programs(self) -> list[str]:
        return [call[0] for call in self.calls]


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
