"""The door of the room: what a rehearsed run finds in the place of enroot, srtctl, srt-slurm and its checkpoint.

`environment` puts the stand-ins for `enroot` and `srtctl` on PATH, each a script that starts a module with this Python.
`ensure_repository` and `ensure_model` make the stand-ins for the srt-slurm repository and for the checkpoint.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import launcher
from launcher.core.publish import publishing
from launcher.rehearsal.checkpoint_stand_in import ensure_model
from launcher.rehearsal.srt_slurm_stand_in import ensure_repository
from launcher.rehearsal.srtctl_jobs import LOCAL_JOBS

__all__ = ["ensure_model", "ensure_repository", "environment", "tools_directory"]

TOOLS = {"srtctl": "launcher.rehearsal.srtctl_stand_in", "enroot": "launcher.rehearsal.enroot_stand_in"}

REGISTRIES = frozenset({"127.0.0.1", "localhost"})
"""Registries that may be asked for the images of a rehearsal: a test's own. Stand-in images are in no other."""


def environment(state: Path, scheduler_kind: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a run's programs find the stand-ins; ``state`` is the launcher's own directory.

    With the embedded scheduler (``scheduler_kind`` is ``local``) they also name the directory of its jobs.
    """
    path = f"{tools_directory(state / 'rehearsal/bin')}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return {"PATH": path, **({LOCAL_JOBS: str(state / "jobs")} if scheduler_kind == "local" else {})}


def tools_directory(directory: Path) -> Path:
    """Make the programs in ``directory`` (created if need be) and return it, absolute, to be put first on PATH.

    A program is written anew, atomically, when the interpreter that it names has changed. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    package = str(Path(launcher.__file__).parents[1])
    for name, module in TOOLS.items():
        program = directory / name
        text = (
            "#!/bin/sh\n"
            f"PYTHONPATH={shlex.quote(package)}${{PYTHONPATH:+:$PYTHONPATH}}\n"
            "export PYTHONPATH\n"
            f'exec {shlex.join([sys.executable, "-m", module])} "$@"\n'
        )
        if not program.is_file() or program.read_text() != text:
            with publishing(program) as temporary:
                temporary.write_text(text)
                temporary.chmod(0o755)
    return directory.absolute()
