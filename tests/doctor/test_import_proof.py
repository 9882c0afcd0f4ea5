"""The doctor's import of a tiny image: its registry is real, and so is enroot where it is installed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import Completed, run
from launcher.doctor import queries
from launcher.doctor.comparison import compare
from launcher.doctor.facts import ImportTrial, Unknown
from launcher.doctor.import_proof import prove
from launcher.runner.file import RunnerFile
from tests.doctor.stand_ins import facts
from tests.image.squashfs_tools import needs_squashfs_tools

ENROOT_STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys, tarfile, tempfile, urllib.request
assert os.environ["ENROOT_ALLOW_HTTP"] == "y" and os.environ["ENROOT_TEMP_PATH"]
output, uri = sys.argv[3], sys.argv[4].removeprefix("docker://")
host, _, name = uri.partition("#")
repository, _, tag = name.partition(":")
base = "http://" + host + "/v2/" + repository + "/"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
manifest = json.load(opener.open(base + "manifests/" + tag))
assert json.load(opener.open(base + "blobs/" + manifest["config"]["digest"]))["os"] == "linux"
with tempfile.TemporaryDirectory() as place:
    for layer in manifest["layers"]:
        tarfile.open(fileobj=opener.open(base + "blobs/" + layer["digest"]), mode="r|gz").extractall(place)
    assert open(place + "/etc/launcher-doctor").read().startswith("made by")
    subprocess.run(["mksquashfs", place, output, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
"""


def enroot_stand_in(directory: Path, text: str = ENROOT_STAND_IN) -> tuple[str, ...]:
    """A program that imports as enroot does: by manifest, configuration and layers, into a squash file."""
    program = directory / "bin" / "enroot"
    program.parent.mkdir()
    program.write_text(text)
    program.chmod(0o755)
    return (str(program),)


@needs_squashfs_tools
def test_a_tiny_image_is_imported_and_nothing_is_left(tmp_path: Path) -> None:
    said = prove(tmp_path / "tmp", command=enroot_stand_in(tmp_path))
    assert said.startswith("a tiny image was imported in ") and said.endswith("lists: whole")
    assert list((tmp_path / "tmp").iterdir()) == []


if shutil.which("enroot") is not None:  # CI has none, and nothing may be skipped there

    def test_enroot_itself_imports_it(tmp_path: Path) -> None:
        assert "imported" in prove(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#!/bin/sh\necho '[ERROR] Command not found: mksquashfs' >&2; exit 1\n", "a program that enroot needs"),
        ("#!/bin/sh\nexit 0\n", "no squash file"),
        ('#!/bin/sh\nhead -c 9000 /dev/zero > "$3"\n', "begins with zeros"),
    ],
)
def test_what_keeps_it_from_importing_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        prove(tmp_path / "tmp", command=enroot_stand_in(tmp_path, text))


@needs_squashfs_tools
def test_it_is_a_claim_of_the_file(tmp_path: Path) -> None:
    file = RunnerFile.read(Path(__file__).parents[2] / "runners" / "local.yaml")
    enroot_stand_in(tmp_path)

    def here(argv: Sequence[str], **more: Any) -> Completed:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return run(argv, timeout=60, env={**os.environ, "PATH": path})

    def fill(text: str) -> str:
        return text.replace("{state}", str(tmp_path))

    asked = queries.with_import(file, facts(), fill, here, wait=10)
    assert isinstance(asked.imports, ImportTrial) and asked.imports.imported, asked.imports
    claims = [c for c in compare(file, asked, fill) if "enroot imports there" in c.says]
    assert [c.verdict for c in claims] == ["agree"]
    broken = dataclasses.replace(asked, imports=ImportTrial(False, "enroot import failed:\n  x", "install x"))
    (claim,) = [c for c in compare(file, broken, fill) if "enroot imports there" in c.says]
    assert (claim.verdict, claim.found, claim.hint) == ("differ", "enroot import failed: x", "install x")


def test_what_says_nothing_is_not_known() -> None:
    file = RunnerFile.read(Path(__file__).parents[2] / "runners" / "local.yaml")

    def fails(argv: Sequence[str], **more: Any) -> Completed:
        return Completed(tuple(argv), 1, "", "srun: error: x", 1.0)

    silent = queries.with_import(file, facts(), str, fails, wait=1)
    assert isinstance(silent.imports, Unknown) and "srun: error: x" in silent.imports.why
