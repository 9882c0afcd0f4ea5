"""The checks of a node that a job makes before an engine starts (launcher/plan/preflight.sh), for a runner file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launcher.core.shell_words import quote_word
from launcher.doctor.comparison import Fill, required_paths
from launcher.doctor.facts import Fact, NodeCheck, Unknown
from launcher.plan.plan import PlannedModel
from launcher.plan.preflight import clock_checks, model_checks, shell_functions, with_lock_check
from launcher.runner.file import RunnerFile
from launcher.runner.schema import ModelRule

BOUND = 40
"""Seconds after which no further check starts: a large checkpoint on slow storage takes long."""

LOGIN_CHECKS = ("clock", "locks")
"""The names of the checks that compare a node with this host."""

_FRAME = r"""
say() { :; }
fact() { tell "fact.$check" "$1 $2"; }
fail() { tell "red.$check" "$(printf %s "${*:2}" | flat)"; exit 1; }
begin() { check=$1; if [ "$SECONDS" -lt BOUND ]; then tell "begun.$check" ''; else exit; fi; }
"""


def login_checks(meeting_directory: Path, *, local_locks: bool) -> dict[str, list[str]]:
    """The checks that compare a node with this host, which attends in the directory."""
    directory = quote_word(str(meeting_directory))
    lines = clock_checks(directory), with_lock_check(directory, [], local=local_locks)
    return dict(zip(LOGIN_CHECKS, lines, strict=True))


def checkpoint_checks(file: RunnerFile, fill: Fill) -> dict[str, list[str]]:
    """A check of each checkpoint that nodes see and whose path has no ``{model}``, by its path in the file."""
    checks = {}
    for required in required_paths(file, fill):
        rule = required.setting.table
        if not isinstance(rule, ModelRule) or "compute" not in required.seen_by:
            continue
        for path in [rule.path] if isinstance(rule.path, str) else rule.path:
            if not path.startswith("hf:") and "{model}" not in path:
                model = PlannedModel(fill(path), "", "", required.seen_by, fingerprint=rule.fingerprint)
                checks[path] = model_checks(model)
    return checks


def script(checks: Mapping[str, list[str]]) -> str:
    """The script for the node, after host.sh: each check has a shell of its own, so that a failure stops no other."""
    shells = [f"( begin {i}; {'; '.join(lines)}; tell good.{i} '' )" for i, lines in enumerate(checks.values())]
    return "\n".join([shell_functions(), _FRAME.replace("BOUND", str(BOUND)), *shells])


def outcomes(printed: Mapping[str, str], checks: Mapping[str, list[str]]) -> dict[str, Fact[NodeCheck]]:
    """The outcomes of the checks, by name, from the keys and values that the node printed."""
    found: dict[str, Fact[NodeCheck]] = {}
    for i, name in enumerate(checks):
        failure, result = printed.get(f"red.{i}"), printed.get(f"fact.{i}", "")
        if failure is not None or f"good.{i}" in printed:
            found[name] = NodeCheck(failure or "", result)
        else:
            begun = f"begun.{i}" in printed
            found[name] = Unknown("it took too long on the node" if begun else f"not begun within {BOUND} s")
    return found
