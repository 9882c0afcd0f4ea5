"""Checkpoints in directories that two users share: each works, or says whose something is and what to do."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from launcher.model.destination import lock_path, staging_directories
from launcher.model.manifest import MANIFEST_NAME
from tests.model.checkpoints import checkpoint
from tests.people import People, Person, given, mode

SHARD = "model-00002-of-00003.safetensors"
STAGE = """
from launcher.model import copy, stage
from launcher.model.source import DirectorySource
copy.PART_SIZE = 64
class Slow:
    def begin(self, files, size): pass
    def advance(self, path, size, count, *, resumed=False):
        print(path, flush=True); __import__("time").sleep(float(sys.argv[3]))
done = stage.stage(DirectorySource(Path(sys.argv[1])), Path(sys.argv[2]), workers=1, progress=Slow(), log=print)
print(done.how, "resumed" if done.resumed else "anew")
"""


ELSEWHERE = """
import os, sys, time
from pathlib import Path
from launcher.core.lease import Lock, LockPace
path = Path(sys.argv[1])
with Lock(path, what="x", wait=1, pace=LockPace(beat=0.2)):
    text = path.read_text().replace(os.uname().nodename, "login-2").replace('boot_id":"', 'boot_id":"x')
    path.write_text(text)
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def source(people: People) -> Path:
    made = checkpoint(people.directory("archive", people.alice, 0o755) / "M")
    (made / "below").mkdir()
    (made / "below/a.txt").write_text("a")
    for path in (made, *made.rglob("*")):
        given(people.alice, path, 0o755 if path.is_dir() else 0o644)
    return made


def stage(person: Person, source: Path, to: Path, *, ends: int = 0) -> str:
    return person.launcher("model", "stage", to, "--from", source, ends=ends, umask=0o077)


@pytest.mark.parametrize(
    ("rights", "files", "directories"), [(0o2775, "664", "2775"), (0o755, "644", "755"), (0o700, "600", "700")]
)
def test_what_is_staged_has_the_rights_of_its_directory(
    people: People, source: Path, rights: int, files: str, directories: str
) -> None:
    place = people.directory("fast", people.alice, rights)
    stage(people.alice, source, place / "models/M")
    made = [place / "models", *(place / "models").rglob("*")]
    assert {mode(path) for path in made if path.is_file()} == {files}
    assert {mode(path) for path in made if path.is_dir()} == {directories}
    if rights != 0o700:
        assert "whole" in people.bob.launcher("model", "check", place / "models/M")
        assert "is there already" in stage(people.bob, source, place / "models/M")


@pytest.mark.parametrize("what", ["directory", "shard", "above", MANIFEST_NAME])
def test_a_checkpoint_that_this_user_may_not_read(people: People, source: Path, what: str) -> None:
    place = people.directory("fast", people.alice, 0o755)
    model = place / "models/M"
    stage(people.alice, source, model)
    closed = {"directory": model, "above": place / "models", "shard": model / SHARD}.get(what, model / what)
    given(people.alice, closed, 0o600 if closed.is_file() else 0o700)
    whose = f"{closed} is owned by {people.alice.name}, mode 0{mode(closed)}"
    output = people.bob.launcher("model", "check", model, ends=0 if what == MANIFEST_NAME else 4)
    assert whose in output
    imports = "from launcher.model.checkpoint import examine\nfrom launcher.model.serving import require_servable\n"
    output = people.bob.do(
        f"{imports}require_servable(examine(Path(sys.argv[1]), precision=None))", model, ends=what != MANIFEST_NAME
    )
    assert what == MANIFEST_NAME or f"hint: {whose}: its owner, or root, lets {people.bob.name} in" in output
    output = stage(people.bob, source, model, ends=0 if what == "shard" else 4)
    assert whose in output or (what == "shard" and "is there already" in output), "sizes and names were compared"
    assert whose in stage(people.bob, model, people.directory("bobs", people.bob, 0o755) / "M", ends=4)
    assert people.bob.launcher("model", "list", place / "models").count(str(place / "models")) >= 1


def test_where_this_user_may_not_write(people: People, source: Path) -> None:
    place = people.directory("fast", people.alice, 0o755)
    output = stage(people.bob, source, place / "M", ends=4)
    assert f"hint: {place} is owned by {people.alice.name}, mode 0755" in output


@pytest.mark.parametrize("rights", [0o1777, 0o2777], ids=oct)
def test_a_staging_that_another_user_left(people: People, source: Path, rights: int) -> None:
    """Nobody goes on in another user's files; `gc` removes what it may, and says whose the rest is."""
    place = people.directory("fast", people.alice, rights)
    begin = "import os, sys; from pathlib import Path\n"
    with people.alice.start(people.alice.python, "-c", begin + STAGE, source, place / "M", "0.05") as killed:
        assert killed.stdout is not None
        for _ in range(6):
            killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
    (left,) = staging_directories(place / "M")
    output = people.bob.do(STAGE, source, place / "M", "0")
    assert output.endswith("staged anew\n") and lock_path(place / "M").exists() == (rights == 0o1777)
    assert left.exists() and (place / "M" / SHARD).stat().st_uid == people.bob.uid
    for words in ((), ("--apply",)):
        output = people.bob.launcher("model", "gc", place, *words)
        assert f"kept, owned by {people.alice.name}, who may remove it, or root: {left} " in output, output
    assert left.exists()
    people.alice.launcher("model", "gc", place, "--apply")
    assert os.listdir(place) == ["M"]


def test_gc_does_not_wait_for_an_owner_that_lives_elsewhere(people: People, source: Path) -> None:
    """It is of another host by its owner file, and beats: seen to live, it is not waited for."""
    place = people.directory("fast", people.alice, 0o777)
    shutil.copytree(source, place / "M.staging.0123456789ab")
    lock = lock_path(place / "M")
    with people.alice.start(people.alice.python, "-c", ELSEWHERE, lock) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        began = time.monotonic()
        output = people.bob.launcher("model", "gc", place, "--apply")
        assert time.monotonic() - began < 30, "the lease is 120 s"
        other.kill()
    assert "looking for 132 s at the most whether it lives: pid " in output and "on login-2" in output
    assert "kept, held by pid" in output
