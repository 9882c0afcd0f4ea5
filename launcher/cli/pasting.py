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
        words, on = program(), getattr(arguments, "on", None)
        state = getattr(arguments, "state", None)
        for name in _DIRECTORIES:
            given = getattr(arguments, name, None)
            if name == "state":  # on a login node that is a directory there
                given = None if on else given or os.environ.get("LAUNCHER_STATE")
            if given:
                words += [f"--{name.replace('_', '-')}", str(Path(given).absolute())]
        # As whoever asks from elsewhere types it; what is about login nodes is typed without the name of one.
        elsewhere = [*(["--state", state] if state else []), "--on", on] if on else []
        self.words: list[str] = getattr(arguments, "typed", None) or [*words, *elsewhere]
        self._there, self._here = shlex.join(self.words), shlex.join(words)
        names = "|".join(map(re.escape, parser().listed))
        self._command = re.compile(rf"\blauncher(?= (?:{names})\b)(?P<here>(?= remote\b))?")

    def __call__(self, text: str) -> str:
        def typed(found: re.Match[str]) -> str:
            return self._there if found["here"] is None else self._here

        return text if self._there == "launcher" else self._command.sub(typed, text)
