"""``python die_with_parent.py PID PROGRAM …`` runs PROGRAM, which gets SIGTERM when its parent PID is gone.

A launcher that is killed cannot end the srun of an import, and the job would go on for nobody. This file is run by its
path and needs no package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
"""prctl(2): the setting stays over execve(2)."""


def ends_with_this_process(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that runs ``argv`` and ends it when this process is gone."""
    return (sys.executable, "-S", "-E", __file__, str(os.getpid()), *argv)


def main(argv: Sequence[str]) -> int:
    """Become the program. Returns only when that fails, with the code that a shell would give."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(argv[0]):
            return 128 + signal.SIGTERM
    try:
        os.execvp(argv[1], list(argv[1:]))
    except OSError as error:
        sys.stderr.write(f"{argv[1]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
