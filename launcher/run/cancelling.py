"""Asking whoever drives a run to let it go: a file in the run's directory, which its driver looks for.

Only the driver knows what it is about to do. A run that waits its turn in a sweep has no job that could be cancelled,
and would be submitted later; a job that disappears under its driver looks like somebody else's doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time

from launcher.core.errors import Cancelled
from launcher.core.publish import write_json
from launcher.core.reading import read_file
from launcher.core.rights import user_name
from launcher.core.stop import Stop
from launcher.run.kind import Services
from launcher.run.record import RunRecord

FILE = "cancel.json"

LOOK = 0.5
"""Seconds between two looks for the file while something is waited for."""

_LARGEST = 4096


def ask(record: RunRecord, by: str) -> None:
    """Ask the run's driver, on whatever host, to end it. Raises OSError."""
    who = f"cancelled by {user_name()} on {socket.gethostname()} ({by})"
    write_json(record.directory / FILE, {"time": time.time(), "text": who})


def withdraw(record: RunRecord) -> None:
    """Take the request back: the run is to go on after all."""
    with contextlib.suppress(OSError):
        (record.directory / FILE).unlink()


def is_asked(record: RunRecord) -> bool:
    """Whether somebody asked for the run's end."""
    return os.path.lexists(record.directory / FILE)


def reason(record: RunRecord) -> Cancelled:
    """What a run that was asked to end ends with."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        said = json.loads(read_file(record.directory / FILE, _LARGEST))
        if isinstance(said, dict) and isinstance(said.get("text"), str):
            return Cancelled(record.hide(said["text"]))
    return Cancelled("cancelled on request")


def stop_of(record: RunRecord, stop: Stop) -> Stop:
    """A request to stop that comes by ``stop``, or for this run alone by the file."""
    return stop.or_when(lambda: is_asked(record), lambda: reason(record), LOOK)


def services_of(record: RunRecord, services: Services) -> Services:
    """The services of one run among those of a command: what it waits for and what it runs ends with the run."""
    return services.ended_by(stop_of(record, services.stop))
