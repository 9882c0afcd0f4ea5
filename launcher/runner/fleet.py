"""The runner files of all directories, and which of them a name, a RUNNER_NAME or a matrix label means."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from launcher.core.errors import ConfigError, suggest
from launcher.core.lines import count_of
from launcher.core.reading import read_file
from launcher.core.yaml_source import LARGEST_FILE, Document
from launcher.runner.file import RunnerFile


class Fleet:
    """The runner files of some directories; an earlier directory's file hides a later one of the same name."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = [d for d in directories if d.is_dir()]
        self._read: dict[Path, RunnerFile | ConfigError] = {}

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
                where=os.pathsep.join(dict.fromkeys(map(str, self.directories))) or "no runner directory",
                hint=suggest(name, self.paths, f"known: {', '.join(self.paths) or 'none'}"),
            )
        path = self.paths[name]
        if path not in self._read:
            try:
                self._read[path] = _read(path, name)
            except ConfigError as error:
                self._read[path] = error
        found = self._read[path]
        if isinstance(found, ConfigError):
            raise found
        return found

    def all(self) -> list[RunnerFile]:
        """Every runner file. Raises ConfigError for the first that cannot be read."""
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
        if (only := self._of_those_that_say(prefix)) is not None:
            return only
        files, broken = self.readable(), self.broken
        if error := self._claimed("runners", prefix):
            raise error
        for file in files:
            if prefix in file.runner.runners:
                return file
        known = [p for f in files for p in f.runner.runners]
        unread = f"; {count_of(len(broken), 'runner file')} cannot be read, the first: {broken[0]}" if broken else ""
        raise ConfigError(
            f"no runner file claims the prefix {prefix!r} of RUNNER_NAME={runner_name}{unread}",
            where="RUNNER_NAME",
            hint=suggest(prefix, known, f"known prefixes: {', '.join(known)}"),
        )

    def _of_those_that_say(self, prefix: str) -> RunnerFile | None:
        """The file with this prefix, if all files that have the word can be read; the others need not be."""
        found = None
        for name, path in self.paths.items():
            try:
                if prefix.encode() in read_file(path, LARGEST_FILE):
                    file = self.get(name)
                    found = found or (file if prefix in file.runner.runners else None)
            except (OSError, ConfigError):
                return None
        return found

    @cached_property
    def broken(self) -> list[ConfigError]:
        """Why runner files cannot be read."""
        found: list[ConfigError] = []
        self.readable(found)
        return found

    def broken_that_serve(self, label: str) -> ConfigError | None:
        """The error of a runner file that cannot be read and has this label, by what can be read of it."""
        return self._claimed("labels", label)

    def _claimed(self, key: str, word: str) -> ConfigError | None:
        """The error of a broken file that has the word under a key. One that is no YAML at all claims its own name."""
        for path, found in self._read.items() if self.broken else ():
            if isinstance(found, ConfigError):
                claims: object = [path.stem]
                with contextlib.suppress(ConfigError):
                    claims = Document.read(path, strict=False).mapping().get(key)
                if isinstance(claims, list) and word in claims:
                    return found
        return None

    @cached_property
    def by_label(self) -> Mapping[str, Sequence[RunnerFile]]:
        """Matrix label → the clusters that serve it, of those that can be read. A job of GitHub's lands on any."""
        found: dict[str, list[RunnerFile]] = {}
        for file in self.readable():
            for label in file.runner.labels:
                found.setdefault(label, []).append(file)
        return found


def _read(path: Path, name: str) -> RunnerFile:
    file = RunnerFile.read(path)
    if file.runner.name != name:
        raise ConfigError(
            f"name {file.runner.name!r} is not the file's own", where=file.location("name"), hint=f"name: {name}"
        )
    return file
