"""The errors of the launcher, one tree; each layer has its exit code.

A message says what is wrong; ``where`` names the place (``file:line``, node, job id); ``hint`` says what to do next,
and `suggest` makes one of a word that is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launcher.core.rights import os_error_hint


class LauncherError(Exception):
    """Base of everything the launcher raises on purpose; raised itself for an error that belongs to no layer.

    ``message`` has one line or a few; ``where`` and ``hint`` may be None. ``exit_code`` is what the process ends with.
    """

    exit_code = 1
    layer = "launcher"

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint or None

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class ConfigError(LauncherError):
    """A runner, matrix or recipe file, a flag or an environment variable has a value that is not possible."""

    exit_code = 2
    layer = "configuration"


class ImageError(LauncherError):
    """An image could not be imported, or its squash file is not whole."""

    exit_code = 3
    layer = "image"


class ModelError(LauncherError):
    """A checkpoint is missing, incomplete, or not the declared one."""

    exit_code = 4
    layer = "model"


class SubmissionError(LauncherError):
    """The job could not be made ready, or srtctl or sbatch did not accept it."""

    exit_code = 5
    layer = "submission"


class CheckoutError(SubmissionError):
    """Something that the job needs beside images and model could not be made: the srt-slurm tree, its set-up, the job's
    script, the compute nodes' copy of the workspace. Neither srtctl nor Slurm was called yet."""

    layer = "checkout"


class SubmissionUnknown(SubmissionError):
    """It is not known whether a job exists. A person has to look before it is submitted again."""


class JobsExist(SubmissionError):
    """Other jobs were submitted than requested. ``job_ids`` names them so that they can be cancelled, on the
    ``cluster`` that has them ("" for this host's)."""

    def __init__(self, message: str, *, job_ids: tuple[str, ...], hint: str | None = None, cluster: str = "") -> None:
        super().__init__(message, where=", ".join(f"job {i}" for i in job_ids), hint=hint)
        self.job_ids = job_ids
        self.cluster = cluster


class JobError(LauncherError):
    """The job reached a terminal state other than COMPLETED 0:0, or its state is not known."""

    exit_code = 6
    layer = "job"


class NodeError(JobError):
    """A node on which the job would run is not fit for it."""

    layer = "node"


class ResultError(LauncherError):
    """Results are missing, partial, unreadable, or not believable."""

    exit_code = 7
    layer = "results"


class RemoteError(LauncherError):
    """A login node could not be reached, refused us, is not the one that is known, or went away."""

    exit_code = 8
    layer = "remote"


class Cancelled(LauncherError):
    """A stop was requested: SIGINT (130), SIGTERM (143), or `launcher cancel`."""

    exit_code = 130
    layer = "cancelled"

    def __init__(self, message: str, *, exit_code: int = 130, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def as_error(fault: BaseException, where: str | None = None) -> LauncherError:
    """Any exception as a LauncherError: ours unchanged, an OSError with its file (and the file's owner, when permission
    is missing), another one as unexpected."""
    if isinstance(fault, LauncherError):
        return fault
    if isinstance(fault, OSError):
        place = ": ".join(str(part) for part in (where, fault.filename) if part is not None)
        hint = os_error_hint(fault, fault.filename) if fault.filename and isinstance(fault, PermissionError) else None
        return LauncherError(str(fault.strerror or fault), where=place or None, hint=hint)
    return LauncherError(f"unexpected {type(fault).__name__}: {fault}", where=where)


@dataclass(frozen=True)
class ErrorInfo:
    """An error as a value: what is wrong with one thing (``of``) among several, and the exit code that it means."""

    of: str
    message: str
    where: str | None = None
    hint: str | None = None
    layer: str = LauncherError.layer
    code: int = 1

    @classmethod
    def from_error(cls, error: LauncherError, subject: str = "") -> ErrorInfo:
        return cls(subject, error.message, error.where, error.hint, error.layer, error.exit_code)


def closest(word: str, known: Iterable[str], cutoff: float | None = None) -> str | None:
    """The known word that is most similar to ``word``; None when none is similar (by difflib's ratio, at least 0.6).

    For words of four or five letters the bound is 0.7: three of them are soon in another word (nope in nodes, 0.67),
    and one wrong letter leaves 0.75.
    """
    import difflib  # every command would pay for it, and few words are wrong

    if cutoff is None:
        cutoff = 0.7 if len(word) in (4, 5) else 0.6
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def suggest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for an error: ``did you mean '…'?`` with the closest known word, or ``otherwise`` when none is close."""
    match = closest(word, known)
    return otherwise if match is None else f"did you mean {match!r}?"


def resolve_prefix(prefix: str, known: Iterable[str], plural: str, also: Iterable[str] = ()) -> str:
    """The only known name that begins with ``prefix``; ``prefix`` itself where there is none. Raises ConfigError for
    several, which counts the names of ``also`` as matches too. ``plural`` is what the names are."""
    matches = sorted({*also, *(name for name in known if prefix and name.startswith(prefix))})
    if len(matches) > 1 and prefix not in matches:
        more = f" and {len(matches) - 8} more" if len(matches) > 8 else ""
        raise ConfigError(f"{prefix!r} may be any of {len(matches)} {plural}", hint=f"{', '.join(matches[:8])}{more}")
    return prefix if prefix in matches or not matches else matches[0]
