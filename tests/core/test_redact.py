"""Secrets do not survive redaction; what is no secret does."""

from __future__ import annotations

import base64
import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.redact import MASK, LineRedactor, RedactingReader, redact, redact_bytes, secret_values


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
        "SLACK_WEBHOOK_URL",
        "DISCORD_WEBHOOK",
        "WEBHOOK",
        "BASIC_AUTH",
        "NPM_AUTH",
        "AWS_CREDENTIALS",
        "GCP_CREDS",
        "CRED",
        "DEPLOY_KEY",
        "SSH_KEY_B64",
        "OPENAI_API_KEY_2",
        "MYAPIKEY",
        "GH_PAT",
        "PAT",
        "DB_PWD",
        "SENTRY_DSN",
        "SESSION_COOKIE",
        "CLIENT_SECRETS",
    ],
)
def test_a_secret_by_its_name_is_replaced(name: str) -> None:
    assert redact("before s3cr3t-value after", {name: "s3cr3t-value"}) == f"before {MASK} after"


@pytest.mark.parametrize(
    "name",
    [
        "NUM_SPEC_TOKENS",
        "TOKENIZERS_PARALLELISM",
        "MODEL",
        "KEYBOARD",
        "PASSWORDLESS",
        "PWD",
        "OLDPWD",
        "PATH",
        "COMPAT",
        "SSH_AUTH_SOCK",
        "XAUTHORITY",
        "AUTHOR",
        "KEY_FILE",
        "HF_TOKEN_PATH",
        "MONKEY",
    ],
)
def test_an_ordinary_variable_is_left_alone(name: str) -> None:
    assert redact("value-of-it", {name: "value-of-it"}) == "value-of-it"


def test_a_short_value_is_not_taken_for_a_secret() -> None:
    assert redact("1 of 10 true", {"HF_TOKEN": "1", "X_KEY": "true"}) == "1 of 10 true"


@pytest.mark.parametrize(
    "value", ["default", "disabled", "100000", "------", "======", "aaaaaa", "localhost", "-----BEGIN CERTIFICATE-----"]
)
def test_an_ordinary_value_is_not_taken_for_a_secret(value: str) -> None:
    """Its mask would eat the log: every ruler, every number, every `default`."""
    assert redact(f"a {value} b", {"X_KEY": value}) == f"a {value} b"
    assert secret_values({"X_AUTH": value}) == ()


def test_the_braces_of_a_secret_document_are_no_secrets() -> None:
    document = json.dumps({"auths": {"r.io": {"auth": "dXNlcjpwYXNzd29yZA=="}}}, indent=1)
    values = secret_values({"DOCKER_AUTH_CONFIG": document})
    assert set(values) == {document, "dXNlcjpwYXNzd29yZA=="}


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


