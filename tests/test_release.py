"""What a stranger installs: an sdist, the wheel that is built of it, and that in fresh environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from launcher import __version__

ROOT = Path(__file__).resolve().parents[1]
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
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of the tracked files, and the wheel that is built of the sdist alone."""
    directory = tmp_path_factory.mktemp("release")
    tree = directory / "tree"
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
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
    assert data <= {".py", ".yaml", ".yml", ".json", ".sh", ".txt", ".css", ".js", ".md", ".typed"}
    print(f"{len(names)} files, wheel {wheel.stat().st_size} bytes, sdist {sdist.stat().st_size} bytes")
    assert wheel.stat().st_size < MAX_WHEEL


def test_the_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"^version\s*=\s*\"", text, re.MULTILINE)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: "-".join(Path(python).parts[-3:]))
def test_a_stranger_installs_it(python: str, release: tuple[Path, Path], tmp_path: Path) -> None:
    run(python, "-m", "venv", "venv", cwd=tmp_path)
    bin_ = tmp_path / "venv/bin"
    run(bin_ / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", release[1], cwd=tmp_path)
    state = {"LAUNCHER_STATE": str(tmp_path / "state"), "HOME": str(tmp_path)}
    assert run(bin_ / "launcher", "--version", cwd=tmp_path, **state).strip() == f"launcher {__version__}"
    assert "glossary" in run(bin_ / "launcher", "help", cwd=tmp_path, **state)
    row = ("-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--seq", "1k1k", "--topology", "1P1D DEP4/TP4", "--conc", "4")
    shown = run(bin_ / "launcher", "run", *row, "--runner", "local", cwd=tmp_path, **state)
    assert "1 of 1 runs succeeded" in shown
    assert (tmp_path / "venv/share/man/man1/launcher.1").is_file()
