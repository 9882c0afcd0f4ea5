"""Asking a cluster about itself, from its login node: Slurm's commands and git. Silence is an unknown, with its words.

Formats are those of Slurm 20.02 and later, tried on 22.05; never ``--json`` (see launcher/slurm/commands.py).
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from launcher.core.process import NOT_FOUND, CommandRunner, Completed, clean_environment, run
from launcher.doctor import parse
from launcher.doctor.facts import Cluster, Fact, Tried, Unknown

T = TypeVar("T")

_SILENT = re.compile(
    r"unable to contact slurm controller|connection (refused|timed out)|socket timed out|unable to establish config"
    r"|could not establish a configuration source|protocol authentication error|munge",
    re.IGNORECASE,
)
"""What sbatch says when nobody judged the job. Everything else with a non-zero exit is a refusal."""

_TELLING = re.compile(r"error|fatal|unable|denied|cannot", re.IGNORECASE)

_PREFIXES = ("SINFO_", "SACCTMGR_", "SCONTROL_", "SRUN_")


@dataclass(frozen=True)
class Asking:
    """How programs are run: with which environment (a clean one), and how many seconds each may take."""

    runner: CommandRunner = run
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    timeout: float = 20.0

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in clean_environment(self.environ).items() if not k.startswith(_PREFIXES)}
        return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed:
        """A `CommandRunner` of this environment."""
        return self.runner(argv, timeout=timeout, cwd=cwd, env=env or self.environment, input=input)

    def say(self, argv: Sequence[str], timeout: float | None = None) -> Completed:
        return self.run(argv, timeout=timeout or self.timeout)

    def fact(self, argv: Sequence[str], read: Callable[[str], T | None]) -> Fact[T]:
        """What ``read`` makes of the program's output; unknown when it fails, or when nothing can be read."""
        said = self.say(argv)
        if not said.ok:
            return silence(said)
        value = read(said.stdout)
        if value is None:
            return Unknown(f"`{' '.join(argv[:4])}` printed nothing that could be read: {said.tail(1)[:200]!r}")
        return value


def silence(said: Completed) -> Unknown:
    """Why a program gave no answer, in a line."""
    if said.returncode == NOT_FOUND:
        return Unknown(f"there is no {said.argv[0]} here")
    lines = (said.stderr.strip() or said.stdout.strip()).splitlines()
    told = [line for line in lines if _TELLING.search(line)][:2] or lines[-2:]
    words = " ".join(" ".join(told).split())[:300]
    if said.timed_out:
        return Unknown(f"{said.argv[0]} did not answer within {said.seconds:.0f} s" + (f": {words}" if words else ""))
    return Unknown(f"{said.argv[0]} failed (exit {said.returncode})" + (f": {words}" if words else ""))


def cluster(asking: Asking) -> Cluster:
    """Everything that Slurm says of itself and of the user who asks. At most as slow as its slowest program."""
    user = pwd.getpwuid(os.getuid()).pw_name
    show = ["scontrol", "--all", "--oneliner", "show"]
    associations = ["sacctmgr", "-nP", "show", "assoc", f"user={user}"]
    with ThreadPoolExecutor(6) as pool:
        version = pool.submit(asking.fact, ["sinfo", "--version"], _version)
        config = pool.submit(asking.fact, ["scontrol", "show", "config"], lambda text: parse.config(text) or None)
        partitions = pool.submit(asking.fact, [*show, "partition"], lambda text: parse.partitions(text) or None)
        nodes = pool.submit(asking.fact, [*show, "node"], lambda text: parse.nodes(text) or None)
        settings = config.result()
        name = settings.get("ClusterName") if isinstance(settings, Mapping) else None
        here = [f"cluster={name}"] if name else []
        allowed = pool.submit(
            asking.fact, [*associations, *here, "format=Account,Partition,QOS"], lambda text: parse.associations(text)
        )
        default = pool.submit(
            asking.fact, ["sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount"], _first_line
        )
    return Cluster(
        user=user,
        version=version.result(),
        config=settings,
        partitions=partitions.result(),
        nodes=nodes.result(),
        associations=allowed.result(),
        default_account=default.result(),
    )


def _version(text: str) -> str | None:
    found = re.search(r"\d+\.\d+\.\d+\S*", text)
    return found[0] if found else None


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def tried(asking: Asking, questions: Mapping[str, Sequence[str]]) -> dict[str, Tried]:
    """Whether Slurm would take a job with these options: `sbatch --test-only` judges one and submits none.

    It asks the controller, so account, QOS, limits and GRES are judged as of a real job; a job id is used up (22.05).
    No more is asked after the first silence: each one costs the whole time-out while the controller hangs.
    """
    found: dict[str, Tried] = {}
    for name, options in questions.items():
        found[name] = _tried(asking, tuple(options))
        if found[name].accepted is None:
            break
    return found


def _tried(asking: Asking, options: tuple[str, ...]) -> Tried:
    said = asking.say(["sbatch", "--test-only", "--job-name=launcher-doctor", *options, "--wrap=true"])
    words = re.sub(r"sbatch: (error: )?|allocation failure: ", "", said.tail(3))
    words = "; ".join(dict.fromkeys(line.strip() for line in words.splitlines() if "Try " not in line))[:300]
    if said.ok:
        return Tried(options, True, words)
    if said.timed_out or said.returncode == NOT_FOUND or _SILENT.search(said.stderr):
        return Tried(options, None, silence(said).why)
    return Tried(options, False, words or f"exit {said.returncode}")


def refs(asking: Asking, urls: Iterable[str]) -> dict[str, Fact[Mapping[str, str]]]:
    """The refs of git repositories, by URL."""
    wanted = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda url: asking.fact(["git", "ls-remote", "--", url], lambda text: parse.refs(text) or None), wanted
        )
    return dict(zip(wanted, found, strict=True))
