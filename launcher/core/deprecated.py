"""Names that have another one now: they work for one more minor version, and it is said what to write in their place.

`FLAGS` and `RUNNER_KEYS` are all that there are; launcher/cli/parsers.py and launcher/runner/file.py go by them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """``old`` is written ``new`` now, and goes in version ``gone``.

    A flag of one command stands behind it (``sweep start --parallel``), one of all commands alone. A key has the keys
    above it before it, ``*`` for each item of a list (``lanes.*.revision``); ``new`` is a flag or key alone.
    """

    old: str
    new: str
    gone: str

    @property
    def text(self) -> str:
        """What is to be written in its place, and until when the old name works."""
        old = self.old.rpartition(".")[2].rpartition(" ")[2]
        return f"{old} is called {self.new} now: write that, since launcher {self.gone} knows {old} no more"


FLAGS: tuple[Renamed, ...] = ()
RUNNER_KEYS: tuple[Renamed, ...] = ()


class DeprecatedName(FutureWarning):
    """An old name was used. The command line shows each of them once."""


def warn_renamed(where: str, name: Renamed) -> None:
    """Warn of an old name."""
    warnings.warn(f"{where}: {name.text}", DeprecatedName, stacklevel=2)


def rename_keys(data: Any, names: Sequence[Renamed]) -> Iterator[tuple[Renamed, tuple[str | int, ...]]]:
    """Give keys of a document the names that they have now, in place and at their place: each, and the path to it.

    A mapping that has both names keeps both, and is refused for the old one.
    """
    for one in names:
        *above, old = one.old.split(".")
        for path, mapping in _mappings(data, above):
            if old in mapping and one.new not in mapping:
                held = [(one.new if key == old else key, value) for key, value in mapping.items()]
                mapping.clear()
                mapping.update(held)
                yield one, (*path, one.new)


def _mappings(value: Any, path: Sequence[str]) -> Iterator[tuple[tuple[str | int, ...], dict[Any, Any]]]:
    if not path:
        yield from [((), value)] if isinstance(value, dict) else []
    elif path[0] == "*" and isinstance(value, list):
        for i, item in enumerate(value):
            yield from (((i, *below), found) for below, found in _mappings(item, path[1:]))
    elif isinstance(value, dict) and path[0] in value:
        yield from (((path[0], *below), found) for below, found in _mappings(value[path[0]], path[1:]))
