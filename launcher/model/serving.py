"""Whether an examined checkpoint may be served, and which directory beside it may be the right one."""

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

    Checkpoints are refused when they are not whole, or certainly another one than declared; stand-ins, unless they are
    accepted. An unknown identity passes; whoever shows the report must show that. The hint names a sibling only if it
    is whole and of this ``precision``.
    """
    if report.whole and report.identity != "mismatch":
        if report.rehearsal and not accept_stand_in:
            raise ModelError("this checkpoint was made for rehearsals and holds no weights", where=str(report.path))
        return report
    message = f"this is another checkpoint than the one declared: {report.identity_reason}"
    hint = "correct the model's rule in the runner file, or the precision in the matrix"
    if unreadable := _unreadable_part(report.path):
        hint = os_error_hint(PermissionError(errno.EACCES, ""), unreadable)
    elif not report.whole:
        hint = "stage it again, or correct the path in the runner file"
    if not report.whole:
        more = f"; and {len(report.problems) - 10} more" if len(report.problems) > 10 else ""
        message = f"the checkpoint is not whole: {'; '.join(report.problems[:10])}{more}"
    raise ModelError(message, where=str(report.path), hint=sibling_hint(matching_sibling(report.path, precision), hint))


def _unreadable_part(path: Path) -> Path | None:
    """The first path that this user may not read: the checkpoint's directory, or a file in it."""
    try:
        return next((entry for entry in sorted(path.iterdir()) if not os.access(entry, os.R_OK)), None)
    except OSError as error:
        return path if isinstance(error, PermissionError) else None


def sibling_hint(near: Path | None, otherwise: str) -> str:
    """A hint that names the checkpoint ``near`` a wrong one; without one the hint is ``otherwise``."""
    return f"there is {near}: is that the one?" if near else otherwise


def nearest_sibling(path: Path) -> Path | None:
    """For a missing directory: the one beside it with nearly the same name.

    The name differs only in case, or else only in its suffix for precision or version (``-NVFP4``, ``-FP8``, ``-V2``).
    None when the directory is there, or none is similar. Another suffix means another checkpoint: suggest it to a
    person, never use it.
    """
    return None if os.access(path, os.X_OK) else next(iter(_similar_directories(path)), None)


def matching_sibling(path: Path, precision: str | None) -> Path | None:
    """The checkpoint beside a wrong one that would be right: whole, and of the ``precision`` by its own files.

    Its name is similar as `nearest_sibling` defines it. This is only a suggestion, too.
    """
    reports = (examine(near, precision=precision) for near in _similar_directories(path))
    return next((report.path for report in reports if report.whole and report.identity != "mismatch"), None)


def _similar_directories(path: Path) -> list[Path]:
    """Directories beside it with nearly the same name, first those that differ only in case."""
    try:
        beside = [path.with_name(entry.name) for entry in os.scandir(path.parent) if entry.is_dir()]
    except OSError:
        return []
    near = [other for other in beside if other != path and _stem(other.name) == _stem(path.name)]
    return sorted(near, key=lambda other: (other.name.casefold() != path.name.casefold(), other))


def _stem(name: str) -> str:
    while match := _SUFFIX.search(name):
        name = name[: match.start()]
    return name.casefold()
