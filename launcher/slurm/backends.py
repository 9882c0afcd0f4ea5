"""The choice of a scheduler: Slurm by its commands, Slurm by pyslurm, or the embedded one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launcher.core.errors import ConfigError, suggest
from launcher.slurm.client import Scheduler
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.local import LocalScheduler
from launcher.slurm.native import choose

BACKENDS = ("auto", "commands", "pyslurm")
"""How Slurm can be asked."""


def open_scheduler(
    kind: str, *, backend: str = "auto", directory: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Scheduler:
    """The scheduler of a kind: ``slurm`` or ``local`` (its jobs lie in ``directory``).

    Slurm is asked by its commands (``backend`` ``commands``), or by pyslurm where that can be used (``pyslurm``,
    ``auto``) and by its commands elsewhere; ``say`` is told which and why. Its programs run on when the launcher was
    asked to stop: scancel is what it then has to run.
    Raises ConfigError for another word, and for ``local`` without a directory.
    """
    if kind == "local":
        if directory is None:
            raise ConfigError("the embedded scheduler needs a directory for its jobs")
        return LocalScheduler(directory)
    if kind != "slurm":
        raise ConfigError(f"unknown scheduler {kind!r}", hint=suggest(kind, ("slurm", "local"), "slurm or local"))
    if backend not in BACKENDS:
        raise ConfigError(f"unknown Slurm backend {backend!r}", hint=" or ".join(BACKENDS))
    native, why = (None, "as asked for") if backend == "commands" else choose()
    say(f"Slurm is asked by {why}" if native is not None else f"Slurm is asked by its commands: {why}")
    return native if native is not None else SlurmCommands()
