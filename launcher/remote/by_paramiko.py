"""The way to a login node by paramiko: each hop checks its host key, and authenticates once.

Facts about paramiko 5.1 behind this file: `SSHClient.connect` asks the terminal by itself, so `Transport` is used;
exit status -1 means that the connection went away; its own keepalive never looks for an answer; its log tells of lost
connections on standard error.
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
from launcher.remote.known_hosts import Known
from launcher.remote.opener import Pipe, Prompt

_CONNECTING = 20.0
_AUTHENTICATING = 120.0
"""Seconds for a person to find a code."""
_SENDING = 60.0
"""Seconds without any progress of what is sent."""
_MOST_STEPS = 8
"""Steps of letting in that a server may want one after the other, as `AuthenticationMethods` has them."""
_MOST_KEYS = 5
"""Servers close the connection after six attempts (MaxAuthTries of sshd)."""

# GCM first: paramiko prefers CTR, which takes twice as much processor time. CBC, 3DES, MD5 and SHA-1 are left out.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_DIGESTS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")

_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class ParamikoPipe:
    """A program at the end of a channel."""

    def __init__(self, channel: paramiko.Channel, host: str) -> None:
        self._channel = channel
        self._host = host
        self._stderr: collections.deque[bytes] = collections.deque(maxlen=16)
        # What is not read fills the window and stops the program.
        threading.Thread(target=self._read_stderr, daemon=True).start()

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError):
            while part := self._channel.recv_stderr(4096):
                self._stderr.append(part)

    def send(self, data: bytes) -> None:
        self._channel.settimeout(_SENDING)
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
    """A connection, hop by hop. ``accept_new`` takes the key of a host of which none is known, and says so."""

    def __init__(
        self, destination: Destination, prompt: Prompt, *, accept_new: bool = False, say: Callable[[str], None]
    ) -> None:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        self._name = destination.name
        self._prompt = prompt
        self._accept_new = accept_new
        self._say = say
        self._transports: list[paramiko.Transport] = []
        try:
            for hop in destination.hops:
                self._transports.append(self._reach(hop))
        except BaseException:
            self.close()
            raise

    def open(self, command: str) -> Pipe:
        try:
            channel = self._transports[-1].open_session(timeout=_CONNECTING)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            hint = "the server may allow too few sessions (MaxSessions)"
            raise RemoteError(f"no session: {_text(error)}", where=self._name, hint=hint) from error
        return ParamikoPipe(channel, self._name)

    def close(self) -> None:
        for transport in reversed(self._transports):
            with contextlib.suppress(Exception):
                transport.close()

    def _reach(self, hop: Hop) -> paramiko.Transport:
        where = known_hosts.name_of(hop.host, hop.port)
        try:
            transport = paramiko.Transport(self._socket(hop))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise RemoteError(f"cannot be reached: {_text(error)}", where=where) from error
        try:
            lines = known_hosts.read(hop.known)
            options = transport.get_security_options()
            options.ciphers = [name for name in _CIPHERS if name in options.ciphers]
            options.digests = [name for name in _DIGESTS if name in options.digests]
            options.key_types = _ordered(options.key_types, known_hosts.known_types(lines, hop.called, hop.port))
            transport.auth_timeout = _AUTHENTICATING
            transport.banner_timeout = _CONNECTING
            transport.start_client(timeout=_CONNECTING)
            self._check_key(hop, lines, transport.get_remote_server_key())
            self._authenticate(hop, transport, where)
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise RemoteError(f"no connection: {_text(error)}", where=where) from error
        except BaseException:
            transport.close()
            raise
        return transport

    def _socket(self, hop: Hop) -> socket.socket | paramiko.Channel:
        if not self._transports:
            made = socket.create_connection((hop.host, hop.port), timeout=_CONNECTING)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are small, and somebody waits
            return made
        return self._transports[-1].open_channel(
            "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=_CONNECTING
        )

    def _check_key(self, hop: Hop, lines: Sequence[known_hosts.Line], key: paramiko.PKey) -> None:
        """Raise RemoteError unless the key is a known one, or new and accepted."""
        where = known_hosts.name_of(hop.called, hop.port)
        found, place = known_hosts.judge(lines, hop.called, hop.port, key.asbytes())
        if found is Known.KNOWN:
            return
        shown = f"{key.get_name()} {known_hosts.fingerprint(key.asbytes())}"
        line = known_hosts.line_for(hop.called, hop.port, key.get_name(), key.asbytes())
        file = hop.known[0] if hop.known else None
        if found is Known.UNKNOWN and self._accept_new and file is not None:
            known_hosts.add(file, line)
            self._say(f"{where}: its key {shown} is new and was added to {file}")
            return
        message, hint = {
            Known.UNKNOWN: (
                f"its host key is not known: {shown}",
                f"compare it with what the site publishes, then add this line to {file}, or use --accept-new:\n{line}",
            ),
            Known.OTHER: (
                f"its host key is another one than the known one: {shown}",
                f"{place} has the known one. Ask the site whether the key changed; somebody may be in between",
            ),
            Known.REVOKED: (f"its host key is revoked: {shown}", f"{place} says so"),
            Known.AUTHORITY: (
                "only a certificate of its host key would be known",
                f"{place} names an authority, which paramiko cannot ask for: use OpenSSH (--ssh ssh)",
            ),
        }[found]
        raise RemoteError(message, where=where, hint=hint)

    def _authenticate(self, hop: Hop, transport: paramiko.Transport, where: str) -> None:
        """Go through the steps that the server wants. Raises RemoteError, AuthenticationException."""
        try:
            transport.auth_none(hop.user)
            return
        except paramiko.BadAuthenticationType as error:
            wanted = list(error.allowed_types)
        refused: list[str] = []
        tried: set[str] = set()
        rounds = 0
        while not transport.is_authenticated():
            step = next((name for name in ("publickey", "keyboard-interactive", "password") if name in wanted), None)
            if step is None or step in tried:
                what = "; ".join(refused) or f"it wants {', '.join(wanted)}"
                raise RemoteError(f"{hop.user} is not let in: {one_line(what)}", where=where)
            tried.add(step)
            try:
                if step == "publickey":
                    further = self._by_key(hop, transport, refused)
                elif step == "password":
                    further = transport.auth_password(hop.user, self._prompt(f"{where}: password: ", echo=False))
                else:
                    further = transport.auth_interactive(hop.user, self._answers(where))
            except paramiko.BadAuthenticationType as error:
                wanted = list(error.allowed_types)
            except paramiko.AuthenticationException as error:
                refused.append(f"{step}: {_text(error)}")
                wanted = [name for name in wanted if name != step]
            else:
                if further:  # accepted, and the server wants these as well
                    wanted = list(further)
                    tried.clear()
                    if (rounds := rounds + 1) > _MOST_STEPS:
                        raise RemoteError(f"it wants more than {_MOST_STEPS} steps", where=where)

    def _by_key(self, hop: Hop, transport: paramiko.Transport, refused: list[str]) -> Sequence[str]:
        """Try the keys in turn; the steps that are wanted after the one that was accepted."""
        problem: paramiko.AuthenticationException | None = None
        for number, (key, name) in enumerate(self._keys(hop, refused)):
            if number == _MOST_KEYS:
                refused.append(f"more than {_MOST_KEYS} keys; name one by IdentityFile and IdentitiesOnly")
                break
            try:
                return transport.auth_publickey(hop.user, key)
            except paramiko.BadAuthenticationType:
                raise
            except paramiko.AuthenticationException as error:
                refused.append(f"{name} is not accepted")
                problem = error
        raise problem or paramiko.AuthenticationException("there is no key to try")

    def _keys(self, hop: Hop, refused: list[str]) -> Iterator[tuple[paramiko.PKey, str]]:
        """The agent's keys, then those of files with their certificates; a file whose key the agent has is not read."""
        held: list[paramiko.PKey] = []
        if hop.agent:
            with contextlib.suppress(paramiko.SSHException, OSError):
                held = list(paramiko.Agent().get_keys())
        named = {blob for file in hop.files if (blob := _public(file)) is not None}
        for key in held:
            if not hop.only_files or key.asbytes() in named:
                yield key, f"the agent's key {known_hosts.fingerprint(key.asbytes())}"
        for file in hop.files:
            if not file.is_file() or _public(file) in {key.asbytes() for key in held}:
                continue
            try:
                yield self._load(file), str(file)
            except (paramiko.SSHException, OSError, ValueError) as error:
                refused.append(f"{file}: {_text(error)}")

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

    def _answers(self, where: str) -> Callable[[str, str, Sequence[tuple[str, bool]]], list[str]]:
        def answer(title: str, instructions: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
            for text in filter(None, (title, instructions)):
                self._say(f"{where}: {one_line(text)[:500]}")
            return [self._prompt(f"{where}: {one_line(text)[:200]}", echo=echo) for text, echo in prompts]

        return answer


def _public(file: Path) -> bytes | None:
    """The public key beside a private one."""
    try:
        words = file.with_name(f"{file.name}.pub").read_text().split()
        return paramiko.pkey.PublicBlob.from_string(" ".join(words[:2])).key_blob if len(words) > 1 else None
    except (OSError, ValueError):
        return None


def _ordered(possible: Sequence[str], known: Sequence[str]) -> list[str]:
    """Key types with the known ones first, so that a host with several keys shows one that is known."""
    first = [name for kind in known for name in (_RSA if kind == "ssh-rsa" else (kind,)) if name in possible]
    return [*dict.fromkeys(first), *(name for name in possible if name not in first)]


def _text(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__)[:500]
