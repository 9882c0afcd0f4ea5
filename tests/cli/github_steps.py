"""A GitHub Actions runner for the steps of one job: a stand-in for GitHub, whose shells and processes are real.

It does what actions/runner does with the parts that our workflows have: expressions, `if:`, `run:` steps as
``bash --noprofile --norc -eo pipefail FILE``, the files of GITHUB_ENV, GITHUB_OUTPUT and GITHUB_STEP_SUMMARY, uploads
(which name files), checkouts (which leave nothing else), and how a job is cancelled (ProcessInvoker.cs).
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|([0-9]+)|([A-Za-z_][\w-]*)|(&&|\|\||[=!]=|[!().,\[\]]))")


class Expression:
    """What stands in ``${{ }}``: operators, functions, properties of objects, of which a missing one is null."""

    def __init__(self, text: str, names: Mapping[str, Any]) -> None:
        self.tokens = [match.group().strip() for match in TOKEN.finditer(text)]
        assert "".join(self.tokens).replace(" ", "") == text.replace(" ", ""), text
        self.names = names

    def value(self) -> Any:
        value = self.parse_or()
        assert not self.tokens, self.tokens
        return value

    def take(self, *wanted: str) -> str | None:
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in wanted else None

    def parse_or(self) -> Any:
        value = self.parse_and()
        while self.take("||"):
            other = self.parse_and()
            value = value or other
        return value

    def parse_and(self) -> Any:
        value = self.parse_comparison()
        while self.take("&&"):
            other = self.parse_comparison()
            value = other if value else value
        return value

    def parse_comparison(self) -> Any:
        value = self.parse_operand()
        while operator := self.take("==", "!="):
            same = shown(value).lower() == shown(self.parse_operand()).lower()
            value = same if operator == "==" else not same
        return value

    def parse_operand(self) -> Any:
        if self.take("!"):
            return not self.parse_operand()
        if self.take("("):
            value = self.parse_or()
            assert self.take(")")
            return value
        token = self.tokens.pop(0)
        if token[0] == "'":
            return token[1:-1].replace("''", "'")
        if token.isdecimal():
            return int(token)
        if self.take("("):
            given = []
            while not self.take(")"):
                given.append(self.parse_or())
                self.take(",")
            value = self.names[f"{token}()"](*given)
        else:
            value = self.names[token]
        while step := self.take(".", "["):
            key = self.tokens.pop(0) if step == "." else self.parse_or()
            assert step == "." or self.take("]")
            value = value.get(key) if isinstance(value, dict) else value[key] if isinstance(value, list) else None
        return value


def shown(value: Any) -> str:
    """A value as text, as GitHub puts it into a string."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return str(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "fromJSON()": json.loads,
    "toJSON()": lambda value: json.dumps(value, indent=2),
    "format()": lambda text, *given: text.format(*map(shown, given)),
    "join()": lambda values, between: between.join(map(str, values)),
}


