"""Recorded runs of the real srtctl, read from the shared material: command, exit code, stdout and stderr."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.shared import SHARED


@dataclass(frozen=True)
class Transcript:
    name: str
    cwd: str
    environ: tuple[tuple[str, str], ...]
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
    said = dict(re.findall(r"^# (cwd|env|cmd|exit): (.*)$", head, re.MULTILINE))
    environ = () if said["env"] == "(none)" else said["env"].split()
    return Transcript(
        name,
        said["cwd"],
        tuple((word.partition("=")[0], word.partition("=")[2]) for word in environ),
        tuple(shlex.split(said["cmd"].replace("-f  ", "-f '' "))),
        int(said["exit"]),
        out.partition("\n")[2],
        err.partition("\n")[2].removesuffix("# --- end ---\n"),
    )
