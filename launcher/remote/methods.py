"""What the agent can be asked: each method is a generator of events whose value is its result."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Generator
from typing import Any

from launcher import __version__
from launcher.remote.agent import Method

_PROGRAMS = ("sbatch", "squeue", "sacct", "enroot", "git", "uv")


def look(params: dict[str, Any]) -> Generator[Any, None, Any]:
    """What this machine is: versions, architecture, C library, which programs are on PATH, its clock."""
    yield from ()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "programs": {name: shutil.which(name) for name in _PROGRAMS},
        "time": time.time(),
    }


METHODS: dict[str, Method] = {"look": look}
