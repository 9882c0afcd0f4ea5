"""The short form of `scripts/faults two_users`."""

from __future__ import annotations

from tests.faults.two_users import SHORT, trials
from tests.people import People


def test_kills_beside_another_user(people: People) -> None:
    done = list(trials(people, SHORT))
    assert [trial for trial in done if trial[1]] == []
    assert len(done) == 2 * SHORT and any("killed" in how for how, _ in done)
