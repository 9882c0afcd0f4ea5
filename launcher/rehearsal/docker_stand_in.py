"""A stand-in for docker and podman: ``pull``, ``image inspect``, ``run --rm``, ``ps`` and ``rm``, as scripts call them.

``python -m launcher.rehearsal.docker_stand_in PROGRAM STATE PROGRAMS COMMAND…`` keeps images and containers below
STATE. Unknown commands and options are refused. Kept: a container gets the variables that are named, and no others; it
is no child of the client's session, so it outlives a client that is killed, and is ended by ``rm --force``; the client
ends with the script's exit code, and with 125 for errors of its own; each name exists once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.core.process import ProcessIdentity
from launcher.rehearsal.containers import Container, Parser, Refused, parse_mounts, variables_set_by

DAEMON = 125
"""The exit code of `run` for what is not the script's."""

_REFERENCE = re.compile(
    r"(?P<repository>(?:[a-zA-Z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)

_ID = "{{.Id}}"
_DIGESTS = "{{range .RepoDigests}}{{println .}}{{end}}"

_VALUES = (
    *("name", "workdir", "entrypoint", "network", "ipc", "shm-size", "runtime", "gpus", "pull", "user"),
    *("stop-timeout", "hostname"),
)
_LISTS = ("label", "volume", "env", "device", "ulimit", "security-opt", "cap-add", "group-add")
_SWITCHES = ("rm", "init", "privileged", "interactive")


class Engine:
    """The engine's state: images and containers as files. ``programs`` are those that images have."""

    def __init__(self, state: Path, programs: str) -> None:
        self.images = state / "images"
        self.containers = state / "containers"
        self.programs = programs

    def pull(self, given: argparse.Namespace) -> int:
        """Know the image, by a digest that depends on nothing but its name."""
        found = _REFERENCE.fullmatch(given.reference)
        if found is None:
            raise Refused("invalid reference format")
        if "no-image" in os.environ.get("LAUNCHER_REHEARSAL_FAULTS", "").split(","):
            raise Refused(f"Error response from daemon: manifest for {given.reference} not found: manifest unknown")
        digest = given.reference.partition("@")[2] or f"sha256:{_sha256(given.reference)}"
        image = {
            "Id": f"sha256:{_sha256(digest)}",
            "RepoTags": [given.reference],
            "RepoDigests": [f"{found['repository']}@{digest}"],
        }
        self.images.mkdir(parents=True, exist_ok=True)
        _write(self.images / f"{_sha256(given.reference)}.json", image)
        print(given.reference if given.quiet else f"Status: a rehearsal's stand-in for {given.reference}")
        return 0

    def inspect(self, given: argparse.Namespace) -> int:
        """Print what is asked for of an image."""
        image = self._image(given.reference)
        if image is None:
            raise Refused(f"Error response from daemon: No such image: {given.reference}")
        texts = {None: json.dumps([image]), _ID: image["Id"], _DIGESTS: "".join(f"{d}\n" for d in image["RepoDigests"])}
        if given.format not in texts:
            raise Refused(f"the format {given.format!r} is not one of a rehearsal's stand-in")
        print(texts[given.format])
        return 0

    def run(self, given: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Run the script to its end, whatever signals come: bash as a container's first process ignores them."""
        if not given.rm or given.entrypoint is None or not given.name:
            raise Refused("a rehearsal runs containers with --rm, --name and --entrypoint", DAEMON)
        if self._image(given.image) is None:
            raise Refused(f"Unable to find image '{given.image}' locally", DAEMON)
        mounts = parse_mounts(given.volume)
        passed = {name: environ[name] for name in given.env if name in environ}
        if valued := [name for name in given.env if "=" in name]:
            raise Refused(f"--env {valued[0].partition('=')[0]} with a value: it would be seen in an argv", DAEMON)
        if given.interactive:  # where variables come by standard input
            passed |= variables_set_by(sys.stdin.read())
        container = Container(mounts, given.workdir, {"HOME": "/root", **passed}, self.programs)
        for source in mounts.values():
            Path(source).mkdir(parents=True, exist_ok=True)  # as docker does for one that is not there
        command = container.argv([*([given.entrypoint] if given.entrypoint else []), *given.command])
        place = self.containers / given.name
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            message = f'Conflict. The container name "/{given.name}" is already in use'
            raise Refused(f"Error response from daemon: {message}", DAEMON) from None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            return self._to_the_end(place, command, container, given.label)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _to_the_end(self, place: Path, command: list[str], container: Container, labels: Sequence[str]) -> int:
        child = subprocess.Popen(
            command,
            cwd=container.directory,
            env=container.variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )
        identity = asdict(ProcessIdentity.of(child.pid))
        known = {"Id": _sha256(f"{place.name} {time.time()}")[:12], "Labels": list(labels), "process": identity}
        _write(place / "container.json", known)
        code = child.wait()
        with contextlib.suppress(ProcessLookupError):  # with its first process a container ends as a whole
            os.killpg(child.pid, signal.SIGKILL)
        return 128 - code if code < 0 else code

    def ps(self, given: argparse.Namespace) -> int:
        """List containers that run, by their labels."""
        wanted = [kept.removeprefix("label=") for kept in given.filter]
        if strange := [kept for kept in given.filter if not kept.startswith("label=")]:
            raise Refused(f"invalid filter '{strange[0]}': a rehearsal's stand-in knows labels")
        if not given.quiet:
            print("CONTAINER ID   NAMES")
        for place, container in self._running():
            named = [*container["Labels"], *(label.partition("=")[0] for label in container["Labels"])]
            if all(label in named for label in wanted):
                print(container["Id"] if given.quiet else f"{container['Id']}   {place.name}")
        return 0

    def rm(self, given: argparse.Namespace) -> int:
        """End containers by id or name, and wait until they are gone."""
        for asked in given.containers:
            found = [c for place, c in self._running() if asked in (c["Id"], place.name)]
            if not found:
                raise Refused(f"Error response from daemon: No such container: {asked}")
            if not given.force:
                raise Refused(f"Error response from daemon: cannot remove container {asked}: container is running")
            process = ProcessIdentity(**found[0]["process"])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            while process.alive():
                time.sleep(0.01)
            print(asked)
        return 0

    def _running(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(self.containers.glob("*/container.json")):
            with contextlib.suppress(OSError):  # it ends meanwhile
                container = json.loads(path.read_text())
                if ProcessIdentity(**container["process"]).alive() is not False:
                    yield path.parent, container
                else:  # its client was killed
                    shutil.rmtree(path.parent, ignore_errors=True)

    def _image(self, reference: str) -> dict[str, Any] | None:
        """An image by tag, digest or id."""
        for path in self.images.glob("*.json"):
            image: dict[str, Any] = json.loads(path.read_text())
            if reference in (image["Id"], *image["RepoTags"], *image["RepoDigests"]):
                return image
        return None


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command; the exit code of the program."""
    program, state, programs, *words = argv
    engine = Engine(Path(state, environ.get("SLURMD_NODENAME", "")), programs)  # each node has its own
    command = " ".join(words[:2]) if words[:1] == ["image"] else " ".join(words[:1])
    commands = {"pull": engine.pull, "image inspect": engine.inspect, "ps": engine.ps, "rm": engine.rm}
    try:
        if command not in (*commands, "run"):
            raise Refused(f"{program}: '{command}' is not a {program} command of a rehearsal's stand-in")
        given = _parser(program, command).parse_args(words[len(command.split()) :])
        return engine.run(given, environ) if command == "run" else commands[command](given)
    except Refused as refused:
        sys.stderr.write(f"{program}: {refused}\n")
        return refused.code


def _parser(program: str, command: str) -> Parser:
    parser = Parser(prog=f"{program} {command}", refusal=DAEMON if command == "run" else 1)
    if command == "run":
        parser.options(values=_VALUES, lists=_LISTS, switches=_SWITCHES)
        parser.add_argument("image")
        parser.add_argument("command", nargs=argparse.REMAINDER)
    elif command == "ps":
        parser.options(lists=["filter"], switches=["all", "quiet"])
    elif command == "rm":
        parser.options(switches=["force"])
        parser.add_argument("containers", nargs="+")
    else:
        parser.options(**({"switches": ["quiet"]} if command == "pull" else {"values": ["format"]}))
        parser.add_argument("reference")
    return parser


def _heed_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all: others look while this writes."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value))
    part.replace(path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
