"""A command on the far side, in a process of its own: its value by standard output, what it says by standard error.

It ends with the connection: its standard input stays open until then. What has to live longer starts a driver
(`launcher.cli.detached`).
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

STARTED = "started.json"
"""Beside a run's or a sweep's record: how its latest driver was started."""
PART = 128 << 10
_TOGETHER = 0.05
"""Seconds in which what comes goes in one message: each one more may wait a round trip for the one before it (sshd
leaves Nagle's algorithm on where there is no terminal)."""
_ENDING = 15.0
"""Seconds for a command to end once nobody listens any more."""


def own_argv(*words: str) -> list[str]:
    """How this launcher starts itself."""
    isolated = ["-I"] if sys.flags.isolated else []
    return [sys.executable, *isolated, "-m", "launcher", *words]


def run_command(state: Path, **request: Any) -> Generator[Any, None, Any]:
    """Run a command, as `launcher.cli.detached.command` reads it. Events: ``{"said": text}`` of standard error, and
    bytes of standard output, which are a zlib stream together; the value is the exit code."""
    child = subprocess.Popen(
        own_argv("remote-command"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    came: queue.Queue[tuple[str, bytes]] = queue.Queue(maxsize=8)
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        readers = [_reader(child.stdout, "out", came), _reader(child.stderr, "said", came)]
        packing, open_streams, packed = zlib.compressobj(1), len(readers), b""
        while open_streams:
            try:
                name, data = came.get(timeout=_TOGETHER if packed else None)
            except queue.Empty:
                name, data = "", b""
            open_streams -= bool(name) and not data
            if name == "said" and data:
                yield {"said": data.decode(errors="replace")}
            elif name == "out":
                packed += packing.compress(data) + packing.flush(zlib.Z_SYNC_FLUSH if data else zlib.Z_FINISH)
            if packed and (not name or len(packed) >= PART or not open_streams):
                yield packed
                packed = b""
        return child.wait(_ENDING)
    finally:
        child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_ENDING)
        child.kill()


def _reader(stream: IO[bytes], name: str, came: queue.Queue[tuple[str, bytes]]) -> threading.Thread:
    def read() -> None:
        data = b"x"
        while data:
            try:
                data = stream.read(PART)
            except (OSError, ValueError):
                data = b""
            came.put((name, data))

    thread = threading.Thread(target=read, daemon=True, name=f"remote {name}")
    thread.start()
    return thread
