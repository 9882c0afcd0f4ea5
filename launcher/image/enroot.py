"""enroot: where and how it imports an image, what its error messages mean, its settings and its credentials.

enroot writes everything to stderr and exits with 1 for nearly every failure, or with the code of curl, tar or
mksquashfs. So only its messages tell what happened (enroot_faults.yaml).
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
from launcher.core.publish import sync_meanwhile
from launcher.core.waiting import log_retries, start_in_thread
from launcher.image.reference import HUB, Fault, PlannedImage, Reference, fault_table
from launcher.image.squash import temporary_beside

MAX_ATTEMPTS = 4
NODE_PATIENCE = 1800
"""Seconds that the job of an import may wait for a node. Slurm itself ends it then, also when we are gone."""

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_VARIABLE = "LAUNCHER_ENROOT_DIRECTORY"
_PREFIX = "launcher-enroot-"
_NODE_SCRIPT = (
    *("sh", "-c"),
    f'cd "${{{_VARIABLE}%/*}}" &&'
    f' find . -maxdepth 1 -user "$(id -un)" -name "{_PREFIX}*" -mtime +0 -exec rm -rf "{{}}" +\n'
    f'mkdir -p -- "${{{_VARIABLE}:?}}/temp" && enroot version && "$@"\n'
    f'code=$?; rm -rf -- "${{{_VARIABLE}:?}}"; exit "$code"',
    "sh",
)
"""Runs enroot on a node and removes its layers afterwards, since nobody else would. srun ends a step by SIGKILL, so the
next import there removes what earlier ones left, when it is more than a day old; no import takes that long."""

FAULTS = "enroot_faults.yaml"
_SCRIPT_LIMIT = 1 << 20
_NODE_FAILED = re.compile(r"^srun: error: Node failure on \S+", re.MULTILINE)
"""srun exits with 0 after this message (Slurm 22.05)."""

_LOGIN_REFUSED = re.compile(r"Authenticating with user: .*(\n\[INFO\] Using credentials.*)?\Z")
"""The last output of enroot 4.1.2 when Basic authentication fails: it discards curl's message, and exits with 1."""

_NETRC_WORD = re.compile(r'"((?:\\.|[^"\\])*)"|(\S+)')
"""A word of the credentials file, as curl reads it."""


class _RetryableError(ImageError):
    """A failure of the network or the registry, after which another attempt may succeed."""


