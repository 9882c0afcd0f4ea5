"""Environment variables as typed values, with errors that name the variable."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.benchmark.benchmark import Component, Role
from launcher.core.errors import ConfigError

WHERE = "environment"
"""What errors give as the place."""


@dataclass(frozen=True)
class Variables:
    """Typed reading of an environment; an empty variable is as one that is not set.

    What cannot be read raises ConfigError naming the variable, what was found and what is expected.
    """

    environ: Mapping[str, str]

    def require(self, names: Collection[str]) -> None:
        """Raise ConfigError that names all of ``names`` that are not set."""
        missing = [name for name in names if not self.environ.get(name, "").strip()]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            hint = "the launch step of the multi-node workflow sets them; by hand, select a matrix entry instead"
            raise ConfigError(f"{', '.join(missing)} {verb} not set, or empty", where=WHERE, hint=hint)

    def text(self, name: str) -> str | None:
        return self.environ.get(name) or None

    def matching(self, name: str, pattern: re.Pattern[str], expected: str) -> str | None:
        value = self.text(name)
        if value is not None and not pattern.fullmatch(value):
            raise wrong(name, value, expected)
        return value

    def integer(self, name: str, *, least: int = 1) -> int | None:
        value = self.text(name)
        return None if value is None else _integer(name, value, value, least)

    def integers(self, name: str) -> tuple[int, ...]:
        """Whole numbers of at least 1, with spaces between them."""
        value = self.environ.get(name, "")
        return tuple(_integer(name, word, value, 1) for word in value.split())

    def boolean(self, name: str, *, default: bool = False) -> bool:
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise wrong(name, str(value), "'true', 'false' or nothing")
        return default if value is None else value == "true"

    def choice(self, name: str, known: Collection[str], *, default: str) -> str:
        value = self.text(name) or default
        if value not in known:
            raise wrong(name, value, " or ".join(repr(word) for word in known))
        return value

    def component(self, metadata: str, name: str | None = None) -> Component | None:
        """From its metadata (JSON), or from the variable that has its ``name`` alone."""
        value = self.text(metadata)
        if value is None:
            alone = self.text(name) if name else None
            return Component(alone) if alone else None
        try:
            data: Any = json.loads(value)
        except json.JSONDecodeError:
            data = None
        if not (
            isinstance(data, dict)
            and isinstance(data.get("name"), str)
            and isinstance(data.get("version", ""), str)
            and data.keys() <= {"name", "version"}
        ):
            raise wrong(metadata, value, 'JSON of the form {"name": …, "version": …}')
        return Component(data["name"], data.get("version"))

    def role(self, prefix: str, *, least: int) -> Role:
        """PREFILL or DECODE, of at least ``least`` workers."""

        def size(name: str) -> int:
            value = self.integer(f"{prefix}_{name}")
            return 1 if value is None else value

        return Role(
            workers=self.integer(f"{prefix}_NUM_WORKERS", least=least) or 0,
            tp=size("TP"),
            ep=size("EP"),
            dp_attention=self.boolean(f"{prefix}_DP_ATTN"),
            pp=size("PP_SIZE"),
            dcp=size("DCP_SIZE"),
            pcp=size("PCP_SIZE"),
            hardware=self.text(f"{prefix}_HARDWARE"),
        )


def wrong(name: str, found: str, expected: str) -> ConfigError:
    """The error for a variable that does not mean anything."""
    return ConfigError(f"{name} is {found!r}; expected is {expected}", where=WHERE)


def _integer(name: str, word: str, value: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", word) or int(word) < least:
        numbers = "whole numbers" if word != value else "a whole number"
        raise wrong(name, value, f"{numbers} of at least {least}")
    return int(word)
