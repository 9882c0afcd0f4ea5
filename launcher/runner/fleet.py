"""The runner files of all directories, and which of them a name, a RUNNER_NAME or a matrix label means."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from launcher.core.errors import ConfigError, suggest
from launcher.runner.file import RunnerFile


class Fleet:
    """The runner files of some directories; an earlier directory's file hides a later one of the same name."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = [d for d in directories if d.is_dir()]
        self._read: dict[Path, RunnerFile] = {}

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Runner name (the file's stem) → file."""
        found: dict[str, Path] = {}
        for directory in self.directories:
            for path in sorted(directory.glob("*.yaml")):
                found.setdefault(path.stem, path)
        return found

    def get(self, name: str) -> RunnerFile:
        """The runner of this name. Raises ConfigError naming the nearest one."""
        if name not in self.paths:
            raise ConfigError(
                f"there is no runner {name!r}",
                where=os.pathsep.join(str(d) for d in self.directories) or "no runner directory",
                hint=suggest(name, self.paths, f"known: {', '.join(self.paths) or 'none'}"),
            )
        path = self.paths[name]
        if path not in self._read:
            file = RunnerFile.read(path)
            if file.runner.name != name:
                raise ConfigError(
                    f"name {file.runner.name!r} is not the file's own",
                    where=file.location("name"),
                    hint=f"name: {name}",
                )
            self._read[path] = file
        return self._read[path]

    def all(self) -> list[RunnerFile]:
        return [self.get(name) for name in self.paths]

    def readable(self, broken: list[ConfigError] | None = None) -> list[RunnerFile]:
        """The runner files that can be read. The errors of the others are added to ``broken``."""
        found = []
        for name in self.paths:
            try:
                found.append(self.get(name))
            except ConfigError as error:
                if broken is not None:
                    broken.append(error)
        return found

    def for_runner_name(self, runner_name: str) -> RunnerFile:
        """The cluster of a physical runner (``b300-nv_07``), which its name up to the first underscore tells.

        Raises ConfigError when no runner file has that prefix.
        """
        prefix = runner_name.partition("_")[0]
        for file in self.all():
            if prefix in file.runner.runners:
                return file
        known = [p for f in self.all() for p in f.runner.runners]
        raise ConfigError(
            f"no runner file claims the prefix {prefix!r} of RUNNER_NAME={runner_name}",
            where="RUNNER_NAME",
            hint=suggest(prefix, known, f"known prefixes: {', '.join(known)}"),
        )

    @cached_property
    def by_label(self) -> Mapping[str, Sequence[RunnerFile]]:
        """Matrix label → the clusters that serve it. A job of GitHub's lands on any of them."""
        found: dict[str, list[RunnerFile]] = {}
        for file in self.all():
            for label in file.runner.labels:
                found.setdefault(label, []).append(file)
        return found
