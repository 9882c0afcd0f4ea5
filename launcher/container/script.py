"""The benchmark's script: which file of the workspace it is, and which variables it asks for."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from launcher.benchmark.benchmark import Benchmark
from launcher.container.planned import PlannedScript
from launcher.core.errors import ConfigError
from launcher.plan.derive import Context
from launcher.runner.container_schema import ScriptChoice
from launcher.runner.file import fill_in

LARGEST = 1 << 20
"""Bytes of a script that are read."""

_ASKS = re.compile(r"^[ \t]*check_env_vars\b((?:[ \t]|\\\r?\n|[A-Za-z_][A-Za-z0-9_]*)+)", re.MULTILINE)
"""The call of InferenceX's benchmark_lib.sh at the head of a script: it ends the script when one of them is empty."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WRITES = re.compile(r"--result-dir[ =]+/workspace")


class Scripts:
    """The scripts of a workspace. Each is read once: hundreds of rows share one."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], tuple[tuple[str, ...], bool] | None] = {}

    def planned(
        self, choice: ScriptChoice, benchmark: Benchmark, context: Context, given: Mapping[str, str]
    ) -> PlannedScript:
        """The first script of the choice that is there; ``given`` are the variables that it will get.

        Raises ConfigError where there is none, and where it asks for a variable that it does not get.
        """
        tried = _paths(choice, benchmark, context.host)
        path = next((p for p in tried if self._facts(context.workspace, p) is not None), None)
        if path is None:
            raise no_script(benchmark, tried, context.workspace)
        asks, names_workspace = self._facts(context.workspace, path) or ((), False)
        refuse_lacks(asks, given, path, "add it to pass-environment or to adjust.exports of the runner file")
        return PlannedScript(path, tried, True, asks, (), names_workspace)

    def asked(self, workspace: str, path: str) -> tuple[str, ...] | None:
        """The variables that a script of the workspace asks for; None where there is no such file."""
        facts = self._facts(workspace, path)
        return None if facts is None else facts[0]

    def _facts(self, workspace: str, path: str) -> tuple[tuple[str, ...], bool] | None:
        """The variables that a script asks for, and whether it names /workspace; None where there is no such file."""
        if (workspace, path) not in self._read:
            text = _text(Path(workspace, path))
            self._read[workspace, path] = None if text is None else (_asked_for(text), bool(_WRITES.search(text)))
        return self._read[workspace, path]


def no_script(benchmark: Benchmark, paths: Sequence[str], workspace: str) -> ConfigError:
    """The error of a benchmark that has no script."""
    return ConfigError(
        f"no script runs {benchmark.title}: there is no {' and no '.join(paths)}",
        where=workspace,
        hint="the workspace must be a checkout of InferenceX that has the row's script (--workspace DIR)",
    )


def refuse_lacks(asks: Sequence[str], given: Mapping[str, str], path: str, hint: str | None = None) -> None:
    """Raise ConfigError where a script asks for a variable that it does not get."""
    if lacks := [name for name in asks if not given.get(name)]:
        message = f"the script asks for {', '.join(lacks)}, and nothing passes {'them' if len(lacks) > 1 else 'it'}"
        raise ConfigError(message, where=path, hint=hint)


def _asked_for(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for call in _ASKS.finditer(text) for name in _NAME.findall(call[1])))


def _paths(choice: ScriptChoice, benchmark: Benchmark, host: Mapping[str, str]) -> tuple[str, ...]:
    if choice.variable and (other := host.get(choice.variable)):
        path = PurePosixPath(other)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{other!r} is not a path below the workspace", where=choice.variable)
        return (str(path),)
    folder = f"{choice.directory}/{'agentic' if benchmark.agentic else 'fixed_seq_len'}"
    parts = {
        "model": benchmark.exp_name.partition("_")[0],
        "precision": benchmark.precision,
        "framework": benchmark.framework,
        "suffix": choice.suffixes.get(benchmark.framework, ""),
        "spec": "_mtp" if benchmark.spec_decoding == "mtp" else "",
    }
    names = dict.fromkeys(fill_in(name, parts) for name in choice.names)
    if bad := [name for name in names if "/" in name]:
        raise ConfigError(f"{bad[0]!r} cannot be a script's name", where=benchmark.source)
    return tuple(f"{folder}/{name}" for name in names)


def _text(path: Path) -> str | None:
    """The beginning of a file; None where there is none, or where no file can have such a name."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(LARGEST).decode(errors="replace")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ConfigError(f"the script cannot be read: {error.strerror}", where=str(path)) from None
