"""What follows from a look at a checkpoint: whether it may be served, and which one is right perhaps."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from launcher.core.errors import ModelError
from launcher.core.rights import os_error_hint
from launcher.model.checkpoint import CheckpointReport, examine

_SUFFIX = re.compile(r"[-_.](nvfp4|mxfp4|mxfp8|fp4|fp8|int4|int8|bf16|awq|gptq|v\d+)$", re.IGNORECASE)


def require_servable(
    report: CheckpointReport, *, precision: str | None = None, accept_stand_in: bool = False
) -> CheckpointReport:
    """Return the report when the checkpoint may be served; raise ModelError when it may not.

    Refused are checkpoints that are not whole, those that are certainly another one, and stand-ins unless they are
    accepted. An unknown identity passes and stays unknown in the report: say so where it is shown. The hint names a
    sibling only if that is whole and of this ``precision``.
    """
    if report.whole and report.identity != "mismatch":
        if report.rehearsal and not accept_stand_in:
            raise ModelError("this checkpoint was made for rehearsals and holds no weights", where=str(report.path))
        return report
    message = f"this is another checkpoint than the one declared: {report.identity_reason}"
    otherwise = "correct the model's rule in the runner file, or the precision in the matrix"
    if closed := _closed(report.path):
        otherwise = os_error_hint(PermissionError(errno.EACCES, ""), closed)
    elif not report.whole:
        otherwise = "stage it again, or correct the path in the runner file"
    if not report.whole:
        more = f"; and {len(report.problems) - 10} more" if len(report.problems) > 10 else ""
        message = f"the checkpoint is not whole: {'; '.join(report.problems[:10])}{more}"
    raise ModelError(
        message, where=str(report.path), hint=sibling_hint(matching_sibling(report.path, precision), otherwise)
    )


def _closed(path: Path) -> Path | None:
    """What of a checkpoint this user may not read: the directory, or the first such file in it."""
    try:
        return next((part for part in sorted(path.iterdir()) if not os.access(part, os.R_OK)), None)
    except OSError as error:
        return path if isinstance(error, PermissionError) else None


def sibling_hint(near: Path | None, otherwise: str) -> str:
    """A hint that names a checkpoint beside a wrong one, if there is one."""
    return f"there is {near}: is that the one?" if near else otherwise


def nearest_sibling(path: Path) -> Path | None:
    """For a directory that is missing: the one beside it with nearly the same name.

    The name differs only in case, or else only in its suffix for precision or version (``-NVFP4``, ``-FP8``, ``-V2``).
    None when the directory is there, or nothing is near. A suffix names another checkpoint: suggest this to a person,
    never use it.
    """
    return None if os.access(path, os.X_OK) else next(iter(_similar(path)), None)


def matching_sibling(path: Path, precision: str | None) -> Path | None:
    """The checkpoint beside a wrong one that would be right: whole, and by its own files of the ``precision``.

    Its name differs only as `nearest_sibling` says, and it is a suggestion too.
    """
    reports = (examine(near, precision=precision) for near in _similar(path))
    return next((report.path for report in reports if report.whole and report.identity != "mismatch"), None)


def _similar(path: Path) -> list[Path]:
    """Other directories beside it with nearly the same name, those first that differ only in case."""
    try:
        beside = [path.with_name(entry.name) for entry in os.scandir(path.parent) if entry.is_dir()]
    except OSError:
        return []
    near = [other for other in beside if other != path and _stem(other.name) == _stem(path.name)]
    return sorted(near, key=lambda other: (other.name.casefold() != path.name.casefold(), other))


def _stem(name: str) -> str:
    while found := _SUFFIX.search(name):
        name = name[: found.start()]
    return name.casefold()
