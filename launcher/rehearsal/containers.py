"""What the stand-ins for srun and docker share: a container of a rehearsal, which is a script that runs on this host.

The script has the environment that the container would have. Where a variable names the target of a mount, the script
gets the source in its place. Only scripts below a mounted directory are run.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from launcher.container.job_functions import CARRIED, READ_CARRIED, SET_CARRIED, SET_CARRIED_AT_LOGIN

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """The program prints the message and exits with ``code``."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations, and raises Refused with the code ``refusal``."""

    def __init__(self, *, prog: str, refusal: int = 1) -> None:
        super().__init__(prog=prog, allow_abbrev=False)
        self.refusal = refusal

    def options(self, *, values: Sequence[str] = (), lists: Sequence[str] = (), switches: Sequence[str] = ()) -> None:
        """Add long options: ``values`` take a value, ``lists`` one each time they are given, ``switches`` none."""
        forms: tuple[dict[str, Any], ...] = ({}, {"action": "append", "default": []}, {"action": "store_true"})
        for names, form in zip((values, lists, switches), forms, strict=True):
            for name in names:
                self.add_argument(f"--{name}", **form)

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{self.prog}: {message} (a rehearsal's stand-in)", self.refusal)


@dataclass(frozen=True)
class Container:
    """A container: ``mounts`` are target → source, ``programs`` is the directory of its image's programs. Without
    ``workdir`` the script's path is absolute."""

    mounts: Mapping[str, str]
    workdir: str | None
    environment: Mapping[str, str]
    programs: str

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command on this host. Raises Refused for anything but bash with one script of a mounted directory.

        The script has the environment of the step: variables that a real image would set are missing here.
        """
        sets_variables = command[1:2] == ["-c"] and len(command) == 4 and command[2] in _SETTERS
        bash_command = [command[0], command[3]] if sets_variables else command
        script = PurePosixPath(bash_command[1]) if len(bash_command) == 2 else None
        if script is None or command[0] not in ("bash", "/bin/bash"):
            raise Refused(f"a rehearsal runs `bash SCRIPT`, and nothing else in a container: {' '.join(command)}")
        path_on_host = self._on_host(str(script)) if script.is_absolute() else str(self.directory / script)
        resolved = Path(path_on_host or "/").resolve()
        roots = list(self.mounts.values()) if script.is_absolute() else [self.directory]
        if path_on_host is None or not any(resolved.is_relative_to(Path(root).resolve()) for root in roots):
            raise Refused(f"{script} is below no mounted directory of the container")
        if not resolved.is_file():
            raise Refused(f"bash: {script}: No such file or directory", 127)
        return ["bash", path_on_host if script.is_absolute() else str(script)]

    @property
    def directory(self) -> Path:
        """The working directory on the host. Raises Refused if it is not mounted."""
        if self.workdir is None:
            return Path("/")  # the default of images
        path = self._on_host(self.workdir)
        if path is None or not Path(path).is_dir():
            raise Refused(f"the working directory {self.workdir} is no mounted directory")
        return Path(path)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the script. PATH has the programs of the image, then those of this host.

        PORT is a free port, because several rehearsals share the network of this host, while real jobs have own nodes.
        """
        values = {name: self._on_host(value) or value for name, value in self.environment.items() if name != CARRIED}
        if "PORT" in values:
            with socket.create_server(("127.0.0.1", 0)) as free:
                values["PORT"] = str(free.getsockname()[1])
        return {**values, "PATH": f"{self.programs}:{SYSTEM_PATH}"}

    def _on_host(self, value: str) -> str | None:
        """What a path of the container is on the host, by the longest target; None for any other text."""
        for target, source in sorted(self.mounts.items(), key=lambda mount: -len(mount[0])):
            target = target.rstrip("/")
            if value == target or value.startswith(f"{target}/"):
                return source.rstrip("/") + value[len(target) :]
        return None


_SETTERS = (SET_CARRIED, SET_CARRIED_AT_LOGIN, READ_CARRIED)
"""Commands with which containers start, which set the variables before the script begins."""


def variables_set_by(commands: str) -> dict[str, str]:
    """The variables that commands of bash (``export NAME=…``) set."""
    argv = ["env", "-i", "bash", "-c", 'eval "$1"; exec env -0', "bash", commands]
    output = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60, check=True).stdout
    variables = dict(line.split("=", 1) for line in output.decode(errors="surrogateescape").split("\0") if line)
    return {name: value for name, value in variables.items() if name not in ("PWD", "SHLVL", "_")}


def parse_mounts(mounts: Sequence[str]) -> dict[str, str]:
    """Target → source of ``SOURCE:TARGET[:ro]``. Raises Refused for another form."""
    sources = {}
    for text in mounts:
        source, _, rest = text.partition(":")
        target, _, option = rest.partition(":")
        if not source.startswith("/") or not target.startswith("/") or option not in ("", "ro"):
            raise Refused(f"invalid mount {text!r}: SOURCE:TARGET[:ro], both absolute")
        sources[target] = source
    return sources
