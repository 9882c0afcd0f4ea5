"""One importer process for the tests: ``importer.py DIRECTORY [no-lock]`` has the image there, and says how.

What was not as it should be is on stderr, a line for each fact.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launcher.core.lease import Lock, LockResult
from launcher.rehearsal import enroot_stand_in
from tests.image.support import EagerLock, Store, request


class NoLock(Lock):
    """A lock as some file systems give it: had by everybody at once."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, what="", wait=0)

    def __enter__(self) -> LockResult:
        return LockResult(acquired=True)


def main(directory: str, *options: str) -> None:
    assert enroot_stand_in.VERSION.endswith("rehearsal")
    lock = NoLock if "no-lock" in options else EagerLock
    record = Store(lock=lock).ensure(request(Path(directory)))
    print(record.how, flush=True)
    print(*record.notes, sep="\n", end="\n" if record.notes else "", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