@dataclass(frozen=True)
class Enroot:
    """An enroot that ``run`` starts as ``command``, in ``environment``, which is the program's whole environment.

    On a compute node it runs in a job of its own, which may wait ``node_patience`` seconds for a node; 0 means that it
    runs on this host. On a node it only imports, because each query would be another job; the output of the import
    begins with its version. ``log`` gets a line for each failed attempt.
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
        """The digest of the image's manifest by the registry; None when enroot is older than 4.1, or fails."""
        answer = self._query("digest", uri)
        return answer if answer and re.fullmatch(r"sha256:[0-9a-f]{64}", answer) else None

    def import_image(
        self, uri: str, squash: Path, timeout: float, files: contextlib.ExitStack, note: Callable[[str], None]
    ) -> tuple[Path, str | None]:
        """Import an image into a new file beside ``squash``, within ``timeout`` seconds for all attempts together.

        Returns the file, which exists until ``files`` is closed, and enroot's version if it is known. ``note`` gets its
        warnings. After a rate limit, a 5xx, a failure of the network or ESTALE the import is repeated, with growing
        pauses, up to `MAX_ATTEMPTS` times in all. Raises ImageError.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        # It takes 30 ms, for which the import need not wait.
        version_query = start_in_thread(lambda: self._query("version"))
        attempts = Retrying(
            retry=retry_if_exception_type(_RetryableError),
            stop=stop_after_attempt(MAX_ATTEMPTS),
            wait=wait_exponential(multiplier=5, max=60) + wait_random(0, 3),
            sleep=self.sleep,
            before_sleep=log_retries(self.log, f" of {MAX_ATTEMPTS}"),
            reraise=True,
        )
        timeout += self.node_patience
        deadline = time.monotonic() + timeout
        try:
            for attempt in attempts:
                with attempt:
                    files.close()  # removes the file of the previous attempt
                    # Each attempt has its own file: on a node that Slurm has given up, the last one may still write.
                    output = files.enter_context(temporary_beside(squash))
                    argv = [*self.command, "import", "-o", str(output), uri]
                    with contextlib.nullcontext() if self.is_on_node else sync_meanwhile(output):
                        done = self.run(argv, timeout=max(1.0, deadline - time.monotonic()), env=self.environment)
                    self._raise_failure(done, uri, timeout)
        finally:
            version = version_query.result()
        for line in done.stderr.splitlines():
            if "Image architecture doesn't match" in line:
                note(line)
        printed = re.match(r"\d+\.\d+(\.\d+)?\S*", done.stdout)
        return output, version or (printed.group() if printed else None)

    def _raise_failure(self, done: Completed, uri: str, timeout: float) -> None:
        """Raise ImageError for an import that failed, _RetryableError when another attempt may succeed."""
        if done.timed_out:
            hint = "give it more time (images.import-timeout in the runner file), or find out what is slow:\n"
            raise ImageError(f"enroot import of {uri} did not end within {timeout:g} s", hint=hint + done.tail())
        if not done.ok or _NODE_FAILED.search(done.stderr):
            fault = with_account_hint(diagnose(done), Reference.parse(uri), self.environment)
            message = f"enroot import of {uri} failed: {fault.what}"
            raise (_RetryableError if fault.may_pass else ImageError)(message, hint=fault.hint)

    def _query(self, *words: str) -> str | None:
        """What an enroot command prints; None when it fails, and on a node."""
        if self.is_on_node:
            return None
        done = self.run([*self.command, *words], timeout=60.0, env=self.environment)
        return done.stdout.strip() or None if done.ok else None


@dataclass(frozen=True)
class ImportPolicy:
    """Where and how images are imported.

    Imports on compute nodes are jobs of ``scheduler`` in ``partition`` and ``account``, with the name ``job_name`` and
    ``token`` in their comment. ``registries`` are the hosts whose registries may be queried before an import, None for
    all. With ``make_directory`` a missing image directory is created, which is right only for a directory of our own.
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

    def may_query_registry(self, uri: str) -> bool:
        """Whether the registry of an image may be queried before an import."""
        return self.registries is None or Reference.parse(uri).registry.partition(":")[0] in self.registries

    def node_command(self, image: PlannedImage) -> tuple[str, ...]:
        """`enroot` as a job of one task without GPUs, on a node of the image's architecture."""
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
        return (sys.executable, "-S", "-E", str(_DIE_WITH_PARENT), str(os.getpid()), *srun, *_NODE_SCRIPT, "enroot")

    def enroot_for(self, image: PlannedImage, enroot: Enroot) -> Enroot:
        """The enroot that imports an image: ``enroot`` itself on this host, or the same in a job of its own."""
        if not self.is_on_node(image):
            return enroot
        directory = f"{image.temporary or '/tmp'}/{_PREFIX}{self.token}"
        environment = {**enroot.environment, _VARIABLE: directory, **directory_variables(directory)}
        return replace(enroot, environment=environment, command=self.node_command(image), node_patience=NODE_PATIENCE)


def import_comment(token: str) -> str:
    """The comment of the job that imports an image for a run. It differs from the comment of the run's own job."""
    return f"{token}-import"


def directory_variables(directory: Path | str) -> dict[str, str]:
    """The variables that put all temporaries of an enroot below ``directory``, and its messages into English."""
    paths = {f"ENROOT_{name}_PATH": f"{directory}/{name.lower()}" for name in ("TEMP", "CACHE", "DATA", "RUNTIME")}
    return {**paths, "TMPDIR": f"{directory}/temp", "LC_ALL": "C"}  # GNU parallel, which enroot runs, buffers in TMPDIR


