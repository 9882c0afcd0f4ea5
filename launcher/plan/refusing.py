"""Checks whether a plan may be run: it must have no errors that nobody accepted, and hold no secrets. A plan is stored,
shown and sent, so it names the variable of a secret and never holds its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.redact import MASK, SHORTEST, names_a_secret, redact
from launcher.plan.plan import Plan

_VARIABLES = ("settings", "options", "env", "environment", "exports")
"""Keys of a plan, and of the recipe in it, below which names of variables are keys; ``…_environment`` too."""

_OTHER_SCALARS = frozenset({int, float, bool, type(None)})


def require_acceptable(plan: Plan, accepted: Sequence[str] = ()) -> None:
    """Raise ConfigError when the plan has findings of severity error whose rules nobody accepted, or holds a secret."""
    require_no_secrets(plan)
    bad = [f for f in plan.errors if f.rule not in accepted]
    if bad:
        listed = "\n".join(f"  {f.where}: {f.message} [{f.rule}]" for f in bad)
        raise ConfigError(
            f"the plan would fail or mismeasure:\n{listed}",
            where=f"run {plan.run_key}",
            hint="fix it, or go on with --accept RULE",
        )


def require_no_secrets(plan: Plan) -> None:
    """Raise ConfigError when the plan holds the value of a secret: a text with the shape of a token, or the value of a
    variable whose name is that of a secret."""
    places = _secrets_in(plan.as_dict(), variables=False)
    if unique := list(dict.fromkeys(place.removeprefix(".") for place in places)):
        raise ConfigError(
            f"the plan would hold a secret, and is stored: {', '.join(unique[:5])}",
            where=f"run {plan.run_key}",
            hint="set the variable where the launcher runs, and name it in `pass-environment` of the runner file: "
            "the plan then holds its name alone",
        )


def _secrets_in(value: Any, *, variables: bool) -> list[str]:
    """The places within a plan's JSON that hold secrets; ``variables`` says that its keys are names of variables.

    Every plan of a sweep is looked through: a place is spelled out only where something is found, and scalars, which
    most values are, are sorted out before the call.
    """
    places: list[str] = []
    if isinstance(value, str):
        return [""] if _looks_like_token(value) else []
    if isinstance(value, (dict, Mapping)):
        for key, inner in value.items():
            if type(inner) is str:
                named = variables and names_a_secret(str(key)) and _may_be_secret(inner)
                if named or _looks_like_token(inner):
                    places.append(f".{key}")
            elif type(inner) not in _OTHER_SCALARS:
                named = str(key) in _VARIABLES or str(key).endswith("_environment")
                places += [f".{key}{place}" for place in _secrets_in(inner, variables=named)]
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if type(inner) not in _OTHER_SCALARS:
                places += [f"[{index}]{place}" for place in _secrets_in(inner, variables=False)]
    return places


@lru_cache(maxsize=4096)
def _looks_like_token(text: str) -> bool:
    """Whether a text has the shape of a token. The plans of a sweep share most of theirs."""
    return MASK not in text and redact(text, {}) != text


def _may_be_secret(text: str) -> bool:
    """Whether a variable's text can be a secret: not a reference (``$NAME``), a path, a number, or a short word as
    clients without an account are given (``EMPTY``)."""
    return len(text) >= SHORTEST and text[0] not in "$/~{" and not text.isdigit()
