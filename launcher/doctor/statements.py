"""What a runner file says, key by key, as values that can be compared with facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.core.yaml_source import Key
from launcher.runner.file import RunnerFile


@dataclass(frozen=True)
class Statement:
    """One value of a runner file. ``keys`` lead to it, ``table`` is the table that it stands in."""

    keys: tuple[Key, ...]
    value: Any
    table: Any = None


def statements(file: RunnerFile, pattern: str, default: object = None) -> Iterator[Statement]:
    """What the file says at each key that matches ``pattern``; nothing where it says nothing.

    In a pattern ``[]`` stands for every item of a list and ``*`` for every key of a table: ``lanes.[].ref``. The value
    is ``default`` where the key is not in its table.
    """
    found = [Statement((), file.runner)]
    for step in pattern.split("."):
        found = [below for one in found for below in _step(one, step, default)]
    return (one for one in found if one.value is not None)


def _step(at: Statement, step: str, default: object) -> Iterator[Statement]:
    value = at.value
    if step == "[]":
        for i, item in enumerate(value):
            yield Statement((*at.keys, i), item, value)
    elif step == "*":
        for key, item in value.items() if isinstance(value, Mapping) else ():
            yield Statement((*at.keys, str(key)), item, value)
    elif isinstance(value, Mapping):
        yield Statement((*at.keys, step), value.get(step, default), value)
    elif value is not None:
        yield Statement((*at.keys, step), getattr(value, step.replace("-", "_")), value)


def dotted(keys: Sequence[Key]) -> str:
    """Keys as a person writes them: ``models[2].path``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
