"""Where the launcher keeps what it has to remember: records of runs, caches, jobs of the embedded scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def state_directory(environ: Mapping[str, str], named: str | None = None) -> Path:
    """The directory that was named, else that of LAUNCHER_STATE, else ``launcher`` among the user's state."""
    home = Path(environ.get("HOME") or Path.home())
    default = Path(environ.get("XDG_STATE_HOME") or home / ".local/state") / "launcher"
    return Path(named or environ.get("LAUNCHER_STATE") or default).resolve()
