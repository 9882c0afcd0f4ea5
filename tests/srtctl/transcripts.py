"""Recorded runs of the real srtctl, read from the shared material: command, exit code, stdout and stderr."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.shared import SHARED


@dataclass(frozen=True)
class Transcript:
    name: str
    command: tuple[str, ...]
    exit: int
    stdout: str
    stderr: str


def transcript(name: str) -> Transcript:
    """One recorded command. Needs the shared material (`needs_shared`)."""
    assert SHARED is not None
    text = (SHARED / "reference/srtctl-transcripts" / f"{name}.txt").read_text()
    head, _, rest = text.partition("# --- stdout")
    out, _, err = rest.partition("\n# --- stderr")
    command, exit_code = re.search(r"^# cmd: (.*)$", head, re.M), re.search(r"^# exit: (\d+)$", head, re.M)
    assert command and exit_code
    return Transcript(
        name,
        tuple(shlex.split(command[1])),
        int(exit_code[1]),
        out.partition("\n")[2],
        err.partition("\n")[2].removesuffix("# --- end ---\n"),
    )
