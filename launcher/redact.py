"""Secrets out of text, before it is printed or recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"(^MODAL_TOKEN_.*|^TOKEN|_TOKEN|_SECRET|_KEY|PASSWORD)$", re.IGNORECASE)

SHORTEST = 6
"""A value shorter than this is not taken for a secret: masking ``1`` or ``true`` would eat the log."""

MASK = "***"


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values that must not be shown, longest first, so that a secret within another leaves no rest behind.

    Secret are HF_TOKEN, GITHUB_TOKEN, MODAL_TOKEN_*, and every name that ends in _TOKEN, _SECRET, _KEY or PASSWORD.
    A value of several lines (a private key) counts line by line as well: logs show lines.
    """
    values: set[str] = set()
    for name, value in environ.items():
        if _SECRET_NAME.search(name):
            values.update(
                part for part in (value.strip(), *map(str.strip, value.splitlines())) if len(part) >= SHORTEST
            )
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def redact(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with every secret value of ``environ`` replaced by ``***``."""
    for value in secret_values(environ):
        text = text.replace(value, MASK)
    return text
