"""Removes files that were sent to a login node, and versions of the launcher there, that are no longer needed.

`started.json` beside a record (`launcher.cli.detached`) names the files and the launcher of a driver without a
terminal, and a run's plan names its own. What an unfinished run or sweep names is kept, however old it is. Runs may be
in other state directories (``--state``): a driver that starts in one leaves a link to it in the usual one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.core.errors import LauncherError, RemoteError
from launcher.core.publish import make_private, remove_tree
from launcher.core.reading import read_file
from launcher.remote.agent import Tidied
from launcher.remote.far_install import Refused, directory_of, versions
from launcher.run.record import RunRecord
from launcher.sweep.ledger import Ledger
from launcher.sweep.schema import Began, Left

DAY = 86400.0
"""Seconds for which a bundle is kept after its last use, and the remains of an interrupted transfer."""
_LARGEST = 64 << 20
_OTHERS = "other-states"
_NAMED = re.compile(rb'/(?:bundles|versions)/([^/"\s]+)')
_DIGEST = re.compile(r"[0-9a-f]{64}")


def tidy(state: Path, directory: str, apply: bool = False) -> Tidied:
    """The versions below ``directory`` and the bundles of a state directory that are not needed, removed with
    ``apply``; and the kept versions. Raises RemoteError, OSError."""
    try:
        versions_directory = directory_of({"directory": directory})
    except Refused as error:
        raise RemoteError(str(error.args[0]), hint=str(error.args[1])) from error
    bundles, states = state / "bundles", (state, *other_states(state))
    keep = set[str]().union(*map(needed_names, states))
    old_versions, old_bundles = unneeded_versions(versions_directory, keep), unneeded_bundles(bundles, keep)
    if apply:
        remove(bundles, old_bundles)
        remove(versions_directory, old_versions)
    kept = tuple(name for name in versions(versions_directory) if name not in old_versions)
    return Tidied(apply, tuple(old_versions), tuple(old_bundles), kept, tuple(map(str, states)))


def register_state(state: Path, other: Path, argv: Sequence[str]) -> None:
    """Have `tidy` of ``state`` also read the runs of another state directory, in which a driver with ``argv`` starts
    that needs a bundle or version. Raises OSError."""
    if other != state and any(_NAMED.search(os.fsencode(word)) for word in argv):
        make_private(state / _OTHERS)
        with contextlib.suppress(FileExistsError):
            (state / _OTHERS / hashlib.sha256(os.fsencode(other)).hexdigest()[:16]).symlink_to(other)


def other_states(state: Path) -> list[Path]:
    """The other state directories that drivers registered and that exist."""
    links = sorted((state / _OTHERS).iterdir()) if (state / _OTHERS).is_dir() else []
    return [link.readlink() for link in links if link.is_symlink() and link.is_dir()]


def needed_names(state: Path) -> set[str]:
    """Names of the bundles and versions that are used by a run or sweep that has not ended, or whose record is invalid.

    Raises OSError for a file of one that cannot be read, because what it names is unknown.
    """
    names = set[str]()
    for place in (*state.glob("runs/*/"), *state.glob("sweeps/*/")):
        with contextlib.suppress(LauncherError, OSError):  # one with an unreadable record may be running
            if _run_is_over(place) if place.parent.name == "runs" else _sweep_is_over(place):
                continue
        for file in place.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                names |= {os.fsdecode(name) for name in _NAMED.findall(read_file(file, _LARGEST))}
    return names


def _run_is_over(run: Path) -> bool:
    return RunRecord.load(run.parent, run.name).fields.settled


def _sweep_is_over(sweep: Path) -> bool:
    """Whether its last driver ended the sweep. A killed driver recorded no end."""
    ledger = Ledger.load(sweep.parent, sweep.name)
    ends = [event for event in ledger.events() if isinstance(event, (Began, Left))]
    return bool(ends) and isinstance(ends[-1], Left) and ends[-1].why in ("finished", "cancelled")


def unneeded_bundles(directory: Path, keep: set[str]) -> list[str]:
    """Bundles, whole and in parts, that were not used within a day and are not in ``keep``."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    bundles = [path for path in paths if _DIGEST.fullmatch(path.name) or path.name.startswith(".")]
    return [path.name for path in bundles if path.name not in keep and time.time() - path.stat().st_mtime > DAY]


def unneeded_versions(directory: Path, keep: set[str], newest: int = 2) -> list[str]:
    """Versions except the ``newest``, those in ``keep`` and those that run here; and remains of installations that were
    interrupted more than a day ago."""
    installed = versions(directory)
    kept = {*installed[max(0, len(installed) - newest) :], *keep, *running(directory)}
    leftovers = [p.name for p in directory.glob(".*") if p.is_dir() and time.time() - p.stat().st_mtime > DAY]
    return [name for name in installed if name not in kept] + leftovers


def remove(directory: Path, names: list[str]) -> None:
    """Remove entries of a directory. Each is renamed first, so that nobody starts a partial one. Raises OSError."""
    for name in names:
        hidden = directory / f".removed.{name}.{os.getpid()}"
        (directory / name).rename(hidden)
        hidden.unlink() if hidden.is_file() else remove_tree(hidden)


def running(directory: Path) -> set[str]:
    """Versions whose Python is running on this machine."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            with (process / "cmdline").open("rb") as file:
                program = Path(os.fsdecode(file.read(4096).split(b"\0")[0]))
            names |= {place.name for place in program.parents if place.parent.name == directory.name}
    return names
