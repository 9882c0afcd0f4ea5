"""The functions of a job's script (job_functions.sh), and the commands that set a container's variables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def functions(part: str) -> str:
    """The functions of one part of the file, in bash."""
    text = Path(__file__).with_name("job_functions.sh").read_text()
    _, *parts = re.split(r"^# --- (\w+)\n", text, flags=re.MULTILINE)
    return parts[parts.index(part) + 1].strip()


CARRIED = "LAUNCHER_ENVIRONMENT"
"""The variable that passes others into the container, as bash commands that set them."""

SET_CARRIED = f'eval "${CARRIED}"; unset {CARRIED}; exec bash "$0"'
"""The ``bash -c`` program in the container: it sets the variables, and becomes the script."""

SET_CARRIED_AT_LOGIN = f'eval "${CARRIED}"; unset {CARRIED}; exec bash -lc \'exec bash "$0"\' "$0"'
"""The same for a script that runs in a login shell."""

READ_CARRIED = 'eval "$(cat)"; exec bash -lc "$0" </dev/null'
"""The same with the commands from standard input, and with the script as a command of a login shell."""
