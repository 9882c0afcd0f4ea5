"""What is removed on a login node: files that were sent, and versions of the launcher, that nobody needs any more.

A driver without a terminal leaves beside its record where its files and its launcher are (`started.json`, of
`launcher.cli.detached`), and a run's plan names its own: what a run or sweep that has not ended names stays, however
old it is. Runs may lie in other state directories (``--state``): a driver that starts in one leaves a link to it in the
one that is looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
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
"""Seconds for which what was sent stays once it was asked for; then what a cut connection left is nobody's."""
_LARGEST = 64 << 20
_OTHERS = "other-states"
_NAMED = re.compile(rb'/(?:bundles|versions)/([^/"\s]+)')
_DIGEST = re.compile(r"[0-9a-f]{64}")


def tidy(state: Path, directory: str, apply: bool = False) -> Tidied:
    """Versions below ``directory`` and bundles of a state directory that nobody needs, removed with ``apply``; and the
    versions that are kept. Raises RemoteError, OSError."""
    try:
        versions_directory = directory_of({"directory": directory})
    except Refused as error:
        raise RemoteError(str(error.args[0]), hint=str(error.args[1])) from error
    bundles, states = state / "bundles", (state, *other_states(state))
    keep = {name for directory_ in states for name in needed_names(directory_)}
    old_versions, old_bundles = unneeded_versions(versions_directory, keep), unneeded_bundles(bundles, keep)
    if apply:
        remove(bundles, old_bundles)
        remove(versions_directory, old_versions)
    kept = tuple(name for name in versions(versions_directory) if name not in old_versions)
    return Tidied(apply, tuple(old_versions), tuple(old_bundles), kept, tuple(map(str, states)))


def register_state(state: Path, other: Path, argv: Sequence[str]) -> None:
    """Have `tidy` of ``state`` ask the runs of another state directory, too, where a driver with ``argv``, which needs
    something that is tidied, begins. Raises OSError."""
    if other != state and any(_NAMED.search(os.fsencode(word)) for word in argv):
        make_private(state / _OTHERS)
        with contextlib.suppress(FileExistsError):
            (state / _OTHERS / hashlib.sha256(os.fsencode(other)).hexdigest()[:16]).symlink_to(other)


def other_states(state: Path) -> list[Path]:
    """The other state directories that drivers named, and that are there."""
    links = sorted((state / _OTHERS).iterdir()) if (state / _OTHERS).is_dir() else []
    return [link.readlink() for link in links if link.is_symlink() and link.is_dir()]


def needed_names(state: Path) -> set[str]:
    """Names of the bundles and versions that a run or sweep names which has not ended, or cannot be read. Raises
    OSError for a file of one that cannot be read: what it names is then not known."""
    names = set[str]()
    for place in (*_unfinished(state / "runs", _is_settled), *_unfinished(state / "sweeps", _is_over)):
        for file in place.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                names |= {os.fsdecode(name) for name in _NAMED.findall(read_file(file, _LARGEST))}
    return names


def _unfinished(directory: Path, is_over: Callable[[Path], bool]) -> Iterator[Path]:
    for place in directory.glob("*/"):
        with contextlib.suppress(LauncherError, OSError):  # what cannot be read may be going on
            if is_over(place):
                continue
        yield place


def _is_settled(run: Path) -> bool:
    return RunRecord.load(run.parent, run.name).fields.settled


def _is_over(sweep: Path) -> bool:
    """Whether its last driver has left it with nothing to go on with. A killed one has left nothing."""
    ledger = Ledger.load(sweep.parent, sweep.name)
    ends = [event for event in ledger.events() if isinstance(event, (Began, Left))]
    return bool(ends) and isinstance(ends[-1], Left) and ends[-1].why in ("finished", "cancelled")


def unneeded_bundles(directory: Path, keep: set[str]) -> list[str]:
    """Bundles that nobody asked for within a day, but for those in ``keep``, and what cut connections left."""
    old = [place for place in _places(directory) if time.time() - place.stat().st_mtime > DAY]
    return [place.name for place in old if place.name not in keep]


def unneeded_versions(directory: Path, keep: set[str], newest: int = 2) -> list[str]:
    """Versions but for the ``newest``, those in ``keep`` and those that run here; and what broken-off installations
    left a day ago."""
    installed = versions(directory)
    kept = {*installed[max(0, len(installed) - newest) :], *keep, *running(directory)}
    leftovers = [p.name for p in directory.glob(".*") if p.is_dir() and time.time() - p.stat().st_mtime > DAY]
    return [name for name in installed if name not in kept] + leftovers


def remove(directory: Path, names: list[str]) -> None:
    """Remove these of a directory; out of sight first, so that nobody starts with half of one. Raises OSError."""
    for name in names:
        hidden = directory / f".removed.{name}.{os.getpid()}"
        (directory / name).rename(hidden)
        hidden.unlink() if hidden.is_file() else remove_tree(hidden)


def running(directory: Path) -> set[str]:
    """Versions whose Python a process of this machine runs."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            with (process / "cmdline").open("rb") as file:
                program = Path(os.fsdecode(file.read(4096).split(b"\0")[0]))
            names |= {place.name for place in program.parents if place.parent.name == directory.name}
    return names


def _places(directory: Path) -> list[Path]:
    """Bundles, whole and in parts."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return [place for place in paths if _DIGEST.fullmatch(place.name) or place.name.startswith(".")]
