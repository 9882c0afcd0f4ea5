"""`scripts/faults two_users [--trials N]`: as root, imports and stagings of one user killed while another one waits.

One user imports an image, or stages a checkpoint, and is killed at a random moment, alone or with all of its children;
the other one wants the same. The directory is writable for both, or sticky. Afterwards, each time: what has the final
name was absent or whole at every look, and never replaced; the second one succeeds within its bound; and `gc` of both
leaves nothing but that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.image.squash import MissingImage, inspect
from launcher.model.manifest import MANIFEST_NAME, Manifest
from tests.image.support import NAME
from tests.model.checkpoints import checkpoint
from tests.people import People, Person, given, two_people

SHORT = 2
"""Trials of each kind in CI."""

LONGEST = 1.6
"""Seconds within which the first one is killed; it then is at its end."""

_BEGIN = "import os, sys; from pathlib import Path\n"
_STAGE = """
import time
from launcher.model import copy, stage
from launcher.model.source import DirectorySource
copy.PART_SIZE = 64
class Slow:
    def begin(self, files, size): pass
    def advance(self, path, size, count, *, resumed=False): time.sleep(float(sys.argv[3]))
print(stage.stage(DirectorySource(Path(sys.argv[1])), Path(sys.argv[2]), workers=2, progress=Slow()).how)
"""


@dataclass
class Watched:
    """What was seen at a final name: the files that had it (inodes), and looks at something torn."""

    files: set[int] = field(default_factory=set)
    torn: int = 0

    def look(self, final: Path) -> None:
        try:
            before = final.stat().st_ino
            if final.name == NAME:
                inspect(final)
            elif (manifest := Manifest.read(final)) is None or manifest.differences(final):
                self.torn += 1
            if final.stat().st_ino == before:
                self.files.add(before)
        except (MissingImage, FileNotFoundError):
            pass
        except ImageError:
            self.torn += 1


@dataclass(frozen=True)
class Kind:
    """Something that both users want at ``final`` below a directory of the first one's, and who collects garbage."""

    name: str
    directory: Callable[[Path], Path]
    final: Callable[[Path], Path]
    words: Callable[[Person, Path, bool], list[str | Path]]
    gc: Callable[[Path], list[str | Path]]
    leaves: Callable[[Path], set[str]]


IMAGES = Kind(
    "image",
    lambda root: root / "images",
    lambda root: root / "images" / NAME,
    lambda who, root, slow: [who.python, "-m", "tests.image.importer", root],
    lambda root: ["image", "gc", "--directory", root / "images", "--apply"],
    lambda root: {NAME, f"{NAME}.json"},
)
MODELS = Kind(
    "model",
    lambda root: root / "fast",
    lambda root: root / "fast/M",
    lambda who, root, slow: [
        who.python,
        "-c",
        _BEGIN + _STAGE,
        root / "source",
        root / "fast/M",
        "0.08" if slow else "0",
    ],
    lambda root: ["model", "gc", root / "fast", "--apply"],
    lambda root: {"M"},
)


def trial(kind: Kind, people: People, chance: random.Random) -> tuple[str, str | None]:
    """One kill; how it came out, and what is wrong."""
    rights, alone, after = chance.choice([0o777, 0o1777]), chance.random() < 0.5, chance.uniform(0.0, LONGEST)
    root = people.directory(kind.name, people.alice, 0o777)
    for path in (checkpoint(root / "source"), *(root / "source").iterdir()):
        given(people.alice, path, 0o755 if path.is_dir() else 0o644)
    kind.directory(root).mkdir()
    given(people.alice, kind.directory(root), rights)
    (root / "tmp").mkdir()
    given(people.alice, root / "tmp", 0o1777)
    final, watched = kind.final(root), Watched()
    with people.alice.start(*kind.words(people.alice, root, True), LAUNCHER_REHEARSAL_ENROOT="slow=0.8") as first:
        deadline = time.monotonic() + 120
        while len(os.listdir(kind.directory(root))) == 0 and time.monotonic() < deadline:
            time.sleep(0.002)  # until it has begun
        with people.bob.start(*kind.words(people.bob, root, False)) as second:
            began = time.monotonic()
            while second.poll() is None and time.monotonic() < began + 60:
                if first.poll() is None and time.monotonic() > began + after:
                    with contextlib.suppress(ProcessLookupError):
                        (os.kill if alone else os.killpg)(first.pid, signal.SIGKILL)
                watched.look(final)
                time.sleep(0.002)
            if second.poll() is None:
                second.kill()
            out, err = second.communicate()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    ended = "killed" if first.returncode else "at its end"
    how = f"{kind.name}, {rights:o}: the first {ended}, the second: {out.strip() or 'failed'}"
    return how, wrong(kind, people, root, watched, err if second.returncode else "")


def wrong(kind: Kind, people: People, root: Path, watched: Watched, error: str) -> str | None:
    """What is wrong after both have ended, in a few words."""
    watched.look(kind.final(root))
    if error:
        return f"the second one failed: {error[-300:]}"
    if watched.torn or len(watched.files) != 1:
        return f"{watched.torn} torn looks, {len(watched.files)} files had the name"
    for person in (people.bob, people.alice):
        person.launcher(*kind.gc(root), "--state", person.home)
    left = {path.name for path in kind.directory(root).iterdir()} ^ kind.leaves(root)
    if kind is MODELS:
        left |= {name for name in os.listdir(kind.final(root)) if name.startswith(".") and name != MANIFEST_NAME}
    return f"gc leaves {', '.join(sorted(left))}" if left else None


def trials(people: People, number: int, seed: int = 13) -> Iterator[tuple[str, str | None]]:
    chance = random.Random(seed)
    for _ in range(number):
        yield trial(IMAGES, people, chance)
        yield trial(MODELS, people, chance)


def main(argv: list[str]) -> int:
    """Run the trials; 1 when an outcome was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/faults two_users")
    parser.add_argument("--trials", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} of each kind")
    given_ = parser.parse_args(argv)
    counts, bad = Counter[str](), 0
    with two_people() as people:
        for how, said in trials(people, SHORT if given_.short else given_.trials, random.randrange(2**32)):
            counts[how] += 1
            if said:
                bad += 1
                print(f"wrong: {how}: {said}", file=sys.stderr, flush=True)
    for how, count in sorted(counts.items()):
        print(f"{count:5} {how}")
    print(f"{counts.total()} trials, {bad} wrong")
    return 1 if bad else 0
