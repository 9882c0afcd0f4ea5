"""Running programs that know the cluster: a clean environment, a time-out, and why a program did not answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from launcher.core.process import NOT_FOUND, CommandRunner, Completed, clean_environment, run
from launcher.doctor.facts import Fact, Unknown

T = TypeVar("T")

_TELLING = re.compile(r"error|fatal|unable|denied|cannot", re.IGNORECASE)

_PREFIXES = ("SINFO_", "SACCTMGR_", "SCONTROL_", "SRUN_")


@dataclass(frozen=True)
class Commands:
    """How programs are run: in a clean environment, and for ``timeout`` seconds at most."""

    runner: CommandRunner = run
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    timeout: float = 20.0

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in clean_environment(self.environ).items() if not k.startswith(_PREFIXES)}
        return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}

    @property
    def run(self) -> CommandRunner:
        """A `CommandRunner` of this environment."""
        return partial(self.runner, env=self.environment)

    def output(self, argv: Sequence[str], timeout: float | None = None) -> Completed:
        return self.run(argv, timeout=timeout or self.timeout)

    def fact(self, argv: Sequence[str], read: Callable[[str], T | None]) -> Fact[T]:
        """What ``read`` makes of the program's output; unknown when it fails, or when nothing can be read."""
        answer = self.output(argv)
        if not answer.ok:
            return no_answer(answer)
        value = read(answer.stdout)
        if value is None:
            return Unknown(f"`{' '.join(argv[:4])}` printed nothing that could be read: {answer.tail(1)[:200]!r}")
        return value


def no_answer(answer: Completed) -> Unknown:
    """Why a program gave no answer, in a line."""
    if answer.returncode == NOT_FOUND:
        return Unknown(f"there is no {answer.argv[0]} here")
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    telling = [line for line in lines if _TELLING.search(line)][:2] or lines[-2:]
    words = " ".join(" ".join(telling).split())[:300]
    if answer.timed_out:
        return Unknown(
            f"{answer.argv[0]} did not answer within {answer.seconds:.0f} s" + (f": {words}" if words else "")
        )
    return Unknown(f"{answer.argv[0]} failed (exit {answer.returncode})" + (f": {words}" if words else ""))
