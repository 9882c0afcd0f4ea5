"""Credentials for registries, from the file that enroot reads, which has lines as in netrc(5)."""

from __future__ import annotations

import contextlib
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.core.errors import ImageError

_LINE = re.compile(r"\s*machine\s+(\S+)\s+login\s+(\S+)\s+password\s+(.*\S)\s*")
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


@dataclass(frozen=True)
class Credentials:
    """An account of a registry, and the line that has it (``file:line``). ``password`` is never shown."""

    login: str
    password: str = field(repr=False)
    place: str = ""


class MadeByCommand(ImageError):
    """The password is the output of a command (``$(…)``), which enroot runs in a shell and we do not."""


def setting(name: str, environ: Mapping[str, str]) -> str | None:
    """A setting of enroot: the environment's, else the first in its configuration files (enroot 4.1.2, enroot.in).

    The files hold shell text. ``$HOME`` and other variables are filled in; commands are not run and stay as text.
    """
    if environ.get(name):
        return environ[name]
    place = Path(environ.get("ENROOT_SYSCONF_PATH") or "/etc/enroot")
    for path in (place / "enroot.conf", *sorted(place.glob("enroot.conf.d/*.conf"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := re.search(rf"^{name}[ \t=]+(.+?)[ \t]*$", path.read_text(), re.MULTILINE):
                return string.Template(found[1].strip("\"'")).safe_substitute(environ)
    return None


def allows_http(environ: Mapping[str, str]) -> bool:
    """Whether enroot asks registries without TLS: ENROOT_ALLOW_HTTP is set to anything but a word for no."""
    value = setting("ENROOT_ALLOW_HTTP", environ)
    return bool(value) and not re.fullmatch(r"no?|N[oO]?|[fF](alse)?|FALSE", value or "")


def credentials_file(environ: Mapping[str, str]) -> Path:
    """Where enroot looks: below ENROOT_CONFIG_PATH, or what it defaults to."""
    if own := setting("ENROOT_CONFIG_PATH", environ):
        return Path(own, ".credentials")
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or Path.home()}/.config"
    return Path(config, "enroot", ".credentials")


def credentials(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The first account of ``host`` (``:port`` does not count, as in enroot); None when the file has none.

    Raises MadeByCommand.
    """
    found = _line(host, environ)
    if found is None:
        return None
    login, password, place = found
    if not password.startswith("$"):  # as enroot's common.sh has it: only such a password goes through a shell
        return Credentials(login, password, place)
    if variable := _VARIABLE.fullmatch(password):
        return Credentials(login, environ.get(variable[1] or variable[2], ""), place)
    raise MadeByCommand(f"the password for {host} is made by a command, which only enroot runs", where=place)


def account_line(registry: str, environ: Mapping[str, str], realm: str = "") -> str:
    """What to correct when ``registry`` refuses: which line of the file has its account, or which line is missing.

    ``realm`` is the host that gives the registry's tokens, if that is known: enroot takes the line of that host.
    """
    hub = registry == "docker.io"
    realm = realm or ("auth.docker.io" if hub else registry)
    for host in (realm, "registry-1.docker.io" if hub else registry):
        if found := _line(host, environ):
            return f"the line of machine {host.partition(':')[0]}, login {found[0]} in {found[2]}"
    line = f"machine {realm.partition(':')[0]} login … password …"
    return f"add the line `{line}` to {credentials_file(environ)}, which has none for it"


def _line(host: str, environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Login, password as it is written, and ``file:line`` of the first account of a host."""
    path = credentials_file(environ)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is not None and found[1] == host.partition(":")[0]:
            return found[2], found[3], f"{path}:{number}"
    return None
