"""A state directory of another user: what may be read is read, and of the rest it is said whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.people import People, Person
from tests.run.driving import ONE

RUN = ("run", *ONE, "--runner", "local", "--run-id")


@pytest.fixture(scope="module")
def state(people: People) -> Path:
    """A state directory that everybody may write to, with a run of one user's."""
    made = people.directory("state", people.alice, 0o777)
    people.alice.launcher(*RUN, "r1", "--state", made)
    return made


def said(person: Person, state: Path, *words: str, ends: int) -> str:
    return person.launcher(*words, "--state", state, ends=ends)


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (("status",), 2),
        (("status", "r1"), 2),
        (("logs", "r1"), 2),
        (("resume", "r1"), 2),
        (("cancel", "r1"), 1),
        (("collect", "r1"), 2),
        ((*RUN, "r2"), 1),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_whose_the_runs_are_is_said(people: People, state: Path, words: tuple[str, ...], ends: int) -> None:
    whose = f"{state / 'runs'} is owned by {people.alice.name}, mode 0700"
    assert whose in said(people.bob, state, *words, ends=ends)


def test_images_are_listed_and_kept_where_nobody_knows_whose_they_are(people: People, state: Path) -> None:
    assert "runs that cannot be listed" in said(people.bob, state, "image", "list", "--runner", "local", ends=0)
    assert "nothing to remove" in said(people.bob, state, "image", "gc", "--runner", "local", "--grace", "0", ends=0)


def test_a_closed_record_among_others_is_listed_with_whose_it_is(people: People, state: Path) -> None:
    """As older launchers left the directory of runs, for everybody to list."""
    (state / "runs").chmod(0o755)
    try:
        listed = said(people.bob, state, "status", ends=0)
        assert "r1" in listed and f"{state / 'runs/r1'} is owned by {people.alice.name}, mode 0700" in listed
        assert f"belongs to {people.alice.name}" in said(people.bob, state, "cancel", "r1", ends=2)
    finally:
        (state / "runs").chmod(0o700)
