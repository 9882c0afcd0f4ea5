"""What a stranger installs: an sdist, the wheel that is built of it, and that in fresh environments."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from launcher import __version__
from tests.remote.test_install import repacked

ROOT = Path(__file__).resolve().parents[1]
README, GITHUB = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guides/github.md"))
ROW = ("-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--seq", "1k1k", "--topology", "1P1D DEP4/TP4", "--conc", "4")
ROW += ("--runner", "local")
QUICK = {"PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
MAX_WHEEL = 1_500_000
"""Bytes. The documentation's text, runner files and recipes are in it."""


def _python(version: str) -> str | None:
    """An interpreter of that version that starts: pyenv's shims are there for versions that are not chosen, too."""
    for name in (f"python{version}", *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))):
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], capture_output=True, timeout=60, check=False).returncode == 0:
            return found
    return None


FOUND = [python for python in map(_python, ("3.10", "3.11", "3.12", "3.13")) if python] or [sys.executable]
PYTHONS = sorted({FOUND[0], FOUND[-1]})
"""The oldest and the newest of the supported interpreters that can be had here."""


def run(*argv: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a program that succeeds."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LAUNCHER", "VIRTUAL"))}
    done = subprocess.run(
        list(map(str, argv)), cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has: the tracked files."""
    tree = tmp_path_factory.mktemp("clone") / "launcher"
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def release(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of the tracked files, and the wheel that is built of the sdist alone."""
    directory = tmp_path_factory.mktemp("release")
    run(sys.executable, "-m", "build", "--outdir", directory, tree, cwd=directory)
    return next(directory.glob("*.tar.gz")), next(directory.glob("*.whl"))


def test_the_wheel_has_what_is_shipped_and_nothing_else(release: tuple[Path, Path]) -> None:
    sdist, wheel = release
    assert __version__ in sdist.name and __version__ in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.split("/")[2] for name in names if name.startswith("launcher/shipped_data/")}
    assert shipped == {"runners", "recipes", "docs"}
    top = {name.split("/")[0] for name in names}
    assert top == {"launcher", f"launcher-{__version__}.data", f"launcher-{__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    data = {path.suffix for path in map(Path, names) if path.parts[0] == "launcher"}
    assert data <= {
        ".py",
        ".yaml",
        ".yml",
        ".json",
        ".sh",
        ".txt",
        ".css",
        ".js",
        ".md",
        ".typed",
        ".bash",
        ".zsh",
        ".fish",
    }
    print(f"{len(names)} files, wheel {wheel.stat().st_size} bytes, sdist {sdist.stat().st_size} bytes")
    assert wheel.stat().st_size < MAX_WHEEL


def test_the_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"^version\s*=\s*\"", text, re.MULTILINE)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def launcher(program: Path, *argv: str, home: Path, **environment: str) -> str:
    """What an installed launcher prints."""
    return run(program, *argv, cwd=home, HOME=str(home), LAUNCHER_STATE=str(home / "state"), **environment)


def works(program: Path, home: Path, run_id: str) -> None:
    """What is installed knows its version, has its pages, runner files and recipes, and drives a run."""
    assert launcher(program, "--version", home=home).strip() == f"launcher {__version__}"
    assert f"launcher {__version__}, Python" in launcher(program, "version", home=home)
    assert "glossary" in launcher(program, "help", home=home)
    assert "1 of 1 runs succeeded" in launcher(program, "run", *ROW, "--run-id", run_id, home=home)


def needed(name: str) -> set[str]:
    """A distribution that is installed here, and all that it needs."""
    names = {name}
    for text in importlib.metadata.requires(name) or ():
        word, _, marker = text.partition(";")
        if "extra" not in marker:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                names |= needed(re.split(r"[^\w.-]", word.strip())[0])
    return names


INSTALLERS = re.findall(r"^(pipx|uv tool) install \.$", README, re.MULTILINE)


@pytest.mark.parametrize(("installer", "python"), [*zip(INSTALLERS, PYTHONS, strict=False)])
def test_a_stranger_installs_it_as_the_readme_says(installer: str, python: str, tree: Path, tmp_path: Path) -> None:
    interpreter = {"PIPX_DEFAULT_PYTHON": python, "UV_PYTHON": python, "UV_TOOL_BIN_DIR": str(tmp_path / ".local/bin")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    began = time.monotonic()
    run(*installer.split(), "install", ".", cwd=tree, HOME=str(tmp_path), PATH=path, **QUICK, **interpreter)
    print(f"{installer} install: {time.monotonic() - began:.1f} s")
    works(tmp_path / ".local/bin/launcher", tmp_path, "first")


def test_a_runner_host_is_installed_upgraded_and_rolled_back(release: tuple[Path, Path], tmp_path: Path) -> None:
    """The block of docs/guides/github.md, and a later version beside it, which comes without an index."""
    block = re.search(r"```sh\n(version=.*?)```", GITHUB, re.DOTALL)
    assert block is not None
    source = re.search(r"git\+https://\S+(?=\")", block[1])
    assert source is not None
    typed = f"set -e\n{block[1].replace(source[0], release[1].as_uri())}"
    path = f"{Path(PYTHONS[-1]).parent}:{os.environ['PATH']}"
    run("bash", "-c", typed, cwd=tmp_path, HOME=str(tmp_path), PATH=path, **QUICK)
    current = tmp_path / "launcher/current/bin/launcher"
    works(current, tmp_path, "first")
    assert (tmp_path / f"launcher/{__version__}/share/man/man1/launcher.1").is_file()
    launcher(current, "run", *ROW, "--run-id", "goes-on", "--detach", home=tmp_path, LAUNCHER_REHEARSAL_SECONDS="1")

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in needed("launcher") - {"launcher"}:
        repacked(name, wheels)
    shutil.copy(release[1], wheels)
    offline = "--no-index --find-links wheels launcher"
    assert f"pip install {offline.replace('wheels', 'WHEELS')}" in GITHUB
    before, _, after = typed.replace(f"version={__version__}", "version=99.0.0").partition("install ")
    upgrade = before + f"install {offline}\n" + after.partition("\n")[2]
    run("bash", "-c", upgrade, cwd=tmp_path, HOME=str(tmp_path), PATH=f"{Path(sys.executable).parent}:{path}", **QUICK)
    for file in (tmp_path / "launcher/99.0.0/lib").glob("python*/site-packages/launcher/__init__.py"):
        file.write_text(file.read_text().replace(__version__, "99.0.0"))  # what a later release differs in, at least
    assert launcher(current, "--version", home=tmp_path).strip() == "launcher 99.0.0"
    assert "first" in launcher(current, "status", home=tmp_path)
    deadline = time.monotonic() + 600
    while "succeeded" not in (shown := launcher(current, "status", "goes-on", home=tmp_path)):
        said = (tmp_path / "state/runs/goes-on/driver.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, shown + said
        time.sleep(0.5)

    back = f"ln -sfn {__version__} launcher/next && mv -T launcher/next launcher/current"
    run("bash", "-c", back, cwd=tmp_path)
    assert launcher(current, "--version", home=tmp_path).strip() == f"launcher {__version__}"
    assert "goes-on" in launcher(current, "status", home=tmp_path)
