"""enroot: where and how it imports an image, what the messages of a failure mean, its settings and credentials.

enroot writes everything to stderr and exits with 1 for nearly every failure, or with the code of curl, tar or
mksquashfs. So only its words tell what happened (enroot_faults.yaml).
"""

from __future__ import annotations

import contextlib
import os
import re
import string
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from launcher.core.errors import ImageError
from launcher.core.process import NOT_EXECUTABLE, NOT_FOUND, CommandRunner, Completed
from launcher.core.retry import telling
from launcher.image.reference import HUB, Fault, PlannedImage, Reference, fault_table
from launcher.image.squash import temporary_beside

ATTEMPTS = 4
NODE_PATIENCE = 1800
"""Seconds that the job of an import may wait for a node. Slurm itself ends it then, whatever became of us."""

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_OWN = "LAUNCHER_ENROOT_DIRECTORY"
_PREFIX = "launcher-enroot-"
_ON_NODE = (
    *("sh", "-c"),
    f'cd "${{{_OWN}%/*}}" && find . -maxdepth 1 -user "$(id -un)" -name "{_PREFIX}*" -mtime +0 -exec rm -rf "{{}}" +\n'
    f'mkdir -p -- "${{{_OWN}:?}}/temp" && enroot version && "$@"\n'
    f'code=$?; rm -rf -- "${{{_OWN}:?}}"; exit "$code"',
    "sh",
)
"""On the node: enroot's layers are of no use there afterwards, and nobody else would remove them. srun ends a step by
SIGKILL, so what an ended one left is removed a day later, by the next import there; none lasts so long."""

_FAULTS = "enroot_faults.yaml"
_QUERY_TIMEOUT = 60.0
_WRONG_ARCHITECTURE = "Image architecture doesn't match"
_NODE_FAILED = re.compile(r"^srun: error: Node failure on \S+", re.MULTILINE)
"""srun's exit code is 0 then (Slurm 22.05)."""

_UNSAID = re.compile(r"Authenticating with user: .*(\n\[INFO\] Using credentials.*)?\Z")
"""The last that enroot 4.1.2 says when Basic authentication fails: it throws away what curl says, and ends with 1."""

_LINE = re.compile(r"\s*machine\s+(\S+)\s+login\s+(\S+)\s+password\s+(.*\S)\s*")
"""An account in the credentials file, which has lines as in netrc(5)."""

_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


class _MayPass(ImageError):
    """A failure of the network or the registry that another attempt may not meet."""


