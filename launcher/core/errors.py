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
    """What the job needs beside images and model could not be made: the srt-slurm tree, its set-up, the job's script,
    the compute nodes' copy of the workspace. Neither srtctl nor Slurm was asked for anything yet."""

    layer = "checkout"


class SubmissionUnknown(SubmissionError):
    """Whether a job exists could not be learnt. Somebody has to look before it is submitted again."""


class JobsExist(SubmissionError):
    """Jobs were submitted that are not what was asked for; ``job_ids`` names them so that they can be cancelled, on the
    ``cluster`` that has them ("" for this host's)."""

    def __init__(self, message: str, *, job_ids: tuple[str, ...], hint: str | None = None, cluster: str = "") -> None:
        super().__init__(message, where=", ".join(f"job {i}" for i in job_ids), hint=hint)
        self.job_ids = job_ids
        self.cluster = cluster


class JobError(LauncherError):
    """The job reached a terminal state other than COMPLETED 0:0, or its state could not be learnt."""

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
    """Somebody asked us to stop: SIGINT (130), SIGTERM (143), or `launcher cancel`."""

    exit_code = 130
    layer = "cancelled"

    def __init__(self, message: str, *, exit_code: int = 130, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def as_error(fault: BaseException, where: str | None = None) -> LauncherError:
    """A fault as an error: one of ours as it is, one of the system with its file, and whose that is where it is
    closed to us; any other as unexpected."""
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
    """The known word that is most like ``word``, or None when none is like it (by difflib's ratio, at least 0.6).

    Of four or five letters three are soon found elsewhere (nope in nodes, 0.67): one that is wrong leaves 0.75.
    """
    import difflib  # every command would pay for it, and few words are wrong

    if cutoff is None:
        cutoff = 0.7 if len(word) in (4, 5) else 0.6
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def suggest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for an error: ``did you mean '…'?`` with the closest known word, or ``otherwise`` when none is close."""
    near = closest(word, known)
    return otherwise if near is None else f"did you mean {near!r}?"


def resolve_prefix(given: str, known: Iterable[str], what: str, also: Iterable[str] = ()) -> str:
    """The one known name that begins with what was given; that itself where none does. Raises ConfigError for several,
    of which those of ``also`` are meant otherwise than by their names."""
    found = sorted({*also, *(name for name in known if given and name.startswith(given))})
    if len(found) > 1 and given not in found:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise ConfigError(f"{given!r} may be any of {len(found)} {what}", hint=f"{', '.join(found[:8])}{more}")
    return given if given in found or not found else found[0]
