"""What a checkout's bash launcher would do for a job, recorded and brought to the words of a plan.

The launcher runs in a mount and network namespace of its own (`shadow.sh`): what it writes is thrown away, it reaches
no network, and every program that would submit, allocate, import or start a container is a stub that only writes down
how it was called.
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
"""The exit code of `shadow.sh` where the kernel gives no such namespace."""

_SHORT = {"-p": "partition", "-A": "account", "-N": "nodes", "-J": "job-name", "-x": "exclude", "-t": "time"}
_SWITCHES = ("exclusive", "container-mount-home", "container-remap-root", "container-writable")
_OF_DOCKER = (
    *("-v", "-e", "-w", "--volume", "--env", "--workdir", "--device", "--ulimit", "--network", "--ipc", "--group-add"),
    *("--cap-add", "--security-opt", "--shm-size", "--name", "--entrypoint", "--stop-timeout", "--gpus"),
)
"""Options of docker whose value may be the next word."""

_OWN = re.compile(r"--(?:name|label|cidfile)=|--rm$|-d$|--detach$|--pull=missing$")


class NoNamespace(LauncherError):
    """The kernel, or this account, has no mount namespaces: there is the plan alone."""


@dataclass
class LauncherActions:
    """What is done: what is asked of Slurm, and each container."""

    allocation: dict[str, Any] = field(default_factory=dict)
    containers: list[dict[str, Any]] = field(default_factory=list)


def record_launcher(script: Path, plan: Plan, environ: Mapping[str, str], run: CommandRunner) -> LauncherActions:
    """Run the bash launcher of the plan's workspace where it can do nothing.

    Raises NoNamespace, and ConfigError when there is no such launcher.
    """
    if not script.is_file():
        raise ConfigError("the checkout has no launcher for this runner", where=str(script))
    with tempfile.TemporaryDirectory() as calls:
        us = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        words = [str(Path(__file__).with_name("shadow.sh")), str(script), plan.workspace.path, calls]
        argv = [*us, "bash", *words, plan.model.path or "", *(image.squash for image in plan.images)]
        done = run(argv, timeout=SECONDS, env=dict(environ))
        found = actions_of(list(_calls(Path(calls))))
        if done.returncode == NO_NAMESPACE or (not found.containers and "unshare:" in done.stderr):
            raise NoNamespace(f"no namespace for the bash launcher: {done.stderr.strip()[:200]}")
        return found


def _calls(directory: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    for path in sorted(p for p in directory.iterdir() if p.suffix != ".env"):
        words = path.read_bytes().decode(errors="replace").split("\0")[:-1]
        pairs = path.with_name(f"{path.name}.env").read_bytes().decode(errors="replace").split("\0")
        yield words, dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def actions_of(calls: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> LauncherActions:
    """What recorded calls come to."""
    found = LauncherActions()
    for (program, *words), environ in calls:
        if program in ("salloc", "sbatch") and not found.allocation:
            found.allocation = _allocation(_options(words))
        if program == "srun" and "container-image" in (options := _options(words)):
            if not found.allocation:
                found.allocation = _allocation(options)
            found.containers.append(_pyxis(options, words, environ))
        if program == "docker" and words[:1] == ["run"] and (container := _docker(words[1:], environ)):
            found.containers.append(container)
    return found


def _options(words: Sequence[str]) -> dict[str, str]:
    found, at = {}, 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, value = words[at].partition("=")
        key = _SHORT.get(name, name.lstrip("-"))
        if not equals and key not in _SWITCHES and at + 1 < len(words) and not words[at + 1].startswith("-"):
            at, value = at + 1, words[at + 1]
        found[key] = value
        at += 1
    return found


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


def _pyxis(options: Mapping[str, str], words: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    exports = dict(pair.split("=", 1) for pair in options.get("export", "").split(",") if "=" in pair)
    inside = re.findall(r"^export (\w+)=([^\s$\"']+)$", "\n".join(words), re.MULTILINE)  # by the container's own shell
    exports |= dict(inside)
    return {
        "image": options["container-image"],
        "mounts": _mounts(options.get("container-mounts", "").split(",")),
        "home": "container-mount-home" in options,
        "remap_root": "container-remap-root" in options,
        "writable": "container-writable" in options,
        "script": _script(words),
        "environment": {**environ, **exports},
    }


def _docker(words: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any] | None:
    flags, mounts, given, at = set(), [], dict[str, str](), 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, value = words[at].partition("=")
        if not equals and name in _OF_DOCKER:
            at, value = at + 1, words[at + 1]
        if name in ("-v", "--volume"):
            mounts.append(value)
        elif name in ("-e", "--env"):
            key, has, text = value.partition("=")
            given[key] = text if has else environ.get(key, "")
        elif name not in ("-w", "--workdir"):
            flags.add(f"{name}={value}" if value or equals or name == "--entrypoint" else name)
        at += 1
    if at >= len(words):
        return None
    return {
        "image": words[at],
        "mounts": _mounts(mounts),
        "flags": sorted(flag for flag in flags if not _OWN.match(flag)),
        "script": _script(words[at + 1 :]),
        "environment": given,
    }


def _mounts(listed: Sequence[str]) -> dict[str, str]:
    parts = [text.split(":") for text in listed if ":" in text]
    return {p[1].rstrip("/"): p[0].rstrip("/") + (":ro" if "ro" in p[2:] else "") for p in parts}


def _script(words: Sequence[str]) -> str | None:
    found = re.findall(r"(benchmarks/[\w./-]+\.sh)", " ".join(words))
    return found[-1] if found else None


def plan_differences(plan: Plan, bash: LauncherActions, environ: Mapping[str, str]) -> list[str]:
    """Where a plan means something else than what was recorded, a line each. Names of containers are each launcher's
    own, and so is what docker is told to do with a container at its end."""
    value, out = plan.as_dict(), list[str]()
    allocation = value.get("allocation") or {}
    for key, theirs in bash.allocation.items():
        if allocation.get(key) != theirs and not (key == "minutes" and theirs is None):
            out.append(f"allocation.{key}: {allocation.get(key)!r}, bash {theirs!r}")
    ours = [value["container"]] if value.get("container") else (value.get("job") or {}).get("containers", [])
    seen = {container["image"]: container for container in bash.containers}
    for container in ours:
        theirs = seen.get(container["image"]) or next(
            (
                c
                for c in seen.values()
                if not container["image"].startswith("/") and _same(c["image"], container["image"])
            ),
            None,
        )
        if theirs is None:
            out.append(f"image: {container['image']}, bash {', '.join(seen) or 'starts no container'}")
            continue
        out += _of_container(container, theirs, plan, environ)
        if theirs["script"] and not theirs["script"].endswith(posixpath.basename(value["script"]["path"])):
            out.append(f"script: {value['script']['path']}, bash {theirs['script']}")
    return list(dict.fromkeys(out))


def _same(one: str, other: str) -> bool:
    try:
        return Reference.parse(one) == Reference.parse(other)
    except ConfigError:
        return False


def _of_container(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], plan: Plan, environ: Mapping[str, str]
) -> Iterator[str]:
    places = {"{workspace}": plan.workspace.path, "$HOME": environ.get("HOME", "$HOME"), "$JOB": "4242"}
    places["$UID"] = str(os.geteuid())

    def real(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text.rstrip("/") if len(text) > 1 else text

    mounts = {target.rstrip("/"): real(source) for target, source in ours["mounts"].items()}
    for target in sorted(mounts.keys() | theirs["mounts"].keys()):
        if target != "/usr/bin/docker" and mounts.get(target) != theirs["mounts"].get(target):
            yield f"mount {target}: {mounts.get(target)}, bash {theirs['mounts'].get(target)}"
    for key in ("home", "remap_root", "writable"):
        if key in theirs and bool(ours["options"][key]) != theirs[key]:
            yield f"option {key}: {ours['options'][key]}, bash {theirs[key]}"
    if "flags" in theirs:
        flags = {flag for flag in ours["options"]["flags"] if not _OWN.match(flag)}
        for flag in sorted(flags ^ set(theirs["flags"])):
            yield f"flag {flag}: {'not' if flag in flags else 'only'} in bash"
    for name, text in ours["environment"].items():
        his = theirs["environment"].get(name, "")
        if name != "PORT" and real(str(text)) != his.rstrip("/"):
            yield f"variable {name}: {text!r}, bash {his!r}"
