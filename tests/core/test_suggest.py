from __future__ import annotations

import pytest

from launcher.core.errors import ConfigError, closest, suggest


def test_the_closest_of_the_known_words() -> None:
    assert closest("partiton", ["partition", "account"]) == "partition"
    assert closest("zzz", ["partition"]) is None


@pytest.mark.parametrize("word", ["nope", "model", "none"])
def test_a_short_word_that_shares_three_letters_is_no_slip(word: str) -> None:
    assert closest(word, ["nodes"]) is None
    assert [closest(slip, ["nodes"]) for slip in ("node", "nods", "nodse", "modes")] == ["nodes"] * 4


def test_a_hint_names_the_closest_word_or_says_something_else() -> None:
    assert suggest("partiton", ["partition", "account"], "a or b") == "did you mean 'partition'?"
    assert suggest("zzz", ["partition"], "a or b") == "a or b"
    assert ConfigError("x", hint=suggest("zzz", ["partition"])).hint is None
