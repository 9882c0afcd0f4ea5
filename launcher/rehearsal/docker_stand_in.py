"""A stand-in for docker and podman: ``pull``, ``image inspect``, ``run --rm``, ``ps`` and ``rm``, as scripts call them.

``python -m launcher.rehearsal.docker_stand_in PROGRAM STATE PROGRAMS COMMAND…`` keeps images and containers below
STATE. Unknown commands and options are refused. As in docker, a container gets only the variables that are named; it
has a session of its own, so it outlives a killed client, and ``rm --force`` ends it; the client exits with the script's
code, and with 125 for errors of docker; each name exists once.
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

DAEMON_ERROR = 125
"""The exit code of `run` when the error is not the script's."""

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
    """The engine's state: images and containers as files. ``programs`` is the directory of the images' programs."""

    def __init__(self, state: Path, programs: str) -> None:
        self.images = state / "images"
        self.containers = state / "containers"
        self.programs = programs

    def pull(self, arguments: argparse.Namespace) -> int:
        """Record the image, with a digest that depends only on its name."""
        match = _REFERENCE.fullmatch(arguments.reference)
        if match is None:
            raise Refused("invalid reference format")
        if "no-image" in os.environ.get("LAUNCHER_REHEARSAL_FAULTS", "").split(","):
            raise Refused(f"Error response from daemon: manifest for {arguments.reference} not found: manifest unknown")
        digest = arguments.reference.partition("@")[2] or f"sha256:{_sha256(arguments.reference)}"
        image = {
            "Id": f"sha256:{_sha256(digest)}",
            "RepoTags": [arguments.reference],
            "RepoDigests": [f"{match['repository']}@{digest}"],
        }
        self.images.mkdir(parents=True, exist_ok=True)
        _write(self.images / f"{_sha256(arguments.reference)}.json", image)
        print(arguments.reference if arguments.quiet else f"Status: a rehearsal's stand-in for {arguments.reference}")
        return 0

    def inspect(self, arguments: argparse.Namespace) -> int:
        """Print the requested format of an image."""
        image = self._image(arguments.reference)
        if image is None:
            raise Refused(f"Error response from daemon: No such image: {arguments.reference}")
        texts = {None: json.dumps([image]), _ID: image["Id"], _DIGESTS: "".join(f"{d}\n" for d in image["RepoDigests"])}
        if arguments.format not in texts:
            raise Refused(f"the format {arguments.format!r} is not one of a rehearsal's stand-in")
        print(texts[arguments.format])
        return 0

    def run(self, arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Run the script to its end. Signals are ignored, as by bash when it is a container's first process."""
        if not arguments.rm or arguments.entrypoint is None or not arguments.name:
            raise Refused("a rehearsal runs containers with --rm, --name and --entrypoint", DAEMON_ERROR)
        if self._image(arguments.image) is None:
            raise Refused(f"Unable to find image '{arguments.image}' locally", DAEMON_ERROR)
        mounts = parse_mounts(arguments.volume)
        passed = {name: environ[name] for name in arguments.env if name in environ}
        if valued := [name for name in arguments.env if "=" in name]:
            variable = valued[0].partition("=")[0]
            raise Refused(f"--env {variable} with a value: it would be seen in an argv", DAEMON_ERROR)
        if arguments.interactive:  # variables come by standard input
            passed |= variables_set_by(sys.stdin.read())
        container = Container(mounts, arguments.workdir, {"HOME": "/root", **passed}, self.programs)
        for source in mounts.values():
            Path(source).mkdir(parents=True, exist_ok=True)  # as docker does for a missing one
        command = container.argv([*([arguments.entrypoint] if arguments.entrypoint else []), *arguments.command])
        directory = self.containers / arguments.name
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            message = f'Conflict. The container name "/{arguments.name}" is already in use'
            raise Refused(f"Error response from daemon: {message}", DAEMON_ERROR) from None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            return self._run_to_end(directory, command, container, arguments.label)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _run_to_end(self, directory: Path, command: list[str], container: Container, labels: Sequence[str]) -> int:
        child = subprocess.Popen(
            command,
            cwd=container.directory,
            env=container.variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_reset_signals,
        )
        identity = asdict(ProcessIdentity.of(child.pid))
        record = {"Id": _sha256(f"{directory.name} {time.time()}")[:12], "Labels": list(labels), "process": identity}
        _write(directory / "container.json", record)
        code = child.wait()
        with contextlib.suppress(ProcessLookupError):  # when its first process ends, the whole container does
            os.killpg(child.pid, signal.SIGKILL)
        return 128 - code if code < 0 else code

    def ps(self, arguments: argparse.Namespace) -> int:
        """List containers that run, by their labels."""
        labels = [text.removeprefix("label=") for text in arguments.filter]
        if unknown := [text for text in arguments.filter if not text.startswith("label=")]:
            raise Refused(f"invalid filter '{unknown[0]}': a rehearsal's stand-in knows labels")
        if not arguments.quiet:
            print("CONTAINER ID   NAMES")
        for directory, container in self._running():
            container_labels = [*container["Labels"], *(label.partition("=")[0] for label in container["Labels"])]
            if all(label in container_labels for label in labels):
                print(container["Id"] if arguments.quiet else f"{container['Id']}   {directory.name}")
        return 0

    def rm(self, arguments: argparse.Namespace) -> int:
        """End containers by id or name, and wait until they are gone."""
        for name in arguments.containers:
            matches = [c for directory, c in self._running() if name in (c["Id"], directory.name)]
            if not matches:
                raise Refused(f"Error response from daemon: No such container: {name}")
            if not arguments.force:
                raise Refused(f"Error response from daemon: cannot remove container {name}: container is running")
            process = ProcessIdentity(**matches[0]["process"])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            while process.alive():
                time.sleep(0.01)
            print(name)
        return 0

    def _running(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(self.containers.glob("*/container.json")):
            with contextlib.suppress(OSError):  # it may end meanwhile
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
        arguments = _parser(program, command).parse_args(words[len(command.split()) :])
        return engine.run(arguments, environ) if command == "run" else commands[command](arguments)
    except Refused as refused:
        sys.stderr.write(f"{program}: {refused}\n")
        return refused.code


def _parser(program: str, command: str) -> Parser:
    parser = Parser(prog=f"{program} {command}", refusal=DAEMON_ERROR if command == "run" else 1)
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


def _reset_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write atomically, because other processes read meanwhile."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value))
    part.replace(path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
