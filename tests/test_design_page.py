"""docs/design.md names files and rooms: they are there, and every room is named."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/design.md").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"(?:[a-z_]+/)+[a-z_]+\.(?:py|yaml)", PAGE)) - {"runners/runner.yaml"}
    assert len(named) > 30
    missing = [name for name in sorted(named) if not any((ROOT / base / name).exists() for base in ("", "launcher"))]
    assert missing == []


def test_every_room_is_on_the_page() -> None:
    rooms = {path.parent.name for path in (ROOT / "launcher").glob("*/__init__.py")}
    drawn = set(re.findall(r"^  ([a-z]+)/ ", PAGE, re.MULTILINE))
    assert drawn == rooms


def test_twenty_changes_have_a_place() -> None:
    table = PAGE.partition("## Where to change what")[2].partition("\n## ")[0]
    assert table.count("\n|") - 2 >= 20
