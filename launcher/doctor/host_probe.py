"""What one host sees: a short sh script, run here and, by one srun, on one compute node.

sh and not Python, because a compute node need not have this Python, nor see where it lies. What the login host writes
into a directory the node looks for, and the other way round: so it is known, not assumed, which directories are shared.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from launcher.core.process import Completed
from launcher.doctor import parse
from launcher.doctor.commands import Asking, silence
from launcher.doctor.facts import Fact, Host, Mount, Seen, Unknown

PATIENCE = 60.0
"""Seconds that the script may take: a dead NFS server makes a look at its directory hang."""

MINUTES = 2
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
    said=$( (set -C; : > "$at/.launcher-look-$token-$i-$side") 2>&1 )
    if [ $? -eq 0 ]; then
      say "$i.written" yes
      [ "$side" = compute ] && [ $shared = no ] && rm -f "$at/.launcher-look-$token-$i-$side"
    else
      say "$i.refused" "$(printf %s "${said##*: }" | flat)"
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


def look(
    asking: Asking, paths: Iterable[str], srun: Sequence[Sequence[str]] = (), *, wait: float = 60.0
) -> tuple[Host, Fact[Host]]:
    """This host and one compute node, and the directories ``paths`` as each of them sees them.

    ``srun`` are sets of srun's options, tried in turn when Slurm refuses one (a partition may want GPUs to be asked
    for); without any no job is started. ``wait`` is how long, in seconds, a node is waited for. Leaves no file behind,
    unless the node's job is killed in between: then an empty hidden one on a disk of that node.
    """
    wanted = list(dict.fromkeys(paths))
    token = secrets.token_hex(4)
    here = asking.say(["sh", "-c", _SCRIPT, "sh", token, "login", *wanted], PATIENCE)
    login = _host(here, token, wanted)
    if isinstance(login, Unknown):
        login = Host("this host", login, login, login, unseen=login.why)
    compute: Fact[Host] = Unknown("no job was started to look (--no-node)")
    try:
        for options in srun:
            there = asking.say(
                [*_srun(options, wait), "sh", "-c", _SCRIPT, "sh", token, "compute", *wanted], wait + PATIENCE
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
        after = asking.say(["sh", "-c", _AFTER, "sh", token, *places], PATIENCE) if places else None
    return login, _with_back(compute, token, ours, after)


def _srun(options: Sequence[str], wait: float) -> list[str]:
    one = ["srun", "--nodes=1", "--ntasks=1", f"--time={MINUTES}", f"--immediate={max(1, round(wait))}"]
    return [*one, "--job-name=launcher-doctor", "--chdir=/", "--input=none", *options]


def _host(said: Completed, token: str, wanted: Sequence[str]) -> Fact[Host]:
    """A host out of the script's lines, as many as there are: it may have been cut off in a directory that hangs."""
    lines = [line.split("\t", 2) for line in said.stdout.splitlines() if line.startswith(f"{token}\t")]
    told = {parts[1]: parts[2].strip() for parts in lines if len(parts) == 3}
    if "name" not in told:
        return silence(said) if not said.ok else Unknown(f"{said.argv[0]} printed nothing that could be read")

    def fact(key: str) -> Fact[str]:
        if told.get(key):
            return told[key]
        return Unknown(f"{told['name']} has no {key} on its PATH" if f"{key}.none" in told else silence(said).why)

    mounted = _mounts(told.get("mounts", ""))
    seen = {path: _seen(told, i) for i, path in enumerate(wanted) if f"{i}.end" in told}
    devices = told.get("devices", "")
    return Host(
        name=told["name"],
        arch=fact("arch"),
        enroot=fact("enroot"),
        devices=int(devices) if devices.isdigit() else Unknown("not seen"),
        directories=seen,
        unseen="" if "end" in told else f"{told['name']} did not come to it: {silence(said).why}",
        disks=tuple(m for m in mounted if m.source.startswith(("/dev/nvme", "/dev/md")) and m.target not in _SYSTEM),
        shares=tuple(m for m in mounted if m.network),
    )


def _seen(told: dict[str, str], i: int) -> Seen:
    found = _mounts(told.get(f"{i}.mount", ""))
    blocks, _, size = told.get(f"{i}.space", "").partition(" ")
    return Seen(
        at=told.get(f"{i}.at", "/"),
        readable=f"{i}.readable" in told,
        refused="" if f"{i}.written" in told else told.get(f"{i}.refused") or "it cannot be written",
        mount=found[-1] if found else Unknown(f"findmnt: {told.get(f'{i}.mount') or 'no answer'}"),
        free=int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None,
        shared={"yes": True, "no": False}.get(told.get(f"{i}.shared", "")),
    )


def _mounts(text: str) -> tuple[Mount, ...]:
    try:
        return parse.mounts(text)
    except (json.JSONDecodeError, AttributeError):
        return ()


def _with_back(compute: Fact[Host], token: str, ours: Mapping[str, str], after: Completed | None) -> Fact[Host]:
    """The compute node's directories with what both sides found of each other's files; ``ours`` are those that the
    login host wrote into, each with its number."""
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
