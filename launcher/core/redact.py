"""Takes secrets out of text and files, before they are printed, recorded or packed.

Two kinds are known: the values of this environment's secret variables, and text with the shape of somebody's token
(Hugging Face, GitHub, Docker, NVIDIA, AWS, Google, Slack, GitLab, OpenAI, PyPI, npm; webhooks; ``NAME_TOKEN=…``,
docker's config, a password in a URL, a private key). Secrets in compressed data are not found.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import IO, AnyStr
from urllib.parse import quote

_SECRET_NAME = re.compile(
    # Words that mean nothing else, also within MYAPIKEY; then those that have to stand alone (KEYBOARD, PWD, COMPAT).
    r"(^MODAL_TOKEN_.*|^TOKEN|_TOKEN|HFTOKEN|SECRETS?|API_?KEY|PASSWORD|PASSWD|PASSPHRASE|WEBHOOKS?|CREDENTIALS?"
    r"|(?:^|[_.-])(?:KEY|PASS|PAT|AUTH|CREDS?|JWT|BEARER|COOKIE)|[_.-](?:PWD|DSN)"
    r"|_AUTH_CONFIG)"
    # What the value is of, or in which form. A file or a path is no secret.
    r"(?:_?[0-9]{1,3}|_(?:URLS?|ID|VALUE|HEADER|STRING|TEXT|DATA|JSON|B64|BASE64))?$",
    re.IGNORECASE,
)

SHORTEST = 6
"""Shorter values are not treated as secrets: masking every ``1`` or ``true`` would make the log unreadable."""

_ORDINARY = re.compile(
    # Words and numbers that a variable named like a secret may have, and that a log is full of.
    r"(?:default|enabled?|disabled?|required|optional|localhost|anonymous|password|secret|unset|string|prompt|keyring"
    r"|ssh-agent|basic|bearer|public|private|unknown|nothing|system|manual|[0-9]{1,7}|[\W_]*|(.)\1*|-----.*)\Z",
    re.IGNORECASE | re.DOTALL,
)

MASK = "***"

_VALUE = r"[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?([^\s\"',;}{$<*\\]{8,1000})"

_PRIVATE_KEY = r"-----BEGIN (?:[A-Z]+ ){0,4}PRIVATE KEY-----(?s:((?:[^-]|-(?!----)){1,16000}))(?=-----END |\Z)"

# Each begins with letters, which is ten times as fast as beginning with \b. A condition on what comes before them is a
# lookbehind after them. Where there is a group, only the group is the secret. None but the private key spans lines, and
# none looks at a text of its own beginnings more than once: a log may be written to make us slow.
_SHAPES_IN_A_LINE = (
    r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{24,200}",
    r"api_org_[A-Za-z0-9]{24,200}",
    r"gh[opusr]_(?<![A-Za-z0-9]....)[A-Za-z0-9]{30,255}",
    r"github_pat_[A-Za-z0-9_]{30,255}",
    r"dckr_[po]at_[A-Za-z0-9_-]{20,200}",
    r"nvapi-[A-Za-z0-9_-]{30,200}",
    r"glpat-[A-Za-z0-9_-]{20,200}",
    r"sk-(?<![A-Za-z0-9]sk-)(?:(?:proj|ant|svcacct)-[A-Za-z0-9_-]{32,250}|[A-Za-z0-9]{40,64})",
    r"xox[abeprs]-[A-Za-z0-9-]{10,250}",
    r"A(?:[KS]IA[A-Z0-9]{16}(?![A-Z0-9])|Iza(?<![A-Za-z0-9]....)[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-]))",
    r"pypi-AgE[A-Za-z0-9_-]{40,1000}",
    r"npm_(?<![A-Za-z0-9]....)[A-Za-z0-9]{36}(?![A-Za-z0-9])",
    r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}",
    r"_(?:TOKEN|SECRET|PASS|PWD|KEY|PAT|AUTH|CREDENTIALS?|CREDS?|secret|token(?<=(?:hf|th|ss)_token))" + _VALUE,
    *(name + _VALUE for name in ("PASSW(?:OR)?D", "WEBHOOK(?:_URL)?", "api_?key", "passw(?:or)?d")),
    r"\"(?:(?<=auth\")|(?<=password\")|(?<=token\"))[ \t]{0,4}:[ \t]{0,4}\"([^\"\s*]{8,4000})",
    r"uthorization[\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?(?i:bearer|basic|token)[ \t]{1,4}([^\s\"',*]{8,4000})",
    r"--password[= ]([^\s\"'$*-][^\s\"']{5,1000})",
    r"://[^/\s:@\"']{1,200}:([^/\s@\"'*]{3,500})@",
    r"hooks\.slack\.com/[a-z]{4,12}/([A-Za-z0-9/_-]{8,200})",
    r"/api/webhooks/([A-Za-z0-9/_-]{20,200})",
    r"X-Amz-Signature=([0-9a-f]{32,128})",
)
_SHAPES = (*_SHAPES_IN_A_LINE, _PRIVATE_KEY)


@cache  # 15 ms for all of them, which commands that say nothing do not spend
def _patterns(shapes: tuple[AnyStr, ...]) -> tuple[re.Pattern[AnyStr], ...]:
    return tuple(map(re.compile, shapes))


_SHAPES_IN_BYTES = tuple(shape.encode() for shape in _SHAPES)

_SHORTEST_SHAPE = 9
"""Characters: ``://u:abc@``."""

