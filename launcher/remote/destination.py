"""The hosts on the way to a login node, with users and keys, as `ssh` itself would choose them for that name.

`ssh -G` prints them, so that ``Include``, ``Match``, tokens and canonical names have ssh's own meaning. Without OpenSSH
on this machine paramiko reads ``ssh_config``; it does not know ``Include``, so a file that uses it is refused.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.process import NOT_FOUND, CommandRunner
from launcher.remote.known_hosts import DEFAULT_PORT

_SSH_SECONDS = 20.0
_MOST_JUMPS = 5
_HOST = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s@:-][^\s@:]*)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Hop:
    """One host on the way. ``files`` are private keys in the order in which they are tried; ``known_hosts_files`` has
    the user's own first; ``known_as`` is the host's name in those files (``HostKeyAlias``)."""

    host: str
    port: int
    user: str
    files: tuple[Path, ...]
    only_files: bool
    known_hosts_files: tuple[Path, ...]
    known_as: str
    agent: bool = True
    """Whether keys of the agent at SSH_AUTH_SOCK are tried."""


@dataclass(frozen=True)
class Destination:
    """The hops to a login node, the node itself last. ``name`` is the user's name for it."""

    name: str
    hops: tuple[Hop, ...]
    ssh: tuple[str, ...] = ("ssh",)
    """The ssh command, without the host, where OpenSSH makes the connection."""


def resolve(name: str, *, ssh: Sequence[str], run: CommandRunner, home: Path) -> Destination:
    """The way to a host of ``ssh_config``, or to ``[user@]host[:port]``.

    ``ssh`` is the command that knows the configuration (``("ssh",)``, or with ``-F FILE``). Raises ConfigError.
    """
    hops: list[Hop] = []
    _add(name, hops, tuple(ssh), run, home)
    return Destination(name, tuple(hops), tuple(ssh))


def _add(
    name: str, hops: list[Hop], ssh: tuple[str, ...], run: CommandRunner, home: Path, jumped: tuple[str, ...] = ()
) -> None:
    """Add the hops to ``name``, its jump hosts first. ``jumped`` are the hosts that use it as a jump host."""
    if name in jumped or len(jumped) + len(hops) > _MOST_JUMPS:
        raise ConfigError(f"it jumps over itself, or over more than {_MOST_JUMPS} hosts", where=(*jumped, name)[0])
    settings = _settings(name, ssh, run, home)

    def last(key: str, otherwise: str = "") -> str:
        return settings.get(key, [otherwise])[-1]

    command, jumps = last("proxycommand", "none"), last("proxyjump", "none")
    if jumps != "none":
        for jump in jumps.split(","):
            _add(jump.removeprefix("ssh://"), hops, ssh, run, home, (*jumped, name))
    elif command != "none":
        hint = "use OpenSSH itself: --ssh ssh"
        raise ConfigError("a ProxyCommand cannot be used by paramiko as it is here", where=name, hint=hint)
    host, agent = last("hostname", name), last("identityagent", "SSH_AUTH_SOCK")
    if agent not in ("SSH_AUTH_SOCK", "none"):
        raise ConfigError("an IdentityAgent of its own is not asked by paramiko", where=name, hint="--ssh ssh")
    port = last("port", str(DEFAULT_PORT))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{port!r} is no port", where=name)
    hops.append(
        Hop(
            host=host.strip("[]"),
            port=int(port),
            user=last("user") or getpass.getuser(),
            files=tuple(_path(word, home) for word in settings.get("identityfile", []) if word != "none"),
            only_files=last("identitiesonly") == "yes",
            known_hosts_files=tuple(
                _path(word, home)
                for key in ("userknownhostsfile", "globalknownhostsfile")
                for word in last(key).split()
                if word not in ("none", "/dev/null")
            ),
            known_as=last("hostkeyalias") or host.strip("[]"),
            agent=agent != "none",
        )
    )


def _settings(name: str, ssh: tuple[str, ...], run: CommandRunner, home: Path) -> Mapping[str, list[str]]:
    """The options of a host: names in lower case, values in their order."""
    match = _HOST.fullmatch(name)
    if not match or name.startswith("-"):
        hint = "NAME of a runner file or ssh_config, or user@host"
        raise ConfigError(f"{name!r} is no host", where="--on", hint=hint)
    words = [f"-l{match['user']}"] if match["user"] else []
    words += [f"-p{match['port']}"] if match["port"] else []
    host = match["host"].strip("[]")
    answer = run([*ssh, "-G", *words, "--", host], timeout=_SSH_SECONDS)
    if answer.returncode == NOT_FOUND:
        return _settings_by_paramiko(host, match["user"], match["port"], home)
    if not answer.ok:
        raise ConfigError(f"ssh does not accept its configuration: {answer.tail()}", where=name)
    settings: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key.lower(), []).append(value)
    return settings


def _settings_by_paramiko(host: str, user: str | None, port: str | None, home: Path) -> Mapping[str, list[str]]:
    from paramiko import SSHConfig

    file = home / ".ssh/config"
    config = SSHConfig()
    if file.is_file():
        text = file.read_text(errors="replace")
        if re.search(r"^\s*include\b", text, re.MULTILINE | re.IGNORECASE):
            hint = "install OpenSSH's client, which reads it"
            raise ConfigError("Include is not read without OpenSSH", where=str(file), hint=hint)
        config = SSHConfig.from_text(text)
    looked_up = {k: v if isinstance(v, list) else [v] for k, v in config.lookup(host).items()}
    keys = [f"~/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa")]
    usual = {
        "identityfile": keys,
        "userknownhostsfile": ["~/.ssh/known_hosts"],
        "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts"],
    }
    from_name = {key: [value] for key, value in {"user": user, "port": port}.items() if value}
    return {**usual, **looked_up, **from_name}


def _path(word: str, home: Path) -> Path:
    return home / word[2:] if word.startswith("~/") else Path(word)
