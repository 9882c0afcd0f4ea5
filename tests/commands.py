"""A stand-in for programs: a command runner that answers what a test scripts, and remembers what it was asked.

Every test that must not start a program, or must spoil what one answers, hands a `ScriptedCommands` to the code under
test in the place of `launcher.core.process.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.core.process import NOT_FOUND, Completed, run

Reply = Completed | str | tuple[int | None, str] | None
"""A whole answer; or the standard output of an exit 0; or exit code and standard error, where the code None is a
time-out. None is answered by starting the program that was asked for."""

Answer = Reply | Callable[[Sequence[str]], Reply]
"""A reply, or a function that makes it of the command line."""


def not_scripted(argv: Sequence[str]) -> Completed:
    """The answer where no process should have been started."""
    raise AssertionError(f"no process should have been started: {argv}")


def not_installed(argv: Sequence[str]) -> Completed:
    """The answer where a program does not exist."""
    return Completed(tuple(argv), NOT_FOUND, "", f"{argv[0]}: No such file or directory", 0.0)


def failed(stderr: str, returncode: int | None = 1) -> tuple[int | None, str]:
    """The reply of a program that failed."""
    return returncode, stderr


class ScriptedCommands:
    """A `CommandRunner`. Programs that ``replies`` names are answered so, all others by ``otherwise``."""

    def __init__(self, otherwise: Answer = not_scripted, **replies: Answer) -> None:
        self.otherwise = otherwise
        self.replies = replies
        self.calls: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str] | None] = []
        """Those of the calls; the one that is being answered is among them."""
        self.answers: list[Completed] = []

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
        reply = self.replies.get(argv[0], self.otherwise)
        if callable(reply):
            reply = reply(argv)
        if reply is None:
            answer = run(argv, timeout=timeout, cwd=cwd, env=env, input=input)
        elif isinstance(reply, str):
            answer = Completed(tuple(argv), 0, reply, "", 0.01)
        elif isinstance(reply, tuple):
            answer = Completed(tuple(argv), reply[0], "", reply[1], timeout if reply[0] is None else 0.01)
        else:
            answer = reply
        self.answers.append(answer)
        return answer

    def programs(self) -> list[str]:
        """The programs of the calls, in order."""
        return [call[0] for call in self.calls]

    def forget(self) -> None:
        """Begin to remember anew."""
        self.calls.clear()
        self.environments.clear()
        self.answers.clear()


def real_commands() -> ScriptedCommands:
    """Starts every program, and remembers which."""
    return ScriptedCommands(None)
