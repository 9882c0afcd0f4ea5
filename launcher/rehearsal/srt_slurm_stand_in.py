"""A stand-in for the srt-slurm repository: a tiny git repository, the same on every machine, so that it can be pinned.

It has what the launcher and the stand-in for srtctl look for: the keys of srtslurm.yaml, ``configs/``, and a ``setup``
script that makes what `make setup` would download. Its one commit has a fixed author and date, hence a fixed sha.
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.core.errors import SubmissionError
from launcher.core.process import CommandRunner, run
from launcher.core.publish import publishing_directory
from launcher.rehearsal.srtctl_contract import CLUSTER, Kind

REF = "rehearsal-v1"
SHA = "49b19c200d5babc3a160fcf9098fe664c621b8b6"
"""The commit. It changes with every change of the files below; runners/local.yaml pins it."""

DIRECTORY = f"srt-slurm-{SHA[:12]}"
"""The repository's name; it says the commit, so that another version of the launcher gets another repository."""

DATE = "2026-01-01T00:00:00+00:00"

_TYPES: dict[Kind, str] = {
    "str": "str | None",
    "int": "int | None",
    "bool": "bool | None",
    "strings": "dict[str, str] | None",
    "ints": "dict[str, int] | None",
    "any": "dict | None",
}

_SETUP = """#!/bin/sh
# Makes empty stand-ins for the programs that srt-slurm's `make setup` downloads. Usage: sh setup [ARCH]
set -eu
mkdir -p bin configs
for program in bin/uv bin/tachometer-scraper configs/nats-server configs/etcd; do
    printf '#!/bin/sh\\nexit 0\\n' > "$program"
    chmod +x "$program"
done
"""


def files() -> dict[str, str]:
    """The repository's files, path to text."""
    fields = "".join(f"    {name}: {_TYPES[kind]} = None\n" for name, kind in CLUSTER.items())
    return {
        ".gitignore": "bin/\noutputs/\nsrtslurm.yaml\nconfigs/nats-server\nconfigs/etcd\n",
        "Makefile": "ARCH ?= $(shell uname -m)\n\nsetup:\n\tsh setup $(ARCH)\n\n.PHONY: setup\n",
        "README.md": "A rehearsal's stand-in for srt-slurm. Nothing here runs a model.\n",
        "configs/README.md": "What `setup` makes lies beside this file.\n",
        "recipes/README.md": "Recipes are laid over this directory.\n",
        "setup": _SETUP,
        "src/srtctl/core/schema.py": f'"""The keys of srtslurm.yaml."""\n\n\nclass ClusterConfig:\n{fields}',
    }


def ensure_repository(directory: Path, *, runner: CommandRunner = run) -> Path:
    """Have the repository below ``directory``, and return its path, which git can clone.

    The path names the commit, so another version of the launcher gets another repository. Several processes may ask at
    once. Raises SubmissionError when git fails.
    """
    repository = directory / DIRECTORY
    if repository.is_dir():
        return repository
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with publishing_directory(repository) as temporary:
            _make(temporary, runner)
    except OSError as error:
        raise SubmissionError(f"the rehearsal's repository cannot be made: {error}", where=str(repository)) from None
    return repository


def _make(directory: Path, runner: CommandRunner) -> None:
    for name, text in files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    # Neither the user's settings (signing, line ends, hooks) nor an enclosing repository may change the commit.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _IDENTITY.items()},
    }
    for words in (
        ["init", "--quiet", "--template=", "--object-format=sha1", "--initial-branch=main", "."],
        ["-c", "core.autocrlf=false", "-c", "core.fileMode=true", "add", "--all"],
        ["commit", "--quiet", "--no-gpg-sign", "--no-verify", "--message", "Stand-in for srt-slurm"],
        ["tag", REF],
    ):
        done = runner(["git", *words], timeout=60, cwd=directory, env=environment)
        if not done.ok:
            raise SubmissionError(f"the rehearsal's repository cannot be made: {done}", where=str(directory))


_IDENTITY = {"NAME": "launcher", "EMAIL": "launcher@localhost", "DATE": DATE}
