"""The commit of a git checkout, read from its files: a run's record has it, and nothing waits for git."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from launcher.core.reading import read_file

_LARGEST = 16 << 20
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def head_commit(directory: Path) -> str:
    """The commit; "" where there is no checkout, or its branch has no commit yet."""
    git = directory / ".git"
    if pointer := re.match(r"gitdir: (.+)", _text(git)):  # a work tree beside its repository
        git = directory / pointer[1].rstrip()
    head = _text(git / "HEAD").strip()
    if head.startswith("ref: "):
        name = head.removeprefix("ref: ")
        common = git / _text(git / "commondir").strip()
        lines = (line.partition(" ") for line in _text(common / "packed-refs").splitlines())
        packed = {ref: commit for commit, _, ref in lines}
        head = _text(git / name).strip() or _text(common / name).strip() or packed.get(name, "")
    return head if _COMMIT.fullmatch(head) else ""


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return read_file(path, _LARGEST).decode(errors="replace")
    return ""
