"""Known hosts are read as OpenSSH reads them: one odd line costs nothing, one key of a host is not the only one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from pathlib import Path

import pytest

from launcher.core.errors import RemoteError
from launcher.remote.known_hosts import HostKeyStatus as Status
from launcher.remote.known_hosts import add, check_key, fingerprint, known_types, line_for, name_of, read

OURS, OTHER = b"\x00\x00\x00\x0bssh-ed25519our-key", b"\x00\x00\x00\x0bssh-ed25519another"


def text(key: bytes) -> str:
    return f"ssh-ed25519 {base64.b64encode(key).decode()}"


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


O, X = text(OURS), text(OTHER)  # noqa: E741

TABLE = [
    # name, lines of the file, host, port, what is known of our key
    ("plain", [f"login.site {O}"], "login.site", 22, Status.KNOWN),
    ("in large letters", [f"Login.SITE {O}"], "LOGIN.site", 22, Status.KNOWN),
    ("of several names", [f"a,login.site,b {O}"], "login.site", 22, Status.KNOWN),
    ("blanks and a comment", [f"  login.site\t {O}   root@somewhere"], "login.site", 22, Status.KNOWN),
    ("a port", [f"[login.site]:2222 {O}"], "login.site", 2222, Status.KNOWN),
    ("another port", [f"[login.site]:2222 {O}"], "login.site", 2223, Status.UNKNOWN),
    ("the plain name at another port", [f"login.site {O}"], "login.site", 2222, Status.KNOWN),
    ("the plain name's other key at another port", [f"login.site {X}"], "login.site", 2222, Status.UNKNOWN),
    ("a wildcard", [f"*.site {O}"], "login.site", 22, Status.KNOWN),
    ("one character", [f"login?.site {O}"], "login1.site", 22, Status.KNOWN),
    ("one character is not two", [f"login?.site {O}"], "login12.site", 22, Status.UNKNOWN),
    ("but not this one", [f"*.site,!login.site {O}"], "login.site", 22, Status.UNKNOWN),
    ("a wildcard with a port", [f"[*.site]:2222 {O}"], "login.site", 2222, Status.KNOWN),
    ("an address of IPv6", [f"[fe80::1]:2222 {O}"], "fe80::1", 2222, Status.KNOWN),
    ("hashed", [f"{hashed('login.site')} {O}"], "login.site", 22, Status.KNOWN),
    ("hashed with a port", [f"{hashed('[login.site]:2222')} {O}"], "login.site", 2222, Status.KNOWN),
    ("hashed, of another", [f"{hashed('other.site')} {O}"], "login.site", 22, Status.UNKNOWN),
    ("a hash that is none", [f"|1|%%%|x {O}", f"|1|only {O}"], "login.site", 22, Status.UNKNOWN),
    ("two keys of one type, ours second", [f"login.site {X}", f"login.site {O}"], "login.site", 22, Status.KNOWN),
    ("another key", [f"login.site {X}"], "login.site", 22, Status.OTHER),
    ("nothing", [], "login.site", 22, Status.UNKNOWN),
    ("revoked", [f"@revoked * {O}", f"login.site {O}"], "login.site", 22, Status.REVOKED),
    ("revoked by plain name", [f"@revoked login.site {O}", f"[login.site]:2 {O}"], "login.site", 2, Status.REVOKED),
    ("another revoked", [f"@revoked * {X}", f"login.site {O}"], "login.site", 22, Status.KNOWN),
    ("an authority", [f"@cert-authority *.site {X}"], "login.site", 22, Status.AUTHORITY),
    ("an authority's own key is no host's", [f"@cert-authority *.site {O}"], "login.site", 22, Status.AUTHORITY),
    ("an authority beside the key", [f"@cert-authority * {X}", f"login.site {O}"], "login.site", 22, Status.KNOWN),
    ("odd lines", ["@tomorrow * x y", "three words", "login.site ssh-ed25519 !!!", "\x00", "#", O, f"login.site {O}"],
     "login.site", 22, Status.KNOWN),
    ("brackets are no set", [f"login[12].site {O}"], "login1.site", 22, Status.UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "host", "port", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_key_is_known_as_ssh_knows_it(
    lines: list[str], host: str, port: int, expected: Status, tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe not text\n")
    found, place = check_key(read([tmp_path / "missing", file]), host, port, OURS)
    assert found is expected
    assert bool(place) == (found is not Status.UNKNOWN)


def test_a_host_is_asked_for_the_types_that_are_known(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"login.site {O}\n@revoked login.site ssh-rsa AAAA\nlogin.site ssh-rsa AAAA\nother ecdsa AAAA\n")
    assert known_types(read([file]), "login.site", 22) == ["ssh-ed25519", "ssh-rsa"]


def test_a_key_is_added_at_the_end_and_nothing_else_changes(tmp_path: Path) -> None:
    file = tmp_path / "ssh" / "known_hosts"
    add(file, line_for("Login.site", 2222, "ssh-ed25519", OURS))
    assert file.stat().st_mode & 0o777 == 0o600
    assert check_key(read([file]), "login.site", 2222, OURS)[0] is Status.KNOWN
    file.write_text("no line end")
    add(file, f"login.site {X}")
    assert file.read_text() == f"no line end\nlogin.site {X}\n"


def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "known_hosts").mkdir()
    with pytest.raises(RemoteError, match="cannot be read"):
        read([tmp_path / "known_hosts"])
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 9 << 20)
    with pytest.raises(RemoteError, match="MiB"):
        read([huge])


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True, timeout=30)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(tmp_path / "k")], capture_output=True, text=True, timeout=30
    ).stdout
    key = base64.b64decode((tmp_path / "k.pub").read_text().split()[1])
    assert fingerprint(key) == shown.split()[1]
    assert name_of("Host", 22) == "host" and name_of("Host", 2200) == "[host]:2200"
