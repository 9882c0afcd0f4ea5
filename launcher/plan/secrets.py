"""Secrets and plans: a plan is stored, shown and sent, so it names a secret and never holds its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.redact import MASK, SHORTEST, names_a_secret, redact
from launcher.plan.plan import Plan

_VARIABLES = ("settings", "options", "env", "environment", "exports")
"""Keys of a plan, and of the recipe in it, below which names of variables are keys; ``…_environment`` too."""


def refuse_secrets(plan: Plan) -> None:
    """Raise ConfigError when the plan holds the value of a secret: what has the shape of a token, and what is set for a
    variable that is called as secrets are."""
    if found := list(dict.fromkeys(_secrets_in(plan.as_dict()))):
        raise ConfigError(
            f"the plan would hold a secret, and is stored: {', '.join(found[:5])}",
            where=f"run {plan.run_key}",
            hint="set the variable where the launcher runs, and name it in `pass-environment` of the runner file: "
            "the plan then holds its name alone",
        )


def _secrets_in(value: Any, place: str = "", variables: bool = False) -> Iterator[str]:
    """The places of a plan's JSON that hold secrets; below ``variables`` keys are names of variables."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            at = f"{place}.{key}" if place else str(key)
            if variables and isinstance(inner, str) and names_a_secret(str(key)) and _is_value(inner):
                yield at
            else:
                named = str(key) in _VARIABLES or str(key).endswith("_environment")
                yield from _secrets_in(inner, at, named)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _secrets_in(inner, f"{place}[{index}]")
    elif isinstance(value, str) and _has_a_shape(value):
        yield place


@lru_cache(maxsize=4096)
def _has_a_shape(text: str) -> bool:
    """Whether a text has the shape of a token. The plans of a sweep share most of theirs."""
    return MASK not in text and redact(text, {}) != text


def _is_value(text: str) -> bool:
    """Whether a variable's text can be a secret: not a reference (``$NAME``), a path, a number, or a short word as
    clients without an account are given (``EMPTY``)."""
    return len(text) >= SHORTEST and text[0] not in "$/~{" and not text.isdigit()
