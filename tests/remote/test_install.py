"""Having a launcher on a login node: whole or absent, versions side by side, by the Python there. A real sshd."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from launcher import __version__
from launcher.core.errors import ConfigError, RemoteError
from launcher.core.process import run
from launcher.remote import install, tidying
from launcher.remote.bundle import Bundle
from launcher.remote.by_openssh import OpenSSHOpener
from launcher.remote.destination import resolve
from launcher.remote.install import Installer, Node, pack_wheels, version_name, wheels_for
from launcher.remote.session import Session
from tests.remote.servers import sshd


def repacked(name: str, directory: Path) -> None:
    """A wheel made of an installed distribution, so that no registry is needed."""
    distribution = importlib.metadata.distribution(name)
    pure = "Root-Is-Purelib: true" in (distribution.read_text("WHEEL") or "")
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    glibc = platform.libc_ver()[1].replace(".", "_")
    tags = "py3-none-any" if pure else f"{own}-{own}-manylinux_{glibc}_{platform.machine()}"
    plain = distribution.metadata["Name"].replace("-", "_")
    with zipfile.ZipFile(directory / f"{plain}-{distribution.version}-{tags}.whl", "w") as wheel:
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts and Path(str(file.locate())).is_file():
                wheel.write(str(file.locate()), file.as_posix())


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    for name in install._PACKAGES:
        repacked(name, directory)
    return directory


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSHOpener]:
    with sshd(tmp_path_factory.mktemp("server")) as server:
        where = resolve("login", ssh=server.command, run=run, home=server.directory)
        opened = OpenSSHOpener(where)
        yield opened
        opened.close()


@pytest.fixture
def installer(opener: OpenSSHOpener, tmp_path: Path) -> Installer:
    return Installer(opener, "login", directory=str(tmp_path / "there"), python=sys.executable)


def test_a_version_is_installed_once_and_answers(installer: Installer, opener: OpenSSHOpener, wheels: Path) -> None:
    node = installer.describe_node()
    assert (node.python, node.machine, node.versions) == (sys.version_info[:3], platform.machine(), ())
    files = wheels_for(node, cache=Path("/nonexistent"), run=run, wheels=wheels)
    name, made = version_name(files), pack_wheels(files)
    assert installer.install(name, made)
    assert installer.describe_node().versions == (name,)
    began = time.monotonic()
    assert not installer.install(name, made)
    assert time.monotonic() - began < 60
    with Session(opener.open(installer.command(name)), "login") as session:
        assert session.greeting.version == __version__
    # What is installed has the runner files and recipes with it.
    python = installer.command(name).split()[0]
    listed = run([python, "-I", "-m", "launcher", "runner", "list"], timeout=120, cwd=Path("/"))
    assert listed.ok and "gb200-nv" in listed.stdout
    place = Path(installer.directory) / "versions"
    assert tidying.unneeded_versions(place, set(), newest=0) == [name]
    assert not tidying.unneeded_versions(place, {name}, newest=0)
    with Session(installer.start_agent(name), "login"):  # where it was asked; and one that runs stays
        assert not installer.open and not tidying.unneeded_versions(place, set(), newest=0)


BROKEN = "0.0-broken"


def broken(content: bytes = b"", **wheels: bytes) -> Bundle:
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in wheels.items():
            member = tarfile.TarInfo(f"{name}.whl")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    sent = content or archive.getvalue()
    return Bundle(hashlib.sha256(sent).hexdigest(), sent)


def wheel(**files: str) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return content.getvalue()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (broken(), "does not start"),
        (broken(launcher=wheel(launcher____main__="")), "does not start"),
        (broken(one=wheel(**{"..__evil": "x"})), "leaves its directory"),
        (broken(b"no archive"), "did not answer"),
    ],
)
def test_what_does_not_work_is_never_a_version(
    installer: Installer, made: Bundle, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RemoteError, match=message):
        installer.install(BROKEN, made)
    assert installer.describe_node().versions == ()
    assert [path.name for path in (tmp_path / "there/versions").iterdir()] == [".lock"]
    assert not (tmp_path / "evil").exists()


def test_a_connection_that_ends_early_leaves_nothing(
    installer: Installer, opener: OpenSSHOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = opener.open

    def cut(command: str):  # type: ignore[no-untyped-def]
        pipe = real(command)
        send = pipe.send

        def half(data: bytes) -> None:
            send(data[: len(data) // 2])
            pipe.finish()

        pipe.send = half  # type: ignore[method-assign]
        return pipe

    monkeypatch.setattr(opener, "open", cut)
    with pytest.raises(RemoteError, match="too early"):
        installer.install(BROKEN, broken(os.urandom(400_000)))
    monkeypatch.undo()
    assert installer.describe_node().versions == ()


def test_two_at_once_install_one(opener: OpenSSHOpener, wheels: Path, tmp_path: Path) -> None:
    installers = [
        Installer(opener, "login", directory=str(tmp_path / "there"), python=sys.executable) for _ in range(2)
    ]
    files = wheels_for(installers[0].describe_node(), cache=Path("/nonexistent"), run=run, wheels=wheels)
    name, made = version_name(files), pack_wheels(files)
    new: list[bool] = []
    threads = [threading.Thread(target=lambda i=i: new.append(i.install(name, made))) for i in installers]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(new) == 2
    assert installers[0].describe_node().versions == (name,)


def test_a_directory_that_others_can_write_is_refused(installer: Installer, tmp_path: Path) -> None:
    installer.describe_node()
    (tmp_path / "there").chmod(0o777)
    with pytest.raises(RemoteError, match="written by others") as raised:
        installer.describe_node()
    assert "chmod go-w" in str(raised.value)


def test_no_python_there_is_said(opener: OpenSSHOpener) -> None:
    with pytest.raises(RemoteError, match="there is no /nonexistent/python3") as raised:
        Installer(opener, "login", python="/nonexistent/python3").describe_node()
    assert "login.python" in str(raised.value)


@pytest.mark.parametrize("word", ["a b", "$(touch x)", "-c", "a;b", "~/`x`", "", "a'b"])
def test_nothing_that_a_shell_would_take_for_more_than_a_word(opener: OpenSSHOpener, word: str) -> None:
    for place in ({"directory": word}, {"python": word}):
        with pytest.raises(ConfigError):
            Installer(opener, "login", **place)


NODE = Node((3, 11, 4), "aarch64", ("glibc", "2.31"), 1 << 40, ())

WHEELS = [
    ("p-1-py3-none-any.whl", True),
    ("p-1-py2.py3-none-any.whl", True),
    ("p-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True),
    ("p-1-cp311-cp311-manylinux_2_31_aarch64.whl", True),
    ("p-1-1build-cp311-cp311-manylinux_2_28_aarch64.whl", True),
    ("p-1-cp38-abi3-manylinux_2_28_aarch64.whl", True),
    ("p-1-cp311-cp311-manylinux_2_34_aarch64.whl", False),  # a newer C library
    ("p-1-cp312-abi3-manylinux_2_28_aarch64.whl", False),
    ("p-1-cp310-cp310-manylinux_2_17_aarch64.whl", False),
    ("p-1-cp311-cp311-manylinux_2_17_x86_64.whl", False),
    ("p-1-cp311-cp311-musllinux_1_2_aarch64.whl", False),
    ("p-2-py3-none-any.whl", False),
    ("q-1-py3-none-any.whl", False),
    ("p-1.whl", False),
]


@pytest.mark.parametrize(("name", "fits"), WHEELS)
def test_a_wheel_fits_by_its_tags(name: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert (install._wheel(tmp_path, "P", "1", NODE) is not None) == fits


def test_wheels_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"no wheels of .*msgspec=="):
        wheels_for(NODE, cache=tmp_path, run=run, wheels=tmp_path)
    other = Node((3, 11, 4), "x86_64", ("musl", "1.2"), 0, ())
    with pytest.raises(RemoteError, match="no wheels are published") as raised:
        wheels_for(other, cache=tmp_path, run=run)
    assert "--wheels" in str(raised.value)


def test_what_a_login_node_needs_is_what_the_project_depends_on() -> None:
    """All dependencies but paramiko, and what they need themselves."""
    import re

    def needs(name: str, seen: set[str]) -> set[str]:
        for line in importlib.metadata.requires(name) or ():
            found = re.match(r"[A-Za-z0-9._-]+", line)
            assert found
            plain = re.sub(r"[-_.]+", "-", found[0]).lower()
            if "extra ==" not in line and plain not in seen and plain != "paramiko":
                seen.add(plain)
                needs(found[0], seen)
        return seen

    assert {re.sub(r"[-_.]+", "-", name).lower() for name in install._PACKAGES} == needs("launcher", set())
