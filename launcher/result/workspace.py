"""Putting files into the workspace: whole or not at all, and never over what is somebody else's."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.core.errors import ResultError
from launcher.core.publish import publish_new, publishing, temporary_name
from launcher.result.bundle import copy_logs

NAME_MAX = 255
"""Bytes of a file name, on every file system met here."""

LOGS = "LOGS"
_OWNER = ".launcher-job"


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_target(target: Path, digest: str, ours: str | None) -> None:
    """Whether a file of that ``digest`` may be published as ``target``, where ``ours`` is the digest of what this run
    put there before. Raises ResultError for a name that is too long and for a file that is not ours."""
    length = len(os.fsencode(target.name))
    if length > NAME_MAX:
        raise ResultError(
            f"the name of a result is {length} bytes long, and a file name may have {NAME_MAX}: {target.name}",
            hint="shorten EXP_NAME or the runner's name, of which the workflow makes RESULT_FILENAME",
        )
    if not target.is_symlink() and not target.exists():
        return
    try:
        same = target.is_file() and digest_of(target) in (digest, ours)
    except OSError as error:
        raise ResultError(f"what is there cannot be read: {error.strerror}", where=str(target)) from None
    if not same:
        raise ResultError(
            f"a file of another run is in the way: {target.name}",
            where=str(target),
            hint="remove it, or collect into an empty workspace",
        )


def publish_file(source: Path, target: Path, digest: str, ours: str | None) -> None:
    """Publish a copy of ``source`` as ``target``; it must still have the ``digest`` that was looked at.

    Raises ResultError when it changed, when a file that is not ours came in the way, and when it cannot be written.
    """
    check_target(target, digest, ours)
    try:
        if not target.exists():
            _publish_new(source, target, digest)
        elif digest_of(target) != digest:
            with publishing(target) as temporary:
                _copy(source, temporary, digest)
    except OSError as error:
        raise ResultError(f"a result cannot be published: {error.strerror}", where=str(target)) from None


def _publish_new(source: Path, target: Path, digest: str) -> None:
    temporary = temporary_name(target)
    try:
        _copy(source, temporary, digest)
        if not publish_new(temporary, target):
            raise ResultError("a file of another run came in the way", where=str(target))
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: Path, temporary: Path, digest: str) -> None:
    shutil.copyfile(source, temporary)
    if digest_of(temporary) != digest:
        raise ResultError("a result changed while it was collected", where=str(source), hint="does the job still run?")


def replace_logs(
    logs_dir: Path,
    workspace: Path,
    job_id: str,
    extra: Sequence[tuple[str, Path]],
    environ: Mapping[str, str],
) -> list[str]:
    """Put a copy of a job's logs at ``LOGS/``, in place of nothing or of an earlier copy of a launcher's.

    Secrets of ``environ`` are overwritten. ``extra`` adds files by relative name. Returns what could not be copied.
    Raises OSError when it cannot be written.
    """
    final = workspace / LOGS
    if final.exists() and not (final / _OWNER).is_file():
        return [f"{LOGS}/ was there and no launcher made it: it is left alone"]
    temporary, old = temporary_name(final), temporary_name(final)
    try:
        failed = copy_logs(logs_dir, temporary, environ)
        for name, path in extra:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        (temporary / _OWNER).write_text(f"{job_id}\n", encoding="utf-8")
        if final.exists():
            final.rename(old)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return [f"{LOGS}/{line}" for line in failed]
