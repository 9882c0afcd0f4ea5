"""Two users of this machine without a common group, and processes of theirs, for tests of shared directories.

As root they are made by useradd and removed with the session; without root, tests that ask for them are skipped.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    *("msgspec", "xxhash", "yaml", "_yaml", "tenacity", "rich", "pygments", "markdown_it", "mdurl"),
    *("submitit", "cloudpickle", "typing_extensions.py"),
)
_PYTHONS = (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info))


@dataclass(frozen=True)
class Person:
    """A user. ``python`` runs for everybody; the code is a copy that everybody reads, since a clone may be private."""

    name: str
    uid: int
    gid: int
    home: Path
    python: str
    code: Path

    @property
    def environment(self) -> dict[str, str]:
        who = {"HOME": str(self.home), "LOGNAME": self.name, "USER": self.name, "PYTHONPATH": str(self.code)}
        return {**who, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def start(self, *argv: str | Path, umask: int = 0o022, **environment: str) -> subprocess.Popen[str]:
        """A program of this user, in a session of its own."""
        return subprocess.Popen(
            [str(word) for word in argv],
            cwd=self.code,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            umask=umask,
            start_new_session=True,
        )

    def run(self, *argv: str | Path, ends: int = 0, umask: int = 0o022, **environment: str) -> str:
        """What a program of this user says on both streams; it has to end with the code ``ends``."""
        with self.start(*argv, umask=umask, **environment) as child:
            out, err = child.communicate(timeout=60)
        assert child.returncode == ends, f"{child.returncode}: {out}{err}"
        return out + err

    def launcher(self, *words: str | Path, ends: int = 0, umask: int = 0o022, **environment: str) -> str:
        return self.run(self.python, "-m", "launcher", *words, ends=ends, umask=umask, **environment)

    def do(self, code: str, *words: str | Path, ends: int = 0, umask: int = 0o022) -> str:
        """What Python code of this user says; ``words`` are its ``sys.argv[1:]``."""
        begin = "import os, sys; from pathlib import Path\n"
        return self.run(self.python, "-c", begin + code, *words, ends=ends, umask=umask)


@dataclass(frozen=True)
class People:
    """Two users, and a place that both may enter."""

    alice: Person
    bob: Person
    place: Path

    def directory(self, name: str, owner: Person, mode: int) -> Path:
        """A new directory of one of them. Several tests may ask for the same name."""
        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.place))
        made.chmod(mode)
        os.chown(made, owner.uid, owner.gid)
        return made


@pytest.fixture(scope="session")
def people() -> Iterator[People]:
    if os.geteuid() != 0 or not shutil.which("useradd"):
        pytest.skip("two users are made by useradd, as root")
    with two_people() as both:
        yield both


@contextmanager
def two_people() -> Iterator[People]:
    """As root: two new users, gone with the block."""
    with ExitStack() as ended:
        place = Path(ended.enter_context(tempfile.TemporaryDirectory(prefix="launcher-people-")))
        place.chmod(0o755)
        code = _readable_code(place / "code")
        both = [_user(f"launcher-{letter}-{os.getpid()}", place, code, ended) for letter in "ab"]
        yield People(both[0], both[1], place)


def _readable_code(code: Path) -> Path:
    for name in ("launcher", "tests", "runners", "recipes"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    site = Path(sysconfig.get_path("purelib"))
    for name in _PACKAGES:
        copy = shutil.copytree if (site / name).is_dir() else shutil.copy
        copy(site / name, code / name)
    for path in (code, *code.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return code


def _user(name: str, place: Path, code: Path, ended: ExitStack) -> Person:
    home = place / name
    add = ["useradd", "-U", "-M", "-d", str(home), name]
    while b"cannot lock" in subprocess.run(add, capture_output=True, timeout=60).stderr:  # others make users as well
        time.sleep(0.5)
    ended.callback(subprocess.run, ["userdel", name], capture_output=True, timeout=60)
    entry = pwd.getpwnam(name)
    home.mkdir(mode=0o700)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    for python in _PYTHONS:
        person = Person(name, entry.pw_uid, entry.pw_gid, home, python, code)
        try:
            person.do("import launcher.image.store, xxhash, yaml")
        except (OSError, AssertionError):
            continue
        return person
    pytest.skip(f"no Python {sys.version_info[:2]} that every user may run")


def mode(path: Path) -> str:
    """The rights of a path, in octal digits."""
    return f"{path.lstat().st_mode & 0o7777:o}"


def given(person: Person, path: Path, rights: int) -> Path:
    """Give a path to somebody."""
    path.chmod(rights)
    os.chown(path, person.uid, person.gid)
    return path