@dataclass(frozen=True)
class Enroot:
    """An enroot, started by ``run`` as ``command``, in ``environment``, which is the program's whole one.

    On a compute node it is a job of its own, which may wait ``node_patience`` seconds for a node; 0 means that it runs
    on this host. On a node it is only asked to import, since each question would be another job; its version is then
    what the output of the import begins with, if it does. ``log`` gets a line for each failed attempt.
    """

    environment: Mapping[str, str]
    run: CommandRunner
    log: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    command: tuple[str, ...] = ("enroot",)
    node_patience: float = 0.0

    @property
    def is_on_node(self) -> bool:
        return self.node_patience > 0

    def digest(self, uri: str) -> str | None:
        """The digest of the image's manifest, from the registry; None from an enroot before 4.1, or when it fails."""
        answer = self._query("digest", uri)
        return answer if answer and re.fullmatch(r"sha256:[0-9a-f]{64}", answer) else None

    def fetch(
        self, uri: str, squash: Path, timeout: float, files: contextlib.ExitStack, note: Callable[[str], None]
    ) -> tuple[Path, str | None]:
        """Import an image into a new file beside ``squash``, within ``timeout`` seconds for all attempts together.

        Returns the file, which is there until ``files`` is closed, and enroot's version if it says it. ``note`` is told
        its warnings.

        After a rate limit, a 5xx, a failure of the network or ESTALE it is tried again, with growing pauses, up to four
        times in all. Raises ImageError.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        version = self._query("version")
        attempts = Retrying(
            retry=retry_if_exception_type(_MayPass),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=5, max=60) + wait_random(0, 3),
            sleep=self.sleep,
            before_sleep=telling(self.log, f" of {ATTEMPTS}"),
            reraise=True,
        )
        timeout += self.node_patience
        output, done = attempts(self._attempt, uri, squash, timeout, time.monotonic() + timeout, files)
        for line in done.stderr.splitlines():
            if _WRONG_ARCHITECTURE in line:
                note(line)
        said = re.match(r"\d+\.\d+(\.\d+)?\S*", done.stdout)
        return output, version or (said.group() if said else None)

    def _attempt(
        self, uri: str, squash: Path, timeout: float, deadline: float, files: contextlib.ExitStack
    ) -> tuple[Path, Completed]:
        files.close()  # what the attempt before left
        # Each has a name of its own: on a node that Slurm has given up, the enroot of the last one may still write.
        output = files.enter_context(temporary_beside(squash))
        argv = [*self.command, "import", "-o", str(output), uri]
        done = self.run(argv, timeout=max(1.0, deadline - time.monotonic()), env=self.environment)
        if done.timed_out:
            hint = "give it more time (images.import-timeout in the runner file), or find out what is slow:\n"
            raise ImageError(f"enroot import of {uri} did not end within {timeout:g} s", hint=hint + done.tail())
        if not done.ok or _NODE_FAILED.search(done.stderr):
            fault = with_account(diagnose(done), Reference.parse(uri), self.environment)
            message = f"enroot import of {uri} failed: {fault.what}"
            raise (_MayPass if fault.may_pass else ImageError)(message, hint=fault.hint)
        return output, done

    def _query(self, *words: str) -> str | None:
        """What enroot answers a question; None when it fails, and on a node."""
        if self.is_on_node:
            return None
        done = self.run([*self.command, *words], timeout=_QUERY_TIMEOUT, env=self.environment)
        return done.stdout.strip() or None if done.ok else None


@dataclass(frozen=True)
class ImportPolicy:
    """What decides where and how images are imported.

    ``scheduler`` is the kind of scheduler; with ``partition`` and ``account`` it gives jobs to imports on compute
    nodes, which are called ``job_name`` and carry ``token`` in their comment. ``registries`` are the hosts whose
    registries may be asked before an import, None for all. With ``make_directory`` the image directory is made if it is
    missing; it should be missing only where the directory is our own.
    """

    scheduler: Literal["slurm", "local"]
    partition: str | None
    account: str | None
    job_name: str
    token: str
    registries: frozenset[str] | None = None
    make_directory: bool = False

    def is_on_node(self, image: PlannedImage) -> bool:
        """Whether enroot runs on a compute node, in a job of its own."""
        return image.import_on == "compute" and self.scheduler == "slurm"

    def may_ask(self, uri: str) -> bool:
        """Whether the registry of an image may be asked."""
        return self.registries is None or Reference.parse(uri).registry.partition(":")[0] in self.registries

    def node_command(self, image: PlannedImage) -> tuple[str, ...]:
        """`enroot` as a job of one task without GPUs, on a node of the architecture that the image is for."""
        minutes = max(1, image.import_timeout // 60)
        options = {
            "partition": image.import_partition or self.partition,
            "account": self.account,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": image.processors,
            "time": minutes,
            # In place of --immediate, which a Slurm with SchedulerParameters=defer always refuses.
            "deadline": f"now+{60 * minutes + NODE_PATIENCE}",
            "job-name": self.job_name,
            "comment": import_comment(self.token),
        }
        srun = ("srun", *(f"--{name}={value}" for name, value in options.items() if value), *image.import_options)
        return (sys.executable, "-S", "-E", str(_DIE_WITH_PARENT), str(os.getpid()), *srun, *_ON_NODE, "enroot")

    def place(self, enroot: Enroot, image: PlannedImage) -> Enroot:
        """The enroot that imports an image: the given one on this host, or the same as a job of its own."""
        if not self.is_on_node(image):
            return enroot
        own = f"{image.temporary or '/tmp'}/{_PREFIX}{self.token}"
        environment = {**enroot.environment, _OWN: own, **own_directories(own)}  # it makes all, but the first two
        return replace(enroot, environment=environment, command=self.node_command(image), node_patience=NODE_PATIENCE)


def import_comment(token: str) -> str:
    """The comment of the job that imports an image for a run: not the run's own, whose job it is not."""
    return f"{token}-import"


def own_directories(place: Path | str) -> dict[str, str]:
    """The settings by which an enroot has all its temporaries below ``place``, and says in English what we read."""
    paths = {f"ENROOT_{name}_PATH": f"{place}/{name.lower()}" for name in ("TEMP", "CACHE", "DATA", "RUNTIME")}
    return {**paths, "TMPDIR": f"{place}/temp", "LC_ALL": "C"}  # GNU parallel, which enroot runs, buffers in TMPDIR


