"""Secrets do not survive redaction; what is no secret does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.redact import MASK, redact, secret_values


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "GITHUB_TOKEN",
        "MODAL_TOKEN_ID",
        "MODAL_TOKEN_SECRET",
        "AWS_SECRET",
        "api_key",
        "DB_PASSWORD",
        "TOKEN",
    ],
)
def test_a_secret_by_its_name_is_replaced(name: str) -> None:
    assert redact("before s3cr3t-value after", {name: "s3cr3t-value"}) == f"before {MASK} after"


@pytest.mark.parametrize("name", ["NUM_SPEC_TOKENS", "TOKENIZERS_PARALLELISM", "MODEL", "KEYBOARD", "PASSWORDLESS"])
def test_an_ordinary_variable_is_left_alone(name: str) -> None:
    assert redact("value-of-it", {name: "value-of-it"}) == "value-of-it"


def test_a_short_value_is_not_taken_for_a_secret() -> None:
    assert redact("1 of 10 true", {"HF_TOKEN": "1", "X_KEY": "true"}) == "1 of 10 true"


def test_a_secret_within_another_leaves_no_rest() -> None:
    environ = {"A_TOKEN": "abcdef", "B_TOKEN": "abcdef-ghijkl"}
    assert redact("abcdef-ghijkl", environ) == MASK


def test_each_line_of_a_private_key_is_a_secret() -> None:
    environ = {"SSH_KEY": "-----BEGIN-----\nMIIEvQIBADANBg\n-----END-----\n"}
    assert "MIIEvQIBADANBg" not in redact("log: MIIEvQIBADANBg", environ)


@given(
    st.text(min_size=6, alphabet=st.characters(exclude_characters="*", exclude_categories=["Cs"])), st.text(), st.text()
)
def test_no_secret_survives(secret: str, before: str, after: str) -> None:
    environ = {"HF_TOKEN": secret}
    text = redact(before + secret + after, environ)
    assert not any(value in text for value in secret_values(environ))
