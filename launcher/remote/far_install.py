"""Describes a login node, installs a launcher there and starts it. This program runs there, with the Python there.

It is sent as text before there is a launcher, so it uses only the standard library and nothing newer than Python 3.6:
an old Python must be able to report that it is too old. What only an installation needs is imported in its functions.
Standard input has lines of JSON (requests), each followed by the bytes that it announces; an answer is one line:
``launcher-install TOKEN {…}``. After an error the program ends.
"""

import contextlib
import json
import os
import platform
import stat
import sys
import time
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List

MARKER = "launcher-install"
LOCKING = 600.0
CHECKING = 300.0
OLDEST = (3, 10)

Request = Dict[str, Any]


class Refused(Exception):
    """A request that cannot be carried out: message and hint."""


def main() -> None:
    os.umask(0o077)
    answer = {}  # type: Dict[str, Any]
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line.decode("utf-8"))
        try:
            answer = {"look": look, "install": install, "begin": begin}[request["what"]](request)
        except Refused as error:
            answer = {"error": error.args[0], "hint": error.args[1]}
        except OSError as error:
            file = f"{error.filename}: " if error.filename else ""
            answer = {"error": f"{file}{error.strerror or error}", "hint": ""}
        sys.stdout.write(f"\n{MARKER} {request['token']} {json.dumps(answer)}\n")
        sys.stdout.flush()
        if "argv" in answer:
            os.execv(answer["argv"][0], answer["argv"])
        if "error" in answer:
            return


def directory_of(request: Request) -> Path:
    """The directory of versions. It is created, and refused when others could change the programs in it."""
    path = Path.home() / str(request["directory"]) / "versions"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (path.parent, path):
        status = place.stat()
        if status.st_uid != os.geteuid():
            raise Refused(f"{place} belongs to user {status.st_uid}", "choose another login.directory")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Refused(f"{place} can be written by others", f"chmod go-w {place}")
    return path


def versions(path: Path) -> List[str]:
    """Names of whole versions, the newest last. A name with a leading dot is incomplete."""
    places = [place for place in path.iterdir() if not place.name.startswith(".")]
    return [place.name for place in sorted(places, key=lambda place: place.stat().st_mtime)]


def look(request: Request) -> Dict[str, Any]:
    path = directory_of(request)
    space = os.statvfs(str(path))
    return {
        "python": list(sys.version_info[:3]),
        "machine": platform.machine(),
        "libc": list(platform.libc_ver()),
        "free": space.f_bavail * space.f_frsize,
        "versions": versions(path),
    }


def install(request: Request) -> Dict[str, Any]:
    import shutil

    path = directory_of(request)
    if sys.version_info < OLDEST:
        raise Refused(f"its Python is {platform.python_version()}, and 3.10 is needed", "set login.python")
    final = path / Path(request["name"]).name
    made = path / f".{final.name}.{platform.node()}.{os.getpid()}"
    with locked(path):
        try:
            made.mkdir()
            receive(made / "wheels.tar", request["size"], request["sha256"])
            new = not final.is_dir()
            if new:
                build(request, made)
                os.sync()
                made.rename(final)
        finally:
            shutil.rmtree(str(made), ignore_errors=True)
    return {"installed": final.name, "new": new}


def begin(request: Request) -> Dict[str, Any]:
    """The argv of the agent of a version, which replaces this process and takes over its input and output."""
    python = directory_of(request) / Path(request["name"]).name / "python/bin/python"
    if not os.access(str(python), os.X_OK):
        raise Refused(f"{python} cannot be started", "launcher remote install")
    return {"argv": [str(python), "-I", "-m", "launcher", "remote-agent"]}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One installation at a time, which saves work; where flock does nothing, the rename still publishes only one."""
    import fcntl

    with (path / ".lock").open("w") as lock:
        deadline = time.monotonic() + LOCKING
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused(f"another installation holds {path}/.lock", "") from None
                time.sleep(0.2)
        yield


def build(request: Request, made: Path) -> None:
    """Make a virtual environment with the received wheels, and start its launcher once."""
    import subprocess
    import tarfile

    bundle = made / "wheels.tar"
    environment = made / "python"
    argv = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(argv, check=True, timeout=CHECKING, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    python = str(environment / "bin/python")
    site = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    with tarfile.open(str(bundle)) as archive:
        for member in archive:
            wheel = archive.extractfile(member)
            if wheel is not None and member.name.endswith(".whl"):
                unpack(wheel, site)
    bundle.unlink()
    argv = [python, "-m", "compileall", "-q", str(site)]
    subprocess.run(argv, timeout=CHECKING, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    argv = [python, "-I", "-m", "launcher", "--version"]
    pipe = subprocess.PIPE
    result = subprocess.run(argv, timeout=CHECKING, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    words = result.stdout.decode("utf-8", "replace").split()
    if result.returncode != 0 or words[-1:] != [request["version"]]:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Refused(f"what was installed does not start: {' '.join(lines[-1:] or words)[:500]}", "")


def receive(file: Path, size: int, digest: str) -> None:
    """Write the next ``size`` bytes of standard input to a file. Raises Refused when their hash is another."""
    import hashlib

    received_digest, remaining = hashlib.sha256(), size
    with file.open("wb") as out:
        while remaining:
            part = sys.stdin.buffer.read(min(remaining, 1 << 20))
            if not part:
                raise Refused(f"the wheels ended {remaining} bytes too early", "try again")
            received_digest.update(part)
            out.write(part)
            remaining -= len(part)
    if received_digest.hexdigest() != digest:
        raise Refused("the wheels arrived changed", "try again")


def unpack(wheel: IO[bytes], site: Path) -> None:
    """Unpack a wheel into site-packages; its scripts are not used."""
    import shutil
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            parts = name.split("/")
            if name.startswith("/") or ".." in parts:
                raise Refused(f"a wheel has a path that leaves its directory: {name!a}", "")
            if parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            if name.endswith("/"):
                continue
            target = site.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)


if __name__ == "__main__":
    main()
