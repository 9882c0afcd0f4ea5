"""Which check refused a result, by its words, and what that means: refusals.yaml has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from launcher.core.reading import built


class Refusal(msgspec.Struct, frozen=True):
    """A check: what it says, a title, and what it means with what to do next."""

    says: str
    title: str
    text: str


@cache
def refusals() -> Mapping[str, Refusal]:
    """All checks by rule id, the first that fits first."""
    content = Path(__file__).with_name("refusals.yaml").read_bytes()
    return msgspec.yaml.decode(content, type=built(dict[str, Refusal]))


def rule_of(reason: str) -> str:
    """The id of the check that gives this reason."""
    return next(rule for rule, refusal in refusals().items() if re.search(refusal.says, reason))
