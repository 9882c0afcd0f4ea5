"""Connections by paramiko: the host key of each hop is checked, and each hop authenticates once.

Facts about paramiko 5.1 that shape this file: `SSHClient.connect` prompts on the terminal by itself, so `Transport` is
used; exit status -1 means that the connection was lost; its own keepalive does not wait for an answer; its log writes
lost connections to standard error.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import paramiko

from launcher.core.errors import RemoteError
from launcher.core.terminal import one_line
from launcher.remote import known_hosts
from launcher.remote.destination import Destination, Hop
from launcher.remote.known_hosts import HostKeyStatus
from launcher.remote.opener import Pipe, Prompt

_CONNECT_SECONDS = 20.0
_AUTHENTICATION_SECONDS = 120.0
"""Seconds for the user to look up a code."""
_SEND_SECONDS = 60.0
"""Seconds without progress after which sending fails."""
_MOST_STEPS = 8
"""The most authentication steps that a server may require in turn (`AuthenticationMethods` of sshd)."""
_MOST_KEYS = 5
"""The most keys that are tried: servers close the connection after six attempts (MaxAuthTries of sshd)."""

# GCM first: paramiko prefers CTR, which takes twice as much processor time. CBC, 3DES, MD5 and SHA-1 are left out.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_DIGESTS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")


class ParamikoPipe:
    """A program at the end of a channel."""

    def __init__(self, channel: paramiko.Channel, host: str) -> None:
        self._channel = channel
        self._host = host
        self._stderr: collections.deque[bytes] = collections.deque(maxlen=16)
        # Unread output would fill the window and block the program.
        threading.Thread(target=self._read_stderr, daemon=True).start()

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError):
            while part := self._channel.recv_stderr(4096):
                self._stderr.append(part)

    def send(self, data: bytes) -> None:
        self._channel.settimeout(_SEND_SECONDS)
        try:
            self._channel.sendall(data)
        except (OSError, EOFError) as error:
            raise RemoteError("the connection has gone", where=self._host) from error
        finally:
            self._channel.settimeout(None)

    def receive(self) -> bytes:
        try:
            return self._channel.recv(1 << 16)
        except (OSError, EOFError) as error:
            raise RemoteError("the connection has gone", where=self._host) from error

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.shutdown_write()

    def status(self) -> int | None:
        if not self._channel.status_event.wait(5.0):
            return None
        return None if self._channel.exit_status == -1 else self._channel.exit_status

    def stderr_tail(self) -> str:
        return b"".join(self._stderr).decode(errors="replace").strip()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()


class ParamikoOpener:
    """A connection, hop by hop. With ``accept_new`` the key of a host without known keys is added, and reported."""

    def __init__(
        self, destination: Destination, prompt: Prompt, *, accept_new: bool = False, report: Callable[[str], None]
    ) -> None:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        self._name = destination.name
        self._prompt = prompt
        self._accept_new = accept_new
        self._report = report
        self._transports: list[paramiko.Transport] = []
        try:
            for hop in destination.hops:
                self._connect(hop)
        except BaseException:
            self.close()
            raise

    def open(self, command: str) -> Pipe:
        try:
            channel = self._transports[-1].open_session(timeout=_CONNECT_SECONDS)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            hint = "the server may allow too few sessions (MaxSessions)"
            raise RemoteError(f"no session: {_error_text(error)}", where=self._name, hint=hint) from error
        return ParamikoPipe(channel, self._name)

    def close(self) -> None:
        for transport in reversed(self._transports):
            with contextlib.suppress(Exception):
                transport.close()

    def _connect(self, hop: Hop) -> None:
        where = known_hosts.name_of(hop.host, hop.port)
        try:
            transport = paramiko.Transport(self._socket(hop))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise RemoteError(f"cannot be reached: {_error_text(error)}", where=where) from error
        self._transports.append(transport)  # `close` closes it, also when authentication fails
        try:
            lines = known_hosts.read(hop.known_hosts_files)
            options = transport.get_security_options()
            options.ciphers = [name for name in _CIPHERS if name in options.ciphers]
            options.digests = [name for name in _DIGESTS if name in options.digests]
            options.key_types = _ordered(options.key_types, known_hosts.known_types(lines, hop.known_as, hop.port))
            transport.auth_timeout = _AUTHENTICATION_SECONDS
            transport.banner_timeout = _CONNECT_SECONDS
            transport.start_client(timeout=_CONNECT_SECONDS)
            self._check_key(hop, lines, transport.get_remote_server_key())
            self._authenticate(hop, transport, where)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise RemoteError(f"no connection: {_error_text(error)}", where=where) from error

    def _socket(self, hop: Hop) -> socket.socket | paramiko.Channel:
        address = (hop.host, hop.port)
        if self._transports:
            previous_hop, origin = self._transports[-1], ("127.0.0.1", 0)
            return previous_hop.open_channel("direct-tcpip", address, origin, timeout=_CONNECT_SECONDS)
        connection = socket.create_connection(address, timeout=_CONNECT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are small and waited for
        return connection

    def _check_key(self, hop: Hop, lines: Sequence[known_hosts.Line], key: paramiko.PKey) -> None:
        """Raise RemoteError unless the key is known, or new and accepted."""
        where = known_hosts.name_of(hop.known_as, hop.port)
        status, location = known_hosts.check_key(lines, hop.known_as, hop.port, key.asbytes())
        if status is HostKeyStatus.KNOWN:
            return
        shown = f"{key.get_name()} {known_hosts.fingerprint(key.asbytes())}"
        line = known_hosts.line_for(hop.known_as, hop.port, key.get_name(), key.asbytes())
        file = hop.known_hosts_files[0] if hop.known_hosts_files else None
        if status is HostKeyStatus.UNKNOWN and self._accept_new and file is not None:
            known_hosts.add(file, line)
            self._report(f"{where}: its key {shown} is new and was added to {file}")
            return
        message, hint = {
            HostKeyStatus.UNKNOWN: (
                f"its host key is not known: {shown}",
                f"compare it with what the site publishes, then add this line to {file}, or use --accept-new:\n{line}",
            ),
            HostKeyStatus.OTHER: (
                f"its host key is another one than the known one: {shown}",
                f"{location} has the known one. Ask the site whether the key changed; somebody may be in between",
            ),
            HostKeyStatus.REVOKED: (f"its host key is revoked: {shown}", f"{location} says so"),
            HostKeyStatus.AUTHORITY: (
                "only a certificate of its host key would be known",
                f"{location} names an authority, which paramiko cannot ask for: use OpenSSH (--ssh ssh)",
            ),
        }[status]
        raise RemoteError(message, where=where, hint=hint)

    def _authenticate(self, hop: Hop, transport: paramiko.Transport, where: str) -> None:
        """Go through the authentication steps that the server requires. Raises RemoteError, AuthenticationException."""
        try:
            transport.auth_none(hop.user)
            return
        except paramiko.BadAuthenticationType as error:
            allowed = list(error.allowed_types)
        problems: list[str] = []
        tried_methods: set[str] = set()
        accepted_steps = 0
        while not transport.is_authenticated():
            method = next((name for name in ("publickey", "keyboard-interactive", "password") if name in allowed), None)
            if method is None or method in tried_methods:
                reasons = "; ".join(problems) or f"it wants {', '.join(allowed)}"
                raise RemoteError(f"{hop.user} is not let in: {one_line(reasons)}", where=where)
            tried_methods.add(method)
            try:
                if method == "publickey":
                    further = self._by_key(hop, transport, problems)
                elif method == "password":
                    further = transport.auth_password(hop.user, self._prompt(f"{where}: password: ", echo=False))
                else:
                    further = transport.auth_interactive(hop.user, self._answer_prompts(where))
            except paramiko.BadAuthenticationType as error:
                allowed = list(error.allowed_types)
            except paramiko.AuthenticationException as error:
                problems.append(f"{method}: {_error_text(error)}")
                allowed = [name for name in allowed if name != method]
            else:
                if further:  # accepted, and the server wants these as well
                    allowed = list(further)
                    tried_methods.clear()
                    if (accepted_steps := accepted_steps + 1) > _MOST_STEPS:
                        raise RemoteError(f"it wants more than {_MOST_STEPS} steps", where=where)

    def _by_key(self, hop: Hop, transport: paramiko.Transport, problems: list[str]) -> Sequence[str]:
        """Try the keys in turn; returns the steps that the server requires after the accepted key."""
        problem: paramiko.AuthenticationException | None = None
        for number, (key, name) in enumerate(self._keys(hop, problems)):
            if number == _MOST_KEYS:
                problems.append(f"more than {_MOST_KEYS} keys; name one by IdentityFile and IdentitiesOnly")
                break
            try:
                return transport.auth_publickey(hop.user, key)
            except paramiko.BadAuthenticationType:
                raise
            except paramiko.AuthenticationException as error:
                problems.append(f"{name} is not accepted")
                problem = error
        raise problem or paramiko.AuthenticationException("there is no key to try")

    def _keys(self, hop: Hop, problems: list[str]) -> Iterator[tuple[paramiko.PKey, str]]:
        """The agent's keys with their names, then those of files; a file whose key the agent has is not read."""
        agent_keys: list[paramiko.PKey] = []
        if hop.agent:
            with contextlib.suppress(paramiko.SSHException, OSError):
                agent_keys = list(paramiko.Agent().get_keys())
        public_keys = {blob for file in hop.files if (blob := _public_key(file)) is not None}
        for key in agent_keys:
            if not hop.only_files or key.asbytes() in public_keys:
                yield key, f"the agent's key {known_hosts.fingerprint(key.asbytes())}"
        for file in hop.files:
            if not file.is_file() or _public_key(file) in {key.asbytes() for key in agent_keys}:
                continue
            try:
                yield self._load(file), str(file)
            except (paramiko.SSHException, OSError, ValueError) as error:
                problems.append(f"{file}: {_error_text(error)}")

    def _load(self, file: Path) -> paramiko.PKey:
        try:
            key = paramiko.PKey.from_path(file)
        except (paramiko.PasswordRequiredException, TypeError):
            secret = self._prompt(f"passphrase of {file}: ", echo=False)
            # The argument's name changed with paramiko 5, so it has none here.
            key = paramiko.PKey.from_path(file, secret.encode())  # type: ignore[arg-type]  # bytes, says its source
        certificate = file.with_name(f"{file.name}-cert.pub")
        if certificate.is_file() and key.public_blob is None:
            key.load_certificate(str(certificate))
        return key

    def _answer_prompts(self, where: str) -> Callable[[str, str, Sequence[tuple[str, bool]]], list[str]]:
        def answer(title: str, instructions: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
            for text in filter(None, (title, instructions)):
                self._report(f"{where}: {one_line(text)[:500]}")
            return [self._prompt(f"{where}: {one_line(text)[:200]}", echo=echo) for text, echo in prompts]

        return answer


def _public_key(file: Path) -> bytes | None:
    """The public key beside a private one."""
    try:
        words = file.with_name(f"{file.name}.pub").read_text().split()
        return paramiko.pkey.PublicBlob.from_string(" ".join(words[:2])).key_blob if len(words) > 1 else None
    except (OSError, ValueError):
        return None


def _ordered(possible: Sequence[str], known: Sequence[str]) -> list[str]:
    """Key types with the known ones first, so that a host with several keys presents a known one."""
    rsa = ("rsa-sha2-512", "rsa-sha2-256")  # the signatures of a key of type ssh-rsa
    known_first = [name for kind in known for name in (rsa if kind == "ssh-rsa" else (kind,)) if name in possible]
    return list(dict.fromkeys((*known_first, *possible)))


def _error_text(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__)[:500]
