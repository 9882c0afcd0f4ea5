"""What somebody most likely meant by a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like ``word``, or None when none is like it."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(word: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """A hint for an error: ``did you mean '…'?`` with the closest known word, or ``otherwise`` when none is close."""
    near = closest(word, known)
    return otherwise if near is None else f"did you mean {near!r}?"
