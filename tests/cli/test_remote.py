"""`launcher remote`: a real sshd as the login node, and what a person sees of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import __version__
from launcher.remote.install import content_name
from tests.remote.servers import Server, installed, sshd

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def launcher(server: Server, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs `launcher remote …` where a runner file names this server as its login node."""
    runners = tmp_path / "runners"
    runners.mkdir()
    text = (ROOT / "runners/one-machine.yaml").read_text()
    login = f"login: {{host: login, directory: {tmp_path}/there, python: {sys.executable}}}\n"
    (runners / "here.yaml").write_text(text.replace("name: one-machine", "name: here", 1) + login)

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        places = ["--runners", str(runners), "--state", str(tmp_path / "state")]
        if words[0] != "list":
            places += ["--ssh", f"ssh -F {server.config}"]
        argv = [sys.executable, "-m", "launcher", "remote", *words, *places]
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ}, cwd=ROOT)

    return start


def test_a_runner_names_its_login_node(launcher) -> None:  # type: ignore[no-untyped-def]
    listed = launcher("list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[1].split()[:2] == ["here", "login"]


def test_what_is_missing_there_is_said_with_what_to_do(launcher) -> None:  # type: ignore[no-untyped-def]
    answer = launcher("doctor", "here")
    assert answer.returncode == 8
    assert "is not installed there" in answer.stderr and "remote install here" in answer.stderr
    assert "Python" in answer.stdout
    assert "remote install here" in launcher("gc", "here").stderr


def test_nobody_is_let_in_twice_for_one_command(launcher, server: Server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Also where nothing is known of the node yet: what looks there becomes the agent. OpenSSH, a child for each."""
    installed(tmp_path / "there", {"LAUNCHER_STATE": str(tmp_path / "far")})
    for words in (("doctor", "here"), ("gc", "here"), ("doctor", "here")):
        before = server.let_in()
        assert launcher(*words).returncode == 0
        assert server.let_in() == before + 1, words


def test_an_empty_directory_of_wheels_is_named(launcher, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "wheels").mkdir()
    answer = launcher("install", "here", "--wheels", str(tmp_path / "wheels"))
    assert answer.returncode == 8
    assert f"{tmp_path}/wheels: no wheels of" in answer.stderr and "hint:" in answer.stderr


def test_a_host_that_is_not_there_and_a_runner_without_login(launcher) -> None:  # type: ignore[no-untyped-def]
    assert launcher("doctor", "nowhere.invalid").returncode == 8
    answer = launcher("doctor", "gb200-nv")
    assert answer.returncode == 2
    assert "login: {host: NAME}" in answer.stderr


def test_a_launcher_of_other_files_or_of_another_version_is_not_spoken_with(launcher, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    versions = tmp_path / "there/versions"
    installed(tmp_path / "there", {})
    (own,) = versions.iterdir()
    for name, printed in (
        (f"{__version__}-0123456789ab-01234567", f"launcher {__version__} there is of other files than this one"),
        ("9.9-0123456789ab-01234567", f"launcher {__version__} is not installed there, but 9.9-"),
    ):
        own = own.rename(versions / name)
        answer = launcher("doctor", "here")
        assert answer.returncode == 8 and printed in answer.stderr and "remote install here" in answer.stderr
    own = own.rename(versions / f"{content_name()}-checkout")
    python = own / "python/bin/python"
    other = 'import launcher; launcher.__version__ = "9.9"; from launcher.cli import main; main(["remote-agent"])'
    python.write_text(python.read_text().replace('"$@"', f"-c '{other}'"))
    answer = launcher("doctor", "here")
    assert answer.returncode == 8 and f"launcher 9.9 answers there, and this one is {__version__}" in answer.stderr
