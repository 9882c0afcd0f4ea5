"""What the stand-ins for srun and docker share: a container of a rehearsal, which is a script that runs on this host.

Its environment is what the container would have. A mounted directory is the host's, so variables that name a target
name its source in the script. Nothing but a script below the mounted working directory is ever run.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from launcher.container.job_functions import CARRIED, SET_CARRIED

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

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{self.prog}: {message} (a rehearsal's stand-in)", self.refusal)


@dataclass(frozen=True)
class Container:
    """A container: ``mounts`` are target → source, ``programs`` is the directory of those that its image has."""

    mounts: Mapping[str, str]
    workdir: str
    environment: Mapping[str, str]
    programs: str

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command on this host. Raises Refused for anything but bash with one script of the working directory.

        The script's environment is that of the step: an image that sets variables of its own has none here.
        """
        words = [command[0], *command[3:]] if list(command[1:3]) == ["-c", SET_CARRIED] else command
        script = PurePosixPath(words[1]) if len(words) == 2 else None
        if script is None or command[0] not in ("bash", "/bin/bash"):
            raise Refused(f"a rehearsal runs `bash SCRIPT`, and nothing else in a container: {' '.join(command)}")
        root, path = self.directory.resolve(), (self.directory / script).resolve()
        if script.is_absolute() or not path.is_relative_to(root):
            raise Refused(f"{script} is not below the container's working directory {self.workdir}")
        if not path.is_file():
            raise Refused(f"bash: {script}: No such file or directory", 127)
        return ["bash", str(script)]

    @property
    def directory(self) -> Path:
        """The host's directory that is the working directory. Raises Refused where nothing is mounted there."""
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


def mounts_of(listed: Sequence[str]) -> dict[str, str]:
    """Target → source of ``SOURCE:TARGET[:ro]``. Raises Refused for another form."""
    found = {}
    for mount in listed:
        source, _, rest = mount.partition(":")
        target, _, option = rest.partition(":")
        if not source.startswith("/") or not target.startswith("/") or option not in ("", "ro"):
            raise Refused(f"invalid mount {mount!r}: SOURCE:TARGET[:ro], both absolute")
        found[target] = source
    return found
