"""What one host sees: a short sh script, run here and, by one srun, on one compute node.

It is sh and not Python, because a compute node may not have this Python, or may not see where it lies. The node looks
for a file that the login host wrote into a directory, and the other way round, so that we know which directories are
shared.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from launcher.core.process import Completed
from launcher.doctor import parse
from launcher.doctor.commands import Commands, no_answer
from launcher.doctor.facts import DirectoryView, Fact, Host, Unknown

SCRIPT_TIMEOUT = 60.0
"""Seconds that the script may take: looking at a directory of a dead NFS server hangs."""

JOB_MINUTES = 2
"""Time limit of the node's job; Slurm's smallest unit is a minute."""

_BUSY = re.compile(r"nodes are busy|immediate execution impossible", re.IGNORECASE)
"""What srun says when its --immediate is over (22.05 and later: the first)."""

_SYSTEM = ("/", "/boot", "/boot/efi", "/var", "/usr", "/home", "/tmp", "/etc", "/run", "/proc", "/sys", "/dev")

# Every line that counts bears the token: prologs and profiles print, too. `set -C` opens with O_EXCL.
_SCRIPT = r"""
token=$1; side=$2; shift 2
say() { key=$1; shift; printf '%s\t%s\t%s\n' "$token" "$key" "$*"; }
flat() { tr '\n\t' '  '; }
version() {
  command -v "$1" >/dev/null 2>&1 || { say "$1.none" ""; return; }
  say "$1" "$("$@" 2>&1 | head -n 1 | flat)"
}
say name "${SLURMD_NODENAME:-$(uname -n)}"
say arch "$(uname -m)"
version enroot version
n=0; for d in /dev/nvidia[0-9] /dev/nvidia[0-9][0-9]; do [ -e "$d" ] && n=$((n + 1)); done; say devices "$n"
say mounts "$(findmnt -J -o TARGET,SOURCE,FSTYPE 2>/dev/null | flat)"
i=0
for wanted in "$@"; do
  at=$wanted
  while [ ! -e "$at" ] && [ "$at" != / ]; do at=$(dirname "$at"); done
  say "$i.at" "$at"
  say "$i.mount" "$(findmnt -J -T "$at" -o TARGET,SOURCE,FSTYPE 2>&1 | flat)"
  say "$i.space" "$(stat -f -c '%a %S' "$at" 2>/dev/null)"
  if [ -d "$at" ]; then
    ls -a "$at" >/dev/null 2>&1
    [ -r "$at" ] && [ -x "$at" ] && say "$i.readable" yes
    [ "$side" = compute ] && [ -e "$at/.launcher-look-$token-$i-login" ] && shared=yes || shared=no
    error=$( (set -C; : > "$at/.launcher-look-$token-$i-$side") 2>&1 )
    if [ $? -eq 0 ]; then
      say "$i.written" yes
      [ "$side" = compute ] && [ $shared = no ] && rm -f "$at/.launcher-look-$token-$i-$side"
    else
      say "$i.refused" "$(printf %s "${error##*: }" | flat)"
    fi
    [ "$side" = compute ] && say "$i.shared" "$shared"
  else
    say "$i.refused" "$at is not a directory"
  fi
  say "$i.end" ""
  i=$((i + 1))
done
say end ""
"""

_AFTER = r"""
token=$1; shift
while [ $# -gt 1 ]; do
  i=$1; at=$2; shift 2
  ls -a "$at" >/dev/null 2>&1
  [ -e "$at/.launcher-look-$token-$i-compute" ] && printf '%s\t%s\tyes\n' "$token" "$i"
  rm -f "$at/.launcher-look-$token-$i-login" "$at/.launcher-look-$token-$i-compute"
done
"""


def probe_hosts(
    commands: Commands, paths: Iterable[str], srun: Sequence[Sequence[str]] = (), *, wait: float = 60.0
) -> tuple[Host, Fact[Host]]:
    """This host and one compute node, and the directories ``paths`` as each of them sees them.

    ``srun`` are sets of srun's options: the next set is tried when Slurm refuses one, because a partition may want GPUs
    to be asked for. Without any set no job is started. ``wait`` is how many seconds to wait for a node. No file is left
    behind, unless the node's job is killed in between: then an empty hidden one on a disk of that node.
    """
    wanted = list(dict.fromkeys(paths))
    token = secrets.token_hex(4)
    here = commands.output(["sh", "-c", _SCRIPT, "sh", token, "login", *wanted], SCRIPT_TIMEOUT)
    login = _host(here, token, wanted)
    if isinstance(login, Unknown):
        login = Host("this host", login, login, login, unseen=login.why)
    compute: Fact[Host] = Unknown("no job was started to look (--no-node)")
    try:
        for options in srun:
            there = commands.output(
                [*_srun(options, wait), "sh", "-c", _SCRIPT, "sh", token, "compute", *wanted], wait + SCRIPT_TIMEOUT
            )
            compute = _host(there, token, wanted)
            if isinstance(compute, Host) or there.timed_out:
                break
            if _BUSY.search(there.stderr):
                compute = Unknown(f"no node was free within {wait:.0f} s ({compute})")
                break
    finally:
        ours = {path: str(wanted.index(path)) for path, seen in login.directories.items() if seen.writable}
        places = [word for path, index in ours.items() for word in (index, login.directories[path].at)]
        after = commands.output(["sh", "-c", _AFTER, "sh", token, *places], SCRIPT_TIMEOUT) if places else None
    return login, _with_back(compute, token, ours, after)


def _srun(options: Sequence[str], wait: float) -> list[str]:
    one = ["srun", "--nodes=1", "--ntasks=1", f"--time={JOB_MINUTES}", f"--immediate={max(1, round(wait))}"]
    return [*one, "--job-name=launcher-doctor", "--chdir=/", "--input=none", *options]


def _host(answer: Completed, token: str, wanted: Sequence[str]) -> Fact[Host]:
    """A host, read from the lines that the script printed before it ended, or hung in a directory and was killed."""
    lines = [line.split("\t", 2) for line in answer.stdout.splitlines() if line.startswith(f"{token}\t")]
    printed = {parts[1]: parts[2].strip() for parts in lines if len(parts) == 3}
    if "name" not in printed:
        return no_answer(answer) if not answer.ok else Unknown(f"{answer.argv[0]} printed nothing that could be read")

    def fact(key: str) -> Fact[str]:
        if printed.get(key):
            return printed[key]
        return Unknown(
            f"{printed['name']} has no {key} on its PATH" if f"{key}.none" in printed else no_answer(answer).why
        )

    mounted = parse.mounts(printed.get("mounts", ""))
    seen = {path: _seen(printed, i) for i, path in enumerate(wanted) if f"{i}.end" in printed}
    devices = printed.get("devices", "")
    return Host(
        name=printed["name"],
        arch=fact("arch"),
        enroot=fact("enroot"),
        devices=int(devices) if devices.isdigit() else Unknown("not seen"),
        directories=seen,
        unseen="" if "end" in printed else f"{printed['name']} did not come to it: {no_answer(answer).why}",
        disks=tuple(m for m in mounted if m.source.startswith(("/dev/nvme", "/dev/md")) and m.target not in _SYSTEM),
        shares=tuple(m for m in mounted if m.network),
    )


def _seen(printed: dict[str, str], i: int) -> DirectoryView:
    found = parse.mounts(printed.get(f"{i}.mount", ""))
    blocks, _, size = printed.get(f"{i}.space", "").partition(" ")
    return DirectoryView(
        at=printed.get(f"{i}.at", "/"),
        readable=f"{i}.readable" in printed,
        refused="" if f"{i}.written" in printed else printed.get(f"{i}.refused") or "it cannot be written",
        mount=found[-1] if found else Unknown(f"findmnt: {printed.get(f'{i}.mount') or 'no answer'}"),
        free=int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None,
        shared={"yes": True, "no": False}.get(printed.get(f"{i}.shared", "")),
    )


def _with_back(compute: Fact[Host], token: str, ours: Mapping[str, str], after: Completed | None) -> Fact[Host]:
    """The compute node with what both hosts found of each other's files in its directories.

    ``ours`` are the directories that the login host wrote into, each with its number in the script.
    """
    if isinstance(compute, Unknown):
        return compute
    lines = after.stdout.splitlines() if after is not None else []
    back = {parts[1] for line in lines if len(parts := line.split("\t")) == 3 and parts[0] == token}
    directories = {
        path: replace(
            seen,
            shared=seen.shared if path in ours else None,
            back=ours[path] in back if path in ours and seen.writable and seen.shared else None,
        )
        for path, seen in compute.directories.items()
    }
    return replace(compute, directories=directories)
