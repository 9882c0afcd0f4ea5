"""Commands that are printed work when they are pasted: with this program's own path, and where things are."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from launcher.cli.arguments import parser

_DIRECTORIES = ("workspace", "srt_slurm", "runners", "recipes", "state")


def program() -> list[str]:
    """What starts this launcher from any directory: its name, where the shell finds this very one by it."""
    own = Path(sys.argv[0])
    if own.name != "launcher" or not own.is_file():
        return [sys.executable, "-m", "launcher"]
    found = shutil.which("launcher")
    return ["launcher"] if found is not None and Path(found).absolute() == own.absolute() else [str(own.absolute())]


class Pasting:
    """Makes commands in a text (``launcher status RUN``) such as this command line would have them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        words = program()
        for name in _DIRECTORIES:
            given = getattr(arguments, name, None) or (os.environ.get("LAUNCHER_STATE") if name == "state" else None)
            if given:
                words += [f"--{name.replace('_', '-')}", str(Path(given).absolute())]
        if on := getattr(arguments, "on", None):
            words += ["--on", on]
        self._words = shlex.join(words)
        names = "|".join(map(re.escape, parser().listed))
        self._command = re.compile(rf"\blauncher(?= (?:{names})\b)")

    def __call__(self, text: str) -> str:
        return text if self._words == "launcher" else self._command.sub(lambda found: self._words, text)
