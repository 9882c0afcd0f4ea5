"""Whether a repository has a commit, as far as the mirrors on this machine can tell. No network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.srtctl.mirror import Git, Mirror


class Commits:
    """Asks the mirrors below some cache directories, and remembers the answers."""

    def __init__(self, caches: Sequence[Path], git: Git | None = None) -> None:
        self._caches = caches
        self._git = git or Git()
        self._asked: dict[tuple[str, str], bool | None] = {}

    def __call__(self, repository: str, sha: str) -> bool | None:
        """Whether a mirror of ``repository`` (a URL) has the commit; None when there is no mirror of it."""
        if (repository, sha) not in self._asked:
            mirrors = [m for c in self._caches if (m := Mirror(c, repository, self._git).path).is_dir()]
            held = (self._git("cat-file", "-e", f"{sha}^{{commit}}", cwd=mirror).ok for mirror in mirrors)
            self._asked[repository, sha] = any(held) if mirrors else None
        return self._asked[repository, sha]
