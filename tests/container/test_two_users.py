"""The import on a node, by jobs of two users, in a directory that the first of them makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.container.job_script import import_alone
from launcher.image.reference import PlannedImage
from tests.image.support import small_image
from tests.people import People, Person, given, mode

ENROOT = """#!/bin/sh
umask 077 && cat {image} >"$3"
"""


def on_node(person: Person, script: str, bin: Path, *, ends: int = 0) -> str:
    path = f"{bin}:{person.environment['PATH']}"
    return person.run("bash", "-c", script, ends=ends, umask=0o077, PATH=path, SLURM_JOB_ID=str(person.uid))


@pytest.mark.parametrize("rights", [0o777, 0o1777], ids=oct)
def test_what_one_job_imports_on_a_node_jobs_of_others_use(people: People, rights: int) -> None:
    place = people.directory("node", people.alice, rights)
    bin = people.directory("bin", people.alice, 0o755)
    (bin / "enroot").write_text(ENROOT.format(image=small_image(bin / "image")))
    (bin / "enroot").chmod(0o755)
    squash = place / "launcher/images/x.sqsh"
    image = PlannedImage(
        "a/b:1", "docker://a/b:1", str(squash), "compute", "image", f"{squash}.lock", 5, 20, shared=False
    )
    script = import_alone(image)
    assert "imported to" in on_node(people.alice, script, bin)
    assert "another job imported it" in on_node(people.bob, script, bin)
    assert (mode(squash.parent), mode(Path(image.lock))) == (f"{rights:o}", "666")
    other = import_alone(PlannedImage(**{**image.__dict__, "squash": str(squash.with_name("y.sqsh"))}))
    assert "imported to" in on_node(people.bob, other, bin), "the lock is of another user"
    given(people.alice, Path(image.lock), 0o600)
    said = on_node(people.bob, script, bin, ends=3)
    assert f"x.sqsh.lock cannot be opened, owned by {people.alice.name}, mode 0600" in said