def diagnose(done: Completed) -> Fault:
    """Why this `enroot import` failed. A failure that is not known is not retried."""
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("[INFO]")]
    text = "\n".join(lines)
    missing = re.match(r"(enroot|srun|\S*/enroot): ", text) or re.match(re.escape(f"{done.argv[0]}: "), text)
    if done.returncode in (NOT_FOUND, NOT_EXECUTABLE) and missing:
        name = "srun" if missing.group().startswith("srun") else "enroot"
        return Fault(f"{name} is not there", "install it on this host, or import elsewhere (images.import-on)")
    if not lines and _LOGIN_REFUSED.search(done.stderr.rstrip()):
        return Fault("401 or 404, enroot does not say which", "correct the image")
    table = fault_table(FAULTS)
    known = [(match, fault) for words, fault in table["srun"].items() if (match := re.search(words, text, re.M))][:1]
    if not known:
        statuses = re.finditer(r"returned error(?: code)?: (\d{3})\b", text)
        known = [(status, fault_of_status(int(status[1]))) for status in statuses]
        known += [(match, fault) for words, fault in table["words"].items() if (match := re.search(words, text))]
        known.sort(key=lambda pair: pair[1].may_pass)  # lasting faults come first
    fault, shown = Fault(f"exit {done.returncode}", "read what it said"), done.tail(4, lines).splitlines()
    if known:  # show the line that names the fault, wherever it stands
        match, fault = known[0]
        line = text.split("\n")[text[: match.start()].count("\n")]
        shown = [line, *(other for other in lines[-4:] if other != line)]
    return replace(fault, what=fault.what + "".join(f"\n  {line}" for line in shown))


def fault_of_status(code: int) -> Fault:
    """What an HTTP status of a registry means for an import."""
    fault = next(fault for pattern, fault in fault_table(FAULTS)["status"].items() if re.fullmatch(pattern, str(code)))
    return replace(fault, what=fault.what.format(code=code))


@dataclass(frozen=True)
class Credentials:
    """An account of a registry; ``place`` is the line that has it (``file:line``). ``password`` is never shown."""

    login: str
    password: str = field(repr=False)
    place: str = ""


class PasswordFromCommand(ImageError):
    """The password is the output of a command (``$(…)``), which enroot runs in a shell and we do not."""


def configuration_directory(environ: Mapping[str, str]) -> Path:
    """The directory of enroot's configuration, which the bash script `enroot` names.

    Where that cannot be read (enroot is on the nodes only, or is another kind of program) it is ENROOT_SYSCONF_PATH,
    the directory beside the program, or /etc/enroot.
    """
    program = shutil.which("enroot", path=environ.get("PATH") or "")
    for _ in range(3):  # wrappers lead to the program
        text = ""
        with contextlib.suppress(OSError, TypeError):
            text = Path(program or "").read_bytes()[:_SCRIPT_LIMIT].decode(errors="replace")
        if match := re.search(r'^\s*config::init\s+"?(/[^"\n]*)/enroot\.conf', text, re.MULTILINE):
            return Path(match[1])
        if not (match := re.search(r'^\s*exec\s+"?(/[^"\s]*/enroot)\b', text, re.MULTILINE)):
            break
        program = match[1]
    beside = Path(program or "/usr/bin/enroot").resolve().parent.parent / "etc/enroot"
    return Path(environ.get("ENROOT_SYSCONF_PATH") or (beside if beside.is_dir() else "/etc/enroot"))


