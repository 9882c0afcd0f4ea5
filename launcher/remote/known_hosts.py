"""The known host keys, read as OpenSSH reads them (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

paramiko's own reader refuses a whole file for one line that it does not know (``@cert-authority``, ``@revoked``, two
blanks), knows no wildcards, and keeps one key of a type for a host. So the files are read here: a line that cannot be
parsed is skipped, and does not affect any other.
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


class HostKeyStatus(Enum):
    """The status of the key that a host presents, by the files of known hosts."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """No line is about this host."""
    OTHER = "other"
    """Lines are about this host, and none has this key."""
    REVOKED = "revoked"
    AUTHORITY = "authority"
    """Only certificates of an authority are accepted for this host, and the key is a plain one."""


@dataclass(frozen=True)
class Line:
    """One line of a file of known hosts. ``key`` is the blob as the protocol carries it."""

    hosts: str
    key_type: str
    key: bytes
    marker: str
    where: str

    def matches(self, name: str) -> bool:
        """Whether the line is about ``name``: a host, or ``[host]:port``, in lower case."""
        if self.hosts.startswith("|1|"):
            return _matches_hash(self.hosts, name)
        # Only * and ? are wildcards; brackets are those of [host]:port.
        patterns = re.sub(r"[][]", r"[\g<0>]", self.hosts.lower()).split(",")
        if any(fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
            return False
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns if not pattern.startswith("!"))


def _matches_hash(hosts: str, name: str) -> bool:
    """``|1|salt|hash``: the name's HMAC-SHA1 under the salt."""
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hosts[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def read(files: Iterable[Path]) -> list[Line]:
    """The valid lines of the files that exist.

    Raises RemoteError for a file that exists and cannot be read, because it might revoke a key.
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
            if (line := _parse_line(text, f"{file}:{number}")) is not None:
                lines.append(line)
    return lines


def _parse_line(text: str, where: str) -> Line | None:
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
    """The name of a host at a port in files of known hosts."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


def check_key(lines: Sequence[Line], host: str, port: int, key: bytes) -> tuple[HostKeyStatus, str]:
    """The status of the key that ``host`` presents, and the ``file:line`` that decides it ("" for none).

    For a port other than 22 a line with the host name alone counts when its key is this one, as for ssh (sshconnect.c,
    "checking without port identifier"), and is ignored when it has another key.
    """
    lines_of_name = [line for line in lines if line.matches(name_of(host, port))]
    lines_of_host = [line for line in lines if line.matches(host.lower())] if port != DEFAULT_PORT else []
    for line in (*lines_of_name, *lines_of_host):
        if line.marker == "@revoked" and line.key == key:
            return HostKeyStatus.REVOKED, line.where
    for line in (*lines_of_name, *lines_of_host):
        if not line.marker and line.key == key:
            return HostKeyStatus.KNOWN, line.where
    keys = [line for line in lines_of_name if not line.marker]
    if keys:
        return HostKeyStatus.OTHER, keys[0].where
    authorities = [line for line in (*lines_of_name, *lines_of_host) if line.marker == "@cert-authority"]
    return (HostKeyStatus.AUTHORITY, authorities[0].where) if authorities else (HostKeyStatus.UNKNOWN, "")


def known_types(lines: Sequence[Line], host: str, port: int) -> list[str]:
    """The types of a host's known keys: these are requested first, so that the host presents one of them."""
    names = {name_of(host, port), host.lower()}
    own_lines = [line for line in lines if not line.marker and any(line.matches(name) for name in names)]
    return list(dict.fromkeys(line.key_type for line in own_lines))


def fingerprint(key: bytes) -> str:
    """``SHA256:…`` as ssh-keygen prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def line_for(host: str, port: int, key_type: str, key: bytes) -> str:
    """The line of a file of known hosts for a key."""
    return f"{name_of(host, port)} {key_type} {base64.b64encode(key).decode()}"


def add(file: Path, line: str) -> None:
    """Append a line to a file, which is created for this user alone if it does not exist. Raises RemoteError."""
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
