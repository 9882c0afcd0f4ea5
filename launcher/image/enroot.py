"""`enroot import`: running it, and telling what its messages mean.

enroot writes everything to stderr and exits with 1 for nearly every failure, or with the code of curl, tar or
mksquashfs. So only its words tell what happened (recorded from enroot 4.1.2; the HTTP line is from its src/common.sh).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ImageError
from launcher.core.process import NOT_EXECUTABLE, NOT_FOUND, CommandRunner, Completed, run
from launcher.core.retry import telling
from launcher.image.credentials import account_line
from launcher.image.reference import Reference

if TYPE_CHECKING:
    from tenacity import Retrying

ATTEMPTS = 4
_QUERY_TIMEOUT = 60.0
_WRONG_ARCHITECTURE = "Image architecture doesn't match"
_CREDENTIALS = "put the registry's credentials into ~/.config/enroot/.credentials of this user on this host"


@dataclass(frozen=True)
class Fault:
    """Why an import failed: ``what`` happened, a ``hint`` for a person, and whether another attempt ``may_pass``."""

    what: str
    hint: str
    may_pass: bool = False


@dataclass(frozen=True)
class Fetched:
    """What a successful import said: enroot's warnings, and its version if the output has it."""

    warnings: tuple[str, ...]
    version: str | None


class _MayPass(ImageError):
    """A failure of the network or the registry that another attempt may not meet."""


class Enroot:
    """An enroot, started as ``command``, which gets ``environment``.

    On a compute node it is a job of its own, which may wait ``node_patience`` seconds for a node; None means that it
    runs on this host. On a node it is only asked to import, since each question would be another job; its version is
    then what the output of the import begins with, if it does. ``log`` gets a line for each failed attempt.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        run: CommandRunner = run,
        command: Sequence[str] = ("enroot",),
        *,
        node_patience: float | None = None,
        log: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.environment, self.is_on_node = environment, node_patience is not None
        self._patience = node_patience or 0.0
        self._run, self._command, self._log, self._sleep = run, tuple(command), log, sleep

    def version(self, environment: Mapping[str, str]) -> str | None:
        """What `enroot version` prints, or None. ``environment`` is the program's whole one, here and below."""
        return self._query("version", environment=environment)

    def digest(self, uri: str, environment: Mapping[str, str]) -> str | None:
        """The digest of the image's manifest, from the registry; None from an enroot before 4.1, or when it fails."""
        answer = self._query("digest", uri, environment=environment)
        return answer if answer and re.fullmatch(r"sha256:[0-9a-f]{64}", answer) else None

    def fetch(self, uri: str, output: Path, *, environment: Mapping[str, str], timeout: float, where: str) -> Fetched:
        """Import an image into ``output``, a name of our own, within ``timeout`` seconds for all attempts together.

        After a rate limit, a 5xx, a failure of the network or ESTALE it is tried again, with growing pauses, up to four
        times in all. Raises ImageError, with ``where``.
        """
        timeout += self._patience
        deadline = time.monotonic() + timeout
        argv = [*self._command, "import", "-o", str(output), uri]
        for attempt in self._attempts():
            with attempt:
                output.unlink(missing_ok=True)  # a failed attempt may leave one, and enroot refuses it
                done = self._run(argv, timeout=max(1.0, deadline - time.monotonic()), env=environment)
                if done.timed_out:
                    raise ImageError(
                        f"enroot import of {uri} did not end within {timeout:g} s",
                        where=where,
                        hint="give it more time (images.import-timeout in the runner file), or find out what is slow:\n"
                        + done.tail(),
                    )
                if not done.ok or _NODE_FAILED.search(done.stderr):
                    fault = _with_account(diagnose(done), uri, environment)
                    message = f"enroot import of {uri} failed: {fault.what}"
                    raise (_MayPass if fault.may_pass else ImageError)(message, where=where, hint=fault.hint)
        version = re.match(r"\d+\.\d+(\.\d+)?\S*", done.stdout)
        warnings = tuple(line for line in done.stderr.splitlines() if _WRONG_ARCHITECTURE in line)
        return Fetched(warnings, version.group() if version else None)

    def _attempts(self) -> Retrying:
        """The attempts of an import, with a line for each that failed and is followed by another."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        return Retrying(
            retry=retry_if_exception_type(_MayPass),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=5, max=60) + wait_random(0, 3),
            sleep=self._sleep,
            before_sleep=telling(self._log, f" of {ATTEMPTS}"),
            reraise=True,
        )

    def _query(self, *words: str, environment: Mapping[str, str]) -> str | None:
        if self.is_on_node:
            return None
        done = self._run([*self._command, *words], timeout=_QUERY_TIMEOUT, env=environment)
        return done.stdout.strip() or None if done.ok else None


_NODE_FAILED = re.compile(r"^srun: error: Node failure on \S+", re.MULTILINE)
"""srun's exit code is 0 then (Slurm 22.05)."""

_JOB = "see images.import-partition and images.import-options in the runner file"

