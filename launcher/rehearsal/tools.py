"""The stand-ins as programs on PATH: `srtctl` and `enroot`, each a script that starts this Python's module."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import launcher
from launcher.core.publish import publishing

TOOLS = {"srtctl": "launcher.rehearsal.srtctl", "enroot": "launcher.rehearsal.enroot"}

REGISTRIES = frozenset({"127.0.0.1", "localhost"})
"""Registries that may be asked for the images of a rehearsal: a test's own. Stand-in images are in no other."""


def tools_directory(directory: Path) -> Path:
    """Make the programs in ``directory`` (created if need be) and return it, absolute, to be put first on PATH.

    Written anew each time, atomically, because the interpreter that they name may have changed. Raises OSError.
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
