"""This host's clock, for nodes to compare theirs with: both look at the time that the file server gives to a file."""

from __future__ import annotations

import time
from pathlib import Path

from launcher.core.publish import write_text

NAME = "clock"


def write_clock(directory: Path) -> None:
    """Leave our time, and how far it is from the file server's, in whole seconds. Raises OSError."""
    probe = directory / f".{NAME}.probe"
    probe.touch()
    now = time.time()
    offset = now - probe.stat().st_mtime
    probe.unlink()
    write_text(directory / NAME, f"{int(now)} {round(offset)}\n")