def setting(name: str, environ: Mapping[str, str]) -> str | None:
    """A setting of enroot: from the environment, else the first in its configuration files (enroot 4.1.2, enroot.in).

    The files hold shell text. Variables such as ``$HOME`` are filled in; commands are not run and stay as text.
    """
    if environ.get(name):
        return environ[name]
    directory = configuration_directory(environ)
    for path in (directory / "enroot.conf", *sorted(directory.glob("enroot.conf.d/*.conf"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for text in re.findall(rf"^[ \t]*{name}[ \t=]+(.+?)[ \t]*$", path.read_text(), re.MULTILINE):
                value = text
                with contextlib.suppress(ValueError):  # a quote that is not closed
                    value = " ".join(shlex.split(text, comments=True))
                home = environ.get("HOME") or str(Path.home())
                value = re.sub(r"^~(?=/|$)", home.replace("\\", r"\\"), value)
                if value := string.Template(value).safe_substitute({"HOME": home, **environ}):
                    return value
    return None


def allows_http(environ: Mapping[str, str]) -> bool:
    """Whether enroot may talk to registries without TLS: ENROOT_ALLOW_HTTP is set to anything but a word for no."""
    return not re.fullmatch(r"no?|N[oO]?|[fF](alse)?|FALSE", setting("ENROOT_ALLOW_HTTP", environ) or "no")


def credentials_file(environ: Mapping[str, str]) -> Path:
    """The file in which enroot looks for accounts: below ENROOT_CONFIG_PATH, or its default."""
    if own := setting("ENROOT_CONFIG_PATH", environ):
        return Path(own, ".credentials")
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or Path.home()}/.config"
    return Path(config, "enroot", ".credentials")


def credentials(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The first account of ``host`` (``:port`` does not count, as in curl); None when the file has none.

    Raises PasswordFromCommand.
    """
    account = _find_account(host, environ)
    # As enroot's common.sh has it, only a password that begins with $ goes through a shell.
    if account is None or not account.password.startswith("$"):
        return account
    if variable := re.fullmatch(r"\$(\w+)|\$\{(\w+)\}", account.password):
        return replace(account, password=environ.get(variable[1] or variable[2], ""))
    message = f"the password for {host} is made by a command, which only enroot runs"
    raise PasswordFromCommand(message, where=account.place)


def with_account_hint(fault: Fault, reference: Reference, environ: Mapping[str, str], realm: str = "") -> Fault:
    """The fault; when the registry refused the account (401, 403), the hint names the line to correct or to add.

    ``realm`` is the host that gives the registry's tokens, if it is known: enroot takes the line of that host.
    """
    if not fault.what.startswith(("401", "403")):
        return fault
    realm = realm or ("auth.docker.io" if reference.registry == HUB else reference.registry)
    line = f"machine {realm.partition(':')[0]} login … password …"
    hint = f"add the line `{line}` to {credentials_file(environ)}, which has none for it"
    for host in (reference.host, realm):  # the account of the realm counts if both have one
        if account := _find_account(host, environ):
            hint = f"the line of machine {host.partition(':')[0]}, login {account.login} in {account.place}"
    return replace(fault, hint=f"{fault.hint}, or {hint}")


def has_login_line(host: str, environ: Mapping[str, str]) -> bool:
    """Whether the file has a line ``machine HOST login …``; without one enroot sends no account to that registry."""
    line = rf"^\s*machine\s+{re.escape(host.partition(':')[0])}\s+login\s+\S"
    return re.search(line, _credentials_text(environ), re.MULTILINE) is not None


def why_enroot_differs(host: str, environ: Mapping[str, str]) -> str | None:
    """Why enroot may query a registry in another way than we do; None when no reason is known."""
    config = setting("ENROOT_CONFIG_PATH", environ) or ""
    if re.search(r"[$`]", config):
        return f"the path of its credentials is made by a command: {config}"
    line = rf"^\s+machine\s+{re.escape(host.partition(':')[0])}\s"
    if re.search(line, _credentials_text(environ), re.MULTILINE):
        return "enroot 3 and 4 read a line that begins with a space in two ways"
    home = environ.get("CURL_HOME") or environ.get("HOME") or "/nonexistent"
    if (curlrc := Path(home, ".curlrc")).is_file():
        return f"curl has settings of its own in {curlrc}"
    return None


def _credentials_text(environ: Mapping[str, str]) -> str:
    """The text of enroot's file; "" when it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return credentials_file(environ).read_text()
    return ""


def _find_account(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The first account of a host, with the password as it is written. Reads netrc as curl does (lib/netrc.c)."""
    name, state, is_ours, fields = host.partition(":")[0].lower(), "", False, {"login": "", "password": ""}
    for number, word in _netrc_words(_credentials_text(environ)):
        key = word.lower()
        if state == "machine":
            is_ours, state, fields = key == name, "", dict.fromkeys(fields, "")
        elif state:
            fields[state], state = word, ""
            if all(fields.values()):
                return Credentials(**fields, place=f"{credentials_file(environ)}:{number}")
        elif key == "default":
            is_ours, fields = True, dict.fromkeys(fields, "")
        elif key == "machine" or (is_ours and key in fields):
            state = key
    return None


def _netrc_words(text: str) -> Iterator[tuple[int, str]]:
    """The words of a credentials file with their line numbers. A comment ends a line, an empty line ends a macro."""
    is_macro = False
    for number, line in enumerate(text.splitlines(), 1):
        is_macro = is_macro and bool(line.strip())
        fields = line.split(None, 5)
        is_shell = len(fields) == 6 and fields[5].startswith("$")  # enroot expands it before curl sees the line
        for word in () if is_macro else _NETRC_WORD.finditer(" ".join(fields[:5]) if is_shell else line):
            if word[0].startswith("#"):
                break
            if word[0] == "macdef":
                is_macro = True
                break
            yield number, re.sub(r"\\(.)", r"\1", word[1]) if word[1] is not None else word[2]
        else:
            if is_shell and not is_macro:
                yield number, re.sub(r"\s+#.*|\s+$", "", fields[5])
