"""Image directories that two users share: each works, or says whose something is and what to do."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launcher.image.squash import sidecar_path
from tests.image.support import NAME, small_image
from tests.people import People, Person, given, mode

DEAD = 2**22 + 1


@pytest.fixture
def shared(people: People) -> Path:
    """A directory of one user's, with images that everybody may write to."""
    root = people.directory("root", people.alice, 0o777)
    (root / "images").mkdir()
    given(people.alice, root / "images", 0o777)
    return root


def image(person: Person, root: Path, *, ends: int = 0, umask: int = 0o077) -> str:
    return person.run(person.python, "-m", "tests.image.importer", root, ends=ends, umask=umask)


def test_what_one_imports_under_any_umask_the_other_uses(people: People, shared: Path) -> None:
    images = shared / "images"
    images.chmod(0o2775)
    assert image(people.alice, shared) == "imported\n"
    assert image(people.bob, shared) == "hit\n"
    assert {mode(path) for path in images.iterdir()} == {"664"}
    assert mode(shared / "tmp") == "777", "enroot's temporaries of others have room there"


def test_where_this_user_may_not_write_it_is_said_whose_the_directory_is(people: People, shared: Path) -> None:
    given(people.alice, shared / "images", 0o755)
    output = image(people.bob, shared, ends=1)
    assert "cannot import nvcr.io" in output and "Permission denied" in output
    assert f"{shared / 'images'} is owned by {people.alice.name}, mode 0755" in output
    assert f"lets {people.bob.name} in" in output
    assert image(people.alice, shared) == "imported\n"
    assert image(people.bob, shared) == "hit\n", "what is there is used all the same"


def test_temporaries_in_a_directory_of_another_user(people: People, shared: Path) -> None:
    (shared / "tmp").mkdir()
    given(people.alice, shared / "tmp", 0o755)
    assert f"{shared / 'tmp'} is owned by {people.alice.name}, mode 0755" in image(people.bob, shared, ends=1)


@pytest.mark.parametrize("what", ["image", "directory"])
def test_an_image_that_this_user_may_not_read(people: People, shared: Path, what: str) -> None:
    squash = given(people.alice, small_image(shared / "images" / NAME), 0o600)
    closed = squash
    if what == "directory":
        closed = given(people.alice, squash.parent, 0o700)
    output = image(people.bob, shared, ends=1)
    assert f"{closed} is owned by {people.alice.name}, mode 0{mode(closed)}" in output, output
    listed = people.bob.launcher("image", "list", "--directory", squash.parent, ends=3 if what == "directory" else 0)
    assert people.alice.name in listed


def test_a_damaged_image_that_only_its_owner_may_remove(people: People, shared: Path) -> None:
    """It is said before anything is imported."""
    images = given(people.alice, shared / "images", 0o1777)
    (images / NAME).write_bytes(bytes(5000))
    given(people.alice, images / NAME, 0o644)
    output = image(people.bob, shared, ends=1)
    assert "it cannot be replaced: not a whole squash file: begins with zeros" in output
    assert f"hint: it is owned by {people.alice.name}, who may remove it, or root" in output
    assert sorted(os.listdir(images)) == [NAME] and image(people.alice, shared).startswith("imported")


def test_a_record_that_this_user_may_not_read_or_replace(people: People, shared: Path) -> None:
    """Then it says nothing: the image is used, and so it is where its directory is sticky."""
    images = given(people.alice, shared / "images", 0o1777)
    image(people.alice, shared)
    given(people.alice, sidecar_path(images / NAME), 0o600)
    assert image(people.bob, shared) == "adopted\n"
    given(people.alice, sidecar_path(images / NAME), 0o644)
    small_image(images / NAME, "another file, by bash")
    assert image(people.bob, shared).startswith("adopted\n")
    assert json.loads(sidecar_path(images / NAME).read_text())["user"] == people.alice.name


def test_gc_goes_on_after_what_only_its_owner_may_remove(people: People, shared: Path) -> None:
    images = given(people.alice, shared / "images", 0o1777)
    host, old = os.uname().nodename[:32], time.time() - 40 * 86400
    theirs = given(people.alice, small_image(images / f".a.sqsh.{host}.{DEAD}.0123abcd.part"), 0o644)
    unused = given(people.alice, small_image(images / "c.sqsh"), 0o644)
    mine = given(people.bob, small_image(images / f".d.sqsh.{host}.{DEAD}.0123abcd.part"), 0o644)
    orphan = given(people.bob, small_image(images / "e.sqsh.json"), 0o644)
    for path in (unused, orphan):
        os.utime(path, (old, old))
    people.alice.do(
        "from launcher.image.usage import add_mark\nadd_mark(Path(sys.argv[1]), 'r', Path('/r'))", images / "e.sqsh"
    )
    (mark,) = (images / ".uses/e.sqsh").iterdir()
    for path in (mark, mark.parent):
        os.utime(path, (old, old))
    gc = ("image", "gc", "--directory", images, "--state", people.bob.home)
    for words in (gc, (*gc, "--apply")):
        output = people.bob.launcher(*words)
        for path in (theirs, unused, mark):
            assert f"kept, owned by {people.alice.name}, who may remove it, or root: {path} " in output, output
        for path in (mine, orphan):
            assert f"{'removed' if '--apply' in words else 'would remove'}: {path} " in output
    assert sorted(path.name for path in images.iterdir()) == sorted([theirs.name, ".uses", "c.sqsh"])
    assert f"removed: {theirs}" in people.alice.launcher(*gc[:-1], people.alice.home, "--apply")


def test_marks_of_both_keep_an_image_whatever_their_umask(people: People, shared: Path) -> None:
    images = given(people.alice, shared / "images", 0o777)
    given(people.alice, small_image(images / "x.sqsh"), 0o644)
    code = "from launcher.image.usage import add_mark\nprint(add_mark(Path(sys.argv[1]), 'r', Path(sys.argv[2])))"
    for person in (people.alice, people.bob):
        assert person.do(code, images / "x.sqsh", person.home / "r", umask=0o077) == "None\n"
    listed = people.bob.launcher("image", "list", "--directory", images, "--json", "--state", people.bob.home)
    (document,) = json.loads(listed)
    assert len(document["live_runs"]) == 2
    release = "from launcher.image.usage import remove_marks\nremove_marks(Path(sys.argv[1]), 'r', Path(sys.argv[2]))"
    for person in (people.bob, people.alice):
        person.do(release, images, person.home / "r")
    assert list((images / ".uses/x.sqsh").iterdir()) == []
