"""Chooses the benchmark's script in the workspace, and reads which variables it requires."""

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
"""At most so many bytes of a script are read."""

_CHECK_CALL = re.compile(r"^[ \t]*check_env_vars\b((?:[ \t]|\\\r?\n|[A-Za-z_][A-Za-z0-9_]*)+)", re.MULTILINE)
"""A call at the beginning of InferenceX's scripts (benchmark_lib.sh): it ends the script if a variable is empty."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WRITES_TO_WORKSPACE = re.compile(r"--result-dir[ =]+/workspace")


class Scripts:
    """The scripts of a workspace. Each is read once: hundreds of rows share one."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], tuple[tuple[str, ...], bool] | None] = {}

    def choose(
        self, choice: ScriptChoice, benchmark: Benchmark, context: Context, passed: Mapping[str, str]
    ) -> PlannedScript:
        """The first existing script of the choice; ``passed`` are the variables that it will get.

        Raises ConfigError when none exists, and when it requires a variable that it does not get.
        """
        tried = _candidate_paths(choice, benchmark, context.host)
        for path in tried:
            if (facts := self.read(context.workspace, path)) is not None:
                required, names_workspace = facts
                hint = "add it to pass-environment or to adjust.exports of the runner file"
                require_variables(required, passed, path, hint)
                return PlannedScript(path, tried, True, required, (), names_workspace)
        raise missing_script(benchmark, tried, context.workspace)

    def read(self, workspace: str, path: str) -> tuple[tuple[str, ...], bool] | None:
        """The variables that a script of the workspace requires, and whether it writes to /workspace; None for a
        missing file."""
        if (workspace, path) not in self._read:
            facts, text = None, _read_beginning(Path(workspace, path))
            if text is not None:
                names = (name for call in _CHECK_CALL.finditer(text) for name in _NAME.findall(call[1]))
                facts = tuple(dict.fromkeys(names)), bool(_WRITES_TO_WORKSPACE.search(text))
            self._read[workspace, path] = facts
        return self._read[workspace, path]


def missing_script(benchmark: Benchmark, paths: Sequence[str], workspace: str) -> ConfigError:
    """The error for a benchmark without a script."""
    return ConfigError(
        f"no script runs {benchmark.title}: there is no {' and no '.join(paths)}",
        where=workspace,
        hint="the workspace must be a checkout of InferenceX that has the row's script (--workspace DIR)",
    )


def require_variables(required: Sequence[str], passed: Mapping[str, str], path: str, hint: str | None = None) -> None:
    """Raise ConfigError when a script requires a variable that it does not get."""
    if missing := [name for name in required if not passed.get(name)]:
        message = f"the script asks for {', '.join(missing)}, and nothing passes {'them' if len(missing) > 1 else 'it'}"
        raise ConfigError(message, where=path, hint=hint)


def _candidate_paths(choice: ScriptChoice, benchmark: Benchmark, host: Mapping[str, str]) -> tuple[str, ...]:
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


def _read_beginning(path: Path) -> str | None:
    """The beginning of a file; None for a missing one, and for a name that no file can have."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(LARGEST).decode(errors="replace")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ConfigError(f"the script cannot be read: {error.strerror}", where=str(path)) from None
