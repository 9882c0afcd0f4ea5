"""enroot: where and how it imports an image, what the messages of a failure mean, its settings and credentials.

enroot writes everything to stderr and exits with 1 for nearly every failure, or with the code of curl, tar or
mksquashfs. So only its words tell what happened (enroot_faults.yaml).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from launcher.core.errors import ImageError
from launcher.core.process import NOT_EXECUTABLE, NOT_FOUND, CommandRunner, Completed
from launcher.core.publish import storing
from launcher.core.waiting import begin, telling
from launcher.image.reference import HUB, Fault, PlannedImage, Reference, fault_table
from launcher.image.squash import temporary_beside

MAX_ATTEMPTS = 4
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

FAULTS = "enroot_faults.yaml"
_LONGEST_SCRIPT = 1 << 20
_NODE_FAILED = re.compile(r"^srun: error: Node failure on \S+", re.MULTILINE)
"""srun's exit code is 0 then (Slurm 22.05)."""

_UNSAID = re.compile(r"Authenticating with user: .*(\n\[INFO\] Using credentials.*)?\Z")
"""The last that enroot 4.1.2 says when Basic authentication fails: it throws away what curl says, and ends with 1."""

_WORD = re.compile(r'"((?:\\.|[^"\\])*)"|(\S+)')
"""A word of the credentials file, as curl reads it."""


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
        its warnings. After a rate limit, a 5xx, a failure of the network or ESTALE it is tried again, with growing
        pauses, up to four times in all. Raises ImageError.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        version = begin(lambda: self._query("version"))  # it takes 30 ms, which the import need not wait for
        attempts = Retrying(
            retry=retry_if_exception_type(_MayPass),
            stop=stop_after_attempt(MAX_ATTEMPTS),
            wait=wait_exponential(multiplier=5, max=60) + wait_random(0, 3),
            sleep=self.sleep,
            before_sleep=telling(self.log, f" of {MAX_ATTEMPTS}"),
            reraise=True,
        )
        timeout += self.node_patience
        deadline = time.monotonic() + timeout
        try:
            for attempt in attempts:
                with attempt:
                    files.close()  # what the attempt before left
                    # Each has a name of its own: on a node that Slurm has given up, the last one may still write.
                    output = files.enter_context(temporary_beside(squash))
                    argv = [*self.command, "import", "-o", str(output), uri]
                    with contextlib.nullcontext() if self.is_on_node else storing(output):
                        done = self.run(argv, timeout=max(1.0, deadline - time.monotonic()), env=self.environment)
                    self._judge(done, uri, timeout)
        finally:
            told = version.result()
        for line in done.stderr.splitlines():
            if "Image architecture doesn't match" in line:
                note(line)
        said = re.match(r"\d+\.\d+(\.\d+)?\S*", done.stdout)
        return output, told or (said.group() if said else None)

    def _judge(self, done: Completed, uri: str, timeout: float) -> None:
        """Raise ImageError for an import that failed: _MayPass when another attempt may do better."""
        if done.timed_out:
            hint = "give it more time (images.import-timeout in the runner file), or find out what is slow:\n"
            raise ImageError(f"enroot import of {uri} did not end within {timeout:g} s", hint=hint + done.tail())
        if not done.ok or _NODE_FAILED.search(done.stderr):
            fault = with_account_hint(diagnose(done), Reference.parse(uri), self.environment)
            message = f"enroot import of {uri} failed: {fault.what}"
            raise (_MayPass if fault.may_pass else ImageError)(message, hint=fault.hint)

    def _query(self, *words: str) -> str | None:
        """What enroot answers a question; None when it fails, and on a node."""
        if self.is_on_node:
            return None
        done = self.run([*self.command, *words], timeout=60.0, env=self.environment)
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
        environment = {**enroot.environment, _OWN: own, **directory_variables(own)}  # it makes all, but the first two
        return replace(enroot, environment=environment, command=self.node_command(image), node_patience=NODE_PATIENCE)


def import_comment(token: str) -> str:
    """The comment of the job that imports an image for a run: not the run's own, whose job it is not."""
    return f"{token}-import"


def directory_variables(place: Path | str) -> dict[str, str]:
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
    table = fault_table(FAULTS)
    known = [(found, fault) for words, fault in table["srun"].items() if (found := re.search(words, text, re.M))][:1]
    if not known:
        answers = re.finditer(r"returned error(?: code)?: (\d{3})\b", text)
        known = [(answer, fault_of_status(int(answer[1]))) for answer in answers]
        known += [(found, fault) for words, fault in table["words"].items() if (found := re.search(words, text))]
        known.sort(key=lambda one: one[1].may_pass)  # what lasts comes first
    fault, shown = Fault(f"exit {done.returncode}", "read what it said"), done.tail(4, said).splitlines()
    if known:  # the line that the fault was read from is shown, wherever it stands
        found, fault = known[0]
        line = text.split("\n")[text[: found.start()].count("\n")]
        shown = [line, *(other for other in said[-4:] if other != line)]
    return replace(fault, what=fault.what + "".join(f"\n  {line}" for line in shown))


def fault_of_status(code: int) -> Fault:
    """What an HTTP status of a registry means for an import."""
    fault = next(fault for pattern, fault in fault_table(FAULTS)["status"].items() if re.fullmatch(pattern, str(code)))
    return replace(fault, what=fault.what.format(code=code))


@dataclass(frozen=True)
class Credentials:
    """An account of a registry, and the line that has it (``file:line``). ``password`` is never shown."""

    login: str
    password: str = field(repr=False)
    place: str = ""


class PasswordFromCommand(ImageError):
    """The password is the output of a command (``$(…)``), which enroot runs in a shell and we do not."""


