"""What the stand-ins for srun and docker share: a container of a rehearsal, which is a script that runs on this host.

Its environment is what the container would have. A mounted directory is the host's, so variables that name a target
name its source in the script. Nothing but a script below a mounted directory is ever run.
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
    """The program prints the message and ends with ``code``."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know, instead of guessing."""

    def __init__(self, *, prog: str, refusal: int = 1) -> None:
        super().__init__(prog=prog, allow_abbrev=False)
        self.refusal = refusal

    def options(self, *, values: Sequence[str] = (), lists: Sequence[str] = (), switches: Sequence[str] = ()) -> None:
        """Take these long options: with a value each, with one each time that they are given, and with none."""
        forms: tuple[dict[str, Any], ...] = ({}, {"action": "append", "default": []}, {"action": "store_true"})
        for names, form in zip((values, lists, switches), forms, strict=True):
            for name in names:
                self.add_argument(f"--{name}", **form)

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{self.prog}: {message} (a rehearsal's stand-in)", self.refusal)


@dataclass(frozen=True)
class Container:
    """A container: ``mounts`` are target → source, ``programs`` is the directory of those that its image has. Without
    ``workdir`` the script lies where its name says."""

    mounts: Mapping[str, str]
    workdir: str | None
    environment: Mapping[str, str]
    programs: str

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command on this host. Raises Refused for anything but bash with one script of a mounted directory.

        The script's environment is that of the step: an image that sets variables of its own has none here.
        """
        carries = command[1:2] == ["-c"] and len(command) == 4 and command[2] in _CARRY
        words = [command[0], command[3]] if carries else command
        script = PurePosixPath(words[1]) if len(words) == 2 else None
        if script is None or command[0] not in ("bash", "/bin/bash"):
            raise Refused(f"a rehearsal runs `bash SCRIPT`, and nothing else in a container: {' '.join(command)}")
        place = self._on_host(str(script)) if script.is_absolute() else str(self.directory / script)
        path = Path(place or "/").resolve()
        tops = list(self.mounts.values()) if script.is_absolute() else [self.directory]
        if place is None or not any(path.is_relative_to(Path(top).resolve()) for top in tops):
            raise Refused(f"{script} is below no mounted directory of the container")
        if not path.is_file():
            raise Refused(f"bash: {script}: No such file or directory", 127)
        return ["bash", place if script.is_absolute() else str(script)]

    @property
    def directory(self) -> Path:
        """The host's directory that is the working directory. Raises Refused where nothing is mounted there."""
        if self.workdir is None:
            return Path("/")  # as images have it
        place = self._on_host(self.workdir)
        if place is None or not Path(place).is_dir():
            raise Refused(f"the working directory {self.workdir} is no mounted directory")
        return Path(place)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the script. PATH is the image's, in front of what this host has for every program.

        PORT is a free one of this host: containers of several rehearsals share its network, where jobs have nodes.
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


_CARRY = (SET_CARRIED, SET_CARRIED_AT_LOGIN, READ_CARRIED)
"""What containers are started with that set the variables before the script begins."""


def variables_set_by(commands: str) -> dict[str, str]:
    """The variables that commands of bash (``export NAME=…``) set."""
    argv = ["env", "-i", "bash", "-c", 'eval "$1"; exec env -0', "bash", commands]
    said = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60, check=True).stdout
    found = dict(line.split("=", 1) for line in said.decode(errors="surrogateescape").split("\0") if line)
    return {name: value for name, value in found.items() if name not in ("PWD", "SHLVL", "_")}


def parse_mounts(listed: Sequence[str]) -> dict[str, str]:
    """Target → source of ``SOURCE:TARGET[:ro]``. Raises Refused for another form."""
    found = {}
    for mount in listed:
        source, _, rest = mount.partition(":")
        target, _, option = rest.partition(":")
        if not source.startswith("/") or not target.startswith("/") or option not in ("", "ro"):
            raise Refused(f"invalid mount {mount!r}: SOURCE:TARGET[:ro], both absolute")
        found[target] = source
    return found
