"""The checkout in a cache that another user made: each works, or says whose something is and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.people import People, Person, given, mode
from tests.srtctl.test_checkout import SCHEMA, SETUP, commit, git

PREPARE = f"""
import json
from launcher.srtctl.checkout import Checkouts
from launcher.srtctl.mirror import Commits
from launcher.srtctl.planned import SrtSlurm
from launcher.core.process import run
ran = []
def counted(argv, **more):
    ran.append(argv)
    return run(argv, **more)
origin, sha, cache, root = sys.argv[1:]
os.environ["COUNT"] = str(Path.home() / "count")
found = Checkouts(run=counted, sleep=lambda seconds: None).prepare(
    SrtSlurm(origin, "main", sha, (), (), {SETUP!r}, 60, root, cache)
)
fetched = [argv[1] for argv in ran if argv[:1] == ["git"] and argv[1] in ("clone", "fetch")]
print(json.dumps([fetched, Commits([Path(cache)])(origin, sha), (found.root / "recipes/a.yaml").read_text()]))
"""


@pytest.fixture
def origin(people: People) -> tuple[Path, str]:
    """A repository that git may read for both, as one behind https is."""
    repository = people.directory("origin", people.alice, 0o755) / "srt-slurm"
    repository.mkdir()
    git("init", "-q", cwd=repository)
    ignored = "bin/\n.venv/\nsrtslurm.yaml\nconfigs/nats-server\n"
    files = {"src/srtctl/core/schema.py": SCHEMA, "recipes/a.yaml": "name: a\n", ".gitignore": ignored, "configs/k": ""}
    sha = commit(repository, files)
    for person in (people.alice, people.bob):
        (person.home / ".gitconfig").write_text(
            f"[safe]\n\tdirectory = {repository}\n\tdirectory = {repository}/.git\n"
        )
    return repository, sha


def prepare(person: Person, origin: tuple[Path, str], cache: Path, name: str, *, ends: int = 0) -> str:
    return person.do(PREPARE, *origin, cache, person.home / name / "tree", ends=ends, umask=0o077)


@pytest.mark.parametrize("rights", [0o2777, 0o1777], ids=oct)
def test_each_has_a_mirror_and_a_base_of_its_own(people: People, origin: tuple[Path, str], rights: int) -> None:
    """git refuses another's repository, whose settings could start programs; a set-up is executed."""
    cache = people.directory("cache", people.alice, rights) / "srt-slurm"
    for person in (people.alice, people.bob):
        for name, fetched in ((f"first-{rights}", '["clone"]'), (f"second-{rights}", "[]")):
            said = prepare(person, origin, cache, name)
            assert said.startswith(f'[{fetched}, true, "name: a\\n"]'), said
    for part in ("mirrors", "bases", "logs"):
        assert mode(cache / part) == f"{rights:o}"
    owners = {path.lstat().st_uid for path in (cache / "mirrors").iterdir()}
    assert owners == {people.alice.uid, people.bob.uid}


@pytest.mark.parametrize("part", ["mirrors", "bases"])
def test_a_cache_where_this_user_may_not_write(people: People, origin: tuple[Path, str], part: str) -> None:
    cache = people.directory("cache", people.alice, 0o777)
    prepare(people.alice, origin, cache, part)
    closed = given(people.alice, cache / part, 0o755)
    said = prepare(people.bob, origin, cache, part, ends=1)
    assert "launcher.core.errors.CheckoutError: " in said and "proxy" not in said, said
    whose = f"{closed} is owned by {people.alice.name}, mode 0755"
    assert f"hint: {whose}: its owner, or root, lets {people.bob.name} in" in said


def test_a_repository_of_another_user_is_asked_once(people: People, origin: tuple[Path, str]) -> None:
    """One by its path, without an entry in `safe.directory`: git says that, and no proxy is to blame."""
    (people.bob.home / ".gitconfig").unlink()
    cache = people.directory("cache", people.bob, 0o755)
    said = prepare(people.bob, origin, cache, "refused", ends=1)
    assert said.count("git clone failed") == 1 and "proxy" not in said
    assert "safe.directory" in said.partition("hint:")[2]