def configuration_directory(environ: Mapping[str, str]) -> Path:
    """The directory of enroot's own configuration: enroot is a bash script, in which its prefix is written.

    Where no enroot can be read (it is on the nodes only, or is a program of another kind): ENROOT_SYSCONF_PATH, what
    lies beside the program, or /etc/enroot.
    """
    program = shutil.which("enroot", path=environ.get("PATH") or "")
    for _ in range(3):  # a wrapper leads to the program
        text = ""
        with contextlib.suppress(OSError, TypeError):
            text = Path(program or "").read_bytes()[:_LONGEST_SCRIPT].decode(errors="replace")
        if found := re.search(r'^\s*config::init\s+"?(/[^"\n]*)/enroot\.conf', text, re.MULTILINE):
            return Path(found[1])
        if not (found := re.search(r'^\s*exec\s+"?(/[^"\s]*/enroot)\b', text, re.MULTILINE)):
            break
        program = found[1]
    beside = Path(program or "/usr/bin/enroot").resolve().parent.parent / "etc/enroot"
    return Path(environ.get("ENROOT_SYSCONF_PATH") or (beside if beside.is_dir() else "/etc/enroot"))


def setting(name: str, environ: Mapping[str, str]) -> str | None:
    """A setting of enroot: the environment's, else the first in its configuration files (enroot 4.1.2, enroot.in).

    The files hold shell text. ``$HOME`` and other variables are filled in; commands are not run and stay as text.
    """
    if environ.get(name):
        return environ[name]
    place = configuration_directory(environ)
    for path in (place / "enroot.conf", *sorted(place.glob("enroot.conf.d/*.conf"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for said in re.findall(rf"^[ \t]*{name}[ \t=]+(.+?)[ \t]*$", path.read_text(), re.MULTILINE):
                value = said
                with contextlib.suppress(ValueError):  # a quote that is not closed
                    value = " ".join(shlex.split(said, comments=True))
                home = environ.get("HOME") or str(Path.home())
                value = re.sub(r"^~(?=/|$)", home.replace("\\", r"\\"), value)
                if value := string.Template(value).safe_substitute({"HOME": home, **environ}):
                    return value
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
    """The first account of ``host`` (``:port`` does not count, as in curl); None when the file has none.

    Raises MadeByCommand.
    """
    found = _account(host, environ)
    # As enroot's common.sh has it, only a password that begins with $ goes through a shell.
    if found is None or not found.password.startswith("$"):
        return found
    if variable := re.fullmatch(r"\$(\w+)|\$\{(\w+)\}", found.password):
        return replace(found, password=environ.get(variable[1] or variable[2], ""))
    raise PasswordFromCommand(
        f"the password for {host} is made by a command, which only enroot runs", where=found.place
    )


def with_account_hint(fault: Fault, reference: Reference, environ: Mapping[str, str], realm: str = "") -> Fault:
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


def has_login_line(host: str, environ: Mapping[str, str]) -> bool:
    """Whether the file has a line ``machine HOST login …``: without one enroot asks that registry as nobody."""
    line = rf"^\s*machine\s+{re.escape(host.partition(':')[0])}\s+login\s+\S"
    return re.search(line, _file_of_credentials(environ), re.MULTILINE) is not None


def why_enroot_differs(host: str, environ: Mapping[str, str]) -> str | None:
    """Why enroot may ask a registry in another way than we do; None when nothing is known of that."""
    config = setting("ENROOT_CONFIG_PATH", environ) or ""
    if re.search(r"[$`]", config):
        return f"where its credentials are is made by a command: {config}"
    line = rf"^\s+machine\s+{re.escape(host.partition(':')[0])}\s"
    if re.search(line, _file_of_credentials(environ), re.MULTILINE):
        return "enroot 3 and 4 read a line that begins with a space in two ways"
    home = environ.get("CURL_HOME") or environ.get("HOME") or "/nonexistent"
    if (own := Path(home, ".curlrc")).is_file():
        return f"curl has settings of its own in {own}"
    return None


def _file_of_credentials(environ: Mapping[str, str]) -> str:
    """The text of enroot's file; "" when it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return credentials_file(environ).read_text()
    return ""


def _account(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The first account of a host, with the password as it is written: netrc as curl reads it (lib/netrc.c)."""
    name, state, is_ours, said = host.partition(":")[0].lower(), "", False, {"login": "", "password": ""}
    for number, word in _netrc(_file_of_credentials(environ)):
        key = word.lower()
        if state == "machine":
            is_ours, state, said = key == name, "", dict.fromkeys(said, "")
        elif state:
            said[state], state = word, ""
            if all(said.values()):
                return Credentials(**said, place=f"{credentials_file(environ)}:{number}")
        elif key == "default":
            is_ours, said = True, dict.fromkeys(said, "")
        elif key == "machine" or (is_ours and key in said):
            state = key
    return None


def _netrc(text: str) -> Iterator[tuple[int, str]]:
    """The words of a credentials file with their lines. A comment ends a line, an empty line ends a macro."""
    is_macro = False
    for number, line in enumerate(text.splitlines(), 1):
        is_macro = is_macro and bool(line.strip())
        fields = line.split(None, 5)
        is_shell = len(fields) == 6 and fields[5].startswith("$")  # by enroot, before curl sees it
        for found in () if is_macro else _WORD.finditer(" ".join(fields[:5]) if is_shell else line):
            if found[0].startswith("#"):
                break
            if found[0] == "macdef":
                is_macro = True
                break
            yield number, re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]
        else:
            if is_shell and not is_macro:
                yield number, re.sub(r"\s+#.*|\s+$", "", fields[5])
