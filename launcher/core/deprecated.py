"""Renamed flags and keys: an old name works for one more minor version, with a warning that has the new one.

`FLAGS` and `RUNNER_KEYS` list all of them; launcher/cli/parsers.py and launcher/runner/file.py use them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """``old`` is called ``new`` now, and is removed in version ``gone``.

    A flag of one command stands behind its name (``sweep start --parallel``), a flag of all commands alone. A key
    stands behind the keys above it, with ``*`` for each item of a list (``lanes.*.revision``); ``new`` is a flag or key
    alone.
    """

    old: str
    new: str
    gone: str

    @property
    def text(self) -> str:
        """The warning: the new name, and the version that removes the old one."""
        old = self.old.rpartition(".")[2].rpartition(" ")[2]
        return f"{old} is called {self.new} now: write that, since launcher {self.gone} knows {old} no more"


FLAGS: tuple[Renamed, ...] = ()
RUNNER_KEYS: tuple[Renamed, ...] = ()


class DeprecatedName(FutureWarning):
    """An old name was used. The command line shows each warning once."""


def warn_renamed(where: str, name: Renamed) -> None:
    """Warn of an old name."""
    warnings.warn(f"{where}: {name.text}", DeprecatedName, stacklevel=2)


def rename_keys(data: Any, names: Sequence[Renamed]) -> Iterator[tuple[Renamed, tuple[str | int, ...]]]:
    """Rename old keys of a document in place, each at its position. Yields each renaming with the path to its key.

    A mapping that has both names keeps both; its reader then refuses the old one.
    """
    for renamed in names:
        *parents, old = renamed.old.split(".")
        for path, mapping in _mappings(data, parents):
            if old in mapping and renamed.new not in mapping:
                items = [(renamed.new if key == old else key, value) for key, value in mapping.items()]
                mapping.clear()
                mapping.update(items)
                yield renamed, (*path, renamed.new)


def _mappings(value: Any, path: Sequence[str]) -> Iterator[tuple[tuple[str | int, ...], dict[Any, Any]]]:
    if not path:
        yield from [((), value)] if isinstance(value, dict) else []
    elif path[0] == "*" and isinstance(value, list):
        for i, item in enumerate(value):
            yield from (((i, *keys), mapping) for keys, mapping in _mappings(item, path[1:]))
    elif isinstance(value, dict) and path[0] in value:
        yield from (((path[0], *keys), mapping) for keys, mapping in _mappings(value[path[0]], path[1:]))
