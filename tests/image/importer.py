"""One importer process for the tests: ``importer.py DIRECTORY [no-lock]`` has the image there, and says how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launcher.core.lease import Held, Lock
from launcher.image.store import ImageStore
from launcher.rehearsal import enroot_stand_in
from tests.image.support import ENROOT, EagerLock, request


class NoLock(Lock):
    """A lock as some file systems give it: had by everybody at once."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, what="", wait=0)

    def __enter__(self) -> Held:
        return Held(acquired=True)


def main(directory: str, *options: str) -> None:
    assert enroot_stand_in.VERSION.endswith("rehearsal")
    lock = NoLock if "no-lock" in options else EagerLock
    record = ImageStore(enroot=ENROOT, lock=lock).ensure(request(Path(directory)))
    print(record.how, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
