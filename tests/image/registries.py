"""A registry of container images on this machine, whose answers a test can spoil."""

from __future__ import annotations

import hashlib
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class FakeRegistry:
    """Its content by path, what to answer next, and what was asked. ``faults`` are used up one request at a time:
    a status with headers, ``cut`` (the connection ends half-way) or ``wrong`` (another byte in the content)."""

    documents: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    faults: list[tuple[int, dict[str, str]] | str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    account: tuple[str, str] | None = None
    anonymous: bool = False
    kind: str = "Bearer"
    address: str = ""
    redirects: dict[str, str] = field(default_factory=dict)
    """Where a path leads, with its query."""
    accounts_seen: list[str | None] = field(default_factory=list)

    def put(self, repository: str, document: object, *tags: str, kind: str = "") -> str:
        """Any document, by its digest and by tags. Returns the digest."""
        content = json.dumps(document).encode()
        kind = kind or (INDEX if isinstance(document, dict) and "manifests" in document else MANIFEST)
        for name in (sha256(content), *tags):
            self.documents[f"{repository}/manifests/{name}"] = (kind, content)
        return sha256(content)

    def add(self, repository: str, tag: str, *architectures: str, layers: tuple[int, ...] = (1000, 500)) -> str:
        """An image: an index when it has several architectures. Returns the digest that the tag names."""
        entries = []
        for architecture in architectures:
            configuration = json.dumps({"architecture": architecture, "config": {"Env": []}, "tag": tag}).encode()
            self.documents[f"{repository}/blobs/{sha256(configuration)}"] = ("application/json", configuration)
            manifest = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": {"digest": sha256(configuration), "size": len(configuration)},
                    "layers": [{"digest": sha256(str(n).encode()), "size": n} for n in layers],
                }
            ).encode()
            self.documents[f"{repository}/manifests/{sha256(manifest)}"] = (MANIFEST, manifest)
            entries.append({"digest": sha256(manifest), "platform": {"os": "linux", "architecture": architecture}})
            self.documents[f"{repository}/manifests/{tag}"] = (MANIFEST, manifest)
        if len(entries) > 1:
            entries.append({"digest": sha256(b""), "platform": {"os": "unknown", "architecture": "unknown"}})
            index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
            self.documents[f"{repository}/manifests/{sha256(index)}"] = (INDEX, index)
            self.documents[f"{repository}/manifests/{tag}"] = (INDEX, index)
        return sha256(self.documents[f"{repository}/manifests/{tag}"][1])

    def environment(self, config: str = "/nonexistent") -> dict[str, str]:
        """What makes a Registry, and enroot, ask here."""
        return {"ENROOT_ALLOW_HTTP": "y", "ENROOT_CONFIG_PATH": config, "no_proxy": "*"}


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[FakeRegistry]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        registry = self.registry
        registry.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        fault = registry.faults.pop(0) if registry.faults else None
        if isinstance(fault, tuple):
            self._answer(fault[0], b'{"errors": []}', fault[1])
        elif (to := registry.redirects.get(self.path.partition("?")[0])) is not None:
            query = self.path.partition("?")[2]
            self._answer(307, b"", {"Location": f"{to}?{query}" if query else to})
        elif self.path.startswith("/token"):
            registry.accounts_seen.append(self.headers.get("Authorization"))
            allowed = registry.anonymous or self.headers.get("Authorization") == self._basic()
            self._answer(200 if allowed else 401, json.dumps({"token": "secret-token"}).encode())
        elif registry.account and self.headers.get("Authorization") not in ("Bearer secret-token", self._basic()):
            realm = f'realm="http://{registry.address}/token",service="here",scope="repository:a/b:pull"'
            self._answer(401, b"{}", {"WWW-Authenticate": f"{registry.kind} {realm}"})
        elif (document := registry.documents.get(self.path.removeprefix("/v2/"))) is None:
            self._answer(404, b"{}")
        else:
            kind, content = document
            headers = {"Content-Type": kind, "Docker-Content-Digest": sha256(content)}
            if fault == "wrong":
                content = content.replace(b"2", b"3", 1)
            self._answer(200, content, headers, cut=fault == "cut")

    do_HEAD = do_GET

    def _basic(self) -> str:
        return "Basic " + b64encode(":".join(self.registry.account or ("", "")).encode()).decode()

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """A registry that answers while the block runs; ``address`` is its HOST:PORT."""
    registry = FakeRegistry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = _Server(("127.0.0.1", 0), handler)
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
