"""The runner files of all directories, found by name, by RUNNER_NAME or by matrix label."""

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
        paths: dict[str, Path] = {}
        for directory in self.directories:
            for path in sorted(directory.glob("*.yaml")):
                paths.setdefault(path.stem, path)
        return paths

    def get(self, name: str) -> RunnerFile:
        """The runner of this name. Raises ConfigError, which names the nearest one."""
        if name not in self.paths:
            raise ConfigError(
                f"there is no runner {name!r}",
                where=os.pathsep.join(dict.fromkeys(map(str, self.directories))) or "no runner directory",
                hint=suggest(name, self.paths, f"known: {', '.join(self.paths) or 'none'}"),
            )
        path = self.paths[name]
        if path not in self._read:
            try:
                self._read[path] = file = RunnerFile.read(path)
                if file.runner.name != name:
                    problem = f"name {file.runner.name!r} is not the file's own"
                    raise ConfigError(problem, where=file.location("name"), hint=f"name: {name}")
            except ConfigError as error:
                self._read[path] = error
        outcome = self._read[path]
        if isinstance(outcome, ConfigError):
            raise outcome
        return outcome

    def readable(self, broken: list[ConfigError] | None = None) -> list[RunnerFile]:
        """The runner files that can be read. The errors of the others are added to ``broken``."""
        files = []
        for name in self.paths:
            try:
                files.append(self.get(name))
            except ConfigError as error:
                if broken is not None:
                    broken.append(error)
        return files

    def for_runner_name(self, runner_name: str) -> RunnerFile:
        """The cluster of a physical runner (``b300-nv_07``), by its name up to the first underscore.

        Raises ConfigError when no runner file has that prefix.
        """
        prefix = runner_name.partition("_")[0]
        if (file := self._only_with_prefix(prefix)) is not None:
            return file
        files, broken = self.readable(), self.broken
        if error := self.broken_file_with("runners", prefix):
            raise error
        for file in files:
            if prefix in file.runner.runners:
                return file
        known = [known_prefix for file in files for known_prefix in file.runner.runners]
        unread = f"; {count_of(len(broken), 'runner file')} cannot be read, the first: {broken[0]}" if broken else ""
        raise ConfigError(
            f"no runner file claims the prefix {prefix!r} of RUNNER_NAME={runner_name}{unread}",
            where="RUNNER_NAME",
            hint=suggest(prefix, known, f"known prefixes: {', '.join(known)}"),
        )

    def _only_with_prefix(self, prefix: str) -> RunnerFile | None:
        """The file with this prefix, found without parsing files that do not contain the word. None where one of those
        that contain it cannot be read."""
        match = None
        for name, path in self.paths.items():
            try:
                if prefix.encode() in read_file(path, LARGEST_FILE):
                    file = self.get(name)
                    match = match or (file if prefix in file.runner.runners else None)
            except (OSError, ConfigError):
                return None
        return match

    @cached_property
    def broken(self) -> list[ConfigError]:
        """The errors of the runner files that cannot be read."""
        errors: list[ConfigError] = []
        self.readable(errors)
        return errors

    def broken_file_with(self, key: str, value: str) -> ConfigError | None:
        """The error of a broken file that lists a value under a key, as far as the file can be read; without that, its
        own name is its only value."""
        for path, file in self._read.items() if self.broken else ():
            if isinstance(file, ConfigError):
                values: object = [path.stem]
                with contextlib.suppress(ConfigError):
                    values = Document.read(path, strict=False).mapping().get(key)
                if isinstance(values, list) and value in values:
                    return file
        return None

    @cached_property
    def by_label(self) -> Mapping[str, Sequence[RunnerFile]]:
        """Matrix label → the clusters that serve it, of those that can be read. GitHub may give a job to any."""
        files: dict[str, list[RunnerFile]] = {}
        for file in self.readable():
            for label in file.runner.labels:
                files.setdefault(label, []).append(file)
        return files