_PIECE = 1 << 20
_KEY_SPAN = 1 << 14
"""Bytes that a private key may be spread over."""


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values that must not be shown, longest first, so that no part is left of a secret that contains another one.

    Variables are secret by name: HF_TOKEN, SLACK_WEBHOOK_URL, MODAL_TOKEN_*, and all whose last word is TOKEN, SECRET,
    KEY, PASSWORD, PASS, PAT, AUTH, CREDENTIALS or the like (`_SECRET_NAME`). Each line of a value of several lines (a
    private key) is a secret as well, because logs show lines; so are the members of a JSON value (docker's
    configuration) and the password in its base64. What is short or ordinary is none: its mask would eat the log.
    """
    return _values(_named(environ))[0]


@lru_cache(maxsize=4096)
def names_a_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as names tell."""
    return _SECRET_NAME.search(name) is not None


def _named(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(environ[name] for name in environ if names_a_secret(name)))


@lru_cache(maxsize=8)
def _values(named: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The secrets within some values; and all their spellings: as they are, in a URL, in JSON."""
    plain: set[str] = set()
    for value in named:
        structured = value.lstrip().startswith(("{", "["))  # its lines are braces and names, which any log has
        lines = () if structured else map(str.strip, value.splitlines())
        parts = (value.strip(), *lines, *_json_secrets(value))
        plain |= {part for part in parts if len(part) >= SHORTEST and not _ORDINARY.match(part)}
    spelled = plain | {quote(part, safe="", errors="replace") for part in plain} | {json.dumps(p)[1:-1] for p in plain}
    return _longest_first(plain), _longest_first(spelled)


def _longest_first(values: set[str]) -> tuple[str, ...]:
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def _json_secrets(value: str) -> Iterator[str]:
    """The strings of a JSON document's ``auth``, ``password`` and token members, and the password within ``auth``."""
    if not value.lstrip().startswith("{"):
        return
    try:
        left: list[object] = [json.loads(value)]
    except (ValueError, RecursionError):
        return
    while left:
        at = left.pop()
        if isinstance(at, dict):
            for name, inner in at.items():
                if isinstance(inner, str) and (name in ("auth", "password") or name.endswith("token")):
                    yield inner
                    if name == "auth":
                        try:
                            yield base64.b64decode(inner).decode().partition(":")[2]
                        except ValueError:
                            continue
                else:
                    left.append(inner)
        elif isinstance(at, list):
            left.extend(at)


def redact(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with every secret value of ``environ``, and everything that looks like a token, replaced by ``***``."""
    for value in _values(_named(environ))[1]:
        text = text.replace(value, MASK)
    for shape in _patterns(_SHAPES) if len(text) >= _SHORTEST_SHAPE else ():
        text = shape.sub(lambda match: _mask_match(match, lambda length: MASK), text)
    return text


class LineRedactor:
    """Takes secrets out of the lines of a log, block by block; each line becomes what `redact` makes of it alone.

    A block costs little more than its longest line would. The lines of a private key are hidden too, one by one, also
    where a block ends within it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._key_lines = 0
        """How many more lines may be of the private key that has begun."""

    def redact(self, lines: Sequence[str]) -> list[str]:
        text = "\n".join(lines)
        for value in _values(_named(self._environ))[1]:
            if "\n" not in value and value in text:
                text = text.replace(value, MASK)
        for shape in _patterns(_SHAPES_IN_A_LINE):
            text = shape.sub(lambda match: _mask_match(match, lambda length: MASK), text)
        redacted = text.split("\n")
        if self._key_lines or "PRIVATE KEY-----" in text:
            redacted = [self._without_key(line) for line in redacted]
        return redacted

    def _without_key(self, line: str) -> str:
        if edges := _KEY_EDGE.findall(line):
            self._key_lines = _KEY_LINES if edges[-1] == "BEGIN" else 0
            return re.sub(_PRIVATE_KEY, lambda match: _mask_match(match, lambda length: MASK), line)
        if not self._key_lines:
            return line
        found = _KEY_BODY.search(line)
        self._key_lines = self._key_lines - 1 if found is not None else 0
        return f"{line[: found.start(1)]}{MASK}" if found is not None and found[1] else line


_KEY_LINES = 250
_KEY_EDGE = re.compile(r"-----(BEGIN|END) (?:[A-Z]+ ){0,4}PRIVATE KEY-----")
# A line of base64, the last one being short, or of its head; whatever prefix a launcher of tasks or a logger gives it.
_KEY_BODY = re.compile(
    r"(?:^|[\s:|])([A-Za-z0-9+/]{16,}={0,2}|[A-Za-z0-9+/]{1,15}={1,2}|(?:Proc-Type|DEK-Info): .*|)\s*$"
)


def redact_bytes(data: bytes, environ: Mapping[str, str]) -> bytes:
    """``data``, of any content, with every secret overwritten by as many asterisks, so that the length is the same."""
    for value in _values(_named(environ))[1]:
        raw = value.encode(errors="surrogateescape")
        if raw in data:
            data = data.replace(raw, b"*" * len(raw))
    for shape in _patterns(_SHAPES_IN_BYTES):
        data = shape.sub(lambda match: _mask_match(match, lambda length: b"*" * length), data)
    return data


def _mask_match(match: re.Match[AnyStr], cover: Callable[[int], AnyStr]) -> AnyStr:
    """A match whose secret, its one group or else the whole, is replaced by a ``cover`` for that length."""
    start, end = match.span(match.lastindex or 0)
    return match.string[match.start() : start] + cover(end - start) + match.string[end : match.end()]


class RedactingReader:
    """Reads a binary file with its secrets overwritten by `redact_bytes`.

    The file is read in pieces, and no secret is cut by them: a piece ends at the end of a line, or, in data without
    lines, at a byte that no secret contains.
    """

    def __init__(self, file: IO[bytes], environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._raw = b""
        self._ready = memoryview(b"")
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes] = []
        left = size
        while left and (self._ready or self._fill()):
            part = self._ready if left < 0 else self._ready[:left]
            self._ready = self._ready[len(part) :]
            parts.append(bytes(part))
            left = left if left < 0 else left - len(part)
        return b"".join(parts)

    def _fill(self) -> bool:
        while not self._ended:
            piece = self._file.read(_PIECE)
            self._ended = not piece
            self._raw += piece
            end = len(self._raw) if self._ended else _complete_length(self._raw)
            if end:
                self._ready = memoryview(redact_bytes(self._raw[:end], self._environ))
                self._raw = self._raw[end:]
                return True
        return False


_BETWEEN = re.compile(rb"[^\x20-\x7e][\x20-\x7e]*\Z")


def _complete_length(data: bytes) -> int:
    """How many bytes of ``data`` form a piece that can be redacted alone; 0 when more has to be read first."""
    end = data.rfind(b"\n") + 1
    if not end and len(data) >= _PIECE:
        tail = data[-_KEY_SPAN:]
        found = _BETWEEN.search(tail)
        end = len(data) - len(tail) + found.start() + 1 if found else len(data)
    begun = data.rfind(b"-----BEGIN ", max(0, end - _KEY_SPAN), end)
    if begun >= 0 and b"-----END " not in data[begun:end] and len(data) < 2 * _PIECE:
        return begun
    return end
