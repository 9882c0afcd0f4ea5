"""A launcher that goes on by itself: in a session of its own, with its output in a file; and how such a one starts.

Its command line and its secrets come to it by a pipe: neither a list of processes nor its first environment has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.core.publish import private_opener
from launcher.core.redact import names_a_secret
from launcher.remote.commands import own_argv

_PLACES = ("workspace", "srt_slurm", "runners", "recipes", "slurm_backend")


def start(
    name: str, words: Sequence[str], log: Path, state: Path, arguments: argparse.Namespace
) -> subprocess.Popen[bytes]:
    """Start ``launcher WORDS`` for the run or sweep ``name``, with its output in ``log``. Raises OSError.

    Where things are is the same for it as for the command with these ``arguments``.
    """
    given = {f"--{key.replace('_', '-')}": getattr(arguments, key, None) for key in _PLACES}
    places = [word for flag, value in given.items() if value for word in (flag, str(value))]
    argv = [*words, "--state", str(state), *places]
    secrets = {key: value for key, value in os.environ.items() if names_a_secret(key)}
    environment = {key: value for key, value in os.environ.items() if key not in secrets}
    with open(log, "ab", opener=private_opener) as output:
        child = subprocess.Popen(
            own_argv("driver", name),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    assert child.stdin is not None
    with child.stdin:
        child.stdin.write(json.dumps({"argv": argv, "secrets": secrets}).encode())
    return child


def driver(arguments: argparse.Namespace) -> int:
    """Such a launcher: do what its standard input says."""
    from launcher.cli import main

    request = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.update(request["secrets"])
    sys.argv[1:] = request["argv"]
    return main(request["argv"])