def diagnose(done: Completed) -> Fault:
    """Why this `enroot import` failed. A failure that is not known is not tried again."""
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("[INFO]")]
    text = "\n".join(said)
    missing = re.match(r"(enroot|srun|\S*/enroot): ", text) or re.match(re.escape(f"{done.argv[0]}: "), text)
    if done.returncode in (NOT_FOUND, NOT_EXECUTABLE) and missing:
        name = "srun" if missing.group().startswith("srun") else "enroot"
        return Fault(f"{name} is not there", "install it on this host, or import elsewhere (images.import-on)")
    if not said and _UNSAID.search(done.stderr.rstrip()):
        return Fault("401 or 404, enroot does not say which", "correct the image")
    table = fault_table(_FAULTS)
    faults = [fault for words, fault in table["srun"].items() if re.search(words, text, re.MULTILINE)][:1]
    if not faults:
        faults = [fault_of_status(int(code)) for code in re.findall(r"returned error(?: code)?: (\d{3})\b", text)]
        faults += [fault for words, fault in table["words"].items() if re.search(words, text)]
        faults.sort(key=lambda fault: fault.may_pass)  # what lasts comes first
    fault = faults[0] if faults else Fault(f"exit {done.returncode}", "read what it said")
    return replace(fault, what=fault.what + "".join(f"\n  {line}" for line in said[-4:]))


def fault_of_status(code: int) -> Fault:
    """What an HTTP status of a registry means for an import."""
    fault = next(fault for pattern, fault in fault_table(_FAULTS)["status"].items() if re.fullmatch(pattern, str(code)))
    return replace(fault, what=fault.what.format(code=code))


@dataclass(frozen=True)
class Credentials:
    """An account of a registry, and the line that has it (``file:line``). ``password`` is never shown."""

    login: str
    password: str = field(repr=False)
    place: str = ""


class MadeByCommand(ImageError):
    """The password is the output of a command (``$(…)``), which enroot runs in a shell and we do not."""


def setting(name: str, environ: Mapping[str, str]) -> str | None:
    """A setting of enroot: the environment's, else the first in its configuration files (enroot 4.1.2, enroot.in).

    The files hold shell text. ``$HOME`` and other variables are filled in; commands are not run and stay as text.
    """
    if environ.get(name):
        return environ[name]
    place = Path(environ.get("ENROOT_SYSCONF_PATH") or "/etc/enroot")
    for path in (place / "enroot.conf", *sorted(place.glob("enroot.conf.d/*.conf"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := re.search(rf"^{name}[ \t=]+(.+?)[ \t]*$", path.read_text(), re.MULTILINE):
                return string.Template(found[1].strip("\"'")).safe_substitute(environ)
    return None


def allows_http(environ: Mapping[str, str]) -> bool:
    """Whether enroot asks registries without TLS: ENROOT_ALLOW_HTTP is set to anything but a word for no."""
    return not re.fullmatch(r"no?|N[oO]?|[fF](alse)?|FALSE", setting("ENROOT_ALLOW_HTTP", environ) or "no")


def credentials_file(environ: Mapping[str, str]) -> Path:
    """Where enroot looks: below ENROOT_CONFIG_PATH, or what it defaults to."""
    if own := setting("ENROOT_CONFIG_PATH", environ):
        return Path(own, ".credentials")
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or Path.home()}/.config"
    return Path(config, "enroot", ".credentials")


def credentials(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The first account of ``host`` (``:port`` does not count, as in enroot); None when the file has none.

    Raises MadeByCommand.
    """
    found = _account(host, environ)
    # As enroot's common.sh has it, only a password that begins with $ goes through a shell.
    if found is None or not found.password.startswith("$"):
        return found
    if variable := _VARIABLE.fullmatch(found.password):
        return replace(found, password=environ.get(variable[1] or variable[2], ""))
    raise MadeByCommand(f"the password for {host} is made by a command, which only enroot runs", where=found.place)


def with_account(fault: Fault, reference: Reference, environ: Mapping[str, str], realm: str = "") -> Fault:
    """The fault; of an account that the registry refused with the line of the file to correct, or to add.

    ``realm`` is the host that gives the registry's tokens, if that is known: enroot takes the line of that host.
    """
    if not fault.what.startswith(("401", "403")):
        return fault
    realm = realm or ("auth.docker.io" if reference.registry == HUB else reference.registry)
    line = f"machine {realm.partition(':')[0]} login … password …"
    hint = f"add the line `{line}` to {credentials_file(environ)}, which has none for it"
    for host in (reference.host, realm):  # the last one found counts
        if found := _account(host, environ):
            hint = f"the line of machine {host.partition(':')[0]}, login {found.login} in {found.place}"
    return replace(fault, hint=f"{fault.hint}, or {hint}")


def _account(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The first account of a host, with the password as it is written."""
    path = credentials_file(environ)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = _LINE.fullmatch(line)
            if found is not None and found[1] == host.partition(":")[0]:
                return Credentials(found[2], found[3], f"{path}:{number}")
    return None
