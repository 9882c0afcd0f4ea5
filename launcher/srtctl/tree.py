"""Putting files into a work tree: a run's overlays, and what it shares with the base that it came from."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import SubmissionError


@dataclass(frozen=True)
class Overlay:
    """A directory or file of the workspace that is laid over the work tree, as ``cp -rT source destination``.

    ``destination`` is below the work tree's root.
    """

    source: Path
    destination: str


def lay_over(overlay: Overlay, root: Path) -> None:
    """Copy an overlay into the tree at ``root``: directories are merged, files replaced, symlinks copied as such.

    Raises SubmissionError when the source is missing or the destination would leave the tree; nothing is written
    through a symlink or a hard link, because both may lead into a base that other runs share.
    """
    source, top = overlay.source, root.resolve()
    if not source.exists():
        raise SubmissionError("the overlay's source does not exist", where=str(source), hint="is its path spelt right?")
    if Path(overlay.destination).parts[:1] == (".git",):
        raise SubmissionError(f"an overlay must not go to {overlay.destination!r}", where=str(source))
    target = root / overlay.destination
    if source.is_dir():
        _inside(target, top, source)
        target.mkdir(parents=True, exist_ok=True)
        for directory, names, files in os.walk(source):
            to = target / Path(directory).relative_to(source)
            _inside(to, top, source)
            links = [name for name in names if (Path(directory) / name).is_symlink()]
            for name in sorted({*names} - {*links}):
                (to / name).mkdir(exist_ok=True)
            for name in [*files, *links]:
                _replace(Path(directory) / name, to / name)
    else:
        _inside(target.parent, top, source)
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(source, target)


def _inside(directory: Path, top: Path, source: Path) -> None:
    if not directory.resolve().is_relative_to(top):
        raise SubmissionError(
            f"the overlay would write to {directory.resolve()}, outside of the checkout {top}", where=str(source)
        )


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        raise SubmissionError(
            f"the overlay puts a file where the checkout has a directory: {target}", where=str(source)
        )
    target.unlink(missing_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


def share(source: Path, target: Path) -> None:
    """Make what a set-up made at ``source`` appear at ``target``: hard links, but a symlink to a virtual environment.

    Files are copied where hard links are not possible (another file system, or too many links).
    """
    if (source / "pyvenv.cfg").is_file():
        target.symlink_to(source)
    elif source.is_dir() and not source.is_symlink():
        target.mkdir(exist_ok=True)
        for entry in source.iterdir():
            share(entry, target / entry.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            return
        shutil.copy2(source, target, follow_symlinks=False)
