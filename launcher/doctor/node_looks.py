"""What jobs ask of their node before an engine starts (launcher/plan/preflight.sh), asked for a runner file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launcher.core.shell_words import word
from launcher.doctor.comparison import Fill, required
from launcher.doctor.facts import Fact, Looked, Unknown
from launcher.plan.plan import PlannedModel
from launcher.plan.preflight import ask_about_locks, functions, look_at_clock, look_at_model
from launcher.runner.file import RunnerFile
from launcher.runner.schema import ModelRule

BOUND = 40
"""Seconds after which no further look is begun: large checkpoints on slow storage take some."""

OF_LOGIN = ("clock", "locks")
"""What a node and this host agree about."""

_FRAME = r"""
say() { :; }
fact() { tell "fact.$look" "$1 $2"; }
fail() { tell "red.$look" "$(printf %s "${*:2}" | flat)"; exit 1; }
begin() { look=$1; if [ "$SECONDS" -lt BOUND ]; then tell "begun.$look" ''; else exit; fi; }
"""


def of_login(place: Path, *, local_locks: bool) -> dict[str, list[str]]:
    """The looks at what a node and this host agree about, in a directory where this host attends."""
    directory = word(str(place))
    looks = look_at_clock(directory), ask_about_locks(directory, [], local=local_locks)
    return dict(zip(OF_LOGIN, looks, strict=True))


def of_checkpoints(file: RunnerFile, fill: Fill) -> dict[str, list[str]]:
    """A look at each checkpoint that the file names whole and that nodes see, by its path there."""
    looks = {}
    for path in required(file, fill):
        rule = path.said.table
        if not isinstance(rule, ModelRule) or "compute" not in path.seen:
            continue
        for said in [rule.path] if isinstance(rule.path, str) else rule.path or []:
            if not said.startswith("hf:") and "{model}" not in said:
                model = PlannedModel(fill(said), "", "", path.seen, fingerprint=rule.fingerprint)
                looks[said] = look_at_model(model)
    return looks


def script(looks: Mapping[str, list[str]]) -> str:
    """What runs on the node behind host.sh: each look in a shell of its own, so that a red one stops no other."""
    each = [
        f"( begin {number}; {'; '.join(lines)}; tell good.{number} '' )" for number, lines in enumerate(looks.values())
    ]
    return "\n".join([functions(), _FRAME.replace("BOUND", str(BOUND)), *each])


def read(printed: Mapping[str, str], looks: Mapping[str, list[str]]) -> dict[str, Fact[Looked]]:
    """What came of the looks, by their names, out of the keys and values that the node printed."""
    found: dict[str, Fact[Looked]] = {}
    for number, name in enumerate(looks):
        red, fact = printed.get(f"red.{number}"), printed.get(f"fact.{number}", "")
        if red is not None or f"good.{number}" in printed:
            found[name] = Looked(red or "", fact)
        else:
            begun = f"begun.{number}" in printed
            found[name] = Unknown("it took too long on the node" if begun else f"not begun within {BOUND} s")
    return found
