"""Runs a command on the far side in a process of its own, which writes its value to standard output.

The process ends with the connection, when its standard input closes. What must live longer is a driver
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
"""File beside the record of a run or sweep: how its latest driver was started."""
PART = 128 << 10
_COLLECT_SECONDS = 0.05
"""Seconds for which output is collected into one message. Another message may wait a round trip for the one before it,
because sshd leaves Nagle's algorithm on where there is no terminal."""
_END_SECONDS = 15.0
"""Seconds for a command to end once the connection is gone."""


def own_argv(*words: str) -> list[str]:
    """The argv with which this launcher starts itself."""
    isolated = ["-I"] if sys.flags.isolated else []
    return [sys.executable, *isolated, "-m", "launcher", *words]


def run_command(state: Path, **request: Any) -> Generator[Any, None, Any]:
    """Run a command from a request that `launcher.cli.detached.command` reads; returns its exit code.

    Yields ``{"said": text}`` for standard error, and bytes for standard output, which together are a zlib stream.
    """
    pipe = subprocess.PIPE
    child = subprocess.Popen(own_argv("remote-command"), stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    pieces: queue.Queue[tuple[str, bytes]] = queue.Queue(maxsize=8)
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        streams = {"stdout": child.stdout, "stderr": child.stderr}
        for name, stream in streams.items():
            threading.Thread(target=_read_stream, args=(stream, name, pieces), daemon=True).start()
        compressor, open_streams, packed = zlib.compressobj(1), len(streams), b""
        while open_streams:
            try:
                name, data = pieces.get(timeout=_COLLECT_SECONDS if packed else None)
            except queue.Empty:
                name, data = "", b""
            open_streams -= bool(name) and not data
            if name == "stderr" and data:
                yield {"said": data.decode(errors="replace")}
            elif name == "stdout":
                packed += compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH if data else zlib.Z_FINISH)
            if packed and (not name or len(packed) >= PART or not open_streams):
                yield packed
                packed = b""
        return child.wait(_END_SECONDS)
    finally:
        child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_SECONDS)
        child.kill()


def _read_stream(stream: IO[bytes], name: str, pieces: queue.Queue[tuple[str, bytes]]) -> None:
    """Put a stream's pieces into the queue, and an empty one at its end."""
    with contextlib.suppress(OSError, ValueError):
        while data := stream.read(PART):
            pieces.put((name, data))
    pieces.put((name, b""))