# Made up, in the shape of the real ones.
TOKENS = {
    "hugging face": "hf_" + "aB3dE5fG7h" * 3 + "iJ9k",
    "github": "ghp_" + "0123456789abcdefABCDEF" + "x" * 14,
    "github, fine-grained": "github_pat_11ABCDEFG0" + "a1B2c3D4e5" * 6,
    "docker": "dckr_pat_" + "Ab-c_d1234" * 3,
    "nvidia": "nvapi-" + "aB-3_dE5fG" * 6,
    "openai": "sk-proj-" + "aB3dE5fG7h" * 5,
    "aws": "AKIA" + "ABCDEFGH23456789",
    "aws, of a session": "ASIA" + "ABCDEFGH23456789",
    "google": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "pypi": "pypi-AgEIcHlwaS5vcmc" + "aB3dE5fG7h" * 4,
    "npm": "npm_" + "aB3dE5fG7h" * 3 + "aB3dE5",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
}
AROUND = ("{}", "export X={}\n", '{{"a": "{}"}}', "https://h/x?t={}&b=1", "b'{}'", "\0\xff {} \0")


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_is_known_by_its_shape_though_no_variable_holds_it(kind: str, around: str) -> None:
    token = TOKENS[kind]
    text = around.format(token)
    assert token not in redact(text, {})
    assert redact(text, {}) == text.replace(token, MASK)
    raw = text.encode()
    assert redact_bytes(raw, {}) == raw.replace(token.encode(), b"*" * len(token))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("DOCKER_PASSWORD=correct-horse-battery", "correct-horse-battery"),
        ("export NGC_API_KEY='abcd1234efgh'", "abcd1234efgh"),
        ('{"HF_TOKEN": "not-of-a-known-shape"}', "not-of-a-known-shape"),
        ('{"auths": {"docker.io": {"auth": "dXNlcjpwYXNzd29yZA=="}}}', "dXNlcjpwYXNzd29yZA=="),
        ('"identitytoken": "abcdefgh-0123"', "abcdefgh-0123"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("git clone https://x-access-token:s3cr3tvalue@github.com/a/b", "s3cr3tvalue"),
        ("docker login -u me --password hunter2hunter2", "hunter2hunter2"),
        ("SLACK_WEBHOOK_URL=https://example.org/T000/B000", "example.org/T000/B000"),
        ("post to https://hooks.slack.com/services/T0001/B0001/abcdefgh", "T0001/B0001/abcdefgh"),
        ("https://discord.com/api/webhooks/123456789012345678/abcdEFGH", "123456789012345678/abcdEFGH"),
        ("DEPLOY_KEY=abcdefgh1234 GH_PAT=12345678abcd", "abcdefgh1234"),
        ("GH_PAT=12345678abcd", "12345678abcd"),
        ("NPM_AUTH: 'user-and-more'", "user-and-more"),
        ("GCP_CREDENTIALS=abcdefghijk", "abcdefghijk"),
        ("Namespace(api_key='abcd-1234-efgh', port=80)", "abcd-1234-efgh"),
        ("{'client_secret': 'abcdefgh-1'}", "abcdefgh-1"),
        ("access_token=abcdefgh-1", "abcdefgh-1"),
        ("https://s3/x?X-Amz-Signature=" + "0123456789abcdef" * 4, "0123456789abcdef0123"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADANBg\nabcd\n-----END RSA PRIVATE KEY-----", "MIIEvQIBADANBg"),
    ],
)
def test_a_secret_is_known_by_what_stands_before_it(text: str, secret: str) -> None:
    assert secret not in redact(text, {})
    assert secret.encode() not in redact_bytes(text.encode(), {})
    assert len(redact_bytes(text.encode(), {})) == len(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN=$HF_TOKEN NGC_API_KEY=${NGC_API_KEY}",
        "Mean time per output token: 12.34567890 ms, TOKENIZERS_PARALLELISM=false, eos_token='<|endoftext|>'",
        "0123456789abcdef0123456789abcdef01234567 docker.io/library/x@sha256:" + "ab" * 32,
        "task-minimaxm3-fp8-gb200-dynamo-vllm-1k1k-conc16 hf_hub_download(hf_transfer) ghp_",
        "http://10.0.0.1:8000/health docker://nvcr.io#nvidia/x:1 user@host:/path",
        "api_key=None, cache_key: 12, PATH=/usr/local/bin:/usr/bin per_token: 12.34567890 max_num_tokens=16384000",
        "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBg\n-----END CERTIFICATE-----",
    ],
)
def test_what_only_looks_a_little_like_a_secret_stays(text: str) -> None:
    assert redact(text, {}) == text
    assert redact_bytes(text.encode(), {}) == text.encode()


def test_a_docker_configuration_in_the_environment_gives_its_passwords_away() -> None:
    auth = base64.b64encode(b"robot:pass-word-1").decode()
    environ = {"DOCKER_AUTH_CONFIG": json.dumps({"auths": {"r.io": {"auth": auth}, "q.io": {"password": "other-one"}}})}
    text = redact(f"login robot pass-word-1; {auth}; other-one", environ)
    assert not any(secret in text for secret in ("pass-word-1", auth, "other-one"))


def test_a_secret_is_known_as_a_url_and_as_json_spell_it() -> None:
    environ = {"DB_PASSWORD": 'a"b/c d\\e'}
    for spelled in ('a"b/c d\\e', "a%22b%2Fc%20d%5Ce", 'a\\"b/c d\\\\e'):
        assert spelled not in redact(f"x {spelled} y", environ)


