"""Which host keys are known, read as OpenSSH reads them (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

paramiko's own reader refuses a whole file for one line that it does not know (``@cert-authority``, ``@revoked``, two
blanks), knows no wildcards, and looks at one key of a type for a host. So the files are read here: a line that cannot
be read is skipped, and never makes another one count less or more.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from launcher.core.errors import RemoteError

_LONGEST_FILE = 8 << 20
_MARKERS = ("@revoked", "@cert-authority")
DEFAULT_PORT = 22


class Known(Enum):
    """What the files say of the key that a host shows."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """No line is about this host."""
    OTHER = "other"
    """Lines are about this host, and none has this key."""
    REVOKED = "revoked"
    AUTHORITY = "authority"
    """Only certificates of an authority are known for this host, which plain keys are not."""


@dataclass(frozen=True)
class Line:
    """One line of a file of known hosts. ``key`` is the blob as the protocol carries it."""

    hosts: str
    key_type: str
    key: bytes
    marker: str
    where: str

    def about(self, name: str) -> bool:
        """Whether the line is about ``name``: a host, or ``[host]:port``, in small letters."""
        if self.hosts.startswith("|1|"):
            return _hashed(self.hosts, name)
        patterns = self.hosts.lower().split(",")
        if any(_matches(pattern[1:], name) for pattern in patterns if pattern.startswith("!")):
            return False
        return any(_matches(pattern, name) for pattern in patterns if not pattern.startswith("!"))


def _matches(pattern: str, name: str) -> bool:
    """``*`` and ``?`` alone are special, and brackets are those of ``[host]:port``."""
    return fnmatch.fnmatchcase(name, re.sub(r"[][]", lambda found: f"[{found[0]}]", pattern))


def _hashed(hosts: str, name: str) -> bool:
    """``|1|salt|hash``: the name's HMAC-SHA1 under the salt."""
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hosts[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def read(files: Iterable[Path]) -> list[Line]:
    """The lines of the files that are there, and that can be understood.

    Raises RemoteError for a file that is there and cannot be read: what it forbids would not be known.
    """
    lines = []
    for file in files:
        try:
            with file.open("rb") as opened:
                content = opened.read(_LONGEST_FILE + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RemoteError(f"known hosts cannot be read: {error.strerror}", where=str(file)) from error
        if len(content) > _LONGEST_FILE:
            raise RemoteError(f"more than {_LONGEST_FILE >> 20} MiB of known hosts", where=str(file))
        for number, text in enumerate(content.decode(errors="replace").splitlines(), start=1):
            if (line := _line(text, f"{file}:{number}")) is not None:
                lines.append(line)
    return lines


def _line(text: str, where: str) -> Line | None:
    words = text.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or (marker and marker not in _MARKERS):
        return None
    hosts, key_type, encoded = words[:3]
    try:
        return Line(hosts, key_type, base64.b64decode(encoded, validate=True), marker, where)
    except (ValueError, binascii.Error):
        return None


def name_of(host: str, port: int) -> str:
    """How files of known hosts call a host at a port."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


def judge(lines: Sequence[Line], host: str, port: int, key: bytes) -> tuple[Known, str]:
    """What is known of the key that ``host`` shows, and the place that says so ("" where none does).

    For another port than 22 a line with the plain name counts when its key is this one, as for ssh (sshconnect.c,
    "checking without port identifier"), and says nothing when it is another.
    """
    named = [line for line in lines if line.about(name_of(host, port))]
    plain = [line for line in lines if line.about(host.lower())] if port != DEFAULT_PORT else []
    for line in (*named, *plain):
        if line.marker == "@revoked" and line.key == key:
            return Known.REVOKED, line.where
    for line in (*named, *plain):
        if not line.marker and line.key == key:
            return Known.KNOWN, line.where
    keys = [line for line in named if not line.marker]
    if keys:
        return Known.OTHER, keys[0].where
    authorities = [line for line in (*named, *plain) if line.marker == "@cert-authority"]
    return (Known.AUTHORITY, authorities[0].where) if authorities else (Known.UNKNOWN, "")


def known_types(lines: Sequence[Line], host: str, port: int) -> list[str]:
    """The types of the keys that are known of a host: it is asked for these first, so that it shows one of them."""
    names = {name_of(host, port), host.lower()}
    found = [line for line in lines if not line.marker and any(line.about(name) for name in names)]
    return list(dict.fromkeys(line.key_type for line in found))


def fingerprint(key: bytes) -> str:
    """``SHA256:…`` as ssh-keygen prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def line_for(host: str, port: int, key_type: str, key: bytes) -> str:
    """The line to add for a key."""
    return f"{name_of(host, port)} {key_type} {base64.b64encode(key).decode()}"


def add(file: Path, line: str) -> None:
    """Add a line at the end of a file; a file that is made is for this user alone. Nothing that is there changes.

    Raises RemoteError.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as opened:
            size = opened.seek(0, os.SEEK_END)
            if size:
                opened.seek(size - 1)
                line = line if opened.read(1) == b"\n" else f"\n{line}"
            opened.write(f"{line}\n".encode())
    except OSError as error:
        raise RemoteError(f"the host's key cannot be added: {error.strerror}", where=str(file)) from error
