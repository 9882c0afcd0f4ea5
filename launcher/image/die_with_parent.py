"""``python tied.py PID PROGRAM …``: PROGRAM, which gets SIGTERM when PID, the process that starts it, is gone.

A launcher that is killed cannot end the srun of an import, whose job would go on for nobody. Needs no package: it is
run by its path.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
"""prctl(2): it stays over execve(2)."""


def tied(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that runs ``argv`` as long as this process lives."""
    return (sys.executable, "-S", "-E", __file__, str(os.getpid()), *argv)


def main(argv: Sequence[str]) -> int:
    """Become the program; a return code only when that cannot be, as a shell gives it."""
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
