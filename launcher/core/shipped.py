"""Where runner files, recipes and rules' pages lie that come with the launcher: in its repository, or in its wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """A shipped directory (``runners``, ``recipes``, ``docs``): beside the package, or inside it in a wheel."""
    inside = _PACKAGE / "shipped_data" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