_BY_SRUN: tuple[tuple[str, Fault], ...] = (
    (_NODE_FAILED.pattern, Fault("its node failed", "try again; --exclude the node in images.import-options", True)),
    (
        r"DUE TO TIME LIMIT",
        Fault("its job reached its time limit", "more time: images.import-timeout in the runner file"),
    ),
    (
        r"srun: .*(Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted)",
        Fault("Slurm does not answer", "try again later", may_pass=True),
    ),
    (
        r"srun: (Job has been cancelled|Job allocation \d+ has been revoked)",
        Fault("its job did not start in time, or was cancelled while it waited for a node", f"try again later; {_JOB}"),
    ),
    (r"srun: error: Unable to allocate resources", Fault("Slurm gives it no job", _JOB)),
    (r"\*\*\* (STEP|JOB) .* CANCELLED AT", Fault("its job was cancelled", "somebody ended it; run again")),
)
"""How the job of an import can end (recorded from Slurm 22.05). srun's words say more about it than enroot's."""

_UNSAID = re.compile(r"Authenticating with user: .*(\n\[INFO\] Using credentials.*)?\Z")
"""The last that enroot 4.1.2 says when Basic authentication fails: it throws away what curl says, and ends with 1."""

_SPACE = "free space there, or name another directory (images.directory, images.temporary in the runner file)"
_IMAGE = "correct the image in the matrix entry or recipe"

_BY_STATUS = {
    401: Fault("401, the registry wants credentials", f"{_CREDENTIALS}; Docker Hub says so of names it lacks, too"),
    403: Fault("403, the registry forbids it", f"{_CREDENTIALS}, of an account that may read the image"),
    404: Fault("404, the registry has no such image", f"{_IMAGE}: the tag may have been removed, as nightly ones are"),
    408: Fault("408, the registry did not answer in time", "try again later", may_pass=True),
    429: Fault("429, the registry's rate limit", f"try again later, or {_CREDENTIALS}", may_pass=True),
}

_BY_WORDS: tuple[tuple[str, Fault], ...] = (
    (r"No space left on device|Failed to write to output filesystem|Is the disk full", Fault("no space left", _SPACE)),
    (r"Disk quota exceeded", Fault("the disk quota is used up", _SPACE)),
    (r"Read-only file system", Fault("a file system is read-only", _SPACE)),
    (r"Invalid image reference|Invalid argument: ", Fault("enroot does not accept the reference", _IMAGE)),
    (
        r"wrong version number|SSL routines.*packet length",
        Fault("the registry does not speak TLS", "set ENROOT_ALLOW_HTTP=y in enroot's environment, if that is meant"),
    ),
    (
        r"Connection|Could not resolve host|name resolution|Failed to connect|[Tt]imed? ?-?out|Network is unreachable"
        r"|transfer closed|Empty reply|Recv failure|Send failure|HTTP/2 |unexpected eof",
        Fault("the network or the registry failed", "try again later; see whether this host reaches it", may_pass=True),
    ),
    (r"Checksum mismatch", Fault("a layer arrived damaged", "try again later", may_pass=True)),
    (
        r"Stale file handle",
        Fault("a file went stale under it", "put enroot's temporaries on a node-local disk (images.temporary)", True),
    ),
    (
        r"Operation not permitted|Permission denied",
        Fault("something may not be written", "put enroot's temporaries on a node-local disk (images.temporary)"),
    ),
    (
        r"Command not found: (\S+)",
        Fault("a program that enroot needs is missing", "install it on the host that imports"),
    ),
    (r"\bKilled\b", Fault("it was killed", "give it more memory, or import on another host (images.import-on)")),
)


def diagnose(done: Completed) -> Fault:
    """Why this `enroot import` failed. A failure that is not known is not tried again."""
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("[INFO]")]
    text = "\n".join(said)
    missing = re.match(r"(enroot|srun|\S*/enroot): ", text) or re.match(re.escape(f"{done.argv[0]}: "), text)
    if done.returncode in (NOT_FOUND, NOT_EXECUTABLE) and missing:
        name = "srun" if missing.group().startswith("srun") else "enroot"
        return Fault(f"{name} is not there", "install it on this host, or import elsewhere (images.import-on)")
    for words, fault in _BY_SRUN:
        if re.search(words, text, re.MULTILINE):
            return _saying(fault, said)
    if not said and _UNSAID.search(done.stderr.rstrip()):
        return Fault("401 or 404, enroot does not say which", f"{_IMAGE}, or the credentials")
    status = [int(code) for code in re.findall(r"returned error(?: code)?: (\d{3})\b", text)]
    faults = [fault_of_status(code) for code in status] + [
        fault for words, fault in _BY_WORDS if re.search(words, text)
    ]
    lasting = [fault for fault in faults if not fault.may_pass]
    fault = (lasting or faults or [Fault(f"exit {done.returncode}", "read what it said")])[0]
    return _saying(fault, said)


def _saying(fault: Fault, said: Sequence[str]) -> Fault:
    return replace(fault, what=fault.what + "".join(f"\n  {line}" for line in said[-4:]))


def _with_account(fault: Fault, uri: str, environment: Mapping[str, str]) -> Fault:
    """The fault; of a refused account with the line of the credentials file to correct or to add."""
    if not fault.what.startswith(("401", "403")):
        return fault
    return replace(fault, hint=f"correct the image, or {account_line(Reference.parse(uri).registry, environment)}")


def fault_of_status(code: int) -> Fault:
    """What an HTTP status of a registry means for an import."""
    if code in _BY_STATUS:
        return _BY_STATUS[code]
    what = f"HTTP status {code} from the registry"
    return Fault(what, "try again later", may_pass=True) if code >= 500 else Fault(what, _IMAGE)
