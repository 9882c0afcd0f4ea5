"""``python die_with_parent.py PID PROGRAM …`` runs PROGRAM, which gets SIGTERM when its parent PID is gone.

A killed launcher cannot end the srun of an import, so the job would continue although nobody waits for it. This file is
run by its path and needs no package. When the program cannot be started it exits with the code that a shell would give.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""prctl(2): the setting stays over execve(2)."""

if __name__ == "__main__":
    parent, *program = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit(128 + signal.SIGTERM)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
