"""Debian's docker-registry with an account and an image of two platforms, pushed by skopeo."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INSTALLED = bool(shutil.which("docker-registry") and shutil.which("skopeo"))
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class RealRegistry:
    """``address`` is HOST:PORT; ``environment`` is for enroot, with the account's credentials file."""

    address: str
    place: Path
    environment: dict[str, str]

    def push(self, name: str, *architectures: str, content: bytes = b"hello", kind: str = "oci") -> None:
        """Push an image for these architectures as ``name`` (repository:tag); as ``v2s2`` if enroot is to get it."""
        layout = self.place / "layout"
        shutil.rmtree(layout, ignore_errors=True)
        entry = _layout(layout, architectures, content)
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        self.skopeo(
            "copy",
            "--all",
            "--format",
            kind,
            "--dest-tls-verify=false",
            f"oci:{layout}:x",
            f"docker://{self.address}/{name}",
        )

    def digest(self, name: str) -> str:
        """The digest that a tag names, by skopeo."""
        raw = self.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{self.address}/{name}")
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"

    def skopeo(self, command: str, *words: str) -> bytes:
        account = "--dest-creds" if command == "copy" else "--creds"
        argv = ["skopeo", "--insecure-policy", command, account, "me:right", *words]
        return subprocess.run(argv, check=True, capture_output=True, timeout=600).stdout


def _layout(layout: Path, architectures: tuple[str, ...], content: bytes) -> dict[str, object]:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(kind: str, data: bytes, **more: object) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data), **more}

    entries = []
    for architecture in architectures:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("etc/motd")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        plain = buffer.getvalue()
        layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(plain, mtime=0))
        root = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]}
        configuration = {"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": root}
        config = blob("application/vnd.oci.image.config.v1+json", json.dumps(configuration).encode())
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        platform = {"os": "linux", "architecture": architecture}
        entries.append(blob(MANIFEST, json.dumps(manifest).encode(), platform=platform))
    tag = {"org.opencontainers.image.ref.name": "x"}
    if len(entries) == 1:
        return {**entries[0], "annotations": tag}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    return {**blob(INDEX, json.dumps(index).encode()), "annotations": tag}


@contextmanager
def real_registry(place: Path, *, account: bool = True) -> Iterator[RealRegistry]:
    """Debian's registry below ``place`` while the block runs; with ``account``, only for ``me`` with ``right``."""
    place.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    auth = ""
    if account:
        import bcrypt

        (place / "htpasswd").write_text(f"me:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
        auth = f"auth: {{htpasswd: {{realm: here, path: {place / 'htpasswd'}}}}}\n"
    (place / "config.yml").write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {place / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: x}}\n{auth}"
    )
    config = place / "enroot"
    config.mkdir(exist_ok=True)
    (config / ".credentials").write_text("machine 127.0.0.1 login me password right\n")
    child = subprocess.Popen(
        ["docker-registry", "serve", str(place / "config.yml")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2).close()
            except urllib.error.HTTPError:
                break
            except OSError:
                assert time.monotonic() < deadline, "docker-registry did not begin to serve"
                time.sleep(0.02)
            else:
                break
        environment = {"ENROOT_ALLOW_HTTP": "y", "ENROOT_CONFIG_PATH": str(config), "no_proxy": "*"}
        yield RealRegistry(f"127.0.0.1:{port}", place, environment)
    finally:
        child.terminate()
        child.wait()
