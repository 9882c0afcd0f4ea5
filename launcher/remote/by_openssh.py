"""The way to a login node by a child `ssh`: for ControlMaster, Kerberos, security keys, authorities of host keys.

It reads its own configuration and asks the terminal itself. Every pipe is a child; with ControlMaster they share a
connection, else each authenticates.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator

from launcher.core.errors import RemoteError
from launcher.core.stop import defer_signals
from launcher.remote.destination import Destination
from launcher.remote.opener import Pipe

_ENDING = 2.0
_ITS_OWN = 255
"""Exit code of ssh itself: the connection could not be made, or went away (ssh(1), EXIT STATUS)."""


class OpenSSHPipe:
    def __init__(self, argv: list[str], host: str) -> None:
        self._host = host
        self._stderr: collections.deque[bytes] = collections.deque(maxlen=200)
        try:
            # A session of its own would take the terminal away, at which ssh asks for codes. But a Ctrl-C comes to ssh
            # too, and would end the connection by which we cancel: a signal that is blocked here is blocked there.
            with defer_signals(), _blocked(signal.SIGINT):
                self._child = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
                )
        except OSError as error:
            raise RemoteError(f"{argv[0]} cannot be started: {error.strerror}", where=host) from error
        threading.Thread(target=self._read_stderr, daemon=True).start()

    def _read_stderr(self) -> None:
        assert self._child.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while part := self._child.stderr.read(4096):
                self._stderr.append(part)

    def send(self, data: bytes) -> None:
        assert self._child.stdin is not None
        view = memoryview(data)
        try:
            while view:
                view = view[self._child.stdin.write(view) or 0 :]
        except (OSError, ValueError) as error:
            raise RemoteError("the connection has gone", where=self._host) from error

    def receive(self) -> bytes:
        assert self._child.stdout is not None
        try:
            return self._child.stdout.read(1 << 16) or b""
        except (OSError, ValueError) as error:
            raise RemoteError("the connection has gone", where=self._host) from error

    def finish(self) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()

    def status(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(5.0)
            return None if code in (_ITS_OWN, None) or code < 0 else code
        return None

    def stderr_tail(self) -> str:
        return b"".join(self._stderr).decode(errors="replace").strip()[-4000:]

    def close(self) -> None:
        self.finish()
        for end in (self._child.terminate, self._child.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_ENDING)
                break
            end()
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class OpenSSHOpener:
    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._pipes: list[OpenSSHPipe] = []

    def open(self, command: str) -> Pipe:
        # No terminal, no forwarding: what a person's configuration forwards is not given to a login node unasked.
        options = ["-T", "-a", "-x", "-oClearAllForwardings=yes", "-oServerAliveInterval=10", "-oServerAliveCountMax=3"]
        pipe = OpenSSHPipe(
            [*self._destination.ssh, *options, "--", self._destination.name, command], self._destination.name
        )
        self._pipes.append(pipe)
        return pipe

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
