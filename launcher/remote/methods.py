"""What the agent can be asked: each method is a generator of events whose value is its result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from launcher import __version__
from launcher.core.redact import names_a_secret, redact
from launcher.core.state import state_directory
from launcher.remote.agent import Method
from launcher.remote.commands import ask

_PROGRAMS = ("sbatch", "squeue", "sacct", "enroot", "git", "uv")
_LONGEST_VALUE = 4096


class Look(msgspec.Struct, frozen=True):
    """What a machine is: which programs are on PATH, where its state is, and the variables that a plan may depend on:
    none that is a secret."""

    version: str
    programs: dict[str, str | None]
    state: str
    environment: dict[str, str]


def look(params: dict[str, Any]) -> Generator[Any, None, Any]:
    """What this machine is: `Look`."""
    yield from ()
    told = {
        name: value
        for name, value in os.environ.items()
        if not names_a_secret(name) and len(value) < _LONGEST_VALUE and redact(value, os.environ) == value
    }
    programs = {name: shutil.which(name) for name in _PROGRAMS}
    return msgspec.to_builtins(Look(__version__, programs, str(_state(params)), told))


class Tidied(msgspec.Struct, frozen=True):
    """What nobody needs on a login node, removed if ``applied``: versions of the launcher, and bundles of files that
    were sent there; and the versions that are ``kept``."""

    applied: bool
    versions: tuple[str, ...]
    bundles: tuple[str, ...]
    kept: tuple[str, ...]


def put(params: dict[str, Any]) -> Generator[Any, None, Any]:
    """A part of a bundle, or the question whether it is there: `bundle.take`."""
    from launcher.remote import bundle  # an agent starts with little: somebody waits for it

    yield from ()
    data, last = str(params.get("data", "")), bool(params.get("last"))
    return bundle.take(_state({}) / "bundles", str(params["digest"]), int(params.get("offset", 0)), data, last)


def tidy(params: dict[str, Any]) -> Generator[Any, None, Any]:
    """Remove what nobody needs, or name it: `tidying.tidy`."""
    from launcher.remote import tidying

    yield from ()
    apply = params.get("apply") is True
    return msgspec.to_builtins(Tidied(apply, *tidying.tidy(_state({}), str(params["directory"]), apply=apply)))


def follow(params: dict[str, Any]) -> Generator[Any, None, Any]:
    """A run as it goes on: `following.follow`."""
    from launcher.remote import following

    events, log = map(int, params.get("at") or (0, 0))
    return (yield from following.follow(_state(params), str(params["run"]), events, log))


def listed(params: dict[str, Any]) -> Generator[Any, None, Any]:
    from launcher.remote import fetching

    return (yield from fetching.listed(_state(params), str(params["name"])))


def send(params: dict[str, Any]) -> Generator[Any, None, Any]:
    from launcher.remote import fetching

    yield from fetching.sent(_state(params), str(params["place"]), list(params["wanted"]))


def _state(params: dict[str, Any]) -> Path:
    return state_directory(os.environ, params.get("state"))


METHODS: dict[str, Method] = {
    "look": look,
    "put": put,
    "tidy": tidy,
    "ask": ask,
    "follow": follow,
    "list": listed,
    "send": send,
}
