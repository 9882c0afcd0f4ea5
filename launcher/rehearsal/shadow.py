"""What a checkout's bash launcher would do for a job, recorded and compared with a plan.

The launcher runs in a mount and network namespace of its own (`shadow.sh`): its files are discarded, it reaches no
network, and every program that would submit, allocate, import or start a container is a stub that only records its
call.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, LauncherError
from launcher.core.process import CommandRunner
from launcher.core.slurm_notation import limit_seconds
from launcher.image.reference import Reference
from launcher.plan.plan import Plan

SECONDS = 120.0
NO_NAMESPACE = 97
"""The exit code of `shadow.sh` when the kernel denies the namespace."""

_SHORT_OPTIONS = {"-p": "partition", "-A": "account", "-N": "nodes", "-J": "job-name", "-x": "exclude", "-t": "time"}
_SWITCHES = ("exclusive", "container-mount-home", "container-remap-root", "container-writable")
_DOCKER_OPTIONS = (
    *("-v", "-e", "-w", "--volume", "--env", "--workdir", "--device", "--ulimit", "--network", "--ipc", "--group-add"),
    *("--cap-add", "--security-opt", "--shm-size", "--name", "--entrypoint", "--stop-timeout", "--gpus"),
)
"""Options of docker whose value may be the next word."""

_OWN_FLAGS = re.compile(r"--(?:name|label|cidfile)=|--rm$|-d$|--detach$|--pull=missing$")


class NoNamespace(LauncherError):
    """The kernel denies this account a mount namespace, so nothing can be compared with the plan."""


@dataclass
class LauncherActions:
    """What a bash launcher did: its allocation by Slurm, and its containers."""

    allocation: dict[str, Any] = field(default_factory=dict)
    containers: list[dict[str, Any]] = field(default_factory=list)


def record_launcher(script: Path, plan: Plan, environ: Mapping[str, str], run: CommandRunner) -> LauncherActions:
    """Run the bash launcher of the plan's workspace in its namespace, where it cannot change anything.

    Raises NoNamespace, and ConfigError when there is no such launcher.
    """
    if not script.is_file():
        raise ConfigError("the checkout has no launcher for this runner", where=str(script))
    with tempfile.TemporaryDirectory() as calls:
        namespace = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        arguments = [str(Path(__file__).with_name("shadow.sh")), str(script), plan.workspace.path, calls]
        argv = [*namespace, "bash", *arguments, plan.model.path or "", *(image.squash for image in plan.images)]
        done = run(argv, timeout=SECONDS, env=dict(environ))
        actions = actions_of(list(_read_calls(Path(calls))))
        if done.returncode == NO_NAMESPACE or (not actions.containers and "unshare:" in done.stderr):
            raise NoNamespace(f"no namespace for the bash launcher: {done.stderr.strip()[:200]}")
        return actions


def _read_calls(directory: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    for path in sorted(p for p in directory.iterdir() if p.suffix != ".env"):
        words = path.read_bytes().decode(errors="replace").split("\0")[:-1]
        pairs = path.with_name(f"{path.name}.env").read_bytes().decode(errors="replace").split("\0")
        yield words, dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def actions_of(calls: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> LauncherActions:
    """The allocation and the containers of recorded calls, each its words and its environment."""
    actions = LauncherActions()
    for (program, *words), environ in calls:
        if program in ("salloc", "sbatch") and not actions.allocation:
            actions.allocation = _allocation(_options(words))
        if program == "srun" and "container-image" in (options := _options(words)):
            if not actions.allocation:
                actions.allocation = _allocation(options)
            actions.containers.append(_pyxis_container(options, words, environ))
        if program == "docker" and words[:1] == ["run"] and (container := _docker_container(words[1:], environ)):
            actions.containers.append(container)
    return actions


def _options(words: Sequence[str]) -> dict[str, str]:
    options, index = {}, 0
    while index < len(words) and words[index].startswith("-"):
        name, equals, value = words[index].partition("=")
        key = _SHORT_OPTIONS.get(name, name.lstrip("-"))
        if not equals and key not in _SWITCHES and index + 1 < len(words) and not words[index + 1].startswith("-"):
            index, value = index + 1, words[index + 1]
        options[key] = value
        index += 1
    return options


def _allocation(options: Mapping[str, str]) -> dict[str, Any]:
    seconds = limit_seconds(options.get("time"))
    gpus = re.search(r"(\d+)$", options.get("gres", ""))
    return {
        "partition": options.get("partition"),
        "account": options.get("account"),
        "nodes": int(options.get("nodes") or 1),
        "exclusive": "exclusive" in options,
        "memory": options.get("mem"),
        "minutes": round(seconds / 60) if seconds else None,
        "job_name": options.get("job-name"),
        **({"gpus": int(gpus[1])} if gpus else {}),
    }


def _pyxis_container(options: Mapping[str, str], words: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    exports = dict(pair.split("=", 1) for pair in options.get("export", "").split(",") if "=" in pair)
    # The shell in the container may export more.
    exports |= dict(re.findall(r"^export (\w+)=([^\s$\"']+)$", "\n".join(words), re.MULTILINE))
    return {
        "image": options["container-image"],
        "mounts": _mount_sources(options.get("container-mounts", "").split(",")),
        "home": "container-mount-home" in options,
        "remap_root": "container-remap-root" in options,
        "writable": "container-writable" in options,
        "script": _benchmark_script(words),
        "environment": {**environ, **exports},
    }


def _docker_container(words: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any] | None:
    flags, mounts, variables, index = set(), [], dict[str, str](), 0
    while index < len(words) and words[index].startswith("-"):
        name, equals, value = words[index].partition("=")
        if not equals and name in _DOCKER_OPTIONS:
            index, value = index + 1, words[index + 1]
        if name in ("-v", "--volume"):
            mounts.append(value)
        elif name in ("-e", "--env"):
            key, is_set, text = value.partition("=")
            variables[key] = text if is_set else environ.get(key, "")
        elif name not in ("-w", "--workdir"):
            flags.add(f"{name}={value}" if value or equals or name == "--entrypoint" else name)
        index += 1
    if index >= len(words):
        return None
    return {
        "image": words[index],
        "mounts": _mount_sources(mounts),
        "flags": sorted(flag for flag in flags if not _OWN_FLAGS.match(flag)),
        "script": _benchmark_script(words[index + 1 :]),
        "environment": variables,
    }


def _mount_sources(listed: Sequence[str]) -> dict[str, str]:
    parts = [text.split(":") for text in listed if ":" in text]
    return {p[1].rstrip("/"): p[0].rstrip("/") + (":ro" if "ro" in p[2:] else "") for p in parts}


def _benchmark_script(words: Sequence[str]) -> str | None:
    paths = re.findall(r"(benchmarks/[\w./-]+\.sh)", " ".join(words))
    return paths[-1] if paths else None


def plan_differences(plan: Plan, bash: LauncherActions, environ: Mapping[str, str]) -> list[str]:
    """The differences between a plan and the recorded actions, a line each. Names of containers, and docker's flags for
    the end of a container, are not compared."""
    document, differences = plan.as_dict(), list[str]()
    allocation = document.get("allocation") or {}
    for key, theirs in bash.allocation.items():
        if allocation.get(key) != theirs and not (key == "minutes" and theirs is None):
            differences.append(f"allocation.{key}: {allocation.get(key)!r}, bash {theirs!r}")
    ours = [document["container"]] if document.get("container") else (document.get("job") or {}).get("containers", [])
    bash_containers = {container["image"]: container for container in bash.containers}
    for container in ours:
        image = container["image"]
        same = [c for c in bash.containers if not image.startswith("/") and _is_same_image(c["image"], image)]
        theirs = bash_containers.get(image) or next(iter(same), None)
        if theirs is None:
            differences.append(f"image: {image}, bash {', '.join(bash_containers) or 'starts no container'}")
            continue
        differences += _container_differences(container, theirs, plan, environ)
        if theirs["script"] and not theirs["script"].endswith(posixpath.basename(document["script"]["path"])):
            differences.append(f"script: {document['script']['path']}, bash {theirs['script']}")
    return list(dict.fromkeys(differences))


def _is_same_image(one: str, other: str) -> bool:
    try:
        return Reference.parse(one) == Reference.parse(other)
    except ConfigError:
        return False


def _container_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], plan: Plan, environ: Mapping[str, str]
) -> Iterator[str]:
    places = {"{workspace}": plan.workspace.path, "$HOME": environ.get("HOME", "$HOME"), "$JOB": "4242"}
    places["$UID"] = str(os.geteuid())

    def resolve(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text.rstrip("/") if len(text) > 1 else text

    mounts = {target.rstrip("/"): resolve(source) for target, source in ours["mounts"].items()}
    for target in sorted(mounts.keys() | theirs["mounts"].keys()):
        if target != "/usr/bin/docker" and mounts.get(target) != theirs["mounts"].get(target):
            yield f"mount {target}: {mounts.get(target)}, bash {theirs['mounts'].get(target)}"
    for key in ("home", "remap_root", "writable"):
        if key in theirs and bool(ours["options"][key]) != theirs[key]:
            yield f"option {key}: {ours['options'][key]}, bash {theirs[key]}"
    if "flags" in theirs:
        flags = {flag for flag in ours["options"]["flags"] if not _OWN_FLAGS.match(flag)}
        for flag in sorted(flags ^ set(theirs["flags"])):
            yield f"flag {flag}: {'not' if flag in flags else 'only'} in bash"
    for name, text in ours["environment"].items():
        recorded = theirs["environment"].get(name, "")
        if name != "PORT" and resolve(str(text)) != recorded.rstrip("/"):
            yield f"variable {name}: {text!r}, bash {recorded!r}"
