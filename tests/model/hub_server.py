"""A small server of the few endpoints of the hub that a download needs; it misbehaves as told."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "MiniMaxAI/MiniMax-M3"


@dataclass
class Hub:
    """``answers`` are given in place of the right one, each once: (status, headers). ``cut`` connections end early."""

    directory: Path
    url: str = ""
    token: str | None = None
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cut: int = 0
    wrong_sha256: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def hub(directory: Path) -> Iterator[Hub]:
    """Serve a checkpoint's directory as a repository."""
    state = Hub(directory)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                return self.answer(401, b"{}")
            if state.answers:
                status, headers = state.answers.pop(0)
                return self.answer(status, b"{}", headers)
            listing = re.fullmatch(rf"/api/models/{REPOSITORY}/revision/([^?]+)(\?.*)?", self.path)
            if listing:
                if listing[1] not in ("main", SHA):
                    return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return self.answer(200, json.dumps(self.listing()).encode())
            file = re.fullmatch(rf"/{REPOSITORY}/resolve/{SHA}/(.+)", self.path)
            if not file:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return self.ranged((state.directory / file[1]).read_bytes())

        def listing(self) -> dict[str, object]:
            files = []
            for path in sorted(state.directory.iterdir()):
                content = path.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                entry: dict[str, object] = {"rfilename": path.name, "size": len(content), "blobId": blob}
                if path.suffix == ".safetensors":
                    sha = hashlib.sha256(content + b"x" * state.wrong_sha256).hexdigest()
                    entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 134}
                files.append(entry)
            return {"id": REPOSITORY, "sha": SHA, "siblings": files, "tags": [], "private": False, "downloads": 0}

        def ranged(self, content: bytes) -> None:
            first, last = map(int, (self.headers["Range"].removeprefix("bytes=")).split("-"))
            wanted = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(wanted)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            if state.cut and len(wanted) > 1:
                state.cut -= 1
                self.wfile.write(wanted[: len(wanted) // 2])
                self.close_connection = True
                self.wfile.flush()
                self.connection.close()
            else:
                self.wfile.write(wanted)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