@dataclass
class GitHubJob:
    """One job of a workflow on a runner of this name. ``repository`` is what a checkout gives, ``host`` the environment
    of the runner's own process; ``inputs`` those of the call. ``hurry`` shortens the patience of a cancel."""

    document: Mapping[str, Any]
    repository: Path
    root: Path
    host: Mapping[str, str]
    inputs: Mapping[str, Any]
    runner: str
    run: str = "77"
    hurry: float = 1.0
    state: str = "success"
    """Of the job so far: success, failure, cancelled."""
    printed: dict[str, str] = field(default_factory=dict)
    """By the step's name: what it printed."""
    codes: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, list[str]] = field(default_factory=dict)

    @property
    def workspace(self) -> Path:
        return self.root / "work"

    @property
    def summary(self) -> str:
        return "".join(path.read_text() for path in sorted(self.root.glob(f"{self.run}-*-summary")))

    def start(self) -> GitHubJob:
        (self.name,) = self.document["jobs"]
        self.job = self.document["jobs"][self.name]
        called = self.document[True]["workflow_call"]  # `on` is true in YAML 1.1
        defaults = {name: about.get("default") for name, about in called["inputs"].items()}
        assert self.inputs.keys() <= defaults.keys()
        missing = [n for n, about in called["inputs"].items() if about.get("required") and n not in self.inputs]
        assert not missing
        secrets = {name: f"hf_secret_{name}".lower() for name in called["secrets"]}
        self.names: dict[str, Any] = {
            **FUNCTIONS,
            "inputs": {**defaults, **self.inputs},
            "secrets": {**secrets, "MODAL_TOKEN_ID": None, "MODAL_TOKEN_SECRET": None},
            "github": {"sha": "0" * 40},
            "always()": lambda: True,
            "success()": lambda: self.state == "success",
        }
        self.env = {key: self.text(value) for key, value in self.job["env"].items()}
        return self

    def text(self, template: Any) -> str:
        """A value of the workflow with its expressions filled in."""
        return re.sub(r"\$\{\{(.*?)\}\}", lambda m: shown(Expression(m[1], self.names).value()), shown(template))

    def go(self, until: str | None = None) -> GitHubJob:
        """Run the steps; with ``until`` those before the step of this name, and hand that over to `begin`."""
        for number, step in enumerate(self.job["steps"] if until is None else self._before(until)):
            self.step(step, number)
        return self

    def _before(self, name: str) -> list[Mapping[str, Any]]:
        steps = self.job["steps"]
        return steps[: next(i for i, step in enumerate(steps) if step.get("name") == name)]

    def rest(self, after: str) -> GitHubJob:
        """The steps after this one."""
        steps = self.job["steps"]
        first = next(i for i, step in enumerate(steps) if step.get("name") == after) + 1
        for number, step in enumerate(steps[first:], first):
            self.step(step, number)
        return self

    def step(self, step: Mapping[str, Any], number: int) -> None:
        condition = str(step.get("if", "success()"))
        if "always()" not in condition:
            condition = f"success() && ({condition})"
        self.names["env"] = self.env
        if not Expression(condition, self.names).value():
            return
        if "run" in step:
            process = self.begin(step["name"], number)
            self.end(step["name"], process)
        elif step["uses"].startswith("actions/checkout@"):
            self._checkout()
        else:
            self._upload(step["with"])

    def begin(self, name: str, number: int = 90) -> subprocess.Popen[str]:
        """Start a `run:` step as GitHub does."""
        step = next(step for step in self.job["steps"] if step.get("name") == name)
        assert self.document["defaults"]["run"]["shell"] == "bash"
        self.names["env"] = self.env
        script = self.root / f"{self.run}-{number}.sh"
        script.write_text(self.text(step["run"]))
        files = {name: self.root / f"{self.run}-{number:02}-{name}" for name in ("env", "output", "summary", "log")}
        for path in files.values():
            path.write_text("")
        self.files = files
        given = {f"GITHUB_{key.upper()}": str(files[key]) for key in ("env", "output")}
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            env={
                **self.host,
                **given,
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_JOB": self.name,
                "GITHUB_RUN_ID": self.run,
                "GITHUB_RUN_ATTEMPT": "1",
                "GITHUB_STEP_SUMMARY": str(files["summary"]),
                "GITHUB_WORKSPACE": str(self.workspace),
                "RUNNER_NAME": self.runner,
                "RUNNER_TEMP": str(self.root),
                **self.env,
                **{key: self.text(value) for key, value in step.get("env", {}).items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=files["log"].open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, name: str, process: subprocess.Popen[str], timeout: float = 240) -> int:
        """Wait for a step, and take what it leaves."""
        code = process.wait(timeout)
        self.printed[name] = self.files["log"].read_text()
        self.codes[name] = code
        self.env |= assignments(self.files["env"].read_text())
        self.outputs |= assignments(self.files["output"].read_text())
        if code and self.state == "success":
            self.state = "failure"
        return code

    def cancel(self, process: subprocess.Popen[str]) -> float:
        """Cancel the job while this step runs; seconds until the step's process had ended."""
        asked = time.monotonic()
        self.state = "cancelled"
        for number, patience in ((signal.SIGINT, 7.5), (signal.SIGTERM, 2.5)):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience * self.hurry)
                break
        else:
            self.kill(process)
        return time.monotonic() - asked

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL to the step's process and its descendants, as far as they can be seen (NixKillProcessTree)."""
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)

    def _checkout(self) -> None:
        shutil.rmtree(self.workspace, ignore_errors=True)
        shutil.copytree(self.repository, self.workspace)

    def _upload(self, given: Mapping[str, Any]) -> None:
        patterns = self.text(given["path"]).split()
        unwanted = [pattern[1:] for pattern in patterns if pattern[0] == "!"]
        files = {
            str(path.relative_to(self.workspace))
            for pattern in patterns
            if pattern[0] != "!"
            for path in self.workspace.glob(pattern)
            if path.is_file() and not any(fnmatch.fnmatch(str(path), one) for one in unwanted)
        }
        name = self.text(given["name"])
        if files:
            self.uploads[name] = sorted(files)
        elif self.text(given["if-no-files-found"]) == "error":
            self.state = "failure"
            self.printed[f"upload {name}"] = f"no files were found: {patterns}"


def assignments(text: str) -> dict[str, str]:
    """What a file of commands sets: ``NAME=VALUE``, or over several lines with a delimiter."""
    values = {}
    lines = iter(text.splitlines())
    for line in lines:
        if heredoc := re.fullmatch(r"([^=<]+)<<(\S+)", line):
            values[heredoc[1]] = "\n".join(iter(lambda: next(lines), heredoc[2]))
        elif line:
            name, _, value = line.partition("=")
            values[name] = value
    return values


def descendants(pid: int) -> list[int]:
    """Deepest first."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [below for child in map(int, text.split()) for below in (*descendants(child), child)]


def programs(directory: Path) -> Path:
    """A directory with `launcher`, as an installation has it on PATH."""
    directory.mkdir(exist_ok=True)
    program = directory / "launcher"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launcher "$@"\n')
    program.chmod(0o755)
    return directory
