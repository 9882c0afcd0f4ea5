"""Connections by a child process `ssh`: for ControlMaster, Kerberos, security keys, authorities of host keys.

ssh reads its own configuration and prompts on the terminal itself. Every pipe is a child; with ControlMaster they
share a connection, otherwise each authenticates.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import subprocess
import threading
from typing import IO

from launcher.core.errors import RemoteError
from launcher.core.stop import defer_signals
from launcher.remote.destination import Destination
from launcher.remote.opener import Pipe

_END_SECONDS = 2.0
_SSH_FAILED = 255
"""Exit code of ssh itself: the connection could not be made, or was lost (ssh(1), EXIT STATUS)."""


class OpenSSHPipe:
    def __init__(self, argv: list[str], host: str) -> None:
        self._host = host
        self._stderr: collections.deque[bytes] = collections.deque(maxlen=200)
        pipe = subprocess.PIPE
        try:
            # ssh stays in this session, because it prompts on the terminal. So a Ctrl-C reaches ssh too, and would end
            # the connection by which we cancel: a signal that is blocked here is blocked in the child.
            with defer_signals():
                before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
                try:
                    self._child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError as error:
            raise RemoteError(f"{argv[0]} cannot be started: {error.strerror}", where=host) from error
        assert self._child.stdin is not None and self._child.stdout is not None and self._child.stderr is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        threading.Thread(target=self._read_stderr, args=(self._child.stderr,), daemon=True).start()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            while part := stream.read(4096):
                self._stderr.append(part)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._stdin.write(view) or 0 :]
        except (OSError, ValueError) as error:
            raise RemoteError("the connection has gone", where=self._host) from error

    def receive(self) -> bytes:
        try:
            return self._stdout.read(1 << 16) or b""
        except (OSError, ValueError) as error:
            raise RemoteError("the connection has gone", where=self._host) from error

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()

    def status(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(5.0)
            return None if code == _SSH_FAILED or code < 0 else code
        return None

    def stderr_tail(self) -> str:
        return b"".join(self._stderr).decode(errors="replace").strip()[-4000:]

    def close(self) -> None:
        self.finish()
        for stop in (self._child.terminate, self._child.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_END_SECONDS)
                break
            stop()
        with contextlib.suppress(OSError):
            self._stdout.close()


class OpenSSHOpener:
    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._pipes: list[OpenSSHPipe] = []

    def open(self, command: str) -> Pipe:
        # No terminal, and no forwarding, even where the user's configuration has it.
        options = ["-T", "-a", "-x", "-oClearAllForwardings=yes", "-oServerAliveInterval=10", "-oServerAliveCountMax=3"]
        name = self._destination.name
        pipe = OpenSSHPipe([*self._destination.ssh, *options, "--", name, command], name)
        self._pipes.append(pipe)
        return pipe

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