class _Pieces(io.BytesIO):
    """Gives a little at a time, as a network file system does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 7, 7) if size != 0 else 0)


@pytest.mark.parametrize("at", [0, 5, (1 << 20) - 20, (1 << 20) - 1, (1 << 20), (3 << 20) - 7])
@pytest.mark.parametrize("filling", [b"a line of a log\n", b"\0\1\2\3\xff\xfe"])
def test_a_file_is_read_without_its_secrets_wherever_they_lie(at: int, filling: bytes) -> None:
    secret, token = b"s3cr3t-value-of-ours", TOKENS["hugging face"].encode()
    data = bytearray((filling * ((4 << 20) // len(filling)))[: 4 << 20])
    planted = b" " + secret + b" " + token + b" "
    data[at : at + len(planted)] = planted
    reader = RedactingReader(io.BytesIO(bytes(data)), {"HF_TOKEN": secret.decode()})
    parts = []
    while part := reader.read(10_000):
        parts.append(part)
    found = b"".join(parts)
    assert len(found) == len(data)
    assert secret not in found and token not in found
    hidden = planted.replace(secret, b"*" * len(secret)).replace(token, b"*" * len(token))
    assert found == bytes(data).replace(planted, hidden)


def test_a_private_key_on_the_border_of_two_pieces_is_hidden_whole() -> None:
    key = b"-----BEGIN PRIVATE KEY-----\n" + b"MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 40 + b"-----END PRIVATE KEY-----\n"
    line = b"a line of a log\n"
    before = line * (((1 << 20) - len(key) // 2) // len(line))
    found = RedactingReader(io.BytesIO(before + key + line), {}).read()
    assert b"MIIE" not in found and found.startswith(before) and found.endswith(line)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_what_is_read_has_the_length_it_had(before: bytes, after: bytes) -> None:
    data = before + b"s3cr3t-value" + after
    found = RedactingReader(_Pieces(data), {"X_TOKEN": "s3cr3t-value"}).read()
    assert len(found) == len(data) and b"s3cr3t-value" not in found


KEY = [
    "-----BEGIN RSA PRIVATE KEY-----",
    "Proc-Type: 4,ENCRYPTED",
    "",
    *["MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"] * 9,
    "abcd==",
]
PLANTED = [
    "",
    "x",
    "INFO a line of a log",
    "login s3cr3t-value and s3cr3t-value",
    "first-line",
    "second line of it",
    *(f"at {token}" for token in TOKENS.values()),
    "HF_TOKEN=not-of-a-known-shape --password hunter2hunter2",
    "https://u:pass-word@h/",
    '"auth": "dXNlcjpwYXNzd29yZA=="',
    "export X_KEY=",
    "abcdefgh12345678",
]


@given(st.lists(st.sampled_from(PLANTED) | st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_a_block_of_lines_becomes_what_its_lines_become(lines: list[str]) -> None:
    environ = {"A_TOKEN": "s3cr3t-value", "SSH_KEY": "first-line\nsecond line of it"}
    assert LineRedactor(environ).redact(lines) == [redact(line, environ) for line in lines] or lines == []


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("prefix", ["", "0: ", "(worker pid=3) | "])
def test_a_private_key_among_the_lines_is_hidden_wherever_a_block_ends(cut: int, prefix: str) -> None:
    redactor = LineRedactor({})
    lines = ["before the key", *(prefix + line for line in KEY), prefix + "-----END RSA PRIVATE KEY-----", "after it"]
    found = redactor.redact(lines[:cut]) + redactor.redact(lines[cut:])
    assert not any("MIIE" in line or "abcd" in line for line in found)
    assert (found[0], found[-1], len(found)) == (lines[0], lines[-1], len(lines))


def test_a_key_that_only_begins_hides_no_other_line() -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", "INFO: a line of a log", "INFO: another"]
    assert LineRedactor({}).redact(lines) == lines


@pytest.mark.parametrize(
    "pattern",
    [
        "x",
        "-",
        "_",
        "eyJ",
        "hf_",
        "sk-",
        "://",
        "://a:",
        "-----BEGIN PRIVATE KEY-----",
        "_TOKEN",
        '"auth":',
        "AKIA",
        "=",
    ],
)
def test_no_text_makes_redaction_slow(pattern: str) -> None:
    """A hundred thousand bytes in milliseconds: a pattern that is tried at each place over thousands takes minutes."""
    data = (pattern * 100_000)[:100_000]
    began = time.process_time()
    redact_bytes(data.encode(), {})
    redact(data, {})
    assert time.process_time() - began < 5
