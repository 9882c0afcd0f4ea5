"""Can enroot import on this host? It imports a tiny image from a registry on loopback; this module makes both.

``python -m launcher.doctor.import_proof DIRECTORY [OPTIONS]`` imports the image into DIRECTORY, with OPTIONS for
mksquashfs, and prints one line of JSON: ``imported`` (true or false), a message (``say``), and how to ``fix`` it.
It runs on this host, or as a job.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from launcher.core.errors import ImageError
from launcher.core.process import clean_environment, run
from launcher.image.enroot import diagnose, directory_variables
from launcher.image.squash import check_lists, inspect

LIMIT = 60.0
"""Seconds for an import of some hundred bytes."""

_NAME = "launcher/doctor"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MAKES = {"x86_64": "amd64", "aarch64": "arm64"}


def documents() -> dict[str, tuple[str, bytes]]:
    """The documents of the image by their paths in a registry: media type and content."""
    buffer, note = io.BytesIO(), b"made by `launcher runner doctor`\n"
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("etc/launcher-doctor")
        entry.size = len(note)
        tar.addfile(entry, io.BytesIO(note))
    plain = buffer.getvalue()
    layer = gzip.compress(plain, mtime=0)
    make = _MAKES.get(platform.machine(), platform.machine())
    rootfs = {"type": "layers", "diff_ids": [_digest(plain)]}
    config = json.dumps({"architecture": make, "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": rootfs}).encode()
    parts = [
        {"mediaType": kind, "digest": _digest(content), "size": len(content)}
        for kind, content in ((_CONFIG, config), (_LAYER, layer))
    ]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": parts[0], "layers": parts[1:]}
    ).encode()
    blobs = {f"blobs/{_digest(content)}": (kind, content) for kind, content in ((_CONFIG, config), (_LAYER, layer))}
    return blobs | {f"manifests/{name}": (_MANIFEST, manifest) for name in ("1", _digest(manifest))}


@contextmanager
def registry() -> Iterator[str]:
    """A registry on loopback with this one image; yields its HOST:PORT."""
    served = documents()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.removeprefix(f"/v2/{_NAME}/")
            kind, content = served.get(path, ("application/json", b"{}"))
            self.send_response(200 if path in served else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Docker-Content-Digest", _digest(content))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def prove(directory: Path, options: str = "", command: tuple[str, ...] = ("enroot",)) -> str:
    """Import the image into ``directory``, and leave no file there. Returns a message. Raises ImageError, OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with TemporaryDirectory(prefix="launcher-doctor-", dir=directory) as temporary, registry() as address:
        variables = {**directory_variables(temporary), "ENROOT_ALLOW_HTTP": "y"}
        variables |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        Path(variables["TMPDIR"]).mkdir(parents=True)
        if options:
            variables["ENROOT_SQUASH_OPTIONS"] = options
        squash = Path(temporary, "image.sqsh")
        argv = [*command, "import", "-o", str(squash), f"docker://{address}#{_NAME}:1"]
        completed = run(argv, timeout=LIMIT, env={**clean_environment(os.environ), **variables})
        if completed.timed_out:
            raise ImageError(f"enroot import of a tiny image did not end within {LIMIT:.0f} s: {completed.tail()}")
        if not completed.ok:
            fault = diagnose(completed)
            raise ImageError(f"enroot import of a tiny image failed: {fault.what}", hint=fault.hint)
        inspect(squash)
        listing = check_lists(squash)
    return f"a tiny image was imported in {time.monotonic() - began:.1f} s; lists: {listing}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def main(arguments: list[str]) -> None:
    """Try an import, and print the line of JSON."""
    try:
        answer = {"imported": True, "say": prove(Path(arguments[0]), arguments[1] if arguments[1:] else ""), "fix": ""}
    except ImageError as error:
        answer = {"imported": False, "say": error.message, "fix": error.hint or ""}
    except OSError as error:
        answer = {"imported": False, "say": f"{error.filename}: {error.strerror}", "fix": "correct images.temporary"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
