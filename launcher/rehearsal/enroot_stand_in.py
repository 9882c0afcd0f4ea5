"""A stand-in for enroot, for rehearsals and tests. It downloads nothing: its images hold a note that says so.

``python -m launcher.rehearsal.enroot_stand_in import -o FILE URI`` (and ``digest URI``, ``version``) behaves as enroot
4.1.2 was recorded: the order of its checks, its messages on stderr and its exit codes; it writes straight to the given
name, the superblock last; SIGTERM leaves nothing, SIGKILL a partial file and a directory in ENROOT_TEMP_PATH.

``LAUNCHER_REHEARSAL_ENROOT`` asks for failures, as ``key=value`` joined by commas:

    fail=401|403|404|429|503   the registry answers so
    fail=refused               nothing listens there
    fail=nospace               the file system gets full while the squash file is written
    fail=truncate | empty      exit 0, and the file is cut in half, or empty
    fail_times=N,counter=FILE  only the first N imports fail; FILE counts them
    slow=SECONDS               the time that writing takes
    size=BYTES                 this much more in the image
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from launcher.rehearsal.squashfs import squashfs

VERSION = "4.1.2-rehearsal"
FAULTS = "LAUNCHER_REHEARSAL_ENROOT"

_URI = re.compile(
    r"docker://(?:[^@]+@)?(?:(?P<registry>[^/#@]+)[#/])?(?P<repository>[a-z0-9/._-]+)"
    r"(?::(?P<tag>[A-Za-z0-9._:-]+))?(?:@(?P<digest>sha256:[A-Za-z0-9]+))?"
)
_STATUS = {
    "401": "Unauthorized",
    "403": "Forbidden",
    "404": "Not Found",
    "429": "",
    "503": "Service Unavailable",
}
_KEYS = {"fail", "fail_times", "counter", "slow", "size"}
_FAILS = {*_STATUS, "refused", "nospace", "truncate", "empty"}


class _Failed(Exception):
    """The program ends with exit code ``code`` after printing the message to stderr."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Failed(self.format_usage())


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command; the exit code of the program. Writes to stdout and stderr, as enroot does."""
    parser = _Parser(prog="enroot", description="A stand-in for enroot: nothing is downloaded.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version")
    for name in ("import", "digest"):
        command = commands.add_parser(name)
        command.add_argument("-a", "--arch")
        command.add_argument("uri")
        if name == "import":
            command.add_argument("-o", "--output", required=True)
    try:
        given = parser.parse_args(argv)
        if given.command == "version":
            sys.stdout.write(f"{VERSION}\n")
        elif given.command == "digest":
            _parse(given.uri)
            sys.stdout.write(f"sha256:{hashlib.sha256(given.uri.encode()).hexdigest()}\n")
        else:
            _import(given.uri, given.output, environ)
    except _Failed as failed:
        sys.stderr.write(f"{failed}\n")
        return failed.code
    return 0


def _parse(uri: str) -> re.Match[str]:
    if not uri.startswith("docker://"):
        raise _Failed(f"[ERROR] Invalid argument: {uri}")
    found = _URI.fullmatch(uri)
    if not found:
        raise _Failed(f"[ERROR] Invalid image reference: {uri}")
    return found


def _import(uri: str, output: str, environ: Mapping[str, str]) -> None:
    for name in ("CACHE", "DATA", "RUNTIME"):
        if path := environ.get(f"ENROOT_{name}_PATH"):
            try:
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise _Failed(f"mkdir: cannot create directory '{path}': {error.strerror}") from None
    found = _parse(uri)
    target = Path(os.path.realpath(output))
    if not target.parent.is_dir():
        raise _Failed(f"[ERROR] No such file or directory: {output}")
    if target.exists():
        raise _Failed(f"[ERROR] File already exists: {target}")
    faults = _faults(environ)
    with _temporary(environ.get("ENROOT_TEMP_PATH")):
        sys.stderr.write("[INFO] Querying registry for permission grant\n")
        fail = faults.get("fail", "") if _fails_now(faults) else ""
        _registry(found, fail)
        image = squashfs("etc", _files(uri, int(faults.get("size", 0))), created=_now(environ))
        sys.stderr.write("[INFO] Creating squashfs filesystem...\n")
        _write(target, image, fail, float(faults.get("slow", 0)))


def _registry(found: re.Match[str], fail: str) -> None:
    registry = found["registry"] or "registry-1.docker.io"
    url = f"https://{registry}/v2/{found['repository']}/manifests/{found['digest'] or found['tag'] or 'latest'}"
    if fail in _STATUS:
        raise _Failed(f"[ERROR] URL {url} returned error code: {fail} {_STATUS[fail]}")
    if fail == "refused":
        raise _Failed(f"curl: (7) Failed to connect to {registry} port 443 after 0 ms: Couldn't connect to server", 7)


def _write(target: Path, image: bytes, fail: str, slow: float) -> None:
    """Body first and superblock last, as mksquashfs does: until the end the file begins with zeros."""
    head, body = image[:96], image[96:]
    with _removed_when_terminated(target):
        try:
            with target.open("wb") as file:  # no O_EXCL: two imports into one name both "succeed", as recorded
                for part in (bytes(96), body[: len(body) // 2]):
                    file.write(part)
                file.flush()
                if fail == "nospace":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                time.sleep(slow)
                file.write(body[len(body) // 2 :])
                file.seek(0)
                file.write(head)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise _Failed(
                f"Write failed because {error.strerror}\nFATAL ERROR: Failed to write to output filesystem"
            ) from None
    if fail in ("truncate", "empty"):
        os.truncate(target, len(image.rstrip(b"\0")) // 2 if fail == "truncate" else 0)


def _files(uri: str, size: int) -> dict[str, bytes]:
    note = {"rehearsal": True, "uri": uri, "made_by": f"launcher.rehearsal.enroot_stand_in {VERSION}"}
    rc = f"# enroot-provenance: {uri}\necho 'this image is a rehearsal and holds no program' >&2\nexit 1\n"
    files = {"rc": rc.encode(), "rehearsal.json": json.dumps(note, indent=2).encode() + b"\n"}
    return {**files, "filler": bytes(size)} if size else files


def _now(environ: Mapping[str, str]) -> int:
    return int(environ.get("SOURCE_DATE_EPOCH") or time.time())


def _faults(environ: Mapping[str, str]) -> dict[str, str]:
    parts = (part.partition("=") for part in environ.get(FAULTS, "").split(",") if part)
    faults = {key: value for key, _, value in parts}
    if not (set(faults) <= _KEYS and faults.get("fail", "empty") in _FAILS):
        raise _Failed(f"[ERROR] {FAULTS}: {environ[FAULTS]!r} asks for something that this stand-in does not know")
    if "fail_times" in faults and "counter" not in faults:
        raise _Failed(f"[ERROR] {FAULTS}: fail_times needs a counter=FILE")
    return faults


def _fails_now(faults: Mapping[str, str]) -> bool:
    if "fail_times" not in faults:
        return True
    with Path(faults["counter"]).open("ab") as counter:
        counter.write(b".")
        counter.flush()
        return counter.tell() <= int(faults["fail_times"])


def _temporary(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="enroot.", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise _Failed(f"mktemp: failed to create directory in '{parent}': {error.strerror}") from None


@contextlib.contextmanager
def _removed_when_terminated(target: Path) -> Iterator[None]:
    def leave(number: int, frame: object) -> NoReturn:
        target.unlink(missing_ok=True)
        raise _Failed("[ERROR] terminated", 128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
